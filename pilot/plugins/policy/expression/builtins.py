"""What the functions of the language do, given the values of their arguments (plugin policy, L11; services.md 9.5)."""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Callable
from functools import cmp_to_key
from typing import Any

from pilot.plugins.policy.expression.durations import parse_duration_untrusted
from pilot.plugins.policy.expression.errors import Failure
from pilot.plugins.policy.expression.layouts import DATE_LAYOUTS, parse_time_untrusted
from pilot.plugins.policy.expression.lexer import SPACES
from pilot.plugins.policy.expression.limits import MEMORY_BUDGET
from pilot.plugins.policy.expression.run import Run
from pilot.plugins.policy.expression.texts import from_json, show, to_json, type_name
from pilot.plugins.policy.expression.times import LOCAL_ZONE, SECOND, UTC_ZONE, Duration, Time, Zone, zone_untrusted
from pilot.plugins.policy.expression.values import (
    LISTS,
    AnyMap,
    NilList,
    Pair,
    Pairs,
    as_int,
    equal,
    fetch,
    from_utf8,
    go_kind,
    go_type,
    less,
    number,
    text,
    truncate,
    utf8,
    wrap,
    wrong_type,
)

Function = Callable[..., Any]
"""Takes the run and the values of the arguments."""

SPACE = "".join(sorted(SPACES))


# -- extra functions


def has_tag(run: Run, tags: Any, tag: Any) -> bool:
    """Whether a list of texts holds a text."""
    if type(tags) is not tuple:
        raise wrong_type(tags, "[]string")
    return text(tag) in tags


def duration(run: Run, value: Any) -> float:
    """Seconds of a Go duration."""
    return _nanoseconds(value) / SECOND


def since(run: Run, moment: Any) -> float:
    """Seconds elapsed since a Unix time; 0 for none."""
    if type(moment) is not float:
        raise wrong_type(moment, "float64")
    return run.now() - moment if moment > 0 else 0.0


def _nanoseconds(value: Any) -> int:
    try:
        return parse_duration_untrusted(text(value))
    except ValueError as error:
        raise Failure(str(error)) from None


# -- texts


def _trim(run: Run, value: Any, characters: Any = SPACE) -> str:
    return text(value).strip(text(characters)) if characters else text(value)


def _trim_prefix(run: Run, value: Any, prefix: Any = " ") -> str:
    return text(value).removeprefix(text(prefix))


def _trim_suffix(run: Run, value: Any, suffix: Any = " ") -> str:
    return text(value).removesuffix(text(suffix))


def _simple_case(change: Callable[[str], str], value: str) -> str:
    """Upper or lower case character by character, as in Go: one that would become several stays."""
    return "".join(new if len(new := change(char)) == 1 else char for char in value)


def _upper(run: Run, value: Any) -> str:
    return text(value).upper() if text(value).isascii() else _simple_case(str.upper, value)


def _lower(run: Run, value: Any) -> str:
    return text(value).lower() if text(value).isascii() else _simple_case(str.lower, value)


def _split(run: Run, value: Any, separator: Any, count: Any = -1, *, keep: bool = False) -> Any:
    whole, between, limit = text(value), text(separator), as_int(count)
    if limit == 0:
        return NilList()
    if between:
        parts = whole.split(between, limit - 1 if limit > 0 else -1)
        run.charge(len(parts))
        return (*(part + between for part in parts[:-1]), parts[-1]) if keep else tuple(parts)
    run.charge(len(whole))
    singles = tuple(whole)
    return (*singles[: limit - 1], whole[limit - 1 :]) if 0 < limit < len(singles) else singles


def _split_after(run: Run, value: Any, separator: Any, count: Any = -1) -> Any:
    return _split(run, value, separator, count, keep=True)


def _replace(run: Run, value: Any, old: Any, new: Any, count: Any = -1) -> str:
    whole, before, after, limit = text(value), text(old), text(new), as_int(count)
    found = whole.count(before) if limit < 0 else min(whole.count(before), limit)
    if len(whole) + found * max(len(after) - len(before), 0) >= MEMORY_BUDGET:
        raise Failure("memory budget exceeded")
    return run.charge_text(whole.replace(before, after, max(limit, -1)))


