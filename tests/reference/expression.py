"""The expression language of policies once more, slow and plain: the tree is walked for every value (L11).

A specification to compare the compiled evaluator with. It shares the parser, and nothing else: no static types, no
folding, no special cases of operators. It knows numbers, texts, bools, nil, lists and maps of the language, operators,
predicates, and the functions of FUNCTIONS; `UnsupportedError` is raised for the rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

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
)


class EvaluationFailedError(Exception):
    """The expression fails at run time."""


class UnsupportedError(Exception):
    """The expression uses what is not specified here."""


class _NilError(Exception):
    """An optional chain came to nil."""


def evaluate(node: Node, variables: dict[str, Any]) -> Any:
    """Return the value of a tree; EvaluationFailedError when it has none."""
    return _Walk(variables).value(node)


def same(a: Any, b: Any) -> bool:
    """Return whether two values are one: NaN is itself, 1 and 1.0 are not one."""
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, float) and isinstance(b, float):
        return a == b or (math.isnan(a) and math.isnan(b))
    return type(a) is type(b) and bool(a == b)


def is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    return is_int(value) or isinstance(value, float)


def is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def need(condition: bool) -> None:
    if not condition:
        raise EvaluationFailedError


def supported(condition: bool) -> None:
    if not condition:
        raise UnsupportedError


def wrapped(value: int) -> int:
    value &= 0xFFFFFFFFFFFFFFFF
    return value - (1 << 64) if value >> 63 else value


def equal(a: Any, b: Any) -> bool:
    if is_number(a) and is_number(b):
        return (a == b) if type(a) is type(b) else float(a) == float(b)
    if is_list(a) and is_list(b):
        return len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return type(a) is type(b) and bool(a == b)


def ordered(operator: str, a: Any, b: Any) -> bool:
    if is_number(a) and is_number(b):
        if type(a) is not type(b):
            a, b = float(a), float(b)
    else:
        need(isinstance(a, str) and isinstance(b, str))
    return bool({"<": a < b, ">": a > b, "<=": a <= b, ">=": a >= b}[operator])


def arithmetic(operator: str, a: Any, b: Any) -> Any:
    if operator == "+" and isinstance(a, str) and isinstance(b, str):
        return a + b
    if operator == "%":
        need(is_int(a) and is_int(b) and b != 0)
        return wrapped(int(math.copysign(1, a)) * (abs(a) % abs(b)))
    need(is_number(a) and is_number(b))
    if operator == "/":
        if b == 0:
            return math.nan if a == 0 or a != a else math.inf * math.copysign(1, a) * math.copysign(1, b)
        return float(a) / float(b)
    if operator in ("**", "^"):
        return power(float(a), float(b))
    if isinstance(a, float) or isinstance(b, float):
        a, b = float(a), float(b)
        return {"+": a + b, "-": a - b, "*": a * b}[operator]
    return wrapped({"+": a + b, "-": a - b, "*": a * b}[operator])


def power(base: float, exponent: float) -> float:
    odd = exponent % 2 == 1 if math.isfinite(exponent) else False
    try:
        return math.pow(base, exponent)
    except OverflowError:
        return -math.inf if base < 0 and odd else math.inf
    except ValueError:
        if base == 0:
            return math.copysign(math.inf, base) if odd else math.inf
        return math.nan


def membership(needle: Any, where: Any) -> bool:
    if where is None:
        return False
    if isinstance(where, dict):
        need(needle is None or isinstance(needle, str))
        return needle in where
    need(is_list(where))
    return any(equal(needle, item) for item in where)


def on_texts(operator: str, a: Any, b: Any) -> bool:
    if a is None or b is None:
        return False
    need(isinstance(a, str) and isinstance(b, str))
    return bool({"contains": b in a, "startsWith": a.startswith(b), "endsWith": a.endswith(b)}[operator])


def whole(value: Any) -> int:
    need(is_number(value))
    return value if is_int(value) else int(value)


class _Walk:
    def __init__(self, variables: dict[str, Any]) -> None:
        self.variables = variables
        self.locals: list[tuple[str, Any]] = []
        self.elements: list[dict[str, Any]] = []

    def value(self, node: Node) -> Any:
        match node:
            case Constant():
                supported(not isinstance(node.value, bytes))
                return node.value
            case Name():
                return self.name(node)
            case Pointer():
                return self.elements[-1][node.name]
            case Unary():
                return self.unary(node)
            case Binary():
                return self.binary(node)
            case Conditional():
                condition = self.value(node.condition)
                need(isinstance(condition, bool))
                return self.value(node.then if condition else node.otherwise)
            case Let():
                self.locals.append((node.name, self.value(node.value)))
                try:
                    return self.value(node.body)
                finally:
                    self.locals.pop()
            case Sequence():
                return [self.value(step) for step in node.steps][-1]
            case ListNode():
                return [self.value(item) for item in node.items]
            case MapNode():
                made: dict[str, Any] = {}
                for key, item in reversed([(self.value(key), self.value(item)) for key, item in node.pairs]):
                    need(isinstance(key, str))
                    made[key] = item
                return made
            case Chain():
                try:
                    return self.value(node.body)
                except _NilError:
                    return None
            case Member():
                return self.member(node)
            case Slice():
                return self.cut(node)
            case Predicate():
                return self.value(node.body)
            case Builtin() if node.name in PREDICATES:
                return self.predicate(node)
            case Builtin() if node.name in FUNCTIONS:
                return FUNCTIONS[node.name](*[self.value(each) for each in node.arguments])
            case Call() if isinstance(node.callee, Name) and node.callee.name == "has_tag":
                tags, tag = (self.value(each) for each in node.arguments)
                need(isinstance(tags, tuple) and isinstance(tag, str))
                return tag in tags
        raise UnsupportedError(type(node).__name__)

    def name(self, node: Name) -> Any:
        supported(node.name != "$env")
        for name, value in reversed(self.locals):
            if name == node.name:
                return value
        return self.variables.get(node.name)

    def unary(self, node: Unary) -> Any:
        value = self.value(node.operand)
        if node.operator in ("!", "not"):
            need(isinstance(value, bool))
            return not value
        if node.operator == "-":
            need(is_number(value))
            return wrapped(-value) if is_int(value) else -value
        return value

    def binary(self, node: Binary) -> Any:
        operator = node.operator
        left = self.value(node.left)
        if operator in ("and", "&&", "or", "||"):
            supported(not isinstance(node.right, Constant) or isinstance(left, bool))
            need(isinstance(left, bool))
            return left if left is (operator in ("or", "||")) else self.value(node.right)
        if operator == "??":
            return self.value(node.right) if left is None else left
        right = self.value(node.right)
        match operator:
            case "==":
                return equal(left, right)
            case "!=":
                return not equal(left, right)
            case "<" | ">" | "<=" | ">=":
                return ordered(operator, left, right)
            case "in":
                return membership(left, right)
            case "contains" | "startsWith" | "endsWith":
                return on_texts(operator, left, right)
            case "..":
                first, last = whole(left), whole(right)
                need(last - first < 1000)
                return list(range(first, last + 1))
            case "matches":
                raise UnsupportedError("matches")
        return arithmetic(operator, left, right)

    def member(self, node: Member) -> Any:
        base = self.value(node.base)
        if base is None and node.is_optional:
            raise _NilError
        index = self.value(node.index)
        supported(not isinstance(base, str))
        if isinstance(base, dict):
            need(index is None or isinstance(index, str))
            return base.get(index)
        need(is_list(base))
        place = whole(index)
        place += len(base) if place < 0 else 0
        need(0 <= place < len(base))
        return base[place]

    def cut(self, node: Slice) -> Any:
        base = self.value(node.base)
        supported(not isinstance(base, str) or base.isascii())
        need(is_list(base) or isinstance(base, str))
        last = len(base) if node.stop is None else whole(self.value(node.stop))
        first = 0 if node.start is None else whole(self.value(node.start))
        first, last = (max(0, end + len(base)) if end < 0 else min(end, len(base)) for end in (first, last))
        return base[first:last]

    def predicate(self, node: Builtin) -> Any:
        items = self.value(node.arguments[0])
        supported(not isinstance(items, str | dict))
        need(is_list(items))
        if node.name == "reduce":
            return self.reduce(node, list(items))
        if node.name == "sortBy":
            order = self.value(node.arguments[2]) if len(node.arguments) > 2 else "asc"
            need(order in ("asc", "desc"))
        found = []
        for place, item in enumerate(items):
            if len(node.arguments) == 1:
                found.append(item)
                continue
            self.elements.append({"": item, "index": place})
            try:
                found.append(self.value(node.arguments[1]))
            finally:
                self.elements.pop()
            if node.name in STOPS and isinstance(found[-1], bool) and found[-1] is STOPS[node.name]:
                break
        if node.name not in ("map", "sum", "sortBy"):
            need(all(isinstance(each, bool) for each in found))
        return PREDICATES[node.name](list(items), found)

    def reduce(self, node: Builtin, items: list[Any]) -> Any:
        start = 0
        if len(node.arguments) > 2:
            so_far = self.value(node.arguments[2])
        else:
            need(bool(items))
            so_far, start = items[0], 1
        for place in range(start, len(items)):
            self.elements.append({"": items[place], "index": place, "acc": so_far})
            try:
                so_far = self.value(node.arguments[1])
            finally:
                self.elements.pop()
        return so_far


STOPS = {"all": False, "any": True, "none": True, "find": True, "findIndex": True}
"""Predicates that end with the first element of this answer."""


def total(found: list[Any]) -> Any:
    made: Any = 0
    for each in found:
        made = arithmetic("+", each, made)
    return made


def first_place(found: list[Any]) -> int | None:
    return found.index(True) if True in found else None


def sorted_by(items: list[Any], keys: list[Any]) -> list[Any]:
    """By insertion, and only what orders at all; a single element is not compared."""
    made: list[int] = []
    for place, key in enumerate(keys):
        at = len(made)
        while at and ordered("<", key, keys[made[at - 1]]):
            at -= 1
        made.insert(at, place)
    return [items[place] for place in made]


PREDICATES: dict[str, Callable[[list[Any], list[Any]], Any]] = {
    "all": lambda items, found: all(found),
    "any": lambda items, found: any(found),
    "none": lambda items, found: not any(found),
    "one": lambda items, found: found.count(True) == 1,
    "count": lambda items, found: found.count(True),
    "filter": lambda items, found: [item for item, each in zip(items, found, strict=True) if each],
    "map": lambda items, found: found,
    "find": lambda items, found: None if (at := first_place(found)) is None else items[at],
    "findIndex": lambda items, found: first_place(found),
    "sum": lambda items, found: total(found),
    "sortBy": sorted_by,
    "reduce": lambda items, found: None,
}


def _len(value: Any) -> int:
    need(is_list(value) or isinstance(value, str | dict))
    return len(value)


def _end(at: int) -> Callable[[Any], Any]:
    def function(value: Any) -> Any:
        supported(not isinstance(value, str))
        return value[at] if is_list(value) and value else None

    return function


def _concat(*lists: Any) -> list[Any]:
    made: list[Any] = []
    for each in lists:
        need(is_list(each))
        made += each
    return made


def _reverse(value: Any) -> list[Any]:
    need(is_list(value))
    return [value[at] for at in range(len(value) - 1, -1, -1)]


def _uniq(value: Any) -> list[Any]:
    need(is_list(value))
    return [item for at, item in enumerate(value) if not any(equal(item, other) for other in value[:at])]


def _case(change: Callable[[str], str]) -> Callable[[Any], str]:
    def function(value: Any) -> str:
        need(isinstance(value, str))
        return change(value)

    return function


def _abs(value: Any) -> Any:
    need(is_number(value))
    return value if value > 0 else arithmetic("-", 0, value) if is_int(value) else abs(value)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "len": _len,
    "first": _end(0),
    "last": _end(-1),
    "concat": _concat,
    "reverse": _reverse,
    "uniq": _uniq,
    "upper": _case(str.upper),
    "lower": _case(str.lower),
    "abs": _abs,
}
