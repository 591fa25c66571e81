"""The service with its client over streams in memory: messages, duplicates, files, resuming, limits, events, stop."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from pilot.coreapi import BusyError, InvalidValueError, PilotError, ServiceNotReadyError
from pilot.plugins.dataexchange import DataExchangeClient, FileProgress, FrameType, Limits, connection, filestream
from pilot.plugins.dataexchange.deliveries import DUPLICATE_SECONDS, MAX_DUPLICATES
from pilot.plugins.dataexchange.filestream import Init, Kind
from pilot.plugins.dataexchange.frames import (
    HEADER_BYTES,
    Tags,
    encode_file,
    encode_frame,
    encode_tagged,
    header_untrusted,
)
from pilot.plugins.dataexchange.incoming import EARLY_CHUNKS
from tests.plugins.dataexchange.helpers import BOB, CONTENT, Place, frame, running
from tests.plugins.fakes import Network, eventually, settle

DIGEST = hashlib.sha256(CONTENT).digest()
ID = DIGEST[:16]
STORED = b"ACK TEXT 1 bytes"


def tagged_text(message_id: str, data: bytes = b"x") -> bytes:
    return encode_frame(FrameType.TAGGED, encode_tagged(Tags(message_id), FrameType.TEXT, data))


# ---- messages -------------------------------------------------------------------------------------------------------


async def test_message_is_stored_told_and_answered(tmp_path: Path) -> None:
    async with running(tmp_path) as place:
        with place.service.messages() as messages:
            answer = await place.client.send_message(BOB, "hällo", message_id="m-1", reply_to="r-0")
            assert (answer.ok, answer.text, answer.message_id) == (True, "ACK TEXT 6 bytes", "m-1")
            message = await anext(messages)
        assert (message.kind, message.text, message.sender.node) == ("TEXT", "hällo", 1)
        assert message.tags == Tags("m-1", "r-0")
        stored = json.loads(message.path.read_bytes()) if message.path else {}
        assert (stored["data"], stored["from"], stored["message_id"]) == ("hällo", "0:0000.0000.0001", "m-1")
        ids = {"message_id": "m-1", "reply_to": "r-0"}
        event = {"type": "TEXT", "from": "0:0000.0000.0001", "size": 6, **ids}
        assert place.events.take() == [("message.received", event)]
        [(topic, payload)] = place.sent_events.take()
        assert (topic, set(payload)) == ("file.delivered", {"conn_id", "remote_addr", "remote_port"})
        assert (payload["remote_addr"], payload["remote_port"]) == ("0:0000.0000.0002", 1001)


async def test_kinds_and_random_ids(tmp_path: Path) -> None:
    async with running(tmp_path) as place:
        first = await place.client.send_message(BOB, b"\0")
        second = await place.client.send_message(BOB, "{}", kind=FrameType.JSON)
        assert (first.text, second.text) == ("ACK BINARY 1 bytes", "ACK JSON 2 bytes")
        assert len({first.message_id, second.message_id}) == 2
        for bad in ({"kind": FrameType.FILE}, {"message_id": "a b"}, {"reply_to": "ä"}):
            with pytest.raises(InvalidValueError):
                await place.client.send_message(BOB, "x", **bad)  # type: ignore[arg-type]


async def test_duplicates(tmp_path: Path) -> None:
    now = 0.0
    async with running(tmp_path, clock=lambda: now) as place:
        stream = await place.dial()

        async def ask(data: bytes) -> bytes:
            await stream.write(data)
            return (await frame(stream))[1]

        assert await ask(tagged_text("a")) == STORED
        assert await ask(tagged_text("a")) == STORED + b" (duplicate)"
        assert await ask(tagged_text("a", b"y")) == STORED
        assert await ask(tagged_text("b")) == STORED
        assert len(os.listdir(place.inbox)) == 3
        now = DUPLICATE_SECONDS
        assert await ask(tagged_text("a")) == STORED
        assert len(os.listdir(place.inbox)) == 4


async def test_duplicates_at_the_same_time_are_stored_once(tmp_path: Path) -> None:
    async with running(tmp_path) as place:
        answers = await asyncio.gather(*[place.client.send_message(BOB, "x", message_id="same") for _ in range(5)])
        assert sorted(answer.duplicate for answer in answers) == [False, True, True, True, True]
        assert len(os.listdir(place.inbox)) == 1


async def test_table_of_duplicates_is_bounded(tmp_path: Path) -> None:
    async with running(tmp_path, stores=False) as place:
        deliveries: Any = place.service._deliveries
        for number in range(MAX_DUPLICATES + 10):
            deliveries._remember(number, "ACK")
        assert len(deliveries._answers) == MAX_DUPLICATES
        assert 9 not in deliveries._answers


async def test_a_refused_message_is_no_duplicate(tmp_path: Path) -> None:
    async with running(tmp_path, stores=False) as place:
        answer = await place.client.send_message(BOB, "x", message_id="a")
        assert answer.text == "ERR TEXT save failed: nobody reads messages here"
        with place.service.messages() as messages:
            answer = await place.client.send_message(BOB, "x", message_id="a")
            assert (answer.ok, answer.duplicate) == (True, False)
            assert (await anext(messages)).path is None


async def test_without_an_inbox_readers_are_the_store(tmp_path: Path) -> None:
    async with running(tmp_path, stores=False) as place:
        with place.service.messages(capacity=1) as messages:
            assert await place.client.send_message(BOB, "1")
            answer = await place.client.send_message(BOB, "2")
            assert answer.text == "ERR TEXT save failed: those who read messages here have no room"
            assert messages.dropped == 1
            await anext(messages)
            assert await place.client.send_message(BOB, "3")
        with pytest.raises(PilotError, match="no files are taken here"):
            await place.client.send_file(BOB, b"x", name="x")


async def test_feed_has_one_reader_and_ends_with_the_service(tmp_path: Path) -> None:
    async with running(tmp_path) as place:
        feed = place.service.messages()
        reading = asyncio.ensure_future(anext(feed))
        await settle()
        with pytest.raises(BusyError):
            await anext(feed)
        await place.service.stop()
        with pytest.raises(StopAsyncIteration):
            await reading
        with pytest.raises(ServiceNotReadyError):
            place.service.messages()
        with pytest.raises(ServiceNotReadyError):
            _ = place.service.client


async def test_full_inbox_is_refused_and_told(tmp_path: Path) -> None:
    async with running(tmp_path, limits=Limits(inbox_bytes=1000)) as place:
        answer = await place.client.send_message(BOB, "x" * 2000, message_id="a")
        assert answer.text.startswith("ERR TEXT save failed: inbox byte budget exceeded: ")
        full = {"from": "0:0000.0000.0001", "type": "TEXT", "frame_bytes": 2000, "max_bytes": 1000}
        assert place.events.take() == [("inbox.full", full)]


async def test_disk_errors_are_answered_without_paths(tmp_path: Path) -> None:
    async with running(tmp_path) as place:
        place.inbox.rmdir()
        answer = await place.client.send_message(BOB, "x")
        assert answer.text == "ERR TEXT save failed: write: No such file or directory"
        place.received.rmdir()
        place.received.write_text("in the way")
        with pytest.raises(PilotError) as caught:
            await place.client.send_file(BOB, b"x", name="x")
        assert str(tmp_path) not in str(caught.value)


async def test_old_receiver_gets_the_message_untagged(tmp_path: Path) -> None:
    async with old_receiver(b"ERR UNKNOWN(10) save failed: unsupported frame type 10") as place:
        answer = await place.client.send_message(BOB, "hello")
        assert (answer.ok, answer.text, answer.message_id) == (True, "ACK TEXT 5 bytes", "")


# ---- files ----------------------------------------------------------------------------------------------------------


async def test_file_arrives(tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    progress: list[FileProgress] = []
    (tmp_path / "report.pdf").write_bytes(CONTENT)
    async with running(tmp_path, on_progress=progress.append) as place:
        files = place.service.files()
        sent = await place.client.send_file(BOB, tmp_path / "report.pdf", progress=lambda *at: steps.append(at))
        assert (sent.size, sent.sha256, sent.resumed_at, sent.streamed) == (len(CONTENT), DIGEST, 0, True)
        assert sent.throughput > 0
        file = await anext(files)
        assert file.path.read_bytes() == CONTENT
        assert file.path.name.startswith("report-")
        assert file.path.suffix == ".pdf"
        assert (file.name, file.size, file.sha256, file.resumed_at) == ("report.pdf", len(CONTENT), DIGEST, 0)
        assert steps[0] == (0, len(CONTENT))
        assert steps[-1] == (len(CONTENT), len(CONTENT))
        assert steps == sorted(steps)
        assert progress[-1] == FileProgress("report.pdf", file.sender, ID, len(CONTENT), len(CONTENT))
        event = {"filename": file.path.name, "size": len(CONTENT), "path": str(file.path)}
        assert place.events.take() == [("file.received", event)]
        assert place.partials() == []


@pytest.mark.parametrize("error", [BlockingIOError(11, "not in memory"), OSError(95, "not on this file system")])
async def test_what_is_not_in_the_systems_memory_is_read_by_a_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    read, asked = os.preadv, []

    def preadv(fd: int, buffers: Any, offset: int, flags: int = 0) -> int:
        asked.append(flags)
        if flags and offset:
            raise error
        return read(fd, buffers, offset, flags)

    monkeypatch.setattr(os, "preadv", preadv)
    content = os.urandom(11 << 20)
    (tmp_path / "x").write_bytes(content)
    async with running(tmp_path) as place:
        assert (await place.client.send_file(BOB, tmp_path / "x")).streamed
        assert place.stored()[0].read_bytes() == content
    if hasattr(os, "RWF_NOWAIT"):
        blocking = isinstance(error, BlockingIOError)
        assert asked.count(os.RWF_NOWAIT) == (4 if blocking else 2)
    assert asked.count(0) == 3


async def test_a_chunk_that_breaks_off_stays_as_far_as_it_came(tmp_path: Path) -> None:
    """Its bytes are on the disk before it is whole; they are not acknowledged, and a resume goes on behind them."""
    async with running(tmp_path) as place:
        stream = await offer(place)
        await stream.write(filestream.chunk_header(ID, 0, 1000) + CONTENT[:1000])
        await stream.write(filestream.chunk_header(ID, 1000, 1000) + CONTENT[1000:1300])
        assert (await frame(stream))[1] == b"\x03" + ID + (1000).to_bytes(8, "big")
        await eventually(lambda: place.partials()[0].stat().st_size == 1300)
        assert place.service._budget.used == 64 * 1024
        await stream.close()
        await eventually(lambda: place.service._budget.used == 0)
        sent = await place.client.send_file(BOB, CONTENT, name="x.bin")
        assert (sent.resumed_at, place.stored()[0].read_bytes()) == (1300, CONTENT)


async def test_bytes_and_the_empty_file(tmp_path: Path) -> None:
    async with running(tmp_path, keep_names=True) as place:
        sent = await place.client.send_file(BOB, b"", name="empty")
        assert (sent.size, sent.throughput) == (0, 0.0)
        await place.client.send_file(BOB, CONTENT, name="some.bin")
        assert [path.name for path in place.stored()] == ["empty", "some.bin"]
        assert place.stored()[1].read_bytes() == CONTENT
        with pytest.raises(InvalidValueError, match="name"):
            await place.client.send_file(BOB, b"x")
        with pytest.raises(FileNotFoundError):
            await place.client.send_file(BOB, tmp_path / "missing")


class Cut(Exception):  # noqa: N818
    """What ends a transfer in the middle."""


async def test_broken_transfer_goes_on_where_it_stopped(tmp_path: Path) -> None:
    progress: list[FileProgress] = []
    content = CONTENT * 8  # more than is sent without an acknowledgment
    async with running(tmp_path, on_progress=progress.append) as place:

        def stop(done: int, total: int) -> None:
            if done >= 1_000_000:
                raise Cut

        with pytest.raises(Cut):
            await place.client.send_file(BOB, content, name="x.bin", progress=stop)
        await eventually(lambda: progress[-1].error)
        [partial] = place.partials()
        there = partial.stat().st_size
        assert 1_000_000 <= there < len(content)
        sent = await place.client.send_file(BOB, content, name="x.bin")
        assert sent.resumed_at == there
        assert place.stored()[0].read_bytes() == content
        assert place.partials() == []


async def test_damaged_leftover_is_refused_once(tmp_path: Path) -> None:
    async with running(tmp_path) as place:
        (place.received / ".partial").mkdir()
        (place.received / ".partial" / f"{ID.hex()}-00000001").write_bytes(b"garbage")
        with pytest.raises(PilotError, match="sha256 mismatch"):
            await place.client.send_file(BOB, CONTENT, name="x.bin")
        assert (await place.client.send_file(BOB, CONTENT, name="x.bin")).resumed_at == 0
        assert place.stored()[0].read_bytes() == CONTENT


async def test_file_that_shrinks_while_it_is_sent(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(CONTENT * 4)
    async with running(tmp_path) as place:

        def shrink(done: int, total: int) -> None:
            os.truncate(path, 100)

        with pytest.raises(PilotError, match="became shorter"):
            await place.client.send_file(BOB, path, progress=shrink)
        assert place.stored() == []


async def test_file_that_grows_while_it_is_sent_arrives_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(CONTENT)

    def grow(done: int, total: int) -> None:
        with path.open("ab") as file:
            file.write(b"more")

    async with running(tmp_path) as place:
        sent = await place.client.send_file(BOB, path, progress=grow)
        assert sent.size == len(CONTENT)
        assert place.stored()[0].read_bytes() == CONTENT


async def test_the_size_that_is_offered_is_that_of_what_was_hashed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log"
    path.write_bytes(CONTENT)
    hashed = hashlib.file_digest

    def digest_then_grow(*args: Any) -> Any:
        try:
            return hashed(*args)
        finally:
            with path.open("ab") as file:
                file.write(b"more")

    monkeypatch.setattr(hashlib, "file_digest", digest_then_grow)
    async with running(tmp_path) as place:
        assert (await place.client.send_file(BOB, path)).size == len(CONTENT)


async def test_what_is_no_file_is_not_sent(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    async with running(tmp_path) as place:
        for path in (tmp_path, tmp_path / "pipe", Path("/dev/zero")):
            with pytest.raises(InvalidValueError, match="no regular file"):
                await asyncio.wait_for(place.client.send_file(BOB, path), 5.0)
        with pytest.raises(FileNotFoundError):
            await place.client.send_file(BOB, tmp_path / "missing")


async def test_same_content_twice_at_once(tmp_path: Path) -> None:
    async with running(tmp_path) as place:
        sent = await asyncio.gather(*[place.client.send_file(BOB, CONTENT, name="x.bin") for _ in range(2)])
        assert [one.resumed_at for one in sent] == [0, 0]
        assert [path.read_bytes() == CONTENT for path in place.stored()] == [True, True]
        assert place.partials() == []


async def test_a_silent_stream_gives_way_to_one_that_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    progress: list[FileProgress] = []
    async with running(tmp_path, on_progress=progress.append) as place:
        silent = await offer(place)
        await silent.write(filestream.chunk_header(ID, 0, 3) + CONTENT[:3])
        await frame(silent)
        assert (await place.client.send_file(BOB, CONTENT, name="x.bin")).resumed_at == 0
        monkeypatch.setattr(connection, "SILENT_SECONDS", -1.0)
        assert (await place.client.send_file(BOB, CONTENT, name="x.bin")).resumed_at == 3
        assert "the sender began it again over another stream" in [at.error for at in progress]
        await silent.write(filestream.chunk_header(ID, 3, 3) + CONTENT[3:6])
        assert (await frame(silent))[1][0] == Kind.ABORT
        assert place.service._deliveries is not None
        assert place.service._deliveries.transfers == {}


async def test_quota_is_refused_and_told(tmp_path: Path) -> None:
    async with running(tmp_path, limits=Limits(received_bytes=1000)) as place:
        with pytest.raises(PilotError, match="receiver disk quota exceeded: need 3000000, 1000 of 1000 available"):
            await place.client.send_file(BOB, CONTENT, name="x.bin")
        full = {"type": "FILESTREAM", "frame_bytes": len(CONTENT), "max_bytes": 1000}
        assert place.events.take() == [("received.full", full)]
        stream = await place.dial()
        await stream.write(encode_frame(FrameType.FILE, encode_file("x", bytes(1001))))
        text = b"ERR FILE save failed: received-files quota exceeded: need 1001, 1000 of 1000 available"
        assert await frame(stream) == (FrameType.TEXT, text)


async def test_file_in_one_frame(tmp_path: Path) -> None:
    async with running(tmp_path) as place, old_receiver(b"ERR UNKNOWN(7) save failed: x", place) as old:
        files = place.service.files()
        sent = await old.client.send_file(BOB, CONTENT, name="a/b.txt"[2:])
        assert (sent.streamed, sent.size) == (False, len(CONTENT))
        file = await anext(files)
        assert (file.name, file.sha256, file.path.read_bytes()) == ("b.txt", DIGEST, CONTENT)
        [(topic, payload)] = place.events.take()
        assert (topic, payload["filename"]) == ("file.received", "b.txt")


async def test_file_too_long_for_an_old_receiver() -> None:
    async with old_receiver(b"ERR UNKNOWN(7) save failed: unsupported frame type 7") as place:
        with pytest.raises(PilotError, match="in one frame"):
            await place.client.send_file(BOB, bytes((64 << 20) - 2), name="x")


# ---- what a stranger can do -----------------------------------------------------------------------------------------


async def offer(place: Place, size: int = len(CONTENT), digest: bytes = DIGEST) -> Any:
    stream = await place.dial()
    await stream.write(filestream.encode_init(digest[:16], Init(size, digest, 49152, "x.bin")))
    number, payload = await frame(stream)
    assert (number, payload[0]) == (FrameType.FILESTREAM, Kind.INIT_ACK)
    return stream


async def test_chunks_beyond_the_end_and_unfinished_ends(tmp_path: Path) -> None:
    async with running(tmp_path) as place:
        digest = hashlib.sha256(b"abcd").digest()
        stream = await offer(place, 4, digest)
        await stream.write(filestream.chunk_header(digest[:16], 2, 4) + b"abcd")
        text = b"chunk at 2 of 4 bytes exceeds declared size 4"
        assert (await frame(stream))[1] == b"\x06" + digest[:16] + b"\x01" + text
        # The transfer goes on after either refusal, as with the official receiver.
        await stream.write(filestream.done(digest[:16]))
        assert (await frame(stream))[1][18:] == b"incomplete: have 0 of 4 bytes"
        await stream.write(filestream.chunk_header(b"u" * 16, 0, 4) + b"abcd")
        assert (await frame(stream))[1] == b"\x07" + b"u" * 16 + b"no active transfer (send INIT first)"
        await stream.write(filestream.chunk_header(digest[:16], 0, 4) + b"abcd")
        assert (await frame(stream))[1][0] == Kind.ACK
        await stream.write(filestream.done(digest[:16]) * 2)
        assert (await frame(stream))[1] == b"\x06" + digest[:16] + b"\x00"
        assert (await frame(stream))[1][18:] == b"no active transfer"


async def test_early_chunks_are_few(tmp_path: Path) -> None:
    """Many small ones would cost a look at each of them for every one that comes."""
    async with running(tmp_path) as place:
        stream = await offer(place)
        for offset in range(1, EARLY_CHUNKS + 10):
            await stream.write(filestream.chunk_header(ID, offset, 1) + CONTENT[offset : offset + 1])
            assert (await frame(stream))[1][17:] == bytes(8)
        await stream.write(filestream.chunk_header(ID, 0, 1) + CONTENT[:1])
        assert int.from_bytes((await frame(stream))[1][17:], "big") == EARLY_CHUNKS + 1


async def test_early_chunks_are_kept_up_to_a_limit(tmp_path: Path) -> None:
    async with running(tmp_path) as place:
        stream = await offer(place)
        step = 48 * 1024
        for offset in range(step, 30 * step, step):
            await stream.write(filestream.chunk_header(ID, offset, step) + CONTENT[offset : offset + step])
            assert (await frame(stream))[1][17:] == bytes(8)
        await stream.write(filestream.chunk_header(ID, 0, step) + CONTENT[:step])
        cursor = int.from_bytes((await frame(stream))[1][17:], "big")
        assert cursor == 17 * step  # 768 KiB and the one that was missing
        await stream.write(filestream.chunk_header(ID, 0, step) + CONTENT[:step])
        assert int.from_bytes((await frame(stream))[1][17:], "big") == cursor


async def test_full_disk_ends_the_transfer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(tmp_path) as place:
        stream = await offer(place)

        def full(fd: int, pieces: object) -> int:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "writev", full)
        await stream.write(filestream.chunk_header(ID, 0, 3) + CONTENT[:3])
        assert (await frame(stream))[1] == b"\x06" + ID + b"\x01" + b"No space left on device"
        await stream.write(filestream.chunk_header(ID, 3, 3) + CONTENT[3:6])
        assert (await frame(stream))[1][0] == Kind.ABORT


async def test_too_many_streams_of_one_peer(tmp_path: Path) -> None:
    async with running(tmp_path, limits=Limits(streams_per_peer=2)) as place:
        streams = [await place.dial() for _ in range(3)]
        await settle()
        with pytest.raises(EOFError):
            await frame(streams[2])
        await streams[0].close()
        await settle()
        assert await place.client.send_message(BOB, "x")


async def test_answers_that_nobody_takes(tmp_path: Path) -> None:
    async with running(tmp_path) as place:
        stream = await place.dial()
        stream.incoming.capacity = 0
        await stream.write(encode_frame(FrameType.TEXT, b"x"))
        await settle()
        await eventually(lambda: os.listdir(place.inbox))
        stream.reset()
        topics: dict[str, Any] = {}
        await eventually(lambda: topics.update(place.events.take()) or "dataexchange.ack_failed" in topics)
        failed = topics["dataexchange.ack_failed"]
        assert (failed["remote"], failed["frame_type"]) == ("0:0000.0000.0001", "TEXT")
        assert failed["error"]


async def test_oversize_frame_is_not_read(tmp_path: Path) -> None:
    async with running(tmp_path, limits=Limits(frame_bytes=65536)) as place:
        stream = await place.dial()
        await stream.write(encode_frame(FrameType.TEXT, bytes(65536)))
        assert (await frame(stream))[1] == b"ACK TEXT 65536 bytes"
        await stream.write(b"\0\0\0\1\0\1\0\1")
        with pytest.raises(EOFError):
            await frame(stream)


async def test_what_a_lying_receiver_says(tmp_path: Path) -> None:
    answers = [
        filestream.init_ack(ID, len(CONTENT) + 1),
        filestream.ack(ID, 5),
        filestream.init_ack(ID, 0) + filestream.ack(ID, len(CONTENT) + 1),
        filestream.init_ack(ID, 0) + filestream.complete(ID),
        encode_frame(FrameType.JSON, b"{}"),
        encode_frame(FrameType.FILESTREAM, b"x"),
        b"\0\0\0\7\xff\xff\xff\xff",
    ]
    for said in answers:
        async with scripted(said) as place:
            with pytest.raises(PilotError, match="broke the protocol"):
                await place.client.send_file(BOB, CONTENT, name="x")
    for said in (filestream.abort(ID, "no\x1b"), filestream.complete(b"\0" * 16, "malformed stream frame")):
        async with scripted(said) as place:
            with pytest.raises(PilotError, match="did not take 'x'") as caught:
                await place.client.send_file(BOB, CONTENT, name="x")
            assert "\x1b" not in str(caught.value)
    async with scripted(b"\0\0\0\3\0\0\0\0") as place:
        with pytest.raises(PilotError, match="broke the protocol"):
            await place.client.send_message(BOB, "x")


# ---- life -----------------------------------------------------------------------------------------------------------


async def test_receivers_that_fall_silent_or_leave_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pilot.plugins.dataexchange.client.STEP_SECONDS", 0.05)
    network = Network()
    client = DataExchangeClient(network.deps(1).streams)
    listener = await network.deps(2).streams.listen(1001)

    async def fails(sending: Any, *, silent: bool) -> str:
        task = asyncio.ensure_future(sending)
        stream: Any = await listener.accept()
        header = await stream.readexactly(HEADER_BYTES)
        if header[3] == FrameType.FILESTREAM:
            payload = await stream.readexactly(header_untrusted(header, 1 << 20)[1])
            accepted = payload[1:17] + bytes(8)
            await stream.write(encode_frame(FrameType.FILESTREAM, bytes([Kind.INIT_ACK]) + accepted))
        if not silent:
            await settle()  # it has sent all
            await stream.close()
        with pytest.raises(TimeoutError if silent else EOFError) as caught:
            await task
        await stream.close()
        return str(caught.value)

    for silent, message in [(True, "took nothing of"), (False, "closed the stream before it had answered to")]:
        text = await fails(client.send_message(BOB, "hello"), silent=silent)
        assert text.startswith(f"{BOB} {message} the message")
        text = await fails(client.send_file(BOB, b"content", name="a.txt"), silent=silent)
        assert text.startswith(f"{BOB} {message} the file 'a.txt'")
        assert text.endswith("sent again it goes on where it stopped")


async def test_stop_finishes_answers_and_cuts_files_off(tmp_path: Path) -> None:
    async with running(tmp_path) as place:
        idle, busy = await place.dial(), await offer(place)
        await busy.write(filestream.chunk_header(ID, 0, 3) + CONTENT[:3])
        assert (await frame(busy))[1][0] == Kind.ACK
        await settle()
        await place.service.stop()
        with pytest.raises(EOFError):
            await frame(idle)
        with pytest.raises(ConnectionError):
            await frame(busy)
        assert [path.stat().st_size for path in place.partials()] == [3]
        await place.start()
        assert await place.client.send_message(BOB, "again")
        assert (await place.client.send_file(BOB, CONTENT, name="x.bin")).resumed_at == 3


async def test_messages_in_both_directions_of_one_node(tmp_path: Path) -> None:
    async with running(tmp_path) as place:
        assert await place.service.client.send_message(BOB, "to myself")


class Host:
    """What `for_node` takes."""

    def __init__(self, directory: Path | None) -> None:
        self.state_dir = directory
        self.counters: dict[str, Any] = {}
        self.clock = lambda: 1.0
        self.wall = lambda: 2.0

    def add_counter(self, name: str, read: Any) -> None:
        self.counters[name] = read


async def test_for_node(tmp_path: Path) -> None:
    from pilot.plugins.dataexchange import DataExchangeService
    from tests.plugins.fakes import Network

    host = Host(tmp_path)
    service = DataExchangeService.for_node(host, base64_only=True)
    names = ("stored_messages", "stored_files", "refused")
    assert [host.counters[f"dataexchange.{name}"]() for name in names] == [0, 0, 0]
    network = Network()
    await service.start(network.deps(2))
    await service.client.send_message(BOB, "x")
    assert [host.counters[f"dataexchange.{name}"]() for name in names] == [1, 0, 0]
    await service.stop()
    [stored] = (tmp_path / "inbox").iterdir()
    assert "data_b64" in json.loads(stored.read_bytes())
    memory_only = DataExchangeService.for_node(Host(None))
    assert (memory_only._inbox_directory, memory_only._received_directory) == (None, None)


# ---- other receivers ------------------------------------------------------------------------------------------------


class Scripted:
    """A receiver of a test's making, and a client that talks to it."""

    def __init__(self) -> None:
        from pilot.plugins.dataexchange import DataExchangeClient
        from tests.plugins.fakes import Network

        network = Network()
        self.streams = network.deps(2).streams
        self.client = DataExchangeClient(network.deps(1).streams)


