"""`DataExchangeClient`: sends messages and files to port 1001 of a peer (plugin dataexchange, L11).

Source: services.md section 2.
"""

from __future__ import annotations

import asyncio
import secrets
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from pilot.coreapi import InvalidValueError, PilotError
from pilot.plugins._targets import find
from pilot.plugins.dataexchange.frames import (
    HEADER_BYTES,
    MAX_ANSWER_BYTES,
    MAX_FRAME_BYTES,
    MESSAGE_TYPES,
    Answer,
    FrameType,
    Tags,
    check_id,
    encode_file,
    encode_frame,
    encode_tagged,
    header_untrusted,
    parse_answer_untrusted,
)
from pilot.plugins.dataexchange.model import PORT, Progress, SentFile
from pilot.plugins.dataexchange.outgoing import OldReceiverError, OutgoingFile, open_source, refused

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from pilot.coreapi import Addr, EventBus, PeerResolver, Stream, Streams
    from pilot.plugins._targets import Target
    from pilot.plugins.dataexchange.outgoing import Source

__all__ = ["DataExchangeClient", "exchange"]

STEP_SECONDS: Final = 60.0
"""How long the receiver may take for one answer, and for taking a piece of what is written."""
PIECE_BYTES: Final = 256 * 1024


class DataExchangeClient:
    """Sends over any `coreapi.Streams`; every call opens a stream of its own.

    `resolver` is needed for hostnames alone. With `events` it publishes `file.delivered` when a stream of it has ended,
    as the official daemon does for every stream to the port.
    """

    def __init__(
        self,
        streams: Streams,
        resolver: PeerResolver | None = None,
        *,
        events: EventBus | None = None,
        port: int = PORT,
    ) -> None:
        self._streams = streams
        self._resolver = resolver
        self._events = events
        self._port = port

    async def send_message(
        self,
        target: Target,
        data: bytes | str,
        *,
        kind: FrameType | None = None,
        message_id: str = "",
        reply_to: str = "",
        timeout: float | None = None,
    ) -> Answer:
        """Sends one message (TEXT for a `str`, BINARY for bytes, unless `kind` says otherwise); the receiver's answer.

        It is tagged with `message_id`, a random one if there is none: sent again with the same id within ten minutes it
        is stored once. A receiver that knows no tags gets it untagged. An answer that is false says in its text why the
        message was not stored. `timeout` is that of the dial, in seconds. Cancelled, it may have been stored or not.

        Raises:
            InvalidValueError: target, kind, an id or the length cannot be used.
            PilotError: what the receiver sent is no answer.
            EOFError: the receiver ended without an answer.
            TimeoutError: the receiver did not answer, or not within 60 s.
            PeerNotFoundError, RefusedError, PathError, RegistryError, ResetError, ClosedError: as `Streams.dial` and
                `Stream.read`.
        """
        payload = data.encode() if isinstance(data, str) else bytes(data)
        if kind is None:
            kind = FrameType.TEXT if isinstance(data, str) else FrameType.BINARY
        if kind not in MESSAGE_TYPES:
            raise InvalidValueError(f"{kind!r} is no kind of message: TEXT, BINARY or JSON")
        tags = Tags(check_id(message_id) or secrets.token_hex(16), check_id(reply_to))
        tagged = encode_tagged(tags, kind, payload)
        if len(tagged) > MAX_FRAME_BYTES:
            raise InvalidValueError(f"a message of {len(payload)} bytes is too long: send it as a file")
        async with self._open(target, timeout) as stream, _told("the message", stream.remote_addr):
            answer = await exchange(stream, FrameType.TAGGED, tagged)
            if answer.text.startswith(("ACK UNKNOWN(10)", "ERR UNKNOWN(10)")):  # from before there were tags
                return await exchange(stream, kind, payload)
            return answer._replace(message_id=tags.message_id)

    async def send_file(
        self,
        target: Target,
        source: Path | bytes,
        *,
        name: str = "",
        progress: Progress | None = None,
        timeout: float | None = None,
    ) -> SentFile:
        """Sends the file at `source`, or these bytes, as `name`; returns when the receiver has verified and stored it.

        A receiver that has a part of the same content from an earlier attempt gets the rest. One that knows no file
        streams gets a FILE frame, if the file fits into one. `progress` is told the bytes across and in all, from the
        event loop. `timeout` is that of the dial, in seconds. Cancelled, the receiver keeps what it has for a resume.

        Raises:
            PilotError: the receiver refused the file or broke the protocol, or the file changed while it was sent; the
                message says which.
            InvalidValueError: target or name cannot be used, or `source` is no regular file.
            EOFError: the receiver ended before it had confirmed the file.
            TimeoutError: a step took the receiver longer than 60 s, or it did not answer the dial.
            OSError: the file cannot be read.
            PeerNotFoundError, RefusedError, PathError, RegistryError, ResetError, ClosedError: as `Streams.dial` and
                `Stream.read`.
        """
        async with open_source(source, name) as opened:
            try:
                async with self._open(target, timeout) as stream, _told_of_file(opened.name, stream):
                    return await OutgoingFile(stream, opened, progress or _ignore, STEP_SECONDS).run()
            except OldReceiverError as old:
                return await self._send_in_one_frame(target, opened, progress or _ignore, timeout, str(old))

    async def _send_in_one_frame(
        self, target: Target, source: Source, progress: Progress, timeout: float | None, why: str
    ) -> SentFile:
        if 2 + len(source.name.encode()) + source.size > MAX_FRAME_BYTES:
            raise refused(source.name, f"{why}, and in one frame it takes no more than {MAX_FRAME_BYTES} bytes")
        content = await source.read_all()
        started = asyncio.get_running_loop().time()
        async with self._open(target, timeout) as stream, _told_of_file(source.name, stream):
            progress(0, source.size)
            answer = await exchange(stream, FrameType.FILE, encode_file(source.name, content))
        if not answer:
            raise refused(source.name, answer.text)
        progress(source.size, source.size)
        seconds = asyncio.get_running_loop().time() - started
        return SentFile(stream.remote_addr, source.name, source.size, source.sha256, 0, seconds, streamed=False)

    @asynccontextmanager
    async def _open(self, target: Target, timeout: float | None) -> AsyncIterator[Stream]:
        """A stream to the peer's data exchange, for the block; its end is published."""
        addr = await find(target, self._resolver)
        stream = await self._streams.dial(addr, self._port, timeout=timeout)
        try:
            async with stream:
                yield stream
        finally:
            if self._events is not None:
                ends = {"conn_id": stream.local_port, "remote_addr": str(addr), "remote_port": self._port}
                self._events.publish("file.delivered", ends)


