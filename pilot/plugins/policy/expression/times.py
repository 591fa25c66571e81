"""Times, durations, months and zones of the language, as Go's package `time` has them (plugin policy, L11)."""

from __future__ import annotations

import time as clock
from collections.abc import Callable
from datetime import UTC, datetime, tzinfo
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from pilot.plugins.policy.expression.durations import format_duration

SECOND = 1_000_000_000
DAY = 86_400
MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
DAYS = ("Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")
_LARGEST_DURATION = (1 << 63) - 1


class Duration(int):
    """Nanoseconds."""

    def __str__(self) -> str:
        return format_duration(int(self))


class Month(int):
    """A month, from 1."""

    def __str__(self) -> str:
        return MONTHS[self - 1]


class Weekday(int):
    """A day of the week, from Sunday = 0."""

    def __str__(self) -> str:
        return DAYS[self]


class Zone:
    """A place with a clock: UTC, the machine's own, or one of the time zone database."""

    def __init__(self, name: str, rules: tzinfo | None) -> None:
        self.name = name
        self._rules = rules

    def __str__(self) -> str:
        return self.name

    def offset(self, seconds: int) -> tuple[int, str, bool]:
        """Return seconds east of Greenwich, the abbreviation and whether it is summer time, at a Unix time."""
        if self.name == "UTC":
            return 0, "UTC", False
        seconds = max(-62_135_500_000, min(seconds, 253_402_200_000))
        if self._rules is None:
            local = clock.localtime(seconds)
            return local.tm_gmtoff, local.tm_zone, local.tm_isdst > 0
        then = datetime.fromtimestamp(seconds, UTC).astimezone(self._rules)
        east = then.utcoffset()
        return (int(east.total_seconds()) if east else 0), then.tzname() or "", bool(then.dst())


UTC_ZONE = Zone("UTC", UTC)
LOCAL_ZONE = Zone("Local", None)


class FixedZone(Zone):
    """A zone that a text gave as an offset."""

    def __init__(self, name: str, east: int) -> None:
        super().__init__(name, None)
        self.east = east

    def offset(self, seconds: int) -> tuple[int, str, bool]:
        """Return the same offset always."""
        return self.east, self.name, False


def zone_untrusted(name: str) -> Zone:
    """Return a zone by its name.

    Raises:
        ValueError: there is none; the text is Go's.
    """
    if name in ("", "UTC"):
        return UTC_ZONE
    if name == "Local":
        return LOCAL_ZONE
    try:
        return Zone(name, ZoneInfo(name[:64]))
    except (OSError, ValueError, KeyError):
        raise ValueError(f"unknown time zone {name}") from None


class Civil(NamedTuple):
    """A date and time of day on somebody's calendar and clock."""

    year: int
    month: int
    day: int
    second_of_day: int
    weekday: int
    day_of_year: int


def days_before(year: int, month: int, day: int) -> int:
    """Days from 1970-01-01 to a date of the Gregorian calendar, extended to all years; months may overflow."""
    year, month = year + (month - 1) // 12, (month - 1) % 12 + 1
    shifted = year - (month <= 2)
    era, of_era = divmod(shifted, 400)
    of_year = (153 * ((month + 9) % 12) + 2) // 5 + day - 1
    return era * 146_097 + of_era * 365 + of_era // 4 - of_era // 100 + of_year - 719_468


def civil(seconds: int) -> Civil:
    """The calendar's date of so many seconds after 1970."""
    days, second = divmod(seconds, DAY)
    era, of_era = divmod(days + 719_468, 146_097)
    year_of_era = (of_era - of_era // 1460 + of_era // 36_524 - of_era // 146_096) // 365
    of_year = of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    shifted = (5 * of_year + 2) // 153
    day, month = of_year - (153 * shifted + 2) // 5 + 1, (shifted + 2) % 12 + 1
    year = year_of_era + era * 400 + (month <= 2)
    return Civil(year, month, day, second, (days + 4) % 7, days - days_before(year, 1, 1) + 1)


class Time:
    """A moment, in nanoseconds since 1970, and the zone it is shown in; equal and ordered by the moment."""

    __slots__ = ("nanoseconds", "zone")

    def __init__(self, nanoseconds: int, zone: Zone) -> None:
        self.nanoseconds = nanoseconds
        self.zone = zone

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Time) and self.nanoseconds == other.nanoseconds

    def __hash__(self) -> int:
        return hash(self.nanoseconds)

    def __lt__(self, other: Time) -> bool:
        return self.nanoseconds < other.nanoseconds

    def __le__(self, other: Time) -> bool:
        return self.nanoseconds <= other.nanoseconds

    @property
    def seconds(self) -> int:
        """Whole seconds since 1970."""
        return self.nanoseconds // SECOND

    def plus(self, nanoseconds: int) -> Time:
        """Return the moment so much later."""
        return Time(self.nanoseconds + nanoseconds, self.zone)

    def offset(self) -> tuple[int, str, bool]:
        """Return what the zone says of this moment."""
        return self.zone.offset(self.seconds)

    def civil(self) -> Civil:
        """Return its date and time of day in its zone."""
        return civil(self.seconds + self.offset()[0])

    def moved(self, years: int, months: int, days: int) -> Time:
        """Return the same time of day on another date."""
        date = self.civil()
        # No calendar has more than 2^62 days: Go's result would be garbage, ours is refused further on.
        day = days_before(date.year + years, date.month + months, date.day) + days
        return at(day * DAY + date.second_of_day, self.nanoseconds % SECOND, self.zone)


