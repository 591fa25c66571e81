"""Rate limits and timers: right, and bounded."""

from __future__ import annotations

import math

from pilot.tunnel.limits import Spacing, TokenBucket, TokenBuckets
from pilot.tunnel.timers import STALE_ENTRIES, Timers


def test_a_bucket_holds_its_burst_and_refills() -> None:
    bucket = TokenBucket(rate=5, burst=5, now=0.0)
    assert [bucket.take(0.0) for _ in range(7)] == [True] * 5 + [False] * 2
    assert not bucket.take(0.1)
    assert bucket.take(0.3)
    assert not bucket.take(0.3)
    assert [bucket.take(100.0) for _ in range(6)] == [True] * 5 + [False]


def test_a_clock_that_goes_back_gives_nothing() -> None:
    bucket = TokenBucket(rate=5, burst=1, now=10.0)
    assert bucket.take(10.0)
    assert not bucket.take(5.0)


def test_full_buckets_refuse_strangers_until_others_are_idle() -> None:
    buckets = TokenBuckets(rate=1, burst=1, cap=3, idle=10)
    assert all(buckets.take(key, 0.0) for key in range(3))
    assert not buckets.take("new", 0.0)
    assert buckets.take(0, 5.0)
    assert not buckets.take("new", 9.0)
    assert buckets.take("new", 10.5)
    assert len(buckets) == 2


def test_spacing() -> None:
    spacing = Spacing(3.0, cap=2)
    assert spacing.allow("a", 0.0)
    assert not spacing.allow("a", 2.9)
    assert spacing.held("a", 2.9)
    assert spacing.allow("b", 1.0)
    assert not spacing.allow("c", 2.0)
    assert spacing.allow("c", 3.0)
    assert len(spacing) == 2
    spacing.lift("c")
    assert spacing.allow("c", 3.1)


def test_timers_run_in_order_and_can_be_replaced() -> None:
    announced: list[float] = []
    timers = Timers(announced.append)
    ran: list[str] = []
    timers.set("b", 2.0, lambda now: ran.append("b"))
    timers.set("a", 1.0, lambda now: ran.append("a"))
    timers.set("c", 3.0, lambda now: ran.append("c"))
    timers.set("b", 4.0, lambda now: ran.append("late b"))
    timers.cancel("c")
    assert announced == [2.0, 1.0]
    timers.run(1.0, 10)
    assert announced[-1] == 4.0
    timers.run(5.0, 10)
    assert ran == ["a", "late b"]
    assert announced[-1] == math.inf
    assert len(timers) == 0


def test_a_run_is_limited_and_says_what_is_left() -> None:
    announced: list[float] = []
    timers = Timers(announced.append)
    ran: list[int] = []
    for number in range(10):
        timers.set(number, 1.0, lambda now, number=number: ran.append(number))
    timers.run(1.0, 4)
    assert ran == [0, 1, 2, 3]
    assert announced[-1] == 1.0
    timers.run(1.0, 100)
    assert ran == list(range(10))


def test_a_timer_may_set_itself_again() -> None:
    timers = Timers(lambda deadline: None)
    ran: list[float] = []

    def tick(now: float) -> None:
        ran.append(now)
        timers.set("tick", now + 1, tick)

    timers.set("tick", 1.0, tick)
    for now in range(5):
        timers.run(float(now), 10)
    assert ran == [1.0, 2.0, 3.0, 4.0]
    assert "tick" in timers
    timers.clear()
    assert "tick" not in timers


def test_replaced_timers_do_not_pile_up() -> None:
    timers = Timers(lambda deadline: None)
    for number in range(10_000):
        timers.set("one", 1000.0 - number / 100, lambda now: None)
    assert len(timers._heap) <= 2 + STALE_ENTRIES
