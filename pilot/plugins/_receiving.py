"""Reading what a peer announces the length of: memory grows with what arrives and has a common limit (plugins, L11)."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from types import TracebackType

    from pilot.coreapi import Stream

__all__ = ["MemoryBudget", "MemoryLease", "read_payload_untrusted"]

FIRST_BYTES: Final = 1 << 20
"""Allocated for a payload before any of it has come; what is longer doubles as it arrives."""
UNCHARGED_BYTES: Final = 4096
"""A payload up to here, one per stream, takes no share: it may be what lets a holder of memory go on, or end."""
WAIT_SECONDS: Final = 60.0
"""How long a payload waits for memory that others hold."""


class MemoryBudget:
    """How many bytes all payloads in memory may take together, and those of one node.

    `total` and `per_peer` are bytes; one payload may take as many as `per_peer`.
    """

    def __init__(self, total: int, per_peer: int) -> None:
        self.total = total
        self.per_peer = per_peer
        self.used = 0
        self._by_peer: Counter[int] = Counter()
        self._waiting: list[asyncio.Future[None]] = []

    def lease(self, peer: int) -> MemoryLease:
        """A share for one payload of the node `peer`, empty at first. `with` gives it back."""
        return MemoryLease(self, peer)

    def has_room(self, peer: int, size: int) -> bool:
        """Whether `size` more bytes are free for `peer`."""
        return self.used + size <= self.total and self._by_peer[peer] + size <= self.per_peer

    async def take(self, peer: int, size: int) -> None:
        """Takes `size` bytes as soon as they are free. Cancelled, it has taken none.

        Raises:
            TimeoutError: they were not free within `WAIT_SECONDS`.
        """
        if not self.has_room(peer, size):
            async with asyncio.timeout(WAIT_SECONDS):
                while not self.has_room(peer, size):
                    turn = asyncio.get_running_loop().create_future()
                    self._waiting.append(turn)
                    await turn
        self.used += size
        self._by_peer[peer] += size

    def take_if_roomy(self, peer: int, size: int) -> bool:
        """Takes `size` bytes if half of everything, and half of what `peer` may take, stays free after that."""
        if 2 * (self.used + size) > self.total or 2 * (self._by_peer[peer] + size) > self.per_peer:
            return False
        self.used += size
        self._by_peer[peer] += size
        return True

    def give(self, peer: int, size: int) -> None:
        """Gives `size` bytes back."""
        self.used -= size
        self._by_peer[peer] -= size
        if not self._by_peer[peer]:
            del self._by_peer[peer]
        waiting, self._waiting = self._waiting, []
        for turn in waiting:
            if not turn.done():
                turn.set_result(None)


class MemoryLease:
    """The share of one payload."""

    __slots__ = ("_budget", "_peer", "size")

    def __init__(self, budget: MemoryBudget, peer: int) -> None:
        self._budget = budget
        self._peer = peer
        self.size = 0

    async def grow(self, size: int) -> None:
        """Takes `size` bytes more. Raises what `MemoryBudget.take` raises."""
        await self._budget.take(self._peer, size)
        self.size += size

    def grow_if_roomy(self, size: int) -> bool:
        """Takes `size` bytes more unless memory is scarce: whether it has. See `MemoryBudget.take_if_roomy`."""
        taken = self._budget.take_if_roomy(self._peer, size)
        self.size += size * taken
        return taken

    def shrink(self, size: int) -> None:
        """Gives `size` of these bytes back."""
        self.size -= size
        if size:
            self._budget.give(self._peer, size)

    def release(self) -> None:
        """Gives everything back. May be repeated."""
        self.shrink(self.size)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.release()


async def read_payload_untrusted(
    stream: Stream, length: int, lease: MemoryLease, idle_seconds: float, begun: bytes = b""
) -> bytearray:
    """A payload of `length` bytes, of which `begun` have been read from `stream` before.

    At most twice what has arrived (or `FIRST_BYTES`) is allocated meanwhile.

    Raises:
        TimeoutError: nothing came for `idle_seconds`, or there was no memory.
        EOFError: the peer ended before.
        ResetError, PathError, ClosedError: as `Stream.read`.
    """
    loop = asyncio.get_running_loop()
    size = min(length, FIRST_BYTES)
    if length > UNCHARGED_BYTES:
        await lease.grow(size)
    buffer = bytearray(size)
    buffer[: len(begun)] = begun
    filled = len(begun)
    while filled < length:
        if filled == len(buffer):
            more = min(filled, length - filled)
            await lease.grow(more)
            buffer += bytes(more)
        stream.set_read_deadline(loop.time() + idle_seconds)
        with memoryview(buffer) as view, view[filled:] as room:
            count = await stream.read_into(room)
        if not count:
            raise EOFError(f"the peer ended after {filled} of {length} bytes")
        filled += count
    return buffer