class _Serving:
    """Runs `handle` for each stream to port 1001 of node 2."""

    def __init__(self, handle: Any) -> None:
        self.place = Scripted()
        self.handle = handle

    async def __aenter__(self) -> Scripted:
        self.listener = await self.place.streams.listen(1001)
        self.task = asyncio.create_task(self._serve())
        return self.place

    async def __aexit__(self, *_: object) -> None:
        await self.listener.close()
        await self.task

    async def _serve(self) -> None:
        async for stream in self.listener:
            async with stream:
                await self.handle(stream)


def scripted(said: bytes) -> _Serving:
    """One that says this to whatever is offered, and swallows the rest."""

    async def handle(stream: Any) -> None:
        await stream.write(said)
        try:
            while await stream.read():
                pass
        except ConnectionError:
            return

    return _Serving(handle)


def old_receiver(answer: bytes, place: Place | None = None) -> _Serving:
    """One that answers this to TAGGED and FILESTREAM, and hands other frames to the service of `place`, if any."""

    async def handle(stream: Any) -> None:
        while True:
            try:
                number, payload = await frame(stream)
            except (EOFError, ConnectionError):
                return
            if number in (FrameType.TAGGED, FrameType.FILESTREAM):
                await stream.write(encode_frame(FrameType.TEXT, answer))
            elif place is None:
                text = f"ACK {FrameType(number).name} {len(payload)} bytes"
                await stream.write(encode_frame(FrameType.TEXT, text.encode()))
            else:
                inner = await place.dial()
                await inner.write(encode_frame(number, payload))
                await stream.write(encode_frame(*await frame(inner)))

    return _Serving(handle)
