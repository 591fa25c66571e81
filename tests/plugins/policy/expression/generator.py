"""Random expressions, most of them well formed, many of them wrong in types: to compare two implementations with."""

from __future__ import annotations

import random

ATOMS = (
    *(
        "1",
        "2",
        "0",
        "-1",
        "7",
        "1.5",
        "2.0",
        "0.5",
        "0x1F",
        "1e3",
        '"a"',
        '"x"',
        '"y"',
        '""',
        '"ab"',
        "'b'",
        "`c`",
        '"é"',
    ),
    *("true", "false", "nil", "port", "peer_id", "members", "peer_tags", "local_tags", "peer_age_s", "network_id"),
    *("[1, 2]", "[]", "{}", '{"a": 1}', '["x", "y"]', '[1, "a"]', "[nil]", "[[1], [2]]", "1..3", 'b"ab"'),
    *('{"a": 1}.a', '{"a": "x"}.a', '{"a": [1]}.a', "$env", "unknown", "size", "sender_rating", "#", ".x"),
    'fromJSON("[1,{}]")',
)
OPERATORS = (
    *("==", "!=", "<", ">", "<=", ">=", "+", "-", "*", "/", "%", "**", "^", "and", "or", "&&", "||", "in", "not in"),
    *("matches", "contains", "startsWith", "endsWith", "..", "??", "==", "<", "+", "&&", "||"),
)
PREDICATES = (
    *("all", "none", "any", "one", "filter", "map", "find", "findIndex"),
    *("count", "sum", "groupBy", "sortBy", "reduce"),
)
BODIES = (
    *("#", "# == 1", "# > 1", '# == "x"', "true", "len(#) > 0", "#acc + #", "#index", "# in [1, 2]", "{# > 0}"),
    "let e = #; e == 1",
)
LISTS = ("[1, 2, 3]", "peer_tags", "[1, 2]", "1..4", '["a", "b"]', "[[1], [2]]", "[]", "[true, false]")
OF_ONE = (
    *("len", "type", "abs", "ceil", "floor", "round", "int", "float"),
    *("string", "trim", "upper", "lower", "first", "last", "keys", "values"),
    *("toPairs", "fromPairs", "reverse", "uniq", "concat", "flatten", "sort", "max"),
    *("min", "mean", "median", "toJSON", "duration", "since", "has_tag", "join"),
    *("bitnot", "toBase64", "trimPrefix", "fromJSON", "fromBase64", "date", "timezone"),
)
OF_MORE = (
    *("has_tag", "trim", "max", "min", "concat", "sort", "join", "mean"),
    *("trimPrefix",),
)
OF_TWO = (
    *("split", "replace", "repeat", "indexOf", "hasPrefix", "hasSuffix", "take", "get"),
    *("bitand", "bitor", "bitshl", "bitshr", "lastIndexOf", "bitxor"),
)
MEMBERS = ("[0]", "[-1]", "[5]", ".a", "?.a", "?.[0]", "[0:1]", "[1:]", "[:1]", '["a"]', ".Year()", "?.b?.c", ".b.c")
NOISE = ("", " ", "(", ")", '"', ",", "?", ".", "#", "|", "=", "1", "@", "[", "b", "\n", "not")


class Generator:
    """Makes expressions of a random generator's choice."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng

    def expression(self) -> str:
        """An expression, now and then damaged; what is no bool is mostly compared with something."""
        rng = self.rng
        text = self.part(rng.randrange(1, 5))
        kind = rng.random()
        if kind < 0.3:
            text = f"({text}) == {self.part(rng.randrange(2))}"
        elif kind < 0.4:
            text = f"({text}) != nil"
        elif kind < 0.7:
            text = f'string({text}) == "z"'
        if rng.random() < 0.12:
            at = rng.randrange(len(text))
            text = text[:at] + rng.choice(NOISE) + text[at + rng.randrange(2) :]
        return text

    def part(self, depth: int) -> str:
        """An expression nested so deep at most."""
        if depth <= 0:
            return self.rng.choice(ATOMS)
        make = self.rng.choice(
            [self.operation] * 5
            + [self.call_of_one] * 2
            + [self.unary, self.ternary, self.member, self.predicate, self.call_of_two, self.block, self.literal]
        )
        return make(depth)

    def deeper(self, depth: int) -> str:
        return self.part(depth - 1 - self.rng.randrange(2))

    def operation(self, depth: int) -> str:
        left, right = self.deeper(depth), self.deeper(depth)
        left = f"({left})" if self.rng.random() < 0.5 else left
        right = f"({right})" if self.rng.random() < 0.5 else right
        return f"{left} {self.rng.choice(OPERATORS)} {right}"

    def unary(self, depth: int) -> str:
        return self.rng.choice(["!", "not ", "-", "+"]) + self.deeper(depth)

    def ternary(self, depth: int) -> str:
        return f"{self.deeper(depth)} ? {self.deeper(depth)} : {self.deeper(depth)}"

    def member(self, depth: int) -> str:
        index = self.rng.choice([*MEMBERS, f"[{self.deeper(depth)}]"])
        return f"({self.deeper(depth)}){index}"

    def predicate(self, depth: int) -> str:
        name = self.rng.choice(PREDICATES)
        items = self.rng.choice([*LISTS, self.deeper(depth)])
        body = self.rng.choice([*BODIES, self.deeper(depth)])
        third = f", {self.deeper(depth)}" if self.rng.random() < 0.15 else ""
        return f"{items} | {name}({body})" if self.rng.random() < 0.1 else f"{name}({items}, {body}{third})"

    def call_of_one(self, depth: int) -> str:
        name = self.rng.choice(OF_ONE)
        arguments = [self.deeper(depth)]
        if self.rng.random() < (0.5 if name in OF_MORE else 0.05):
            arguments.append(self.deeper(depth))
        return f"{name}({', '.join(arguments)})"

    def call_of_two(self, depth: int) -> str:
        name = self.rng.choice(OF_TWO)
        arguments = [self.deeper(depth) for _ in range(3 if name == "replace" else 2)]
        return f"{name}({', '.join(arguments)})"

    def block(self, depth: int) -> str:
        first, second, third = (self.deeper(depth) for _ in range(3))
        return self.rng.choice(
            [
                f"let v = {first}; {second}",
                f"if {first} {{{second}}} else {{{third}}}",
                f"({first}; {second})",
                f"(let w = {first}; w == {second})",
            ]
        )

    def literal(self, depth: int) -> str:
        first, second = self.deeper(depth), self.deeper(depth)
        return self.rng.choice([f"[{first}, {second}]", f'{{"a": {first}, b: {second}}}', f"[{first}]", f"({first})"])
