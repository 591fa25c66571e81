"""What every `EventBus` has to do (testing). A check takes a function that makes a new bus."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from typing import Final

from pilot._fast.errors import BusyError
from pilot.coreapi import Event, EventBus, Subscription
from pilot.testing.coreapi.expecting import expecting

__all__ = ["EVENT_BUS_CHECKS"]

Check = Callable[[Callable[[], EventBus]], Awaitable[None]]


async def is_an_event_bus(make: Callable[[], EventBus]) -> None:
    bus = make()
    assert isinstance(bus, EventBus), f"{bus!r} lacks a member of EventBus"
    with bus.subscribe("") as subscription:
        assert isinstance(subscription, Subscription), f"{subscription!r} lacks a member of Subscription"


async def delivers_what_is_published(make: Callable[[], EventBus]) -> None:
    bus = make()
    with bus.subscribe("a.b") as subscription:
        bus.publish("a.b", {"key": 1})
        event = subscription.get_nowait()
        assert isinstance(event, Event), f"{event!r} is no Event"
        assert (event.topic, dict(event.payload)) == ("a.b", {"key": 1}), f"published a.b, got {event!r}"
        assert event.time.utcoffset() == timedelta(0), f"the time {event.time!r} is not in UTC"
        assert isinstance(event.payload, Mapping), f"the payload {event.payload!r} is no mapping"
        assert subscription.get_nowait() is None, "one event was published, two came"


async def the_payload_is_read_only(make: Callable[[], EventBus]) -> None:
    bus = make()
    with bus.subscribe("") as subscription:
        bus.publish("a", {"key": 1})
        event = subscription.get_nowait()
        assert event is not None, "an event was lost"
        with expecting(TypeError, AttributeError, what="writing into the payload"):
            event.payload["key"] = 2  # type: ignore[index]


async def patterns_are_globs(make: Callable[[], EventBus]) -> None:
    cases = [
        ("tunnel.*", "tunnel.established", True),
        ("tunnel.*", "tunnel.path.suspect", True),
        ("tunnel.*", "security.nonce_replay", False),
        ("tunnel.*", "tunnel", False),
        ("", "anything.at.all", True),
        ("*", "anything.at.all", True),
        ("plugin.*.panic", "plugin.greeter.panic", True),
        ("plugin.*.panic", "plugin.greeter.unhealthy", False),
        ("exact", "exact", True),
        ("exact", "exactly", False),
    ]
    for pattern, topic, wanted in cases:
        bus = make()
        with bus.subscribe(pattern) as subscription:
            bus.publish(topic, {})
            got = subscription.get_nowait() is not None
            assert got is wanted, f"pattern {pattern!r}, topic {topic!r}: delivered {got}, expected {wanted}"


async def the_order_is_that_of_publication(make: Callable[[], EventBus]) -> None:
    bus = make()
    with bus.subscribe("") as subscription:
        for number in range(100):
            bus.publish(f"topic.{number % 7}", {"number": number})
        numbers = [event.payload["number"] for _ in range(100) if (event := subscription.get_nowait()) is not None]
        assert numbers == list(range(100)), f"the order is {numbers}"


async def a_full_subscriber_loses_and_counts_and_others_do_not(make: Callable[[], EventBus]) -> None:
    bus = make()
    with bus.subscribe("", capacity=4) as small, bus.subscribe("") as large:
        for number in range(10):
            bus.publish("a", {"number": number})
        kept = sum(1 for _ in range(10) if small.get_nowait() is not None)
        assert kept == 4, f"a ring of 4 kept {kept} events"
        assert small.dropped == 6, f"6 events were lost, {small.dropped} were counted"
        assert large.dropped == 0, "the loss of one subscriber reached another"
        assert sum(1 for _ in range(10) if large.get_nowait() is not None) == 10, "a roomy subscriber lost events"


async def a_subscription_holds_1024_events_unless_told_otherwise(make: Callable[[], EventBus]) -> None:
    bus = make()
    with bus.subscribe("") as subscription:
        for number in range(1100):
            bus.publish("a", {"number": number})
        kept = 0
        while (event := subscription.get_nowait()) is not None:
            assert event.payload["number"] == kept, f"the oldest events are to be kept, {event!r} came at place {kept}"
            kept += 1
        assert (kept, subscription.dropped) == (1024, 76), f"of 1100 it kept {kept}, and counted {subscription.dropped}"


async def waiting_is_awaitable_and_ends_with_the_subscription(make: Callable[[], EventBus]) -> None:
    bus = make()
    subscription = bus.subscribe("a")
    got: list[str] = []

    async def listen() -> None:
        async for event in subscription:
            got.append(event.topic)

    task = asyncio.ensure_future(listen())
    await asyncio.sleep(0)
    bus.publish("a", {})
    bus.publish("b", {})
    await asyncio.sleep(0.01)
    assert got == ["a"], f"one matching event was published, got {got}"
    subscription.close()
    await asyncio.wait_for(task, 5)
    subscription.close()
    assert subscription.closed, "a closed subscription does not say so"
    bus.publish("a", {})
    assert subscription.get_nowait() is None, "a closed subscription got an event"


async def a_cancelled_wait_loses_nothing(make: Callable[[], EventBus]) -> None:
    bus = make()
    with bus.subscribe("a") as subscription:
        waiting = asyncio.ensure_future(anext(subscription))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        bus.publish("a", {})
        await asyncio.wait_for(anext(subscription), 5)


async def two_waiters_are_an_error(make: Callable[[], EventBus]) -> None:
    bus = make()
    with bus.subscribe("a") as subscription:
        waiting = asyncio.ensure_future(anext(subscription))
        await asyncio.sleep(0)
        with expecting(BusyError, what="waiting for events twice"):
            await anext(subscription)
        waiting.cancel()
        await asyncio.wait([waiting])


EVENT_BUS_CHECKS: Final[tuple[Check, ...]] = (
    is_an_event_bus,
    delivers_what_is_published,
    the_payload_is_read_only,
    patterns_are_globs,
    the_order_is_that_of_publication,
    a_full_subscriber_loses_and_counts_and_others_do_not,
    a_subscription_holds_1024_events_unless_told_otherwise,
    waiting_is_awaitable_and_ends_with_the_subscription,
    a_cancelled_wait_loses_nothing,
    two_waiters_are_an_error,
)
"""Run each with a function that makes a new, empty bus."""
