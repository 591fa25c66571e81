"""A whole node: starting, stopping, private, without registry, after a fork, from another thread; nothing leaks."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import threading
import time
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pilot._fast.addr import Addr
from pilot._fast.errors import (
    BusyError,
    ClosedError,
    InvalidValueError,
    PathError,
    PeerNotFoundError,
    RegistryError,
)
from pilot.coreapi import Identity, Listener, PeerResolver, Streams
from pilot.node import ECHO_PORT, Node, NodeConfig, runtime
from pilot.node.directory import ClientOptions, RegistryClient
from pilot.rendezvous import Rendezvous, RendezvousConfig
from tests.node.conftest import StartNode, addresses, eventually


async def echo(node: Node, target: str, message: bytes = b"hello") -> None:
    async with await node.dial(target, ECHO_PORT, timeout=5) as stream:
        await stream.write(message)
        assert await stream.readexactly(len(message)) == message


# --------------------------------------------------------------------------------------- start and stop


async def test_parts_are_what_coreapi_says(start_node: StartNode) -> None:
    node = await start_node("alice")
    assert isinstance(node.identity, Identity)
    assert isinstance(node.resolver, PeerResolver)
    assert isinstance(node.streams, Streams)
    async with await node.listen(1000) as listener:
        assert isinstance(listener, Listener)
    assert str(node.address) == "0:0000.0000.0001"
    assert node.endpoint[0] == "127.0.0.1"


def test_settings_come_as_config_or_keywords() -> None:
    config = NodeConfig(hostname="a", public=True)
    assert Node(config, hostname="b").config == NodeConfig(hostname="b", public=True)
    with pytest.raises(InvalidValueError, match="'hostnam' is no setting"):
        Node(hostnam="a")
    with pytest.raises(InvalidValueError, match="NodeConfig"):
        Node({"hostname": "a"})  # type: ignore[arg-type]


async def test_a_node_that_does_not_run_says_so(rendezvous: Rendezvous) -> None:
    node = Node(**addresses(rendezvous))
    for call in (lambda: node.address, lambda: node.stats(), lambda: node.datagrams(1), lambda: node.resolver):
        with pytest.raises(ClosedError, match="does not run"):
            call()
    with pytest.raises(ClosedError):
        await node.dial("bob", 1)
    await node.stop()
    await node.closed()


async def test_stop_ends_everything_and_a_node_can_start_again(rendezvous: Rendezvous, tmp_path: Path) -> None:
    node = Node(**addresses(rendezvous), state_dir=tmp_path, public=True, hostname="alice")
    async with node:
        first = node.address
        with pytest.raises(BusyError):
            await node.start()
        listener = await node.listen(1000)
        ours = await node.dial(first, 1000)
        theirs = await listener.accept()
        accepting = asyncio.ensure_future(listener.accept())
        closed = asyncio.ensure_future(node.closed())
        await asyncio.sleep(0)
    await closed
    for stream in (ours, theirs):
        assert stream.closed
        with pytest.raises(ClosedError):
            await stream.write(b"x")
    with pytest.raises(ClosedError):
        await accepting
    async with node:
        assert node.address == first
        await echo(node, "alice")


async def test_identity_survives_and_state_is_private(rendezvous: Rendezvous, tmp_path: Path) -> None:
    directory = tmp_path / "alice"
    async with Node(**addresses(rendezvous), state_dir=directory) as node:
        key, address = node.identity.public_key, node.address
        with pytest.raises(BusyError, match="in use by another node"):
            await Node(**addresses(rendezvous), state_dir=directory).start()
    assert directory.stat().st_mode & 0o777 == 0o700
    assert (directory / "identity.json").stat().st_mode & 0o777 == 0o600
    async with Node(**addresses(rendezvous), state_dir=directory) as node:
        assert (node.identity.public_key, node.address) == (key, address)


async def test_failed_start_leaves_nothing(tmp_path: Path, free_port: int) -> None:
    async with Rendezvous(RendezvousConfig(registry_port=0, beacon_port=0)) as server:
        where = addresses(server)
        async with Node(**where, state_dir=tmp_path):
            pass
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    tasks, files = asyncio.all_tasks(), open_files()
    node = Node(registry=f"127.0.0.1:{free_port}", state_dir=tmp_path)
    node._parts["open_port"] = broken_port
    with pytest.raises(OSError, match="no port"):
        await node.start()
    node = Node(registry=f"127.0.0.1:{free_port}", state_dir=tmp_path)
    with pytest.raises(RegistryError, match="cannot be reached"):
        await node.start()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert asyncio.all_tasks() == tasks
    assert open_files() == files


def broken_port(config: NodeConfig) -> Any:
    raise OSError("no port")


async def test_cancelled_start_leaves_nothing(free_port: int) -> None:
    tasks = asyncio.all_tasks()
    files: list[list[str]] = []
    for _ in range(3):
        starting = asyncio.ensure_future(Node(registry=f"127.0.0.1:{free_port}").start())
        await asyncio.sleep(0.05)
        starting.cancel()
        await asyncio.wait([starting])
        assert starting.cancelled()
        assert asyncio.all_tasks() == tasks
        files.append(open_files())
    assert files[1] == files[2]  # a loop may keep something of its own after the first


async def test_start_cancelled_at_any_moment_is_cancelled_and_leaves_nothing(rendezvous: Rendezvous) -> None:
    tasks = asyncio.all_tasks()
    ended = 0
    for step in range(60):
        node = Node(**addresses(rendezvous), public=True, listen="127.0.0.1:0")
        starting = asyncio.ensure_future(node.start())
        await asyncio.sleep(step * 0.0002)
        starting.cancel()
        await asyncio.wait([starting])
        if not starting.cancelled():
            starting.result()
            ended += 1
            await node.stop()
        await eventually(lambda: asyncio.all_tasks() == tasks)  # the server's own end a little later
    assert 0 < ended < 60


async def test_nothing_begins_while_the_node_stops(start_node: StartNode) -> None:
    alice, bob = await start_node("alice"), await start_node("bob")
    await echo(alice, "bob")
    unread = await alice.dial("bob", ECHO_PORT)  # keeps the stop busy for a moment
    stopping = asyncio.ensure_future(alice.stop())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    calls: list[Callable[[], Any]] = [
        lambda: alice.dial("bob", ECHO_PORT),
        lambda: alice.listen(1000),
        lambda: alice.send_datagram("bob", 1, b"x"),
        lambda: alice.find("bob"),
    ]
    for call in calls:
        with pytest.raises(ClosedError):
            await call()
    with pytest.raises(ClosedError):
        alice.datagrams(1)
    await stopping
    assert unread.closed
    await eventually(lambda: bob.stats().streams == 0)


@pytest.fixture
def free_port() -> int:
    """A TCP port where nobody listens."""
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


def open_files() -> list[str]:
    return sorted(os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if exists(fd))


def exists(fd: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{fd}") and "/proc/" not in os.readlink(f"/proc/self/fd/{fd}")


async def cycle(rendezvous: Rendezvous, count: int) -> None:
    for _ in range(count):
        async with Node(**addresses(rendezvous), public=True, listen="127.0.0.1:0") as node:
            await echo(node, str(node.address))


async def assert_no_growth(rendezvous: Rendezvous, count: int) -> None:
    await cycle(rendezvous, 5)
    gc.collect()
    tasks, files = len(asyncio.all_tasks()), len(open_files())
    tracemalloc.start()
    try:
        await cycle(rendezvous, 5)
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        await cycle(rendezvous, count)
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert len(asyncio.all_tasks()) == tasks
    assert len(open_files()) <= files
    assert not [thing for thing in gc.get_objects() if isinstance(thing, Node)]
    # The rendezvous remembers every key for ever: well below a kilobyte each. A node is several hundred kilobytes.
    assert grown < count * 4096


async def test_start_and_stop_leak_nothing(rendezvous: Rendezvous) -> None:
    await assert_no_growth(rendezvous, 25)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_a_thousand_starts_and_stops_leak_nothing(rendezvous: Rendezvous) -> None:
    await assert_no_growth(rendezvous, 1000)


async def test_fifty_nodes_in_one_process(start_node: StartNode) -> None:
    nodes = await asyncio.gather(*(start_node(f"n{number}") for number in range(50)))
    await asyncio.gather(*(echo(node, f"n{(number + 1) % 50}") for number, node in enumerate(nodes)))


# --------------------------------------------------------------------------------------------- registry


async def test_tunnels_outlive_a_registry_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    # As many dials as ever, but milliseconds between them, not 7 s in all.
    options = ClientOptions(dial_pauses=(0.01,) * len(ClientOptions().dial_pauses))
    monkeypatch.setattr(runtime, "RegistryClient", partial(RegistryClient, options=options))
    server = Rendezvous(RendezvousConfig(registry_port=0, beacon_port=0))
    await server.start()
    where = addresses(server)
    async with (
        Node(**where, hostname="alice", public=True) as alice,
        Node(**where, hostname="bob", public=True) as bob,
    ):
        stream = await alice.dial("bob", ECHO_PORT)
        bob_address = str(bob.address)
        await server.stop()
        await stream.write(b"still")
        assert await stream.readexactly(5) == b"still"
        await echo(alice, bob_address)
        await echo(alice, "bob")  # the name is known
        assert await alice.ping(bob.address) > 0
        with pytest.raises(RegistryError):
            async with asyncio.timeout(20):
                await alice.dial("carol", 1, timeout=15)
        await stream.close()


async def test_hostname_and_visibility_change_at_run_time(start_node: StartNode) -> None:
    alice, bob = await start_node("alice"), await start_node("bob", public=False)
    with pytest.raises(PeerNotFoundError):
        await alice.dial("bob", ECHO_PORT)
    await bob.set_public(True)
    await bob.set_hostname("robert")
    await asyncio.sleep(3.1)  # a miss is remembered for 3 s
    await echo(alice, "robert")
    await bob.set_hostname("")


async def test_rotated_key_is_used_for_new_peers(start_node: StartNode, tmp_path: Path) -> None:
    alice, bob = await start_node("alice"), await start_node("bob", state_dir=tmp_path)
    await echo(alice, "bob")
    key = await bob.rotate_key()
    assert bob.identity.public_key == key
    await echo(alice, "bob")
    await echo(await start_node("carol"), "bob")


async def test_ping(start_node: StartNode) -> None:
    alice, bob = await start_node("alice"), await start_node("bob")
    assert 0 < await alice.ping("bob") < 5
    assert (await alice.resolver.resolve(bob.node_id)).hostname == "bob"


async def test_restarted_peer_is_found_again(rendezvous: Rendezvous, start_node: StartNode, tmp_path: Path) -> None:
    alice = await start_node("alice")
    settings = {**addresses(rendezvous), "hostname": "bob", "public": True, "state_dir": tmp_path}
    async with Node(**settings):
        await echo(alice, "bob")
    async with Node(**settings):
        await echo(alice, "bob")


# ---------------------------------------------------------------------------------------------- privacy


async def test_private_node_is_silent_to_strangers(start_node: StartNode) -> None:
    alice, hidden = await start_node("alice"), await start_node("hidden", public=False)
    with pytest.raises(PeerNotFoundError):
        await alice.dial("hidden", ECHO_PORT)
    with pytest.raises(PeerNotFoundError):
        await alice.dial(hidden.address, ECHO_PORT)


async def test_private_node_that_dials_may_be_called_back(start_node: StartNode) -> None:
    alice, hidden = await start_node("alice"), await start_node("hidden", public=False)
    await echo(hidden, "alice")
    async with (
        hidden.serve(1000, lambda stream: stream.write(b"hi")),
        await alice.dial(hidden.address, 1000, timeout=5) as stream,
    ):
        assert await stream.readexactly(2) == b"hi"
    assert await alice.ping(hidden.address) > 0


async def test_stranger_with_a_session_gets_neither_stream_nor_refusal_nor_pong_nor_datagram(
    start_node: StartNode,
) -> None:
    alice, hidden = await start_node("alice"), await start_node("hidden", public=False)
    await echo(hidden, "alice")
    await eventually(lambda: hidden.stats().streams == 0)
    hidden._running().gate._dialed.clear()
    with hidden.datagrams(4000) as inbox:
        await alice.send_datagram(hidden.address, 4000, b"x")
        for port in (ECHO_PORT, 1000):
            with pytest.raises(TimeoutError):
                await alice.dial(hidden.address, port, timeout=0.4)
        with pytest.raises(TimeoutError, match="step: ping"):
            await alice.ping(hidden.address, timeout=0.2)
        hidden._parts["trust"] = None
        inbox._inbox.put("nothing came before")  # type: ignore[arg-type]
        assert await inbox._inbox.take() == "nothing came before"


async def test_trust_of_ones_own_opens_the_gate(start_node: StartNode) -> None:
    trusted: set[int] = set()
    alice = await start_node("alice")
    hidden = await start_node("hidden", public=False, trust=trusted.__contains__)
    trusted.add(alice.node_id)
    await alice.resolver.report_trust(hidden.node_id)
    with hidden.datagrams(4000) as inbox:
        await alice.send_datagram(hidden.address, 4000, b"x")
        assert (await inbox.receive()).data == b"x"
    await echo(alice, str(hidden.address))


async def test_registry_vouches_and_a_first_knock_is_answered_at_the_second(start_node: StartNode) -> None:
    alice, hidden = await start_node("alice"), await start_node("hidden", public=False)
    await alice.resolver.report_trust(hidden.node_id)
    await echo(alice, str(hidden.address))


# ------------------------------------------------------------------------------- no beacon, no path, silence


async def test_without_beacon_direct_paths_work(start_node: StartNode) -> None:
    alice, _bob = await start_node("alice", beacon="none"), await start_node("bob", beacon="none")
    await echo(alice, "bob")


async def test_peer_that_is_gone_means_no_path(start_node: StartNode, rendezvous: Rendezvous, tmp_path: Path) -> None:
    alice = await start_node("alice")
    async with Node(**addresses(rendezvous), hostname="bob", public=True, state_dir=tmp_path) as bob:
        address = bob.address
    with pytest.raises((TimeoutError, PathError)):
        await alice.dial(address, ECHO_PORT, timeout=1)
    with pytest.raises(PeerNotFoundError):
        await alice.dial(Addr(0, 12345), ECHO_PORT, timeout=1)


# ------------------------------------------------------------------------------------- threads and forks


async def test_calls_from_another_thread_are_refused(start_node: StartNode) -> None:
    alice = await start_node("alice")
    stream = await alice.dial("alice", ECHO_PORT)
    outcomes: list[str] = []

    def intrude() -> None:
        calls: list[Callable[[], Any]] = [
            lambda: alice.datagrams(1),
            lambda: asyncio.run(alice.resolver.resolve(alice.node_id)),
            lambda: asyncio.run(alice.resolver.list_networks()),
            lambda: asyncio.run(alice.dial("alice", ECHO_PORT)),
            lambda: asyncio.run(stream.read()),
            stream.abort,
        ]
        for call in calls:
            try:
                call()
            except BusyError as error:
                outcomes.append(str(error))

    thread = threading.Thread(target=intrude)
    thread.start()
    await asyncio.to_thread(thread.join)
    assert len(outcomes) == 6
    assert all("run_coroutine_threadsafe" in text for text in outcomes)
    await stream.close()


async def test_after_a_fork_the_childs_copy_is_dead(start_node: StartNode) -> None:
    alice, bob = await start_node("alice"), await start_node("bob")
    stream = await alice.dial("bob", ECHO_PORT)
    port = alice._running().port

    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        outcome = "nothing was refused"
        try:
            refused = 0
            for call in (alice.datagrams, stream.write_nowait):
                try:
                    call(1)  # type: ignore[arg-type]
                except ClosedError as error:
                    refused += "fork" in str(error)
            keys = [peer.session for peer in alice._running().datapath.peers()]
            outcome = f"{refused} refused, port closed {port.closed}, keys {keys}"
        finally:
            os.write(write, outcome.encode())
            os._exit(0)
    os.close(write)
    outcome = await asyncio.to_thread(os.read, read, 1000)
    os.close(read)
    await asyncio.to_thread(os.waitpid, child, 0)
    assert outcome == b"2 refused, port closed True, keys [None]"
    await stream.write(b"parent")
    assert await stream.readexactly(6) == b"parent"
    assert await bob.ping("alice") > 0
    await stream.close()


def child_main(where: dict[str, str], seconds: float) -> None:
    async def main() -> None:
        async with Node(**where, hostname="child", public=True):
            await asyncio.sleep(seconds)

    asyncio.run(main())


async def test_spawned_child_has_a_node_of_its_own(start_node: StartNode, rendezvous: Rendezvous) -> None:
    alice = await start_node("alice")
    child = multiprocessing.get_context("spawn").Process(target=child_main, args=(addresses(rendezvous), 30))
    child.start()
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                await echo(alice, "child")
                break
            except PeerNotFoundError:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.5)
    finally:
        child.kill()
        await asyncio.to_thread(child.join)


# ------------------------------------------------------------------------------------------------ relay


async def test_relay_only_node_is_reached_through_the_beacon(start_node: StartNode) -> None:
    alice, hidden = await start_node("alice"), await start_node("hidden", relay_only=True)
    await echo(alice, "hidden", bytes(100_000))
    await echo(hidden, "alice", bytes(100_000))
    for node in (alice, hidden):
        [peer] = node.stats().peers
        assert (peer.path, peer.endpoint, peer.authenticated) == ("relay", None, True)


async def test_stats_tell_path_round_trip_and_traffic(start_node: StartNode) -> None:
    alice, bob = await start_node("alice"), await start_node("bob")
    await echo(alice, "bob", bytes(100_000))
    stats = alice.stats()
    [peer] = stats.peers
    assert (peer.node_id, peer.path, peer.endpoint) == (bob.node_id, "direct", bob.endpoint)
    assert peer.rtt is not None
    assert 0 < peer.rtt < 5
    assert peer.silence is not None
    assert stats.bytes_in > 100_000 < stats.bytes_out
    assert stats.counters["frames_received"] > 0


# ----------------------------------------------------------------------------------------------- events


async def test_events_of_a_dial(start_node: StartNode) -> None:
    alice, bob = await start_node("alice"), await start_node("bob")
    with alice.events.subscribe("tunnel.*") as tunnels, bob.events.subscribe("conn.*") as streams:
        await echo(alice, "bob")
        event = await anext(tunnels)
        assert (event.topic, event.node_id) == ("tunnel.established", alice.node_id)
        assert event.payload["authenticated"] is True
        assert (await anext(streams)).topic == "conn.syn_received"
        event = await anext(streams)
        assert event.topic == "conn.established"
        assert event.payload["src_addr"] == str(alice.address)
        assert event.payload["dst_port"] == ECHO_PORT


async def test_events_end_with_the_node(start_node: StartNode) -> None:
    alice = await start_node("alice")
    events = alice.events.subscribe("nothing.*")
    waiting = asyncio.ensure_future(anext(events))
    await asyncio.sleep(0)
    await alice.stop()
    with pytest.raises(StopAsyncIteration):
        await waiting
    with pytest.raises(ClosedError):
        alice.events.subscribe("")
