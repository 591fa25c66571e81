"""The datapath's clockwork on an event loop: one timer handle per node and one call at the end of an iteration (L9)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pilot.node.home import call_at

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, Handle, TimerHandle
    from collections.abc import Callable

    from pilot._fast.datapath import Datapath

__all__ = ["Scheduler"]


class Scheduler:
    """What `Datapath` calls to be called back. Nothing happens before `attach` and after `stop`."""

    def __init__(self, loop: AbstractEventLoop, clock: Callable[[], float]) -> None:
        self._loop = loop
        self._clock = clock
        self._datapath: Datapath | None = None
        self._timer: TimerHandle | None = None
        self._armed = math.inf
        self._soon: Handle | None = None

    def attach(self, datapath: Datapath) -> None:
        """From now on the datapath's timers run."""
        self._datapath = datapath
        self.arm(datapath.next_deadline())

    def stop(self) -> None:
        """Nothing is called any more."""
        self._datapath = None
        for handle in (self._timer, self._soon):
            if handle is not None:
                handle.cancel()

    def arm(self, deadline: float) -> None:
        """The datapath's next deadline (the node's clock) has become earlier than it was."""
        if self._datapath is None or deadline >= self._armed:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._armed = deadline
        self._timer = call_at(self._loop, self._loop.time() + (deadline - self._clock()), self._fire)

    def soon(self) -> None:
        """The datapath has something to do at the end of this loop iteration."""
        if self._datapath is not None:
            self._soon = self._loop.call_soon(self._datapath.end_of_iteration)

    def _fire(self) -> None:
        if self._datapath is None:
            return
        self._timer = None
        self._armed = math.inf
        self._datapath.handle_timer(self._clock())
        self.arm(self._datapath.next_deadline())
