"""The event bus: patterns, delivery, drops, limits, waiting on real loops, and what is left behind (ground floor)."""

from __future__ import annotations

import asyncio
import copy
import enum
import gc
import json
import pickle
import re
import threading
import weakref
from collections import UserDict
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import uvloop
from hypothesis import example, given
from hypothesis import strategies as st

from pilot._fast.errors import BusyError, ClosedError, InvalidValueError
from pilot._fast.eventbus import CACHED_TOPICS, CAPACITY, STRANGERS_PER_SECOND, Event, EventBus, Subscription

VECTORS = json.loads((Path(__file__).parent / "vectors" / "services.json").read_text())["event_bus_patterns"]

# 1.18.0 knows `*` only alone and in `x.*`. Here it is any run of characters wherever it stands (DESIGN section 5).
BEYOND_THE_OFFICIAL = [["tun*", "tunnel.x", False]]


class Clock:
    """A clock that is set by hand."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def reference(pattern: str, topic: str) -> bool:
    """The definition: `*` is any run of characters, nothing else is special, "" is every topic."""
    return re.fullmatch(".*".join(map(re.escape, (pattern or "*").split("*"))), topic, re.DOTALL) is not None


def hears(pattern: str, topic: str) -> bool:
    bus = EventBus()
    with bus.subscribe(pattern) as events:
        bus.publish(topic, {})
        return events.waiting == 1


def numbers(events: list[Event]) -> list[Any]:
    return [event.payload["n"] for event in events]


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Any:
    """Runs a coroutine on a fresh loop of either kind."""

    def runner(main: Any) -> Any:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop if request.param == "uvloop" else None) as loop:
            return loop.run(main)

    return runner


class TestPatterns:
    @pytest.mark.parametrize(
        ("pattern", "topic", "match"), [v for v in VECTORS["cases"] if v not in BEYOND_THE_OFFICIAL]
    )
    def test_vectors(self, pattern: str, topic: str, match: bool) -> None:
        assert hears(pattern, topic) is match

    @pytest.mark.parametrize(("pattern", "topic", "official"), BEYOND_THE_OFFICIAL)
    def test_a_star_may_stand_anywhere(self, pattern: str, topic: str, official: bool) -> None:
        assert [pattern, topic, official] in VECTORS["cases"]
        assert hears(pattern, topic) is not official

    @pytest.mark.parametrize(
        ("pattern", "topic", "match"),
        [
            ("tunnel.*", "tunnel.established", True),
            ("tunnel.*", "security.nonce_replay", False),
            ("tunnel.*", "tunnel.", True),
            ("*.panic", "plugin.webhook.panic", True),
            ("*.panic", ".panic", True),
            ("*.panic", "panic", False),
            ("plugin.*.panic", "plugin.a.b.panic", True),
            ("plugin.*.panic", "plugin.panic", False),
            ("a*a", "a", False),
            ("a*a", "aa", True),
            ("*ab*ab*", "abab", True),
            ("*ab*ab*", "aab", False),
            ("ab*ab", "abxab", True),
            ("*aa*a", "aa", False),
            ("**", "", True),
            ("", "", True),
            ("x", "", False),
            ("a?c", "abc", False),
            ("[ab]", "a", False),
            ("a?c*", "a?cd", True),
            ("a\\*", "a\\bc", True),
            ("a\n*", "a\nb\n", True),
            ("ä*", "äöü", True),
            ("*ü", "äöü", True),
            ("*\udc80*", "x\udc80y", True),
            ("\udc80", "\udc80", True),
        ],
    )
    def test_more(self, pattern: str, topic: str, match: bool) -> None:
        assert reference(pattern, topic) is match
        assert hears(pattern, topic) is match

    @given(
        st.lists(st.text(alphabet="ab.*é\u20ac\U0001f600\udc80", max_size=8), min_size=1, max_size=30),
        st.lists(st.text(alphabet="ab.é\u20ac\U0001f600\udc80", max_size=12), max_size=20),
        st.data(),
    )
    @example(["*", "", "a*", "*a", "a*a", "a"], ["", "a", "aa"], None)
    def test_many_at_once_against_the_definition(self, patterns: list[str], topics: list[str], data: Any) -> None:
        bus = EventBus()
        subscriptions = [bus.subscribe(pattern) for pattern in patterns]
        for topic in topics:
            bus.publish(topic, {})
            expected = [reference(pattern, topic) for pattern in patterns]
            assert [bool(events.get_all()) for events in subscriptions] == expected
            assert bus.wanted(topic) is any(expected)
        if data is None:
            return
        gone = data.draw(st.sets(st.sampled_from(range(len(patterns)))))
        for i in gone:
            subscriptions[i].close()
        for topic in topics:
            bus.publish(topic, {})
            expected = [reference(pattern, topic) and i not in gone for i, pattern in enumerate(patterns)]
            assert [bool(events.get_all()) for events in subscriptions] == expected

    def test_a_pattern_that_invites_backtracking(self) -> None:
        assert not hears("*a" * 2000 + "*b", "a" * 100_000)

    def test_not_text(self) -> None:
        bus = EventBus()
        with pytest.raises(TypeError, match="bytes"):
            bus.subscribe(b"x")  # type: ignore[arg-type]
        with bus.subscribe("*"), pytest.raises(TypeError, match="int"):
            bus.publish(3, {})  # type: ignore[arg-type]

    def test_members_of_a_str_enum_are_text(self) -> None:
        topic = enum.StrEnum("topic", {"JOIN": "network.joined"})
        bus = EventBus()
        with bus.subscribe(topic.JOIN) as exact, bus.subscribe("network.*") as glob:
            bus.publish(topic.JOIN, {})
            bus.publish("network.joined", {})
            assert exact.pattern == "network.joined"
            assert [type(event.topic) for event in exact.get_all() + glob.get_all()] == [str] * 4


class TestEvents:
    def test_what_an_event_says(self) -> None:
        bus = EventBus(node_id=7, wall=Clock(1_700_000_000.25))
        with bus.subscribe() as events:
            bus.publish("tunnel.established", {"peer_node_id": 9})
            event = events.get_nowait()
        assert event is not None
        assert (event.topic, event.node_id) == ("tunnel.established", 7)
        assert event.time == datetime(2023, 11, 14, 22, 13, 20, 250_000, tzinfo=UTC)
        assert event.time.tzinfo is UTC
        assert event.payload == {"peer_node_id": 9}
        match event:
            case Event(topic, node, _, {"peer_node_id": peer}):
                assert (topic, node, peer) == ("tunnel.established", 7, 9)

    def test_the_systems_clock_is_the_default(self) -> None:
        bus = EventBus()
        with bus.subscribe() as events:
            before = datetime.now(UTC)
            bus.publish("x", {})
            after = datetime.now(UTC)
            event = events.get_nowait()
        assert event is not None
        slack = timedelta(microseconds=1)
        assert before - slack <= event.time <= after + slack

    def test_the_node_id_may_be_learned_later(self) -> None:
        bus = EventBus()
        with bus.subscribe() as events:
            bus.publish("x", {})
            bus.node_id = 0xFFFFFFFF
            bus.publish("x", {})
            assert [event.node_id for event in events.get_all()] == [0, 0xFFFFFFFF]

    def test_immutable(self) -> None:
        event = Event("x", 1, datetime.now(UTC), {"a": 1})
        for name in ("topic", "node_id", "time", "payload", "more"):
            with pytest.raises(AttributeError):
                setattr(event, name, 1)
        with pytest.raises(TypeError):
            event.payload["a"] = 2  # type: ignore[index]
        event.__init__("y", 2, datetime.now(UTC), {})  # type: ignore[misc]
        assert (event.topic, event.payload) == ("x", {"a": 1})

    @pytest.mark.parametrize("kind", [dict, UserDict])
    def test_the_publishers_mapping_stays_its_own(self, kind: Any) -> None:
        bus, payload = EventBus(), kind(a=1)
        with bus.subscribe() as events:
            bus.publish("x", payload)
            payload["a"] = 2
            event = events.get_nowait()
        assert event is not None
        assert event.payload == {"a": 1}

    def test_subscribers_share_one_event(self) -> None:
        bus = EventBus()
        with bus.subscribe("x") as one, bus.subscribe("*") as other:
            bus.publish("x", {})
            assert one.get_nowait() is other.get_nowait()

    def test_equality_hash_and_copies(self) -> None:
        now = datetime.now(UTC)
        event = Event("x", 1, now, {"a": 1})
        elsewhere = now.astimezone(timezone(timedelta(hours=2)))
        assert event == Event("x", 1, elsewhere, {"a": 1})
        assert hash(event) == hash(Event("x", 1, elsewhere, {"a": 1}))
        assert event != Event("y", 1, now, {"a": 1})
        assert event != Event("x", 2, now, {"a": 1})
        assert event != Event("x", 1, now + timedelta(1), {"a": 1})
        assert event != Event("x", 1, now, {"a": 2})
        assert event != ("x", 1, now, {"a": 1})
        assert copy.copy(event) == pickle.loads(pickle.dumps(event)) == event
        assert repr(event).startswith("Event(topic='x', node_id=1, time='20")

    def test_refused_times_and_fields(self) -> None:
        with pytest.raises(InvalidValueError, match="naive"):
            Event("x", 1, datetime(2024, 1, 1), {})
        with pytest.raises(TypeError):
            Event("x", 1, datetime.now(UTC))  # type: ignore[call-arg]


class TestDelivery:
    def test_in_the_order_of_publishing(self) -> None:
        bus = EventBus()
        with bus.subscribe("a.*") as events:
            for n in range(3000):
                bus.publish(f"a.{n % 7}", {"n": n})
                if n % 500 == 499:
                    assert numbers(events.get_all()) == list(range(n - 499, n + 1))

    @given(st.integers(1, 20), st.lists(st.one_of(st.none(), st.integers(1, 30)), max_size=40))
    def test_a_ring_is_a_bounded_queue(self, capacity: int, steps: list[int | None]) -> None:
        bus = EventBus()
        events = bus.subscribe("*", capacity=capacity)
        model: list[int] = []
        published = dropped = 0
        for step in steps:
            if step is None:
                event = events.get_nowait()
                assert (event.payload["n"] if event else None) == (model.pop(0) if model else None)
                continue
            for _ in range(step):
                bus.publish("x", {"n": published})
                if len(model) < capacity:
                    model.append(published)
                else:
                    dropped += 1
                published += 1
            assert (events.waiting, events.dropped) == (len(model), dropped)
        assert numbers(events.get_all()) == model
        events.close()

    def test_a_slow_subscriber_loses_events_and_others_do_not(self) -> None:
        bus = EventBus()
        with bus.subscribe() as slow, bus.subscribe() as fast:
            seen = []
            for n in range(CAPACITY + 500):
                bus.publish("x", {"n": n})
                seen += numbers(fast.get_all())
            assert seen == list(range(CAPACITY + 500))
            assert (slow.waiting, slow.dropped, slow.capacity, fast.dropped) == (1024, 500, 1024, 0)
            assert numbers(slow.get_all()) == list(range(CAPACITY))
            bus.publish("x", {"n": -1})
            assert numbers(slow.get_all()) == [-1]

    def test_the_bus_counts_all_losses_those_of_ended_subscriptions_too(self) -> None:
        bus = EventBus()
        assert bus.dropped == 0
        with bus.subscribe("a", capacity=2) as one, bus.subscribe("*", capacity=5):
            for n in range(10):
                bus.publish("a", {"n": n})
            assert bus.dropped == 8 + 5
            one.close()
            assert bus.dropped == 13
            bus.publish("a", {})
            assert bus.dropped == 14
        bus.publish("a", {})
        bus.close()
        assert bus.dropped == 14

    def test_a_subscription_hears_nothing_from_before_or_after(self) -> None:
        bus = EventBus()
        bus.publish("x", {"n": 0})
        with bus.subscribe("x") as events:
            bus.publish("x", {"n": 1})
        bus.publish("x", {"n": 2})
        assert numbers(events.get_all()) == [1]
        assert events.get_nowait() is None

    def test_new_and_closed_subscriptions_count_for_known_topics_too(self) -> None:
        bus = EventBus()
        with bus.subscribe("a.*") as first:
            bus.publish("a.b", {})
            with bus.subscribe("*.b") as second:
                bus.publish("a.b", {})
                assert (first.waiting, second.waiting) == (2, 1)
            bus.publish("a.b", {})
            assert (first.waiting, second.waiting) == (3, 1)

    def test_more_topics_than_are_remembered(self) -> None:
        bus = EventBus()
        with bus.subscribe("t.*7") as events, bus.subscribe("t.17") as exact:
            for _ in range(2):
                for n in range(2 * CACHED_TOPICS):
                    bus.publish(f"t.{n}", {})
                    bus.publish("t.17", {})
                    assert events.waiting == 1 + (n % 10 == 7)
                    events.get_all()
            assert exact.waiting + exact.dropped == 2 * 2 * CACHED_TOPICS + 2

    def test_very_long_topics(self) -> None:
        bus = EventBus()
        with bus.subscribe("x*z") as events:
            for _ in range(3):
                bus.publish("x" + "y" * 100_000 + "z", {})
            assert events.waiting == 3

    def test_nothing_is_built_for_nobody(self) -> None:
        class Payload(dict[str, object]):
            def keys(self) -> Any:
                raise AssertionError("somebody looked")

        def wall() -> float:
            raise AssertionError("somebody asked for the time")

        bus = EventBus(wall=wall)
        bus.publish("x", Payload(a=1))
        with bus.subscribe("y") as events:
            bus.publish("x", Payload(a=1))
            assert not bus.wanted("x")
            assert bus.wanted("y")
            with pytest.raises(AssertionError):
                bus.publish("y", Payload(a=1))
            assert events.waiting == 0

    @pytest.mark.parametrize("capacity", [0, -1])
    def test_refused_capacity(self, capacity: int) -> None:
        bus = EventBus()
        with pytest.raises(InvalidValueError, match=str(capacity)):
            bus.subscribe(capacity=capacity)
        assert bus.subscriptions == 0


class TestLimits:
    def test_at_most_100_in_any_second(self) -> None:
        clock = Clock(50.0)
        bus = EventBus(clock=clock)
        bus.limit("security.nonce_replay")
        with bus.subscribe("security.*", capacity=10_000) as events:
            times = []
            for step in range(4000):
                clock.now = 50.0 + step / 1000
                bus.publish("security.nonce_replay", {})
                times += [clock.now] * len(events.get_all())
        assert len(times) == 4 * STRANGERS_PER_SECOND == 400
        assert all(later - earlier >= 1.0 for earlier, later in zip(times, times[STRANGERS_PER_SECOND:], strict=False))
        assert bus.suppressed == {"security.nonce_replay": 3600}

    def test_other_topics_are_not_limited(self) -> None:
        bus = EventBus(clock=Clock(0.0))
        bus.limit("a", "b")
        with bus.subscribe("*") as events:
            for _ in range(150):
                for topic in ("a", "b", "c"):
                    bus.publish(topic, {})
            topics = [event.topic for event in events.get_all()]
        assert {topic: topics.count(topic) for topic in "abc"} == {"a": 100, "b": 100, "c": 150}
        assert bus.suppressed == {"a": 50, "b": 50}

    def test_a_limit_outlives_the_topic_cache_and_a_second_naming(self) -> None:
        bus = EventBus(clock=Clock(0.0))
        with bus.subscribe("*") as events:
            bus.publish("a", {})
            bus.limit("a")
            for _ in range(STRANGERS_PER_SECOND):
                bus.publish("a", {})
            bus.limit("a")
            for n in range(2 * CACHED_TOPICS):
                bus.publish(f"t.{n}", {})
            events.get_all()
            bus.publish("a", {})
            assert events.waiting == 0

    def test_the_systems_clock_is_the_default(self) -> None:
        bus = EventBus()
        bus.limit("a")
        with bus.subscribe("a") as events:
            for _ in range(2 * STRANGERS_PER_SECOND):
                bus.publish("a", {})
            assert events.waiting + bus.suppressed["a"] == 200
            assert events.waiting >= STRANGERS_PER_SECOND


class TestWaiting:
    def test_a_loop_reads_what_was_and_what_comes(self, run: Any) -> None:
        async def main() -> None:
            bus, seen = EventBus(), []
            events = bus.subscribe("x")
            bus.publish("x", {"n": 0})

            async def read() -> None:
                async for event in events:
                    seen.append(event.payload["n"])

            reader = asyncio.create_task(read())
            for n in range(1, 6):
                bus.publish("x", {"n": n})
                await asyncio.sleep(0)
            bus.publish("x", {"n": 6})
            events.close()
            await reader
            assert seen == list(range(7))

        run(main())

    def test_one_wake_up_for_a_batch(self, run: Any) -> None:
        async def main() -> None:
            bus = EventBus()
            loop = asyncio.get_running_loop()
            wakes = []

            class Counted(asyncio.Future[None]):
                def set_result(self, result: None) -> None:
                    wakes.append(result)
                    super().set_result(result)

            with bus.subscribe("x") as events:
                waiting = asyncio.create_task(anext(events))  # type: ignore[arg-type]
                original, loop.create_future = loop.create_future, lambda: Counted(loop=loop)  # type: ignore[method-assign]
                await asyncio.sleep(0)
                loop.create_future = original  # type: ignore[method-assign]
                for n in range(100):
                    bus.publish("x", {"n": n})
                assert (await waiting).payload["n"] == 0
                assert events.waiting == 99
            assert len(wakes) == 1

        run(main())

    def test_closing_ends_a_loop_that_waits(self, run: Any) -> None:
        async def main() -> None:
            bus = EventBus()
            events = bus.subscribe("x")

            async def read() -> list[Any]:
                return [event.payload["n"] async for event in events]

            reader = asyncio.create_task(read())
            await asyncio.sleep(0)
            bus.publish("x", {"n": 1})
            events.close()
            events.close()
            bus.publish("x", {"n": 2})
            assert await reader == [1]
            with pytest.raises(StopAsyncIteration):
                await anext(events)

        run(main())

    def test_closing_inside_the_loop_delivers_what_it_holds(self, run: Any) -> None:
        async def main() -> None:
            bus = EventBus()
            events = bus.subscribe("x")
            for n in range(4):
                bus.publish("x", {"n": n})
            seen = []
            async for event in events:
                seen.append(event.payload["n"])
                events.close()
                bus.publish("x", {"n": 9})
            assert seen == [0, 1, 2, 3]

        run(main())

    def test_publishing_from_a_subscriber(self, run: Any) -> None:
        async def main() -> None:
            bus = EventBus()
            with bus.subscribe("count.*") as events:
                bus.publish("count.0", {"n": 0})
                async for event in events:
                    n = event.payload["n"] + 1  # type: ignore[operator]
                    if n == 50:
                        break
                    bus.publish(f"count.{n}", {"n": n})
                    with bus.subscribe("count.*") as inner:
                        bus.publish("count.inner", {"n": 49})
                        assert inner.waiting == 1
                    if n > 3:
                        events.get_nowait()
                assert event.topic.startswith("count.")

        run(main())

    def test_a_cancelled_wait_loses_nothing(self, run: Any) -> None:
        async def main() -> None:
            bus, seen = EventBus(), []
            with bus.subscribe("x") as events:

                async def read() -> None:
                    async for event in events:
                        seen.append(event.payload["n"])

                for n in range(30):
                    reader = asyncio.create_task(read())
                    await asyncio.sleep(0)
                    if n % 3 == 0:  # cancelled while waiting
                        reader.cancel()
                        bus.publish("x", {"n": n})
                    elif n % 3 == 1:  # cancelled when woken, but not yet running
                        bus.publish("x", {"n": n})
                        reader.cancel()
                    else:  # cancelled after it has run
                        bus.publish("x", {"n": n})
                        await asyncio.sleep(0)
                        await asyncio.sleep(0)
                        reader.cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await reader
                seen += numbers(events.get_all())
            assert seen == list(range(30))

        run(main())

    def test_timeouts_lose_nothing(self, run: Any) -> None:
        async def main() -> None:
            bus = EventBus()
            with bus.subscribe("x") as events:
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.001):
                        await anext(events)
                bus.publish("x", {"n": 1})
                event = await asyncio.wait_for(anext(events), 5)
                assert event.payload["n"] == 1

        run(main())

    def test_two_waiting_tasks_are_an_error(self, run: Any) -> None:
        async def main() -> None:
            bus = EventBus()
            with bus.subscribe("x") as events:
                first = asyncio.create_task(anext(events))  # type: ignore[arg-type]
                await asyncio.sleep(0)
                with pytest.raises(BusyError):
                    await anext(events)
                bus.publish("x", {"n": 1})
                assert (await first).payload["n"] == 1

        run(main())

    def test_loops_one_after_the_other(self, run: Any) -> None:
        bus = EventBus()
        events = bus.subscribe("x")

        async def one(n: int) -> Any:
            asyncio.get_running_loop().call_soon(bus.publish, "x", {"n": n})
            return (await anext(events)).payload["n"]

        assert [run(one(n)) for n in range(3)] == [0, 1, 2]

    def test_a_waiter_whose_loop_is_gone_does_not_disturb_the_publisher(self) -> None:
        bus = EventBus()
        events = bus.subscribe("x")
        loop = asyncio.new_event_loop()
        task = loop.create_task(anext(events))  # type: ignore[arg-type]
        loop.run_until_complete(asyncio.sleep(0))
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        loop.close()
        bus.publish("x", {"n": 1})
        assert events.waiting == 1

    def test_publishing_from_another_thread_wakes_the_loop(self, run: Any) -> None:
        async def main() -> None:
            bus = EventBus()
            with bus.subscribe("x") as events:
                thread = threading.Timer(0.02, bus.publish, ("x", {"n": 1}))
                thread.start()
                async with asyncio.timeout(30):
                    assert (await anext(events)).payload["n"] == 1
                thread.join()

        run(main())

    def test_many_readers_each_get_everything(self, run: Any) -> None:
        async def main() -> None:
            bus = EventBus()
            subscriptions = [bus.subscribe("a.*") for _ in range(50)]

            async def read(events: Subscription) -> list[Any]:
                return [event.payload["n"] async for event in events]

            async with asyncio.TaskGroup() as group:
                readers = [group.create_task(read(events)) for events in subscriptions]
                for n in range(100):
                    bus.publish(f"a.{n}", {"n": n})
                    if n % 10 == 0:
                        await asyncio.sleep(0)
                bus.close()
            assert [reader.result() for reader in readers] == [list(range(100))] * 50

        run(main())


class TestEnds:
    def test_closing_the_bus(self) -> None:
        bus = EventBus()
        events, other = bus.subscribe("x"), bus.subscribe("x")
        bus.publish("x", {"n": 1})
        assert not bus.closed
        bus.close()
        bus.close()
        bus.publish("x", {"n": 2})
        assert bus.closed
        assert events.closed
        assert other.closed
        assert bus.subscriptions == 0
        assert numbers(events.get_all()) == [1]
        with pytest.raises(ClosedError):
            bus.subscribe("x")

    def test_no_subscription_is_left_behind(self) -> None:
        bus = EventBus()
        subscriptions = [bus.subscribe(pattern) for pattern in ("a", "a", "a.*", "*", "", "*.a") for _ in range(20)]
        bus.publish("a", {})
        bus.publish("a.a", {})
        assert bus.subscriptions == 120
        left = [weakref.ref(events) for events in subscriptions]
        for events in subscriptions:
            events.close()
        assert bus.subscriptions == 0
        assert not bus.wanted("a")
        del events, subscriptions
        assert [ref() for ref in left if ref()] == []

    def test_one_nobody_holds_ends_by_itself(self) -> None:
        bus = EventBus()
        kept = bus.subscribe("x")
        bus.subscribe("x")
        bus.publish("x", {})
        gc.collect()
        assert bus.subscriptions == 1
        assert kept.waiting == 1

    def test_a_loop_without_with_is_no_leak(self, run: Any) -> None:
        async def main() -> None:
            bus = EventBus()

            async def read() -> None:
                async for _ in bus.subscribe("x"):
                    pass

            reader = asyncio.create_task(read())
            await asyncio.sleep(0)
            assert bus.subscriptions == 1
            reader.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reader
            del reader
            gc.collect()
            assert bus.subscriptions == 0

        run(main())

    def test_a_circle_through_a_payload_is_collected(self) -> None:
        bus = EventBus()
        events = bus.subscribe("x")
        bus.publish("x", {"bus": bus, "events": events})
        left = [weakref.ref(bus), weakref.ref(events)]
        del bus, events
        gc.collect()
        assert [ref() for ref in left] == [None, None]

    def test_events_are_let_go_when_read(self) -> None:
        class Thing:
            pass

        bus, thing = EventBus(), Thing()
        left = weakref.ref(thing)
        with bus.subscribe() as events:
            bus.publish("x", {"thing": thing})
            del thing
            assert left() is not None
            events.get_all()
            assert left() is None

    def test_closing_many_of_one_pattern(self) -> None:
        bus = EventBus()
        subscriptions = [bus.subscribe("a.*") for _ in range(2000)]
        for events in subscriptions[::2]:
            events.close()
        bus.publish("a.b", {})
        assert [events.waiting for events in subscriptions] == [0, 1] * 1000

    def test_subscriptions_are_made_by_the_bus(self) -> None:
        with pytest.raises(TypeError):
            Subscription()
        with pytest.raises(TypeError):
            Subscription(None, None, None)  # type: ignore[call-arg]

    def test_what_they_look_like(self) -> None:
        bus = EventBus(node_id=3)
        with bus.subscribe("a.*") as events:
            assert repr(bus) == "<EventBus node_id=3 subscriptions=1>"
            assert repr(events) == "<Subscription 'a.*' waiting=0 dropped=0>"
        assert repr(events) == "<Subscription 'a.*' closed waiting=0 dropped=0>"