def _repeat(run: Run, value: Any, count: Any) -> str:
    whole, times = text(value), as_int(count)
    if times < 0:
        raise Failure(f"invalid argument for repeat (expected positive integer, got {times})")
    if times >= MEMORY_BUDGET or times * len(whole) >= MEMORY_BUDGET:
        raise Failure("memory budget exceeded")
    run.charge(times * len(whole))
    return whole * times


def _join(run: Run, parts: Any, separator: Any = "") -> str:
    if not isinstance(parts, LISTS):
        shown = "%!s(<nil>)" if parts is None else go_type(parts)
        raise Failure(f"invalid argument for join (type {shown})")
    parts = [text(part) for part in parts]
    if sum(map(len, parts)) + len(parts) * len(text(separator)) >= MEMORY_BUDGET:
        raise Failure("memory budget exceeded")
    return run.charge_text(text(separator).join(parts))


def _place(find: Callable[[str, str], int]) -> Function:
    """Places are counted in bytes of UTF-8."""

    def function(run: Run, value: Any, part: Any) -> int:
        at = find(text(value), text(part))
        return at if at <= 0 or value.isascii() else len(utf8(value[:at]))

    return function


def _to_base64(run: Run, value: Any) -> str:
    return run.charge_text(base64.b64encode(utf8(text(value))).decode())


def _from_base64(run: Run, value: Any) -> str:
    raw = utf8(text(value))
    if (bad := _first_bad(raw)) is not None:
        raise Failure(f"illegal base64 data at input byte {bad}")
    return from_utf8(base64.b64decode(raw))


_BASE64 = re.compile(rb"(?:(?:[\r\n]*+[A-Za-z0-9+/]){4})*")
_BASE64_END = re.compile(rb"(?:[\r\n]*[A-Za-z0-9+/]){2}[\r\n]*(?:[A-Za-z0-9+/][\r\n]*=|=[\r\n]*=)[\r\n]*")


def _first_bad(raw: bytes) -> int | None:
    """Where Go's decoder gives up, or None; for a group of characters that ends too early it is the group's start."""
    whole = _BASE64.match(raw)
    at = whole.end() if whole else 0
    if found := _BASE64_END.match(raw, at):
        return None if found.end() == len(raw) else found.end()
    taken = 0
    for place in range(at, len(raw)):
        char = raw[place : place + 1]
        if char in b"\r\n":
            continue
        if not (char.isalnum() and char.isascii()) and char not in b"+/":
            ends_early = char == b"=" and taken == 2 and not raw[place + 1 :].strip(b"\r\n")
            return len(raw) if ends_early else place
        taken += 1
    return len(raw) - taken if taken else None


# -- numbers


def _measure(name: str, of_float: Callable[[float], float]) -> Function:
    def function(run: Run, value: Any) -> float:
        if type(value) is float:
            return of_float(value)
        if type(value) is int or isinstance(value, Duration):
            return float(value)
        raise Failure(f"invalid argument for {name} (type {go_type(value)})")

    return function


def _whole(change: Callable[[float], int]) -> Callable[[float], float]:
    """A rounding that leaves infinities alone and keeps the sign of zero."""
    return lambda value: value if not math.isfinite(value) else math.copysign(float(change(value)), value)


def _round_half_away(value: float) -> int:
    whole = math.trunc(value)
    return whole + (int(math.copysign(1, value)) if abs(value - whole) >= 0.5 else 0)


def _abs(run: Run, value: Any) -> Any:
    if type(value) in (int, float):
        return wrap(abs(value)) if type(value) is int else abs(value)
    if isinstance(value, Duration):
        return Duration(wrap(abs(int(value))))
    raise Failure(f"invalid argument for abs (type {go_type(value)})")


