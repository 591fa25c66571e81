"""Datagrams between two whole nodes over loopback."""

from __future__ import annotations

import asyncio

import pytest

from pilot._fast.addr import Addr
from pilot._fast.errors import InvalidValueError
from pilot.node import Node
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
