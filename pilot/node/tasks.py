"""The background tasks of one node: kept alive while they run, all gone when it stops (L9)."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Coroutine

__all__ = ["Tasks"]

_log = logging.getLogger("pilot.node")


class Tasks:
    """A set of tasks. One that fails is logged; that is a defect, since each handles what it expects."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._running: set[asyncio.Task[None]] = set()
        self._stopped = False

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Runs `coroutine` until it ends or the node stops; after that nothing starts any more."""
        if self._stopped:
            coroutine.close()
            return
        task = self._loop.create_task(coroutine)
        self._running.add(task)
        task.add_done_callback(self._ended)

    async def stop(self) -> None:
        """Cancels all and waits for them."""
        self._stopped = True
        running = list(self._running)
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("a background task of the node failed", exc_info=error)
