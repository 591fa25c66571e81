"""The queue of a webhook in virtual time: order, tries, breaker, overflow, drain, crashes."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest

from pilot._fast.eventbus import EventBus
from pilot.coreapi import InvalidValueError, reset_plugin_health
from pilot.plugins.webhook.body import signature
from pilot.plugins.webhook.delivery import QUEUE_EVENTS, Counters, Delivery
from pilot.testing import run

Outcome = int | Exception


class Receiver:
    """A `Poster` with an answer for each request."""

    def __init__(self, answer: Callable[[int], Outcome]) -> None:
        self.answer = answer
        self.posts: list[tuple[float, dict[str, Any], bytes, Mapping[str, str]]] = []
        self.closed = False
        self.gate = asyncio.Event()
        self.gate.set()

    async def post(self, body: bytes, headers: Mapping[str, str]) -> int:
        self.posts.append((asyncio.get_running_loop().time(), json.loads(body), body, headers))
        outcome = self.answer(len(self.posts))
        await self.gate.wait()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def close(self) -> None:
        self.closed = True

    def trace(self) -> list[tuple[float, int]]:
        """Seconds since the first request, and event numbers."""
        return [(round(time - self.posts[0][0], 2), body["event_id"]) for time, body, *_ in self.posts]


class Rig:
    """A delivery, its bus and its receiver."""

    def __init__(self, answer: Callable[[int], Outcome], secret: bytes = b"") -> None:
        self.bus = EventBus(node_id=7)
        self.receiver = Receiver(answer)
        self.counters = Counters()
        self.delivery = Delivery(
            self.receiver, secret, self.bus, counters=self.counters, clock=asyncio.get_running_loop().time,
            logger=logging.getLogger("pilot.plugin.webhook"),
        )  # fmt: skip

    def publish(self, count: int = 1) -> None:
        for number in range(count):
            self.bus.publish("test.event", {"n": number})

    def figures(self) -> tuple[int, int, int, int]:
        c = self.counters
        return c.delivered, c.failed, c.queue_dropped, c.circuit_skips


@asynccontextmanager
async def rig(answer: Callable[[int], Outcome] | Outcome = 204, secret: bytes = b"") -> AsyncIterator[Rig]:
    made = Rig(answer if callable(answer) else lambda _: answer, secret)
    yield made
    await made.delivery.finish(0)
    assert made.receiver.closed
    assert made.bus.subscriptions == 0


def virtual(test: Callable[[], Any]) -> Callable[[], None]:
    """Runs an asynchronous test in virtual time; as a plain function it is no concern of pytest-asyncio."""

    def wrapper() -> None:
        run(test())

    wrapper.__name__, wrapper.__doc__ = test.__name__, test.__doc__
    return wrapper


@virtual
async def test_events_arrive_in_order_numbered_and_signed() -> None:
    async with rig(secret=b"s") as r:
        r.publish(5)
        await asyncio.sleep(1)
        assert [(body["event_id"], body["data"]["n"]) for _, body, *_ in r.receiver.posts] == [
            (n + 1, n) for n in range(5)
        ]
        for _, body, raw, headers in r.receiver.posts:
            assert (body["event"], body["node_id"]) == ("test.event", 7)
            assert headers == {"X-Pilot-Signature-256": signature(b"s", raw)}
        assert r.figures() == (5, 0, 0, 0)


@virtual
async def test_no_signature_without_a_secret() -> None:
    async with rig() as r:
        r.publish()
        await asyncio.sleep(1)
        assert r.receiver.posts[0][3] == {}


@virtual
async def test_three_tries_then_the_breaker_as_the_official_trace() -> None:
    """At 0, 1 and 3 s; after five such events they are skipped for 30 s, then one more is tried in full."""
    async with rig(500) as r:
        r.publish(8)
        await asyncio.sleep(16)
        expected = [(3.0 * event + second, event + 1) for event in range(5) for second in (0, 1, 3)]
        assert r.receiver.trace() == expected
        assert r.figures() == (0, 5, 0, 3)
        await asyncio.sleep(28.9)  # 44.9 s
        r.publish()
        await asyncio.sleep(0.2)
        assert r.figures() == (0, 5, 0, 4)
        r.publish(2)  # 45.1 s
        await asyncio.sleep(4)
        assert r.receiver.trace()[15:] == [(45.1, 10), (46.1, 10), (48.1, 10)]
        assert r.figures() == (0, 6, 0, 5)


@virtual
async def test_a_success_resets_the_breaker() -> None:
    async with rig(lambda n: 200 if n == 13 else 503) as r:  # the fifth event gets through
        r.publish(9)
        await asyncio.sleep(40)
        assert r.figures() == (1, 8, 0, 0)
    async with rig(lambda n: 503 if n <= 15 else 200) as r:  # the probe gets through
        r.publish(5)
        await asyncio.sleep(46)
        r.publish(3)
        await asyncio.sleep(1)
        assert r.figures() == (3, 5, 0, 0)


@virtual
async def test_a_later_try_succeeds() -> None:
    outcomes: list[Outcome] = [TimeoutError(), ConnectionError("refused"), 200]
    async with rig(lambda n: outcomes[n - 1]) as r:
        r.publish()
        await asyncio.sleep(4)
        assert r.receiver.trace() == [(0, 1), (1, 1), (3, 1)]
        assert len({raw for _, _, raw, _ in r.receiver.posts}) == 1
        assert r.figures() == (1, 0, 0, 0)


@pytest.mark.parametrize("outcome", [301, 307, 400, 404, 429, InvalidValueError("URL cannot target ...")])
def test_refusals_are_not_tried_again_and_not_counted_by_the_breaker(outcome: Outcome) -> None:
    async def scenario() -> None:
        async with rig(outcome) as r:
            r.publish(20)
            await asyncio.sleep(1)
            assert len(r.receiver.posts) == 20
            assert r.figures() == (0, 20, 0, 0)

    run(scenario())


@virtual
async def test_a_full_queue_drops_the_new_and_leaves_a_gap_in_the_numbers() -> None:
    async with rig() as r:
        r.receiver.gate.clear()
        r.publish()
        await asyncio.sleep(1)
        for _ in range(4):  # in portions the bus's own ring holds
            r.publish(500)
            await asyncio.sleep(0.1)
        assert r.figures() == (0, 0, 2000 - QUEUE_EVENTS, 0)
        r.receiver.gate.set()
        await asyncio.sleep(1)
        r.publish()
        await asyncio.sleep(1)
        numbers = [number for _, number in r.receiver.trace()]
        assert numbers == [*range(1, QUEUE_EVENTS + 2), 2002]


@virtual
async def test_a_burst_beyond_the_ring_of_the_bus_is_counted_too() -> None:
    async with rig() as r:
        r.publish(3000)
        await asyncio.sleep(1)
        assert r.figures() == (1024, 0, 3000 - 1024, 0)
        r.publish()
        await asyncio.sleep(1)
        assert r.receiver.trace()[-1][1] == 3001


@virtual
async def test_finish_works_off_the_queue() -> None:
    async with rig() as r:
        r.publish(100)
        await r.delivery.finish(4)
        assert r.figures() == (100, 0, 0, 0)
        r.publish()
        await asyncio.sleep(1)
        assert r.figures() == (100, 0, 0, 0)


@virtual
async def test_finish_is_bounded_and_counts_what_is_left() -> None:
    async with rig(500) as r:
        r.publish(100)
        start = asyncio.get_running_loop().time()
        await r.delivery.finish(4)
        assert asyncio.get_running_loop().time() - start == pytest.approx(4)
        assert r.figures() == (0, 100, 0, 0)


@virtual
async def test_a_cancelled_finish_ends_everything() -> None:
    async with rig(500) as r:
        r.publish(100)
        finishing = asyncio.create_task(r.delivery.finish(100))
        await asyncio.sleep(0.5)
        finishing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await finishing
        assert r.receiver.closed
        assert r.figures() == (0, 100, 0, 0)


@virtual
async def test_an_event_without_a_body_is_counted_and_logged() -> None:
    async with rig() as r:
        endless: list[Any] = []
        endless.append(endless)
        r.bus.publish("test.endless", {"k": endless})
        r.publish()
        await asyncio.sleep(1)
        assert r.receiver.trace() == [(0, 2)]
        assert r.figures() == (1, 1, 0, 0)


@virtual
async def test_a_crash_costs_one_event_and_does_not_spin() -> None:
    reset_plugin_health("webhook")

    def answer(number: int) -> Outcome:
        return ZeroDivisionError("crash") if number <= 2 else 200

    async with rig(answer) as r:
        r.publish(3)
        await asyncio.sleep(10)
        trace = r.receiver.trace()
        assert trace[:3] == [(0, 1), (1, 2), (2, 3)]
        assert [body["event"] for _, body, *_ in r.receiver.posts[3:]] == ["plugin.webhook.panic"] * 2
        assert r.figures() == (3, 2, 0, 0)
    reset_plugin_health("webhook")


@virtual
async def test_nothing_secret_is_shown() -> None:
    async with rig(secret=b"hunter2") as r:
        assert "hunter2" not in repr(r.delivery)
