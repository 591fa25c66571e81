"""Our node and the official daemon through restarts, dead peers, cut paths and relays: traffic resumes by itself."""

from __future__ import annotations

import asyncio
import random
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise

import pytest

from pilot._fast.errors import PilotError
from pilot.node import Node
from tests.interop.ipc import IpcError, eventually
from tests.interop.official import AFTER_TUNNEL_LOSS
from tests.interop.ours import our_node

IP_PROTOCOL = 0x0800
QUIET_SECONDS = 6.0
"""Longest silence after a failover: what our attempts cost the daemon before was 9 s each, at 18 and 33 s."""


async def echo(node: Node, target: str, data: bytes, *, timeout: float = 20) -> None:
    async with await node.dial(target, 7, timeout=timeout) as stream:
        await stream.write(data)
        assert await stream.readexactly(len(data)) == data


async def echo_from(client, address: str, data: bytes, *, timeout: float = 35) -> None:
    async with await client.dial(address, 7, timeout=timeout) as stream:
        await stream.write(data)
        assert await stream.readexactly(len(data)) == data


def path_to(node: Node, peer: int) -> str:
    return next((p.path for p in node.stats().peers if p.node_id == peer), "none")


@asynccontextmanager
async def datagrams_between(source: str, target: str) -> AsyncIterator[list[bytes]]:
    """UDP payloads seen on the wire from one host to the other."""
    seen: list[bytes] = []
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(IP_PROTOCOL)) as wire:
        wire.bind(("lo", IP_PROTOCOL))
        wire.setblocking(False)
        ends = socket.inet_aton(source), socket.inet_aton(target)

        def take() -> None:
            while True:
                try:
                    packet = wire.recv(65535)
                except BlockingIOError:
                    return
                if packet[9] == socket.IPPROTO_UDP and (packet[12:16], packet[16:20]) == ends:
                    seen.append(packet[28:])

        loop = asyncio.get_running_loop()
        loop.add_reader(wire, take)
        try:
            yield seen
        finally:
            take()
            loop.remove_reader(wire)


async def test_the_daemon_restarts(start_daemon, rendezvous, namespace):
    daemon = await start_daemon("bob", public=True, expect=AFTER_TUNNEL_LOSS)
    async with our_node(namespace, rendezvous) as node:
        await echo(node, "bob", b"before")
        async with await daemon.ipc() as client:
            await echo_from(client, str(node.address), b"before")
        await daemon.restart(kill=True)
        await echo(node, "bob", b"after")
        async with await daemon.ipc() as client:
            await echo_from(client, str(node.address), b"after")
        await daemon.restart(kill=True)
        async with await daemon.ipc() as client:
            await echo_from(client, str(node.address), b"again, theirs first")
        await echo(node, "bob", b"again")


async def test_our_node_restarts(start_daemon, rendezvous, namespace, tmp_path):
    daemon = await start_daemon("bob", public=True, expect=AFTER_TUNNEL_LOSS)
    state = {"state_dir": str(tmp_path / "ours"), "listen": f"{namespace.new_host()}:4100"}
    async with await daemon.ipc() as client:
        async with our_node(namespace, rendezvous, **state) as node:
            address = str(node.address)
            await echo(node, "bob", b"before")
            await echo_from(client, address, b"before")
        async with our_node(namespace, rendezvous, **state) as node:
            assert str(node.address) == address
            await echo_from(client, address, b"after, theirs first")
            await echo(node, "bob", b"after")
        async with our_node(namespace, rendezvous, **state) as node:
            await echo(node, "bob", b"after, ours first")
            await echo_from(client, address, b"after")


async def test_a_stale_stream_swallows_nothing(start_daemon, rendezvous, namespace):
    """The daemon's ports start at 49152 after every start: a new life's first dial meets the old life's stream."""
    daemon = await start_daemon("bob", public=True, expect=AFTER_TUNNEL_LOSS)
    async with our_node(namespace, rendezvous) as node, await node.listen(1000) as listener:
        ports = []
        for life in range(3):
            async with await daemon.ipc() as client:
                theirs = await client.dial(str(node.address), 1000)
                data = random.Random(life).randbytes(5000)
                await theirs.write(data)
                stream = await listener.accept()
                assert await stream.readexactly(len(data)) == data
                ports.append(stream.remote_port)
                await daemon.kill()
            await daemon.restart(kill=True)
        assert ports[0] == ports[1] == ports[2], "this test needs the daemon to repeat its port"