async def exchange(stream: Stream, number: int, payload: bytes) -> Answer:
    """Sends one frame and returns the answer to it.

    Raises:
        PilotError: the answer cannot be understood.
        EOFError: the receiver ended without one.
        TimeoutError: it took nothing, or did not answer, for 60 s.
        ResetError, PathError, ClosedError: as `Stream.read`.
    """
    loop = asyncio.get_running_loop()
    view = memoryview(encode_frame(number, payload))
    for start in range(0, len(view), PIECE_BYTES):
        stream.set_write_deadline(loop.time() + STEP_SECONDS)
        await stream.write(view[start : start + PIECE_BYTES])
    stream.set_read_deadline(loop.time() + STEP_SECONDS)
    header = await stream.readexactly(HEADER_BYTES)
    try:
        kind, length = header_untrusted(header, MAX_ANSWER_BYTES)
        return parse_answer_untrusted(kind, await stream.readexactly(length))
    except InvalidValueError as error:
        raise PilotError(f"{stream.remote_addr} broke the protocol of the data exchange: {error}") from error


@asynccontextmanager
async def _told(what: str, receiver: Addr, advice: str = "") -> AsyncIterator[None]:
    """Has a timeout and an early end in the block say what was sent to whom."""
    try:
        yield
    except TimeoutError as error:
        problem = f"{receiver} took nothing of {what}, or gave no answer to it, for {STEP_SECONDS:g} s{advice}"
        raise TimeoutError(problem) from error
    except EOFError as error:
        raise EOFError(f"{receiver} closed the stream before it had answered to {what}{advice}") from error


def _told_of_file(name: str, stream: Stream) -> AbstractAsyncContextManager[None]:
    return _told(f"the file {name!r}", stream.remote_addr, "; sent again it goes on where it stopped")


def _ignore(done: int, total: int) -> None:
    """Nobody wants to know the progress."""
