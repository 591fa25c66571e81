"""Random frames of file streams, on a disk that is slow or fails, against a plain model of answers and contents."""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pilot.coreapi import InvalidValueError
from pilot.plugins.dataexchange import FrameType, Limits, filestream, incoming, ring
from pilot.plugins.dataexchange.filestream import TRANSFER_ID_BYTES, Init, Kind
from pilot.plugins.dataexchange.frames import HEADER_BYTES, Tags, encode_frame, encode_tagged
from pilot.plugins.dataexchange.received import PartialFile
from tests.plugins.dataexchange.helpers import Place, frame, running
from tests.plugins.fakes import eventually

# Small, so that little data meets every edge.
EDGES = {"EARLY_BYTES": 600, "EARLY_CHUNKS": 2, "MAX_UNACKNOWLEDGED": 4}
FIRST_BYTES, MAX_BYTES = 256, 1024
LIMITS = Limits(frame_bytes=1 << 16, file_bytes=8000)
SIZES = (0, 1, 255, 256, 257, 511, 512, 513, 1024, 1025)
TOO_LONG = b"receiver disk quota exceeded: file of 8001 bytes is larger than the 8000 allowed here"
NO_SPACE = "No space left on device"
LAST = (0, b"", b"ACK TEXT 999 bytes")
MESSAGE = 0
"""In place of a kind of file stream frame."""

Answer = tuple[int, bytes, bytes]
"""Kind, transfer id and body."""


class Sent(NamedTuple):
    """A frame that is sent."""

    kind: int
    id: bytes
    body: bytes
    wrapped: bool = False

    def encoded(self) -> bytes:
        payload = bytes([self.kind]) + self.id + self.body if self.kind else self.body
        number = FrameType.FILESTREAM if self.kind else FrameType.TEXT
        if self.wrapped:
            number, payload = FrameType.TAGGED, encode_tagged(Tags(), number, payload)
        return encode_frame(number, payload)


class Model:
    """What the receiver has to answer and to keep, frame by frame."""

    def __init__(self) -> None:
        self.stored: list[bytes] = []
        self.partials: dict[bytes, bytes] = {}
        self.data = b""
        self._init: Init | None = None
        self._id = b""
        self._early: dict[int, bytes] = {}

    def take(self, sent: Sent) -> list[Answer]:
        takers = {Kind.INIT: self._begin, Kind.CHUNK: self._chunk, Kind.DONE: self._done, Kind.ABORT: self._abort}
        if sent.kind == MESSAGE:
            return [(MESSAGE, b"", b"ACK TEXT %d bytes" % len(sent.body))]
        return takers[Kind(sent.kind)](sent) if sent.kind in takers else []

    def end(self) -> None:
        """What is there stays."""
        if self._init is not None and self.data:
            self.partials[self._id] = self.data
        self._init = None

    def _begin(self, sent: Sent) -> list[Answer]:
        try:
            init = filestream.split_init_untrusted(memoryview(sent.body))
        except InvalidValueError:
            return refusal(sent, b"malformed INIT")
        self.end()
        if init.size > LIMITS.file_bytes:
            return refusal(sent, TOO_LONG)
        data = self.partials.pop(sent.id, b"")
        self._init, self._id, self._early = init, sent.id, {}
        self.data = data if len(data) <= init.size else b""
        return [(Kind.INIT_ACK, sent.id, offset(len(self.data)))]

    def _chunk(self, sent: Sent) -> list[Answer]:
        if len(sent.body) < 8:
            return refusal(sent, b"malformed CHUNK")
        if self._init is None or sent.id != self._id:
            return [(Kind.ABORT, sent.id, b"no active transfer (send INIT first)")]
        at, data, size = int.from_bytes(sent.body[:8], "big"), sent.body[8:], self._init.size
        if at + len(data) > size:
            return refusal(sent, b"chunk at %d of %d bytes exceeds declared size %d" % (at, len(data), size))
        if at == len(self.data):
            self.data += data
        elif data and at > len(self.data) and self._has_room(len(data)):
            self._early[at] = data
        while len(self.data) in self._early:
            self.data += self._early.pop(len(self.data))
        self._early = {place: data for place, data in self._early.items() if place > len(self.data)}
        return [(Kind.ACK, sent.id, offset(len(self.data)))]

    def _has_room(self, size: int) -> bool:
        used = size + sum(map(len, self._early.values()))
        return len(self._early) < EDGES["EARLY_CHUNKS"] and used <= EDGES["EARLY_BYTES"]

    def _done(self, sent: Sent) -> list[Answer]:
        if self._init is None or sent.id != self._id:
            return refusal(sent, b"no active transfer")
        have, init = len(self.data), self._init
        if have < init.size:
            return refusal(sent, b"incomplete: have %d of %d bytes" % (have, init.size))
        self._init = None
        if hashlib.sha256(self.data).digest() != init.sha256:
            return refusal(sent, "sha256 mismatch — file corrupt, .partial retained".encode())
        self.stored.append(self.data)
        return [(Kind.COMPLETE, sent.id, b"\0")]

    def _abort(self, sent: Sent) -> list[Answer]:
        self.end()
        return []


