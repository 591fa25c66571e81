"""Tokens to a syntax tree, by precedence climbing (plugin policy, L11; services.md 9.5).

`1 < 2 < 3` means `1 < 2 && 2 < 3`, `a | f(b)` means `f(a, b)`, `not` before `in` and the like negates the whole, and
`??` stands beside no other operator without parentheses.
"""

from __future__ import annotations

from collections.abc import Callable

from pilot.plugins.policy.expression.errors import CompileError, located
from pilot.plugins.policy.expression.functions import BUILTINS, EXTRA_FUNCTIONS, PREDICATES
from pilot.plugins.policy.expression.lexer import Lexeme, Token, quoted, tokens_untrusted
from pilot.plugins.policy.expression.limits import MAX_DEPTH, MAX_NODES, MAX_SOURCE_LENGTH
from pilot.plugins.policy.expression.nodes import (
    Binary,
    Builtin,
    Call,
    Chain,
    Conditional,
    Constant,
    Let,
    ListNode,
    MapNode,
    Member,
    Name,
    Node,
    Pointer,
    Predicate,
    Sequence,
    Slice,
    Unary,
    children,
)

UNARY = {"not": 50, "!": 50, "-": 90, "+": 90}
BINARY = {
    **dict.fromkeys(["|"], 0),
    **dict.fromkeys(["or", "||"], 10),
    **dict.fromkeys(["and", "&&"], 15),
    **dict.fromkeys(["==", "!=", "<", ">", ">=", "<=", "in", "matches", "contains", "startsWith", "endsWith"], 20),
    **dict.fromkeys([".."], 25),
    **dict.fromkeys(["+", "-"], 30),
    **dict.fromkeys(["*", "/", "%"], 60),
    **dict.fromkeys(["**", "^"], 100),
    **dict.fromkeys(["??"], 500),
}
NEGATABLE = frozenset({"in", "matches", "contains", "startsWith", "endsWith"})
CHAINED = frozenset({"<", ">", "<=", ">="})
BASES = {"x": (16, "hex"), "b": (2, "binary"), "o": (8, "octal")}
LITERALS = {"true": True, "false": False, "nil": None}


def parse_untrusted(source: str) -> Node:
    """Return the syntax tree of an expression.

    Raises:
        CompileError: it is none, or larger than `limits` allow.
    """
    if len(source) > MAX_SOURCE_LENGTH:
        raise CompileError(f"expression too long (more than {MAX_SOURCE_LENGTH} characters)")
    # Half of a surrogate pair, which JSON can write, is no text: Go's decoder replaces it.
    return _Parser(source.encode("utf-16", "surrogatepass").decode("utf-16", "replace")).parse()


