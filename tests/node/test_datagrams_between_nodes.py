"""Datagrams between two whole nodes over loopback."""

from __future__ import annotations

import asyncio

import pytest

from pilot._fast.addr import Addr
from pilot._fast.errors import InvalidValueError
from pilot.node import Node
from pilot.testing import World, simulate
from tests.node.conftest import StartNode

Pair = tuple[Node, Node]


async def test_datagrams_arrive_with_their_source(pair: Pair) -> None:
    alice, bob = pair
    with bob.datagrams(4000) as inbox:
        await alice.send_datagram("bob", 4000, b"ping")
        await alice.send_datagram(bob.address, 4000, memoryview(b"pong").cast("H"))
        first, second = await inbox.receive(), await inbox.receive()
    assert (first.source, first.port, first.data) == (alice.address, 4000, b"ping")
    assert first.source_port >= 49152
    assert second.data == b"pong"


async def test_iteration_ends_with_the_node(pair: Pair) -> None:
    alice, bob = pair
    inbox = bob.datagrams(4000)
    await alice.send_datagram("bob", 4000, b"one")

    async def collect() -> list[bytes]:
        return [datagram.data async for datagram in inbox]

    collecting = asyncio.ensure_future(collect())
    await asyncio.sleep(0.1)
    await bob.stop()
    assert await collecting == [b"one"]


async def test_largest_and_too_large(pair: Pair) -> None:
    alice, bob = pair
    with bob.datagrams(4000) as inbox:
        await alice.send_datagram("bob", 4000, bytes(65_437))
        assert len((await inbox.receive()).data) == 65_437
    for data in (b"", bytes(65_438)):
        with pytest.raises(InvalidValueError):
            await alice.send_datagram("bob", 4000, data)
    with pytest.raises(InvalidValueError, match="broadcast"):
        await alice.send_datagram(Addr(0, 0xFFFFFFFF), 4000, b"x")


async def test_to_oneself(start_node: StartNode) -> None:
    alice = await start_node("alice")
    with alice.datagrams(0) as inbox:
        await alice.send_datagram("alice", 0, b"note")
        assert (await inbox.receive()).data == b"note"


async def test_nobody_listening_is_no_error(pair: Pair) -> None:
    alice, bob = pair
    await alice.send_datagram("bob", 4000, b"x")
    with bob.datagrams(4001) as inbox:
        await alice.send_datagram("bob", 4001, b"y")
        assert (await inbox.receive()).data == b"y"


async def test_a_full_inbox_drops_the_oldest(start_node: StartNode) -> None:
    alice, bob = await start_node("alice"), await start_node("bob", datagram_queue=3)
    with bob.datagrams(4000) as inbox, bob.datagrams(4001) as last:
        for number in range(10):
            await alice.send_datagram("bob", 4000, bytes([number]))
        await alice.send_datagram("bob", 4001, b"end")
        await last.receive()
        assert [(await inbox.receive()).data[0] for _ in range(3)] == [7, 8, 9]
        assert inbox.dropped == 7


def test_datagrams_to_a_peer_that_has_just_been_restarted_arrive() -> None:
    """It cannot read them, says so, and gets them again under its new key."""
    got: list[bytes] = []

    async def scenario(world: World) -> None:
        alice, machine = await world.machine("alice").start(), world.machine("bob")
        target = (await machine.start()).address
        await alice.ping(target)
        machine.crash()
        bob = await machine.start()
        with alice.events.subscribe("tunnel.desync_salvage") as told, bob.datagrams(4000) as inbox:

            async def collect() -> None:
                got.extend([datagram.data async for datagram in inbox])

            collecting = asyncio.create_task(collect())
            for number in range(6):
                await alice.send_datagram(target, 4000, b"%d" % number)
            await asyncio.sleep(3.0)
            await alice.send_datagram(target, 4000, b"on")
            await asyncio.sleep(1.0)
            inbox.close()
            await collecting
            event = told.get_nowait()
            assert event is not None
            assert event.payload == {"peer_node_id": target.node, "replayed": 4}

    simulate("salvage", scenario, delay=0.01)
    assert got == [b"2", b"3", b"4", b"5", b"on"]
