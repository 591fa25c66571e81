"""Constants that are known when compiling, and what they make impossible (plugin policy, L11)."""

from __future__ import annotations

from pilot.plugins.policy.expression.errors import CompileError, Failure, located
from pilot.plugins.policy.expression.nodes import Binary, Constant, Node, Unary, children
from pilot.plugins.policy.expression.regexes import pattern_untrusted
from pilot.plugins.policy.expression.values import add, divide, modulo, multiply, negate, number, power, subtract

_AND, _OR = ("&&", "and"), ("||", "or")
_FOLDED = {"+": add, "-": subtract, "*": multiply, "/": divide, "%": modulo, "**": power, "^": power}


def fold(node: Node, source: str) -> dict[int, Node]:
    """Return what stands in place of operations with constants, by the `id` of the operation's node.

    Of `x && true` and its like x is left, and reports its errors where the operator is, as in the official engine.

    Raises:
        CompileError: an integer division by zero, or a regular expression put together wrongly.
    """
    pending, ordered = [node], []
    while pending:
        current = pending.pop()
        ordered.append(current)
        pending += children(current)
    folded: dict[int, Node] = {}
    for each in reversed(ordered):
        made: Node | None = None
        if isinstance(each, Unary):
            made = _unary(each, _constant(each.operand, folded))
        elif isinstance(each, Binary) and each.operator in _AND + _OR:
            made = _logical(each, *(folded.get(id(side), side) for side in (each.left, each.right)))
        elif isinstance(each, Binary):
            made = _binary(each, _constant(each.left, folded), _constant(each.right, folded), source)
        if isinstance(made, Constant):
            made.type = each.type
        if made is not None:
            folded[id(each)] = made
    return folded


def _constant(node: Node, folded: dict[int, Node]) -> Constant | None:
    found = folded.get(id(node), node)
    return found if isinstance(found, Constant) else None


def _logical(node: Binary, left: Node, right: Node) -> Node | None:
    deciding = node.operator in _OR
    for side, other in ((left, right), (right, left)):
        if isinstance(side, Constant) and side.value is (not deciding):
            other.at = node.at
            return other
    sides = [side.value for side in (left, right) if isinstance(side, Constant)]
    return Constant(node.at, deciding) if any(value is deciding for value in sides) else None


def _unary(node: Unary, operand: Constant | None) -> Constant | None:
    if operand is None:
        return None
    if isinstance(operand.value, bool) and node.operator in ("!", "not"):
        return Constant(node.at, not operand.value)
    if not number(operand.value):
        return None
    return Constant(node.at, negate(operand.value) if node.operator == "-" else operand.value)


def _binary(node: Binary, left: Constant | None, right: Constant | None, source: str) -> Constant | None:
    if right is None:
        return None
    if node.operator == "matches" and isinstance(right.value, str):
        try:
            pattern_untrusted(right.value)
        except Failure as error:
            raise CompileError(str(error)) from None
    if left is None:
        return None
    if node.operator == "==" and type(left.value) is type(right.value) in (bool, int, str):
        return Constant(node.at, left.value == right.value)
    if node.operator not in _FOLDED:
        return None
    if isinstance(left.value, str) and isinstance(right.value, str):
        return Constant(node.at, left.value + right.value)
    if not (number(left.value) and number(right.value)):
        return None
    try:
        return Constant(node.at, _FOLDED[node.operator](left.value, right.value))
    except Failure:
        raise CompileError(located("integer divide by zero", source, node.at)) from None
