"""One stream on the data exchange's port: frames in, answers out, in order (plugin dataexchange, L11).

Source: services.md 2.1, 2.2.
"""

from __future__ import annotations

import asyncio
import json
import math
from typing import TYPE_CHECKING, Final

from pilot.coreapi import BusyError, InvalidValueError, PilotError
from pilot.plugins._receiving import read_payload_untrusted
from pilot.plugins.dataexchange import filestream
from pilot.plugins.dataexchange.deliveries import reason
from pilot.plugins.dataexchange.filestream import CHUNK_HEAD_BYTES, NO_TRANSFER, Kind
from pilot.plugins.dataexchange.frames import (
    HEADER_BYTES,
    FrameType,
    Tags,
    encode_frame,
    header_untrusted,
    split_file_untrusted,
    split_tagged_untrusted,
    split_trace_untrusted,
    type_name,
)
from pilot.plugins.dataexchange.incoming import IncomingFile
from pilot.plugins.dataexchange.model import FileProgress
from pilot.plugins.dataexchange.naming import plain_name, reduced_name

if TYPE_CHECKING:
    import logging

    from pilot.coreapi import EventBus, Stream
    from pilot.plugins._receiving import MemoryBudget
    from pilot.plugins.dataexchange.deliveries import Deliveries
    from pilot.plugins.dataexchange.filestream import Part
    from pilot.plugins.dataexchange.incoming import Report
    from pilot.plugins.dataexchange.model import Limits

__all__ = ["Connection"]

IDLE_SECONDS: Final = 120.0
"""A stream on which nothing comes for so long is closed."""
SILENT_SECONDS: Final = 2.0
"""A file stream on which nothing came for so long gives way to one of the same node that goes on with the file."""
ANSWER_SECONDS: Final = 60.0
"""A peer that takes no answer for so long is given up."""


