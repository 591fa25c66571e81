"""`Stream`: one reliable byte stream as an awaitable object, the shell around the compiled stream machine (L9)."""

from __future__ import annotations

import asyncio
from threading import get_ident
from typing import TYPE_CHECKING, Final, Self

from pilot._fast.errors import BusyError, ClosedError, InvalidValueError
from pilot._fast.stream import StreamState, Wake
from pilot.node.receiver import StreamReceiver
from pilot.node.waiting import Deadline, Waiter

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from typing_extensions import Buffer

    from pilot._fast.addr import Addr
    from pilot._fast.stream import StreamCore, StreamStats
    from pilot.node.home import Home

__all__ = ["Stream"]

# Plain integers: combining members of an IntFlag takes a microsecond.
WAKE_OPEN: Final = int(Wake.OPEN)
WAKE_READ: Final = int(Wake.READ)
WAKE_WRITE: Final = int(Wake.WRITE)
WAKE_ACKED: Final = int(Wake.ACKED)
WAKE_CLOSED: Final = int(Wake.CLOSED)

READ_BYTES: Final = 65536
"""Most that one `read` returns unless told otherwise."""
ITERATION_BYTES: Final = 262144
"""Most that one step of `async for` returns: a bulk reader is resumed less often."""
TURNS: Final = 64
"""Reads and writes that return at once before the task has to let others run: a fast peer must not starve them."""
CLOSE_SECONDS: Final = 5.0
"""How long `close` waits without anything being acknowledged."""