def refusal(sent: Sent, text: bytes) -> list[Answer]:
    return [(Kind.COMPLETE, sent.id, b"\1" + text)]


def offset(number: int) -> bytes:
    return number.to_bytes(8, "big")


class Sender:
    """Makes frames: mostly those of one file in order, with everything in between that can go wrong."""

    def __init__(self, chance: random.Random, *, rude: bool = True) -> None:
        self._chance = chance
        self._rude = rude
        self._data = chance.randbytes(chance.choice((chance.choice(SIZES), chance.randrange(LIMITS.file_bytes))))
        self._hash = hashlib.sha256(self._data).digest()
        self._id = self._hash[:TRANSFER_ID_BYTES]
        self._sizes = chance.choice(((0, 1, 7, 40), (64, 128, 200), (256, 300, 1500), (1, 100, 256, 1500)))
        self._at = 0

    def frames(self) -> Iterator[Sent]:
        yield self._init()
        odd = self._chance.choice((0.1, 0.4, 0.7))
        for _ in range(self._chance.randrange(20)):
            if self._chance.random() > odd:
                yield self._next()
            elif self._chance.random() < 0.4:
                yield from self._turned_round()
            else:
                yield self._any()
        self._at *= self._chance.randrange(2)
        while self._at < len(self._data) and self._chance.random() < 0.98:
            yield self._next()
        yield Sent(Kind.DONE, self._id, b"")

    def _init(self) -> Sent:
        self._at = 0
        body = filestream.encode_init(self._id, Init(len(self._data), self._hash, 49152, "x.bin"))
        return Sent(Kind.INIT, self._id, body[HEADER_BYTES + 1 + TRANSFER_ID_BYTES :])

    def _next(self) -> Sent:
        self._at += len((sent := self._chunk(self._at)).body) - 8
        return sent

    def _turned_round(self) -> Iterator[Sent]:
        """Some chunks, the first of them last."""
        first = self._next()
        yield from [self._next() for _ in range(self._chance.randrange(1, 3))]
        yield first

    def _chunk(self, at: int, size: int = -1) -> Sent:
        size = self._chance.choice(self._sizes) if size < 0 else size
        return Sent(Kind.CHUNK, self._id, offset(at) + self._data[at : at + size], self._chance.random() < 0.1)

    def _any(self) -> Sent:
        chance, size = self._chance, len(self._data)
        if not self._rude or chance.random() < 0.9:
            kind = chance.choice((0, 0, 0, 1, 2, 3))
            if kind == 0:
                return self._chunk(min(size, self._at + chance.randrange(300)))
            if kind == 1:
                self._at = max(0, self._at - chance.randrange(1000))
                return self._next()
            return self._chunk(self._at, 0) if kind == 2 else Sent(99, self._id, bytes(chance.randrange(20)))
        other = bytes(TRANSFER_ID_BYTES)
        return chance.choice((
            self._init(),
            Sent(Kind.CHUNK, self._id, offset(self._at) + bytes(size - self._at + 1)),
            Sent(Kind.CHUNK, self._id, offset((1 << 64) - 1) + b"x"),
            Sent(Kind.CHUNK, self._id, bytes(7)),
            Sent(Kind.CHUNK, other, offset(self._at) + b"x"),
            Sent(Kind.CHUNK, self._id, offset(self._at) + bytes(min(3, size - self._at))),
            Sent(Kind.DONE, chance.choice((self._id, other)), b""),
            Sent(Kind.ABORT, self._id, b"enough"),
            Sent(Kind.INIT, self._id, bytes(10)),
            Sent(Kind.INIT, other, (8001).to_bytes(8, "big") + bytes(38)),
            Sent(MESSAGE, b"", b"hello"),
        ))  # fmt: skip


