"""A file stream that is sent: the offer, a window of chunks, the receiver's verdict (plugin dataexchange, L11).

Source: services.md 2.5. Chunks begin with the 48 KiB of the official sender and grow on a path that carries more; the
official receiver takes any size and any number of them.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import stat
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pilot.coreapi import InvalidValueError, PilotError, ResetError
from pilot.plugins.dataexchange import filestream
from pilot.plugins.dataexchange.deliveries import in_thread
from pilot.plugins.dataexchange.filestream import TRANSFER_ID_BYTES, Init, Kind
from pilot.plugins.dataexchange.frames import HEADER_BYTES, FrameType, header_untrusted, printable, type_name
from pilot.plugins.dataexchange.model import SentFile

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from io import FileIO

    from typing_extensions import Buffer

    from pilot.coreapi import Stream
    from pilot.plugins.dataexchange.filestream import Part
    from pilot.plugins.dataexchange.model import Progress

__all__ = ["OldReceiverError", "OutgoingFile", "Source", "open_source", "refused"]

FIRST_CHUNK_BYTES: Final = 48 * 1024
MAX_CHUNK_BYTES: Final = 512 * 1024
WINDOW_BYTES: Final = 16 << 20
"""Bytes sent and not acknowledged."""
FIRST_WINDOW_CHUNKS: Final = 16
QUICK_SECONDS: Final = 0.25
SLOW_SECONDS: Final = 2.0
"""An acknowledgment within the first doubles the chunks, one after the second halves them."""
OFFER_SECONDS: Final = 5.0
"""A receiver that has not answered the offer by then knows no file streams."""
MAX_REPLY_BYTES: Final = 64 * 1024
READ_BYTES: Final = 4 << 20
"""Read from a file in one call of a thread."""
CACHED_READ_BYTES: Final = 512 * 1024
"""And in one call that does not wait."""


class OldReceiverError(Exception):
    """The receiver knows no file streams; the text says what showed it."""


def refused(name: str, text: str) -> PilotError:
    """The error for a file that the receiver did not take."""
    return PilotError(f"the receiver did not take {printable(name)!r}: {text}")


class Source:
    """What is sent: a file or bytes, hashed. Comes from `open_source`."""

    def __init__(self, name: str, size: int, sha256: bytes, content: FileIO | bytes) -> None:
        self.name = name
        self.size = size
        self.sha256 = sha256
        self._content = content
        self._buffer = memoryview(b"")
        self._cached = hasattr(os, "RWF_NOWAIT")
        """Whether the system may tell what it has in memory of this file."""

    async def read(self, offset: int) -> memoryview:
        """Some bytes from `offset`, good until the next call; none where the file has become shorter.

        What is in the system's memory is read at once, little enough to be in the processor's cache when it is sent;
        a thread waits for the disk, and brings more.
        """
        if isinstance(self._content, bytes):
            return memoryview(self._content)[offset : offset + READ_BYTES]
        if not self._buffer:
            self._buffer = memoryview(bytearray(min(self.size, READ_BYTES)))
        room = self._buffer[: self.size - offset]
        count = self._read_cached(offset, room[:CACHED_READ_BYTES])
        return room[: count or await in_thread(_read, self._content, offset, room)]

    def _read_cached(self, offset: int, room: memoryview) -> int:
        """How many bytes were there without waiting; 0 when that is not known."""
        assert not isinstance(self._content, bytes)
        if self._cached:
            try:
                return os.preadv(self._content.fileno(), [room], offset, os.RWF_NOWAIT)
            except BlockingIOError:
                pass
            except OSError:
                self._cached = False  # not on this file system; what is really wrong the thread finds out
        return 0

    async def read_all(self) -> Buffer:
        """The whole content; less where the file has become shorter."""
        if isinstance(self._content, bytes):
            return self._content
        room = memoryview(bytearray(self.size))
        return room[: await in_thread(_read, self._content, 0, room)]


@asynccontextmanager
async def open_source(source: Path | bytes, name: str) -> AsyncIterator[Source]:
    """`source` hashed and ready to read, for the block. A file that grows meanwhile is sent as it was when hashed.

    Raises:
        InvalidValueError: there is no name, or the file is a directory, a pipe or a device.
        OSError: it cannot be read.
    """
    if isinstance(source, bytes):
        if not name:
            raise InvalidValueError("bytes are sent as a file under a name: give one")
        yield Source(name, len(source), await in_thread(lambda: hashlib.sha256(source).digest()), source)
        return
    path = Path(source)
    with _open(path) as file:
        digest = await in_thread(lambda: hashlib.file_digest(file, "sha256").digest())
        yield Source(name or path.name, file.tell(), digest, file)


def _open(path: Path) -> FileIO:
    # Without waiting: a pipe is opened when somebody writes to it, which may be never.
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise InvalidValueError(f"{path} is no regular file: only the content of files can be sent")
    return open(fd, "rb", buffering=0)


def _read(file: FileIO, offset: int, room: memoryview) -> int:
    filled = 0
    while filled < len(room) and (count := os.preadv(file.fileno(), [room[filled:]], offset + filled)):
        filled += count
    return filled


class Pace:
    """How much is sent at once: chunk and window sizes that follow how fast chunks are acknowledged. No I/O."""

    def __init__(self) -> None:
        self.chunk_bytes = FIRST_CHUNK_BYTES
        self.window_bytes = FIRST_CHUNK_BYTES * FIRST_WINDOW_CHUNKS

    def acknowledged(self, seconds: float) -> None:
        """A chunk has been acknowledged, `seconds` after the one before."""
        if seconds <= QUICK_SECONDS:
            self.chunk_bytes = min(self.chunk_bytes * 2, MAX_CHUNK_BYTES)
            self.window_bytes = min(self.window_bytes * 2, WINDOW_BYTES)
        elif seconds > SLOW_SECONDS:
            self.chunk_bytes = max(self.chunk_bytes // 2, FIRST_CHUNK_BYTES)
            self.window_bytes = max(self.window_bytes // 2, self.chunk_bytes)


class OutgoingFile:
    """One file over one stream. `run` does all of it."""

    def __init__(self, stream: Stream, source: Source, progress: Progress, step_seconds: float) -> None:
        self._stream = stream
        self._source = source
        self._progress = progress
        self._step_seconds = step_seconds
        self._id = source.sha256[:TRANSFER_ID_BYTES]
        self._loop = asyncio.get_running_loop()
        self._pace = Pace()
        self._acknowledged = 0
        self._acknowledged_at = 0.0
        self._init = filestream.encode_init(self._id, Init(source.size, source.sha256, MAX_CHUNK_BYTES, source.name))

    async def run(self) -> SentFile:
        """Sends it; returns when the receiver has verified it. Raises what `DataExchangeClient.send_file` does.

        Raises:
            OldReceiverError: it has to be sent in one frame; nothing has been stored.
        """
        try:
            return await self._run()
        except InvalidValueError as error:
            raise PilotError(f"the receiver of {printable(self._source.name)!r} broke the protocol: {error}") from error

    async def _run(self) -> SentFile:
        source = self._source
        offset = await self._offer()
        started = self._acknowledged_at = self._loop.time()
        self._acknowledged = offset
        self._progress(offset, source.size)
        await self._send_from(offset)
        await self._write(filestream.done(self._id))
        while (part := await self._read_part(self._step_seconds)).kind != Kind.COMPLETE:
            self._on_part_untrusted(part)
        self._check_verdict_untrusted(part)
        if self._acknowledged < source.size:
            self._progress(source.size, source.size)
        seconds = self._acknowledged_at - started
        receiver = self._stream.remote_addr
        return SentFile(receiver, source.name, source.size, source.sha256, offset, seconds, streamed=True)

    async def _offer(self) -> int:
        """Where to go on from."""
        source = self._source
        await self._write(self._init)
        try:
            part = await self._read_part(OFFER_SECONDS)
        except (TimeoutError, EOFError, ResetError) as error:
            raise OldReceiverError("the receiver knows no file streams") from error
        if part.kind in (Kind.COMPLETE, Kind.ABORT):
            self._check_verdict_untrusted(part)
        offset = filestream.split_offset_untrusted(part.body) if part.kind == Kind.INIT_ACK else -1
        if not 0 <= offset <= source.size:
            raise InvalidValueError("the receiver named no usable place to go on from")
        return offset

    async def _send_from(self, offset: int) -> None:
        while offset < self._source.size:
            block = await self._source.read(offset)
            if not block:
                await self._write(filestream.abort(self._id, "the file became shorter while it was sent"))
                raise PilotError(f"{self._source.name!r} became shorter while it was sent: send it again")
            await self._send_block(offset, block)
            offset += len(block)

    async def _send_block(self, offset: int, block: memoryview) -> None:
        sent = 0
        while sent < len(block):
            chunk = block[sent : sent + self._pace.chunk_bytes]
            while offset + sent + len(chunk) - self._acknowledged > self._pace.window_bytes:
                self._on_part_untrusted(await self._read_part(self._step_seconds))
            await self._write(filestream.chunk_header(self._id, offset + sent, len(chunk)))
            await self._write(chunk)
            sent += len(chunk)

    async def _write(self, data: bytes | memoryview) -> None:
        self._stream.set_write_deadline(self._loop.time() + self._step_seconds)
        await self._stream.write(data)

    # ---- what the receiver says --------------------------------------------------------------------------------------

    async def _read_part(self, seconds: float) -> Part:
        """The next part about this file. Raises `OldReceiverError`: the receiver answered as to an unknown frame."""
        self._stream.set_read_deadline(self._loop.time() + seconds)
        while True:
            number, length = header_untrusted(await self._stream.readexactly(HEADER_BYTES), MAX_REPLY_BYTES)
            payload = await self._stream.readexactly(length)
            if number == FrameType.TEXT:
                text = printable(payload[:200].decode("utf-8", "replace"))
                raise OldReceiverError(f"the receiver answered {text!r} to a file stream")
            if number != FrameType.FILESTREAM:
                raise InvalidValueError(f"a {type_name(number)} frame came where a file stream's was due")
            part = filestream.split_untrusted(payload)
            if part.transfer_id == self._id:
                return part
            if part.transfer_id == filestream.NO_TRANSFER:
                raise refused(self._source.name, filestream.text_untrusted(part.body[1:]))

    def _on_part_untrusted(self, part: Part) -> None:
        if part.kind in (Kind.COMPLETE, Kind.ABORT):
            self._check_verdict_untrusted(part)
            raise InvalidValueError("the receiver confirmed the file before it was sent")
        if part.kind != Kind.ACK:
            return
        cursor = filestream.split_offset_untrusted(part.body)
        if cursor > self._source.size:
            raise InvalidValueError(f"the receiver acknowledged {cursor} bytes of {self._source.size}")
        if cursor > self._acknowledged:
            now = self._loop.time()
            self._pace.acknowledged(now - self._acknowledged_at)
            self._acknowledged, self._acknowledged_at = cursor, now
            self._progress(cursor, self._source.size)

    def _check_verdict_untrusted(self, part: Part) -> None:
        """Raises `PilotError` unless it is a good COMPLETE."""
        if part.kind == Kind.ABORT:
            raise refused(self._source.name, filestream.text_untrusted(part.body) or "it gave up")
        if len(part.body) < 1 or part.body[0] != 0:
            raise refused(self._source.name, filestream.text_untrusted(part.body[1:]) or "it gave no reason")
