"""The name server over streams: client, records that end, limits, its file, hostile callers."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pilot.coreapi import (
    Addr,
    InvalidValueError,
    PeerNotFoundError,
    RefusedError,
    RegistryError,
    ResetError,
    Service,
    ServiceRegistry,
    plugin_panic_count,
    reset_plugin_health,
)
from pilot.plugins.nameserver import NameClient, NameServerService, ServiceRecord
from pilot.plugins.nameserver import records as records_module
from pilot.plugins.nameserver import service as service_module
from pilot.plugins.nameserver.records import LIFE_SECONDS, MAX_RECORDS_PER_NODE, Records
from pilot.testing import run
from tests.plugins.fakes import Network, settle

NOON = 1_800_000_000.0


@dataclass
class Facilities:
    """What the service takes from a node; time stands still until a test moves it."""

    state_dir: Path | None = None
    now: float = 1000.0

    def clock(self) -> float:
        return self.now

    def wall(self) -> float:
        return NOON + self.now


class Town:
    """A name server on node 1, and the clients of others."""

    def __init__(self, state_dir: Path | None = None) -> None:
        self.network = Network()
        self.facilities = Facilities(state_dir)
        self.deps = self.network.deps(1, "nameserver")
        self.service = NameServerService.for_node(self.facilities)

    def client(self, node: int, **options: Any) -> NameClient:
        return NameClient(self.network.deps(node).streams, Addr(0, 1), **options)

    async def __aenter__(self) -> Town:
        await self.service.start(self.deps)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.service.stop()
        assert not self.network.listeners


async def test_it_is_a_service_under_a_registry() -> None:
    network = Network()
    service = NameServerService()
    assert isinstance(service, Service)
    assert (service.name, service.order) == ("nameserver", 150)
    registry = ServiceRegistry()
    registry.register(service)
    for _ in range(2):
        await registry.start_all(network.deps(1))
        client = NameClient(network.deps(2).streams, Addr(0, 1))
        await client.register_a("bob", Addr(0, 2))
        assert await client.query_a("BOB") == Addr(0, 2)
        await registry.stop_all()
    with pytest.raises(RefusedError):
        await client.query_a("bob")


async def test_client_and_server() -> None:
    async with Town() as town:
        two, three = town.client(2), town.client(3)
        await two.register_a("Web2", Addr(7, 2))
        await two.register_s("web2", Addr(0, 2), 0, 80)
        await three.register_s("web3", Addr(0, 3), 0, 80)
        await three.register_s("other", Addr(0, 3), 0, 81)
        await three.register_n("lab", 5)
        assert await three.query_a("WEB2") == Addr(7, 2)
        assert await two.query_n("lab") == 5
        assert await two.query_s(0, 80) == [
            ServiceRecord("web2", Addr(0, 2), 80),
            ServiceRecord("web3", Addr(0, 3), 80),
        ]
        assert await two.query_s(1, 80) == []
        await three.register_s("renamed", Addr(0, 3), 0, 80)
        assert [service.name for service in await two.query_s(0, 80)] == ["renamed", "web2"]
        for asked in (two.query_a("nobody"), two.query_n("nobody")):
            with pytest.raises(PeerNotFoundError):
                await asked
        for refused in (two.register_a("mine", Addr(0, 3)), two.register_s("mine", Addr(0, 3), 0, 80)):
            with pytest.raises(RegistryError, match="for another node"):
                await refused
        with pytest.raises(RegistryError, match="another node"):
            await three.register_a("web2", Addr(0, 3))
        await two.register_n("lab", 6)  # these belong to nobody
        assert await three.query_n("lab") == 6


@pytest.mark.parametrize(
    "call",
    [
        lambda c: c.query_a("two words"), lambda c: c.query_a(""), lambda c: c.query_n("x" * 254),
        lambda c: c.query_s(65536, 1), lambda c: c.query_s(0, 0), lambda c: c.register_n("x", -1),
        lambda c: c.register_a("line\nbreak", Addr(0, 2)), lambda c: c.register_s("x", Addr(0, 2), 0, 65536),
    ],
)  # fmt: skip
async def test_what_no_record_can_have_is_not_sent(call: Any) -> None:
    town = Town()
    with pytest.raises(InvalidValueError):
        await call(town.client(2))


async def test_a_long_list_comes_whole() -> None:
    async with Town() as town:
        for node in range(2, 1502):
            assert town.service.answer_untrusted(f"REGISTER S n{node:04} {Addr(0, node)} 0 80".encode(), node) == "OK"
        found = await town.client(2).query_s(0, 80)
        assert [service.address.node for service in found] == list(range(2, 1502))
        for node in range(1502, 4002):
            town.service.answer_untrusted(f"REGISTER S n{node:04} {Addr(0, node)} 0 80".encode(), node)
        shown = town.service.answer_untrusted(b"QUERY S 0 80", 2)
        assert 65000 < len(shown.encode()) <= 65535
        assert shown.splitlines()[-1].endswith(" 80")


# ------------------------------------------------------------------------------------------------ life


async def test_records_end_after_five_minutes_unless_registered_again() -> None:
    async with Town() as town:
        client, now = town.client(2), town.facilities
        await client.register_a("a", Addr(0, 2))
        await client.register_n("n", 5)
        await client.register_s("s", Addr(0, 2), 0, 80)
        now.now += 200
        await client.register_a("a", Addr(0, 2))
        now.now += LIFE_SECONDS - 200
        assert await client.query_a("a") == Addr(0, 2)
        with pytest.raises(PeerNotFoundError):
            await client.query_n("n")
        assert await client.query_s(0, 80) == []
        now.now += 200
        with pytest.raises(PeerNotFoundError):
            await client.query_a("a")
        assert len(town.service) == 3
        await town.client(3).register_a("a", Addr(0, 3))  # free for others again; and registering sweeps
        assert len(town.service) == 1


def test_the_sweep_of_every_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        town = Town()
        town.service = NameServerService(clock=loop.time, wall=loop.time)
        async with town:
            await town.client(2).register_a("a", Addr(0, 2))
            await asyncio.sleep(299)
            assert len(town.service) == 1
            await asyncio.sleep(62)
            assert len(town.service) == 0

    run(scenario())


def test_limits_per_node_and_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records_module, "MAX_RECORDS", MAX_RECORDS_PER_NODE + 2)
    made = NameServerService(clock=lambda: 0.0)

    def register(node: int, name: str, kind: str) -> str:
        text = {"A": f"A {name} {Addr(0, node)}", "N": f"N {name} 5", "S": f"S {name} {Addr(0, node)} {name[1:]} 80"}
        return made.answer_untrusted(f"REGISTER {text[kind]}".encode(), node)

    for kind in "ANS":
        for number in range(MAX_RECORDS_PER_NODE):
            assert register(2, f"x{number}", kind) == "OK"
        assert register(2, "x900", kind) == f"ERR too many records of one node (max {MAX_RECORDS_PER_NODE})"
        assert register(2, "x0", kind) == "OK"
        assert register(3, "x901", kind) == register(4, "x902", kind) == "OK"
        assert register(5, "x903", kind) == "ERR too many records"
    assert len(made) == 3 * (MAX_RECORDS_PER_NODE + 2)
    assert register(3, "x1", "N") == "OK"  # a network's name that changes hands counts for the new node
    assert register(2, "x1", "N") == "OK"


# ------------------------------------------------------------------------------------------------ file


async def test_the_file_survives_restarts(tmp_path: Path) -> None:
    async with Town(tmp_path / "state") as town:
        client = town.client(2)
        await client.register_a("a", Addr(0, 2))
        town.facilities.now += 100
        await client.register_n("n", 5)
        await client.register_s("s", Addr(0, 2), 3, 80)
    file = tmp_path / "state" / "nameserver.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert json.loads(file.read_text()) == {
        "a_records": [{"name": "a", "address": "0:0000.0000.0002", "created_at": "2027-01-15T08:16:40.000+00:00"}],
        "n_records": [{"name": "n", "network_id": 5, "created_at": "2027-01-15T08:18:20.000+00:00"}],
        "s_records": [
            {
                "name": "s", "address": "0:0000.0000.0002", "network_id": 3, "port": 80,
                "created_at": "2027-01-15T08:18:20.000+00:00",
            }
        ],
    }  # fmt: skip
    again = Town(tmp_path / "state")
    again.facilities.now = 1000.0 + 100 + 250  # the A record has ended meanwhile
    async with again:
        client = again.client(3)
        assert await client.query_n("n") == 5
        assert await client.query_s(3, 80) == [ServiceRecord("s", Addr(0, 2), 80)]
        with pytest.raises(PeerNotFoundError):
            await client.query_a("a")


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"[" * 100_000, b"\xff", b"x" * 100])
async def test_a_state_that_is_none_is_replaced(
    tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(service_module, "MAX_STATE_BYTES", 150_000)
    (tmp_path / "nameserver.json").write_bytes(content)
    with caplog.at_level(logging.ERROR, "pilot.plugin.nameserver"):
        async with Town(tmp_path) as town:
            await town.client(2).register_a("a", Addr(0, 2))
    assert "are not used" in caplog.text
    assert json.loads((tmp_path / "nameserver.json").read_text())["a_records"]


def test_rows_that_cannot_be_understood_are_left_out() -> None:
    at = "2027-01-15T08:00:00Z"
    good = {"name": "Good", "address": "0:0000.0000.0002", "created_at": at}
    bad = [
        None, [], 5, {}, {**good, "name": 5}, {**good, "name": "a b"}, {**good, "address": "x"},
        {**good, "created_at": "never"}, {**good, "created_at": 5}, {**good, "created_at": "2020-01-01T00:00:00Z"},
    ]  # fmt: skip
    state = {
        "a_records": [*bad, good, {**good, "name": "future", "created_at": "2099-01-01T00:00:00Z"}],
        "n_records": {"name": "n"},
        "s_records": [{**good, "network_id": net, "port": port} for net, port in [(0, 70000), (True, 80), (0, 80)]],
    }
    records = Records.load(json.dumps(state).encode(), 1000.0, NOON)
    assert len(records) == 3
    assert records.address("good", 1000.0) == records.address("future", 1000.0) == Addr(0, 2)
    assert records.address("future", 1000.0 + LIFE_SECONDS) is None
    assert not records.changed


async def test_a_file_that_cannot_be_written_is_an_error_of_stop_only(tmp_path: Path) -> None:
    town = Town(tmp_path)
    await town.service.start(town.deps)
    await town.client(2).register_a("a", Addr(0, 2))
    (tmp_path / "nameserver.json").mkdir()
    with pytest.raises(OSError):
        await town.service.stop()
    assert not town.network.listeners


# ---------------------------------------------------------------------------------------------- callers


async def test_hostile_callers_are_no_crash() -> None:
    reset_plugin_health("nameserver")
    async with Town() as town:
        streams = town.network.deps(2).streams
        for junk in (b"\xff" * 60_000, b"GET / HTTP/1.1\r\n\r\n", b" ", b""):
            stream = await streams.dial(Addr(0, 1), 53)
            if junk:
                await stream.write(junk)
                assert (await stream.read()).startswith(b"ERR ")
            await stream.close()
        stream = await streams.dial(Addr(0, 1), 53)
        await stream.__aexit__(KeyError, KeyError(), None)
        await settle()
    assert plugin_panic_count("nameserver") == 0


def test_a_silent_caller_is_let_go_after_ten_seconds() -> None:
    async def scenario() -> None:
        async with Town() as town:
            stream = await town.network.deps(2).streams.dial(Addr(0, 1), 53)
            start = asyncio.get_running_loop().time()
            assert await stream.read() == b""
            assert asyncio.get_running_loop().time() - start == pytest.approx(10)

    run(scenario())


async def test_one_node_cannot_take_all_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_module, "MAX_STREAMS_PER_NODE", 2)
    monkeypatch.setattr(service_module, "STOP_SECONDS", 0.01)
    async with Town() as town:
        streams = town.network.deps(2).streams
        held = [await streams.dial(Addr(0, 1), 53) for _ in range(2)]
        await settle()
        with pytest.raises((RegistryError, ResetError, ConnectionError)):
            await NameClient(streams, Addr(0, 1)).query_a("x")
        with pytest.raises(PeerNotFoundError):
            await town.client(3).query_a("x")
        assert len(held) == 2


# ------------------------------------------------------------------------------------- the client alone


def answering(*pieces: bytes, pause: float = 0.0, close: bool = True, query: str = "s") -> Any:
    """What a client makes of a server that writes these pieces; how long it took comes with it."""

    async def scenario() -> tuple[Any, float]:
        network = Network()
        listener = await network.deps(1).streams.listen(53)

        async def serve() -> None:
            stream = await listener.accept()
            await stream.read()
            for piece in pieces:
                await stream.write(piece)
                await asyncio.sleep(pause)
            if close:
                await stream.close()

        serving = asyncio.create_task(serve())
        client = NameClient(network.deps(2).streams, Addr(0, 1))
        start = asyncio.get_running_loop().time()
        try:
            found: Any = await (client.query_s(0, 80) if query == "s" else client.query_a("web1"))
        except (OSError, LookupError) as error:
            found = error
        serving.cancel()
        await asyncio.wait([serving])
        return found, asyncio.get_running_loop().time() - start

    return run(scenario())


LINES = [f"S n{n} {Addr(0, n)} 80\n".encode() for n in range(1, 4)]


def test_an_answer_in_pieces_from_servers_that_close_and_that_do_not() -> None:
    for close, seconds in ((True, 1.5), (False, 2.5)):
        found, took = answering(*LINES, pause=0.5, close=close)
        assert [service.address.node for service in found] == [1, 2, 3]
        assert took == pytest.approx(seconds - (0.5 if not close else 0))


def test_a_single_answer_does_not_wait_for_the_end() -> None:
    found, took = answering(b"A web1 0:0000.0000.0005", close=False, query="a")
    assert (found, took) == (Addr(0, 5), 0)


def test_servers_that_do_not_answer() -> None:
    found, took = answering(close=False)
    assert isinstance(found, TimeoutError)
    assert "0:0000.0000.0001 has not answered within 10 s" in str(found)
    assert took == pytest.approx(10)
    found, _ = answering()
    assert isinstance(found, RegistryError)
    found, took = answering(*itertools.repeat(b"S", 100), pause=0.5, close=False)
    assert isinstance(found, TimeoutError)
    found, _ = answering(bytes(60_000), bytes(60_000), pause=0.1)
    assert "does not end" in str(found)


def test_a_server_that_is_not_there() -> None:
    async def scenario() -> None:
        network = Network()
        client = NameClient(network.deps(2).streams, Addr(0, 1), timeout=3)
        with pytest.raises(PeerNotFoundError):
            await client.query_a("x")
        network.nodes.add(1)
        with pytest.raises(RefusedError):
            await client.query_a("x")
        network.silent.add((1, 53))
        with pytest.raises(TimeoutError, match="within 3 s"):
            await client.query_a("x")

    run(scenario())
