"""Values as text: what `string` and `toJSON` make of them, and `fromJSON` the other way (plugin policy, L11)."""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Callable
from typing import Any

from pilot.plugins._gojson import go_number
from pilot.plugins.policy.expression.errors import Failure
from pilot.plugins.policy.expression.layouts import RFC3339_NANO, STRING_LAYOUT, format_time
from pilot.plugins.policy.expression.limits import MAX_DEPTH
from pilot.plugins.policy.expression.times import Duration, Month, Time, Weekday, Zone
from pilot.plugins.policy.expression.values import (
    LISTS,
    AnyMap,
    Integers,
    NilList,
    Pair,
    Pairs,
    format_float,
    go_type,
    utf8,
)

TYPE_NAMES: dict[type, str] = {
    type(None): "nil",
    bool: "bool",
    int: "int",
    float: "float",
    str: "string",
    list: "array",
    bytes: "array",
    Integers: "array",
    NilList: "array",
    tuple: "array",
    Pair: "array",
    Pairs: "array",
    dict: "map",
    AnyMap: "map",
    Time: "time.Time",
    Duration: "time.Duration",
    Zone: "time.Location",
    Month: "time.Month",
    Weekday: "time.Weekday",
}


def type_name(value: Any) -> str:
    """`type`: the name of the value's type in the language."""
    return TYPE_NAMES.get(type(value), "func")


def show(value: Any, charge: Callable[[int], None]) -> str:
    """`string`: the value as Go's %v shows it; `charge` is told of every element."""
    if isinstance(value, str):
        return value
    if value is None:
        return "<nil>"
    if isinstance(value, bool):
        return "true" if value else "false"
    if type(value) is float:
        return format_float(value)
    if isinstance(value, Time):
        return format_time(value, STRING_LAYOUT)
    if isinstance(value, Zone):
        return f"{{{value} [] []  0 0 <nil>}}"
    if isinstance(value, LISTS):
        charge(len(value))
        return f"[{' '.join(show(item, charge) for item in value)}]"
    if isinstance(value, dict):
        charge(len(value))
        if isinstance(value, AnyMap):
            pairs = sorted((show(key[1], charge), show(item, charge)) for key, item in value.items())
        else:
            pairs = [(key, show(item, charge)) for key, item in sorted(value.items())]
        return f"map[{' '.join(f'{key}:{item}' for key, item in pairs)}]"
    return str(value)


_HTML = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
_MUST_ESCAPE = re.compile(r'[\x00-\x1f"\\<>&\u2028\u2029\ud800-\udfff]')
_SHORT = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\b": "\\b", "\f": "\\f"}


def _json_text(value: str) -> str:
    def escape(found: re.Match[str]) -> str:
        char = found[0]
        if "\ud800" <= char <= "\udfff":
            return "\\ufffd"
        return _SHORT.get(char) or _HTML.get(char) or f"\\u{ord(char):04x}"

    return f'"{_MUST_ESCAPE.sub(escape, value)}"'


def to_json(value: Any, charge: Callable[[int], None], indent: str = "\n") -> str:
    """`toJSON`: the value as Go's encoder writes it, two spaces deep."""
    if value is None or isinstance(value, NilList):
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _json_text(value)
    if type(value) is float:
        return _json_float(value)
    if isinstance(value, Time):
        return f'"{format_time(value, RFC3339_NANO)}"'
    if isinstance(value, int):
        return str(int(value))
    if isinstance(value, AnyMap):
        raise Failure(f"json: unsupported type: {value.go}")
    if isinstance(value, bytes):
        return f'"{base64.b64encode(value).decode()}"'
    deeper = indent + "  "
    if isinstance(value, LISTS):
        charge(len(value))
        if not value:
            return "[]"
        return f"[{deeper}{f',{deeper}'.join(to_json(item, charge, deeper) for item in value)}{indent}]"
    if isinstance(value, dict):
        charge(len(value))
        if not value:
            return "{}"
        pairs = (f"{_json_text(key)}: {to_json(item, charge, deeper)}" for key, item in sorted(value.items()))
        return f"{{{deeper}{f',{deeper}'.join(pairs)}{indent}}}"
    if isinstance(value, Zone):
        return "{}"
    raise Failure(f"json: unsupported type: {go_type(value)}")


def _json_float(value: float) -> str:
    try:
        return go_number(value)
    except ValueError:
        raise Failure(f"json: unsupported value: {format_float(value)}") from None


def from_json(text: str, charge: Callable[[int], None]) -> Any:
    """`fromJSON`: numbers become floats, as in Go; Failure for what is no JSON."""
    charge(len(text) // 2)
    if _nesting(text) > MAX_DEPTH:
        raise Failure("exceeded max depth")
    try:
        return json.loads(text, parse_int=_json_number, parse_float=_json_number, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise Failure(_decoder_text(text, error)) from None
    except RecursionError:
        raise Failure("exceeded max depth") from None


def _json_number(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise Failure(f"json: cannot unmarshal number {digits} into Go value of type float64")
    return value


def _no_constant(name: str) -> Any:
    raise Failure(f"invalid character '{name[0]}' looking for beginning of value")


def _nesting(text: str) -> int:
    """How deep brackets go at most; those inside of texts count too, which only refuses earlier."""
    depth = deepest = 0
    for char in re.sub(r"[^\[\]{}]", "", text):
        depth += 1 if char in "[{" else -1
        deepest = max(deepest, depth)
    return deepest


def _decoder_text(text: str, error: json.JSONDecodeError) -> str:
    if error.pos >= len(text.rstrip()):
        return "unexpected end of JSON input"
    char = chr(utf8(text[error.pos])[0])
    what = {
        "Extra data": "after top-level value",
        "Expecting property name enclosed in double quotes": "looking for beginning of object key string",
        "Expecting ':' delimiter": "after object key",
        "Expecting ',' delimiter": "after array element"
        if _in_array(text, error.pos)
        else "after object key:value pair",
    }.get(error.msg, "looking for beginning of value")
    return f"invalid character '{char}' {what}"


def _in_array(text: str, at: int) -> bool:
    opened = re.sub(r"[^\[\]{}]", "", text[:at])
    while True:
        shorter = opened.replace("[]", "").replace("{}", "")
        if shorter == opened:
            return opened.endswith("[")
        opened = shorter
