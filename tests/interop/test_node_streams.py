"""Our node and the official daemon: dial, echo, many streams, bulk both ways, slow and paused readers."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

import pilot
from tests.interop.official import AFTER_TUNNEL_LOSS
from tests.interop.ours import our_node

MIB = 1 << 20


async def read_exactly(stream: Any, count: int) -> bytes:
    got = bytearray()
    while len(got) < count:
        chunk = await stream.read()
        assert chunk, f"end of stream after {len(got)} of {count} bytes"
        got += chunk
    return bytes(got)


async def test_we_dial_echo(start_daemon, rendezvous, namespace):
    daemon = await start_daemon("bob", public=True)
    data = random.Random(1).randbytes(MIB)
    async with our_node(namespace, rendezvous) as node:
        async with await node.dial("bob", 7, timeout=10) as stream:
            sender = asyncio.create_task(stream.write(data))
            assert await stream.readexactly(len(data)) == data
            await sender
        assert stream.remote_addr.node == daemon.node_id


async def test_they_dial_echo(start_daemon, rendezvous, namespace):
    daemon = await start_daemon("bob", public=True)
    data = random.Random(2).randbytes(MIB)
    async with (
        our_node(namespace, rendezvous) as node,
        await daemon.ipc() as client,
        await client.dial(str(node.address), 7) as stream,
    ):
        sender = asyncio.create_task(stream.write(data))
        assert await stream.readexactly(len(data)) == data
        await sender


async def test_a_hundred_streams_of_ours(start_daemon, rendezvous, namespace):
    await start_daemon("bob", public=True, expect=("rate limit",))
    async with our_node(namespace, rendezvous) as node:

        async def one(seed: int) -> None:
            data = random.Random(seed).randbytes(20000)
            async with await node.dial("bob", 7, timeout=60) as stream:
                sender = asyncio.create_task(stream.write(data))
                assert await stream.readexactly(len(data)) == data
                await sender

        await asyncio.gather(*(one(seed) for seed in range(100)))


async def test_a_hundred_streams_of_theirs(start_daemon, rendezvous, namespace):
    daemon = await start_daemon("bob", public=True)
    async with our_node(namespace, rendezvous) as node, await daemon.ipc() as client:

        async def one(seed: int) -> None:
            data = random.Random(seed).randbytes(20000)
            async with await client.dial(str(node.address), 7, timeout=60) as stream:
                sender = asyncio.create_task(stream.write(data))
                assert await stream.readexactly(len(data)) == data
                await sender

        await asyncio.gather(*(one(seed) for seed in range(100)))


async def test_refused_port_both_ways(start_daemon, rendezvous, namespace):
    daemon = await start_daemon("bob", public=True)
    async with our_node(namespace, rendezvous) as node, await daemon.ipc() as client:
        with pytest.raises(pilot.RefusedError):
            await node.dial("bob", 4242, timeout=10)
        with pytest.raises(Exception, match="connection refused"):
            await client.dial(str(node.address), 4242)


@pytest.mark.parametrize("attempt", range(20))
async def test_one_way_32_mib_to_the_daemon(start_daemon, rendezvous, namespace, attempt):
    """Without pacing. Two official daemons complete none of eight (streams.md 9.7)."""
    daemon = await start_daemon("bob", public=True)
    data = random.Random(attempt).randbytes(32 * MIB)
    async with (
        our_node(namespace, rendezvous) as node,
        await daemon.ipc() as client,
        await client.bind(1000) as listener,
        await node.dial("bob", 1000, timeout=10) as stream,
    ):
        theirs = await listener.accept()
        sender = asyncio.create_task(stream.write(data))
        assert await read_exactly(theirs, len(data)) == data
        await sender
        await stream.drain()


@pytest.mark.parametrize("attempt", range(20))
async def test_one_way_32_mib_from_the_daemon(start_daemon, rendezvous, namespace, attempt):
    daemon = await start_daemon("bob", public=True)
    data = random.Random(attempt).randbytes(32 * MIB)
    async with (
        our_node(namespace, rendezvous) as node,
        await daemon.ipc() as client,
        await node.listen(1000) as listener,
    ):
        theirs = await client.dial(str(node.address), 1000)
        async with await listener.accept() as stream:
            sender = asyncio.create_task(theirs.write(data))
            assert await stream.readexactly(len(data)) == data
            await sender


@pytest.mark.parametrize("attempt", range(3))
async def test_their_reader_is_slower_than_we_write(start_daemon, rendezvous, namespace, attempt):
    """The local client takes pieces with pauses between them, so their window closes again and again."""
    daemon = await start_daemon("bob", public=True)
    data = random.Random(attempt).randbytes(8 * MIB)
    async with (
        our_node(namespace, rendezvous) as node,
        await daemon.ipc() as client,
        await client.bind(1000) as listener,
        await node.dial("bob", 1000, timeout=10) as stream,
    ):
        theirs = await listener.accept()
        sender = asyncio.create_task(stream.write(data))
        got = bytearray()
        while len(got) < len(data):
            client.pause_reading()
            await asyncio.sleep(0.15)
            client.resume_reading()
            for _ in range(400):
                got += await theirs.read()
                if len(got) >= len(data):
                    break
        assert got == data
        await sender


@pytest.mark.parametrize("attempt", range(3))
async def test_our_reader_is_slower_than_they_write(start_daemon, rendezvous, namespace, attempt):
    daemon = await start_daemon("bob", public=True)
    data = random.Random(attempt).randbytes(16 * MIB)
    async with (
        our_node(namespace, rendezvous) as node,
        await daemon.ipc() as client,
        await node.listen(1000) as listener,
    ):
        theirs = await client.dial(str(node.address), 1000)
        async with await listener.accept() as stream:
            sender = asyncio.create_task(theirs.write(data))
            got = bytearray()
            while len(got) < len(data):
                got += await stream.read(1 << 18)
                await asyncio.sleep(0.03)
            assert got == data
            await sender


async def test_our_reader_pauses(start_daemon, rendezvous, namespace):
    daemon = await start_daemon("bob", public=True)
    data = random.Random(3).randbytes(16 * MIB)
    async with (
        our_node(namespace, rendezvous) as node,
        await daemon.ipc() as client,
        await node.listen(1000) as listener,
    ):
        theirs = await client.dial(str(node.address), 1000)
        stream = await listener.accept()
        sender = asyncio.create_task(theirs.write(data))
        await asyncio.sleep(5)
        assert await stream.readexactly(len(data)) == data
        await sender


async def test_their_reader_pauses(start_daemon, rendezvous, namespace):
    daemon = await start_daemon("bob", public=True)
    data = random.Random(4).randbytes(16 * MIB)
    async with (
        our_node(namespace, rendezvous) as node,
        await daemon.ipc() as client,
        await client.bind(1000) as listener,
    ):
        stream = await node.dial("bob", 1000, timeout=10)
        theirs = await listener.accept()
        client.pause_reading()
        sender = asyncio.create_task(stream.write(data))
        await asyncio.sleep(5)
        client.resume_reading()
        assert await read_exactly(theirs, len(data)) == data
        await sender


async def test_user_data_that_looks_like_a_sack(start_daemon, rendezvous, namespace):
    daemon = await start_daemon("bob", public=True)
    lookalike = b"".join(b"SACK" + bytes([n]) + bytes(range(8 * n)) for n in (1, 2, 3, 4))
    async with (
        our_node(namespace, rendezvous) as node,
        await daemon.ipc() as client,
        await client.bind(1000) as listener,
    ):
        stream = await node.dial("bob", 1000, timeout=10)
        theirs = await listener.accept()
        for piece in (lookalike, b"SACK\x01" + bytes(8), b"SACK\x04" + bytes(32)):
            await stream.write(piece)
            assert await read_exactly(theirs, len(piece)) == piece
        await theirs.write(b"SACK\x01" + bytes(8))
        assert await stream.readexactly(13) == b"SACK\x01" + bytes(8)


async def test_datagrams_both_ways(start_daemon, rendezvous, namespace):
    daemon = await start_daemon("bob", public=True)
    async with our_node(namespace, rendezvous) as node, await daemon.ipc() as client:
        inbox = node.datagrams(4000)
        await client.send_datagram(str(node.address), 4000, b"hello")
        got = await asyncio.wait_for(anext(inbox), 10)
        assert (got.data, got.source.node) == (b"hello", daemon.node_id)
        for size in (1, 1400, 60000):
            data = random.Random(size).randbytes(size)
            await node.send_datagram("bob", 4000, data)
            assert (await asyncio.wait_for(client.receive_datagram(), 10)).data == data


async def test_datagrams_to_a_daemon_that_has_just_been_restarted_arrive(start_daemon, rendezvous, namespace):
    """It cannot read them under the key it has lost, and gets the last four again under its new one."""
    daemon = await start_daemon("bob", public=True, expect=AFTER_TUNNEL_LOSS)
    async with our_node(namespace, rendezvous) as node:
        await node.ping("bob")
        await daemon.kill()
        await daemon.start()
        with node.events.subscribe("tunnel.desync_salvage") as told:
            async with await daemon.ipc() as client:
                for number in range(6):
                    await node.send_datagram(str(daemon.address), 4000, b"%d" % number)
                event = await asyncio.wait_for(anext(told), 20)
                assert event.payload == {"peer_node_id": daemon.node_id, "replayed": 4}
                got: set[bytes] = set()  # it may have kept the one that it asked for a key with
                while len(got) < 4:
                    got.add((await asyncio.wait_for(client.receive_datagram(), 10)).data)
                assert got == {b"2", b"3", b"4", b"5"}
