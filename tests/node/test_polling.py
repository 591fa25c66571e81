"""Adaptive busy polling, counted on a fake loop and a fake clock, and between whole nodes on both loops."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

import pytest

from pilot.node import ECHO_PORT
from pilot.node.polling import BULK_BYTES, FIRST_RUN, LONGEST_RUN, SLEEP_FACTOR, BusyPoll
from tests.node.conftest import StartNode, eventually

LIMIT = 2**-14
STEP = LIMIT / 8  # no rounding in sums of these
"""What a turn of the loop takes."""
QUICK = 4 * STEP


class FakeHandle:
    def __init__(self, loop: FakeLoop) -> None:
        self.loop = loop

    def cancel(self) -> None:
        self.loop.scheduled = None


class FakeLoop:
    """Runs at most one scheduled callback per turn, which takes a step of the clock; the port and the clock as well."""

    def __init__(self) -> None:
        self.now = 1024.0
        self.scheduled: Callable[[], None] | None = None
        self.turns = 0  # turns that did not sleep
        self.traffic_bytes = 0
        self.poll = BusyPoll(self, self, lambda: self.now, LIMIT)  # type: ignore[arg-type]

    def call_soon(self, callback: Callable[[], None]) -> FakeHandle:
        assert self.scheduled is None
        self.scheduled = callback
        return FakeHandle(self)

    def on_readable(self) -> None:
        self.traffic_bytes += self.size

    def turn(self) -> bool:
        """One turn without a packet; False when the loop would sleep."""
        callback, self.scheduled = self.scheduled, None
        if callback is None:
            return False
        self.now += STEP
        self.turns += 1
        callback()
        return True

    def batch(self, after: float, size: int = 100) -> None:
        """A batch `after` seconds: the loop turns until then if it is kept awake, or sleeps."""
        due = self.now + after
        while self.now < due - STEP / 2 and self.turn():
            pass
        self.now = max(self.now, due)
        self.size = size
        self.poll.on_readable()

    def quiet(self) -> int:
        """Turns until the loop sleeps."""
        before = self.turns
        while self.turn():
            pass
        return self.turns - before


def test_a_quick_exchange_is_polled_for_and_quiet_ends_it() -> None:
    loop = FakeLoop()
    loop.batch(1.0)
    for number in range(FIRST_RUN):
        assert not loop.poll.polling
        assert loop.turns == 0
        loop.batch(QUICK)
        assert loop.poll.polling == (number == FIRST_RUN - 1)
    for _ in range(100):
        loop.batch(QUICK)
        assert loop.poll.polling
    assert loop.turns == 400
    assert loop.quiet() == LIMIT / STEP
    assert not loop.poll.polling
    assert loop.turn() is False


@pytest.mark.parametrize("pause", [SLEEP_FACTOR * LIMIT + STEP, 0.001, 1.0])
def test_sparse_traffic_costs_nothing(pause: float) -> None:
    loop = FakeLoop()
    for _ in range(1000):
        loop.batch(pause)
    assert loop.turns == 0


def test_bulk_costs_nothing_and_ends_polling() -> None:
    loop = FakeLoop()
    for _ in range(1000):
        loop.batch(QUICK, BULK_BYTES + 1)
    assert loop.turns == 0
    for _ in range(10):
        loop.batch(QUICK)
    assert loop.poll.polling
    loop.batch(QUICK, BULK_BYTES + 1)
    assert not loop.poll.polling
    assert loop.turn() is False


def test_polling_in_vain_is_given_up_for_ever_longer() -> None:
    """A peer on the same core answers only once this end sleeps: quick enough to be tried, never while polled for."""
    loop = FakeLoop()
    tries = []
    for number in range(20_000):
        loop.batch(2 * LIMIT)
        if loop.poll.polling:
            tries.append(number)
            assert loop.quiet() == LIMIT / STEP
    apart = [b - a for a, b in itertools.pairwise(tries)]
    assert apart == sorted(apart)
    assert apart[0] == 2 * FIRST_RUN
    assert apart[-1] == LONGEST_RUN
    assert len(tries) < 30


def test_success_brings_the_tries_back() -> None:
    loop = FakeLoop()
    for _ in range(2000):
        loop.batch(2 * LIMIT)
    for _ in range(3000):
        loop.batch(QUICK)
    assert loop.poll.polling
    loop.quiet()
    turns = loop.turns
    loop.batch(1.0)
    for _ in range(2 * FIRST_RUN + 1):
        loop.batch(QUICK)
    assert loop.turns > turns


def test_stopped_it_schedules_nothing() -> None:
    loop = FakeLoop()
    for _ in range(10):
        loop.batch(QUICK)
    loop.poll.stop()
    loop.poll.stop()
    assert loop.scheduled is None


async def exchange(start_node: StartNode, **settings: Any) -> None:
    alice, _ = await start_node("alice", **settings), await start_node("bob", **settings)
    async with await alice.dial("bob", ECHO_PORT) as stream:
        for _ in range(300):
            await stream.write(b"ping")
            assert await stream.readexactly(4) == b"ping"


@pytest.fixture
def polls(monkeypatch: pytest.MonkeyPatch) -> list[BusyPoll]:
    """One entry for each turn of a loop that was kept awake."""
    calls: list[BusyPoll] = []
    stay_awake = BusyPoll._stay_awake

    def counted(poll: BusyPoll) -> None:
        calls.append(poll)
        stay_awake(poll)

    monkeypatch.setattr(BusyPoll, "_stay_awake", counted)
    return calls


async def test_nodes_poll_during_an_exchange_and_not_when_idle(start_node: StartNode, polls: list[BusyPoll]) -> None:
    # So long that no busy machine makes an exchange look sparse.
    await exchange(start_node, busy_poll_us=10_000)
    assert polls
    await eventually(lambda: not any(poll.polling for poll in polls))
    await asyncio.sleep(0.05)  # whatever keepalives and closing have brought
    await eventually(lambda: not any(poll.polling for poll in polls))
    before = len(polls)
    for _ in range(100):
        await asyncio.sleep(0)
    assert len(polls) == before


async def test_0_switches_polling_off(start_node: StartNode, polls: list[BusyPoll]) -> None:
    await exchange(start_node, busy_poll_us=0)
    assert polls == []
