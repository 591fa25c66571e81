"""`Stream`, `Listener` and `Streams`: reliable streams and datagrams on virtual ports, as plugins see them (L10)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, Self, runtime_checkable

from pilot._fast.addr import Addr

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Buffer

__all__ = ["Listener", "Stream", "Streams"]


@runtime_checkable
class Stream(Protocol):
    """One ordered, reliable byte stream in both directions between two (address, port) ends.

    At most one task may read and one may write at a time; a second gets `BusyError`. The end of a stream has five
    different outcomes: the peer finished (`b""`), the peer reset it (`ResetError`), no path works any more
    (`PathError`), nothing arrived for the idle limit (`TimeoutError`), this end closed it (`ClosedError`).
    `async with stream` closes it at the end; `async for chunk in stream` reads until the peer has finished.
    Source: seed `coreapi.Stream`.
    """

    async def read(self, max_bytes: int = 65536) -> bytes:
        """Between 1 and `max_bytes` bytes as soon as any are there; `b""` only when the peer has finished.

        Cancelling it loses no byte.

        Raises:
            ResetError, PathError: the stream broke; bytes that arrived before are still returned first.
            ClosedError: this end is closed.
            TimeoutError: the read deadline passed, or the stream was idle too long.
            BusyError: another task is reading.
            InvalidValueError: `max_bytes` is less than 1.
        """
        ...

    async def readexactly(self, n: int) -> bytes:
        """Exactly `n` bytes as soon as they are there.

        Cancelling it, or a deadline that passes, loses no byte: what had arrived is read next.

        Raises:
            asyncio.IncompleteReadError: the peer finished before; `partial` holds the bytes that came.
            ResetError, PathError, ClosedError, TimeoutError, BusyError, InvalidValueError: as `read`.
        """
        ...

    async def read_into(self, buffer: Buffer) -> int:
        """Like `read`, but into the writable `buffer`, without a copy in between: the byte count, 0 only at the end.

        The buffer must not be resized meanwhile. Cancelling it loses no byte and leaves `buffer` unchanged.

        Raises:
            ResetError, PathError, ClosedError, TimeoutError, BusyError: as `read`.
            InvalidValueError: the buffer is read-only or empty.
        """
        ...

    async def write(self, data: Buffer) -> None:
        """Returns when all of `data` is in the send ring: waiting for room there is the back-pressure.

        The bytes are copied, `data` may be changed afterwards. Cancelled, or past its deadline, it may have taken a
        prefix; `written` says how much.

        Raises:
            ResetError, PathError: the stream broke, earlier bytes may be lost.
            ClosedError: this end is closed, or the peer has closed both directions.
            TimeoutError: the write deadline passed.
            BusyError: another task is writing.
        """
        ...

    async def drain(self) -> None:
        """Returns when the peer's node has acknowledged everything written so far (not: when the peer has read it).

        Cancelling it changes nothing. Raises what `write` raises.
        """
        ...

    async def close(self) -> None:
        """Ends both directions after the bytes already written; there is no half close on this wire. May be repeated.

        Returns when the peer has acknowledged the end, or the stream broke, or a bounded time has passed; it does not
        raise for a broken stream. Cancelled, it resets the stream.
        """
        ...

    @property
    def written(self) -> int:
        """Bytes taken by `write` since the stream was opened."""
        ...

    @property
    def local_addr(self) -> Addr:
        """This end's address."""
        ...

    @property
    def local_port(self) -> int:
        """This end's virtual port."""
        ...

    @property
    def remote_addr(self) -> Addr:
        """The peer's address; the tunnel has authenticated its node."""
        ...

    @property
    def remote_port(self) -> int:
        """The peer's virtual port."""
        ...

    def set_deadline(self, when: float | None) -> None:
        """Sets the read and the write deadline together. See `set_read_deadline`."""
        ...

    def set_read_deadline(self, when: float | None) -> None:
        """From `when` on, present and future reads raise `TimeoutError`.

        `when` is absolute, in seconds of the running loop's clock (`loop.time()`); None removes the deadline, one in
        the past fires at once, and moving it wakes a waiting reader.
        """
        ...

    def set_write_deadline(self, when: float | None) -> None:
        """From `when` on, present and future `write` and `drain` raise `TimeoutError`. See `set_read_deadline`."""
        ...

    def __aiter__(self) -> Self:
        """Chunks as `read` returns them, until the peer has finished."""
        ...

    async def __anext__(self) -> bytes:
        """The next chunk; raises what `read` raises. Cancelling it loses no byte."""
        ...

    async def __aenter__(self) -> Self:
        """The stream itself."""
        ...

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        """Closes the stream; resets it when an exception leaves the block, unless it is being closed already."""
        ...


@runtime_checkable
class Listener(Protocol):
    """Takes the streams that peers open to one port. `async for stream in listener` ends when the listener is closed.

    Source: seed `coreapi.Listener`.
    """

    async def accept(self) -> Stream:
        """The next stream, in the order of arrival. Cancelling it loses none.

        Raises:
            ClosedError: the listener is closed.
        """
        ...

    async def close(self) -> None:
        """Frees the port and resets the streams nobody accepted. Accepted streams live on. May be repeated."""
        ...

    @property
    def addr(self) -> Addr:
        """The address listened on."""
        ...

    @property
    def port(self) -> int:
        """The port listened on; the chosen one where 0 was asked for."""
        ...

    def __aiter__(self) -> Self:
        """Streams as `accept` returns them, until the listener is closed."""
        ...

    async def __anext__(self) -> Stream:
        """The next stream. Cancelling it loses none."""
        ...

    async def __aenter__(self) -> Self:
        """The listener itself."""
        ...

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        """Closes the listener."""
        ...


@runtime_checkable
class Streams(Protocol):
    """Opens streams, listens for them and sends datagrams. Source: seed `coreapi.Streams`."""

    async def dial(self, dst: Addr, port: int, *, timeout: float | None = None) -> Stream:
        """A stream to `port` (1..65535) of `dst`, established, within `timeout` seconds (None: the node's own limit).

        Cancelled, the attempt is given up; the peer may have accepted a stream that it sees reset.

        Raises:
            PeerNotFoundError: the directory has no such node or does not show it to this one.
            RefusedError: the peer answered that nobody listens there, or a network's policy does not allow the port.
            TimeoutError: the peer did not answer; the message says which step was waited for.
            PathError: no path to the peer works.
            RegistryError: the directory was needed and could not be asked.
            ClosedError: the node is closed.
            InvalidValueError: the port is out of range.
        """
        ...

    async def listen(self, port: int) -> Listener:
        """A listener on `port` (0 chooses a free ephemeral one), open when this returns. Cancelled, none is left.

        Raises:
            BusyError: somebody listens on the port already.
            ClosedError: the node is closed.
            InvalidValueError: the port is out of range.
        """
        ...

    async def send_datagram(self, dst: Addr, port: int, data: Buffer) -> None:
        """Sends one datagram; returns when it has been handed to the tunnel. It can be lost, repeated or reordered.

        Cancelled, it may or may not have been sent.

        Raises:
            PeerNotFoundError, PathError, RegistryError, TimeoutError, ClosedError: as `dial`.
            RefusedError: a network's policy does not allow the port.
            InvalidValueError: the port is out of range or `data` is too long for one datagram.
        """
        ...