def at(local_seconds: int, nanoseconds: int, zone: Zone) -> Time:
    """The moment at which a zone's clock shows so many seconds since its 1970."""
    guess = local_seconds - zone.offset(local_seconds)[0]
    return Time((local_seconds - zone.offset(guess)[0]) * SECOND + nanoseconds, zone)


def _rounded(value: int, unit: int, *, down: bool) -> int:
    if unit <= 0:
        return value
    rest = value % unit if value >= 0 else -(-value % unit)
    if down or 2 * abs(rest) < unit:
        return value - rest
    return value - rest + (unit if value >= 0 else -unit)


def _limited(value: int) -> Duration:
    return Duration(max(-_LARGEST_DURATION - 1, min(_LARGEST_DURATION, value)))


def _time_rounded(moment: Time, unit: int, *, down: bool) -> Time:
    since_year_one = moment.nanoseconds + 62_135_596_800 * SECOND
    return moment.plus(_rounded(since_year_one, unit, down=down) - since_year_one)


def _iso_year(date: Civil) -> int:
    """The year a week belongs to: that of its Thursday."""
    thursday = days_before(date.year, date.month, date.day) + 3 - (date.weekday + 6) % 7
    return civil(thursday * DAY).year


def _compare(a: Any, b: Any) -> int:
    return int(b < a) - int(a < b)


METHODS_OF: dict[type, dict[str, Callable[..., Any]]] = {
    Time: {
        "Year": lambda t: t.civil().year,
        "Month": lambda t: Month(t.civil().month),
        "Day": lambda t: t.civil().day,
        "Hour": lambda t: t.civil().second_of_day // 3600,
        "Minute": lambda t: t.civil().second_of_day // 60 % 60,
        "Second": lambda t: t.civil().second_of_day % 60,
        "Nanosecond": lambda t: t.nanoseconds % SECOND,
        "YearDay": lambda t: t.civil().day_of_year,
        "Weekday": lambda t: Weekday(t.civil().weekday),
        "Unix": lambda t: t.seconds,
        "UnixMilli": lambda t: t.nanoseconds // 1_000_000,
        "UnixMicro": lambda t: t.nanoseconds // 1_000,
        "UnixNano": lambda t: t.nanoseconds,
        "ISOWeek": lambda t: _iso_year(t.civil()),
        "Zone": lambda t: t.offset()[1],
        "Location": lambda t: t.zone,
        "UTC": lambda t: Time(t.nanoseconds, UTC_ZONE),
        "Local": lambda t: Time(t.nanoseconds, LOCAL_ZONE),
        "In": lambda t, zone: Time(t.nanoseconds, zone),
        "Before": lambda t, other: t < other,
        "After": lambda t, other: other < t,
        "Equal": lambda t, other: t == other,
        "Compare": _compare,
        "IsZero": lambda t: t.nanoseconds == -62_135_596_800 * SECOND,
        "IsDST": lambda t: t.offset()[2],
        "Add": lambda t, d: t.plus(int(d)),
        "Sub": lambda t, other: _limited(t.nanoseconds - other.nanoseconds),
        "AddDate": lambda t, years, months, days: t.moved(years, months, days),
        "Truncate": lambda t, d: _time_rounded(t, int(d), down=True),
        "Round": lambda t, d: _time_rounded(t, int(d), down=False),
    },
    Duration: {
        "Hours": lambda d: int(d) / (3600 * SECOND),
        "Minutes": lambda d: int(d) / (60 * SECOND),
        "Seconds": lambda d: int(d) / SECOND,
        "Milliseconds": lambda d: int(int(d) / 1_000_000),
        "Microseconds": lambda d: int(int(d) / 1_000),
        "Nanoseconds": lambda d: int(d),
        "Abs": lambda d: _limited(abs(int(d))),
        "Truncate": lambda d, unit: Duration(_rounded(int(d), int(unit), down=True)),
        "Round": lambda d, unit: _limited(_rounded(int(d), int(unit), down=False)),
        "String": str,
    },
    Zone: {"String": str},
    FixedZone: {"String": str},
    Month: {"String": str},
    Weekday: {"String": str},
}
"""What the methods that `functions.METHODS` names do; `Format` and `String` of times are in `layouts`."""
