"""What has arrived, for a reader in the same process: a bounded queue (plugin dataexchange, L11)."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Generic, Self, TypeVar

from pilot.coreapi import BusyError

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["FEED_BYTES", "Feed"]

T = TypeVar("T")

FEED_BYTES: Final = 128 << 20
"""Bytes of messages that wait in one feed."""


class Feed(Generic[T]):
    """Items in the order of arrival; `async for item in feed`, until it or its service is closed.

    What comes while it is full is lost to this reader, and counted. `with` closes it.
    """

    def __init__(self, capacity: int, on_close: Callable[[Feed[T]], None]) -> None:
        self.dropped = 0
        """Items lost because the feed was full."""
        self.closed = False
        self._capacity = capacity
        self._items: deque[tuple[T, int]] = deque()
        self._bytes = 0
        self._on_close = on_close
        self._waiting: asyncio.Future[None] | None = None

    def offer(self, item: T, size: int = 0) -> bool:
        """Adds an item of `size` bytes; False when there was no room."""
        if self.closed or len(self._items) >= self._capacity or self._bytes + size > FEED_BYTES:
            self.dropped += 1
            return False
        self._items.append((item, size))
        self._bytes += size
        self._wake()
        return True

    def close(self) -> None:
        """Nothing more is added; what waits can still be read. May be repeated."""
        if not self.closed:
            self.closed = True
            self._on_close(self)
            self._wake()

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        """The next item. Cancelling it loses none. Raises `BusyError`: another task waits here."""
        while not self._items:
            if self.closed:
                raise StopAsyncIteration
            if self._waiting is not None:
                raise BusyError("another task waits for the next item of this feed: let each have one of its own")
            self._waiting = asyncio.get_running_loop().create_future()
            try:
                await self._waiting
            finally:
                self._waiting = None
        item, size = self._items.popleft()
        self._bytes -= size
        return item

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()
