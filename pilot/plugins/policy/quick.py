"""Conditions of gates as one Python function each: a fraction of the time their program takes (plugin policy, L11).

The common part of the language is put together as a Python syntax tree (no text, so nothing in a rule can be taken for
code) that is compiled once. It holds only what cannot fail for variables of the declared types, and loops only over
lists of tags, never in each other. Where a variable is absent the function raises one of `CANNOT`, and the caller has
the program itself find the proper answer. What goes beyond that part has no such function.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

from pilot.plugins.policy.expression import BOOL, FLOAT, INT, LIST_OF_STRING, STRING, Type
from pilot.plugins.policy.expression.folding import fold
from pilot.plugins.policy.expression.nodes import (
    Binary,
    Builtin,
    Call,
    Conditional,
    Constant,
    Let,
    ListNode,
    Name,
    Node,
    Pointer,
    Predicate,
    Unary,
)
from pilot.plugins.policy.expression.operators import found_in
from pilot.plugins.policy.expression.parser import parse_untrusted
from pilot.plugins.policy.expression.regexes import pattern_untrusted

__all__ = ["CANNOT", "Test", "quick_test"]

Test: TypeAlias = Callable[[Mapping[str, Any]], bool]
CANNOT: Final = (KeyError, TypeError, AttributeError, ValueError, ArithmeticError)
"""What a test raises where it cannot tell."""

MAX_LEVELS: Final = 40
"""Levels of operations in each other; `a || b || c` is one. Python has a limit of its own."""
MAX_LOOPS: Final = 4
"""Loops over tags in one condition: programs count their steps, this does not."""
EXACT: Final = 1 << 53
"""From here on Go compares an int with a float differently than Python."""

_Code: TypeAlias = tuple[ast.expr, Type]
"""An operation, and the type of what it gives."""
_COMPARISONS: Final[Mapping[str, type[ast.cmpop]]] = {
    "==": ast.Eq,
    "!=": ast.NotEq,
    "<": ast.Lt,
    "<=": ast.LtE,
    ">": ast.Gt,
    ">=": ast.GtE,
}
_LOGICAL: Final = {"&&": "and", "and": "and", "||": "or", "or": "or"}
_ON_TEXTS: Final = {"startsWith": "startswith", "endsWith": "endswith"}
_OF_VALUE: Final[Mapping[type, Type]] = {bool: BOOL, int: INT, float: FLOAT, str: STRING}
_LOOPS: Final[Mapping[str, Callable[[ast.expr], ast.expr]]] = {
    "any": lambda found: _compared(ast.Constant(True), ast.In(), found),
    "none": lambda found: _compared(ast.Constant(True), ast.NotIn(), found),
    "all": lambda found: _compared(ast.Constant(False), ast.NotIn(), found),
    "count": lambda found: _method(found, "count", ast.Constant(True)),
    "one": lambda found: _compared(_method(found, "count", ast.Constant(True)), ast.Eq(), ast.Constant(1)),
}


class _BeyondError(Exception):
    """The condition uses more of the language."""


def quick_test(text: str, variables: Mapping[str, Type]) -> Test | None:
    """The expression as a plain function, None where it uses more of the language. It has been compiled before."""
    tree = parse_untrusted(text)
    translator = _Translator(variables, fold(tree, text))
    try:
        code, kind = translator.expression(tree)
        if kind is not BOOL:
            return None
        function = ast.Lambda(ast.arguments([], [ast.arg("env")], None, [], [], None, []), code)
        compiled = compile(ast.fix_missing_locations(ast.Expression(function)), "<condition>", "eval")
    except (_BeyondError, RecursionError):
        return None
    # Its constants are values in a tree and its names are chosen here: nothing a policy says becomes code.
    test: Test = eval(compiled, {"__builtins__": {}, "len": len, **translator.bound})
    return test


class _Translator:
    def __init__(self, variables: Mapping[str, Type], folded: Mapping[int, Node]) -> None:
        self.bound: dict[str, Any] = {}
        """What the function uses beside its variables, by name."""
        self._variables = variables
        self._folded = folded
        self._locals: dict[str, tuple[str, Type]] = {}
        self._names = 0
        self._levels = 0
        self._loops = 0
        self._in_loop = False
        self._translators: Mapping[type[Node], Callable[..., _Code]] = {
            Constant: self._constant,
            Name: self._name,
            Pointer: self._pointer,
            Unary: self._unary,
            Binary: self._binary,
            Conditional: self._conditional,
            Let: self._let,
            Call: self._call,
            Builtin: self._builtin,
        }

    def expression(self, node: Node) -> _Code:
        """Raises `_BeyondError`."""
        node = self._resolved(node)
        translate = self._translators.get(type(node))
        if translate is None or self._levels >= MAX_LEVELS:
            raise _BeyondError
        self._levels += 1
        code = translate(node)
        self._levels -= 1
        return code

    def _resolved(self, node: Node) -> Node:
        return self._folded.get(id(node), node)

    def _of(self, node: Node, *kinds: Type) -> ast.expr:
        """An expression that has to give one of these types."""
        code, kind = self.expression(node)
        if kind not in kinds:
            raise _BeyondError
        return code

    def _new_name(self) -> str:
        self._names += 1
        return f"_{self._names}"

    # -- operands

    def _constant(self, node: Constant) -> _Code:
        value, kind = node.value, _OF_VALUE.get(type(node.value))
        if kind is None or (isinstance(value, int | float) and not abs(value) < EXACT):
            raise _BeyondError
        return ast.Constant(value), kind

    def _text(self, node: Node) -> ast.Constant:
        """A constant text in which bytes and characters are the same."""
        node = self._resolved(node)
        if not isinstance(node, Constant) or not isinstance(node.value, str) or not node.value.isascii():
            raise _BeyondError
        return ast.Constant(node.value)

    def _name(self, node: Name) -> _Code:
        if node.name in self._locals:
            name, kind = self._locals[node.name]
            return _load(name), kind
        kind = self._variables.get(node.name, LIST_OF_STRING)
        if kind not in (INT, FLOAT, STRING):
            raise _BeyondError
        return _variable(node.name), kind

    def _tags(self, node: Node) -> ast.expr:
        """A variable that is a list of tags."""
        if not isinstance(node, Name) or node.name in self._locals or self._variables.get(node.name) != LIST_OF_STRING:
            raise _BeyondError
        return _variable(node.name)

    def _pointer(self, node: Pointer) -> _Code:
        if node.name:
            raise _BeyondError
        return _load("_item"), STRING

    # -- operators

    def _unary(self, node: Unary) -> _Code:
        if node.operator not in ("!", "not"):
            raise _BeyondError
        return ast.UnaryOp(ast.Not(), self._of(node.operand, BOOL)), BOOL

    def _binary(self, node: Binary) -> _Code:
        sign = node.operator
        if sign in _LOGICAL:
            return self._logical(node), BOOL
        if sign in _COMPARISONS:
            return self._comparison(node), BOOL
        if sign == "in":
            return self._membership(node), BOOL
        if sign in _ON_TEXTS:
            return _method(self._changing_text(node.left), _ON_TEXTS[sign], self._text(node.right)), BOOL
        if sign == "contains":
            return _compared(self._text(node.right), ast.In(), self._changing_text(node.left)), BOOL
        if sign == "matches":
            return self._matches(node), BOOL
        if sign == "/":
            divisor = ast.Constant(float(self._divisor(node.right)))
            return ast.BinOp(self._of(node.left, INT, FLOAT), ast.Div(), divisor), FLOAT
        if sign == "%":
            return self._remainder(node), INT
        if sign == "??":
            return self._coalesced(node)
        raise _BeyondError

    def _logical(self, node: Binary) -> ast.expr:
        kind, operands, left = _LOGICAL[node.operator], [node.right], self._resolved(node.left)
        while isinstance(left, Binary) and _LOGICAL.get(left.operator) == kind:
            operands.append(left.right)
            left = self._resolved(left.left)
        codes = [self._of(operand, BOOL) for operand in (left, *reversed(operands))]
        return ast.BoolOp(ast.And() if kind == "and" else ast.Or(), codes)

    def _comparison(self, node: Binary) -> ast.expr:
        (left, kind), (right, other) = self.expression(node.left), self.expression(node.right)
        constant = isinstance(left, ast.Constant) or isinstance(right, ast.Constant)
        mixed = {kind, other} == {INT, FLOAT} and constant
        if not (mixed or kind == other) or (kind is BOOL and node.operator not in ("==", "!=")):
            raise _BeyondError
        return _compared(left, _COMPARISONS[node.operator](), right)

    def _membership(self, node: Binary) -> ast.expr:
        right = self._resolved(node.right)
        if isinstance(right, Name):
            return _compared(self._of(node.left, STRING), ast.In(), self._tags(right))
        left, kind = self.expression(node.left)
        if kind is INT and isinstance(right, Binary) and right.operator == "..":
            first, last = self._whole(right.left), self._whole(right.right)
            return ast.Compare(first, [ast.LtE(), ast.LtE()], [left, last])
        if not isinstance(right, ListNode):
            raise _BeyondError
        literals = [item.value for item in right.items if isinstance(item, Constant)]
        found = found_in(literals, kind) if len(literals) == len(right.items) else None
        if found is None or kind is not _OF_VALUE[type(literals[0])]:
            raise _BeyondError
        name = self._new_name()
        self.bound[name] = found
        return _compared(left, ast.In(), _load(name))

    def _whole(self, node: Node) -> ast.expr:
        code, kind = self.expression(node)
        if kind is not INT or not isinstance(code, ast.Constant):
            raise _BeyondError
        return code

    def _changing_text(self, node: Node) -> ast.expr:
        """A text that is no constant, which could be long."""
        code = self._of(node, STRING)
        if isinstance(code, ast.Constant):
            raise _BeyondError
        return code

    def _matches(self, node: Binary) -> ast.expr:
        name = self._new_name()
        self.bound[name] = pattern_untrusted(str(self._text(node.right).value)).search
        found = ast.Call(_load(name), [self._changing_text(node.left)], [])
        return _compared(found, ast.IsNot(), ast.Constant(None))

    def _divisor(self, node: Node) -> int | float:
        """A constant other than zero."""
        code, kind = self.expression(node)
        value = code.value if isinstance(code, ast.Constant) and kind in (INT, FLOAT) else None
        if not isinstance(value, int | float) or not value:
            raise _BeyondError
        return value

    def _remainder(self, node: Binary) -> ast.expr:
        """Of a negative number Go has another one: there the program has to tell."""
        left, right = self._of(node.left, INT), self._divisor(node.right)
        if not isinstance(right, int) or right < 0 or not isinstance(node.left, Name):
            raise _BeyondError
        usual = ast.BinOp(left, ast.Mod(), ast.Constant(right))
        return ast.IfExp(_compared(left, ast.GtE(), ast.Constant(0)), usual, _variable(""))

    def _coalesced(self, node: Binary) -> _Code:
        if not isinstance(node.left, Name) or node.left.name in self._locals:
            raise _BeyondError
        kind, name = self._name(node.left)[1], self._new_name()
        found = ast.NamedExpr(_store(name), _method(_load("env"), "get", ast.Constant(node.left.name)))
        absent = _compared(found, ast.Is(), ast.Constant(None))
        return ast.IfExp(absent, self._of(node.right, kind), _load(name)), kind

    def _conditional(self, node: Conditional) -> _Code:
        then, kind = self.expression(node.then)
        return ast.IfExp(self._of(node.condition, BOOL), then, self._of(node.otherwise, kind)), kind

    def _let(self, node: Let) -> _Code:
        value, kind = self.expression(node.value)
        name = self._new_name()
        self._locals[node.name] = name, kind
        body, result = self.expression(node.body)
        del self._locals[node.name]
        both = ast.Tuple([ast.NamedExpr(_store(name), value), body], ast.Load())
        return ast.Subscript(both, ast.Constant(1), ast.Load()), result

    # -- calls

    def _call(self, node: Call) -> _Code:
        if not isinstance(node.callee, Name) or node.callee.name != "has_tag" or len(node.arguments) != 2:
            raise _BeyondError
        return _compared(self._of(node.arguments[1], STRING), ast.In(), self._tags(node.arguments[0])), BOOL

    def _builtin(self, node: Builtin) -> _Code:
        if node.name == "len" and len(node.arguments) == 1:
            return ast.Call(_load("len"), [self._tags(node.arguments[0])], []), INT
        if node.name not in _LOOPS or len(node.arguments) != 2 or self._in_loop or self._loops >= MAX_LOOPS:
            raise _BeyondError
        tags, predicate = self._tags(node.arguments[0]), node.arguments[1]
        assert isinstance(predicate, Predicate)
        self._loops += 1
        self._in_loop = True
        body = self._of(predicate.body, BOOL)
        self._in_loop = False
        each = ast.comprehension(_store("_item"), tags, [], 0)
        return _LOOPS[node.name](ast.ListComp(body, [each])), INT if node.name == "count" else BOOL


def _load(name: str) -> ast.expr:
    return ast.Name(name, ast.Load())


def _store(name: str) -> ast.Name:
    return ast.Name(name, ast.Store())


def _variable(name: str) -> ast.expr:
    return ast.Subscript(_load("env"), ast.Constant(name), ast.Load())


def _compared(left: ast.expr, sign: ast.cmpop, right: ast.expr) -> ast.expr:
    return ast.Compare(left, [sign], [right])


def _method(base: ast.expr, name: str, argument: ast.expr) -> ast.expr:
    return ast.Call(ast.Attribute(base, name, ast.Load()), [argument], [])
