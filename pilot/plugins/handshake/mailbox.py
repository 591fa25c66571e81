"""`MailboxPoller`: when the registry's mailbox is emptied, and by whom: polls never overlap (plugin handshake, L11).

Source: services.md 1.5. Seconds are those of the host's monotonic clock.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

from pilot.coreapi import PilotError

if TYPE_CHECKING:
    import logging

__all__ = ["MailboxPoller"]

IDLE_SECONDS: Final = 60.0
FAST_SECONDS: Final = 2.0
"""While an answer is awaited; also how often users can cause a poll."""
FAST_WINDOW_SECONDS: Final = 120.0
MAX_AWAITED: Final = 64
NOTICE_BURST: Final = 3
NOTICE_SECONDS: Final = 5.0
"""Notices of the beacon, which anybody can send, cause three polls at once and then one in this time."""


class MailboxPoller:
    """Calls `poll` when it is time to."""

    def __init__(self, poll: Callable[[], Awaitable[None]], clock: Callable[[], float], logger: logging.Logger) -> None:
        self._poll = poll
        self._clock = clock
        self._log = logger
        self._wake = asyncio.Event()
        self._wanted: asyncio.Future[None] | None = None
        self._last = clock() - IDLE_SECONDS
        self._awaited: dict[int, float] = {}
        self._noticed = False
        self._tokens = float(NOTICE_BURST)
        self._tokens_at = clock()
        self._stopping = False

    def expect(self, node_id: int) -> None:
        """An answer of `node_id` may come: poll often for two minutes."""
        self._awaited.pop(node_id, None)
        if len(self._awaited) >= MAX_AWAITED:
            del self._awaited[next(iter(self._awaited))]
        self._awaited[node_id] = self._clock() + FAST_WINDOW_SECONDS
        self._wake.set()

    def settled(self, node_id: int) -> None:
        """No answer of `node_id` is awaited any more."""
        self._awaited.pop(node_id, None)

    def notice(self) -> None:
        """The beacon says that the mailbox holds something."""
        self._noticed = True
        self._wake.set()

    def stop(self) -> None:
        """Lets `run` end, after a poll that is under way."""
        self._stopping = True
        self._wake.set()

    async def run(self) -> None:
        """Polls until `stop` is called. Cancelled in a poll, what that took out of the mailbox may be lost."""
        try:
            while not self._stopping:
                self._wake.clear()
                pause = self._due() - self._clock()
                if pause > 0:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(pause):
                            await self._wake.wait()
                    continue
                if self._noticed:
                    self._noticed = False
                    self._tokens = max(0.0, self._tokens - 1.0)
                await self._poll_now()
        finally:
            _release(self._wanted)
            self._wanted = None

    async def refresh(self) -> None:
        """Returns when `run` has polled since the call, 2 s after the poll before. One that failed is only logged.

        Cancelling it does not end the poll, which may have emptied the mailbox already.
        """
        if self._stopping:
            return
        if self._wanted is None:
            self._wanted = asyncio.get_running_loop().create_future()
            self._wake.set()
        await asyncio.shield(self._wanted)

    def _due(self) -> float:
        now = self._clock()
        self._awaited = {node: until for node, until in self._awaited.items() if until > now}
        due = self._last + (FAST_SECONDS if self._awaited or self._wanted is not None else IDLE_SECONDS)
        if self._noticed:
            due = min(due, now + self._until_token(now))
        return due

    def _until_token(self, now: float) -> float:
        self._tokens = min(self._tokens + (now - self._tokens_at) / NOTICE_SECONDS, float(NOTICE_BURST))
        self._tokens_at = now
        return max(0.0, (1.0 - self._tokens) * NOTICE_SECONDS)

    async def _poll_now(self) -> None:
        self._last = self._clock()
        served, self._wanted = self._wanted, None
        try:
            await self._poll()
        except PilotError as error:
            self._log.debug("the handshake mailbox could not be read: %s", error)
        finally:
            _release(served)


def _release(waiting: asyncio.Future[None] | None) -> None:
    if waiting is not None and not waiting.done():
        waiting.set_result(None)