async def test_a_dead_daemon(start_daemon, rendezvous, namespace):
    daemon = await start_daemon("bob", public=True)
    async with our_node(namespace, rendezvous) as node:
        await daemon.kill()
        with pytest.raises((TimeoutError, PilotError)) as caught:
            await node.dial(f"0:0000.{daemon.node_id >> 16:04X}.{daemon.node_id & 0xFFFF:04X}", 7, timeout=4)
        assert "key exchange" in str(caught.value)
        await daemon.start()


async def our_node_is_dead(start_daemon, rendezvous, namespace, tmp_path):
    gives_up = ("rekey retransmit gave up", "rekey gave up")  # after half a minute, if it runs for so long
    daemon = await start_daemon("alone", public=True, expect=(*AFTER_TUNNEL_LOSS, *gives_up))
    async with await daemon.ipc() as client:
        async with our_node(namespace, rendezvous, "dead", state_dir=str(tmp_path / "dead")) as node:
            address = str(node.address)
        with pytest.raises(IpcError, match="dial timeout"):
            await client.dial(address, 7)


async def the_direct_path_is_cut_and_heals(start_daemon, rendezvous, namespace):
    daemon = await start_daemon("severed", public=True, expect=(*AFTER_TUNNEL_LOSS, "tunnel decrypt error"))
    async with our_node(namespace, rendezvous, "cut") as node:
        here, there = node.endpoint[0], daemon.endpoint[0]
        async with await node.dial("severed", 7, timeout=10) as stream:

            async def echo_once(data: bytes) -> None:
                await stream.write(data)
                assert await stream.readexactly(len(data)) == data

            await echo_once(b"direct")
            assert path_to(node, daemon.node_id) == "direct"
            with namespace.cut(here, there):
                for number in range(40):
                    await asyncio.wait_for(echo_once(b"cut %d" % number), 40)
                    if path_to(node, daemon.node_id) == "relay":
                        break
                    await asyncio.sleep(0.5)
                assert path_to(node, daemon.node_id) == "relay"
                await asyncio.wait_for(echo_once(random.Random(5).randbytes(300_000)), 40)
            healed = time.monotonic() + 60
            while path_to(node, daemon.node_id) != "direct" and time.monotonic() < healed:
                await echo_once(b"healed?")
                await asyncio.sleep(0.5)
            assert path_to(node, daemon.node_id) == "direct"
            async with echoes(stream):
                assert await goes_straight(here, there)
                assert await goes_straight(there, here)
            await echo_once(random.Random(6).randbytes(300_000))


@asynccontextmanager
async def echoes(stream) -> AsyncIterator[list[float]]:
    """When echoes have arrived, asked for three times a second."""
    arrived: list[float] = []

    async def ask() -> None:
        while True:
            await stream.write(bytes(200))
            await asyncio.sleep(0.3)

    async def take() -> None:
        while True:
            await stream.readexactly(200)
            arrived.append(time.monotonic())

    tasks = [asyncio.create_task(ask()), asyncio.create_task(take())]
    try:
        yield arrived
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def goes_straight(source: str, target: str) -> bool:
    """Whether more sealed frames go straight to the other host than the five probes of the daemon."""
    async with datagrams_between(source, target) as seen:
        await asyncio.sleep(2)
    return sum(data[:4] == b"PILS" for data in seen) > 6


async def the_direct_path_is_open_one_way(start_daemon, rendezvous, namespace, deaf):
    """The failover takes 8 s or twice that, as the daemon gives a path up 8 s after the last direct frame it got."""
    daemon = await start_daemon(f"half-{deaf}", public=True, expect=AFTER_TUNNEL_LOSS)
    async with our_node(namespace, rendezvous, f"beside-{deaf}") as node:
        here, there = node.endpoint[0], daemon.endpoint[0]
        ways = (there, here) if deaf == "ours" else (here, there)
        async with await node.dial(f"half-{deaf}", 7, timeout=10) as stream, echoes(stream) as arrived:
            await eventually(lambda: len(arrived) > 3)
            assert path_to(node, daemon.node_id) == "direct"
            with namespace.cut(*ways, one_way=True):
                start = time.monotonic()
                await eventually(lambda: path_to(node, daemon.node_id) == "relay", 40)
                await eventually(lambda: arrived[-1] > start + 12, 40)
                settled = time.monotonic()
                await asyncio.sleep(max(0.0, start + 38 - settled))  # two attempts of either side
                times = [settled, *(at for at in arrived if at > settled), time.monotonic()]
                assert max(later - before for before, later in pairwise(times)) < QUIET_SECONDS
                assert path_to(node, daemon.node_id) == "relay"
                assert not await goes_straight(*ways)
            await eventually(lambda: path_to(node, daemon.node_id) == "direct", 60)
            async with asyncio.timeout(60):
                while not (await goes_straight(here, there) and await goes_straight(there, here)):
                    pass


