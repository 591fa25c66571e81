"""The connection pool to one registry: framing, reconnects, timeouts and TLS; knows no particular call (L8)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import ssl
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from pilot._fast.errors import BusyError, ClosedError, InvalidValueError, RegistryError
from pilot.node.directory.quiet import QuietLog, clip_untrusted
from pilot.node.directory.tls import RegistryTls
from pilot.protocol.registry import (
    HEADER_BYTES,
    MAX_FRAME_BYTES,
    Message,
    decode_body_untrusted,
    encode_frame,
    frame_length_untrusted,
    reply_error_untrusted,
)

__all__ = ["ClientOptions", "RegistryClient", "RegistryRefusedError"]

T = TypeVar("T")

MAX_WAITING = 1024
"""Requests under way or waiting for a connection; strangers cause some (key look-ups), so there is an end to it."""

_log = logging.getLogger("pilot.directory")


class RegistryRefusedError(RegistryError):
    """The registry answered, and its answer was an error; `text` holds its own words, clipped."""

    def __init__(self, message: str, text: str) -> None:
        super().__init__(message)
        self.text = text


@dataclass(frozen=True, slots=True)
class ClientOptions:
    """Sizes and times of a `RegistryClient`; the defaults are those of the reference (rendezvous.md 2.3)."""

    pool_size: int = 4
    dial_timeout: float = 5.0
    answer_timeout: float = 30.0
    dial_pauses: Sequence[float] = (0.5, 1.0, 2.0, 4.0)
    """Seconds between the dial attempts of one request, so one attempt more than pauses; each is cut by up to half."""
    max_answer_bytes: int = 4 * 1024 * 1024
    """An answer above it ends the connection; 10,000 members of a network need about 2.5 MB."""

    def __post_init__(self) -> None:
        if not 1 <= self.pool_size <= 64 or not 0 < self.max_answer_bytes <= MAX_FRAME_BYTES:
            raise InvalidValueError(
                f"a registry client needs 1..64 connections and answers of at most 1..{MAX_FRAME_BYTES} bytes"
            )


class _NoAnswerError(Exception):
    """The connection failed before a whole answer had come: the request may be repeated on another."""


class _GarbageError(Exception):
    """What came is no answer: repeating would not help."""


class _Wire(asyncio.Protocol):
    """One connection, one request at a time. Bytes nobody asked for end it, so answers cannot get out of step."""

    def __init__(self, max_answer_bytes: int) -> None:
        self.closed = False
        self._limit = max_answer_bytes
        self._buffer = bytearray()
        self._answer: asyncio.Future[bytes] | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._answer is None or self._answer.done():
            self.abort()
            return
        self._buffer += data
        if len(self._buffer) < HEADER_BYTES:
            return
        try:
            length = frame_length_untrusted(bytes(self._buffer[:HEADER_BYTES]), self._limit)
        except InvalidValueError as error:
            self._fail(_GarbageError(str(error)))
            return
        end = HEADER_BYTES + length
        if len(self._buffer) > end:
            self._fail(_GarbageError("more bytes came than one answer"))
        elif len(self._buffer) == end:
            body = bytes(self._buffer[HEADER_BYTES:])
            self._buffer.clear()
            self._answer.set_result(body)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._fail(_NoAnswerError(f"the connection was lost ({exc})" if exc else "the registry closed the connection"))

    def abort(self) -> None:
        """Closes at once; a request under way fails with `_NoAnswerError`."""
        self._fail(_NoAnswerError("the connection was closed"))

    async def exchange(self, frame: bytes, timeout: float) -> bytes:
        """The body of the answer to `frame`. Ending without one, cancellation included, closes the wire."""
        if self.closed or self._transport is None:
            raise _NoAnswerError("the connection was closed")
        self._answer = asyncio.get_running_loop().create_future()
        try:
            self._transport.write(frame)
            async with asyncio.timeout(timeout):
                return await self._answer
        except TimeoutError:
            self.abort()
            raise _NoAnswerError(f"nothing came within {timeout:g} s") from None
        except BaseException:
            self.abort()
            raise
        finally:
            self._answer = None

    def _fail(self, error: Exception) -> None:
        self.closed = True
        self._buffer.clear()
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)
        if self._transport is not None:
            self._transport.abort()


class _Slot:
    """One place in the pool: its connection is opened when first needed and then kept for life."""

    __slots__ = ("wire",)

    def __init__(self) -> None:
        self.wire: _Wire | None = None

    def abort(self) -> None:
        if self.wire is not None:
            self.wire.abort()
            self.wire = None


class RegistryClient:
    """Requests to one registry over a pool of lasting connections, handed out first in, first out.

    Anything the registry does wrong is a `RegistryError` that names its address and says what to do. A request that is
    cancelled, or fails half-way, closes the connection it was on, so no later request can read its answer; whether the
    registry has carried it out is then unknown. After `close` every call raises `ClosedError`.
    Source: reference rendezvous.md, sections 2.1, 2.3, 2.4.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        tls: RegistryTls | None = None,
        options: ClientOptions | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        if not host or not 0 < port <= 0xFFFF:
            raise InvalidValueError(f"registry address {host!r}, {port!r} needs a host and a port in 1..65535")
        self._host, self._port = host, port
        self._tls = tls
        self._ssl_context = tls.context() if tls else None
        self._options = options or ClientOptions()
        self._jitter = jitter
        self._quiet = QuietLog(_log)
        self._idle: asyncio.Queue[_Slot] = asyncio.Queue()
        self._slots = [_Slot() for _ in range(self._options.pool_size)]
        for slot in self._slots:
            self._idle.put_nowait(slot)
        self._scopes: set[asyncio.Timeout] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False

    @property
    def address(self) -> str:
        """The registry's address as it is written in messages."""
        return f"[{self._host}]:{self._port}" if ":" in self._host else f"{self._host}:{self._port}"

    def check_loop(self) -> None:
        """Raises `BusyError` in any other loop, and so in any other thread, than that of the first request."""
        running = asyncio.get_running_loop()
        self._loop = self._loop or running
        if running is not self._loop:
            raise BusyError(
                f"the client of registry {self.address} was called from another event loop or thread than the one that "
                "opened it: hop over with asyncio.run_coroutine_threadsafe(coroutine, loop)"
            )

    async def connect(self, attempts: int | None = None) -> None:
        """Opens one connection of the pool, with at most `attempts` dials; pauses between them stop growing at 8 s.

        Raises:
            RegistryError: the registry cannot be reached, or shows another certificate.
            ClosedError: the client was closed.
        """
        pauses = self._options.dial_pauses
        if attempts is not None:
            pauses = [min(0.5 * 2**n, 8.0) for n in range(attempts - 1)]
        async with self._borrowed() as slot:
            await self._wire(slot, pauses)

    async def request(self, message: Mapping[str, Any]) -> Message:
        """The registry's answer to `message`, which must hold a `type`.

        A request whose connection fails is repeated once on a new one, so the registry may execute it twice.

        Raises:
            RegistryRefusedError: the registry answered with an error.
            RegistryError: it cannot be reached, did not answer, or what came is no answer.
            ClosedError: the client was closed.
        """
        kind = str(message.get("type"))
        frame = encode_frame(message)
        async with self._borrowed() as slot:
            try:
                body = await self._exchange_on(slot, frame)
                answer = decode_body_untrusted(body)
                if "type" not in answer and "error" not in answer:
                    raise _GarbageError("it has no type")
                refusal = reply_error_untrusted(answer)
            except _NoAnswerError as error:
                raise RegistryError(
                    f"registry {self.address} gave no answer to {kind!r}: {error}; it may be overloaded or restarting, "
                    "or expect TLS"
                ) from None
            except (_GarbageError, InvalidValueError, RecursionError) as error:
                slot.abort()
                raise self.unusable(kind, str(error)) from None
        if refusal is not None:
            text = clip_untrusted(refusal)
            raise RegistryRefusedError(f"registry {self.address} refused {kind!r}: {text}", text)
        return answer

    async def ask(self, message: Mapping[str, Any], parse: Callable[[Message], T]) -> T:
        """`parse(answer)`; the `InvalidValueError` of a parser becomes a `RegistryError`. Otherwise like `request`."""
        answer = await self.request(message)
        try:
            return parse(answer)
        except InvalidValueError as error:
            raise self.unusable(str(message.get("type")), str(error)) from None

    def unusable(self, kind: str, problem: str) -> RegistryError:
        """The error for an answer to `kind` that cannot be believed."""
        return RegistryError(
            f"registry {self.address} gave an unusable answer to {kind!r}: {clip_untrusted(problem)}; "
            "check that a pilot registry listens there and whether it expects TLS"
        )

    def reconnect(self) -> None:
        """Gives every connection up: requests under way are repeated on new ones, later ones open theirs.

        For a host whose address has changed: what it sends from the former one goes nowhere, and no error tells.
        """
        for slot in self._slots:
            slot.abort()

    async def close(self) -> None:
        """Closes all connections; requests under way raise `ClosedError`. Nothing is sent. May be repeated."""
        if self._closed:
            return
        self._closed = True
        for scope in self._scopes:
            scope.reschedule(asyncio.get_running_loop().time())
        for slot in self._slots:
            slot.abort()
        for _ in self._slots:  # each comes back when the request on it has noticed
            await self._idle.get()
        await asyncio.sleep(0)  # transports tell connection_lost in the next turn of the loop

    @contextlib.asynccontextmanager
    async def _borrowed(self) -> AsyncIterator[_Slot]:
        """A slot of the pool, in the order of asking; `close` ends the block with `ClosedError`."""
        self.check_loop()
        if self._closed:
            raise self._closed_error()
        if len(self._scopes) >= MAX_WAITING:
            raise RegistryError(
                f"{MAX_WAITING} requests wait for registry {self.address} already: it is too slow, or asked too often"
            )
        try:
            async with asyncio.timeout(None) as scope:
                self._scopes.add(scope)
                try:
                    slot = await self._idle.get()
                    try:
                        yield slot
                    finally:
                        self._idle.put_nowait(slot)
                finally:
                    self._scopes.discard(scope)
        except TimeoutError:  # only `close` reschedules the scope; time-outs inside become other errors
            raise self._closed_error() from None

    async def _exchange_on(self, slot: _Slot, frame: bytes) -> bytes:
        try:
            wire = await self._wire(slot, self._options.dial_pauses)
            return await wire.exchange(frame, self._options.answer_timeout)
        except _NoAnswerError:
            slot.abort()
        wire = await self._wire(slot, self._options.dial_pauses)
        return await wire.exchange(frame, self._options.answer_timeout)

    async def _wire(self, slot: _Slot, pauses: Sequence[float]) -> _Wire:
        """The slot's connection, dialed if it has none or lost it."""
        if slot.wire is not None and not slot.wire.closed:
            return slot.wire
        slot.abort()
        attempt = 0
        while True:
            try:
                slot.wire = await self._dial()
                return slot.wire
            except TimeoutError:
                reason = f"no connection within {self._options.dial_timeout:g} s"
            except (OSError, ValueError) as error:  # ValueError: a host that is no name
                reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
                if isinstance(error, ssl.SSLCertVerificationError):
                    raise RegistryError(
                        f"registry {self.address}: its certificate is not trusted ({error.verify_message}); "
                        "give the fingerprint of a self-signed one"
                    ) from None
            if attempt == len(pauses):
                raise RegistryError(
                    f"registry {self.address} cannot be reached ({reason}; {attempt + 1} attempts): "
                    "check the address and that a rendezvous server runs there"
                )
            self._quiet.warning("dial", "registry %s cannot be reached (%s), trying again", self.address, reason)
            await asyncio.sleep(pauses[attempt] * (1.0 - 0.5 * self._jitter()))
            attempt += 1

    async def _dial(self) -> _Wire:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(self._options.dial_timeout):
            transport, wire = await loop.create_connection(
                lambda: _Wire(self._options.max_answer_bytes), self._host, self._port, ssl=self._ssl_context
            )
        if self._tls is not None:
            certificate = transport.get_extra_info("ssl_object").getpeercert(binary_form=True)
            if not self._tls.verify(certificate):
                wire.abort()
                raise RegistryError(
                    f"registry {self.address} shows another certificate than the pinned one: somebody may listen in; "
                    "if the server's certificate was renewed, update the fingerprint"
                )
        return wire

    def _closed_error(self) -> ClosedError:
        return ClosedError(f"the client of registry {self.address} is closed: open a new one")
