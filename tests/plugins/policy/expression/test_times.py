"""Durations, times, zones and layouts, as Go has them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot.plugins.policy.expression.durations import format_duration, parse_duration_untrusted
from pilot.plugins.policy.expression.layouts import RFC3339_NANO, format_time, parse_time_untrusted
from pilot.plugins.policy.expression.times import SECOND, UTC_ZONE, Duration, Time, civil, days_before, zone_untrusted
from tests.plugins.policy.expression.common import outcome


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("0", 0),
        ("5s", 5 * SECOND),
        ("-5s", -5 * SECOND),
        ("+1.5h", 5400 * SECOND),
        ("1h30m", 5400 * SECOND),
        ("500ms", SECOND // 2),
        ("1us2ns", 1002),
        ("1\u00b5s", 1000),
        ("1\u03bcs", 1000),
        (".5s", SECOND // 2),
        ("1.s", SECOND),
        ("2562047h47m16.854775807s", (1 << 63) - 1),
        ("-2562047h47m16.854775808s", -(1 << 63)),
        ("0.3333333333333333333h", 1_200_000_000_000),
    ],
)
def test_durations(text: str, nanoseconds: int) -> None:
    assert parse_duration_untrusted(text) == nanoseconds


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", 'time: invalid duration ""'),
        ("abc", 'time: invalid duration "abc"'),
        ("1", 'time: missing unit in duration "1"'),
        ("1d", 'time: unknown unit "d" in duration "1d"'),
        (".s", 'time: invalid duration ".s"'),
        ("-", 'time: invalid duration "-"'),
        ("1h-5m", 'time: unknown unit "h-" in duration "1h-5m"'),
        ("2562047h47m16.854775808s", "time: invalid duration"),
        ("99999999999999999999s", "time: invalid duration"),
        ("é", 'time: invalid duration "\\\\xc3\\\\xa9"'),
        ("1" * 300, "time: invalid duration"),
    ],
)
def test_bad_durations(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        parse_duration_untrusted(text)


@given(st.integers(-(1 << 63), (1 << 63) - 1))
def test_a_duration_shown_is_read_again(nanoseconds: int) -> None:
    assert parse_duration_untrusted(format_duration(nanoseconds)) == nanoseconds
    assert str(Duration(nanoseconds)) == format_duration(nanoseconds)


@given(st.datetimes(datetime(1, 1, 1), datetime(9999, 12, 30)))
def test_the_calendar(moment: datetime) -> None:
    seconds = int((moment - datetime(1970, 1, 1)) / timedelta(seconds=1) // 1)
    seconds = (moment.date() - datetime(1970, 1, 1).date()).days * 86400 + moment.hour * 3600 + moment.minute * 60
    seconds += moment.second
    date = civil(seconds)
    assert (date.year, date.month, date.day) == (moment.year, moment.month, moment.day)
    assert date.weekday == moment.isoweekday() % 7
    assert date.day_of_year == moment.timetuple().tm_yday
    assert days_before(date.year, date.month, date.day) * 86400 + date.second_of_day == seconds


@given(st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30)), st.integers(0, SECOND - 1))
def test_a_time_shown_is_read_again(moment: datetime, nanoseconds: int) -> None:
    seconds = (moment.date() - datetime(1970, 1, 1).date()).days * 86400 + moment.hour * 3600
    time = Time(seconds * SECOND + nanoseconds, UTC_ZONE)
    shown = format_time(time, RFC3339_NANO)
    assert parse_time_untrusted(shown, "2006-01-02T15:04:05Z07:00") == time
    if not nanoseconds:
        assert shown == datetime(*moment.timetuple()[:4], tzinfo=UTC).strftime("%Y-%m-%dT%H:%M:%SZ").rjust(20, "0")


@pytest.mark.parametrize(
    "text",
    [
        'date("2024-01-02").Format("Mon Jan _2 15:04:05.000 -0700 MST") == "Tue Jan  2 00:00:00.000 +0000 UTC"',
        'date("2024-07-02", "2006-01-02", "Europe/Berlin").Format("15:04 MST -07:00") == "00:00 CEST +02:00"',
        'date("3:04PM", "3:04PM").Hour() == 15',
        'date("02 Jan 24", "02 Jan 06").Month().String() == "January"',
        'date("2024-01-31").AddDate(0, 1, 0).Format("2006-01-02") == "2024-03-02"',
        'date("2024-12-30").ISOWeek() == 2025 && date("2024-01-02").YearDay() == 2',
        'date("2024-03-31T00:30:00+01:00").Unix() == 1711841400',
        'date("2024-01-02").Weekday().String() == "Tuesday"',
        '(date("2024-01-02") - date("2024-01-01")).Hours() == 24',
        'date("2024-01-02") + ::duration("36h") == date("2024-01-03 12:00:00")',
        'date("2024-01-02") > date("2024-01-01") && date("2024-01-02").After(date("2024-01-01"))',
        'string(date("2024-01-02")) == "2024-01-02 00:00:00 +0000 UTC"',
        'string(::duration("90m")) == "1h30m0s" && ::duration("1h") * 2 == ::duration("2h")',
        'date("2024-01-02").In(timezone("Asia/Tokyo")).Hour() == 9',
        'date("2024-06-01").In(timezone("Europe/Berlin")).IsDST()',
        'date(timezone("Europe/Berlin"), "2024-06-01").UTC().Hour() == 22',
        'date("2024-01-02T03:04:05Z").Truncate(::duration("1h")).Minute() == 0',
        'now().Location().String() == "Local" && now(timezone("UTC")).Location().String() == "UTC"',
    ],
)
def test_times_in_expressions(text: str) -> None:
    assert outcome(text) is True


def test_zones_that_do_not_exist() -> None:
    for name in ("Nope", "../../etc/passwd", "/etc/passwd", "Europe", "x" * 5000, "\0", "Europe/\ud800"):
        with pytest.raises(ValueError, match=r"^unknown time zone"):
            zone_untrusted(name)