class Stream:
    """One ordered, reliable byte stream in both directions, a `coreapi.Stream`.

    Comes from `Node.dial`, `Node.listen` or `Node.serve`. At most one task may read and one may write at a time. The
    end has five different outcomes: the peer finished (`b""`), the peer reset it (`ResetError`), no path works any more
    (`PathError`), nothing was heard for the idle limit (`TimeoutError`), this end closed it (`ClosedError`).
    `async with stream` closes it, and resets it when the block is left by an exception, so that the peer cannot take
    half a message for a whole one.
    """

    __slots__ = (
        "__weakref__",
        "_acker",
        "_core",
        "_ended",
        "_held",
        "_home",
        "_opener",
        "_read_deadline",
        "_reader",
        "_receiver",
        "_shut",
        "_turns",
        "_write_deadline",
        "_writer",
    )

    def __init__(self, core: StreamCore, home: Home) -> None:
        self._core = core
        self._home = home
        self._held = bytearray()  # what an unfinished readexactly has taken from the core; read next
        self._shut = False  # by this end
        self._turns = 0
        self._reader: Waiter | StreamReceiver = Waiter()
        self._receiver: StreamReceiver | None = None  # the reader, where that is callbacks
        self._writer = Waiter()
        self._acker = Waiter()
        self._opener = Waiter()
        self._ended: asyncio.Future[None] = home.loop.create_future()
        self._read_deadline: Deadline | None = None
        self._write_deadline: Deadline | None = None
        core.owner = self

    # ------------------------------------------------------------------------------------------ reading

    async def read(self, max_bytes: int = READ_BYTES) -> bytes:
        """Between 1 and `max_bytes` bytes as soon as any are there; `b""` only when the peer has finished.

        Does not suspend when bytes are there, but for letting other tasks run now and then.
        Cancelling it loses no byte: the next read returns what has arrived.

        Raises:
            ResetError, PathError: the stream broke; bytes that arrived before are still returned first.
            ClosedError: this end is closed.
            TimeoutError: the read deadline passed, or nothing was heard for the idle limit.
            BusyError: another task is reading, or the node belongs to another loop or thread.
            InvalidValueError: `max_bytes` is less than 1.
        """
        if get_ident() != self._home.thread:
            self._home.refuse()
        if max_bytes < 1:
            raise InvalidValueError(f"cannot read {max_bytes} bytes from {self}: ask for at least 1")
        self._reader.claim("read from", self)
        self._turns += 1
        if self._turns > TURNS:
            await self._yield(self._reader)
        while True:
            if self._shut or self._read_deadline is not None:
                self._check(self._read_deadline, "read")
            if self._held:
                data = bytes(self._held[:max_bytes])
                del self._held[:max_bytes]
                return data
            taken = self._core.read(max_bytes)
            if taken is not None:
                return taken
            await self._wait(self._reader, WAKE_READ, self._read_deadline)

    async def readexactly(self, n: int) -> bytes:
        """Exactly `n` bytes as soon as they are there.

        Cancelling it, or a deadline that passes, loses no byte: what had arrived is read next.

        Raises:
            asyncio.IncompleteReadError: the peer finished before; `partial` holds the bytes that came.
            ResetError, PathError, ClosedError, TimeoutError, BusyError: as `read`.
            InvalidValueError: `n` is negative.
        """
        if get_ident() != self._home.thread:
            self._home.refuse()
        if n < 0:
            raise InvalidValueError(f"cannot read {n} bytes from {self}: ask for 0 or more")
        self._reader.claim("read from", self)
        self._turns += 1
        if self._turns > TURNS:
            await self._yield(self._reader)
        while True:
            if self._shut or self._read_deadline is not None:
                self._check(self._read_deadline, "read")
            missing = n - len(self._held)
            if missing <= 0:
                return self._take_held(n)
            taken = self._core.read(missing)
            if taken is None:
                await self._wait(self._reader, WAKE_READ, self._read_deadline)
            elif not taken:
                raise asyncio.IncompleteReadError(self._take_held(n), n)
            elif len(taken) == n:
                return taken  # the usual case, no second copy
            else:
                self._held += taken

    async def read_into(self, buffer: Buffer) -> int:
        """Like `read`, but into the writable `buffer`, without a copy in between: the byte count, 0 only at the end.

        The buffer must not be resized meanwhile. Cancelling it loses no byte and leaves `buffer` unchanged.

        Raises:
            ResetError, PathError, ClosedError, TimeoutError, BusyError: as `read`.
            InvalidValueError: the buffer is read-only or empty.
        """
        if get_ident() != self._home.thread:
            self._home.refuse()
        view = memoryview(buffer).cast("B")
        if view.readonly or not view.nbytes:
            raise InvalidValueError(f"cannot read from {self} into this buffer: it must be writable and not empty")
        self._reader.claim("read from", self)
        self._turns += 1
        if self._turns > TURNS:
            await self._yield(self._reader)
        while True:
            if self._shut or self._read_deadline is not None:
                self._check(self._read_deadline, "read")
            if self._held:
                count = min(len(self._held), view.nbytes)
                view[:count] = self._held[:count]
                del self._held[:count]
                return count
            count = self._core.read_into(view)
            if count >= 0:
                return count
            await self._wait(self._reader, WAKE_READ, self._read_deadline)

    def __aiter__(self) -> Self:
        """Chunks as they arrive, until the peer has finished."""
        return self

    async def __anext__(self) -> bytes:
        """The next chunk; raises what `read` raises. Cancelling it loses no byte."""
        chunk = await self.read(ITERATION_BYTES)
        if not chunk:
            raise StopAsyncIteration
        return chunk

    def _take_held(self, n: int) -> bytes:
        data = bytes(self._held[:n])
        del self._held[:n]
        return data

    # ---------------------------------------------------------------------------------- reading by callback

    def set_receiver(
        self,
        received: Callable[[memoryview], int | None] | None,
        *,
        ended: Callable[[Exception | None], object] | None = None,
        writable: Callable[[], object] | None = None,
    ) -> None:
        """Has `received(view)` called with what arrives, instead of a task that reads: no copy, no task switch.

        `view` is a read-only memoryview of the bytes in the receive ring, in order, shown at the end of the batch of
        packets that brought them; two calls follow each other where the ring wraps, or where more is there than the
        batch brought. It is valid during the call only and released afterwards: copy what is to stay. `received`
        returns None when it has taken everything, or the number of bytes it has taken. Fewer than it was shown pauses
        the stream, as `pause_reading` does: the rest stays in the ring, and the peer is held back when that is full.
        `resume_reading`, called in `received`, has the rest shown soon.

        `ended(error)` is called once, after the last byte was taken: with None where `read` would return `b""`, else
        with what it would raise, `ClosedError` when this end closed the stream. `writable()` is called when the send
        ring has room again after `write_nowait` filled it. All of them run in the loop, never inside this call, and
        may call anything here: `stream.set_receiver(stream.write_nowait, writable=stream.resume_reading)` is an echo.
        An exception in one of them is logged and resets this stream, as does a view, or a slice of one, that is still
        in use after the call; `ended` is told. What a broken stream raises (`write_nowait` to one) is no defect and
        logged at level INFO.

        Another call replaces the callbacks; `set_receiver(None)` takes them away, and tasks read again. A read deadline
        does not count for callbacks.

        Raises:
            BusyError: a task is reading, or the node belongs to another loop or thread.
        """
        self._home.check()
        if self._receiver is None:
            self._reader.claim("set a receiver on", self)
        if received is None:
            if self._receiver is not None:
                self._reader, self._receiver = Waiter(), None
            return
        self._reader = self._receiver = StreamReceiver(self, received, ended, writable)
        self._receiver.resume()

    def pause_reading(self) -> None:
        """Has the receiver not called until `resume_reading`; what arrives waits in the ring. May be repeated.

        Raises:
            BusyError: no receiver is set, or the node belongs to another loop or thread.
        """
        self._require_receiver("pause").pause()

    def resume_reading(self) -> None:
        """Has the receiver called again, first, soon, with what it has left or what has arrived. May be repeated.

        Raises:
            BusyError: no receiver is set, or the node belongs to another loop or thread.
        """
        self._require_receiver("resume").resume()

    def _require_receiver(self, what: str) -> StreamReceiver:
        self._home.check()
        if self._receiver is None:
            raise BusyError(f"cannot {what} reading from {self}: tasks read it, no receiver is set")
        return self._receiver

    # ------------------------------------------------------------------------------------------ writing

    async def write(self, data: Buffer) -> None:
        """Returns when all of `data` is in the send ring: waiting for room there is the back-pressure.

        The bytes are copied, `data` may be changed afterwards. Does not suspend when there is room, but for letting
        other tasks run now and then. Cancelled, or past its deadline, it may have taken a prefix: `written` says how
        much.

        Raises:
            ResetError, PathError: the stream broke, earlier bytes may be lost.
            ClosedError: this end is closed, or the peer has closed both directions.
            TimeoutError: the write deadline passed, or nothing was heard for the idle limit.
            BusyError: another task is writing, or the node belongs to another loop or thread.
        """
        if get_ident() != self._home.thread:
            self._home.refuse()
        self._writer.claim("write to", self)
        self._turns += 1
        if self._turns > TURNS:
            await self._yield(self._writer)
        view = data if isinstance(data, bytes) else memoryview(data).cast("B")
        size = len(view)
        taken = 0
        while True:
            if self._shut or self._write_deadline is not None:
                self._check(self._write_deadline, "write")
            taken += self._core.write(view, taken)
            if taken >= size:
                return
            await self._wait(self._writer, WAKE_WRITE, self._write_deadline)

    def write_nowait(self, data: Buffer) -> int:
        """Takes what there is room for in the send ring, at once: the byte count, 0 when it is full.

        Raises:
            ResetError, PathError, ClosedError: as `write`.
            BusyError: a task is waiting in `write`, or the node belongs to another loop or thread.
        """
        self._home.check()
        self._writer.claim("write to", self)
        if self._shut:
            self._check(None, "write")
        taken = self._core.write(data)
        if self._receiver is not None and not self._core.writable:
            self._receiver.full = True
            self._core.interest |= WAKE_WRITE
        return taken

    async def drain(self) -> None:
        """Returns when the peer's node has acknowledged everything written so far (not: when the peer has read it).

        Cancelling it changes nothing.

        Raises:
            ResetError, PathError, ClosedError, TimeoutError: as `write`; the stream ended before the acknowledgement.
            BusyError: another task is draining, or the node belongs to another loop or thread.
        """
        self._home.check()
        self._acker.claim("drain", self)
        core = self._core
        target = core.written
        self._check_deadline(self._write_deadline, "drain")
        while core.written - core.unacknowledged < target:
            if self._ended.done():
                raise core.error() or ClosedError(
                    f"{self} was closed with {core.unacknowledged} bytes unacknowledged: they may be lost"
                )
            self._check_deadline(self._write_deadline, "drain")
            await self._wait(self._acker, WAKE_ACKED, self._write_deadline)

    @property
    def written(self) -> int:
        """Bytes taken by `write` since the stream was opened."""
        return self._core.written

    # ------------------------------------------------------------------------------------------ closing

    async def close(self) -> None:
        """Ends both directions after the bytes already written; there is no half close on this wire. May be repeated.

        Returns when the peer has acknowledged the end, the stream broke, or 5 seconds have passed in which nothing was
        acknowledged, after which the rest goes on without this task. Does not raise for a broken stream: `drain` first
        to be sure of the last bytes.
        Present and future reads and writes raise `ClosedError`. Cancelled, it aborts the stream.

        Raises:
            BusyError: the node belongs to another loop or thread.
        """
        self._home.check()
        self._shut_down()
        self._core.close()
        left = -1
        while not self._ended.done() and left != self._core.unacknowledged:
            left = self._core.unacknowledged
            try:
                await asyncio.wait([self._ended], timeout=CLOSE_SECONDS)
            except asyncio.CancelledError:
                self._core.abort()
                raise

    def abort(self) -> None:
        """Resets the stream: both ends drop what is under way. May be repeated, and after `close`.

        Raises:
            BusyError: the node belongs to another loop or thread.
        """
        self._home.check()
        self._shut_down()
        self._core.abort()

    def _shut_down(self) -> None:
        self._shut = True
        self._held.clear()
        self._wake_all()

    @property
    def closed(self) -> bool:
        """Whether the stream has ended, in whatever way."""
        return self._ended.done()

    async def __aenter__(self) -> Self:
        """The stream itself."""
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        """Closes the stream; resets it when an exception, a cancellation among them, leaves the block.

        One that is being closed already goes on closing in order, whatever leaves the block.
        """
        if exc_type is None:
            await self.close()
        elif self._core.state <= StreamState.ESTABLISHED:
            self.abort()

    # ------------------------------------------------------------------------------- who, how, until when

    @property
    def local_addr(self) -> Addr:
        """This end's address."""
        return self._core.local_addr

    @property
    def local_port(self) -> int:
        """This end's virtual port."""
        return self._core.local_port

    @property
    def remote_addr(self) -> Addr:
        """The peer's address; the tunnel has authenticated its node."""
        return self._core.remote_addr

    @property
    def remote_port(self) -> int:
        """The peer's virtual port."""
        return self._core.remote_port

    def stats(self) -> StreamStats:
        """Counters and estimates of this stream at this moment."""
        return self._core.stats()

    def set_deadline(self, when: float | None) -> None:
        """Sets the read and the write deadline together. See `set_read_deadline`."""
        self.set_read_deadline(when)
        self.set_write_deadline(when)

    def set_read_deadline(self, when: float | None) -> None:
        """From `when` on, present and future reads raise `TimeoutError`; no byte is lost.

        `when` is absolute, in seconds of the running loop's clock (`loop.time()`); None removes the deadline, one in
        the past fires at once, and moving it wakes a waiting reader.

        Raises:
            InvalidValueError: `when` is not a number.
            BusyError: the node belongs to another loop or thread.
        """
        self._home.check()
        if self._read_deadline is None:
            self._read_deadline = Deadline(self._home.loop, self._wake_reader)
        self._read_deadline.move(when)

    def set_write_deadline(self, when: float | None) -> None:
        """From `when` on, present and future `write` and `drain` raise `TimeoutError`. See `set_read_deadline`."""
        self._home.check()
        if self._write_deadline is None:
            self._write_deadline = Deadline(self._home.loop, self._wake_writers)
        self._write_deadline.move(when)

    def _check(self, deadline: Deadline | None, what: str) -> None:
        if self._shut:
            raise ClosedError(f"cannot {what}: {self} was closed by this end")
        self._check_deadline(deadline, what)

    def _check_deadline(self, deadline: Deadline | None, what: str) -> None:
        if deadline is not None and deadline.passed:
            raise TimeoutError(f"the {what} deadline of {self} has passed")

    # ------------------------------------------------------------------------------- waiting and waking

    async def _wait(self, waiter: Waiter | StreamReceiver, event: int, deadline: Deadline | None) -> None:
        """Until the core reports `event`, the stream ends or the deadline fires or moves."""
        if not self._home.loop.is_running():
            self._home.refuse()
        self._turns = 0
        self._core.interest |= event
        if deadline is not None:
            deadline.arm()
        await waiter.wait(self._home.loop)

    async def _yield(self, waiter: Waiter | StreamReceiver) -> None:
        """Lets other tasks run once, keeping the place against a second reader or writer."""
        self._turns = 0
        self._home.loop.call_soon(waiter.wake)
        await waiter.wait(self._home.loop)

    async def _until_open(self) -> None:
        """Until the dial has succeeded or failed. Cancelled, the half-open stream is reset and its port is free."""
        try:
            while self._core.state == StreamState.SYN_SENT and not self._ended.done():
                self._core.interest |= WAKE_OPEN
                await self._opener.wait(self._home.loop)
        except asyncio.CancelledError:
            self._core.abort()
            raise
        error = self._core.error()
        if error is not None:
            raise error

    def _on_wake(self, events: int) -> None:
        """The core reports events, once per batch of packets."""
        if events & WAKE_CLOSED:
            self._on_end()
        if events & WAKE_READ:
            self._reader.wake()
        if events & WAKE_WRITE:
            self._writer.wake()
            if self._receiver is not None:
                self._receiver.room()
        if events & WAKE_ACKED:
            self._acker.wake()
        if events & WAKE_OPEN:
            self._opener.wake()

    def _on_end(self) -> None:
        if not self._ended.done():
            self._ended.set_result(None)
        for deadline in (self._read_deadline, self._write_deadline):
            if deadline is not None:
                deadline.disarm()
        self._wake_all()

    def _wake_all(self) -> None:
        self._reader.wake()
        self._opener.wake()
        self._wake_writers()

    def _wake_reader(self) -> None:
        self._reader.wake()

    def _wake_writers(self) -> None:
        self._writer.wake()
        self._acker.wake()

    def __repr__(self) -> str:
        core = self._core
        return f"<Stream {core.local_addr}:{core.local_port} - {core.remote_addr}:{core.remote_port}>"
