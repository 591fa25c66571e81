"""How file streams end that are being received: another stream takes over, the disk hangs or fails, the node stops."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pilot.plugins.dataexchange import FileProgress, FrameType, Limits, connection, filestream, service
from pilot.plugins.dataexchange.deliveries import in_thread
from pilot.plugins.dataexchange.filestream import Init, Kind
from pilot.plugins.dataexchange.frames import encode_frame
from pilot.plugins.dataexchange.ring import FIRST_BYTES
from tests.plugins.dataexchange.helpers import BOB, CONTENT, Place, frame, running
from tests.plugins.fakes import Stream, eventually, settle

ID = b"i" * 16
SMALL = Limits(frame_bytes=1 << 16, memory_bytes=1 << 18)


async def offer(place: Place, size: int = len(CONTENT)) -> tuple[Stream, int]:
    """A stream on which a file has been begun, and the offset to go on from."""
    stream = await place.dial()
    await stream.write(filestream.encode_init(ID, Init(size, bytes(32), 49152, "x.bin")))
    number, payload = await frame(stream)
    assert (number, payload[0]) == (FrameType.FILESTREAM, Kind.INIT_ACK)
    return stream, int.from_bytes(payload[17:])


def chunk(at: int, size: int) -> bytes:
    return filestream.chunk_header(ID, at, size) + CONTENT[at : at + size]


async def rest(stream: Stream) -> bytes:
    """What still comes, to the end."""
    data = b""
    async with asyncio.timeout(5.0):
        while piece := await stream.read():
            data += piece
    return data


def open_files(place: Place) -> list[Any]:
    deliveries: Any = place.service._deliveries
    return list(deliveries.received._open)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any stream counts as silent."""
    monkeypatch.setattr(connection, "SILENT_SECONDS", -1e9)


