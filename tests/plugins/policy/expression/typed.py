"""Random expressions whose types fit, so that they are evaluated: what they come to is to be compared."""

from __future__ import annotations

import random

LEAVES = {
    "bool": ("true", "false", "port == 2", '"x" in peer_tags', "peer_age_s > 5", "nil == nil"),
    "int": ("0", "1", "2", "7", "-1", "port", "peer_id", "members", "0x1F", "len(peer_tags)", "9223372036854775807"),
    "float": ("0.5", "1.5", "2.0", "1e3", "-0.25", "7 / 2", "2 ** 0.5"),
    "text": ('"a"', '"x"', '""', "`c`", '"ab cd"', '"é"', "peer_tags[0]", "'b\\n'"),
    "ints": ("[1, 2, 3]", "[]", "1..4", "[3, 1, 2]", "3..1", "[7]"),
    "texts": ("peer_tags", "local_tags", '["a", "b"]', 'split("a,b,c", ",")', "[]"),
}
SHAPES = {
    "bool": (
        *("{bool} && {bool}", "{bool} || {bool}", "!({bool})", "not ({bool})", "({bool}) == ({bool})"),
        *(
            "{int} {order} {int}",
            "{float} {order} {int}",
            "{text} {order} {text}",
            "{int} in {ints}",
            "{int} not in {ints}",
        ),
        *(
            "{text} in {texts}",
            "({text}) contains ({text})",
            "({text}) startsWith ({text})",
            '({text}) matches "^[a-c]+$"',
        ),
        *(
            "any({ints}, # > {int})",
            "all({texts}, len(#) {order} {int})",
            "one({ints}, # == {int})",
            "none({ints}, {bool})",
        ),
        *(
            "({ints}) == ({ints})",
            "({texts}) == ({texts})",
            "({bool}) ? ({bool}) : ({bool})",
            "hasPrefix({text}, {text})",
        ),
        *(
            "if {bool} {{{bool}}} else {{{bool}}}",
            "let v = {int}; v {order} {int}",
            "1 < {int} <= 9",
            "({int}; {bool})",
        ),
        *(
            "get({ints}, {int}) == nil",
            "find({ints}, # > {int}) != nil",
            "({ints})[{int}] == {int}",
            "int({text}) == 1",
        ),
        *(
            "{int} in [1, 2, 7]",
            "{int} in 1..5",
            "{text} in ['a', 'x']",
            "toJSON({ints}) == {text}",
            "type({int}) == {text}",
        ),
    ),
    "int": (
        *("({int}) + ({int})", "({int}) - ({int})", "({int}) * ({int})", "({int}) % ({int})", "-({int})", "abs({int})"),
        *("len({ints})", "len({text})", "sum({ints})", "count({ints}, # > {int})", "reduce({ints}, #acc + #, {int})"),
        *(
            "int({float})",
            "indexOf({text}, {text})",
            "bitand({int}, {int})",
            "bitshr({int}, 3)",
            "({bool}) ? {int} : {int}",
        ),
        *("({ints})[0]", "min({int}, {int})", "findIndex({ints}, # == {int}) ?? -1"),
    ),
    "float": (
        *(
            "({float}) + ({int})",
            "({float}) * ({float})",
            "({int}) / ({int})",
            "({int}) ** 2",
            "round({float})",
            "ceil({float})",
        ),
        *("mean({ints}, 1)", "median({ints})", "float({int})", "-({float})"),
    ),
    "text": (
        *("({text}) + ({text})", "upper({text})", "trim({text})", "string({int})", "string({float})", "string({ints})"),
        *(
            "join({texts}, {text})",
            "replace({text}, {text}, {text})",
            "repeat({text}, 2)",
            "({text})[1:]",
            "({text})[:-1]",
        ),
        *("toJSON({float})", "toBase64({text})", "toJSON({texts})", "trimPrefix({text}, {text})"),
    ),
    "ints": (
        *("filter({ints}, # {order} {int})", "map({ints}, # * 2)", "sort({ints})", "reverse({ints})", "({ints})[1:]"),
        *("concat({ints}, {ints})", "uniq({ints})", "map({texts}, len(#))", "take({ints}, 2)", "[{int}, {int}]"),
        *("sortBy({ints}, -#)", "map({ints}, # + #index)", "values({{a: {int}}})", "groupBy({ints}, # % 2)[1] ?? []"),
    ),
    "texts": (
        *("filter({texts}, # != {text})", "map({texts}, # + {text})", "sort({texts}, 'desc')", "[{text}, {text}]"),
        *("split({text}, {text})", "concat({texts}, {texts})", "reverse({texts})", "keys({{a: {int}}})"),
    ),
}


class TypedGenerator:
    """Makes expressions of a wanted kind."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng

    def expression(self) -> str:
        """A condition."""
        return self.part("bool", self.rng.randrange(1, 5))

    def part(self, kind: str, depth: int) -> str:
        """An expression of a kind, nested so deep at most."""
        if depth <= 0:
            return self.rng.choice(LEAVES[kind])
        shape = self.rng.choice(SHAPES[kind])
        return shape.format_map(_Parts(self, depth))


class _Parts(dict[str, str]):
    """A new part at every mention of a kind."""

    def __init__(self, generator: TypedGenerator, depth: int) -> None:
        super().__init__()
        self.generator = generator
        self.depth = depth

    def __missing__(self, kind: str) -> str:
        rng = self.generator.rng
        if kind == "order":
            return rng.choice(["<", ">", "<=", ">=", "==", "!="])
        return self.generator.part(kind, self.depth - 1 - rng.randrange(2))
