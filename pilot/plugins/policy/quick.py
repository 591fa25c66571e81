"""The conditions most policies consist of, without the machinery of the language (plugin policy, L11).

A comparison of a variable with a constant, a tag in a list, and `&&`, `||`, `!` over these become plain functions that
take a tenth of the time. They presume what gates guarantee, variables of the declared types; where one is absent they
raise `KeyError`, and the caller has the program itself find the proper answer.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

from pilot.plugins.policy.expression import FLOAT, INT, LIST_OF_STRING, STRING, Type
from pilot.plugins.policy.expression.folding import fold
from pilot.plugins.policy.expression.nodes import Binary, Call, Constant, ListNode, Name, Node, Unary
from pilot.plugins.policy.expression.parser import parse_untrusted

__all__ = ["Test", "quick_test"]

Test: TypeAlias = Callable[[Mapping[str, Any]], bool]

_COMPARISONS: Final[Mapping[str, Callable[[Any, Any], bool]]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_MIRRORED: Final = {"==": "==", "!=": "!=", "<": ">", "<=": ">=", ">": "<", ">=": "<="}
_EXACT: Final = 1 << 53
"""Beyond this Go compares an int with a float differently."""


def quick_test(text: str, variables: Mapping[str, Type]) -> Test | None:
    """The expression as a plain function, None where it uses more of the language. It has been compiled before."""
    tree = parse_untrusted(text)
    return _Translator(variables, fold(tree, text)).test(tree)


class _Translator:
    def __init__(self, variables: Mapping[str, Type], folded: Mapping[int, Constant]) -> None:
        self._variables = variables
        self._folded = folded

    def test(self, node: Node) -> Test | None:
        node = self._folded.get(id(node), node)
        if isinstance(node, Constant):
            return _constant(node.value)
        if isinstance(node, Unary):
            return self._negation(node)
        if isinstance(node, Call):
            return self._has_tag(node)
        if not isinstance(node, Binary):
            return None
        if node.operator in ("&&", "and", "||", "or"):
            return self._logical(node)
        return self._membership(node) if node.operator == "in" else self._comparison(node)

    def _negation(self, node: Unary) -> Test | None:
        operand = self.test(node.operand) if node.operator in ("!", "not") else None
        return None if operand is None else lambda env: not operand(env)

    def _logical(self, node: Binary) -> Test | None:
        left, right = self.test(node.left), self.test(node.right)
        if left is None or right is None:
            return None
        if node.operator in ("&&", "and"):
            return lambda env: left(env) and right(env)
        return lambda env: left(env) or right(env)

    def _has_tag(self, node: Call) -> Test | None:
        if not isinstance(node.callee, Name) or node.callee.name != "has_tag" or len(node.arguments) != 2:
            return None
        return self._contains(node.arguments[0], node.arguments[1])

    def _membership(self, node: Binary) -> Test | None:
        right = self._folded.get(id(node.right), node.right)
        if isinstance(right, ListNode):
            return self._one_of(node.left, right)
        return self._contains(right, node.left)

    def _contains(self, tags: Node, tag: Node) -> Test | None:
        name, wanted = self._variable(tags, LIST_OF_STRING), self._value(tag)
        if name is None or not isinstance(wanted, str):
            return None
        return lambda env: wanted in env[name]

    def _one_of(self, left: Node, right: ListNode) -> Test | None:
        name = self._variable(left, INT)
        values = [self._value(item) for item in right.items]
        if name is None or not all(type(value) is int for value in values):
            return None
        wanted = frozenset(values)
        return lambda env: env[name] in wanted

    def _comparison(self, node: Binary) -> Test | None:
        sign, left, right = node.operator, node.left, node.right
        if sign not in _COMPARISONS:
            return None
        if self._value(left) is not None:
            sign, left, right = _MIRRORED[sign], right, left
        constant = self._value(right)
        name = self._comparable(left, constant)
        return None if name is None else _compared(name, sign, constant)

    def _comparable(self, node: Node, constant: object) -> str | None:
        """The variable, if Python compares it with the constant as Go does."""
        if isinstance(constant, str):
            return self._variable(node, STRING)
        if isinstance(constant, bool) or not isinstance(constant, int | float) or not abs(constant) <= _EXACT:
            return None
        return self._variable(node, INT, FLOAT)

    def _variable(self, node: Node, *types: Type) -> str | None:
        if not isinstance(node, Name) or node.is_local or self._variables.get(node.name) not in types:
            return None
        return node.name

    def _value(self, node: Node) -> object:
        """The value of a constant, None for everything else."""
        node = self._folded.get(id(node), node)
        return node.value if isinstance(node, Constant) else None


def _constant(value: object) -> Test | None:
    if value is True:
        return lambda env: True
    return (lambda env: False) if value is False else None


def _compared(name: str, sign: str, constant: Any) -> Test:
    if sign == "==":  # by far the most frequent: spared a call
        return lambda env: env[name] == constant
    compare = _COMPARISONS[sign]
    return lambda env: compare(env[name], constant)
