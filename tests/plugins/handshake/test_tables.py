"""Bounds of the trust book and the replay set, and `trust.json` byte by byte."""

from __future__ import annotations

import asyncio
import json
import logging
import stat
import threading
import time
from pathlib import Path

import pytest

from pilot.coreapi import InvalidValueError
from pilot.coreapi.files import write_atomically
from pilot.plugins.handshake import file as file_module
from pilot.plugins.handshake import records, replay
from pilot.plugins.handshake.file import TrustFile, dump, load
from pilot.plugins.handshake.records import PendingRequest, TrustBook, TrustRecord
from pilot.plugins.handshake.replay import ReplaySet

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "services.json").read_text())["trust_json"]
NOW = 1_795_340_610
DAY = 86400


# ---- the book -------------------------------------------------------------------------------------------------------


def asking(node: int, source: int = 0) -> PendingRequest:
    return PendingRequest(node, b"", "", NOW, source or node)


def test_pending_requests_are_bounded_in_all_and_for_each_source() -> None:
    book = TrustBook()
    assert all(book.add_pending(asking(node, source=9)) for node in range(1, 17))
    assert not book.add_pending(asking(17, source=9))
    assert book.add_pending(asking(16, source=9))  # in place of its own
    assert all(book.add_pending(asking(node)) for node in range(100, 100 + records.MAX_PENDING - 16))
    assert len(book.pending) == records.MAX_PENDING
    for newcomer in range(5000, 5015):  # a source with many makes room for one with none, oldest first
        assert book.add_pending(asking(newcomer))
    assert [node for node, request in book.pending.items() if request.source == 9] == [16]
    assert not book.add_pending(asking(6000))
    assert not book.add_pending(asking(6001, source=100))
    assert len(book.pending) == records.MAX_PENDING


def test_one_more_outgoing_request_forgets_the_oldest() -> None:
    book = TrustBook()
    for node in range(1, records.MAX_OUTGOING + 1):
        book.add_outgoing(node, NOW + node)
    book.add_outgoing(1, NOW + 9999)  # asked again
    book.add_outgoing(7777, NOW)
    assert len(book.outgoing) == records.MAX_OUTGOING
    assert 1 in book.outgoing
    assert 2 not in book.outgoing


def test_what_is_old_is_forgotten() -> None:
    book = TrustBook()
    book.add_pending(asking(1))
    book.add_outgoing(2, NOW)
    book.revoked[3] = NOW + 300
    assert book.cooling(3, NOW + 299)
    assert not book.cooling(3, NOW + 300)
    assert not book.sweep(NOW + 10)
    assert book.sweep(NOW + 300)
    assert book.sweep(NOW + 31 * DAY)
    assert (book.pending, book.outgoing, book.revoked) == ({}, {}, {})


def test_a_revocation_stays_until_the_registry_has_it() -> None:
    book = TrustBook(revoked={3: NOW + 300})
    book.withdraw(3)
    book.sweep(NOW + 31 * DAY)
    assert not book.cooling(3, NOW + 31 * DAY)
    again, _ = load(dump(book), NOW + 31 * DAY)
    assert (again.revoked, list(again.withdrawals)) == ({3: NOW + 300}, [3])
    again.withdrawals.clear()
    assert again.sweep(NOW + 31 * DAY)
    assert again.revoked == {}


def test_withdrawals_are_bounded() -> None:
    book = TrustBook()
    for node in range(1, records.MAX_WITHDRAWALS + 2):
        book.withdraw(node)
    assert len(book.withdrawals) == records.MAX_WITHDRAWALS
    assert 1 not in book.withdrawals


