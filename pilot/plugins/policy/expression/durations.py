"""Go's duration texts: "1h30m", "500ms", "-1.5h" (plugin policy, L11; services.md 9.5)."""

from __future__ import annotations

import re

UNITS = {
    "ns": 1,
    "us": 1_000,
    "\u00b5s": 1_000,
    "\u03bcs": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}
LARGEST = (1 << 63) - 1
MAX_LENGTH = 256
"""Characters of a duration; more can only be leading or trailing zeros."""

_PART = re.compile(r"([0-9]*)(\.[0-9]*)?([^0-9.]*)")


def parse_duration_untrusted(text: str) -> int:
    """Return the nanoseconds of a Go duration.

    Raises:
        ValueError: it is none; the message is Go's: `time: invalid duration "1d"`.
    """
    invalid = ValueError(f"time: invalid duration {_quoted(text)}")
    sign = -1 if text.startswith("-") else 1
    rest = text[1:] if text[:1] in ("+", "-") else text
    if rest == "0":
        return 0
    if not rest or len(text) > MAX_LENGTH:
        raise invalid
    total = 0
    while rest:
        part = _PART.match(rest)
        assert part is not None
        whole, fraction, unit = part[1], part[2], part[3]
        digits = (fraction or ".")[1:]
        if not whole and not digits:
            raise invalid
        if int(whole or "0") > LARGEST:
            raise invalid
        if not unit:
            raise ValueError(f"time: missing unit in duration {_quoted(text)}")
        if unit not in UNITS:
            raise ValueError(f"time: unknown unit {_quoted(unit)} in duration {_quoted(text)}")
        total += int(whole or "0") * UNITS[unit] + _fraction(digits, UNITS[unit])
        if total > LARGEST + (sign < 0):
            raise invalid
        rest = rest[part.end() :]
    return sign * total


def _fraction(digits: str, unit: int) -> int:
    """The nanoseconds of the digits after the point, rounded as Go does: in floating point, downwards."""
    value, scale = 0, 1.0
    for digit in digits:
        if value > LARGEST // 10 or value * 10 + int(digit) > LARGEST:
            break
        value = value * 10 + int(digit)
        scale *= 10
    return int(value * (unit / scale)) if value else 0


def _quoted(text: str) -> str:
    """As Go's `time` package quotes: every byte outside of printable ASCII as an escape."""
    text = text[:MAX_LENGTH]
    if all(" " <= char <= "~" and char not in '"\\' for char in text):
        return f'"{text}"'
    shown = []
    for byte in text.encode("utf-8", "surrogatepass"):
        char = chr(byte)
        shown.append("\\" + char if char in '"\\' else char if " " <= char <= "~" else f"\\x{byte:02x}")
    return '"' + "".join(shown) + '"'


def format_duration(nanoseconds: int) -> str:
    """A duration as Go shows it: `1h30m0s`, `1.5s`, `2ms`."""
    if nanoseconds == 0:
        return "0s"
    sign, left = ("-", -nanoseconds) if nanoseconds < 0 else ("", nanoseconds)
    if left < 1_000_000_000:
        unit = "ns" if left < 1_000 else "\u00b5s" if left < 1_000_000 else "ms"
        return f"{sign}{_decimal(left, UNITS[unit])}{unit}"
    minutes, left = divmod(left, UNITS["m"])
    shown = f"{_decimal(left, UNITS['s'])}s"
    if minutes:
        hours, minutes = divmod(minutes, 60)
        shown = f"{hours}h{minutes}m{shown}" if hours else f"{minutes}m{shown}"
    return sign + shown


def _decimal(value: int, unit: int) -> str:
    whole, part = divmod(value, unit)
    digits = str(part).rjust(len(str(unit)) - 1, "0").rstrip("0") if unit > 1 else ""
    return f"{whole}.{digits}" if digits else str(whole)
