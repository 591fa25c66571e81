"""How tasks wait inside a node: one waiter with a movable deadline, and a closable bounded queue (L9).

A waiter never holds data, so cancelling it loses none; who is woken looks again at what it waited for.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING, Generic, TypeVar

from pilot._fast.errors import BusyError, InvalidValueError
from pilot.node.home import call_at

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, Future, TimerHandle
    from collections.abc import Callable

__all__ = ["Deadline", "Inbox", "Waiter"]

T = TypeVar("T")


class Waiter:
    """A place for one task to wait for a wake-up."""

    __slots__ = ("_future",)

    def __init__(self) -> None:
        self._future: Future[None] | None = None

    def claim(self, what: str, whom: object) -> None:
        """Raises `BusyError` when a task waits here, or was woken and has not run yet."""
        if self._future is not None:
            raise BusyError(f"cannot {what} {whom}: another task is doing so; let one task do it or use a lock")

    async def wait(self, loop: AbstractEventLoop) -> None:
        """Returns at the next `wake`. Cancelled, the place is free again and nothing else has changed."""
        self._future = loop.create_future()
        try:
            await self._future
        finally:
            self._future = None

    def wake(self) -> None:
        """Resumes the waiting task, if there is one."""
        if self._future is not None and not self._future.done():
            self._future.set_result(None)


class Deadline:
    """A point in time that can be moved while somebody waits for it.

    Every change and every firing only wakes the waiters, which check `passed` before they try again: so there is one
    timer at most, none while nobody waits, and a deadline moved with every message costs no timer at all.
    """

    __slots__ = ("_loop", "_timer", "_timer_at", "_wake", "_when")

    def __init__(self, loop: AbstractEventLoop, wake: Callable[[], None]) -> None:
        self._loop = loop
        self._wake = wake
        self._when: float | None = None
        self._timer: TimerHandle | None = None
        self._timer_at = 0.0

    @property
    def passed(self) -> bool:
        """Whether it is set and lies in the past."""
        return self._when is not None and self._loop.time() >= self._when

    def move(self, when: float | None) -> None:
        """Sets it to `when` (absolute, the loop's clock) or removes it (None, infinity) and wakes who waits.

        Raises:
            InvalidValueError: `when` is not a number.
        """
        if when is not None and (not isinstance(when, int | float) or math.isnan(when)):
            raise InvalidValueError(f"{when!r} is no deadline: give a time of the loop's clock, loop.time() + seconds")
        self._when = None if when == math.inf else when
        self._wake()

    def arm(self) -> None:
        """Makes sure that the waiters are woken when it passes. Called before waiting."""
        if self._when is None or (self._timer is not None and self._timer_at <= self._when):
            return  # an earlier timer finds out that the deadline has moved on and is armed again
        self.disarm()
        self._timer_at = self._when
        self._timer = call_at(self._loop, self._when, self._fire)

    def disarm(self) -> None:
        """Drops the timer: nobody will wait again."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _fire(self) -> None:
        self._timer = None
        self._wake()


class Inbox(Generic[T]):
    """A first-in, first-out queue with any number of waiting takers, which can be closed."""

    __slots__ = ("_closed", "_items", "_loop", "_takers")

    def __init__(self, loop: AbstractEventLoop) -> None:
        self._loop = loop
        self._items: deque[T] = deque()
        self._takers: deque[Future[None]] = deque()
        self._closed: Callable[[], BaseException] | None = None

    def __len__(self) -> int:
        return len(self._items)

    @property
    def closed(self) -> bool:
        """Whether nothing will be put in any more."""
        return self._closed is not None

    def put(self, item: T) -> None:
        """Adds `item` at the end."""
        self._items.append(item)
        self._wake_one()

    def take_oldest(self) -> T:
        """The item that has waited longest, without waiting. `IndexError` when empty."""
        return self._items.popleft()

    async def take(self) -> T:
        """The next item as soon as there is one; what is left is still handed out after `close`.

        Cancelling it loses no item. Raises what `close` was told to raise, once empty.
        """
        while not self._items:
            if self._closed is not None:
                raise self._closed()
            taker = self._loop.create_future()
            self._takers.append(taker)
            try:
                await taker
            except BaseException:
                if taker in self._takers:
                    self._takers.remove(taker)
                elif self._items:  # woken and cancelled at once: the wake-up is passed on
                    self._wake_one()
                raise
        return self._items.popleft()

    def close(self, error: Callable[[], BaseException]) -> list[T]:
        """Nothing comes any more: everybody who takes gets `error()`. Returns the items nobody had taken."""
        if self._closed is None:
            self._closed = error
        left = list(self._items)
        self._items.clear()
        while self._takers:
            self._wake_one()
        return left

    def _wake_one(self) -> None:
        while self._takers:
            taker = self._takers.popleft()
            if not taker.done():
                taker.set_result(None)
                return