async def relay_only_never_sends_direct(start_daemon, rendezvous, namespace):
    daemon = await start_daemon("relayed", public=True, expect=AFTER_TUNNEL_LOSS)
    async with our_node(namespace, rendezvous, "relay-only", relay_only=True) as node, await daemon.ipc() as client:
        async with datagrams_between(node.endpoint[0], daemon.endpoint[0]) as seen:
            await echo(node, "relayed", random.Random(9).randbytes(100_000))
            await echo_from(client, str(node.address), random.Random(10).randbytes(100_000))
            await asyncio.sleep(17)  # one round of the daemon's upgrade attempts and punches
            await echo(node, "relayed", b"still by relay")
        assert seen == []


@pytest.mark.usefixtures("filtering")
async def test_timers_of_the_daemon(start_daemon, rendezvous, namespace, tmp_path):
    """Beside each other, as each of these waits most of half a minute for the daemon's dials or attempts."""
    async with asyncio.TaskGroup() as group:
        group.create_task(our_node_is_dead(start_daemon, rendezvous, namespace, tmp_path))
        group.create_task(the_direct_path_is_cut_and_heals(start_daemon, rendezvous, namespace))
        group.create_task(relay_only_never_sends_direct(start_daemon, rendezvous, namespace))
        group.create_task(the_direct_path_is_open_one_way(start_daemon, rendezvous, namespace, "ours"))
        group.create_task(the_direct_path_is_open_one_way(start_daemon, rendezvous, namespace, "daemon"))


@pytest.mark.usefixtures("filtering")
async def test_no_direct_path_from_the_start(start_daemon, rendezvous, namespace):
    daemon = await start_daemon("bob", public=True, expect=AFTER_TUNNEL_LOSS)
    async with our_node(namespace, rendezvous) as node, await daemon.ipc() as client:
        with namespace.cut(node.endpoint[0], daemon.endpoint[0]):
            await echo(node, "bob", random.Random(7).randbytes(100_000))
            await echo_from(client, str(node.address), random.Random(8).randbytes(100_000))


async def test_a_daemon_that_is_relay_only(start_daemon, rendezvous, namespace):
    daemon = await start_daemon("bob", public=True, relay_only=True, expect=AFTER_TUNNEL_LOSS)
    async with our_node(namespace, rendezvous) as node, await daemon.ipc() as client:
        await echo(node, "bob", random.Random(11).randbytes(100_000))
        await echo_from(client, str(node.address), random.Random(12).randbytes(100_000))
        assert path_to(node, daemon.node_id) == "relay"


async def test_the_registry_is_away(start_daemon, rendezvous, namespace):
    daemon = await start_daemon("bob", public=True, expect=("registry", "heartbeat", *AFTER_TUNNEL_LOSS))
    async with our_node(namespace, rendezvous) as node, await node.dial("bob", 7, timeout=10) as stream:
        await rendezvous.server.stop()
        data = random.Random(13).randbytes(500_000)
        sender = asyncio.create_task(stream.write(data))
        assert await stream.readexactly(len(data)) == data
        await sender
        address = f"0:0000.{daemon.node_id >> 16:04X}.{daemon.node_id & 0xFFFF:04X}"
        await echo(node, address, b"a new stream needs no registry")


async def test_control_ping(start_daemon, rendezvous, namespace):
    await start_daemon("bob", public=True)
    async with our_node(namespace, rendezvous) as node:
        assert 0 < await node.ping("bob", timeout=10) < 10


async def test_the_daemon_pings_us(start_daemon, rendezvous, namespace):
    daemon = await start_daemon("bob", public=True)
    async with our_node(namespace, rendezvous):
        answer = await daemon.ctl("ping", "ours", "--count", "2")
        assert answer
        await eventually(lambda: True)