class Connection:
    """Serves one stream. `run` returns when the peer, its misbehaviour or `end` has ended it; the caller closes it."""

    def __init__(
        self,
        stream: Stream,
        deliveries: Deliveries,
        limits: Limits,
        budget: MemoryBudget,
        events: EventBus,
        logger: logging.Logger,
        report: Report | None,
    ) -> None:
        self._stream = stream
        self._sender = stream.remote_addr
        self._deliveries = deliveries
        self._limits = limits
        self._budget = budget
        self._events = events
        self._log = logger
        self._report = report
        self._file: IncomingFile | None = None
        self._heard_at = 0.0
        self._answering = asyncio.Lock()
        self._torn = False
        """Whether an answer is under way, or has broken off in the middle: nothing can follow it."""
        self._task: asyncio.Task[object] | None = None
        self._waiting = False
        """For the next frame, with nothing under way."""
        self._ending = False

    def end(self) -> None:
        """Has `run` return: at once where nothing is under way, after the present frame otherwise. Cuts files off."""
        self._ending = True
        if self._task is not None and (self._waiting or self._file is not None):
            self._task.cancel()

    async def run(self) -> None:
        """Serves until the end. Raises nothing a peer can cause."""
        self._task = asyncio.current_task()
        error = "the sender ended before the file was whole"
        try:
            await self._serve()
        except asyncio.CancelledError:
            error = "this node has stopped taking files"
            if not (self._ending and self._waiting) or self._task is None:
                raise
            self._task.uncancel()
        except (EOFError, TimeoutError, PilotError) as problem:
            error = str(problem)
            self._log.debug("the stream of %s:%d ends: %s", self._sender, self._stream.remote_port, problem)
        finally:
            await self._end_file(error)

    async def _serve(self) -> None:
        while not self._ending:
            header = await self._read_header()
            if header is None:
                return
            self._heard_at = asyncio.get_running_loop().time()
            number, length = header_untrusted(header, self._limits.frame_bytes)
            begun = await self._read_next_chunk_untrusted(number, length)
            if begun is not None:
                with self._budget.lease(self._sender.node) as lease:
                    payload = await read_payload_untrusted(self._stream, length, lease, IDLE_SECONDS, begun)
                    await self._handle(number, memoryview(payload), Tags())

    async def _read_next_chunk_untrusted(self, number: int, length: int) -> bytes | None:
        """Moves the payload of a frame straight to the file it is the next chunk of: None.

        Any other payload is left to the caller: the first bytes of it, which have been read.
        """
        file = self._file
        if file is None or number != FrameType.FILESTREAM or length <= CHUNK_HEAD_BYTES:
            return b""
        head = await self._stream.readexactly(CHUNK_HEAD_BYTES)
        part = filestream.split_untrusted(head)
        offset = filestream.split_chunk_untrusted(part.body).offset
        size = length - CHUNK_HEAD_BYTES
        if part.kind != Kind.CHUNK or not file.expects(part.transfer_id, offset, size):
            return head
        await file.receive(size, self._read_into)
        return None

    async def _read_into(self, room: memoryview) -> int:
        self._heard_at = asyncio.get_running_loop().time()
        self._stream.set_read_deadline(self._heard_at + IDLE_SECONDS)
        return await self._stream.read_into(room)

    async def _read_header(self) -> bytes | None:
        """The next header, None when the peer has ended between two frames."""
        self._waiting = self._file is None
        self._stream.set_read_deadline(asyncio.get_running_loop().time() + IDLE_SECONDS)
        try:
            return await self._stream.readexactly(HEADER_BYTES)
        except asyncio.IncompleteReadError as error:
            if error.partial:
                raise
            return None
        finally:
            if not self._ending:
                self._waiting = False

    async def _handle(self, number: int, payload: memoryview, tags: Tags) -> None:
        """Takes one frame."""
        if number == FrameType.TAGGED:
            tagged = split_tagged_untrusted(payload)
            await self._handle(tagged.inner_type, tagged.payload, tagged.tags)
        elif number == FrameType.FILESTREAM:
            await self._file_part(payload, tags)
        elif number == FrameType.TRACE:
            await self._trace(payload, tags)
        else:
            file = split_file_untrusted(payload) if number == FrameType.FILE else None
            text = await self._deliveries.deliver(self._sender, number, payload, file, tags)
            await self._answer(number, encode_frame(FrameType.TEXT, text.encode()))

    async def _answer(self, number: int, frame: bytes) -> None:
        """Sends an answer to a frame of type `number`, behind those to what came before it.

        Raises what `_write` raises, and what ended the writing of a file.
        """
        await self._settled()
        await self._write(number, frame)

    async def _settled(self) -> None:
        """Returns when every chunk that has come is answered."""
        if self._file is not None:
            await self._file.settled()

    async def _write(self, number: int, frame: bytes) -> None:
        """Sends an answer now. Raises what `Stream.write` raises, and `EOFError`: the one before has broken off."""
        try:
            async with self._answering:
                if self._torn:
                    raise EOFError("an answer broke off, nothing can follow it")
                self._torn = True
                self._stream.set_write_deadline(asyncio.get_running_loop().time() + ANSWER_SECONDS)
                await self._stream.write(frame)
                self._torn = False
        except (PilotError, TimeoutError) as error:
            payload = {"remote": str(self._sender), "frame_type": type_name(number), "error": str(error)}
            self._events.publish("dataexchange.ack_failed", payload)
            raise

    async def _trace(self, payload: memoryview, tags: Tags) -> None:
        received_at = self._now_ns()
        trace = split_trace_untrusted(payload)
        if trace is None:
            text = f"ERR trace parse: trace payload too short: {len(payload)} bytes"
            await self._answer(FrameType.TRACE, encode_frame(FrameType.TEXT, text.encode()))
            return
        name = type_name(trace.inner_type)
        problem = await self._deliveries.store_message(self._sender, name, trace.payload, tags)
        times = {
            "sent_at_ns": trace.sent_at_ns,
            "received_at_ns": received_at,
            "inbox_written_at_ns": self._now_ns(),
            "ack_sent_at_ns": self._now_ns(),
            "inner_ack": f"ERR {name} save failed: {problem}" if problem else f"ACK {name} {len(trace.payload)} bytes",
        }
        body = json.dumps(times, sort_keys=True, separators=(",", ":")).encode()
        await self._answer(FrameType.TRACE, encode_frame(FrameType.JSON, body))

    def _now_ns(self) -> int:
        return int(self._deliveries.wall() * 1e9)

    # ---- file streams ------------------------------------------------------------------------------------------------

    async def _file_part(self, payload: memoryview, tags: Tags) -> None:
        try:
            part = filestream.split_untrusted(payload)
        except InvalidValueError as error:
            await self._send_file_part(filestream.complete(NO_TRANSFER, str(error)))
            return
        try:
            if part.kind == Kind.INIT:
                await self._begin(part, tags)
            elif part.kind == Kind.CHUNK:
                await self._chunk(part)
            elif part.kind == Kind.DONE:
                await self._done(part)
            elif part.kind == Kind.ABORT:
                await self._settled()
                await self._end_file(f"the sender gave up: {filestream.text_untrusted(part.body) or 'no reason given'}")
        except InvalidValueError as error:
            await self._send_file_part(filestream.complete(part.transfer_id, str(error)))

    async def _send_file_part(self, frame: bytes) -> None:
        await self._answer(FrameType.FILESTREAM, frame)

    async def _write_file_part(self, frame: bytes) -> None:
        await self._write(FrameType.FILESTREAM, frame)

    def _active(self, part: Part) -> IncomingFile | None:
        file = self._file
        return file if file is not None and file.transfer_id == part.transfer_id and not file.ended else None

    async def _begin(self, part: Part, tags: Tags) -> None:
        init = filestream.split_init_untrusted(part.body)
        await self._settled()
        await self._end_file("the sender began another file")
        await self._take_over(part.transfer_id)
        try:
            partial = await self._deliveries.begin_file(self._sender, FrameType.FILESTREAM, init.size, part.transfer_id)
        except (BusyError, OSError) as error:
            await self._send_file_part(filestream.complete(part.transfer_id, reason(error)))
            if self._report is not None:
                name = plain_name(reduced_name(init.name))
                self._report(FileProgress(name, self._sender, part.transfer_id, 0, init.size, reason(error)))
            return
        lease = self._budget.lease(self._sender.node)
        self._file = file = IncomingFile(
            part.transfer_id, init, partial, self._sender, tags, lease, self._write_file_part, self._report
        )
        if partial.resumable:
            self._deliveries.transfers[self._sender.node, part.transfer_id] = self
        file.tell()
        await self._send_file_part(filestream.init_ack(part.transfer_id, file.cursor))

    async def _take_over(self, transfer_id: bytes) -> None:
        """Ends the same transfer of the same node on a stream that has gone silent: it broke, and nobody told us."""
        other = self._deliveries.transfers.get((self._sender.node, transfer_id))
        if other is not None and other._is_silent:
            await other._end_file("the sender began it again over another stream")

    @property
    def _is_silent(self) -> bool:
        """Whether nothing comes any more, though this node would take it."""
        silence = asyncio.get_running_loop().time() - self._heard_at
        return silence > SILENT_SECONDS and not (self._file is not None and self._file.waits_for_disk)

    async def _chunk(self, part: Part) -> None:
        chunk = filestream.split_chunk_untrusted(part.body)
        file = self._active(part)
        if file is None:
            text = "no active transfer (send INIT first)"
            await self._send_file_part(filestream.abort(part.transfer_id, text))
        elif refusal := await file.take(chunk):
            raise InvalidValueError(refusal)

    async def _done(self, part: Part) -> None:
        file = self._active(part)
        if file is None:
            raise InvalidValueError("no active transfer")
        self._heard_at = math.inf  # while it is checked nobody takes it over, however long that takes
        refusal, stored = await file.finish()
        try:
            await self._send_file_part(filestream.complete(part.transfer_id, refusal))
            self._heard_at = asyncio.get_running_loop().time()
        finally:
            if stored is not None:
                self._deliveries.file_stored(stored, stored.path.name)
            if stored is not None or file.ended:
                await self._end_file("" if stored else refusal)

    async def _end_file(self, error: str) -> None:
        file, self._file = self._file, None
        if file is not None:
            key = self._sender.node, file.transfer_id
            if self._deliveries.transfers.get(key) is self:
                del self._deliveries.transfers[key]
            await file.close(error)
