"""Go's layouts for times: "2006-01-02 15:04:05" as a pattern to show and to read by (plugin policy, L11)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from pilot.plugins.policy.expression.lexer import quoted
from pilot.plugins.policy.expression.regexes import linear_pattern
from pilot.plugins.policy.expression.times import (
    DAY,
    DAYS,
    METHODS_OF,
    MONTHS,
    SECOND,
    UTC_ZONE,
    Civil,
    FixedZone,
    Time,
    Zone,
    at,
    days_before,
)

MAX_LAYOUT_LENGTH = 256
"""Characters of a layout, and of a text that is read by one."""

STRING_LAYOUT = "2006-01-02 15:04:05.999999999 -0700 MST"
RFC3339 = "2006-01-02T15:04:05Z07:00"
RFC3339_NANO = "2006-01-02T15:04:05.999999999Z07:00"

DATE_LAYOUTS = (
    "2006-01-02",
    "15:04:05",
    "2006-01-02 15:04:05",
    RFC3339,
    "02 Jan 06 15:04 MST",
    "Monday, 02-Jan-06 15:04:05 MST",
    "Mon, 02 Jan 2006 15:04:05 MST",
)
"""What `date(text)` tries."""

_ELEMENTS = re.compile(
    r"January|Jan(?![a-z])|Monday|Mon(?![a-z])|MST|2006|-07:00:00|-07:00|-070000|-0700|-07|Z07:00:00|Z07:00|Z070000"
    r"|Z0700|Z07|[.,](?:0+|9+)(?![0-9])|002|__2|_2006|_2|01|02|03|04|05|06|15|PM|pm|1|2|3|4|5"
)


def _elements(layout: str) -> Iterator[tuple[str, bool]]:
    """The parts of a layout: text, and whether it stands for something."""
    place = 0
    for found in _ELEMENTS.finditer(layout):
        if found.start() > place:
            yield layout[place : found.start()], False
        if found[0] == "_2006":
            yield "_", False
            yield "2006", True
        else:
            yield found[0], True
        place = found.end()
    if place < len(layout):
        yield layout[place:], False


def format_time(moment: Time, layout: str) -> str:
    """Return a time as a layout says; a layout longer than MAX_LAYOUT_LENGTH is cut."""
    date = moment.civil()
    made = []
    for part, means_something in _elements(layout[:MAX_LAYOUT_LENGTH]):
        made.append(_shown(part, moment, date) if means_something else part)
    return "".join(made)


_FIELDS: dict[str, Callable[[Civil], str]] = {
    "January": lambda c: MONTHS[c.month - 1],
    "Jan": lambda c: MONTHS[c.month - 1][:3],
    "Monday": lambda c: DAYS[c.weekday],
    "Mon": lambda c: DAYS[c.weekday][:3],
    "2006": lambda c: f"{c.year:04d}",
    "06": lambda c: f"{c.year % 100:02d}",
    "01": lambda c: f"{c.month:02d}",
    "1": lambda c: str(c.month),
    "02": lambda c: f"{c.day:02d}",
    "_2": lambda c: f"{c.day:2d}",
    "2": lambda c: str(c.day),
    "002": lambda c: f"{c.day_of_year:03d}",
    "__2": lambda c: f"{c.day_of_year:3d}",
    "15": lambda c: f"{c.second_of_day // 3600:02d}",
    "03": lambda c: f"{(c.second_of_day // 3600 + 11) % 12 + 1:02d}",
    "3": lambda c: str((c.second_of_day // 3600 + 11) % 12 + 1),
    "04": lambda c: f"{c.second_of_day // 60 % 60:02d}",
    "4": lambda c: str(c.second_of_day // 60 % 60),
    "05": lambda c: f"{c.second_of_day % 60:02d}",
    "5": lambda c: str(c.second_of_day % 60),
    "PM": lambda c: "PM" if c.second_of_day >= DAY // 2 else "AM",
    "pm": lambda c: "pm" if c.second_of_day >= DAY // 2 else "am",
}


def _shown(part: str, moment: Time, date: Civil) -> str:
    if part in _FIELDS:
        return _FIELDS[part](date)
    if part[0] in ".,":
        digits = f"{moment.nanoseconds % SECOND:09d}"[: len(part) - 1]
        if part[1] == "9":
            digits = digits.rstrip("0")
        return part[0] + digits if digits else ""
    east, name, _ = moment.offset()
    if part == "MST":
        return name if not name.startswith(("+", "-")) else _offset("-0700" if east % 3600 else "-07", east)
    if part[0] == "Z" and east == 0:
        return "Z"
    return _offset(part, east)


def _offset(part: str, east: int) -> str:
    size = abs(east)
    colon = ":" if ":" in part else ""
    shown = f"{'-' if east < 0 else '+'}{size // 3600:02d}"
    digits = sum(char.isdigit() for char in part)
    if digits >= 4:
        shown += f"{colon}{size // 60 % 60:02d}"
    return shown + f"{colon}{size % 60:02d}" if digits >= 6 else shown


_READ = {
    "January": "(?P<month_name>" + "|".join(MONTHS) + ")",
    "Jan": "(?P<month_name>" + "|".join(month[:3] for month in MONTHS) + ")",
    "Monday": "(?:" + "|".join(DAYS) + ")",
    "Mon": "(?:" + "|".join(day[:3] for day in DAYS) + ")",
    "2006": r"(?P<year>[0-9]{4})",
    "06": r"(?P<short_year>[0-9]{2})",
    "01": r"(?P<month>[0-9]{2})",
    "1": r"(?P<month>[0-9]{1,2})",
    "02": r"(?P<day>[0-9]{2})",
    "_2": r" ?(?P<day>[0-9]{1,2})",
    "2": r"(?P<day>[0-9]{1,2})",
    "002": r"(?P<day_of_year>[0-9]{3})",
    "__2": r" {0,2}(?P<day_of_year>[0-9]{1,3})",
    "15": r"(?P<hour>[0-9]{2})",
    "03": r"(?P<half_hour>[0-9]{2})",
    "3": r"(?P<half_hour>[0-9]{1,2})",
    "04": r"(?P<minute>[0-9]{2})",
    "4": r"(?P<minute>[0-9]{1,2})",
    "05": r"(?P<second>[0-9]{2})(?P<fraction>[.,][0-9]+)?",
    "5": r"(?P<second>[0-9]{1,2})(?P<fraction>[.,][0-9]+)?",
    "PM": "(?P<noon>[AP]M)",
    "pm": "(?P<noon>[ap]m)",
    "MST": r"(?P<zone_name>[A-Z]{3,4}|[+-][0-9]{2})",
}


def parse_time_untrusted(text: str, layout: str, zone: Zone = UTC_ZONE) -> Time:
    """Return the time a text shows by a layout; `zone` applies where the text names none.

    Raises:
        ValueError: it shows none.
    """
    is_too_long = len(layout) > MAX_LAYOUT_LENGTH or len(text) > MAX_LAYOUT_LENGTH
    shown, shown_layout = quoted(text[:MAX_LAYOUT_LENGTH]), quoted(layout[:MAX_LAYOUT_LENGTH])
    complaint = ValueError(f"parsing time {shown} as {shown_layout}: cannot parse {shown}")
    if is_too_long:
        raise complaint
    pattern, used = "(?i)", set()
    for part, means_something in _elements(layout):
        piece = _reading(part) if means_something else re.escape(part)
        for name in re.findall(r"\?P<(\w+)>", piece):
            # A part that a layout has twice: Go lets the last one win, here the first is enough.
            if name in used:
                piece = piece.replace(f"?P<{name}>", "?:")
            used.add(name)
        pattern += piece
    try:
        found = linear_pattern(pattern).fullmatch(text) if text.isascii() and layout.isascii() else None
        if found is None:
            raise complaint
        return _moment({name: value for name, value in found.groupdict().items() if value is not None}, zone)
    except (ValueError, KeyError):
        raise complaint from None


def _reading(part: str) -> str:
    if part in _READ:
        return _READ[part]
    if part[0] in ".,":
        count = len(part) - 1
        return f"(?P<fraction>[.,][0-9]{{{count}}})" if part[1] == "0" else "(?P<fraction>[.,][0-9]+)?"
    digits = sum(char.isdigit() for char in part)
    colon = ":" if ":" in part else ""
    shape = "[+-][0-9]{2}" + f"{colon}[0-9]{{2}}" * (digits // 2 - 1)
    return f"(?P<offset>Z|{shape})" if part[0] == "Z" else f"(?P<offset>{shape})"


def _moment(parts: dict[str, str], zone: Zone) -> Time:
    year = int(parts.get("year", 0))
    if short := parts.get("short_year"):
        year = int(short) + (1900 if int(short) >= 69 else 2000)
    month, day = int(parts.get("month", 1)), int(parts.get("day", 1))
    if name := parts.get("month_name"):
        month = next(n for n, full in enumerate(MONTHS, 1) if full.lower().startswith(name.lower()[:3]))
    if (of_year := parts.get("day_of_year")) is not None:
        month, day = 1, int(of_year)
    elif not 1 <= month <= 12 or not 1 <= day <= days_before(year, month + 1, 1) - days_before(year, month, 1):
        raise ValueError("no such date")
    hour = int(parts.get("hour", 0))
    if half := parts.get("half_hour"):
        hour = int(half) % 12 if "noon" in parts else int(half)
    if parts.get("noon", "").lower() == "pm" and hour < 12:
        hour += 12
    minute, second = int(parts.get("minute", 0)), int(parts.get("second", 0))
    if hour > 23 or minute > 59 or second > 59:
        raise ValueError("no such time of day")
    nanoseconds = int(parts.get("fraction", ".0")[1:10].ljust(9, "0"))
    local = days_before(year, month, day) * DAY + hour * 3600 + minute * 60 + second
    return at(local, nanoseconds, _zone(parts, zone))


def _zone(parts: dict[str, str], zone: Zone) -> Zone:
    if (offset := parts.get("offset")) is not None:
        if offset in ("Z", "z"):
            return UTC_ZONE
        digits = offset[1:].replace(":", "").ljust(6, "0")
        east = int(digits[:2]) * 3600 + int(digits[2:4]) * 60 + int(digits[4:])
        return FixedZone("", -east if offset[0] == "-" else east) if east else UTC_ZONE
    name = parts.get("zone_name")
    if name is None:
        return zone
    return UTC_ZONE if name == "UTC" else FixedZone(name, 0)


METHODS_OF[Time]["Format"] = format_time
METHODS_OF[Time]["String"] = lambda moment: format_time(moment, STRING_LAYOUT)
