"""`StreamReceiver`: a stream read by callbacks, without a task and without a copy (L9).

It stands where a reading task waits: what would resume the task shows the callback the bytes in the receive ring.
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, NoReturn

from pilot._fast.errors import BusyError, ClosedError, InvalidValueError
from pilot._fast.stream import Wake

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Callable

    from pilot.node.stream import Stream

__all__ = ["StreamReceiver"]

WAKE_READ = int(Wake.READ)

_log = logging.getLogger("pilot.streams")


class StreamReceiver:
    """The callbacks of one `Stream.set_receiver`, in the place of the stream's reading task."""

    __slots__ = ("_done", "_ended", "_failure", "_paused", "_received", "_resuming", "_stream", "_writable", "full")

    def __init__(
        self,
        stream: Stream,
        received: Callable[[memoryview], int | None],
        ended: Callable[[Exception | None], object] | None,
        writable: Callable[[], object] | None,
    ) -> None:
        self._stream = stream
        self._received = received
        self._ended = ended
        self._writable = writable
        self._paused = True
        self._resuming = False
        self._done = False
        self._failure: BaseException | None = None
        self.full = False  # write_nowait has filled the send ring: `writable` is due when it has room

    def claim(self, what: str, whom: object) -> NoReturn:
        """Raises `BusyError`: nobody else reads."""
        raise BusyError(f"cannot {what} {whom}: a receiver is set; take it away with set_receiver(None) first")

    async def wait(self, loop: AbstractEventLoop) -> NoReturn:
        """Never waits: `claim` comes before it."""
        self.claim("wait for", self._stream)

    def pause(self) -> None:
        """Shows nothing until `resume`."""
        self._paused = True
        self._resuming = False

    def resume(self) -> None:
        """Shows what is there, from the loop, and what comes: also when a callback that asks for it leaves a rest."""
        self._resuming = True
        self._stream._home.loop.call_soon(self._resume)

    def _resume(self) -> None:
        if self._resuming:
            self._resuming = self._paused = False
            self.wake()

    def wake(self) -> None:
        """Shows what has arrived, then the end of the stream if it has come."""
        stream = self._stream
        if self._done or stream._reader is not self:
            return
        if stream._shut:
            if stream.closed:
                self._finish(self._failure or ClosedError(f"{stream} was closed by this end"))
            return
        try:
            while self._showing and self._show():
                pass
        except BaseException as error:
            self._fail(error)
            return
        if self._showing:
            self._look_for_the_end()

    def room(self) -> None:
        """The send ring has room again."""
        if self.full and not self._done:
            self.full = False
            if self._writable is not None:
                try:
                    self._writable()
                except BaseException as error:
                    self._fail(error)

    @property
    def _showing(self) -> bool:
        """Whether the callback wants more; any call of it may change that."""
        return not self._paused and not self._stream._shut and self._stream._reader is self

    def _show(self) -> bool:
        """Shows the callback one piece; False when there is none."""
        held, core = self._stream._held, self._stream._core
        if held:
            with memoryview(bytes(held)) as view:
                taken = self._call(view)
            del held[:taken]
            return True
        lent = core.lend()
        if lent is None:
            return False
        taken = 0
        try:
            taken = self._call(lent)
        finally:
            with contextlib.suppress(BufferError):  # somebody still uses it: give_back finds out, and says so
                lent.release()
            core.give_back(taken)
        return True

    def _call(self, view: memoryview) -> int:
        size = len(view)
        taken = self._received(view)
        if taken is None:
            return size
        if not isinstance(taken, int) or not 0 <= taken <= size:
            raise InvalidValueError(
                f"the receiver of {self._stream} returned {taken!r} for {size} bytes: return how many it took, "
                "or None for all"
            )
        if taken < size:
            self._paused = True
        return taken

    def _look_for_the_end(self) -> None:
        """With every byte taken, a read returns nothing, or b"" at the end, or raises what broke the stream."""
        core = self._stream._core
        try:
            end = core.read(1) is not None
        except Exception as error:
            self._finish(error)
            return
        if end:
            self._finish(None)
        else:
            core.interest |= WAKE_READ

    def _finish(self, error: BaseException | None) -> None:
        self._done = True
        if self._ended is None:
            return
        try:
            self._ended(error if error is None or isinstance(error, Exception) else ClosedError(str(error)))
        except BaseException as raised:
            self._report(raised)

    def _fail(self, error: BaseException) -> None:
        """A callback raised: that ends its stream and nothing else."""
        self._failure = error
        self._report(error)
        self._stream.abort()
        if self._stream.closed:
            self.wake()

    def _report(self, error: BaseException) -> None:
        if isinstance(error, ConnectionError | TimeoutError):
            _log.info("stream %s ended: %s", self._stream, error)  # a peer's doing, not a defect of the callback
            return
        _log.error("a receiver callback of %s failed; the stream was reset", self._stream, exc_info=error)
        if not isinstance(error, Exception):  # an exit or an interrupt is the loop's, not the datapath's
            self._stream._home.loop.call_soon(_raise, error)


def _raise(error: BaseException) -> NoReturn:
    raise error
