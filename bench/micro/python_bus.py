"""The event bus in plain Python, as well as plain Python allows, and an `fnmatch` loop: peers of pilot's (bench)."""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any

from pilot._fast.eventbus import CACHED_TOPICS, CAPACITY


class Event:
    """As cheap to make as pilot's: the time and the read-only view are built when somebody asks."""

    __slots__ = ("_payload", "_stamp", "node_id", "topic")

    def __init__(self, topic: str, node_id: int, stamp: float, payload: dict[str, Any]) -> None:
        self.topic = topic
        self.node_id = node_id
        self._stamp = stamp
        self._payload = payload

    @property
    def time(self) -> datetime:
        return datetime.fromtimestamp(self._stamp, UTC)

    @property
    def payload(self) -> Mapping[str, Any]:
        return MappingProxyType(self._payload)


class Subscription:
    """A bounded queue with a drop counter and a waiter."""

    __slots__ = ("dropped", "events", "matches", "waiter")

    def __init__(self, matches: Callable[[str], Any]) -> None:
        self.matches = matches
        self.events: deque[Event] = deque()
        self.dropped = 0
        self.waiter: Any = None

    @property
    def waiting(self) -> int:
        return len(self.events)

    def get_all(self) -> list[Event]:
        events = list(self.events)
        self.events.clear()
        return events


class PythonBus:
    """Subscriptions that match a topic are looked up in the same two-generation cache as pilot's."""

    def __init__(self, node_id: int = 0) -> None:
        self.node_id = node_id
        self.subscriptions: list[Subscription] = []
        self.recent: dict[str, list[Subscription]] = {}
        self.older: dict[str, list[Subscription]] = {}

    def matcher(self, pattern: str) -> Callable[[str], Any]:
        return re.compile(".*".join(map(re.escape, (pattern or "*").split("*"))), re.DOTALL).fullmatch

    def subscribe(self, pattern: str) -> Subscription:
        subscription = Subscription(self.matcher(pattern))
        self.subscriptions.append(subscription)
        self.recent, self.older = {}, {}
        return subscription

    def route(self, topic: str) -> list[Subscription]:
        found = self.recent.get(topic)
        if found is None:
            found = self.older.get(topic)
            if found is None:
                found = [subscription for subscription in self.subscriptions if subscription.matches(topic)]
            if len(self.recent) >= CACHED_TOPICS // 2:
                self.older, self.recent = self.recent, {}
            self.recent[topic] = found
        return found

    def publish(self, topic: str, payload: Mapping[str, Any]) -> None:
        found = self.route(topic)
        if not found:
            return
        event = Event(topic, self.node_id, time.time(), dict(payload))
        for subscription in found:
            events = subscription.events
            if len(events) >= CAPACITY:
                subscription.dropped += 1
            else:
                events.append(event)
                if subscription.waiter is not None:
                    waiter, subscription.waiter = subscription.waiter, None
                    waiter.set_result(None)


class FnmatchBus(PythonBus):
    """Asks `fnmatch` about every subscription at every event."""

    def matcher(self, pattern: str) -> Callable[[str], Any]:
        return lambda topic: fnmatchcase(topic, pattern or "*")

    def route(self, topic: str) -> list[Subscription]:
        return [subscription for subscription in self.subscriptions if subscription.matches(topic)]
