"""The event bus: publishing by number of subscriptions, kind of pattern and novelty of the topic; reading (bench).

A round publishes 500 events to 10 matching subscriptions among all, nobody waiting; rings are drained and new topics
thought up outside the measured time. `pyee` has no patterns: it takes part where all are exact names.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import count, product
from typing import Any

import pytest

from bench.micro.python_bus import FnmatchBus, PythonBus
from pilot._fast.eventbus import EventBus

EVENTS = 500
MATCHING = 10
PAYLOAD = {"peer_node_id": 5, "authenticated": True, "relay": False}

BUSES: dict[str, Callable[[], Any]] = {"pilot": EventBus, "python-cached": PythonBus, "fnmatch": FnmatchBus}
PATTERNS: dict[str, tuple[str, str]] = {
    "exact": ("tunnel.established", "plugin.{}.ready"),
    "prefix": ("tunnel.*", "plugin.{}.*"),
    "suffix": ("*.established", "*.{}"),
    "middle": ("tu*.*ed", "plugin.*{}.*"),
}
NEW_TOPIC = {"prefix": "tunnel.{}", "suffix": "{}.established", "middle": "tunnel.{}ed"}


def bus_with(peer: str, subscriptions: int, patterns: str) -> tuple[Any, list[Any]]:
    """A bus and the subscriptions that match; the others are as alike as their kind allows."""
    bus = BUSES[peer]()
    hit, miss = PATTERNS[patterns]
    others = [bus.subscribe(miss.format(n)) for n in range(subscriptions - MATCHING)]
    matching = [bus.subscribe(hit) for _ in range(MATCHING)]
    bus.publish("tunnel.established", PAYLOAD)
    assert [one.waiting for one in matching + others] == [1] * MATCHING + [0] * len(others)
    return bus, matching + others


def publish_all(publish: Callable[[str, Any], Any], topics: list[str]) -> None:
    for topic in topics:
        publish(topic, PAYLOAD)


def measure(benchmark: Any, bus: Any, subscriptions: list[Any], topics: Callable[[], list[str]], rounds: int) -> None:
    def drained() -> Any:
        for one in subscriptions[:MATCHING]:
            one.get_all()
        return (bus.publish, topics()), {}

    benchmark.pedantic(publish_all, setup=drained, rounds=rounds, warmup_rounds=1)
    assert all(one.waiting == EVENTS for one in subscriptions[:MATCHING])
    assert not any(one.waiting for one in subscriptions[MATCHING:])


@pytest.mark.parametrize("subscriptions", [10, 100, 1000])
@pytest.mark.parametrize(("peer", "patterns"), [*product(BUSES, PATTERNS), ("pyee", "exact")])
def test_publish_known_topic(benchmark: Any, peer: str, patterns: str, subscriptions: int) -> None:
    topics = ["tunnel.established"] * EVENTS
    if peer != "pyee":
        bus, subscribed = bus_with(peer, subscriptions, patterns)
        rounds = 3 if peer == "fnmatch" and subscriptions == 1000 else 30
        measure(benchmark, bus, subscribed, lambda: topics, rounds)
        return
    pyee = pytest.importorskip("pyee")
    emitter, got = pyee.EventEmitter(), [0]
    for _ in range(MATCHING):
        emitter.on("tunnel.established", [].append)
    for n in range(subscriptions - MATCHING):
        emitter.on(f"plugin.{n}.ready", got.append)
    benchmark.pedantic(publish_all, (emitter.emit, topics), rounds=30, warmup_rounds=1)
    assert got == [0]


@pytest.mark.parametrize("subscriptions", [10, 100, 1000])
@pytest.mark.parametrize("patterns", NEW_TOPIC)
@pytest.mark.parametrize("peer", BUSES)
def test_publish_new_topic(benchmark: Any, peer: str, patterns: str, subscriptions: int) -> None:
    bus, subscribed = bus_with(peer, subscriptions, patterns)
    numbers = count()
    rounds = 3 if peer != "pilot" and subscriptions == 1000 else 30

    def topics() -> list[str]:
        return [NEW_TOPIC[patterns].format(f"{next(numbers)}x") for _ in range(EVENTS)]

    measure(benchmark, bus, subscribed, topics, rounds)


@pytest.mark.parametrize("peer", BUSES)
def test_publish_to_nobody(benchmark: Any, peer: str) -> None:
    bus, subscribed = bus_with(peer, 1000, "prefix")
    benchmark.pedantic(publish_all, (bus.publish, ["security.src_spoofed"] * EVENTS), rounds=3, warmup_rounds=1)
    assert all(one.waiting == 1 for one in subscribed[:MATCHING])


@pytest.mark.parametrize("peer", ["pilot", "asyncio.Queue"])
def test_read_500(benchmark: Any, peer: str) -> None:
    """A task reads 500 events that are there already."""
    loop = asyncio.new_event_loop()
    bus = EventBus()
    events = bus.subscribe("x")
    queue: asyncio.Queue[int] = asyncio.Queue()

    async def iterate() -> None:
        left = EVENTS
        async for _ in events:
            left -= 1
            if not left:
                return

    async def take() -> None:
        for _ in range(EVENTS):
            await queue.get()

    def filled() -> None:
        for n in range(EVENTS):
            if peer == "pilot":
                bus.publish("x", PAYLOAD)
            else:
                queue.put_nowait(n)

    read = iterate if peer == "pilot" else take
    benchmark.pedantic(lambda: loop.run_until_complete(read()), setup=filled, rounds=30, warmup_rounds=1)
    loop.close()
    assert events.waiting == queue.qsize() == 0