def test_one_more_revocation_forgets_the_oldest() -> None:
    book = TrustBook()
    for node in range(1, records.MAX_DISTRUSTED + 1):
        book.distrust(node, NOW)
    book.distrust(1, NOW + 1)  # once more
    book.distrust(records.MAX_DISTRUSTED + 1, NOW + 2)
    assert len(book.distrusted) == records.MAX_DISTRUSTED
    assert 1 in book.distrusted
    assert 2 not in book.distrusted
    entries = [{"node_id": node, "at": "2026-11-22T10:02:31Z"} for node in range(1, records.MAX_DISTRUSTED + 3)]
    loaded, unusable = load(json.dumps({"distrusted": [*entries, {"node_id": 1}]}).encode(), NOW)
    assert (len(loaded.distrusted), min(loaded.distrusted), unusable) == (records.MAX_DISTRUSTED, 3, 1)


def test_revocations_of_the_user_are_kept_for_good() -> None:
    book = TrustBook()
    book.distrust(3, NOW)
    assert not book.sweep(NOW + 1000 * DAY)
    again, unusable = load(dump(book), NOW + 1000 * DAY)
    assert (again, unusable) == (book, 0)


def test_trust_settles_requests() -> None:
    book = TrustBook()
    book.add_pending(asking(1))
    book.add_outgoing(1, NOW)
    book.revoked[1] = NOW
    book.withdraw(1)
    book.distrust(1, NOW)
    book.trust(TrustRecord(1, b"", NOW, True))
    assert book.distrusted == {}
    assert (book.pending, book.outgoing, book.revoked, book.withdrawals, list(book.trusted)) == ({}, {}, {}, {}, [1])


# ---- replays --------------------------------------------------------------------------------------------------------


def test_a_replay_is_known_for_ten_minutes() -> None:
    replays = ReplaySet()
    replays.record(b"k", 1, 0.0)
    assert replays.seen(b"k", 599.0)
    assert not replays.seen(b"k", 600.0)
    assert not replays.seen(b"other", 0.0)
    replays.sweep(600.0)
    assert len(replays) == 0


def test_the_replay_set_is_bounded() -> None:
    replays = ReplaySet()
    for n in range(replay.MAX_ENTRIES_PER_PEER + 1):
        replays.record(b"%d" % n, 1, 0.0)
    assert len(replays) == replay.MAX_ENTRIES_PER_PEER
    assert not replays.seen(b"0", 1.0)
    for n in range(replay.MAX_ENTRIES):
        replays.record(b"x%d" % n, n + 2, 1.0)
    assert len(replays) == replay.MAX_ENTRIES
    assert not replays.seen(b"1", 1.0)
    assert replays.seen(b"x0", 1.0)


# ---- trust.json -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["waiting_requester", "waiting_target", "after"])
def test_the_official_files_are_read_and_written_as_they_are(name) -> None:
    official = json.dumps(VECTORS[name], indent=2).encode()
    book, unusable = load(official, NOW)
    assert unusable == 0
    assert dump(book) == official


def test_shapes_of_entries() -> None:
    whole = {
        "trusted": [VECTORS["same_network_record"]],
        **{key: VECTORS["revoked_shape"][key] for key in ("revoked",)},
    }
    official = json.dumps(whole, indent=2).encode()
    book, _ = load(official, NOW)
    assert dump(book) == official
    assert book.trusted[1].network == 5
    assert dump(TrustBook()) == b'{\n  "trusted": null\n}'


def test_text_is_escaped_as_go_does() -> None:
    book = TrustBook()
    book.add_pending(PendingRequest(1, b"", '<a> & "ä"', NOW, 1))
    text = dump(book).decode()
    assert '"justification": "\\u003ca\\u003e \\u0026 \\"ä\\""' in text
    assert load(text.encode(), NOW)[0] == book


