"""The TCP port, its limits and TLS, start and stop, and the command (rendezvous.md 2)."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import hashlib
import json
import os
import signal
import socket
import ssl
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop

from pilot._fast.errors import BusyError, InvalidValueError
from pilot.protocol import beacon
from pilot.protocol import registry as wire
from pilot.rendezvous import BeaconLimits, Limits, Rendezvous, RendezvousConfig, TlsConfig
from pilot.rendezvous.__main__ import parse_arguments
from pilot.rendezvous.limits import Bucket, Exemptions, IpBuckets, WindowCounter
from tests.rendezvous.helpers import Client, Clock, Identity, connect

ROOT = Path(__file__).parents[2]


def config(**settings: Any) -> RendezvousConfig:
    defaults: dict[str, Any] = {"registry_port": 0, "beacon_port": 0, "limits": Limits.relaxed()}
    return RendezvousConfig(**{**defaults, **settings})


def limited(**limits: Any) -> RendezvousConfig:
    return config(limits=dataclasses.replace(Limits.relaxed(), **limits))


# ----------------------------------------------------------------------------------------- connections


async def test_answers_come_in_order_and_no_state_is_per_connection(server: Rendezvous) -> None:
    node = Identity()
    clients = [await connect(server.registry_address) for _ in range(4)]
    async with contextlib.AsyncExitStack() as stack:
        for client in clients:
            await stack.enter_async_context(client)
        node.node_id = (await clients[0].call(node.registration()))["node_id"]
        for at in range(12):
            assert (await clients[at % 4].call(node.request("heartbeat")))["type"] == "heartbeat_ok"
        for kind in ("beacon_list", "nonsense", "list_networks"):
            clients[0].writer.write(wire.encode_frame({"type": kind}))
        answers = [await clients[0].answer() for _ in range(3)]
        assert [a["type"] for a in answers] == ["beacon_list_ok", "error", "list_networks_ok"]
        assert answers[1]["error"] == 'invalid request: unknown message type "nonsense"'


@pytest.mark.parametrize(
    "frame",
    [
        b"\0\0\0\0",
        b"\0\0\0\2[]",
        b"\0\0\0\1{",
        b"\0\0\0\4\xff\xff\xff\xff",
        b"\xff\xff\xff\xff",
        b"PILT\x01",
        (2 * 1024 * 1024).to_bytes(4, "big") + b"{",
    ],
)
async def test_malformed_and_oversized_frames_close_the_connection(server: Rendezvous, frame: bytes) -> None:
    async with await connect(server.registry_address) as client:
        client.writer.write(frame)
        assert await client.is_closed()
    async with await connect(server.registry_address) as client:
        assert (await client.call({"type": "beacon_list"}))["beacons"] == []


async def test_odd_requests_are_answered(server: Rendezvous) -> None:
    async with await connect(server.registry_address) as client:
        for message in ({}, {"type": None}, {"type": ["x"]}, {"type": "x" * 1_000}, {"type": "lookup", "node_id": {}}):
            assert (await client.call(message))["type"] == "error"


async def test_late_frames_and_idle_connections_are_closed() -> None:
    async with Rendezvous(limited(idle_timeout=0.05, frame_timeout=0.05)) as server:
        for begin in (b"", b"\0\0", b"\0\0\0\x10{"):
            async with await connect(server.registry_address) as client:
                client.writer.write(begin)
                assert await client.is_closed()


async def test_a_client_that_does_not_read_is_closed() -> None:
    async with Rendezvous(limited(write_timeout=0.05, max_connections=1)) as server:
        client = await connect(server.registry_address, limit=1)
        for _ in range(40):
            client.writer.write(wire.encode_frame({"type": "x" * 60_000}) * 20)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(client.writer.drain(), 0.01)
            if client.writer.transport.is_closing():
                break
        client.writer.transport.abort()
        async with await _retry(server) as second:
            assert (await second.call({"type": "beacon_list"}))["type"] == "beacon_list_ok"


async def _retry(server: Rendezvous) -> Client:
    """A connection that is served: a place becomes free a moment after the other end has gone."""
    for _ in range(200):
        client = await connect(server.registry_address)
        with contextlib.suppress(ConnectionError, EOFError):
            await client.call({"type": "beacon_list"})
            return client
        await client.__aexit__()
        await asyncio.sleep(0.02)
    raise AssertionError("no connection was served")


@pytest.mark.parametrize("limit", ["max_connections", "max_connections_per_ip"])
async def test_connections_are_capped(limit: str) -> None:
    async with Rendezvous(limited(**{limit: 1})) as server:
        async with await connect(server.registry_address) as first:
            await first.call({"type": "beacon_list"})
            async with await connect(server.registry_address) as second:
                assert await second.is_closed()
            await first.call({"type": "beacon_list"})
        await (await _retry(server)).__aexit__()


async def test_unfinished_frames_are_capped_together() -> None:
    async with (
        Rendezvous(limited(max_unread_bytes=1_000)) as server,
        await connect(server.registry_address) as first,
        await connect(server.registry_address) as second,
    ):
        first.writer.write((900).to_bytes(4, "big"))
        for _ in range(1_000):
            if server._registry_port._unread_bytes:
                break
            await asyncio.sleep(0.01)
        second.writer.write((200).to_bytes(4, "big"))
        assert await second.is_closed()


# ---------------------------------------------------------------------------------------------- rates


async def test_requests_are_limited_per_ip() -> None:
    clock = Clock()
    limits = dataclasses.replace(Limits.relaxed(), ip_rate=1.0, ip_burst=2.0)
    async with (
        Rendezvous(config(limits=limits, clock=clock)) as server,
        await connect(server.registry_address) as client,
    ):
        kinds = [(await client.call({"type": "beacon_list"}))["type"] for _ in range(3)]
        assert kinds == ["beacon_list_ok", "beacon_list_ok", "error"]
        refusal = (await client.call({"type": "beacon_list"}))["error"]
        assert refusal == "rate limited: too many requests from 127.0.0.1"
        clock.now += 1
        assert (await client.call({"type": "beacon_list"}))["type"] == "beacon_list_ok"


async def test_exempt_sources_have_no_rate() -> None:
    limits = Limits(ip_burst=1.0, ip_rate=0.001, exempt=("127.0.0.0/8",))
    async with Rendezvous(config(limits=limits)) as server, await connect(server.registry_address) as client:
        for _ in range(5):
            assert (await client.call({"type": "beacon_list"}))["type"] == "beacon_list_ok"


async def test_rate_of_one_connection_counts_after_five_seconds() -> None:
    clock = Clock()
    limits = dataclasses.replace(Limits.relaxed(), close_above=2.0)
    async with (
        Rendezvous(config(limits=limits, clock=clock)) as server,
        await connect(server.registry_address) as client,
    ):
        for _ in range(12):
            await client.call({"type": "beacon_list"})
        clock.now += 5
        with pytest.raises((EOFError, ConnectionError)):
            await client.call({"type": "beacon_list"})


async def test_rate_of_the_whole_server_counts_after_five_seconds() -> None:
    clock = Clock()
    limits = dataclasses.replace(Limits.relaxed(), total_rate=1.0)
    async with (
        Rendezvous(config(limits=limits, clock=clock)) as server,
        await connect(server.registry_address) as client,
    ):
        for _ in range(3):
            assert (await client.call({"type": "beacon_list"}))["type"] == "beacon_list_ok"
        clock.now += 6
        assert (await client.call({"type": "beacon_list"}))["type"] == "beacon_list_ok"
        assert (await client.call({"type": "beacon_list"}))["error"].startswith("rate limited: the registry is busy")


def test_buckets_and_tables_are_bounded() -> None:
    bucket = Bucket(2.0, 3.0)
    assert [bucket.take(0.0) for _ in range(4)] == [True, True, True, False]
    assert bucket.take(0.5)
    assert not bucket.take(0.5)
    buckets = IpBuckets(1.0, 1.0, 2)
    assert [buckets.take(host, 0.0) for host in "abcab"] == [True] * 5
    assert len(buckets) == 2
    assert not buckets.take("b", 0.0)
    window = WindowCounter(1, 1)
    assert [window.take(key, 0.0) for key in "aab"] == [True, False, False]
    assert window.take("b", 1.0)


def test_exemptions() -> None:
    assert "192.0.2.1" in Exemptions(("*",))
    assert "192.0.2.1" not in Exemptions(())
    mixed = Exemptions(("192.0.2.0/24", "2001:db8::/32"))
    assert [host in mixed for host in ("192.0.2.9", "192.0.3.9", "2001:db8::9")] == [True, False, True]
    with pytest.raises(InvalidValueError, match="CIDR"):
        Exemptions(("here",))


# ------------------------------------------------------------------------------------------------ TLS


def pinned() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


async def test_tls_with_a_generated_certificate_that_clients_pin() -> None:
    async with (
        Rendezvous(config(tls=TlsConfig())) as server,
        await connect(server.registry_address, ssl=pinned()) as client,
    ):
        tls = client.writer.get_extra_info("ssl_object")
        assert tls.version() == "TLSv1.3"
        assert hashlib.sha256(tls.getpeercert(binary_form=True)).hexdigest() == server.tls_fingerprint
        assert (await client.call(Identity().registration()))["node_id"] == 1


async def test_tls_refuses_older_versions_and_plain_text() -> None:
    async with Rendezvous(config(tls=TlsConfig())) as server:
        old = pinned()
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await connect(server.registry_address, ssl=old)
        async with await connect(server.registry_address) as client:
            client.writer.write(wire.encode_frame({"type": "beacon_list"}))
            with contextlib.suppress(EOFError, ConnectionError, InvalidValueError):
                assert "beacons" not in await client.answer()


async def test_the_pin_survives_a_restart(tmp_path: Path) -> None:
    store = str(tmp_path / "registry.db")
    pins = []
    for _ in range(2):
        async with Rendezvous(config(tls=TlsConfig(), store=store)) as server:
            pins.append(server.tls_fingerprint)
    assert pins[0] == pins[1]
    assert stat.S_IMODE(os.stat(store + ".key").st_mode) == 0o600
    files = TlsConfig(cert_file=store + ".crt", key_file=store + ".key")
    async with Rendezvous(config(tls=files)) as server:
        assert server.tls_fingerprint == pins[0]


async def test_tls_files_that_cannot_be_used(tmp_path: Path) -> None:
    for tls in (TlsConfig(cert_file="x"), TlsConfig(cert_file=str(tmp_path / "a"), key_file=str(tmp_path / "b"))):
        with pytest.raises(InvalidValueError, match="TLS"):
            await Rendezvous(config(tls=tls)).start()


# -------------------------------------------------------------------------------------- start and stop


async def test_stop_leaves_nothing(tmp_path: Path) -> None:
    gc.collect()
    files = set(os.listdir("/proc/self/fd"))
    tasks = asyncio.all_tasks()
    server = Rendezvous(config(tls=TlsConfig(), store=str(tmp_path / "registry.db")))
    await server.start()
    clients = [await connect(server.registry_address, ssl=pinned()) for _ in range(3)]
    node = Identity()
    node.node_id = (await clients[0].call(node.registration()))["node_id"]
    clients[1].writer.write(b"\0\0")
    await server.stop()
    await server.stop()
    assert asyncio.all_tasks() == tasks
    for client in clients:
        assert await client.is_closed()
        await client.__aexit__()
    gc.collect()
    assert set(os.listdir("/proc/self/fd")) == files
    with pytest.raises(BusyError, match="started before"):
        await server.start()


async def test_ports_in_use_and_bad_hosts_leave_nothing(server: Rendezvous) -> None:
    tasks = asyncio.all_tasks()
    with pytest.raises(OSError):
        await Rendezvous(config(registry_port=server.registry_address[1])).start()
    with pytest.raises(OSError):
        await Rendezvous(config(beacon_port=server.beacon_address[1])).start()
    with pytest.raises(InvalidValueError, match="not an IP address"):
        await Rendezvous(config(host="rendezvous.example")).start()
    assert asyncio.all_tasks() == tasks


async def test_ipv6_and_mapped_sources() -> None:
    try:
        server = Rendezvous(config(host="::"))
        await server.start()
    except OSError:
        pytest.skip("no IPv6 here")
    try:
        port = server.registry_address[1]
        async with await connect(("127.0.0.1", port)) as client:
            reply = await client.call(Identity().registration(listen_addr="10.0.0.1:4000"))
            assert reply["observed_addr"] == "127.0.0.1:4000"
        async with await connect(("::1", port)) as client:
            reply = await client.call(Identity().registration(listen_addr="10.0.0.1:4000"))
            assert reply["observed_addr"] == "[::1]:4000"
    finally:
        await server.stop()


async def test_the_reaper_runs() -> None:
    clock = Clock()
    async with (
        Rendezvous(config(clock=clock, reap_interval=0.005)) as server,
        await connect(server.registry_address) as client,
    ):
        await client.call(Identity().registration())
        clock.now += 1_801
        for _ in range(1_000):
            reply = await client.call({"type": "lookup", "node_id": 1})
            if reply["type"] == "error":
                break
            await asyncio.sleep(0.01)
        assert reply["error"] == "node 1: node not found"


@pytest.mark.parametrize("new_loop", [asyncio.SelectorEventLoop, uvloop.new_event_loop])
@pytest.mark.parametrize("tls", [None, TlsConfig()])
def test_it_runs_on_both_event_loops(
    new_loop: Callable[[], asyncio.AbstractEventLoop], tls: TlsConfig | None, tmp_path: Path
) -> None:
    async def scenario() -> None:
        node = Identity()
        settings = config(tls=tls, store=str(tmp_path / "registry.db"), beacon_limits=BeaconLimits.relaxed())
        async with (
            Rendezvous(settings) as server,
            await connect(server.registry_address, ssl=pinned() if tls else None) as client,
        ):
            node.node_id = (await client.call(node.registration()))["node_id"]
            assert (await client.call(node.request("heartbeat")))["type"] == "heartbeat_ok"
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
                peer.setblocking(False)
                peer.connect(server.beacon_address)
                loop = asyncio.get_running_loop()
                peer.send(beacon.encode_discover(node.node_id))
                reply = await asyncio.wait_for(loop.sock_recv(peer, 65_536), 10)
                assert beacon.parse_endpoint_untrusted(reply) == peer.getsockname()
                peer.send(beacon.wrap_relay(7, node.node_id, bytes(60_000)))
                reply = await asyncio.wait_for(loop.sock_recv(peer, 65_536), 10)
                assert reply == beacon.wrap_deliver(7, bytes(60_000))

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(scenario())


# -------------------------------------------------------------------------------------------- command


def test_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PILOT_ADMIN_TOKEN", raising=False)
    settings, as_json = parse_arguments([])
    assert (settings.registry_port, settings.beacon_port, settings.store) == (9000, 9001, ":memory:")
    assert (settings.admin_token, settings.tls, as_json) == (None, None, False)
    values = {"host": "::", "registry-port": "1", "beacon-port": "2", "store": "x", "admin-token": "t", "tls-cert": "c"}
    values |= {"tls-key": "k", "advertise-beacon": "b:1", "stale-after": "9"}
    flags = ["--tls", "--json", "--relaxed-limits"]
    settings, as_json = parse_arguments([*(f"--{name}={value}" for name, value in values.items()), *flags])
    assert settings == RendezvousConfig(
        host="::",
        registry_port=1,
        beacon_port=2,
        store="x",
        admin_token="t",
        tls=TlsConfig(cert_file="c", key_file="k"),
        advertise_beacon="b:1",
        stale_after=9,
        limits=Limits.relaxed(),
        beacon_limits=BeaconLimits.relaxed(),
    )
    assert as_json
    monkeypatch.setenv("PILOT_ADMIN_TOKEN", "env")
    assert parse_arguments([])[0].admin_token == "env"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_the_command_stops_cleanly_on_a_signal(number: signal.Signals, tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", "-m", "pilot.rendezvous", "--registry-port", "0", "--beacon-port", "0"),
        *("--store", str(tmp_path / "registry.db"), "--tls", "--json"),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    ready = json.loads(await asyncio.wait_for(process.stdout.readline(), 60))
    assert len(ready["tls_fingerprint"]) == 64
    host, port = ready["registry"].rsplit(":", 1)
    async with await connect((host, int(port)), ssl=pinned()) as client:
        assert (await client.call(Identity().registration()))["node_id"] == 1
        process.send_signal(number)
        out, err = await asyncio.wait_for(process.communicate(), 60)
    assert (process.returncode, out, err) == (0, b"", b"")


async def test_the_command_says_what_is_wrong(server: Rendezvous) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "pilot.rendezvous", "--beacon-port", "0"),
        *("--registry-port", str(server.registry_address[1])),
        cwd=ROOT,
        stderr=asyncio.subprocess.PIPE,
    )
    _, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 1
    assert err.startswith(b"rendezvous: ")
