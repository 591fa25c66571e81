"""The conformance suites: what the library brings passes them, and what breaks the contract does not (testing)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from pilot._fast.eventbus import EventBus
from pilot.coreapi import Addr, Deps, Listener, Service, Stream, Subscription
from pilot.node import Node
from pilot.testing import virtual_network
from pilot.testing.coreapi import (
    EVENT_BUS_CHECKS,
    SERVICE_CHECKS,
    STREAMS_CHECKS,
    StreamsUnderTest,
    node_deps,
)
from tests.testing.checks import by_name, failing


@by_name(EVENT_BUS_CHECKS)
async def test_the_bus(check: Callable[[Callable[[], EventBus]], Awaitable[None]]) -> None:
    await check(EventBus)


@by_name(STREAMS_CHECKS)
def test_the_streams_of_a_virtual_network(check: Callable[[StreamsUnderTest], Any]) -> None:
    with virtual_network(7, rtt=0.02, loss=0.02, rate=1e9) as net:
        alice, bob = net.node("alice"), net.node("bob")
        net.run(check(StreamsUnderTest(alice.streams, bob.streams, bob.address)))


@by_name(STREAMS_CHECKS)
async def test_the_streams_of_real_sockets(
    check: Callable[[StreamsUnderTest], Awaitable[None]], pilot_nodes: Any
) -> None:
    async with pilot_nodes("alice", "bob") as (alice, bob):
        await check(StreamsUnderTest(alice.streams, bob.streams, bob.address))


@by_name(STREAMS_CHECKS)
def test_the_streams_of_a_node_to_itself(check: Callable[[StreamsUnderTest], Any]) -> None:
    with virtual_network(8) as net:
        alice = net.node("alice")
        net.run(check(StreamsUnderTest(alice.streams, alice.streams, alice.address)))


class Greeter(Service):
    """The good service of these tests; the others each break one promise."""

    name, order = "greeter", 150

    async def start(self, deps: Deps) -> None:
        self.listener = await deps.streams.listen(1500)
        self.task = asyncio.create_task(self.accept())

    async def stop(self) -> None:
        await self.listener.close()
        await self.task

    async def accept(self) -> None:
        async for stream in self.listener:
            await stream.write(b"hi\n")
            await stream.close()


@by_name(SERVICE_CHECKS)
def test_a_good_service(check: Callable[[Callable[[], Service], Deps], Any]) -> None:
    with virtual_network() as net:
        net.run(check(Greeter, node_deps(net.node("host"))))


class Leaves(Greeter):
    """Leaves a task behind."""

    async def stop(self) -> None:
        await super().stop()
        task = asyncio.create_task(asyncio.sleep(30))
        self.forgotten = task


class Once(Greeter):
    """Cannot be started twice."""

    started = False

    async def start(self, deps: Deps) -> None:
        if self.started:
            raise RuntimeError("started before")
        self.started = True
        await super().start(deps)


class Crashes(Greeter):
    """Crashes in stop."""

    async def stop(self) -> None:
        await super().stop()
        raise RuntimeError


class Nameless(Greeter):
    """Has a name that cannot be used."""

    name = ""


@pytest.mark.parametrize("kind", [Leaves, Once, Crashes, Nameless], ids=lambda kind: kind.__name__)
def test_a_bad_service_is_found_out(kind: type[Service]) -> None:
    def failed() -> list[str]:
        names = []
        for check in SERVICE_CHECKS:
            with virtual_network() as net:
                net.world.expected_errors.add("pilot.coreapi")

                async def run(node: Node, check: Any = check) -> bool:
                    try:
                        await check(kind, node_deps(node))
                    except Exception:
                        return True
                    finally:
                        await asyncio.sleep(60)  # what was left behind ends
                    return False

                if net.run(run(net.node("host"))):
                    names.append(check.__name__)
        return names

    assert failed()


class Forgetful:
    """A bus that keeps to the contract but for one promise: it does not count what it drops."""

    def __init__(self) -> None:
        self.bus = EventBus()

    def publish(self, topic: str, payload: dict[str, Any]) -> None:
        self.bus.publish(topic, payload)

    def subscribe(self, pattern: str = "", *, capacity: int = 1024) -> Subscription:
        return self.bus.subscribe(pattern, capacity=1024)


async def test_a_bad_bus_is_found_out() -> None:
    failed = await failing(EVENT_BUS_CHECKS, Forgetful)
    assert failed == ["a_full_subscriber_loses_and_counts_and_others_do_not"]


class Careless:
    """Streams that keep to the contract but for one promise: an exception closes them like success does."""

    def __init__(self, node: Node) -> None:
        self.streams = node.streams

    async def dial(self, dst: Addr, port: int, *, timeout: float | None = None) -> Stream:
        stream: Any = await self.streams.dial(dst, port, timeout=timeout)
        return CarelessStream(stream)  # type: ignore[return-value]

    async def listen(self, port: int) -> Listener:
        return await self.streams.listen(port)

    async def send_datagram(self, dst: Addr, port: int, data: bytes) -> None:
        await self.streams.send_datagram(dst, port, data)


class CarelessStream:
    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    async def __aenter__(self) -> CarelessStream:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stream.close()

    def __aiter__(self) -> Any:
        return self._stream

    async def __anext__(self) -> bytes:
        return await self._stream.__anext__()


def test_bad_streams_are_found_out() -> None:
    failed = []
    for check in STREAMS_CHECKS:
        with virtual_network() as net:
            alice, bob = net.node("alice"), net.node("bob")
            try:
                net.run(check(StreamsUnderTest(Careless(alice), bob.streams, bob.address)))
            except AssertionError:
                failed.append(check.__name__)
    assert "an_exception_resets" in failed
