"""One deadline for many timers: named, replaceable, run in order by whoever holds the clock (tunnel, L4-5)."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Hashable

Callback = Callable[[float], None]

STALE_ENTRIES = 64
"""Heap entries of cancelled timers that are tolerated beyond the number of live ones."""


class Timers:
    """A heap of (deadline, key); setting a key again replaces it. `announce` hears of every new earliest deadline."""

    def __init__(self, announce: Callable[[float], None]) -> None:
        self._announce = announce
        self._announced = math.inf
        self._live: dict[Hashable, tuple[int, float, Callback]] = {}
        self._heap: list[tuple[float, int, Hashable]] = []
        self._serials = itertools.count()

    def __len__(self) -> int:
        return len(self._live)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._live

    def set(self, key: Hashable, deadline: float, callback: Callback) -> None:
        """Run `callback(now)` once at `deadline`, in place of what `key` had planned."""
        serial = next(self._serials)
        self._live[key] = (serial, deadline, callback)
        heapq.heappush(self._heap, (deadline, serial, key))
        if len(self._heap) > 2 * len(self._live) + STALE_ENTRIES:
            self._heap = [(deadline, serial, key) for key, (serial, deadline, _) in self._live.items()]
            heapq.heapify(self._heap)
        self._tell()

    def cancel(self, key: Hashable) -> None:
        """Forget what `key` had planned, if anything."""
        if self._live.pop(key, None) is not None:
            self._tell()

    def clear(self) -> None:
        """Forget everything."""
        self._live.clear()
        self._heap.clear()
        self._tell()

    def run(self, now: float, limit: int) -> None:
        """Run what is due at `now`, in order, at most `limit` timers; the rest stays due."""
        for _ in range(limit):
            if self._earliest() > now:
                break
            _, _, key = heapq.heappop(self._heap)
            self._live.pop(key)[2](now)
        self._announced = math.nan
        self._tell()

    def _earliest(self) -> float:
        while self._heap:
            deadline, serial, key = self._heap[0]
            live = self._live.get(key)
            if live is not None and live[0] == serial:
                return deadline
            heapq.heappop(self._heap)
        return math.inf

    def _tell(self) -> None:
        earliest = self._earliest()
        if earliest != self._announced:
            self._announced = earliest
            self._announce(earliest)
