"""The store and the journal: every acknowledged change survives, whatever happens (rendezvous.md 11)."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import sqlite3
import stat
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from pilot._fast.errors import BusyError, InvalidValueError, RegistryError
from pilot.rendezvous import Limits, Rendezvous, RendezvousConfig, SqliteStore, Store
from pilot.rendezvous import journal as journal_module
from pilot.rendezvous.journal import Journal
from pilot.rendezvous.state import State
from pilot.rendezvous.store import (
    ROW_TYPES,
    Change,
    CounterRow,
    DecisionRow,
    InviteRow,
    MemberRow,
    NetworkRow,
    NodeRow,
    RequestRow,
    Row,
    TrustRow,
)
from tests.rendezvous.helpers import ADMIN_TOKEN, Identity, World, connect

ROOT = Path(__file__).parents[2]
ROWS: list[Row] = [
    CounterRow("next_node_id", 2**32),
    NodeRow(1, b"\0" * 32, "ö@example.com", True, True, "h:1", ("10.0.0.1:1",), True, True, "a", ("x", "y"), "1", 1.5),
    NodeRow(0xFFFFFFFD, b"\1" * 32, live=False),
    TrustRow(1, 2, 2),
    RequestRow(1, 2, "why � not", 3, True),
    DecisionRow(1, 2, False, 3),
    NetworkRow(1, "n", "token", b"\2" * 32, b"", True, 5, 6, (7, 80), "d", "{}", "{}"),
    MemberRow(1, 2, "owner", ("t",)),
    InviteRow(1, 2, 3, 4),
]


async def stored(path: str) -> list[Row]:
    store = SqliteStore(path)
    try:
        return list(await store.load())
    finally:
        await store.close()


# ---------------------------------------------------------------------------------------------- store


@pytest.mark.parametrize("row", ROWS, ids=lambda row: type(row).__name__)
def test_keys_are_the_first_fields(row: Row) -> None:
    assert row.key == dataclasses.astuple(row)[: row.KEYS]
    assert len(row.key) in (1, 2)


async def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    assert {type(row) for row in ROWS} == set(ROW_TYPES)
    path = str(tmp_path / "registry.db")
    store: Store = SqliteStore(path)
    assert list(await store.load()) == []
    await store.commit([Change(type(row), row.key, row) for row in ROWS])
    await store.close()
    await store.close()
    back = await stored(path)
    assert sorted(map(repr, back)) == sorted(map(repr, ROWS))
    assert set(back) == set(ROWS)


async def test_commit_replaces_and_deletes(tmp_path: Path) -> None:
    path = str(tmp_path / "registry.db")
    store = SqliteStore(path)
    await store.load()
    for value in (1, 2):
        await store.commit([Change(CounterRow, ("c",), CounterRow("c", value))])
    for _ in range(2):
        await store.commit([Change(TrustRow, (1, 2), None), Change(TrustRow, (1, 3), TrustRow(1, 3, 1))])
    await store.close()
    assert await stored(path) == [CounterRow("c", 2), TrustRow(1, 3, 1)]


async def test_a_failing_commit_stores_nothing() -> None:
    store = SqliteStore()
    await store.load()
    good = Change(TrustRow, (1, 2), TrustRow(1, 2, 1))
    with pytest.raises(sqlite3.Error):
        await store.commit([good, Change(TrustRow, (1, 3), TrustRow(1, 3, None))])  # type: ignore[arg-type]
    assert store._connection is not None
    assert store._connection.execute("SELECT count(*) FROM trust").fetchone() == (0,)
    await store.commit([good])
    await store.close()
    with pytest.raises(sqlite3.Error):
        await store.commit([good])


async def test_one_process_owns_a_store(tmp_path: Path) -> None:
    path = str(tmp_path / "registry.db")
    first, second = SqliteStore(path), SqliteStore(path)
    await first.load()
    with pytest.raises(BusyError, match="in use by another process"):
        await second.load()
    await second.close()
    await first.close()
    await stored(path)


async def test_stores_that_cannot_be_used(tmp_path: Path) -> None:
    garbage = tmp_path / "garbage"
    garbage.write_bytes(b"not a database, but long enough to be taken for one" * 20)
    newer = tmp_path / "newer"
    with contextlib.closing(sqlite3.connect(newer)) as connection:
        connection.execute("PRAGMA user_version=99")
    for path in (garbage, newer, tmp_path, tmp_path / "no" / "such"):
        store = SqliteStore(str(path))
        with pytest.raises(InvalidValueError, match=str(path)):
            await store.load()
        await store.close()


async def test_the_file_is_private_and_every_commit_is_synced(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    store = SqliteStore(str(path))
    await store.load()
    await store.commit([Change(CounterRow, ("c",), CounterRow("c", 1))])
    assert {stat.S_IMODE(os.stat(tmp_path / name).st_mode) for name in os.listdir(tmp_path)} == {0o600}
    assert store._connection is not None
    assert store._connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert store._connection.execute("PRAGMA synchronous").fetchone() == (2,)
    await store.close()


# -------------------------------------------------------------------------------------------- journal


class SlowStore:
    """Commits when told to, and fails when told to."""

    def __init__(self) -> None:
        self.batches: list[list[Change]] = []
        self.gate = asyncio.Event()
        self.failures = 0

    async def load(self) -> Sequence[Row]:
        return []

    async def commit(self, changes: Sequence[Change]) -> None:
        await self.gate.wait()
        if self.failures:
            self.failures -= 1
            raise OSError("no space left on device")
        self.batches.append(list(changes))

    async def close(self) -> None:
        pass


async def test_changes_made_during_a_commit_share_the_next() -> None:
    store = SlowStore()
    journal = Journal(store)
    await journal.durable()
    waiters = []
    for at in range(5):
        journal.put(CounterRow("c", at))
        journal.put(TrustRow(1, at, 1))
        waiters.append(asyncio.create_task(journal.durable()))
        await asyncio.sleep(0)
    assert not any(waiter.done() for waiter in waiters)
    store.gate.set()
    await asyncio.gather(*waiters)
    assert len(store.batches) == 2
    assert {change.row for change in store.batches[1]} >= {CounterRow("c", 4), TrustRow(1, 4, 1)}
    stored_once = [change.key for batch in store.batches for change in batch if change.kind is TrustRow]
    assert sorted(stored_once) == [(1, at) for at in range(5)]


async def test_a_cancelled_waiter_does_not_undo_the_change() -> None:
    store = SlowStore()
    journal = Journal(store)
    journal.put(CounterRow("c", 1))
    waiter = asyncio.create_task(journal.durable())
    await asyncio.sleep(0)
    waiter.cancel()
    await asyncio.gather(waiter, return_exceptions=True)
    store.gate.set()
    await journal.durable()
    assert len(store.batches) == 1


async def test_a_failing_store_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = SlowStore()
    store.gate.set()
    store.failures = 2
    journal = Journal(store)
    for value in (1, 2):
        journal.put(CounterRow("c", value))
        journal.put(CounterRow(f"d{value}", value))
        with pytest.raises(RegistryError, match="cannot store"):
            await journal.durable()
    monkeypatch.setattr(journal_module, "MAX_PENDING_CHANGES", 2)
    assert journal.is_blocked
    await journal.durable()
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]  # once, however often it failed
    assert not journal.is_blocked
    assert {change.key: change.row for change in store.batches[0]} == {
        ("c",): CounterRow("c", 2),
        ("d1",): CounterRow("d1", 1),
        ("d2",): CounterRow("d2", 2),
    }


async def test_no_answer_overtakes_its_change() -> None:
    world = World()
    store = SlowStore()
    world.journal._store = store
    node = Identity()
    registration = asyncio.create_task(world.durable(node.registration()))
    await asyncio.sleep(0)
    repeat = asyncio.create_task(world.durable(node.registration()))
    lookup = asyncio.create_task(world.durable({"type": "lookup", "node_id": 1}))
    await asyncio.sleep(0.01)
    assert not any(task.done() for task in (registration, repeat, lookup))
    store.gate.set()
    assert (await registration)["node_id"] == (await repeat)["node_id"] == (await lookup)["node_id"] == 1
    store.failures = 1
    refusal = await world.durable(Identity().registration())
    assert refusal == {"type": "error", "error": "cannot store the change, try again later"}
    assert (await world.durable({"type": "lookup", "node_id": 2}))["type"] == "lookup_ok"


# ----------------------------------------------------------------------------------------- durability


async def test_everything_survives_a_restart(tmp_path: Path) -> None:
    """The whole state, as the tables of a second server hold it, equals that of the first."""
    config = RendezvousConfig(
        registry_port=0,
        beacon_port=0,
        store=str(tmp_path / "registry.db"),
        admin_token=ADMIN_TOKEN,
        limits=Limits.relaxed(),
    )
    a, b, successor = Identity(), Identity(), Identity()
    async with Rendezvous(config) as server, await connect(server.registry_address) as client:
        for node in (a, b):
            node.node_id = (await client.call(node.registration(owner=f"{node.text[:4]}@example.com")))["node_id"]
        admin = {"admin_token": ADMIN_TOKEN, "node_id": a.node_id}
        for message in (
            a.request("set_visibility", public=True),
            a.request("set_hostname", hostname="alice"),
            a.request("set_tags", tags=["web"]),
            a.request("report_trust", peer_id=b.node_id),
            {"type": "create_network", "name": "one", "join_rule": "invite", "enterprise": True, **admin},
            {"type": "create_network", "name": "two", "join_rule": "token", "token": "t", **admin},
            a.request("invite_to_network", network_id=1, target_node_id=b.node_id),
            b.request("join_network", network_id=2, token="t"),
            {"type": "delete_network", "network_id": 1, **admin},
            {"type": "set_expr_policy", "network_id": 2, "expr_policy": '{"version":1,"rules":[1]}', **admin},
            b.request("request_handshake", to_node_id=a.node_id, justification="hi"),
            b.request("respond_handshake", peer_id=a.node_id, accept=False),
            a.request("rotate_key", new_public_key=successor.text),
            b.request("deregister"),
        ):
            reply = await client.call(message)
            assert reply["type"] == f"{message['type']}_ok", reply
        before = tables(server._registry.state)
    async with Rendezvous(config) as server, await connect(server.registry_address) as client:
        assert tables(server._registry.state) == before
        successor.node_id = a.node_id
        assert (await client.call(successor.request("heartbeat")))["type"] == "heartbeat_ok"
        assert (await client.call(b.registration()))["node_id"] == b.node_id
        assert (await client.call(Identity().registration()))["node_id"] == 3


def tables(state: State) -> dict[str, object]:
    return {name: value for name, value in vars(state).items() if name not in ("_journal", "last_seen")}


@pytest.mark.parametrize("after", [1, 40, 150])
async def test_kill_9_loses_nothing_acknowledged(tmp_path: Path, after: int) -> None:
    """Four clients register nodes and report trust pairs; the server is killed after `after` answers."""
    store = str(tmp_path / "registry.db")
    acknowledged: list[tuple[str, Identity, int]] = []
    process, address = await launch(store)

    def note(fact: str, node: Identity, value: int) -> None:
        acknowledged.append((fact, node, value))
        if len(acknowledged) == after:
            process.kill()

    clients = [asyncio.create_task(keep_registering(address, note)) for _ in range(4)]
    await asyncio.wait_for(asyncio.gather(*clients), 60)
    assert await asyncio.wait_for(process.wait(), 60) == -9
    assert len(acknowledged) >= after

    process, address = await launch(store)
    async with await connect(address) as client:
        ids = set()
        for fact, node, value in acknowledged:
            if fact == "node":
                assert (await client.call(node.registration()))["node_id"] == value
                assert (await client.call(node.request("heartbeat")))["type"] == "heartbeat_ok"
                ids.add(value)
            else:
                question = {"type": "check_trust", "node_id": node.node_id, "peer_id": value}
                assert (await client.call(question))["trusted"] is True
        assert (await client.call(Identity().registration()))["node_id"] > max(ids)
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 60) == 0


async def keep_registering(address: tuple[str, int], note: object) -> None:
    """Make nodes until the connection breaks; note what was acknowledged."""
    assert callable(note)
    with contextlib.suppress(EOFError, ConnectionError):
        async with await connect(address) as client:
            previous: Identity | None = None
            while True:
                node = Identity()
                node.node_id = (await client.call(node.registration(owner=f"{node.text}@example.com")))["node_id"]
                note("node", node, node.node_id)
                if previous is not None:
                    await client.call(node.request("report_trust", peer_id=previous.node_id))
                    note("trust", node, previous.node_id)
                previous = node


async def launch(store: str) -> tuple[asyncio.subprocess.Process, tuple[str, int]]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "pilot.rendezvous", "--registry-port", "0", "--beacon-port", "0", "--json"),
        *("--store", store, "--relaxed-limits"),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    line = await asyncio.wait_for(process.stdout.readline(), 60)
    host, port = json.loads(line)["registry"].rsplit(":", 1)
    return process, (host, int(port))
