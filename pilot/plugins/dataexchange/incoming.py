"""A file stream that arrives: chunks in order, written and acknowledged while more come (plugin dataexchange, L11).

Source: services.md 2.5.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final, NamedTuple

from pilot.coreapi import PilotError
from pilot.plugins.dataexchange import filestream
from pilot.plugins.dataexchange.deliveries import in_thread, reason
from pilot.plugins.dataexchange.model import FileProgress, ReceivedFile
from pilot.plugins.dataexchange.naming import plain_name, reduced_name

if TYPE_CHECKING:
    from pilot.coreapi import Addr
    from pilot.plugins._receiving import MemoryLease
    from pilot.plugins.dataexchange.filestream import Chunk, Init
    from pilot.plugins.dataexchange.frames import Tags
    from pilot.plugins.dataexchange.received import PartialFile

__all__ = ["IncomingFile"]

EARLY_BYTES: Final = 768 * 1024
"""Bytes kept of chunks that came before their turn."""
EARLY_CHUNKS: Final = 64
"""And chunks: each is looked at for every one that comes. The official sender has 16 under way."""
QUEUED_BYTES: Final = 8 << 20
"""Bytes that wait for the disk before the next chunk is read from the stream."""

QUEUED_CHUNKS: Final = 1024
"""And chunks: empty ones cost memory too."""

Send = Callable[[bytes], Awaitable[None]]
Report = Callable[[FileProgress], None]


class _Step(NamedTuple):
    """Pieces to write, the memory they hold, and the acknowledgment that follows."""

    pieces: list[memoryview]
    lease: MemoryLease
    ack: bytes


class IncomingFile:
    """One file from INIT to COMPLETE. `close` ends it whatever its state; what has been written stays for a resume."""

    def __init__(
        self,
        transfer_id: bytes,
        init: Init,
        partial: PartialFile,
        sender: Addr,
        tags: Tags,
        send: Send,
        report: Report | None,
    ) -> None:
        self.transfer_id = transfer_id
        self.cursor = partial.position
        """Where the next chunk in order begins."""
        self.failure = ""
        """Why the disk took no more."""
        self._init = init
        self._partial = partial
        self._resumed_at = partial.position
        self._name = reduced_name(init.name)
        self._sender = sender
        self._tags = tags
        self._send = send
        self._report = report
        self._early: dict[int, bytes] = {}
        self._queue: list[_Step] = []
        self._queued_bytes = 0
        self._moved = asyncio.Event()
        self._wanted = asyncio.Event()
        self._writer = asyncio.create_task(self._write(), name=f"dataexchange write {transfer_id.hex()[:8]}")
        self._writer.add_done_callback(lambda task: self._moved.set())
        self._tell()

    async def take(self, chunk: Chunk, lease: MemoryLease) -> str:
        """Takes a chunk and `lease`, the memory it is in; returns when the next one may be read.

        The result is why the chunk is refused, or an empty text.
        """
        size, end = self._init.size, chunk.offset + len(chunk.data)
        if end > size:
            return f"chunk at {chunk.offset} of {len(chunk.data)} bytes exceeds declared size {size}"
        pieces = []
        if chunk.offset == self.cursor:
            pieces.append(chunk.data)
            self.cursor = end
            pieces += self._take_early()
        elif chunk.offset > self.cursor:
            self._keep_early(chunk)
        self._queue.append(_Step(pieces, lease, filestream.ack(self.transfer_id, self.cursor)))
        self._queued_bytes += lease.size
        self._wanted.set()
        await self._until(lambda: self._queued_bytes <= QUEUED_BYTES and len(self._queue) <= QUEUED_CHUNKS)
        return ""

    def _keep_early(self, chunk: Chunk) -> None:
        early = self._early.values()
        if chunk.data and len(early) < EARLY_CHUNKS and sum(map(len, early)) + len(chunk.data) <= EARLY_BYTES:
            self._early[chunk.offset] = bytes(chunk.data)

    def _take_early(self) -> list[memoryview]:
        """The early chunks whose turn has come; those that are too late now are dropped."""
        pieces = []
        while (data := self._early.pop(self.cursor, None)) is not None:
            pieces.append(memoryview(data))
            self.cursor += len(data)
        self._early = {offset: data for offset, data in self._early.items() if offset > self.cursor}
        return pieces

    async def finish(self) -> tuple[str, ReceivedFile | None]:
        """What to answer to DONE: a refusal, after which the transfer may go on unless it is `ended`; or the file."""
        await self._until(lambda: not self._queue and not self._queued_bytes)
        if self.failure:
            return self.failure, None
        have, size = self._partial.position, self._init.size
        if have < size:
            return f"incomplete: have {have} of {size} bytes", None
        try:
            digest = await in_thread(self._partial.digest)
            if digest != self._init.sha256:
                await in_thread(self._partial.condemn)
                return self._ended("sha256 mismatch — file corrupt, .partial retained"), None
            path = await in_thread(self._partial.publish, plain_name(self._name))
        except OSError as error:
            return self._ended(reason(error)), None
        return "", ReceivedFile(path, self._name, size, digest, self._sender, self._resumed_at, self._tags)

    @property
    def ended(self) -> bool:
        """Whether nothing more can come of this transfer."""
        return bool(self.failure)

    def _ended(self, text: str) -> str:
        self.failure = text
        return text

    async def close(self, error: str = "") -> None:
        """Ends writing and closes the file; `error` is why, when it is not whole."""
        self._writer.cancel()
        await asyncio.wait([self._writer])
        for step in self._queue:
            step.lease.release()
        await in_thread(self._partial.close)
        if error or self.failure:
            self._tell(error or self.failure)
        problem = None if self._writer.cancelled() else self._writer.exception()
        if problem is not None and not isinstance(problem, (PilotError, TimeoutError)):  # those mean a broken stream
            raise problem

    def _tell(self, error: str = "") -> None:
        if self._report is not None:
            progress = (self._partial.position, self._init.size, error)
            self._report(FileProgress(plain_name(self._name), self._sender, self.transfer_id, *progress))

    # ---- the disk ----------------------------------------------------------------------------------------------------

    async def _until(self, condition: Callable[[], bool]) -> None:
        """Waits until the writer has brought `condition` about. Raises what ended the writer."""
        while not condition():
            if self._writer.done():
                self._writer.result()
                return
            self._moved.clear()
            await self._moved.wait()

    async def _write(self) -> None:
        """Writes what has come while the next comes, and acknowledges what is written."""
        while not self.failure:
            await self._wanted.wait()
            self._wanted.clear()
            steps, self._queue = self._queue, []
            pieces = [piece for step in steps for piece in step.pieces]
            taken = sum(step.lease.size for step in steps)
            try:
                if pieces:
                    await in_thread(self._partial.append, pieces)
            except OSError as error:
                self.failure = reason(error)
            finally:
                pieces.clear()
                for step in steps:
                    step.lease.release()
            if self.failure:
                await self._send(filestream.complete(self.transfer_id, self.failure))
            else:
                await self._send(b"".join(step.ack for step in steps))
                self._tell()
            self._queued_bytes -= taken
            self._moved.set()
        self._queued_bytes = 0