def test_unusable_entries_are_left_out_and_old_requests_too() -> None:
    good = {"node_id": 1, "approved_at": "2026-11-22T10:02:31+01:00", "mutual": True}
    data = {
        "trusted": [
            good,
            {**good, "node_id": 2, "approved_at": "yesterday"},
            {**good, "node_id": 3, "approved_at": "2026-11-22T10:02:31"},
            {**good, "node_id": 6, "approved_at": "9999-12-31T23:59:59-12:00"},
            {**good, "node_id": 0},
            {**good, "node_id": "4"},
            {**good, "node_id": 5, "public_key": "AAAA"},
            {**good, "node_id": 6, "mutual": 1},
            {**good, "node_id": 7, "network": 65536},
            7,
            None,
        ],
        "outgoing": [{"node_id": 1, "sent_at": "2020-01-01T00:00:00Z"}, {"node_id": 2}],
        "pending": [{"node_id": 1, "received_at": "2020-01-01T00:00:00Z", "justification": "a\ud800b"}],
    }
    book, unusable = load(json.dumps(data).encode(), NOW)
    assert list(book.trusted) == [1]
    assert book.trusted[1].approved_at == 1_795_338_151
    assert book.outgoing == {}
    assert book.pending[1].justification == "ab"  # old pending ones go with the next sweep, as officially
    assert unusable == 11
    dump(book)


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b'{"trusted": 7}', b"\xff"])
def test_a_damaged_file_is_refused(data) -> None:
    with pytest.raises(InvalidValueError):
        load(data, NOW)


async def test_the_file_is_private_and_follows_the_book(tmp_path, caplog) -> None:
    directory = tmp_path / "state"
    file = TrustFile(directory, logging.getLogger("test"))
    assert await file.load(NOW) == TrustBook()
    book = TrustBook()
    writing = asyncio.create_task(file.run(book))
    path = directory / "trust.json"
    for node in (1, 2):
        book.trust(TrustRecord(node, bytes(32), NOW, False))
        file.changed()
        async with asyncio.timeout(5):
            while not path.exists() or f'"node_id": {node}' not in path.read_text():  # noqa: ASYNC110
                await asyncio.sleep(0.001)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    for node in range(3, 200):  # large enough for a thread
        book.trust(TrustRecord(node, bytes(32), NOW, False))
    await file.write(book)
    assert await TrustFile(directory, logging.getLogger("test")).load(NOW) == book
    writing.cancel()
    path.write_text("{")
    with pytest.raises(InvalidValueError, match=r"trust\.json is damaged"):
        await file.load(NOW)
    path.unlink()
    path.mkdir()
    await file.write(book)
    await file.write(book)
    assert caplog.text.count("could not be written") == 1
    path.rmdir()
    await file.write(book)
    path.unlink()
    path.mkdir()
    await file.write(book)
    assert caplog.text.count("could not be written") == 2


async def test_a_write_that_was_cancelled_does_not_overtake_a_later_one(tmp_path, monkeypatch) -> None:
    """The node stops while a large file is being written: what was trusted then is not what is trusted at the end."""
    begun, slow = threading.Event(), [True]

    def write(path: Path, data: bytes) -> None:
        if slow.pop() if slow else False:
            begun.set()
            time.sleep(0.05)
        write_atomically(path, data)

    monkeypatch.setattr(file_module, "write_atomically", write)
    book = TrustBook({node: TrustRecord(node, bytes(32), NOW, False) for node in range(1, 200)})
    file = TrustFile(tmp_path, logging.getLogger("test"))
    writing = asyncio.create_task(file.run(book))
    file.changed()
    await asyncio.to_thread(begun.wait, 5)
    writing.cancel()
    await asyncio.wait([writing])
    del book.trusted[7]
    await file.write(book)
    await asyncio.to_thread(time.sleep, 0.1)
    assert 7 not in (await TrustFile(tmp_path, logging.getLogger("test")).load(NOW)).trusted


async def test_without_a_directory_nothing_is_kept(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = TrustFile(None, logging.getLogger("test"))
    file.changed()
    await file.write(TrustBook())
    assert await file.load(NOW) == TrustBook()
    assert list(tmp_path.iterdir()) == []
