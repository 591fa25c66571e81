"""What has arrived of a file and is not on the disk yet: a ring of memory, used again (plugin dataexchange, L11).

The event loop fills it straight from the stream while a thread writes and hashes what is in it. Memory taken anew for
each chunk would cost a page fault for each 4 KiB, which is as dear as the hash.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pilot.plugins._receiving import MemoryLease

__all__ = ["Ring"]

FIRST_BYTES: Final = 64 * 1024
MAX_BYTES: Final = 8 << 20
"""How far the ring of one file grows, while its sender fills it faster than it is written."""


class Ring:
    """A byte ring with one who fills it and one who empties it: a thread may read `waiting` while `room` is filled.

    Its memory begins with `FIRST_BYTES`, grows to `limit` bytes at most and is charged to `lease`.
    """

    def __init__(self, lease: MemoryLease, limit: int) -> None:
        self._lease = lease
        self._limit = min(limit, MAX_BYTES)
        self._buffer = memoryview(bytearray())
        self._head = 0
        """Bytes filled since the beginning."""
        self._tail = 0
        """Bytes emptied since the beginning."""

    @property
    def used(self) -> int:
        """Bytes that wait to be emptied."""
        return self._head - self._tail

    @property
    def is_half_full(self) -> bool:
        """Whether emptying is worth its call."""
        return 2 * self.used >= len(self._buffer)

    @property
    def can_grow(self) -> bool:
        """Whether it is smaller than it may become."""
        return len(self._buffer) < self._limit

    async def open(self) -> None:
        """Takes the first memory, if that has not been done. Raises what `MemoryLease.grow` raises."""
        if not self._buffer:
            size = min(FIRST_BYTES, self._limit)
            await self._lease.grow(size)
            self._buffer = memoryview(bytearray(size))

    def grow(self) -> None:
        """Doubles the ring, which is empty, unless memory is scarce."""
        size = len(self._buffer)
        more = min(size, self._limit - size)
        if self._lease.grow_if_roomy(more):
            self._buffer = memoryview(bytearray(size + more))
            self._head = self._tail = 0

    def room(self) -> memoryview:
        """The free part up to the end of the ring, writable; empty when the ring is full."""
        size = len(self._buffer)
        start = self._head % size
        return self._buffer[start : min(size, start + size - self.used)]

    def filled(self, count: int) -> None:
        """`count` bytes were put at the beginning of `room`."""
        self._head += count

    def waiting(self) -> list[memoryview]:
        """What waits to be emptied, in one piece or two."""
        size = len(self._buffer)
        if not self.used:
            return []
        start, end = self._tail % size, self._head % size
        if start < end:
            return [self._buffer[start:end]]
        return [self._buffer[start:], self._buffer[:end]] if end else [self._buffer[start:]]

    def emptied(self, count: int) -> None:
        """The first `count` bytes of `waiting` are done with."""
        self._tail += count
