"""The event buses of the benchmark `events`: ours, `fnmatch`, `python-cached` and `pyee` (bench).

Each runs in a process of its own. There are groups of ten subscriptions that match the same topics; with 1,000
subscriptions there are 100 groups. Nobody waits; rings are drained between rounds. pyee knows no patterns, so its
handlers stand for the exact topics: it shows what ten calls cost, not what matching costs.
"""

from __future__ import annotations

import fnmatch
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Final, Protocol

from bench.subjects import End
from pilot._fast.eventbus import EventBus

__all__ = ["Server"]

FORMS: Final = 7 * ["room{:03}.*"] + 2 * ["room{:03}.event*"] + ["*oom{:03}.*vent*"]
"""The ten patterns of a group."""
CAPACITY: Final = 1024
CACHED_TOPICS: Final = 4096
"""Both as in our bus."""


class Bus(Protocol):
    """What a subject has to be able to do."""

    def publish(self, topic: str, payload: dict[str, object]) -> object:
        """One event."""

    def subscribe(self, pattern: str) -> Callable[[], int]:
        """A subscription; the result empties it and says how many events it held."""


class _Event:
    """As ours: a copy of the payload, the time kept as a number until it is asked for."""

    __slots__ = ("_stamp", "node_id", "payload", "topic")

    def __init__(self, topic: str, node_id: int, stamp: float, payload: Mapping[str, object]) -> None:
        self.topic = topic
        self.node_id = node_id
        self._stamp = stamp
        self.payload = payload

    @property
    def time(self) -> datetime:
        return datetime.fromtimestamp(self._stamp, UTC)


class _Ring:
    __slots__ = ("dropped", "events", "pattern")

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.events: deque[_Event] = deque()
        self.dropped = 0

    def push(self, event: _Event) -> None:
        if len(self.events) < CAPACITY:
            self.events.append(event)
        else:
            self.dropped += 1

    def drain(self) -> int:
        count = len(self.events)
        self.events.clear()
        return count


class Fnmatch:
    """Asks every subscription for every event."""

    def __init__(self) -> None:
        self.rings: list[_Ring] = []

    def subscribe(self, pattern: str) -> Callable[[], int]:
        """A ring."""
        ring = _Ring(pattern)
        self.rings.append(ring)
        return ring.drain

    def matching(self, topic: str) -> list[_Ring]:
        """The rings that get `topic`."""
        return [ring for ring in self.rings if fnmatch.fnmatchcase(topic, ring.pattern)]

    def publish(self, topic: str, payload: dict[str, object]) -> None:
        """To every ring that matches."""
        rings = self.matching(topic)
        if rings:
            event = _Event(topic, 0, time.time(), MappingProxyType(dict(payload)))
            for ring in rings:
                ring.push(event)


class PythonCached(Fnmatch):
    """The same, and it remembers which rings a topic goes to."""

    def __init__(self) -> None:
        super().__init__()
        self._cache: dict[str, list[_Ring]] = {}

    def matching(self, topic: str) -> list[_Ring]:
        """From the cache where it knows the topic."""
        rings = self._cache.get(topic)
        if rings is None:
            if len(self._cache) >= CACHED_TOPICS:
                self._cache.clear()
            rings = self._cache[topic] = super().matching(topic)
        return rings


class Ours:
    """`pilot`'s bus, as it is."""

    def __init__(self) -> None:
        self._bus = EventBus()
        self.publish = self._bus.publish

    def subscribe(self, pattern: str) -> Callable[[], int]:
        """A subscription."""
        subscription = self._bus.subscribe(pattern)
        return lambda: len(subscription.get_all())


class Pyee:
    """An emitter per topic instead of a pattern."""

    def __init__(self) -> None:
        from pyee.base import EventEmitter

        self._emitter = EventEmitter()
        self.publish = self._emitter.emit

    def subscribe(self, pattern: str) -> Callable[[], int]:
        """A handler for the topic of the pattern's group."""
        events: deque[dict[str, object]] = deque(maxlen=CAPACITY)

        def take(payload: dict[str, object]) -> None:
            events.append(payload)

        def drain() -> int:
            count = len(events)
            events.clear()
            return count

        group = int(pattern[pattern.index("oom") + 3 :][:3])
        self._emitter.add_listener(_topic(group), take)
        return drain


BUSES: Final[dict[str, Callable[[], Bus]]] = {
    "ours": Ours,
    "fnmatch": Fnmatch,
    "python-cached": PythonCached,
    "pyee": Pyee,
}


def _topic(group: int) -> str:
    return f"room{group:03}.event"


class Server(End):
    """One bus with its subscriptions."""

    async def open(self, *, bus: str, subscriptions: int) -> dict[str, Any]:
        """Subscribes."""
        self._bus = BUSES[bus]()
        self._groups = max(1, subscriptions // len(FORMS))
        self._drains = [self._bus.subscribe(form.format(group)) for group in range(self._groups) for form in FORMS]
        self._fresh = self._numbers()
        return {}

    async def publish(self, count: int, fresh: bool) -> float:
        """Seconds that `count` publishes took, of topics published before or of ones never seen; the rest is not timed.

        Raises:
            ValueError: not every event reached its ten subscriptions.
        """
        if fresh:
            topics = [f"{_topic(next(self._fresh) % self._groups)}.{next(self._fresh)}" for _ in range(count)]
        else:
            topics = [_topic(number % self._groups) for number in range(count)]
        payload: dict[str, object] = {"peer": 7, "reason": "bench"}
        publish = self._bus.publish
        started = time.perf_counter_ns()
        for topic in topics:
            publish(topic, payload)
        spent = time.perf_counter_ns() - started
        delivered = sum(drain() for drain in self._drains)
        if delivered != count * len(FORMS):
            raise ValueError(f"{delivered} events were delivered instead of {count * len(FORMS)}")
        return spent / 1e9

    @staticmethod
    def _numbers() -> Iterator[int]:
        number = 0
        while True:
            yield number
            number += 1
