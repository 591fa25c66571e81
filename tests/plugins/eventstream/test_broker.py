"""The broker by itself: who gets what, allowances, queues that fill, and what the bus hears."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot._fast.eventbus import EventBus
from pilot.coreapi import InvalidValueError
from pilot.plugins.eventstream import broker as module
from pilot.plugins.eventstream.broker import BURST, STRIKES, SUBSCRIBER_EVENTS, Broker, Subscriber
from pilot.plugins.eventstream.frames import MAX_PAYLOAD_BYTES, RESERVED_TOPIC, StreamEvent, encode_event

CASES = json.loads((Path(__file__).parents[2] / "vectors" / "services.json").read_text())["eventstream_port_1002"][
    "cases"
]
EVENT = StreamEvent("t", b"p")


class Place:
    """A broker whose bus is listened to."""

    def __init__(self) -> None:
        self.bus = EventBus(node_id=1)
        self.subscription = self.bus.subscribe("pubsub.*")
        self.broker = Broker(self.bus)
        self.woken: list[str] = []

    def join(self, topic: str, remote: str = "a:1", now: float = 0.0) -> Subscriber:
        return self.broker.subscribe(topic, remote, lambda: self.woken.append(remote), now)

    def publish(self, event: StreamEvent = EVENT, source: Subscriber | None = None, now: float = 0.0) -> int:
        return self.broker.publish(event, source, source.remote if source else "local", now, True)

    def told(self) -> list[tuple[str, dict[str, object]]]:
        return [(event.topic, dict(event.payload)) for event in self.subscription.get_all()]


def test_exact_topics_and_everything() -> None:
    place = Place()
    subscribers = {topic: place.join(topic) for topic in ("t", "t2", "*", "t.*", "")}
    assert place.publish() == 2
    assert place.publish(StreamEvent("", b"")) == 2
    assert place.publish(StreamEvent("*", b"")) == 1
    assert {topic: len(one.queue) for topic, one in subscribers.items()} == {"t": 1, "t2": 0, "*": 3, "t.*": 0, "": 1}
    assert place.broker.taken(subscribers["t"]) == encode_event("t", b"p")
    assert place.broker.taken(subscribers["t"]) is None


def test_the_source_does_not_get_its_own() -> None:
    place = Place()
    source, other = place.join("t"), place.join("t")
    assert place.publish(source=source) == 1
    assert (len(source.queue), len(other.queue)) == (0, 1)


def test_what_the_bus_hears() -> None:
    place = Place()
    source = place.join("t", "0:0000.0000.0001:5")
    place.publish(source=source)
    place.publish(StreamEvent(RESERVED_TOPIC, b"{}"), source)
    place.broker.publish(EVENT, source, source.remote, 0.0, False)
    source.allowance = 0.0
    place.publish(source=source)
    place.broker.unsubscribe(source)
    place.broker.unsubscribe(source)
    who = {"topic": "t", "from": "0:0000.0000.0001:5"}
    assert place.told() == [
        ("pubsub.subscribed", {"topic": "t", "remote": "0:0000.0000.0001:5"}),
        ("pubsub.published", {**who, "size": 1}),
        ("pubsub.publish_denied", {**who, "topic": RESERVED_TOPIC}),
        ("pubsub.publish_denied", who),
        ("pubsub.rate_limited", who),
        ("pubsub.unsubscribed", {"topic": "t", "remote": "0:0000.0000.0001:5"}),
    ]


def test_allowance_of_a_stream() -> None:
    """The captured burst: 260 events within 10 ms, 201 delivered."""
    assert CASES[-1]["effect"].startswith("201 delivered")
    place = Place()
    source, reader = place.join("x"), place.join("t")
    delivered = sum(place.publish(source=source, now=number / 260 / 100) for number in range(260))
    assert delivered in (200, 201)
    assert len(reader.queue) == delivered
    assert sum(place.publish(source=source, now=1.01) for _ in range(300)) in (100, 101)
    assert sum(place.publish(source=source, now=100.0) for _ in range(300)) == BURST
    assert place.publish() == 1  # the node itself has no limit


def test_a_slow_subscriber_is_removed_and_others_go_on() -> None:
    place = Place()
    slow, quick = place.join("t", "slow"), place.join("t", "quick")
    for number in range(SUBSCRIBER_EVENTS + STRIKES):
        assert slow.removed is False, number
        place.publish()
        place.broker.taken(quick)
    assert slow.removed is True
    assert quick.removed is False
    assert place.broker.dropped == STRIKES
    assert place.woken[-2:] == ["slow", "quick"]
    place.broker.unsubscribe(slow)
    assert place.publish() == 1


def test_strikes_are_in_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SUBSCRIBER_EVENTS", 1)
    place = Place()
    reader = place.join("t")
    for _ in range(5):
        for _ in range(STRIKES):
            place.publish()
        place.broker.taken(reader)
    assert reader.removed is False


def test_bytes_are_bounded_for_one_and_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SUBSCRIBER_BYTES", 100)
    monkeypatch.setattr(module, "BROKER_BYTES", 150)
    place = Place()
    first, second = place.join("t"), place.join("t")
    big = StreamEvent("t", bytes(60))
    assert place.publish(big) == 2
    assert place.publish(big) == 0  # more than 100 for each
    small = StreamEvent("t", bytes(10))
    assert place.publish(small) == 0  # 134 + 17 are more than all may have
    place.broker.taken(first)
    assert place.publish(small) == 2
    assert place.broker.taken(second) == encode_event(*big)
    place.broker.unsubscribe(second)
    assert place.broker._queued_bytes == len(encode_event(*small))
    place.broker.unsubscribe(first)
    assert (place.broker._queued_bytes, place.broker.subscribers, place.broker._exact) == (0, 0, {})


def test_slow_subscribers_that_fill_the_broker_go_and_nobody_else_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SUBSCRIBER_BYTES", 100)
    monkeypatch.setattr(module, "BROKER_BYTES", 190)
    place = Place()
    slow = [place.join("*", f"slow{number}") for number in range(2)]
    reader = place.join("t", "reader")
    place.publish(StreamEvent("x", bytes(80)))
    for _ in range(STRIKES + 1):
        assert place.publish(StreamEvent("t", bytes(5))) >= 1
        assert len(reader.queue) >= 1
    assert [each.removed for each in (*slow, reader)] == [True, False, False]
    assert (len(slow[0].queue), slow[0].queued_bytes) == (0, 0)
    assert place.broker._queued_bytes == slow[1].queued_bytes + reader.queued_bytes <= 190
    assert "slow0" in place.woken


@given(st.text(max_size=50), st.binary(max_size=50))
def test_frames(topic: str, payload: bytes) -> None:
    encoded = topic.encode("utf-8", "replace")
    frame = encode_event(encoded.decode(), payload)
    assert frame == len(encoded).to_bytes(2, "big") + encoded + len(payload).to_bytes(4, "big") + payload


def test_events_that_cannot_be_sent() -> None:
    assert encode_event("t" * 1024)
    for topic, payload in (("t" * 1025, b""), ("\ud800", b""), ("t", bytes(MAX_PAYLOAD_BYTES + 1))):
        with pytest.raises(InvalidValueError):
            encode_event(topic, payload)
