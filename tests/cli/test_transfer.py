"""The file transfer protocol over a pipe: whole, resumed, refused, damaged, hostile."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import pytest

from pilot.cli.transfer import (
    MAGIC,
    FileOffer,
    Received,
    TransferError,
    hash_file,
    receive_file,
    send_file,
)
from tests.cli.pipe import pipe

MAX = 1 << 30


def ignore(done: int, total: int) -> None:
    return None


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "out" / "report.pdf"
    path.parent.mkdir()
    path.write_bytes(random.Random(1).randbytes(3_000_000))
    return path


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    path = tmp_path / "in"
    path.mkdir()
    return path


async def transfer(source: Path, inbox: Path, cut_after: int | None = None, **options: Any) -> list[Any]:
    sender, receiver = pipe(cut_after)

    async def send() -> int:
        try:
            return await send_file(sender, source, hash_file(source), ignore)
        finally:
            sender.finish()

    return await asyncio.gather(
        send(),
        receive_file(receiver, inbox, ignore, **{"max_bytes": MAX, **options}),
        return_exceptions=True,
    )


async def test_file_arrives_whole_under_its_name(source: Path, inbox: Path) -> None:
    sent, received = await transfer(source, inbox)
    assert sent.bytes == 3_000_000
    assert received == Received(inbox / "report.pdf", 3_000_000, hash_file(source), 0)
    assert (inbox / "report.pdf").read_bytes() == source.read_bytes()
    assert [path.name for path in inbox.iterdir()] == ["report.pdf"]


async def test_empty_file(source: Path, inbox: Path) -> None:
    source.write_bytes(b"")
    sent, received = await transfer(source, inbox)
    assert (sent.bytes, sent.throughput) == (0, 0.0)
    assert received.path.read_bytes() == b""


async def test_names_are_never_replaced(source: Path, inbox: Path) -> None:
    for name in ("report.pdf", "report (2).pdf", "report (3).pdf"):
        _, received = await transfer(source, inbox)
        assert received.path.name == name


async def test_broken_transfer_goes_on_where_it_stopped(source: Path, inbox: Path) -> None:
    sent, received = await transfer(source, inbox, cut_after=2_500_000)
    assert isinstance(sent, ConnectionResetError)
    assert isinstance(received, asyncio.IncompleteReadError)
    sent, received = await transfer(source, inbox)
    assert 0 < sent.bytes < 1_000_000
    assert received.offset == sent.offset == 3_000_000 - sent.bytes
    assert received.path.read_bytes() == source.read_bytes()


async def test_longer_leftover_than_the_file_is_cut(source: Path, inbox: Path) -> None:
    digest = hash_file(source)
    (inbox / f".{digest}.part").write_bytes(source.read_bytes() + b"more")
    sent, received = await transfer(source, inbox)
    assert (sent.bytes, sent.throughput) == (0, 0.0)
    assert received.path.read_bytes() == source.read_bytes()


async def test_damaged_content_is_deleted_and_both_ends_know(source: Path, inbox: Path) -> None:
    (inbox / f".{hash_file(source)}.part").write_bytes(b"garbage")
    sent, received = await transfer(source, inbox)
    assert isinstance(sent, TransferError)
    assert "SHA-256" in str(sent)
    assert isinstance(received, TransferError)
    assert list(inbox.iterdir()) == []


async def test_refusal_is_told_to_the_sender(source: Path, inbox: Path) -> None:
    for options in ({"max_bytes": 100}, {"accept": lambda offer: f"no {offer.name} today"}):
        sent, received = await transfer(source, inbox, **options)
        assert isinstance(sent, TransferError)
        assert isinstance(received, TransferError)
        assert str(received) in str(sent)
        assert list(inbox.iterdir()) == []


async def test_the_same_content_twice_at_once_is_refused(source: Path, inbox: Path) -> None:
    first_sender, first = pipe()
    task = asyncio.ensure_future(receive_file(first, inbox, ignore, max_bytes=MAX))
    offer = {"name": "a", "size": 3_000_000, "sha256": hash_file(source)}
    await first_sender.write(MAGIC + message(offer))
    await first_sender.readexactly(4)
    sent, received = await transfer(source, inbox)
    assert "already" in str(sent)
    assert isinstance(received, TransferError)
    task.cancel()
    await asyncio.wait([task])


def message(value: object) -> bytes:
    body = json.dumps(value).encode()
    return len(body).to_bytes(4, "big") + body


GOOD = {"name": "a", "size": 1, "sha256": "0" * 64}


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n",
        MAGIC + b"\xff\xff\xff\xff",
        MAGIC + b"\0\0\0\1[",
        MAGIC + message([]),
        MAGIC + (9000).to_bytes(4, "big") + b"[" * 9000,
        *(
            MAGIC + message({**GOOD, **bad})
            for bad in (
                {"name": "../a"},
                {"name": "/a"},
                {"name": ".a"},
                {"name": ""},
                {"name": "a/b"},
                {"name": "a\\b"},
                {"name": "a\n"},
                {"name": "a\x1b[31m"},
                {"name": "ä" * 101},
                {"name": "\ud800"},
                {"name": 5},
                {"size": -1},
                {"size": True},
                {"size": 1.5},
                {"sha256": "0" * 63},
                {"sha256": "../" + "0" * 61},
                {"sha256": None},
            )
        ),
    ],
)
async def test_hostile_offers_are_refused_and_leave_nothing(data: bytes, inbox: Path) -> None:
    sender, receiver = pipe()
    await sender.write(data)
    sender.finish()
    with pytest.raises((TransferError, asyncio.IncompleteReadError)):
        await receive_file(receiver, inbox, ignore, max_bytes=MAX)
    assert list(inbox.iterdir()) == []


@pytest.mark.parametrize("answer", [{"offset": -1}, {"offset": 10**9}, {"offset": "1"}, {}, {"refused": "\x1b[31m"}])
async def test_hostile_answers_end_the_sending(answer: dict[str, Any], source: Path) -> None:
    sender, receiver = pipe()
    await receiver.write(message(answer))
    with pytest.raises(TransferError) as caught:
        await send_file(sender, source, "0" * 64, ignore)
    assert "\x1b" not in str(caught.value)


def test_offer_is_a_record() -> None:
    assert FileOffer("a", 1, "b") == FileOffer("a", 1, "b")