class _Parser:
    """A place among the tokens, and how deep in the expression it is."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.tokens = tokens_untrusted(source)
        self.place = -1
        self.nodes = 0
        self.levels = 0
        self.predicates = 0
        self.advance()

    def parse(self) -> Node:
        node = self.sequence()
        if self.current.kind is not Lexeme.END:
            raise self.unexpected()
        return node

    # -- tokens

    def advance(self) -> None:
        self.place += 1
        self.current = self.tokens[self.place]
        if self.current.kind is Lexeme.ERROR:
            raise self.error(self.current.value)

    def error(self, message: str, at: int | None = None) -> CompileError:
        return CompileError(located(message, self.source, self.current.at if at is None else at))

    def unexpected(self) -> CompileError:
        return self.error(f"unexpected token {self.current}")

    def expect(self, kind: Lexeme, value: str) -> None:
        if self.current.kind is not kind or self.current.value != value:
            raise self.unexpected()
        self.advance()

    def expect_operator(self, value: str) -> None:
        self.expect(Lexeme.OPERATOR, value)

    def expect_bracket(self, value: str) -> None:
        self.expect(Lexeme.BRACKET, value)

    def made(self, node: Node) -> Node:
        """Count a node, and how deep the tree below it is; a row of operators counts as one level."""
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise self.error("compilation failed: expression exceeds maximum allowed nodes")
        for child in children(node):
            is_row = isinstance(node, Binary) and child is node.left and isinstance(child, Binary)
            node.depth = max(node.depth, child.depth if is_row else child.depth + 1)
        if node.depth > MAX_DEPTH:
            raise self.too_deep()
        return node

    def too_deep(self) -> CompileError:
        return self.error(f"expression nested too deeply (more than {MAX_DEPTH} levels)")

    # -- expressions

    def sequence(self) -> Node:
        """`a; b; c`"""
        steps = [self.expression()]
        while self.current.is_operator(";"):
            self.advance()
            if self.current.kind is Lexeme.END or self.current.is_bracket("}"):
                break
            steps.append(self.expression())
        return steps[0] if len(steps) == 1 else self.made(Sequence(steps[0].at, steps))

    def expression(self, precedence: int = 0) -> Node:
        self.levels += 1
        if self.levels > MAX_DEPTH:
            raise self.too_deep()
        try:
            if precedence == 0 and self.current.is_operator("let"):
                return self.let()
            if precedence == 0 and self.current.is_operator("if"):
                return self.if_expression()
            node = self.binary(self.primary(), precedence)
            return self.ternary(node) if precedence == 0 else node
        finally:
            self.levels -= 1

    def binary(self, left: Node, precedence: int) -> Node:
        previous = ""
        while self.current.kind is Lexeme.OPERATOR:
            token, negated = self.current, False
            if token.value == "not":
                before = self.place
                self.advance()
                if self.current.value not in NEGATABLE or self.current.kind is not Lexeme.OPERATOR:
                    raise self.unexpected()
                if BINARY[self.current.value] < precedence:
                    self.place, self.current = before, token
                    return left
                token, negated = self.current, True
            strength = BINARY.get(token.value, -1)
            if strength < precedence:
                break
            self.advance()
            left = self.operation(left, token, previous, strength)
            if negated:
                left = self.made(Unary(token.at, "not", left))
            previous = token.value
        return left

    def operation(self, left: Node, token: Token, previous: str, strength: int) -> Node:
        """The operation of an operator just passed, with what is right of it."""
        if token.value == "|":
            name = self.current
            if name.kind is not Lexeme.IDENTIFIER:
                raise self.unexpected()
            self.advance()
            return self.call(name, left)
        if previous == "??" and token.value != "??":
            raise self.error(
                f"Operator ({token.value}) and coalesce expressions (??) cannot be mixed. Wrap either by parentheses.",
                token.at,
            )
        if token.value in CHAINED:
            return self.comparisons(left, token, strength)
        right = self.expression(strength if token.value in ("**", "^") else strength + 1)
        return self.made(Binary(token.at, token.value, left, right))

    def comparisons(self, left: Node, token: Token, strength: int) -> Node:
        """`a < b <= c` as `a < b && b <= c`."""
        found: Node | None = None
        while True:
            right = self.expression(strength + 1)
            compared = self.made(Binary(token.at, token.value, left, right))
            found = compared if found is None else self.made(Binary(token.at, "&&", found, compared))
            left, token = right, self.current
            if not token.is_operator(*CHAINED):
                return found
            self.advance()

    def ternary(self, node: Node) -> Node:
        while self.current.is_operator("?"):
            self.advance()
            if self.current.is_operator(":"):
                self.advance()
                then, otherwise = node, self.expression()
            else:
                then = self.expression()
                self.expect_operator(":")
                otherwise = self.expression()
            node = self.made(Conditional(self.current.at, node, then, otherwise))
        return node

    def if_expression(self) -> Node:
        self.advance()
        condition = self.expression()
        then = self.block()
        self.expect_operator("else")
        otherwise = self.expression() if self.current.is_operator("if") else self.block()
        return self.made(Conditional(0, condition, then, otherwise))

    def block(self) -> Node:
        self.expect_bracket("{")
        body = self.sequence()
        self.expect_bracket("}")
        return body

    def let(self) -> Node:
        self.advance()
        name = self.current
        if name.kind is not Lexeme.IDENTIFIER:
            raise self.unexpected()
        self.advance()
        self.expect_operator("=")
        value = self.expression()
        self.expect_operator(";")
        return self.made(Let(name.at, name.value, value, self.sequence()))

    # -- operands

    def primary(self) -> Node:
        token = self.current
        if token.kind is Lexeme.OPERATOR and token.value in UNARY:
            self.advance()
            operand = self.expression(UNARY[token.value])
            return self.postfix(self.made(Unary(token.at, token.value, operand)))
        if token.is_bracket("("):
            self.advance()
            node = self.sequence()
            self.expect_bracket(")")
            return self.postfix(node)
        if self.predicates and token.is_operator("#", "."):
            name = ""
            if token.value == "#":
                self.advance()
                if self.current.kind is Lexeme.IDENTIFIER:
                    name = self.current.value
                    self.advance()
            return self.postfix(self.made(Pointer(token.at, name)))
        if token.is_operator("::"):
            self.advance()
            name_token = self.current
            if name_token.kind is not Lexeme.IDENTIFIER:
                raise self.unexpected()
            self.advance()
            if not self.current.is_bracket("("):
                raise self.unexpected()
            return self.postfix(self.call(name_token, plain=True))
        return self.literal(token)

    def literal(self, token: Token) -> Node:
        if token.kind is Lexeme.IDENTIFIER:
            self.advance()
            if token.value in LITERALS:
                return self.made(Constant(token.at, LITERALS[token.value]))
            if self.current.is_bracket("("):
                return self.postfix(self.call(token))
            return self.postfix(self.made(Name(token.at, token.value)))
        if token.kind is Lexeme.NUMBER:
            self.advance()
            return self.made(Constant(token.at, self.number(token.value)))
        if token.kind is Lexeme.STRING:
            self.advance()
            return self.postfix(self.made(Constant(token.at, token.value)))
        if token.kind is Lexeme.BYTES:
            self.advance()
            return self.postfix(self.made(Constant(token.at, token.value.encode("latin-1"))))
        if token.is_bracket("["):
            return self.postfix(self.list_literal())
        if token.is_bracket("{"):
            return self.postfix(self.map_literal())
        raise self.unexpected()

    def number(self, text: str) -> int | float:
        digits = text.replace("_", "")
        lower = digits.lower()
        base, kind = next((found for mark, found in BASES.items() if mark in lower), (10, "integer"))
        if base == 10 and any(char in digits for char in ".eE"):
            try:
                value = float(digits)
            except ValueError:
                raise self.bad_number("float", "ParseFloat", digits, "invalid syntax") from None
            if value == float("inf"):
                raise self.bad_number("float", "ParseFloat", digits, "value out of range")
            return value
        try:
            number = int(digits, base)
        except ValueError:
            raise self.bad_number(kind, "ParseInt", digits, "invalid syntax") from None
        if number >= 1 << 63:
            raise self.bad_number(kind, "ParseInt", digits, "value out of range")
        return number

    def bad_number(self, kind: str, parser: str, digits: str, why: str) -> CompileError:
        return self.error(f"invalid {kind} literal: strconv.{parser}: parsing {quoted(digits)}: {why}")

    def list_literal(self) -> Node:
        at = self.current.at
        self.advance()
        items: list[Node] = []
        self.items("]", lambda: items.append(self.expression()))
        return self.made(ListNode(at, items))

    def map_literal(self) -> Node:
        at = self.current.at
        self.advance()
        pairs: list[tuple[Node, Node]] = []
        self.items("}", lambda: pairs.append(self.pair()))
        return self.made(MapNode(at, pairs))

    def items(self, closing: str, read_one: Callable[[], None]) -> None:
        """What stands between commas up to a closing bracket; one comma may come after the last."""
        is_first = True
        while not self.current.is_bracket(closing):
            if not is_first:
                self.expect_operator(",")
                if self.current.is_bracket(closing):
                    break
                if self.current.is_operator(","):
                    raise self.unexpected()
            read_one()
            is_first = False
        self.advance()

    def pair(self) -> tuple[Node, Node]:
        token = self.current
        if token.kind in (Lexeme.STRING, Lexeme.NUMBER, Lexeme.IDENTIFIER):
            self.advance()
            key = self.made(Constant(token.at, token.value))
        elif token.is_bracket("("):
            key = self.expression()
        else:
            raise self.error(
                "a map key must be a quoted string, a number, a identifier, or an expression enclosed in parentheses "
                f"(unexpected token {token})"
            )
        self.expect_operator(":")
        return key, self.expression()

    # -- calls and members

    def call(self, name: Token, *given: Node, plain: bool = False) -> Node:
        """The call of a name, the token after it current; `given` comes from a pipe, `plain` from `::`."""
        if name.value in PREDICATES:
            return self.predicate_call(name, list(given))
        arguments = list(given)
        self.expect_bracket("(")
        self.items(")", lambda: arguments.append(self.expression()))
        if name.value in BUILTINS and (plain or name.value not in EXTRA_FUNCTIONS):
            return self.made(Builtin(name.at, name.value, arguments))
        return self.made(Call(name.at, self.made(Name(name.at, name.value)), arguments))

    def predicate_call(self, name: Token, arguments: list[Node]) -> Node:
        required, allowed = PREDICATES[name.value]
        self.expect_bracket("(")
        first = len(arguments)
        for place in range(first, allowed):
            if self.current.is_bracket(")"):
                if place < required:
                    raise self.error(f"expected at least {allowed} arguments")
                break
            if place > first:
                self.expect_operator(",")
            arguments.append(self.predicate() if place == 1 else self.expression())
        if self.current.is_operator(","):
            self.advance()
        self.expect_bracket(")")
        return self.made(Builtin(name.at, name.value, arguments))

    def predicate(self) -> Node:
        start = self.current.at
        braced = self.current.is_bracket("{")
        if braced:
            self.advance()
        self.predicates += 1
        try:
            body = self.sequence() if braced else self.expression()
        finally:
            self.predicates -= 1
        if braced:
            self.expect_bracket("}")
        return self.made(Predicate(start, body))

    def postfix(self, node: Node) -> Node:
        """`.name`, `.name(...)`, `?.`, `[index]`, `[from:to]` after an operand."""
        has_optional = False
        if isinstance(node, Chain) and self.current.is_operator(".", "?."):
            # Parentheses do not end a chain.
            has_optional, node = True, node.body
        while True:
            token = self.current
            if token.is_operator(".", "?."):
                has_optional = has_optional or token.value == "?."
                self.advance()
                if token.value == "?." and self.current.is_bracket("["):
                    node = self.index(node, is_optional=True)
                else:
                    node = self.named_member(node, is_optional=token.value == "?.")
            elif token.is_bracket("["):
                if has_optional:
                    has_optional, node = False, self.made(Chain(node.at, node))
                node = self.index(node, is_optional=False)
            else:
                return self.made(Chain(node.at, node)) if has_optional else node

    def named_member(self, base: Node, *, is_optional: bool) -> Node:
        name = self.current
        if name.kind is Lexeme.END:
            raise self.error("unexpected end of expression")
        self.advance()
        if name.kind is not Lexeme.IDENTIFIER and not (name.kind is Lexeme.OPERATOR and name.value.isalpha()):
            raise self.error("expected name")
        member = Member(name.at, base, self.made(Constant(name.at, name.value)), is_optional)
        self.made(member)
        if not self.current.is_bracket("("):
            return member
        member.is_callee = True
        arguments: list[Node] = []
        self.advance()
        self.items(")", lambda: arguments.append(self.expression()))
        return self.made(Call(name.at, member, arguments))

    def index(self, base: Node, *, is_optional: bool) -> Node:
        at = self.current.at
        self.advance()
        start = None if self.current.is_operator(":") else self.expression()
        if not self.current.is_operator(":"):
            self.expect_bracket("]")
            assert start is not None
            return self.made(Member(at, base, start, is_optional))
        self.advance()
        stop = None if self.current.is_bracket("]") else self.expression()
        self.expect_bracket("]")
        return self.made(Slice(at, base, start, stop))
