"""The harness itself: the namespace is closed, cuts are silent, pausing a client is felt by the sender (below L9)."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import pytest

from tests.interop.conftest import StartDaemon, StartProbe
from tests.interop.ipc import IpcError
from tests.interop.netns import Namespace


def receiver(host: str) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    sock.bind((host, 5000))
    sock.setblocking(False)
    return sock


def delivered(source: str, to: socket.socket, count: int = 1) -> int:
    """Send `count` datagrams and return how many arrived; on loopback they have when the send returns."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.bind((source, 0))
        for _ in range(count):
            sender.sendto(b"x", to.getsockname())
    arrived = 0
    while True:
        try:
            to.recv(1)
        except BlockingIOError:
            return arrived
        arrived += 1


def test_nothing_but_loopback() -> None:
    assert [name for _, name in socket.if_nameindex()] == ["lo"]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, pytest.raises(OSError, match="unreachable"):
        sock.connect(("10.1.2.3", 53))


async def test_daemon_runs_in_the_same_namespace(start_daemon: StartDaemon) -> None:
    daemon = await start_daemon("alice", public=True)
    mine = os.readlink("/proc/thread-self/ns/net")
    assert os.readlink(f"/proc/{daemon.pid}/ns/net") == mine


def test_leaving_restores_the_namespace(namespace: Namespace) -> None:
    inside = os.readlink("/proc/thread-self/ns/net")
    other = Namespace()
    try:
        with other.entered():
            assert os.readlink("/proc/thread-self/ns/net") != inside
        assert os.readlink("/proc/thread-self/ns/net") == inside
    finally:
        other.close()
    assert not Path("/run/netns", other.name).exists()


@pytest.mark.usefixtures("filtering")
def test_cut_and_lose(namespace: Namespace) -> None:
    here, there = namespace.new_host(), namespace.new_host()
    with receiver(here) as at_here, receiver(there) as at_there:
        assert (delivered(here, at_there), delivered(there, at_here)) == (1, 1)
        with namespace.cut(here, there):
            assert (delivered(here, at_there), delivered(there, at_here)) == (0, 0)
        with namespace.cut(here, there, one_way=True):
            assert (delivered(here, at_there), delivered(there, at_here)) == (0, 1)
        with namespace.lose(here, there, 50):
            assert 100 < delivered(here, at_there, 400) < 300
        assert (delivered(here, at_there), delivered(there, at_here)) == (1, 1)


async def test_paused_client_stops_the_sender(start_daemon: StartDaemon) -> None:
    alice, bob = await start_daemon("alice", public=True), await start_daemon("bob", public=True)
    async with await alice.ipc() as here, await bob.ipc() as there, await there.bind(1000) as listener:
        stream = await here.dial(bob.address, 1000)
        accepted = await listener.accept()
        there.pause_reading()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(2):
                await stream.write(bytes(16 << 20))
        assert not accepted.unread
        there.resume_reading()
        assert await accepted.readexactly(65536) == bytes(65536)


async def test_client_goes_on_after_a_dial_that_timed_out(start_daemon: StartDaemon, start_probe: StartProbe) -> None:
    alice, silent = await start_daemon("alice", public=True), await start_probe()
    async with await alice.ipc() as client:
        with pytest.raises(TimeoutError):
            await client.dial(silent.address, 7, timeout=0.2)
        assert (await client.health())["status"] == "ok"
        with pytest.raises(IpcError, match="already bound"):
            await client.bind(7)


async def test_log_problems_are_found(start_daemon: StartDaemon) -> None:
    daemon = await start_daemon("alice", hostname="Not A Name", expect=("hostname",))
    (problem,) = daemon.log_problems()
    assert "hostname" in problem
    assert daemon.log_problems("hostname") == []
