"""JSON texts and numbers as Go's `encoding/json` writes them (plugins, L11)."""

from __future__ import annotations

import json
import math
from decimal import Decimal
from typing import Final

__all__ = ["go_escaped", "go_number", "go_text"]

# What Go escapes beyond what JSON demands: for HTML, and for JavaScript.
_ESCAPES: Final = str.maketrans({char: f"\\u{ord(char):04x}" for char in "<>&\u2028\u2029"})
_encode: Final = json.JSONEncoder(ensure_ascii=False).encode


def go_escaped(encoded: str) -> str:
    """JSON text with Go's escapes in it; the characters they are for can only stand in texts."""
    return encoded.translate(_ESCAPES)


def go_text(text: str) -> str:
    """A text in quotes. Halves of surrogate pairs, which no UTF-8 can have, become U+FFFD."""
    clean = text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return go_escaped(_encode(clean))


def go_number(value: float) -> str:
    """The shortest digits that mean `value`, with an exponent only below 1e-6 and from 1e21 on.

    Raises:
        ValueError: it is infinite or not a number, for which JSON has no word.
    """
    if not math.isfinite(value):
        raise ValueError(f"{value!r} has no JSON form")
    if value == 0:
        return "-0" if math.copysign(1, value) < 0 else "0"
    if not 1e-6 <= abs(value) < 1e21:
        return repr(value).replace("e-0", "e-")
    plain = format(Decimal(repr(value)), "f")
    return plain.rstrip("0").rstrip(".") if "." in plain else plain
