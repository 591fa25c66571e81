"""Inbox and received directory: caps, eviction, resuming, who has an unfinished file, modes."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pilot.coreapi import Addr, BusyError, InvalidValueError
from pilot.plugins.dataexchange import received as module
from pilot.plugins.dataexchange.frames import Tags
from pilot.plugins.dataexchange.model import Limits, Message
from pilot.plugins.dataexchange.naming import Stamps
from pilot.plugins.dataexchange.received import ABANDONED_SECONDS, MAX_PARTIALS, MAX_PARTIALS_PER_SENDER, Received
from pilot.plugins.dataexchange.store import Inbox, message_json, rfc3339

Make = Callable[..., Received]

ID = b"i" * 16
PARTIAL = f"{ID.hex()}-00000000"
TIMES = itertools.count(1_790_000_000.125)


def message(data: bytes, kind: str = "TEXT") -> Message:
    return Message(kind, data, Addr(0, 1), 1_790_000_000.25, Tags(), None)


def inbox(directory: Path, **limits: int) -> Inbox:
    made = Inbox(directory / "inbox", Limits(**limits), Stamps(lambda: next(TIMES)))
    made.open()
    return made


@pytest.fixture
def received() -> Iterator[Callable[..., Received]]:
    """`received(tmp_path, ...)`: a store; what a test leaves open is closed after it."""
    stores = []

    def make(directory: Path, *, keep_names: bool = True, **limits: int) -> Received:
        made = Received(directory / "received", Limits(**limits), Stamps(lambda: 0.0), keep_names=keep_names)
        made.open(1e9)
        stores.append(made)
        return made

    yield make
    for store in stores:
        for partial in list(store._open):
            partial.close()


# ---- inbox ----------------------------------------------------------------------------------------------------------


def test_a_message_is_a_private_file(tmp_path: Path) -> None:
    path = inbox(tmp_path).save(message(b"hi"))
    assert path.name.startswith("TEXT-2026")
    assert path.name.endswith(".125-000001.json")
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert json.loads(path.read_bytes())["received_at"] == "2026-09-21T14:13:20.25Z"


def test_escapes_and_encodings() -> None:
    made = message_json(message("<a>&\u2028\u2029ä\0".encode()))
    assert b"<a>&" not in made
    assert b"\\u003ca\\u003e\\u0026\\u2028\\u2029" in made
    assert "ä".encode() in made
    assert b'"data_b64":"YQ=="' in message_json(message(b"a"), base64_only=True)
    assert b'"data_b64":"YQ=="' in message_json(message(b"a", "BINARY"))
    assert b'"data_encoding":"base64"' in message_json(message(b"\xff"))


def test_times() -> None:
    assert [rfc3339(t) for t in (0.0, 1.5)] == ["1970-01-01T00:00:00Z", "1970-01-01T00:00:01.5Z"]


def test_the_oldest_make_room_in_bytes(tmp_path: Path) -> None:
    size = len(message_json(message(b"x" * 1000)))
    store = inbox(tmp_path, inbox_bytes=10 * size)
    paths = [store.save(message(b"x" * 1000)) for _ in range(11)]
    # Beyond the cap it is emptied to nine tenths, the new one included.
    assert [path.exists() for path in paths] == [False, False, *[True] * 9]
    with pytest.raises(BusyError, match="inbox byte budget exceeded"):
        store.save(message(b"x" * 1000 * 11))
    assert paths[-1].exists()


def test_the_oldest_make_room_in_number(tmp_path: Path) -> None:
    store = inbox(tmp_path, inbox_files=3)
    paths = [store.save(message(b"x")) for _ in range(5)]
    assert [path.exists() for path in paths] == [False, False, True, True, True]


def test_what_is_there_and_what_is_taken_away_counts(tmp_path: Path) -> None:
    first = inbox(tmp_path).save(message(b"old"))
    os.utime(first, (1, 1))
    store = inbox(tmp_path, inbox_files=3)
    second, third, fourth = (store.save(message(b"x")) for _ in range(3))
    assert [path.exists() for path in (first, second, third, fourth)] == [False, False, True, True]
    third.unlink()
    for _ in range(2):
        store.save(message(b"x"))
    assert fourth.exists()


def test_a_failed_write_is_not_counted(tmp_path: Path) -> None:
    store = inbox(tmp_path, inbox_files=1)
    store._directory = tmp_path / "gone"
    with pytest.raises(FileNotFoundError):
        store.save(message(b"x"))
    assert store._sizes == {}
    assert store._bytes == 0


# ---- received -------------------------------------------------------------------------------------------------------


def test_whole_file(tmp_path: Path, received: Make) -> None:
    partial = received(tmp_path).begin(6, ID)
    partial.append([b"ab", b"", memoryview(b"cdef")])
    assert partial.digest() == hashlib.sha256(b"abcdef").digest()
    path = partial.publish("x.txt")
    assert path.name == "x.txt"
    assert path.read_bytes() == b"abcdef"
    assert path.stat().st_mode & 0o777 == 0o600


def test_resume_and_digest_of_what_was_there(tmp_path: Path, received: Make) -> None:
    store = received(tmp_path)
    partial = store.begin(6, ID)
    partial.append([b"abc"])
    partial.close()
    partial.close()
    again = store.begin(6, ID)
    assert again.position == 3
    again.append([b"def"])
    assert again.digest() == hashlib.sha256(b"abcdef").digest()
    again.close()
    assert store.begin(5, ID).position == 0  # longer than the file that is offered now


def test_an_unfinished_file_has_one_user(tmp_path: Path, received: Make) -> None:
    store = received(tmp_path)
    first = store.begin(6, ID)
    first.append([b"abc"])
    second = store.begin(6, ID)
    assert second.position == 0
    second.append([b"xyz"])
    second.close()
    assert (first.position, os.listdir(tmp_path / "received" / ".partial")) == (3, [PARTIAL])


def test_empty_attempts_leave_nothing(tmp_path: Path, received: Make) -> None:
    store = received(tmp_path)
    store.begin(6, ID).close()
    assert os.listdir(tmp_path / "received" / ".partial") == []
    store.close()
    assert os.listdir(tmp_path / "received") == []


def test_condemned_content_is_kept_aside(tmp_path: Path, received: Make) -> None:
    store = received(tmp_path)
    partial = store.begin(3, ID)
    partial.append([b"abc"])
    partial.condemn()
    assert os.listdir(tmp_path / "received" / ".partial") == [f"{PARTIAL}.corrupt"]
    assert store.begin(3, ID).position == 0


def test_quota_counts_files_and_what_is_promised(tmp_path: Path, received: Make) -> None:
    store = received(tmp_path, received_bytes=100)
    (tmp_path / "received" / "there").write_bytes(bytes(30))
    first = store.begin(50, ID)
    with pytest.raises(BusyError, match="need 36, 35 of 100 available"):
        store.begin(36)
    first.append([bytes(50)])
    store.begin(20).close()
    with pytest.raises(BusyError, match="need 21, 20 of 100 available"):
        store.begin(21)
    first.close()
    with pytest.raises(BusyError, match="need 21, 20 of 100 available"):
        store.begin(21)
    assert os.listdir(tmp_path / "received" / ".partial") == [PARTIAL]


def test_who_announces_much_leaves_room_for_others(tmp_path: Path, received: Make) -> None:
    store = received(tmp_path, received_bytes=100)
    store.begin(100, ID, sender=1)
    store.begin(50, b"2" * 16, sender=1)  # one share for all files of a node
    with pytest.raises(BusyError, match="need 51, 50 of 100 available"):
        store.begin(51, sender=2)
    store.begin(50, ID, sender=2)
    with pytest.raises(BusyError, match="need 26, 25 of 100 available"):
        store.begin(26, sender=3)
    store.begin(10, ID, sender=3)
    with pytest.raises(BusyError, match="need 16, 15 of 100 available"):
        store.begin(16, sender=4)


def test_room_that_was_not_promised_is_whose_who_sends_first(tmp_path: Path, received: Make) -> None:
    store = received(tmp_path, received_bytes=100)
    first, second = store.begin(100, ID, sender=1), store.begin(50, sender=2)
    first.append([bytes(40), bytes(35)])
    assert first.position == 75
    with pytest.raises(OSError, match="quota") as full:
        first.append([b"x"])
    assert full.value.errno == errno.EDQUOT
    assert first.position == 75
    second.append([bytes(25)])  # what it was promised
    with pytest.raises(OSError, match="quota"):
        second.append([b"x"])
    second.close()
    first.append([bytes(25)])
    assert first.digest() == hashlib.sha256(bytes(100)).digest()
    with pytest.raises(BusyError, match="need 1, 0 of 100 available"):
        store.begin(1, sender=3)


def test_room_that_a_user_makes_is_seen_while_a_file_comes(
    tmp_path: Path, received: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = received(tmp_path, received_bytes=100)
    (tmp_path / "received" / "there").write_bytes(bytes(20))
    first, second = store.begin(80, ID, sender=1), store.begin(40, b"2" * 16, sender=2)
    second.append([bytes(40)])
    first.append([bytes(40)])
    with pytest.raises(OSError, match="quota"):
        first.append([b"x"])
    (tmp_path / "received" / "there").unlink()
    monkeypatch.setattr(module, "COUNT_SECONDS", 0.0)
    first.append([bytes(20)])
    with pytest.raises(OSError, match="quota"):
        first.append([b"x"])


def test_what_is_written_while_files_are_counted_is_not_lost(
    tmp_path: Path, received: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "COUNT_SECONDS", 0.0)
    store = received(tmp_path, received_bytes=1000)
    first = store.begin(400, ID)
    first.append([bytes(100)])
    files, seen = module._files, list[Path]()

    def slow(directory: Path) -> Iterator[tuple[Path, os.stat_result]]:
        found = list(files(directory))
        seen.append(directory)
        if seen[-2:] == [tmp_path / "received", first.path.parent]:  # both are counted
            os.write(first._file.fileno(), bytes(50))  # what another thread does
            first.position += 50
        yield from found

    monkeypatch.setattr(module, "_files", slow)
    with pytest.raises(BusyError, match="need 601, 600 of 1000 available"):
        store.begin(601)
    assert first.position == 150


def test_what_others_take_away_is_noticed(tmp_path: Path, received: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    store = received(tmp_path, received_bytes=100)
    partial = store.begin(80)
    partial.append([bytes(80)])
    path = partial.publish("a")
    gone = store.begin(20)
    gone.append([bytes(20)])
    gone.close()  # private and unfinished: it is removed
    store.begin(20, ID).close()
    path.unlink()
    with pytest.raises(BusyError):
        store.begin(21)
    monkeypatch.setattr(module, "COUNT_SECONDS", 0.0)
    store.begin(100).close()


def test_caps_of_a_file_and_of_their_number(tmp_path: Path, received: Make) -> None:
    with pytest.raises(BusyError, match="larger than the 10"):
        received(tmp_path, file_bytes=10).begin(11)
    store = received(tmp_path, received_files=1)
    store.begin(0).publish("a")
    with pytest.raises(BusyError, match="allowed"):
        store.begin(0)


def leave(store: Received, number: int, sender: int) -> str:
    """The name of an unfinished file, `number` seconds old or so, that nobody goes on with."""
    partial = store.begin(2, number.to_bytes(16, "big"), sender=sender)
    partial.append([b"x"])
    partial.close()
    os.utime(partial.path, (number + 1, number + 1))
    return partial.path.name


def test_unfinished_files_are_few_and_not_for_ever(tmp_path: Path, received: Make) -> None:
    store = received(tmp_path)
    directory = tmp_path / "received" / ".partial"
    names = [leave(store, number, sender=number) for number in range(MAX_PARTIALS + 3)]
    assert sorted(os.listdir(directory)) == sorted(names[3:])
    store.open(ABANDONED_SECONDS + MAX_PARTIALS + 2.5)
    assert os.listdir(directory) == names[-1:]


def test_a_sender_displaces_only_its_own(tmp_path: Path, received: Make) -> None:
    store = received(tmp_path)
    other = leave(store, 0, sender=1)
    names = [leave(store, number, sender=2) for number in range(1, MAX_PARTIALS_PER_SENDER + 3)]
    assert set(os.listdir(tmp_path / "received" / ".partial")) == {other, *names[2:]}


def test_nobody_gets_at_what_another_sender_left(tmp_path: Path, received: Make) -> None:
    store = received(tmp_path)
    first = store.begin(6, ID, sender=1)
    first.append([b"abc"])
    first.close()
    bad = store.begin(6, ID, sender=2)
    assert (bad.position, bad.resumable) == (0, True)
    bad.append([b"xxxxx"])
    assert store.begin(6, ID, sender=1).position == 3


def test_links_are_not_followed(tmp_path: Path, received: Make) -> None:
    store = received(tmp_path)
    store.begin(1, b"j" * 16).close()
    (tmp_path / "received" / ".partial" / PARTIAL).symlink_to(tmp_path / "victim")
    with pytest.raises(OSError):
        store.begin(1, ID)
    assert not (tmp_path / "victim").exists()


def test_names_are_never_replaced(tmp_path: Path, received: Make) -> None:
    store = received(tmp_path)
    assert [store.begin(0).publish("a.b").name for _ in range(3)] == ["a.b", "a (2).b", "a (3).b"]
    stamped = received(tmp_path, keep_names=False)
    assert stamped.begin(0).publish("a.b").name == "a-19700101-000000.000-000001.b"


@pytest.mark.parametrize(
    "limits", [{"frame_bytes": 1}, {"frame_bytes": 1 << 31}, {"inbox_files": 0}, {"memory_bytes": 9}]
)
def test_limits_that_cannot_be(limits: dict[str, int]) -> None:
    with pytest.raises(InvalidValueError):
        Limits(**limits)
