"""Values as Go sees them: types, equality, order and arithmetic (plugin policy, L11; services.md 9.5).

Go's `int` is a Python int, `[]string` a tuple, `[]any` a list, `map[string]any` a dict and `map[any]...` an `AnyMap`.
Whatever is wrong with operands is a `Failure` with Go's text.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from pilot.plugins.policy.expression.errors import Failure
from pilot.plugins.policy.expression.limits import MEMORY_BUDGET
from pilot.plugins.policy.expression.times import Duration, Month, Time, Weekday, Zone

LISTS = (list, tuple, bytes)
"""What a list can be here; bytes are the literal b"..."."""

SMALLEST, LARGEST = -(1 << 63), (1 << 63) - 1
SHORT_TEXT = 4_096
"""Texts up to this many characters are not charged to the memory budget."""


class AnyMap(dict[Any, Any]):
    """Go's map with keys of any type: 1 and 1.0 are two keys, so a key is kept with its type."""

    def __init__(self, go: str) -> None:
        super().__init__()
        self.go = go

    @staticmethod
    def key(value: Any, complaint: str = "hash of unhashable type:") -> tuple[type, Any]:
        """Return what a key is kept as; Failure for a list or map, which Go cannot hash."""
        if isinstance(value, (*LISTS, dict)):
            raise Failure(f"{complaint} {go_type(value)}")
        return type(value), value


class Integers(list[int]):
    """A range: Go's `[]int`, equal to a list with the same elements."""


class NilList(list[Any]):
    """Go's nil slice, which `concat` of nothing gives: an empty list that equals nil."""


class Pair(list[Any]):
    """A pair that `toPairs` made: an array in Go, so never equal to a list."""


class Pairs(list[Any]):
    """What `toPairs` returns."""


_GO_TYPES: dict[type, str] = {
    type(None): "<nil>",
    bool: "bool",
    int: "int",
    float: "float64",
    str: "string",
    tuple: "[]string",
    bytes: "[]uint8",
    list: "[]interface {}",
    Integers: "[]int",
    NilList: "[]interface {}",
    Pair: "[2]interface {}",
    Pairs: "[][2]interface {}",
    dict: "map[string]interface {}",
    Time: "time.Time",
    Duration: "time.Duration",
    Zone: "*time.Location",
    Month: "time.Month",
    Weekday: "time.Weekday",
}


def go_type(value: Any) -> str:
    """Return the type's name as Go's %T shows it."""
    if type(value) is AnyMap:
        return value.go
    return _GO_TYPES.get(type(value), "func()")


_KINDS = {
    "<nil>": "invalid",
    "[]string": "slice",
    "[]interface {}": "slice",
    "[]int": "slice",
    "[]uint8": "slice",
    "[][2]interface {}": "slice",
    "[2]interface {}": "array",
    "time.Time": "struct",
    "time.Duration": "int64",
    "*time.Location": "struct",
    "time.Month": "int",
    "time.Weekday": "int",
}


def go_kind(value: Any) -> str:
    """Return the kind of a value's type as Go's `reflect` names it."""
    name = go_type(value)
    return "map" if name.startswith("map[") else _KINDS.get(name, name.removesuffix("()"))


def wrong_type(value: Any, want: str) -> Failure:
    """The failure of a Go type assertion."""
    found = "nil" if value is None else go_type(value)
    return Failure(f"interface conversion: interface {{}} is {found}, not {want}")


def wrap(value: int) -> int:
    """Return an integer as 64 bits hold it."""
    if SMALLEST <= value <= LARGEST:
        return value
    return ((value - SMALLEST) & ((1 << 64) - 1)) + SMALLEST


def boolean(value: Any) -> bool:
    """Return a bool that is one; Failure if it is not."""
    if value is True or value is False:
        return value
    raise wrong_type(value, "bool")


def utf8(value: str) -> bytes:
    """Return the bytes of a text; those that were no UTF-8 when it was made come back as they were.

    Half of a surrogate pair, which JSON can write and no text can hold, is replaced.
    """
    try:
        return value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()


def from_utf8(raw: bytes) -> str:
    """Return bytes as a text; those that are no UTF-8 are kept as such."""
    return raw.decode("utf-8", "surrogateescape")


def text(value: Any) -> str:
    """Return a text that is one; Failure if it is not."""
    if type(value) is str:
        return value
    raise wrong_type(value, "string")


def number(value: Any) -> bool:
    """Return whether it is an int or a float."""
    return type(value) is int or type(value) is float


_LISTS = frozenset({list, tuple, bytes, Integers, NilList})
_CONTAINERS = frozenset({list, tuple, bytes, Integers, NilList, dict, AnyMap, Pair, Pairs})


Tick = Callable[[int], None]
"""Is told of steps, and may end it all: lists that hold one list twice have more elements than memory has room for."""


