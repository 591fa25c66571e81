"""Functions that evaluate a body per element: `all`, `filter`, `reduce` and the like (plugin policy, L11)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from pilot.plugins.policy.expression.builtins import sort_items
from pilot.plugins.policy.expression.errors import Failure
from pilot.plugins.policy.expression.run import Closure, Run
from pilot.plugins.policy.expression.values import LISTS, AnyMap, add, boolean, go_type, utf8

Each = Callable[[Run, Any], Iterator[tuple[Any, Any]]]
"""The elements of a list, each with what the body gives for it."""


_NO_ELEMENT = object()


def taken(item: Any) -> Any:
    """Return an element; Failure for one of a map, which can be counted but not taken."""
    if item is _NO_ELEMENT:
        raise Failure("reflect: call of reflect.Value.Index on map Value")
    return item


def elements(value: Any) -> Any:
    """Return what can be iterated; Failure, with Go's text, for anything but lists and texts."""
    if isinstance(value, LISTS):
        return value
    if isinstance(value, str):
        return list(utf8(value))
    if value is None:
        raise Failure("reflect: call of reflect.Value.Len on zero Value")
    if isinstance(value, dict):
        return [_NO_ELEMENT] * len(value)
    kind = {"time.Time": "struct", "time.Duration": "int64", "*time.Location": "ptr"}.get(go_type(value))
    raise Failure(f"reflect: call of reflect.Value.Len on {kind or go_type(value)} Value")


def each_of(body: Closure | None, slot: int, *, has_index: bool) -> Each:
    """Return the loop over a list: element and index go into slots, the body is evaluated; a step is counted each."""

    def each(run: Run, items: Any) -> Iterator[tuple[Any, Any]]:
        slots = run.slots
        for place, item in enumerate(items):
            run.tick()
            if body is None:
                yield item, taken(item)
                continue
            slots[slot] = item
            if has_index:
                slots[slot + 1] = place
            yield item, body(run)

    return each


def _backwards(body: Closure, slot: int) -> Each:
    forward = each_of(body, slot, has_index=False)
    return lambda run, items: forward(run, items[::-1])


def predicate_function(name: str, body: Closure | None, rest: Closure | None, slot: int) -> Callable[[Run, Any], Any]:
    """Return a predicate function as a function of the run and its list.

    `slot` is the first of three: the element, its index, what `reduce` has so far. `rest` is the third argument.
    """
    if name == "reduce":
        assert body is not None
        return _reduce(body, rest, slot)
    each = each_of(body, slot, has_index=name == "map")
    if name in ("findLast", "findLastIndex"):
        assert body is not None
        each = _backwards(body, slot)
    if name == "sortBy":
        return _sort_by(each, rest)
    return lambda run, value: _LOOPS[name](run, elements(value), each)


def _all(run: Run, items: Any, each: Each) -> bool:
    return all(boolean(found) for _, found in each(run, items))


def _any(run: Run, items: Any, each: Each) -> bool:
    return any(boolean(found) for _, found in each(run, items))


def _none(run: Run, items: Any, each: Each) -> bool:
    return not _any(run, items, each)


def _one(run: Run, items: Any, each: Each) -> bool:
    return _count(run, items, each) == 1


def _count(run: Run, items: Any, each: Each) -> int:
    return sum(boolean(found) for _, found in each(run, items))


def _filter(run: Run, items: Any, each: Each) -> list[Any]:
    made = [taken(item) for item, found in each(run, items) if boolean(found)]
    run.charge(len(made))
    return made


def _map(run: Run, items: Any, each: Each) -> list[Any]:
    made = []
    for _, found in each(run, items):
        run.charge(1)
        made.append(found)
    return made


def _find(run: Run, items: Any, each: Each) -> Any:
    return next((taken(item) for item, found in each(run, items) if boolean(found)), None)


def _find_index(run: Run, items: Any, each: Each) -> int | None:
    return next((place for place, (_, found) in enumerate(each(run, items)) if boolean(found)), None)


def _find_last_index(run: Run, items: Any, each: Each) -> int | None:
    from_end = _find_index(run, items, each)
    return None if from_end is None else len(items) - 1 - from_end


def _sum(run: Run, items: Any, each: Each) -> Any:
    total: Any = 0
    for _, found in each(run, items):
        total = add(found, total)
    return total


def _group_by(run: Run, items: Any, each: Each) -> AnyMap:
    made = AnyMap("map[interface {}][]interface {}")
    for item, found in each(run, items):
        run.charge(1)
        made.setdefault(AnyMap.key(found), []).append(taken(item))
    return made


def _reduce(body: Closure, initial: Closure | None, slot: int) -> Callable[[Run, Any], Any]:
    def function(run: Run, value: Any) -> Any:
        items, slots = elements(value), run.slots
        first = 0
        if initial is not None:
            slots[slot + 2] = initial(run)
        elif items:
            slots[slot + 2] = taken(items[0])
            first = 1
        else:
            raise Failure("reduce of empty array with no initial value")
        for place in range(first, len(items)):
            run.tick()
            slots[slot], slots[slot + 1] = items[place], place
            slots[slot + 2] = body(run)
        return slots[slot + 2]

    return function


def _sort_by(each: Each, order: Closure | None) -> Callable[[Run, Any], Any]:
    def function(run: Run, value: Any) -> Any:
        items = [taken(item) for item in elements(value)]
        direction = "asc" if order is None else order(run)
        if not isinstance(direction, str):
            raise Failure("sortBy order argument must be a string")
        if direction not in ("asc", "desc"):
            raise Failure("unknown order, use asc or desc")
        keys = [found for _, found in each(run, items)]
        return sort_items(run, items, keys, descending=direction == "desc")

    return function


_LOOPS: dict[str, Callable[[Run, Any, Each], Any]] = {
    "all": _all,
    "any": _any,
    "none": _none,
    "one": _one,
    "count": _count,
    "filter": _filter,
    "map": _map,
    "find": _find,
    "findIndex": _find_index,
    "findLast": _find,
    "findLastIndex": _find_last_index,
    "sum": _sum,
    "groupBy": _group_by,
}
