"""Service and client over streams in memory: the captured cases, policies, slow peers, limits, stop."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from pilot.coreapi import Addr, InvalidValueError, PeerNotFoundError, ResetError, ServiceNotReadyError
from pilot.plugins.eventstream import EventStreamClient, EventStreamService, StreamEvent
from pilot.plugins.eventstream import service as module
from pilot.plugins.eventstream.broker import STRIKES, SUBSCRIBER_EVENTS
from pilot.plugins.eventstream.frames import RESERVED_TOPIC, encode_event
from tests.plugins.fakes import Network, Published, Stream, eventually, published, settle

BOB = Addr(0, 2)
CASES = json.loads((Path(__file__).parents[2] / "vectors" / "services.json").read_text())["eventstream_port_1002"][
    "cases"
]


class Place:
    """A broker at node 2, clients at 1 and 3."""

    def __init__(self, **options: Any) -> None:
        self.network = Network()
        self.deps = self.network.deps(2)
        self.events: Published = published(self.deps, "*")
        self.service = EventStreamService(**options)
        self.alice, self.carol = (EventStreamClient(self.network.deps(node).streams) for node in (1, 3))

    async def dial(self, node: int = 1) -> Stream:
        stream: Any = await self.network.deps(node).streams.dial(BOB, 1002)
        return stream

    @property
    def subscribers(self) -> int:
        return self.service._count("subscribers")


@asynccontextmanager
async def running(**options: Any) -> AsyncIterator[Place]:
    place = Place(**options)
    await place.service.start(place.deps)
    try:
        yield place
    finally:
        await place.service.stop()


async def next_of(events: Any) -> StreamEvent:
    got: StreamEvent = await asyncio.wait_for(anext(events), 5.0)
    return got


@pytest.mark.parametrize("case", [case for case in CASES if "write" in case], ids=lambda case: case["name"])
async def test_captured_case(case: dict[str, Any]) -> None:
    writes = [case["write"]] if isinstance(case["write"], str) else case["write"]
    async with running() as place:
        watching = await place.carol.subscribe(BOB)
        await settle()
        stream = await place.dial()
        for write in writes:
            await stream.write(bytes.fromhex(write))
        if case.get("effect") == "stream closed":
            assert await stream.read() == b""
        elif "star_subscriber_reads" in case:
            event = await next_of(watching)
            assert encode_event(*event).hex() == case["star_subscriber_reads"]
        else:
            await eventually(lambda: place.subscribers == 2)
            place.service.broadcast("foo.bar", b"x")
            place.service.broadcast("foo.*", b"y")
            wanted = {"subscribe to one topic": b"x", "subscribe to everything": b"x"}.get(case["name"], b"y")
            assert (await stream.read())[-1:] in (wanted, b"y" if case["name"] == "subscribe to everything" else wanted)
        told = [topic for topic, _ in place.events.take()]
        assert case.get("event", "pubsub.subscribed") in told


async def test_a_topic_of_1025_bytes_closes_the_stream() -> None:
    async with running() as place:
        stream = await place.dial()
        await stream.write(b"\x04\x01" + b"t" * 1025 + bytes(4))
        assert await stream.read() == b""
        stream = await place.dial()
        await stream.write(encode_event("t") + b"\0\1t" + (16 * 1024 * 1024 + 1).to_bytes(4, "big"))
        assert await stream.read() == b""


async def test_publish_reaches_subscribers_of_the_topic() -> None:
    async with running() as place:
        async with await place.carol.subscribe(BOB, "news") as news, await place.carol.subscribe(BOB) as everything:
            await settle()
            await place.alice.publish(BOB, "news", "hällo")
            await place.alice.publish(BOB, "other", b"x" * 300_000)
            assert await next_of(news) == StreamEvent("news", "hällo".encode())
            assert (await next_of(everything)).text == "hällo"
            assert await next_of(everything) == StreamEvent("other", b"x" * 300_000)
        await eventually(lambda: place.subscribers == 0)
        topics = [topic for topic, _ in place.events.take()]
        assert topics.count("pubsub.subscribed") == topics.count("pubsub.unsubscribed") == 4


async def test_one_stream_for_many_events_and_those_of_others() -> None:
    async with (
        running() as place,
        await place.alice.subscribe(BOB, "t") as one,
        await place.carol.subscribe(BOB, "t") as two,
    ):
        await eventually(lambda: place.subscribers == 2)
        await one.publish("t", "1")
        await two.publish("t", "2")
        await one.publish("t", "3")
        await one.drain()
        assert [(await next_of(two)).text, (await next_of(two)).text] == ["1", "3"]
        assert (await next_of(one)).text == "2"
        assert place.service.broadcast("t", "4") == 2
        assert (await next_of(one)).text == "4"


async def test_policy_of_topics() -> None:
    def may_subscribe(addr: Addr, topic: str) -> bool:
        return addr.node == 3 or topic == "open"

    async with running(may_subscribe=may_subscribe, may_publish=lambda addr, topic: topic == "open") as place:
        async with await place.alice.subscribe(BOB, "closed") as refused:
            with pytest.raises(StopAsyncIteration):
                await next_of(refused)
        [(topic, payload)] = place.events.take()
        assert (topic, payload["topic"], set(payload)) == ("pubsub.subscribe_denied", "closed", {"topic", "remote"})
        async with await place.carol.subscribe(BOB) as everything:
            await settle()
            async with await place.alice.subscribe(BOB, "open") as allowed:
                await allowed.publish("closed", "1")
                await allowed.publish("open", "2")
                assert (await next_of(everything)).text == "2"
            await place.carol.publish(BOB, "closed", "3")
        denied = [payload["topic"] for topic, payload in place.events.take() if topic == "pubsub.publish_denied"]
        assert denied == ["closed", "closed"]


async def test_a_slow_subscriber_is_cut_off_and_the_others_get_all() -> None:
    async with running() as place:
        slow = await place.dial()
        await slow.write(encode_event("*"))
        slow.incoming.capacity = 0
        quick = await place.carol.subscribe(BOB)
        await eventually(lambda: place.subscribers == 2)
        total = SUBSCRIBER_EVENTS + STRIKES + 1
        for number in range(total):
            place.service.broadcast("t", str(number))
            await asyncio.sleep(0)
        for number in range(total):
            assert (await next_of(quick)).text == str(number)
        with pytest.raises(ResetError):
            await slow.read()
        await eventually(lambda: place.subscribers == 1)


async def test_streams_that_say_nothing_or_too_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FRAME_SECONDS", 0.01)
    async with running() as place:
        silent, halting, subscribed = await place.dial(), await place.dial(), await place.dial()
        await halting.write(encode_event("t") + b"\0\5to")
        await subscribed.write(encode_event("t"))
        for stream in (silent, halting):
            with pytest.raises(ResetError):
                await stream.read()
        await asyncio.sleep(0.03)
        assert place.subscribers == 1


async def test_too_many_streams_of_one_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_STREAMS_PER_PEER", 2)
    async with running() as place:
        streams = [await place.dial() for _ in range(3)]
        assert await streams[2].read() == b""
        other = await place.dial(3)
        await other.write(encode_event("t"))
        await eventually(lambda: place.subscribers == 1)


async def test_a_policy_that_crashes_ends_one_stream() -> None:
    def broken(addr: Addr, topic: str) -> bool:
        raise RuntimeError("policy")

    async with running(may_publish=broken) as place, await place.carol.subscribe(BOB) as everything:
        bad = await place.alice.subscribe(BOB, "t")
        await settle()
        await bad.publish("t", "x")
        with pytest.raises(ResetError):
            await next_of(bad)
        assert "plugin.eventstream.panic" in [topic for topic, _ in place.events.take()]
        place.service.broadcast("t", "y")
        assert (await next_of(everything)).text == "y"


async def test_stop_ends_subscriptions_in_order_and_start_begins_anew() -> None:
    async with running() as place:
        subscription = await place.alice.subscribe(BOB, "t")
        await eventually(lambda: place.subscribers == 1)
        await place.service.stop()
        assert [event async for event in subscription] == []
        for use in (lambda: place.service.client, lambda: place.service.broadcast("t")):
            with pytest.raises(ServiceNotReadyError):
                use()
        await place.service.start(place.deps)
        assert place.subscribers == 0
        await place.service.client.publish(BOB, "t", "to myself")


async def test_what_cannot_be_sent_opens_no_stream() -> None:
    async with running() as place:
        for call in (place.alice.publish(BOB, "t" * 1025), place.alice.subscribe(BOB, "t" * 1025)):
            with pytest.raises(InvalidValueError):
                await call
        with pytest.raises(InvalidValueError):
            await place.alice.publish("bob", "t")  # a name, and no resolver
        with pytest.raises(PeerNotFoundError):
            await place.service.client.publish("nobody", "t")
        with pytest.raises(InvalidValueError):
            place.service.broadcast("t" * 1025)
        place.service.broadcast(RESERVED_TOPIC)
        assert [topic for topic, _ in place.events.take()] == ["pubsub.publish_denied"]


async def test_counters() -> None:
    counters: dict[str, Any] = {}

    class Host:
        def add_counter(self, name: str, read: Any) -> None:
            counters[name] = read

    service = EventStreamService.for_node(Host())
    await service.start(Network().deps(2))
    service.broadcast("t")
    assert {name: read() for name, read in counters.items()} == {
        "eventstream.published": 1,
        "eventstream.dropped": 0,
        "eventstream.subscribers": 0,
    }
    await service.stop()