def equal(a: Any, b: Any, tick: Tick) -> bool:
    """`==`: numbers by value, lists by their elements, all else only if the types agree too."""
    kind, other = type(a), type(b)
    if kind is other and kind not in _CONTAINERS:
        return bool(a == b)
    if number(a) and number(b):
        return float(a) == float(b)
    if kind in _LISTS and other in _LISTS:
        tick(1 + len(a) // 4)
        return len(a) == len(b) and all(equal(x, y, tick) for x, y in zip(a, b, strict=True))
    if a is None or b is None:
        return kind is NilList or other is NilList
    return deep_equal(a, b, tick)


def deep_equal(a: Any, b: Any, tick: Tick) -> bool:
    """The same values of the same types, all the way down."""
    if go_type(a) != go_type(b):
        return False
    tick(1)
    if isinstance(a, LISTS):
        return len(a) == len(b) and all(deep_equal(x, y, tick) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(deep_equal(value, b[key], tick) for key, value in a.items())
    return bool(a == b)


_ORDERED = frozenset({str, Time, Duration})


def less(a: Any, b: Any, operator: str = "<") -> bool:
    """`<` or, by `operator`, another comparison."""
    kind, other = type(a), type(b)
    if kind is not other and number(a) and number(b):
        a, b = float(a), float(b)
    elif kind is not other or (kind is not int and kind is not float and kind not in _ORDERED):
        raise unfit(a, operator, b)
    if operator == "<":
        return bool(a < b)
    if operator == ">":
        return bool(a > b)
    return bool(a <= b) if operator == "<=" else bool(a >= b)


def unfit(a: Any, operator: str, b: Any) -> Failure:
    """The failure of an operator whose operands do not fit."""
    return Failure(f"invalid operation: {go_type(a)} {operator} {go_type(b)}")


def add(a: Any, b: Any) -> Any:
    """`+`"""
    kind, other = type(a), type(b)
    if kind is int and other is int:
        return wrap(a + b)
    if number(a) and number(b):
        return float(a) + float(b)
    if kind is str and other is str:
        if len(a) + len(b) >= MEMORY_BUDGET:
            raise Failure("memory budget exceeded")
        return a + b if a.isascii() or b.isascii() else from_utf8(utf8(a) + utf8(b))
    if kind is Duration and other is Duration:
        return Duration(wrap(int(a) + int(b)))
    if kind is Time and other is Duration:
        return a.plus(int(b))
    if kind is Duration and other is Time:
        return b.plus(int(a))
    raise unfit(a, "+", b)


def subtract(a: Any, b: Any) -> Any:
    """`-`"""
    kind, other = type(a), type(b)
    if kind is int and other is int:
        return wrap(a - b)
    if number(a) and number(b):
        return float(a) - float(b)
    if kind is Time and other is Time:
        return Duration(max(SMALLEST, min(LARGEST, a.nanoseconds - b.nanoseconds)))
    if kind is Time and other is Duration:
        return a.plus(-int(b))
    if kind is Duration and other is Duration:
        return Duration(wrap(int(a) - int(b)))
    raise unfit(a, "-", b)


def multiply(a: Any, b: Any) -> Any:
    """`*`"""
    kind, other = type(a), type(b)
    if kind is int and other is int:
        return wrap(a * b)
    if number(a) and number(b):
        return float(a) * float(b)
    kinds = {kind, other}
    if Duration in kinds and kinds <= {Duration, int, float}:
        if float in kinds:
            return float(a) * float(b)
        return Duration(wrap(int(a) * int(b)))
    raise unfit(a, "*", b)


def divide(a: Any, b: Any) -> float:
    """`/`: always in floating point; by zero it is infinite, or not a number."""
    if not (number(a) and number(b)):
        raise unfit(a, "/", b)
    x, y = float(a), float(b)
    if y:
        return x / y
    return math.nan if x == 0 or math.isnan(x) else math.copysign(math.inf, x) * math.copysign(1.0, y)


def modulo(a: Any, b: Any) -> int:
    """`%`: with the sign of the left operand."""
    if type(a) is not int or type(b) is not int:
        raise unfit(a, "%", b)
    if b == 0:
        raise Failure("runtime error: integer divide by zero")
    return int(math.fmod(a, b)) if -(1 << 53) < a < 1 << 53 > abs(b) else (abs(a) % abs(b)) * (1 if a > 0 else -1)


def power(a: Any, b: Any) -> float:
    """`**`"""
    x, y = as_float(a), as_float(b)
    try:
        return math.pow(x, y)
    except OverflowError:
        return -math.inf if x < 0 and y % 2 == 1 else math.inf
    except ValueError:
        if x == 0:
            return math.copysign(math.inf, x) if y % 2 == 1 else math.inf
        return math.nan


def negate(a: Any) -> Any:
    """The unary `-`."""
    if type(a) is int:
        return wrap(-a)
    if type(a) is float:
        return -a
    raise Failure(f"invalid operation: - {go_type(a)}")


def as_float(value: Any) -> float:
    """What Go's conversion to float64 gives."""
    if type(value) in (int, float):
        return float(value)
    raise Failure(f"invalid operation: float({go_type(value)})")


def as_int(value: Any) -> int:
    """What Go's conversion to int gives."""
    if type(value) is int:
        return value
    if type(value) is float:
        return truncate(value)
    raise Failure(f"invalid operation: int({go_type(value)})")


def truncate(value: float) -> int:
    """A float cut to an int; one that does not fit gives the smallest, as on amd64."""
    return int(value) if -9.3e18 < value < 9.3e18 and SMALLEST <= int(value) <= LARGEST else SMALLEST


def contains(needle: Any, where: Any, tick: Tick) -> bool:
    """`in`"""
    if where is None:
        return False
    if isinstance(where, LISTS):
        return any(equal(needle, item, tick) for item in where)
    if type(where) is AnyMap:
        return AnyMap.key(needle) in where
    if isinstance(where, dict):
        if needle is None:
            return False
        return _map_key(needle) in where
    if isinstance(where, Time | Zone):
        if not isinstance(needle, str):
            raise Failure(f"cannot use {go_type(needle)} as field name of {go_type(where).removeprefix('*')}")
        return False
    raise Failure(f'operator "in" not defined on {go_type(where)}')


def _map_key(key: Any) -> str:
    if type(key) is str:
        return key
    raise map_key_failure(key)


def map_key_failure(key: Any) -> Failure:
    """The failure of a look-up among texts by something else."""
    return Failure(f"reflect.Value.MapIndex: value of type {go_type(key)} is not assignable to type string")


def length(value: Any) -> int:
    """`len`: the number of elements, or of characters."""
    if isinstance(value, (str, dict, *LISTS)):
        return len(value)
    raise Failure(f"invalid argument for len (type {go_type(value)})")


def last_bound(value: Any) -> int:
    """Where `base[start:]` ends: a text has as many places as bytes."""
    return len(utf8(value)) if isinstance(value, str) else length(value)


def fetch(base: Any, index: Any) -> Any:
    """`base[index]` and `base.name`."""
    if isinstance(base, LISTS):
        return base[position(index, len(base))]
    if type(base) is AnyMap:
        return base.get(AnyMap.key(index, "runtime error: hash of unhashable type"))
    if isinstance(base, dict):
        return None if index is None else base.get(_map_key(index))
    if type(base) is str:
        raw = utf8(base)
        return raw[position(index, len(raw))]
    shown = index if isinstance(index, str) else "<nil>" if index is None else show_number(index)
    raise Failure(f"cannot fetch {shown} from {go_type(base)}")


def position(index: Any, count: int) -> int:
    """The place an index names, negative ones from the end."""
    place = as_int(index)
    if place < 0:
        place += count
    if not 0 <= place < count:
        raise Failure(f"index out of range: {place} (array length is {count})")
    return place


def cut(base: Any, start: Any, stop: Any) -> Any:
    """`base[start:stop]`; a text is cut between bytes."""
    if isinstance(base, str):
        raw = utf8(base)
        first, last = _bounds(start, stop, len(raw))
        return from_utf8(raw[first:last])
    if isinstance(base, LISTS):
        first, last = _bounds(start, stop, len(base))
        return type(base)(base[first:last])
    raise Failure(f"cannot slice {start if isinstance(start, str) else show_number(start)}")


def _bounds(start: Any, stop: Any, count: int) -> tuple[int, int]:
    first, last = as_int(start), as_int(stop)
    first = max(first + count, 0) if first < 0 else first
    last = max(last + count, 0) if last < 0 else min(last, count)
    return min(first, last), last


def show_number(value: Any) -> str:
    """A number as Go's %v shows it; other values by their type."""
    if type(value) is float:
        return format_float(value)
    return str(value) if type(value) is int else go_type(value)


def format_float(value: float, exponent_from: int = 6, exponent_below: int = -4) -> str:
    """A float with the fewest digits; with an exponent from 1e6 on, or as said."""
    if math.isnan(value) or math.isinf(value):
        return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"
    if value == 0:
        return "-0" if math.copysign(1.0, value) < 0 else "0"
    mantissa, _, exponent = f"{value!r}e".lower().partition("e")
    sign = "-" if mantissa.startswith("-") else ""
    whole, _, part = mantissa.lstrip("-").partition(".")
    digits = (whole + part).lstrip("0")
    leading = len(whole + part) - len(digits)
    point = len(whole) - leading + int(exponent.rstrip("e") or "0")
    digits = digits.rstrip("0")
    power_of_ten = point - 1
    if power_of_ten < exponent_below or power_of_ten >= exponent_from:
        tail = f".{digits[1:]}" if len(digits) > 1 else ""
        return f"{sign}{digits[0]}{tail}e{'-' if power_of_ten < 0 else '+'}{abs(power_of_ten):02d}"
    if point <= 0:
        return f"{sign}0.{'0' * -point}{digits}"
    if len(digits) <= point:
        return f"{sign}{digits}{'0' * (point - len(digits))}"
    return f"{sign}{digits[:point]}.{digits[point:]}"