class Disk:
    """Slow now and then, and full after `room` bytes."""

    def __init__(self, chance: random.Random, monkeypatch: pytest.MonkeyPatch) -> None:
        self.room = 1 << 40
        append = PartialFile.append

        def slow(partial: PartialFile, pieces: Any) -> None:
            if chance.random() < 0.3:
                time.sleep(chance.random() * 0.003)
            size = sum(map(len, pieces))
            if size > self.room:
                raise OSError(28, NO_SPACE)
            self.room -= size
            append(partial, pieces)

        monkeypatch.setattr(PartialFile, "append", slow)


@pytest.fixture
def edges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ring, "FIRST_BYTES", FIRST_BYTES)
    monkeypatch.setattr(ring, "MAX_BYTES", MAX_BYTES)
    for name, value in EDGES.items():
        monkeypatch.setattr(incoming, name, value)


async def exchange(place: Place, chance: random.Random, frames: list[Sent]) -> list[Answer]:
    """Sends `frames` in random pieces; the answers. A message behind them is answered last."""
    stream = await place.dial()
    got: list[Answer] = []

    async def read() -> None:
        while not got or got[-1] != LAST:
            number, payload = await frame(stream)
            is_part = number == FrameType.FILESTREAM
            if is_part and payload[0] == Kind.ACK:
                path = place.received / ".partial" / f"{payload[1:17].hex()}-00000001"
                assert not path.exists() or path.stat().st_size >= int.from_bytes(payload[17:])
            got.append((payload[0], payload[1:17], payload[17:]) if is_part else (MESSAGE, b"", payload))

    reading = asyncio.create_task(read())
    data = b"".join(sent.encoded() for sent in (*frames, Sent(MESSAGE, b"", bytes(999))))
    while data:
        cut = chance.choice((1, 20, 200, 1000))
        await stream.write(data[:cut])
        data = data[cut:]
        if chance.random() < 0.4:
            await asyncio.sleep(chance.choice((0, 0, 0.003)))
    await reading
    await stream.close()
    await eventually(lambda: not place.service._connections)
    assert (place.service._budget.used, place.service._budget._by_peer) == (0, {})
    return got[:-1]


def kept(place: Place) -> dict[bytes, bytes]:
    """The unfinished files by transfer."""
    files = [path for path in place.partials() if path.suffix != ".corrupt"]
    return {bytes.fromhex(path.name.partition("-")[0]): path.read_bytes() for path in files}


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.usefixtures("edges")
async def test_answers_and_files(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(seed)
    Disk(random.Random(seed), monkeypatch)
    model, sender = Model(), Sender(chance)
    async with running(tmp_path, limits=LIMITS) as place:
        for _ in range(3):
            frames = list(sender.frames())
            due = [answer for sent in frames for answer in model.take(sent)]
            assert await exchange(place, chance, frames) == due
            model.end()
            assert kept(place) == model.partials
        assert sorted(path.read_bytes() for path in place.stored()) == sorted(model.stored)


def outcomes(frames: list[Sent], count: int) -> Iterator[list[Answer]]:
    """All sets of `count` answers for when the disk fails: after any frame, with some acknowledgments before."""
    for seen in range(1, len(frames)):
        model = Model()
        before = [answer for sent in frames[: seen + 1] for answer in model.take(sent)]
        model.end()
        failure = (Kind.COMPLETE, frames[0].id, b"\1" + NO_SPACE.encode())
        verdict = [failure] if frames[seen].kind == Kind.DONE else []
        after = [answer for sent in frames[seen + 1 :] for answer in model.take(sent)]
        acks = [answer for answer in before if answer[0] == Kind.ACK]
        acknowledged = count - 2 - len(verdict) - len(after)
        if 0 <= acknowledged <= len(acks):
            yield [before[0], *acks[:acknowledged], failure, *verdict, *after]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.usefixtures("edges")
async def test_answers_where_the_disk_fails(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(seed)
    disk = Disk(random.Random(seed), monkeypatch)
    frames = list(Sender(chance, rude=False).frames())
    model = Model()
    whole = [answer for sent in frames for answer in model.take(sent)]
    disk.room = chance.randrange(len(model.data) + len(b"".join(model.stored)) + 1)
    failing = len(model.data) > disk.room
    async with running(tmp_path, limits=LIMITS) as place:
        got = await exchange(place, chance, frames)
        if failing:
            assert got in list(outcomes(frames, len(got)))
            written = len(kept(place).get(frames[0].id, b""))
            assert max(int.from_bytes(body) for kind, _, body in got if kind in (Kind.INIT_ACK, Kind.ACK)) <= written
        else:
            assert got == whole