def _int(run: Run, value: Any) -> int:
    if type(value) is str:
        if value[:1] in ("+", "-") or value[:1].isdigit():
            digits = value[1:] if value[:1] in ("+", "-") else value
            if digits.isascii() and digits.isdigit() and len(digits) < 4096 and wrap(int(value)) == int(value):
                return int(value)
        raise Failure(f"invalid operation: int({value})")
    if value is None:
        raise Failure("reflect: call of reflect.Value.Type on zero Value")
    if type(value) is float:
        return truncate(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return int(value)
    raise Failure(f"invalid operation: int({go_type(value)})")


def _float(run: Run, value: Any) -> float:
    if type(value) is str:
        return _parse_float(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    raise Failure(f"invalid operation: float({go_type(value)})")


def _parse_float(value: str) -> float:
    invalid = Failure(f"invalid operation: float({value})")
    plain = value.lower().lstrip("+-")
    if not value.isascii() or len(value) > 4096 or len(value) - len(plain) > 1 or value != value.strip():
        raise invalid
    if re.search(r"(?<![0-9a-fx])_|_(?![0-9a-f])", plain):
        raise invalid
    digits = value.replace("_", "")
    try:
        if not plain.startswith("0x"):
            made = float(digits)
        elif "p" in plain:
            made = float.fromhex(digits)
        else:
            raise invalid
    except (ValueError, OverflowError):
        raise invalid from None
    if math.isinf(made) and "inf" not in plain:
        raise invalid
    return made


def _extreme(name: str, operator: str) -> Function:
    """`min` and `max`, of numbers and of lists of them, however nested."""

    def best(run: Run, values: Any, *, is_list: bool) -> Any:
        found: Any = None
        for value in values:
            run.tick()
            item = best(run, value, is_list=True) if isinstance(value, LISTS) else value
            if not (number(item) or isinstance(item, Duration)):
                if item is None and isinstance(value, LISTS):
                    continue
                if len(values) == 1 and not is_list:
                    return item
                raise Failure(f"invalid argument for {name} (type {go_type(item)})")
            found = item if found is None or less(item, found, operator) else found
        return found

    return lambda run, *values: best(run, values, is_list=False)


def _numbers(run: Run, name: str, values: Any) -> list[float]:
    found: list[float] = []
    for value in values:
        run.tick()
        if isinstance(value, LISTS):
            found += _numbers(run, name, value)
        elif number(value) or isinstance(value, Duration):
            found.append(float(value))
        else:
            raise Failure(f"invalid argument for {name} (type {go_type(value)})")
    return found


def _mean(run: Run, *values: Any) -> float:
    found = _numbers(run, "mean", values)
    total = 0.0
    for value in found:
        total += value
    return total / len(found) if found else 0.0


def _median(run: Run, *values: Any) -> float:
    found = sorted(_numbers(run, "median", values))
    if not found:
        return 0.0
    middle = len(found) // 2
    return found[middle] if len(found) % 2 else (found[middle - 1] + found[middle]) / 2


def _bits(name: str, change: Callable[[int, int], int]) -> Function:
    def function(run: Run, a: Any, b: Any = 0) -> int:
        for value in (a, b):
            if type(value) is not int:
                raise Failure(f"cannot use {go_type(value)} as argument (type int) to call {name}")
        if name in ("bitshl", "bitshr", "bitushr") and b < 0:
            raise Failure(f"invalid operation: negative shift count {b} (type int)")
        return wrap(change(a, b))

    return function


# -- lists and maps


def _items(name: str, value: Any, refusal: str = "cannot {} {}") -> Any:
    if isinstance(value, LISTS):
        return value
    raise Failure(refusal.format(name, go_kind(value)))


def _end(at: int) -> Function:
    def function(run: Run, value: Any) -> Any:
        value = utf8(value) if isinstance(value, str) else value
        return value[at] if isinstance(value, LISTS) and value else None

    return function


def _get(run: Run, base: Any, key: Any) -> Any:
    if isinstance(base, (str, *LISTS)):
        place, count = as_int(key), len(utf8(base) if isinstance(base, str) else base)
        return fetch(base, place) if -count <= place < count else None
    return fetch(base, key) if isinstance(base, dict) else None


def _take(run: Run, value: Any, count: Any) -> Any:
    items = _items("take", value, "cannot {} from {}")
    if type(count) is not int:
        raise Failure(f"cannot take {go_kind(count)} elements")
    if count < 0:
        raise Failure("reflect.Value.Slice: slice index out of bounds")
    run.charge(min(count, len(items)))
    return items[:count]


def _pairs_of(wanted: str, value: Any) -> dict[Any, Any]:
    if isinstance(value, dict):
        return value
    raise Failure(wanted.format(go_kind(value)))


def _keys(run: Run, value: Any) -> list[Any]:
    pairs = _pairs_of("cannot get keys from {}", value)
    run.charge(len(pairs))
    return [key[1] for key in pairs] if isinstance(pairs, AnyMap) else list(pairs)


def _values(run: Run, value: Any) -> list[Any]:
    pairs = _pairs_of("cannot get values from {}", value)
    run.charge(len(pairs))
    return list(pairs.values())


def _to_pairs(run: Run, value: Any) -> Pairs:
    pairs = _pairs_of("cannot transform {} to pairs", value)
    run.charge(2 * len(pairs))
    return Pairs(Pair((key[1] if isinstance(pairs, AnyMap) else key, item)) for key, item in pairs.items())


def _from_pairs(run: Run, value: Any) -> AnyMap:
    if not isinstance(value, LISTS):
        shown = "<invalid reflect.Value>" if value is None else show(value, run.charge)
        if number(value) or isinstance(value, bool):
            shown = f"%!s({go_type(value)}={shown})"
        raise Failure(f"cannot transform {shown} from pairs")
    pairs = value
    run.charge(len(pairs))
    made = AnyMap("map[interface {}]interface {}")
    for pair in pairs:
        if not isinstance(pair, LISTS):
            raise Failure(f"invalid pair {show(pair, run.charge)}")
        if len(pair) != 2:
            raise Failure(f"invalid pair length {show(pair, run.charge)}")
        made[AnyMap.key(pair[0])] = pair[1]
    return made


def _reverse(run: Run, value: Any) -> list[Any]:
    items = _items("reverse", value)
    run.charge(len(items))
    return list(reversed(items))


def _uniq(run: Run, value: Any) -> list[Any]:
    made: list[Any] = []
    for item in _items("uniq", value):
        run.tick(1 + len(made) // 16)
        if not any(equal(item, other, run.tick) for other in made):
            made.append(item)
    run.charge(len(made))
    return made


def _concat(run: Run, *values: Any) -> list[Any]:
    made: list[Any] = []
    for value in values:
        items = _items("concat", value)
        run.charge(len(items))
        made += items
    return made or NilList()


def _flatten(run: Run, value: Any) -> list[Any]:
    made: list[Any] = []
    for item in _items("flatten", value):
        run.tick()
        if isinstance(item, LISTS):
            made += _flatten(run, item)
        else:
            run.charge(1)
            made.append(item)
    return made


def sort_items(run: Run, items: list[Any], keys: list[Any], *, descending: bool) -> list[Any]:
    """Return the items in the order of their keys; Failure where two cannot be ordered."""
    run.charge(len(items))
    if len({type(key) for key in keys}) == 1 and type(keys[0]) in (int, float, str):
        return [items[place] for place in sorted(range(len(keys)), key=keys.__getitem__, reverse=descending)]

    def compare(a: tuple[int, Any], b: tuple[int, Any]) -> int:
        run.tick()
        return -1 if less(a[1], b[1]) else 1 if less(b[1], a[1]) else 0

    order = sorted(enumerate(keys), key=cmp_to_key(compare), reverse=descending)
    return [items[place] for place, _ in order]


def _sort(run: Run, value: Any, order: Any = "asc") -> Any:
    if not isinstance(value, LISTS):
        return NilList()
    if text(order) not in ("asc", "desc"):
        raise Failure(f"invalid order {order}, expected asc or desc")
    items = list(value)
    return sort_items(run, items, items, descending=order == "desc")


# -- times


def _now(run: Run, zone: Any = LOCAL_ZONE) -> Time:
    return Time(int(run.now() * SECOND), zone)


def _date(run: Run, *values: Any) -> Time:
    zone: Zone = UTC_ZONE
    given = list(values)
    if given and isinstance(given[0], Zone):
        zone = given.pop(0)
    words = [text(value) for value in given]
    run.tick(16)
    if not words:
        raise Failure("invalid date")
    try:
        if len(words) > 2:
            zone = zone_untrusted(words[2])
        if len(words) > 1:
            return parse_time_untrusted(words[0], words[1], zone)
    except ValueError as error:
        raise Failure(str(error)) from None
    for layout in DATE_LAYOUTS:
        try:
            return parse_time_untrusted(words[0], layout, zone)
        except ValueError:
            continue
    raise Failure(f"invalid date {words[0]}")


def _timezone(run: Run, name: Any) -> Zone:
    try:
        return zone_untrusted(text(name))
    except ValueError as error:
        raise Failure(str(error)) from None


def _length(run: Run, value: Any) -> int:
    if isinstance(value, (str, dict, *LISTS)):
        return len(value)
    raise Failure(f"invalid argument for len (type {go_type(value)})")


_MASK = (1 << 64) - 1

EXTRA: dict[str, Function] = {"has_tag": has_tag, "duration": duration, "since": since}

FUNCTIONS: dict[str, Function] = {
    "len": _length,
    "type": lambda run, value: type_name(value),
    "string": lambda run, value: run.charge_text(show(value, run.charge)),
    "toJSON": lambda run, value: run.charge_text(to_json(value, run.charge)),
    "fromJSON": lambda run, value: from_json(text(value), run.charge),
    "toBase64": _to_base64,
    "fromBase64": _from_base64,
    "trim": _trim,
    "trimPrefix": _trim_prefix,
    "trimSuffix": _trim_suffix,
    "upper": _upper,
    "lower": _lower,
    "split": _split,
    "splitAfter": _split_after,
    "replace": _replace,
    "repeat": _repeat,
    "join": _join,
    "indexOf": _place(str.find),
    "lastIndexOf": _place(str.rfind),
    "hasPrefix": lambda run, value, part: text(value).startswith(text(part)),
    "hasSuffix": lambda run, value, part: text(value).endswith(text(part)),
    "abs": _abs,
    "ceil": _measure("ceil", _whole(math.ceil)),
    "floor": _measure("floor", _whole(math.floor)),
    "round": _measure("round", _whole(_round_half_away)),
    "int": _int,
    "float": _float,
    "max": _extreme("max", ">"),
    "min": _extreme("min", "<"),
    "mean": _mean,
    "median": _median,
    "bitand": _bits("bitand", lambda a, b: a & b),
    "bitor": _bits("bitor", lambda a, b: a | b),
    "bitxor": _bits("bitxor", lambda a, b: a ^ b),
    "bitnand": _bits("bitnand", lambda a, b: a & ~b),
    "bitshl": _bits("bitshl", lambda a, b: a << b if b < 64 else 0),
    "bitshr": _bits("bitshr", lambda a, b: a >> min(b, 64)),
    "bitushr": _bits("bitushr", lambda a, b: (a & _MASK) >> min(b, 64)),
    "bitnot": _bits("bitnot", lambda a, b: ~a),
    "first": _end(0),
    "last": _end(-1),
    "get": _get,
    "take": _take,
    "keys": _keys,
    "values": _values,
    "toPairs": _to_pairs,
    "fromPairs": _from_pairs,
    "reverse": _reverse,
    "uniq": _uniq,
    "concat": _concat,
    "flatten": _flatten,
    "sort": _sort,
    "duration": lambda run, value: Duration(_nanoseconds(value)),
    "timezone": _timezone,
    "now": _now,
    "date": _date,
}
