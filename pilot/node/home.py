"""The one loop a node lives on: refuses calls from other threads, other loops and forked children (L9)."""

from __future__ import annotations

import math
import os
import weakref
from threading import get_ident
from typing import TYPE_CHECKING, Final, NoReturn

from pilot._fast.errors import BusyError, ClosedError

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, TimerHandle
    from collections.abc import Callable

__all__ = ["Home", "call_at"]

TIMER_STEP: Final = 0.001
"""Seconds a timer's delay is rounded up to: uvloop counts whole milliseconds, and a timer that fires early spins."""


def call_at(loop: AbstractEventLoop, when: float, callback: Callable[[], None]) -> TimerHandle:
    """Like `loop.call_at`, but never before `when` (seconds of the loop's clock) and up to a step after it."""
    steps = math.ceil((when - loop.time()) / TIMER_STEP)
    return loop.call_later(max(steps, 0) * TIMER_STEP, callback)


class Home:
    """Where a node was entered: one loop in one thread of one process.

    The hot calls only compare `thread` with `get_ident()`, which makes no system call (`asyncio.get_running_loop` does
    on Python 3.11). In a forked child `thread` is 0, which no thread has.
    """

    __slots__ = ("__weakref__", "_on_fork", "_pid", "loop", "thread")

    def __init__(self, loop: AbstractEventLoop, on_fork: Callable[[], None]) -> None:
        self.loop = loop
        self.thread = get_ident()
        self._pid = os.getpid()
        self._on_fork = on_fork
        _homes.add(self)

    def check(self) -> None:
        """Raises `BusyError` on another thread or loop and `ClosedError` in a forked child."""
        if get_ident() != self.thread or not self.loop.is_running():
            self.refuse()

    def refuse(self) -> NoReturn:
        """Raises the error that says which rule a call has broken and what to do instead."""
        if os.getpid() != self._pid:
            raise ClosedError(
                "this node belongs to the parent process and is dead after a fork (two processes on one key would "
                "repeat nonces): create another node here, or start the process with the 'spawn' method"
            )
        where = "another thread than the one" if get_ident() != self.thread else "outside the event loop"
        raise BusyError(
            f"a node was called from {where} that entered it: hop over with "
            "asyncio.run_coroutine_threadsafe(coroutine, loop) or loop.call_soon_threadsafe(function)"
        )

    def leave(self) -> None:
        """The node has stopped: a fork need not be told to it any more."""
        _homes.discard(self)

    def _forked(self) -> None:
        self.thread = 0
        self._on_fork()


# A fork hook cannot be taken back, so there is one for the process and it needs to know the living nodes.
_homes: weakref.WeakSet[Home] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for home in list(_homes):
        home._forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
