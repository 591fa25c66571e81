"""`SecureChannel`: an encrypted, and if wanted mutually authenticated, byte stream over any `Stream` (plugin, L11).

Source: services.md 5.
"""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Self

from pilot.coreapi import BusyError, ClosedError, InvalidValueError, PilotError, ResetError
from pilot.plugins.secure.authentication import FRAME_BYTES
from pilot.plugins.secure.handshake import exchange
from pilot.plugins.secure.records import (
    HEADER_BYTES,
    MAX_PLAINTEXT_BYTES,
    MAX_RECORD_BYTES,
    RECORD_OVERHEAD_BYTES,
    Opener,
    Role,
    Sealer,
    record_length_untrusted,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
    from typing_extensions import Buffer

    from pilot.coreapi import Addr, Stream
    from pilot.plugins.secure.authentication import Authentication

__all__ = ["HANDSHAKE_SECONDS", "SecureChannel"]

HANDSHAKE_SECONDS: Final = 10.0
CLOSE_SECONDS: Final = 5.0
"""How long `close` tries to hand over the rest of a record that a cancelled write has left."""
READ_BYTES: Final = 65536


class SecureChannel:
    """One stream under one AES-256-GCM key, with the feel of a `Stream`; comes from `connect` or `accept`.

    At most one task may read and one may write at a time; a second gets `BusyError`. `async with channel` closes it,
    and resets it when an exception leaves the block. `read` returns `b""` when the peer has finished between two
    records; the protocol has no authenticated end, so that whoever carries the stream could have cut it there: let
    messages say where they end.
    """

    __slots__ = (
        "_closed",
        "_failure",
        "_incoming",
        "_max_record_bytes",
        "_opener",
        "_plain",
        "_reading",
        "_rest",
        "_sealer",
        "_stream",
        "_writing",
        "_written",
        "peer_node_id",
    )

    def __init__(self, stream: Stream, key: bytes, role: Role, max_record_bytes: int) -> None:
        """For `connect` and `accept`."""
        self._stream = stream
        self._sealer = Sealer(key, role)
        self._opener = Opener(key, role.other)
        self._max_record_bytes = max_record_bytes
        self._incoming = bytearray()  # from the stream, not yet a whole record
        self._plain = bytearray()  # opened, not yet read
        self._rest = memoryview(b"")  # of a sealed record, not yet taken by the stream
        self._written = 0
        self._reading = self._writing = self._closed = False
        self._failure: PilotError | None = None
        self.peer_node_id: int | None = None
        """Who the peer has proved to be; None without authentication."""

    @classmethod
    async def connect(
        cls,
        stream: Stream,
        *,
        auth: Authentication | None = None,
        timeout: float = HANDSHAKE_SECONDS,
        max_record_bytes: int = MAX_RECORD_BYTES,
        private_key: X25519PrivateKey | None = None,
    ) -> Self:
        """The client's end over a `stream` it has dialed, after the handshake and, with `auth`, the proofs of both.

        The channel owns the stream from now on: it is reset when this fails or is cancelled. Both ends must agree on
        whether there is authentication. A record of the peer beyond `max_record_bytes` ends the channel; about three
        times as much memory may be in use for one. Who has not authenticated itself yet, though it must, gets no more
        than its proof needs. `private_key` is for tests.

        Raises:
            PilotError: the peer is not who it must be, or sent what cannot be; the text tells.
            TimeoutError: it took longer than `timeout` seconds.
            asyncio.IncompleteReadError: the peer finished during the handshake.
            ResetError, PathError, ClosedError: the stream ended.
        """
        return await cls._open(stream, Role.CLIENT, auth, timeout, max_record_bytes, private_key)

    @classmethod
    async def accept(
        cls,
        stream: Stream,
        *,
        auth: Authentication | None = None,
        timeout: float = HANDSHAKE_SECONDS,
        max_record_bytes: int = MAX_RECORD_BYTES,
        private_key: X25519PrivateKey | None = None,
    ) -> Self:
        """The server's end over a `stream` it has accepted; as `connect`."""
        return await cls._open(stream, Role.SERVER, auth, timeout, max_record_bytes, private_key)

    @classmethod
    async def _open(
        cls,
        stream: Stream,
        role: Role,
        auth: Authentication | None,
        timeout: float,
        max_record_bytes: int,
        private: X25519PrivateKey | None,
    ) -> Self:
        try:
            async with asyncio.timeout(timeout):
                exchanged = await exchange(stream, role, private)
                channel = cls(stream, exchanged.key, role, max_record_bytes)
                if auth is not None:
                    channel._max_record_bytes = FRAME_BYTES + RECORD_OVERHEAD_BYTES  # strangers get no more memory
                    if role is Role.SERVER:
                        await channel.write(auth.frame(exchanged.own))
                    frame = await channel._read_record()
                    channel.peer_node_id = await auth.check_untrusted(frame, exchanged.peer, stream.remote_addr)
                    if role is Role.CLIENT:
                        await channel.write(auth.frame(exchanged.own))
        except BaseException as error:
            await stream.__aexit__(type(error), error, error.__traceback__)
            raise
        channel._max_record_bytes = max_record_bytes
        channel._written = 0
        return channel

    def __repr__(self) -> str:
        """Who is at the other end, no keys."""
        who = "" if self.peer_node_id is None else f" authenticated as node {self.peer_node_id}"
        return f"<secure channel with {self.remote_addr}{who}>"

    # ------------------------------------------------------------------------------------------ reading

    async def read(self, max_bytes: int = READ_BYTES) -> bytes:
        """Between 1 and `max_bytes` bytes as soon as any are there; `b""` only when the peer has finished.

        Cancelling it loses nothing.

        Raises:
            ResetError: the stream broke, or something came that the peer cannot have sent: the stream is reset then.
            PathError, ClosedError, TimeoutError: as `Stream.read`.
            BusyError: another task is reading.
            InvalidValueError: `max_bytes` is less than 1.
        """
        if max_bytes < 1:
            raise InvalidValueError(f"cannot read {max_bytes} bytes from {self}: ask for at least 1")
        with self._claimed("_reading", "read from"):
            await self._fill(1)
            return self._take(max_bytes)

    async def readexactly(self, n: int) -> bytes:
        """Exactly `n` bytes as soon as they are there. Cancelling it loses nothing.

        Raises:
            asyncio.IncompleteReadError: the peer finished before; `partial` holds the bytes that came.
            ResetError, PathError, ClosedError, TimeoutError, BusyError, InvalidValueError: as `read`.
        """
        if n < 0:
            raise InvalidValueError(f"cannot read {n} bytes from {self}: ask for 0 or more")
        with self._claimed("_reading", "read from"):
            await self._fill(n)
            if len(self._plain) < n:
                raise asyncio.IncompleteReadError(self._take(n), n)
            return self._take(n)

    def __aiter__(self) -> Self:
        """Chunks as `read` returns them, until the peer has finished."""
        return self

    async def __anext__(self) -> bytes:
        """The next chunk; raises what `read` raises. Cancelling it loses nothing."""
        chunk = await self.read()
        if not chunk:
            raise StopAsyncIteration
        return chunk

    async def _fill(self, size: int) -> None:
        """Returns when `size` bytes of plaintext are there, or the peer has finished."""
        while len(self._plain) < size:
            self._check_open()
            record = await self._next_record()
            if record is None:
                return
            self._plain += record

    def _take(self, size: int) -> bytes:
        taken = bytes(self._plain[:size])
        del self._plain[:size]
        return taken

    async def _read_record(self) -> bytes:
        """The plaintext of the next record; raises `asyncio.IncompleteReadError` where there is none."""
        record = await self._next_record()
        if record is None:
            raise asyncio.IncompleteReadError(b"", None)
        return record

    async def _next_record(self) -> bytes | None:
        """The plaintext of the next record, None at the end of the stream. Cancelled, it keeps what it got."""
        if self._failure is not None:
            raise self._failure
        try:
            while (record := self._whole_record()) is None:
                chunk = await self._stream.read(READ_BYTES)
                if not chunk:
                    if self._incoming:
                        raise InvalidValueError(f"the stream ended {len(self._incoming)} bytes into a record")
                    return None
                self._incoming += chunk
            return self._opener.open_untrusted(record)
        except InvalidValueError as error:
            self._failure = ResetError(f"{self} is broken: {error}")
            await self._stream.__aexit__(ResetError, self._failure, None)
            raise self._failure from error

    def _whole_record(self) -> bytes | None:
        """The next record, if all of it is there. Memory grows with what has come, not with what is announced."""
        if len(self._incoming) < HEADER_BYTES:
            return None
        end = HEADER_BYTES + record_length_untrusted(self._incoming[:HEADER_BYTES], self._max_record_bytes)
        if len(self._incoming) < end:
            return None
        record = bytes(self._incoming[HEADER_BYTES:end])
        del self._incoming[:end]
        return record

    # ------------------------------------------------------------------------------------------ writing

    async def write(self, data: Buffer) -> None:
        """Returns when all of `data` is sealed and in the stream's send ring: waiting for room is the back-pressure.

        Cancelled, or past a deadline, it may have taken a prefix, `written` says how much; what is left of the record
        under way goes out with the next `write`, `drain` or `close`, so the channel stays in step.

        Raises:
            ResetError, PathError, TimeoutError: as `Stream.write`.
            ClosedError: this end is closed, the peer has closed both directions, or the key has protected all it may
                (256 GiB or 2^32 records): open a new channel then.
            BusyError: another task is writing.
        """
        view = memoryview(data).cast("B")
        with self._claimed("_writing", "write to"):
            await self._flush()
            for start in range(0, view.nbytes, MAX_PLAINTEXT_BYTES):
                piece = view[start : start + MAX_PLAINTEXT_BYTES]
                self._rest = memoryview(self._sealer.seal(piece))
                self._written += piece.nbytes
                await self._flush()

    async def drain(self) -> None:
        """Returns when the peer's node has acknowledged everything written so far. Cancelling it changes nothing.

        Raises what `write` raises, but for `BusyError`.
        """
        if self._rest and not self._writing:
            with self._claimed("_writing", "write to"):
                await self._flush()
        self._check_open()
        await self._stream.drain()

    async def _flush(self) -> None:
        """Hands the rest of the sealed record to the stream; what a cancelled one has not taken stays the rest."""
        self._check_open()
        if self._failure is not None:
            raise self._failure
        if not self._rest:
            return
        before = self._stream.written
        try:
            await self._stream.write(self._rest)
        finally:
            self._rest = self._rest[self._stream.written - before :]

    @property
    def written(self) -> int:
        """Bytes of plaintext taken by `write` since the channel was opened."""
        return self._written

    # ------------------------------------------------------------------------------------------ ending

    async def close(self) -> None:
        """Ends both directions after what was written, as `Stream.close` does. May be repeated.

        A record that a cancelled write left half sent is completed first; where that fails, or takes longer than 5 s,
        the stream is reset, for the peer would get a torn one. Cancelled, it resets the stream.
        """
        if not self._closed and not self._writing and self._rest and self._failure is None:
            await self._complete()
        self._closed = True
        self._plain.clear()
        self._incoming.clear()
        await self._stream.close()

    async def _complete(self) -> None:
        try:
            with self._claimed("_writing", "write to"):
                async with asyncio.timeout(CLOSE_SECONDS):
                    await self._flush()
        except (PilotError, TimeoutError) as error:
            await self._stream.__aexit__(type(error), error, None)
        except BaseException as error:
            self._closed = True
            await self._stream.__aexit__(type(error), error, None)
            raise

    async def __aenter__(self) -> Self:
        """The channel itself."""
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        """Closes the channel; resets its stream when an exception leaves the block."""
        if exc_type is None:
            await self.close()
        else:
            self._closed = True
            await self._stream.__aexit__(exc_type, exc, tb)

    # ------------------------------------------------------------------------------------------ the stream below

    @property
    def local_addr(self) -> Addr:
        """This end's address."""
        return self._stream.local_addr

    @property
    def local_port(self) -> int:
        """This end's virtual port."""
        return self._stream.local_port

    @property
    def remote_addr(self) -> Addr:
        """The address at the other end of the stream."""
        return self._stream.remote_addr

    @property
    def remote_port(self) -> int:
        """The peer's virtual port."""
        return self._stream.remote_port

    def set_deadline(self, when: float | None) -> None:
        """Sets both deadlines, as `Stream.set_deadline`."""
        self._stream.set_deadline(when)

    def set_read_deadline(self, when: float | None) -> None:
        """From `when` on reads raise `TimeoutError`, as `Stream.set_read_deadline`; they lose nothing."""
        self._stream.set_read_deadline(when)

    def set_write_deadline(self, when: float | None) -> None:
        """From `when` on `write` and `drain` raise `TimeoutError`, as `Stream.set_write_deadline`."""
        self._stream.set_write_deadline(when)

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError(f"{self} is closed")

    @contextmanager
    def _claimed(self, flag: str, verb: str) -> Iterator[None]:
        if getattr(self, flag):
            raise BusyError(f"another task is about to {verb} {self}: one at a time")
        setattr(self, flag, True)
        try:
            yield
        finally:
            setattr(self, flag, False)
