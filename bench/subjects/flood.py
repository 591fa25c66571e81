"""Messages under a window, the same for every subject: how many a receiver gets in a second (bench).

Without a window the sender would only measure how fast messages can be thrown away. The receiver confirms the total
every `CREDIT_MESSAGES`; what stays unconfirmed for `STALL_SECONDS` counts as lost.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

__all__ = ["Counted", "Window"]

STALL_SECONDS: Final = 0.05


class Window:
    """The sending side: `confirmed` is called with the receiver's total."""

    def __init__(self) -> None:
        self._total = 0
        self._changed = asyncio.Event()

    def confirmed(self, total: int) -> None:
        """The receiver has had `total` messages since it was told to expect them."""
        self._total = max(self._total, total)
        self._changed.set()

    async def flood(self, send: Callable[[int], Awaitable[None]], count: int, window: int) -> dict[str, Any]:
        """Sends `count` messages by calls of `send(number)` and waits until they are confirmed or lost."""
        self._total = lost = sent = 0
        started = time.monotonic_ns()
        while self._total + lost < count:
            room = min(window - (sent - self._total - lost), count - sent)
            if room > 0:
                await send(room)
                sent += room
            self._changed.clear()
            try:
                async with asyncio.timeout(STALL_SECONDS):
                    await self._changed.wait()
            except TimeoutError:
                lost = sent - self._total
        return {"start": started, "sent": sent, "lost": lost}


class Counted:
    """The receiving side: counts messages and when the last one came."""

    def __init__(self) -> None:
        self.total = 0
        self.last = 0

    def reset(self) -> None:
        """Counts from 0 again."""
        self.total = self.last = 0

    def one(self) -> None:
        """Another message arrived."""
        self.total += 1
        self.last = time.monotonic_ns()

    def result(self) -> dict[str, Any]:
        """For `End.collect`."""
        return {"received": self.total, "end": self.last}
