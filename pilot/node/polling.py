"""Adaptive busy polling: a node in a quick exchange does not sleep between two packets of it (L9).

To be put to sleep and woken costs a process more than a small packet does. After a small batch the loop is therefore
kept from sleeping for a moment, by a callback that schedules itself: the loop polls its selector without waiting, runs
whatever else is due, and finds the next packet at once. Done only while it pays, as adaptive mutexes and KVM's
halt_poll_ns do it: bulk traffic, whose batches grow while the receiver sleeps, and sparse traffic are not polled for.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, Handle
    from collections.abc import Callable

    from pilot._fast.udp import UdpPort

__all__ = ["BusyPoll"]

SLEEP_FACTOR: Final = 4
"""A batch that came within so many polling times may have been late only because this process was asleep."""
BULK_BYTES: Final = 16384
"""An exchange that moves more from one batch to the next is no quick one."""
FIRST_RUN: Final = 4
"""Quick batches in a row before polling is tried."""
LONGEST_RUN: Final = 1024
"""... and at most, after many vain tries: each doubles the number, each success halves it."""


class BusyPoll:
    """Reads a port for a loop, and keeps the loop awake up to `seconds` after each batch of a quick exchange.

    `on_readable` is what the loop calls when the port is readable. Nothing is scheduled while no traffic comes.
    """

    def __init__(self, loop: AbstractEventLoop, port: UdpPort, clock: Callable[[], float], seconds: float) -> None:
        self._loop = loop
        self._port = port
        self._clock = clock
        self._seconds = seconds
        self._traffic = 0
        self._ended = -math.inf  # when the last batch had been delivered
        self._run = 0  # quick batches in a row
        self._wanted = FIRST_RUN
        self._until = 0.0
        self._handle: Handle | None = None

    @property
    def polling(self) -> bool:
        """Whether the loop is being kept awake."""
        return self._handle is not None

    def on_readable(self) -> None:
        """Reads a batch; afterwards polls for the next one, or does not."""
        pause = self._clock() - self._ended
        self._port.on_readable()
        self._ended = now = self._clock()
        traffic = self._port.traffic_bytes
        moved = traffic - self._traffic
        self._traffic = traffic
        if moved > BULK_BYTES or pause > SLEEP_FACTOR * self._seconds:
            self._run = 0
            self.stop()
            return
        self._run += 1
        if self._handle is not None:
            self._wanted = max(FIRST_RUN, self._wanted // 2)
            self._until = now + self._seconds
        elif self._run >= self._wanted:
            self._until = now + self._seconds
            self._handle = self._loop.call_soon(self._stay_awake)

    def stop(self) -> None:
        """The loop may sleep."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _stay_awake(self) -> None:
        if self._clock() < self._until:
            self._handle = self._loop.call_soon(self._stay_awake)
        else:
            self._handle = None
            self._run = 0
            self._wanted = min(2 * self._wanted, LONGEST_RUN)
