"""A file stream that arrives: chunks in order, written and acknowledged while more come (plugin dataexchange, L11).

Source: services.md 2.5.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from pilot.coreapi import PilotError
from pilot.plugins.dataexchange import filestream
from pilot.plugins.dataexchange.deliveries import in_thread, reason, to_the_end
from pilot.plugins.dataexchange.model import FileProgress, ReceivedFile
from pilot.plugins.dataexchange.naming import plain_name, reduced_name
from pilot.plugins.dataexchange.ring import Ring

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
GATHER_SECONDS: Final = 0.002
"""How long what has come waits for more to be written with it: each call of a thread holds the event loop up."""
MAX_UNACKNOWLEDGED: Final = 1024
"""Chunks that wait to be acknowledged before the next is read from the stream: empty ones cost memory too."""

CLOSED: Final = "the transfer has been ended"

Send = Callable[[bytes], Awaitable[None]]
Report = Callable[[FileProgress], None]


class IncomingFile:
    """One file from INIT to COMPLETE. `close` ends it whatever its state; what has been written stays for a resume."""

    def __init__(
        self,
        transfer_id: bytes,
        init: Init,
        partial: PartialFile,
        sender: Addr,
        tags: Tags,
        lease: MemoryLease,
        send: Send,
        report: Report | None,
    ) -> None:
        self.transfer_id = transfer_id
        self.cursor = partial.position
        """Where the next chunk in order begins."""
        self.failure = ""
        """Why the disk took no more."""
        self.waits_for_disk = False
        """Whether the sender may be silent because this node is slow."""
        self._init = init
        self._partial = partial
        self._resumed_at = partial.position
        self._name = reduced_name(init.name)
        self._sender = sender
        self._tags = tags
        self._lease = lease
        self._send = send
        self._report = report
        self._early: dict[int, bytes] = {}
        self._ring = Ring(lease, init.size - partial.position)
        self._ends: deque[int] = deque()
        """Where the chunks end that are to be acknowledged once they are written."""
        self._closed = False
        self._settling = False
        self._writing = False
        self._wanted = asyncio.Event()
        """Something is to be written or acknowledged."""
        self._enough = asyncio.Event()
        """And no more is waited for."""
        self._moved = asyncio.Event()
        self._writer = asyncio.create_task(self._write(), name=f"dataexchange write {transfer_id.hex()[:8]}")
        self._writer.add_done_callback(lambda task: self._moved.set())

    def expects(self, transfer_id: bytes, offset: int, length: int) -> bool:
        """Whether a chunk is the next of this file, to be taken with `receive`."""
        is_next = transfer_id == self.transfer_id and offset == self.cursor and not self.ended
        return is_next and 0 < length <= self._init.size - offset

    async def receive(self, length: int, read_into: Callable[[memoryview], Awaitable[int]]) -> None:
        """Takes the next chunk from the stream; returns when what follows it may be read.

        Raises:
            EOFError: the stream ended before it was whole, or the transfer did, by `close`.
        """
        left = length
        while left:
            count = await read_into((await self._room())[:left])
            if not count:
                raise EOFError(f"the peer ended {left} bytes before the end of a chunk")
            self._filled(count)
            left -= count
        self.cursor += length
        await self._chunk_ended()

    async def take(self, chunk: Chunk) -> str:
        """Takes a chunk that came in another way; returns when the next one may be read.

        The result is why the chunk is refused, or an empty text.
        """
        size, end = self._init.size, chunk.offset + len(chunk.data)
        if end > size:
            return f"chunk at {chunk.offset} of {len(chunk.data)} bytes exceeds declared size {size}"
        if chunk.offset == self.cursor:
            await self._put(chunk.data)
        elif chunk.offset > self.cursor:
            self._keep_early(chunk)
        await self._chunk_ended()
        return ""

    def _keep_early(self, chunk: Chunk) -> None:
        early, size = self._early.values(), len(chunk.data)
        if size and len(early) < EARLY_CHUNKS and sum(map(len, early)) + size <= EARLY_BYTES:
            self._pop_early(chunk.offset)
            if self._lease.grow_if_roomy(size):
                self._early[chunk.offset] = bytes(chunk.data)

    def _pop_early(self, offset: int) -> bytes:
        """The early chunk that begins there, which is kept no longer; nothing where there is none."""
        data = self._early.pop(offset, b"")
        self._lease.shrink(len(data))
        return data

    async def _chunk_ended(self) -> None:
        """Puts the early chunks whose turn has come behind it and has it acknowledged."""
        while data := self._pop_early(self.cursor):
            await self._put(memoryview(data))
        for offset in [offset for offset in self._early if offset < self.cursor]:
            self._pop_early(offset)  # it is too late now
        self._ends.append(self.cursor)
        self._wanted.set()
        if len(self._ends) > MAX_UNACKNOWLEDGED:
            await self._until(lambda: len(self._ends) <= MAX_UNACKNOWLEDGED)

    async def _put(self, data: memoryview) -> None:
        self.cursor += len(data)
        while data:
            room = (await self._room())[: len(data)]
            room[:] = data[: len(room)]
            self._filled(len(room))
            data = data[len(room) :]

    async def _room(self) -> memoryview:
        """Where the next bytes go. Raises as `_until`, and `TimeoutError`: there was no memory."""
        ring = self._ring
        await ring.open()
        if self._closed:
            self._lease.release()
            raise EOFError(CLOSED)
        if not ring.room():
            if ring.can_grow:
                await self._until(lambda: not ring.used)
                ring.grow()
            else:
                await self._until(lambda: bool(ring.room()))
        return ring.room()

    def _filled(self, count: int) -> None:
        self._ring.filled(count)
        if self.failure:  # nobody writes any more
            self._ring.emptied(count)
        self._wanted.set()
        if self._ring.is_half_full:
            self._enough.set()

    async def settled(self) -> None:
        """Returns when all that has come is written and acknowledged, or the sender told why not.

        Raises what ended the writer, and `EOFError`: the transfer is closed.
        """
        self._settling = True
        self._enough.set()
        try:
            await self._until(lambda: not (self._ring.used or self._ends or self._writing))
        finally:
            self._settling = False

    async def finish(self) -> tuple[str, ReceivedFile | None]:
        """What to answer to DONE: a refusal, after which the transfer may go on unless it is `ended`; or the file."""
        await self.settled()
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
        return self._closed or bool(self.failure)

    def _ended(self, text: str) -> str:
        self.failure = text
        return text

    async def close(self, error: str = "") -> None:
        """Ends writing and closes the file; `error` is why, when it is not whole.

        Cancelled, it waits for the end of what a thread does first.
        """
        self._closed = True
        self._writer.cancel()
        await to_the_end(self._released())
        if self.failure or error:
            self.tell(self.failure or error)
        problem = None if self._writer.cancelled() else self._writer.exception()
        if problem is not None and not isinstance(problem, (PilotError, TimeoutError, EOFError)):  # a broken stream
            raise problem

    async def _released(self) -> None:
        await asyncio.wait([self._writer])
        self._lease.release()
        await in_thread(self._partial.close)

    def tell(self, error: str = "") -> None:
        """Reports where the file stands."""
        if self._report is not None:
            progress = (self._partial.position, self._init.size, error)
            self._report(FileProgress(plain_name(self._name), self._sender, self.transfer_id, *progress))

    # ---- the disk ----------------------------------------------------------------------------------------------------

    async def _until(self, condition: Callable[[], bool]) -> None:
        """Waits until the writer has brought `condition` about, or has ended with the `failure`.

        Raises what ended the writer, and `EOFError`: the transfer is closed.
        """
        while not condition():
            if self._closed:
                raise EOFError(CLOSED)
            if self._writer.done():
                self._writer.result()
                return
            self._moved.clear()
            await self._moved.wait()

    async def _write(self) -> None:
        """Writes what has come while the next comes, and acknowledges what is written."""
        while not self.failure:
            while not (self._ring.used or self._ends):
                self._wanted.clear()
                await self._wanted.wait()
            self._writing = True
            await self._gather()
            written = await self._write_waiting()
            self._moved.set()
            if written:
                await self._acknowledge()
                self.tell()
            else:
                await self._send(filestream.complete(self.transfer_id, self.failure))
            self._writing = False
            self._moved.set()

    async def _gather(self) -> None:
        """Waits a moment for more to be written at once."""
        if self._settling or self._ring.is_half_full:
            return
        self._enough.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(GATHER_SECONDS):
                await self._enough.wait()

    async def _write_waiting(self) -> bool:
        """Writes what waits in the ring; False when the disk does not take it, with the `failure` noted."""
        pieces = self._ring.waiting()
        self.waits_for_disk = True
        try:
            if pieces:
                await in_thread(self._partial.append, pieces)
        except OSError as error:
            self.failure = reason(error)
            self._ring.emptied(self._ring.used)
            return False
        finally:
            self.waits_for_disk = False
        self._ring.emptied(sum(map(len, pieces)))
        return True

    async def _acknowledge(self) -> None:
        """Acknowledges each chunk that is written: the official sender counts them."""
        written = self._partial.position
        acks = []
        while self._ends and self._ends[0] <= written:
            acks.append(filestream.ack(self.transfer_id, self._ends.popleft()))
        if acks:
            await self._send(b"".join(acks))
