"""Closures of operators, the frequent ones without detours (plugin policy, L11; services.md 9.5)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pilot.plugins.policy.expression import values
from pilot.plugins.policy.expression.errors import ExpressionError, Failure
from pilot.plugins.policy.expression.limits import MEMORY_BUDGET
from pilot.plugins.policy.expression.nodes import Binary, Constant, Node
from pilot.plugins.policy.expression.regexes import pattern_untrusted
from pilot.plugins.policy.expression.run import Closure, Run
from pilot.plugins.policy.expression.types import Kind, Type

Located = Callable[[Failure, int], ExpressionError]
"""Adds the place to a failure."""

COMPARISONS = frozenset({"==", "!=", "<", ">", "<=", ">="})
_EXACT = {Kind.INT: (int, "int"), Kind.STRING: (str, "string")}


def logical(parts: list[Closure], places: list[int], located: Located, *, is_or: bool) -> Closure:
    """`||` or `&&` over any number of operands; the last one's value is the result whatever it is."""
    *firsts, last = parts
    if len(firsts) == 1:
        first, at = firsts[0], places[0]

        def of_two(run: Run) -> Any:
            value = first(run)
            if value is is_or:
                return value
            if value is (not is_or):
                return last(run)
            raise located(values.wrong_type(value, "bool"), at)

        return of_two
    numbered = list(zip(firsts, places, strict=True))

    def closure(run: Run) -> Any:
        for part, at in numbered:
            value = part(run)
            if value is is_or:
                return value
            if value is not (not is_or):
                raise located(values.wrong_type(value, "bool"), at)
        return last(run)

    return closure


def comparison(node: Binary, right_node: Node, left: Closure, right: Closure, located: Located) -> Closure:
    """`==` and `<` and their like; between two ints or two texts the types are asserted, as in Go."""
    operator, at = node.operator, node.at
    exact = _EXACT.get(node.left.type.kind) if node.left.type.kind is right_node.type.kind else None
    if operator in ("==", "!=") and exact is not None:
        return _exact(left, right, right_node, exact, located, at, wanted=operator == "==")
    if operator in ("==", "!="):
        wanted = operator == "=="
        return lambda run: values.equal(left(run), right(run), run.tick) is wanted

    def ordered(run: Run) -> Any:
        first, second = left(run), right(run)
        try:
            return values.less(first, second, operator)
        except Failure as failure:
            raise located(failure, at) from None

    return ordered


def _exact(
    left: Closure,
    right: Closure,
    right_node: Node,
    exact: tuple[type, str],
    located: Located,
    at: int,
    *,
    wanted: bool,
) -> Closure:
    kind, name = exact
    if isinstance(right_node, Constant):
        constant = right_node.value

        def with_constant(run: Run) -> Any:
            value = left(run)
            if type(value) is not kind:
                raise located(values.wrong_type(value, name), at)
            return (value == constant) is wanted

        return with_constant

    def closure(run: Run) -> Any:
        first, second = left(run), right(run)
        for value in (first, second):
            if type(value) is not kind:
                raise located(values.wrong_type(value, name), at)
        return (first == second) is wanted

    return closure


def found_in(literals: list[Any], left: Type) -> frozenset[Any] | None:
    """The set that the official compiler makes of a list of literals, None where it leaves it a list."""
    kinds = {type(literal) for literal in literals}
    return frozenset(literals) if kinds == {str} or (kinds == {int} and left.kind is Kind.INT) else None


def member_of(found: frozenset[Any], closure: Closure, located: Located, at: int) -> Closure:
    """`in` such a set, whose keys are all of one type: there nil counts as that type's zero."""
    kind: type = type(next(iter(found)))
    zero = kind() in found

    def function(run: Run) -> bool:
        value = closure(run)
        if type(value) is kind:
            return value in found
        if value is None:
            return zero
        if kind is int:  # by its static type it can only be a number that is no int
            return values.contains(value, tuple(found), run.tick)
        raise located(values.map_key_failure(value), at)

    return function


def between(first: Any, last: Any, closure: Closure, located: Located) -> Closure:
    """`in first..last`."""

    def function(run: Run) -> Any:
        value = closure(run)
        if type(value) is not int:
            raise located(values.unfit(value, ">=", first), 0)
        return first <= value <= last

    return function


def operator_function(operator: str, right: Node) -> Callable[[Run, Any, Any], Any]:
    """Return an operator as a function of the run and its operands' values."""
    if operator == "matches":
        return _matches_constant(str(right.value)) if isinstance(right, Constant) else _matches
    return _FUNCTIONS[operator]


def _matches_constant(text: str) -> Callable[[Run, Any, Any], bool]:
    pattern = pattern_untrusted(text)

    def function(run: Run, value: Any, _: Any) -> bool:
        if value is None:
            return False
        if type(value) is not str and type(value) is not bytes:
            raise values.wrong_type(value, "[]uint8")
        return pattern.search(_readable(value)) is not None

    return function


def _matches(run: Run, value: Any, pattern: Any) -> bool:
    if value is None or pattern is None:
        return False
    compiled = pattern_untrusted(_readable(values.text(pattern)))
    run.tick(16 + len(pattern) // 8)
    return compiled.search(_readable(value if type(value) is bytes else values.text(value))) is not None


def _readable(value: str | bytes) -> str:
    """What RE2 can read: bytes that are no UTF-8 are replaced."""
    if isinstance(value, str) and value.isascii():
        return value
    return (values.utf8(value) if isinstance(value, str) else value).decode("utf-8", "replace")


def _on_texts(apply: Callable[[Any, Any], bool]) -> Callable[[Run, Any, Any], bool]:
    def function(run: Run, value: Any, part: Any) -> bool:
        if value is None or part is None:
            return False
        whole = values.text(value)
        part = values.text(part)
        if whole.isascii() or part.isascii():
            return apply(whole, part)
        return apply(values.utf8(whole), values.utf8(part))

    return function


def _range(run: Run, first: Any, last: Any) -> values.Integers:
    start, stop = values.as_int(first), values.as_int(last)
    if stop - start >= MEMORY_BUDGET:
        raise Failure("memory budget exceeded")
    run.charge(max(stop - start + 1, 0))
    return values.Integers(range(start, stop + 1))


def _in(run: Run, needle: Any, where: Any) -> bool:
    if isinstance(where, values.LISTS):
        run.tick(len(where) // 4)
    return values.contains(needle, where, run.tick)


def _plain(apply: Callable[[Any, Any], Any]) -> Callable[[Run, Any, Any], Any]:
    return lambda run, a, b: apply(a, b)


def _add(run: Run, a: Any, b: Any) -> Any:
    made = values.add(a, b)
    return run.charge_text(made) if type(made) is str else made


_FUNCTIONS: dict[str, Callable[[Run, Any, Any], Any]] = {
    "+": _add,
    "-": _plain(values.subtract),
    "*": _plain(values.multiply),
    "/": _plain(values.divide),
    "%": _plain(values.modulo),
    "**": _plain(values.power),
    "^": _plain(values.power),
    "..": _range,
    "in": _in,
    "contains": _on_texts(lambda whole, part: part in whole),
    "startsWith": _on_texts(lambda whole, part: whole.startswith(part)),
    "endsWith": _on_texts(lambda whole, part: whole.endswith(part)),
}
