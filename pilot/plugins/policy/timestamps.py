"""Times as the state files of the official daemon have them: RFC 3339, to the nanosecond (plugin policy, L11)."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final

__all__ = ["SECOND_NS", "ZERO_TIME", "format_time", "parse_time_untrusted"]

SECOND_NS: Final = 1_000_000_000
ZERO_TIME: Final = "0001-01-01T00:00:00Z"
"""A time that was never set."""

_EPOCH: Final = datetime(1970, 1, 1)
_TIME: Final = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)", re.ASCII)


def format_time(unix_ns: int) -> str:
    """Nanoseconds since 1970 as Go writes a time in UTC: without a fraction's trailing zeros."""
    seconds, fraction = divmod(unix_ns, SECOND_NS)
    text = (_EPOCH + timedelta(seconds=seconds)).isoformat()
    return text + (f".{fraction:09d}".rstrip("0") if fraction else "") + "Z"


def parse_time_untrusted(text: str) -> int:
    """An RFC 3339 time in nanoseconds since 1970.

    Raises:
        ValueError: it is none, or out of the range of dates.
    """
    match = _TIME.fullmatch(text)
    if match is None:
        raise ValueError(f"{text[:64]!r} is no time")
    date, fraction, zone = match.groups()
    try:
        at = datetime.fromisoformat(date + zone).astimezone(UTC).replace(tzinfo=None)
    except OverflowError as error:
        raise ValueError(f"{text[:64]!r} is no time: {error}") from None
    return (at - _EPOCH) // timedelta(seconds=1) * SECOND_NS + int((fraction or "0").ljust(9, "0"))
