"""The broker: who has subscribed to what, who may publish, what each one still has to get (plugin eventstream, L11).

Source: services.md section 3. Sans-IO: subscribers are queues, and time is handed in.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from operator import attrgetter
from typing import TYPE_CHECKING, Final

from pilot.plugins.eventstream.frames import EVERYTHING, RESERVED_TOPIC, StreamEvent, encode_event

if TYPE_CHECKING:
    from pilot.coreapi import EventBus

__all__ = ["SUBSCRIBER_BYTES", "SUBSCRIBER_EVENTS", "Broker", "Subscriber"]

RATE: Final = 100.0
"""Events per second that one stream may publish."""
BURST: Final = 200.0
"""Events that one stream may publish at once before the rate counts."""
SUBSCRIBER_EVENTS: Final = 1024
SUBSCRIBER_BYTES: Final = 32 << 20
"""What waits for one subscriber, at most; it has room for the longest event."""
BROKER_BYTES: Final = 256 << 20
"""What waits for all subscribers together."""
STRIKES: Final = 3
"""So many events in a row that a subscriber has no room for, and it is removed."""


@dataclass(eq=False, slots=True)
class Subscriber:
    """One stream at the broker: its subscription, its allowance, its queue. `wake` is called when either changed."""

    topic: str
    remote: str
    wake: Callable[[], None]
    allowance: float = BURST
    refilled_at: float = 0.0
    queue: deque[bytes] = field(default_factory=deque)
    queued_bytes: int = 0
    missed: int = 0
    """Events in a row there was no room for."""
    removed: bool = False

    def matches(self, topic: str) -> bool:
        """Whether it wants events of `topic`."""
        return self.topic in (EVERYTHING, topic)

    def may_publish(self, now: float) -> bool:
        """Takes one event from its allowance; False when there is none."""
        self.allowance = min(BURST, self.allowance + (now - self.refilled_at) * RATE)
        self.refilled_at = now
        if self.allowance < 1.0:
            return False
        self.allowance -= 1.0
        return True


class Broker:
    """Takes events and queues them for the subscribers of their topics. Publishes what happens on the node's bus."""

    def __init__(self, events: EventBus) -> None:
        self.published = 0
        self.dropped = 0
        """Deliveries there was no room for."""
        self._events = events
        self._exact: dict[str, dict[Subscriber, None]] = {}
        """Subscribers by topic, in the order they came."""
        self._queued_bytes = 0

    @property
    def subscribers(self) -> int:
        """How many there are."""
        return sum(map(len, self._exact.values()))

    def subscribe(self, topic: str, remote: str, wake: Callable[[], None], now: float) -> Subscriber:
        """A subscriber of `topic`, or of everything, at `remote`."""
        subscriber = Subscriber(topic, remote, wake, refilled_at=now)
        self._exact.setdefault(topic, {})[subscriber] = None
        self._events.publish("pubsub.subscribed", {"topic": topic, "remote": remote})
        return subscriber

    def unsubscribe(self, subscriber: Subscriber) -> None:
        """Forgets it and what waits for it. May be repeated."""
        group = self._exact.get(subscriber.topic, {})
        if subscriber not in group:
            return
        del group[subscriber]
        if not group:
            del self._exact[subscriber.topic]
        self._clear(subscriber)
        self._events.publish("pubsub.unsubscribed", {"topic": subscriber.topic, "remote": subscriber.remote})

    def publish(self, event: StreamEvent, source: Subscriber | None, remote: str, now: float, allowed: bool) -> int:
        """Queues an event for everybody who wants it but its source; for how many. `allowed` is the policy's word."""
        seen = {"topic": event.topic, "from": remote}
        if source is not None and not source.may_publish(now):
            self._events.publish("pubsub.rate_limited", seen)
            return 0
        if event.topic == RESERVED_TOPIC or not allowed:
            self._events.publish("pubsub.publish_denied", seen)
            return 0
        self.published += 1
        frame = encode_event(*event)
        groups = [self._exact.get(event.topic, {})]
        if event.topic != EVERYTHING:
            groups.append(self._exact.get(EVERYTHING, {}))
        targets = [subscriber for group in groups for subscriber in group if subscriber is not source]
        queued = sum([self._queue(subscriber, frame) for subscriber in targets])
        self._events.publish("pubsub.published", {"topic": event.topic, "size": len(event.payload), "from": remote})
        return queued

    def _queue(self, subscriber: Subscriber, frame: bytes) -> bool:
        size = len(frame)
        if subscriber.removed:
            return False
        while self._queued_bytes + size > BROKER_BYTES and self._remove_slower(subscriber.queued_bytes):
            pass
        full = len(subscriber.queue) >= SUBSCRIBER_EVENTS or subscriber.queued_bytes + size > SUBSCRIBER_BYTES
        if full or self._queued_bytes + size > BROKER_BYTES:
            self.dropped += 1
            subscriber.missed += 1
            if subscriber.missed >= STRIKES:
                self._remove(subscriber)
            return False
        subscriber.missed = 0
        subscriber.queue.append(frame)
        subscriber.queued_bytes += size
        self._queued_bytes += size
        subscriber.wake()
        return True

    def _remove_slower(self, queued_bytes: int) -> bool:
        """When all is full, the one that most waits for has to go, not whoever is next to get something."""
        slowest = max((each for group in self._exact.values() for each in group), key=attrgetter("queued_bytes"))
        if slowest.queued_bytes <= queued_bytes:
            return False
        self._remove(slowest)
        return True

    def _remove(self, subscriber: Subscriber) -> None:
        """Has the stream of a subscriber ended; nothing waits for it any more."""
        subscriber.removed = True
        self._clear(subscriber)
        subscriber.wake()

    def _clear(self, subscriber: Subscriber) -> None:
        self._queued_bytes -= subscriber.queued_bytes
        subscriber.queued_bytes = 0
        subscriber.queue.clear()

    def taken(self, subscriber: Subscriber) -> bytes | None:
        """The next frame for a subscriber, which it has to be sent now; None when none waits."""
        if not subscriber.queue:
            return None
        frame = subscriber.queue.popleft()
        subscriber.queued_bytes -= len(frame)
        self._queued_bytes -= len(frame)
        return frame
