"""Constants that are known when compiling, and what they make impossible (plugin policy, L11)."""

from __future__ import annotations

from pilot.plugins.policy.expression.errors import CompileError, Failure, located
from pilot.plugins.policy.expression.nodes import Binary, Constant, Node, Unary, children
from pilot.plugins.policy.expression.regexes import pattern_untrusted
from pilot.plugins.policy.expression.values import add, divide, modulo, multiply, negate, number, power, subtract

_FOLDED = {"+": add, "-": subtract, "*": multiply, "/": divide, "%": modulo, "**": power, "^": power}


def fold(node: Node, source: str) -> dict[int, Constant]:
    """Return the constants that operations on constants come to, by the `id` of the operation's node.

    Raises:
        CompileError: an integer division by zero, or a regular expression put together wrongly.
    """
    pending, ordered = [node], []
    while pending:
        current = pending.pop()
        ordered.append(current)
        pending += children(current)
    folded: dict[int, Constant] = {}
    for each in reversed(ordered):
        made: Constant | None = None
        if isinstance(each, Unary):
            made = _unary(each, _constant(each.operand, folded))
        elif isinstance(each, Binary):
            made = _binary(each, _constant(each.left, folded), _constant(each.right, folded), source)
        if made is not None:
            made.type = each.type
            folded[id(each)] = made
    return folded


def _constant(node: Node, folded: dict[int, Constant]) -> Constant | None:
    return node if isinstance(node, Constant) else folded.get(id(node))


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
    if left is None or node.operator not in _FOLDED:
        return None
    if isinstance(left.value, str) and isinstance(right.value, str):
        return Constant(node.at, left.value + right.value)
    if not (number(left.value) and number(right.value)):
        return None
    try:
        return Constant(node.at, _FOLDED[node.operator](left.value, right.value))
    except Failure:
        raise CompileError(located("integer divide by zero", source, node.at)) from None