class HungDisk:
    """Its writes wait for `go`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go = threading.Event()
        self.busy = threading.Event()
        writev = os.writev

        def write(fd: int, pieces: Any) -> int:
            self.busy.set()
            self.go.wait(10.0)
            return writev(fd, pieces)

        monkeypatch.setattr(os, "writev", write)


@pytest.fixture
def hung_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[HungDisk]:
    disk = HungDisk(monkeypatch)
    yield disk
    disk.go.set()


# ---- another stream takes over --------------------------------------------------------------------------------------


async def test_a_stream_that_waits_for_the_disk_ends_in_order(tmp_path: Path, hung_disk: HungDisk) -> None:
    async with running(tmp_path) as place:
        old, _ = await offer(place)
        await old.write(chunk(0, FIRST_BYTES + 1000)[: FIRST_BYTES + 500])
        await eventually(lambda: hung_disk.busy.is_set() and len(old.outgoing.data) > 0)
        [serving] = place.service._connections
        ending = asyncio.create_task(serving._end_file("taken over"))
        await settle()
        hung_disk.go.set()
        await ending
        await rest(old)  # it would be reset by a crash


@pytest.mark.usefixtures("at_once")
async def test_memory_that_comes_too_late_is_given_back(tmp_path: Path) -> None:
    async with running(tmp_path, limits=SMALL) as place:
        budget = place.service._budget
        old, _ = await offer(place)
        taken = budget.per_peer - 1000
        await budget.take(1, taken)
        await old.write(chunk(0, 3))
        await eventually(lambda: len(budget._waiting) == 1)
        new, _ = await offer(place)
        budget.give(1, taken)
        await rest(old)
        assert budget.used == 0
        await new.write(chunk(0, 3))
        assert (await frame(new))[1][0] == Kind.ACK
        assert budget.used == FIRST_BYTES


async def test_a_stream_in_the_middle_of_a_long_chunk_is_not_silent(tmp_path: Path) -> None:
    async with running(tmp_path) as place:
        first, _ = await offer(place)
        await first.write(chunk(0, 1000)[:100])
        await settle()
        [serving] = place.service._connections
        serving._heard_at -= 1000.0
        await first.write(chunk(0, 1000)[100:500])
        await settle()
        second, _ = await offer(place)
        assert [file.resumable for file in open_files(place)] == [True, False]
        await second.close()
        await first.write(chunk(0, 1000)[500:])
        assert (await frame(first))[1][0] == Kind.ACK


async def test_a_stream_that_waits_for_the_disk_is_not_silent(tmp_path: Path, hung_disk: HungDisk) -> None:
    async with running(tmp_path) as place:
        first, _ = await offer(place)
        await first.write(chunk(0, 1000))
        await eventually(hung_disk.busy.is_set)
        [serving] = place.service._connections
        serving._heard_at -= 1000.0
        second, _ = await offer(place)
        assert [file.resumable for file in open_files(place)] == [True, False]
        hung_disk.go.set()
        assert (await frame(first))[1][0] == Kind.ACK
        await second.close()


@pytest.mark.usefixtures("at_once")
async def test_nothing_follows_half_an_answer(tmp_path: Path) -> None:
    async with running(tmp_path) as place:
        old, _ = await offer(place)
        old.incoming.capacity = 50
        await old.write(chunk(0, 3) + chunk(3, 3) + chunk(6, 3))
        await eventually(lambda: len(old.incoming.data) == 50)
        await offer(place)
        await old.write(chunk(9, 3))
        acks = b"".join(filestream.ack(ID, cursor) for cursor in (3, 6, 9))
        assert await rest(old) == acks[:50]


# ---- the disk, and memory -------------------------------------------------------------------------------------------


async def test_what_the_disk_said_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    progress: list[FileProgress] = []

    def full(fd: int, pieces: object) -> int:
        raise OSError(28, "No space left on device")

    async with running(tmp_path, on_progress=progress.append) as place:
        stream, _ = await offer(place)
        monkeypatch.setattr(os, "writev", full)
        await stream.write(chunk(0, 3))
        assert (await frame(stream))[1][0] == Kind.COMPLETE
        await stream.close()
        await eventually(lambda: progress[-1].error)
        assert progress[-1].error == "No space left on device"


async def test_early_chunks_are_charged(tmp_path: Path) -> None:
    async with running(tmp_path, limits=SMALL) as place:
        budget = place.service._budget
        stream, _ = await offer(place)
        for at in (1000, 2000, 2000):
            await stream.write(chunk(at, 1000))
            await frame(stream)
        assert budget.used == 2000
        await budget.take(1, budget.per_peer // 2)
        await stream.write(chunk(4000, 1000))  # memory is scarce now: it has to come again
        await frame(stream)
        assert budget.used == 2000 + budget.per_peer // 2
        budget.give(1, budget.per_peer // 2)
        await stream.write(chunk(0, 1500))
        assert int.from_bytes((await frame(stream))[1][17:]) == 1500
        assert budget.used == FIRST_BYTES + 1000
        await stream.write(chunk(1500, 500))
        assert int.from_bytes((await frame(stream))[1][17:]) == 3000
        assert budget.used == FIRST_BYTES
        await stream.write(chunk(6000, 500))
        await frame(stream)
        await stream.close()
        await eventually(lambda: not place.service._connections)
        assert budget.used == 0


async def test_many_files_share_memory_for_few(tmp_path: Path) -> None:
    """One ring at a time for each of four nodes: all of them finish, after a while."""
    async with running(tmp_path, limits=SMALL) as place:
        clients = [place.new_client(node) for node in (11, 12, 13, 14)]
        contents = [CONTENT[at : at + 200_000] for at in range(20)]
        sending = [clients[at % 4].send_file(BOB, content, name="x") for at, content in enumerate(contents)]
        await asyncio.gather(*sending)
        assert sorted(path.read_bytes() for path in place.stored()) == sorted(contents)
        await eventually(lambda: place.service._budget.used == 0)


# ---- order ----------------------------------------------------------------------------------------------------------


async def test_what_came_before_an_abort_is_kept(tmp_path: Path) -> None:
    async with running(tmp_path) as place:
        stream, _ = await offer(place)
        abort = filestream.abort(ID, "")
        await stream.write(chunk(0, 3) + abort + encode_frame(FrameType.TEXT, b"x") + chunk(3, 3))
        kinds = [payload[:3] for _, payload in [await frame(stream) for _ in range(3)]]
        assert [kinds[0][0], kinds[1], kinds[2][0]] == [Kind.ACK, b"ACK", Kind.ABORT]
        assert (await offer(place))[1] == 3


# ---- this node ------------------------------------------------------------------------------------------------------


async def test_a_reporter_that_fails_ends_its_stream_only(tmp_path: Path) -> None:
    def report(progress: FileProgress) -> None:
        raise RuntimeError("a defect of the user's")

    async with running(tmp_path, on_progress=report) as place:
        stream = await place.dial()
        await stream.write(filestream.encode_init(ID, Init(9, bytes(32), 49152, "x.bin")))
        with pytest.raises(ConnectionError):
            await frame(stream)
        await eventually(lambda: not place.service._connections)
        assert open_files(place) == []
        assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("dataexchange write")]


async def test_stop_waits_for_the_thread_that_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hung_disk: HungDisk
) -> None:
    monkeypatch.setattr(service, "STOP_SECONDS", 0.01)
    async with running(tmp_path) as place:
        stream, _ = await offer(place)
        await stream.write(chunk(0, 3))
        await eventually(hung_disk.busy.is_set)
        stopping = asyncio.create_task(place.service.stop())
        await asyncio.sleep(0.05)
        assert len(open_files(place)) == 1
        hung_disk.go.set()
        await stopping
        assert open_files(place) == []
        assert place.service._budget.used == 0


async def test_a_thread_is_waited_for_however_often_that_is_cancelled() -> None:
    go = threading.Event()
    task = asyncio.create_task(in_thread(go.wait))
    for _ in range(3):
        await settle()
        task.cancel()
    await settle()
    assert not task.done()
    go.set()
    await asyncio.wait([task])
    assert task.cancelled()
