"""A port with one guarded task per stream, counted and limited per peer (plugins, L11)."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

from pilot.coreapi import PilotError, recover_plugin

if TYPE_CHECKING:
    from pilot.coreapi import Deps, Listener, Stream

__all__ = ["StreamServer"]

AFTER_CRASH_SECONDS: Final = 1.0
"""Until streams are taken again after that itself has crashed."""


class StreamServer:
    """Runs `handle` for every stream to a port; a crash of one ends that stream and is counted for the plugin.

    A crash of taking streams is counted too; one second later they are taken again, those that came meanwhile first.
    A stream is closed when `handle` returns and reset when it raises; what a peer or the network can cause
    (`PilotError`, `EOFError`, `TimeoutError`) is no crash. Beyond `most` streams, or `most_per_peer` of one
    node, further ones are closed at once, and counted in `refused`.
    """

    def __init__(
        self,
        plugin: str,
        deps: Deps,
        handle: Callable[[Stream], Awaitable[None]],
        *,
        most: int,
        most_per_peer: int,
    ) -> None:
        self.refused = 0
        self._plugin = plugin
        self._deps = deps
        self._handle = handle
        self._most = most
        self._most_per_peer = most_per_peer
        self._per_peer: Counter[int] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener: Listener | None = None
        self._accepting: asyncio.Task[None] | None = None

    async def start(self, port: int) -> None:
        """Listens on `port`; open when this returns. Raises what `Streams.listen` raises."""
        self._listener = await self._deps.streams.listen(port)
        self._accepting = asyncio.create_task(self._accept(self._listener), name=f"{self._plugin} accept")

    async def stop(self, seconds: float) -> None:
        """Frees the port and waits for the streams; what is left after `seconds` is cancelled. May be repeated."""
        if self._listener is not None:
            await self._listener.close()
        if self._accepting is not None:
            self._accepting.cancel()
            await asyncio.wait([self._accepting])
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _accept(self, listener: Listener) -> None:
        while True:
            with recover_plugin(self._plugin, "accept", self._deps.events):
                async for stream in listener:
                    task = asyncio.create_task(self._serve(stream), name=f"{self._plugin} {stream.remote_addr}")
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)
                return  # the listener is closed
            await asyncio.sleep(AFTER_CRASH_SECONDS)

    async def _serve(self, stream: Stream) -> None:
        peer = stream.remote_addr.node
        with recover_plugin(self._plugin, "serve", self._deps.events):
            if len(self._tasks) > self._most or self._per_peer[peer] >= self._most_per_peer:
                self.refused += 1
                self._deps.logger.debug("a stream of %s is one too many", stream.remote_addr)
                await stream.close()
                return
            self._per_peer[peer] += 1
            try:
                async with stream:
                    await self._handle(stream)
            except (PilotError, EOFError, TimeoutError) as error:
                self._deps.logger.debug("the stream of %s ends: %s", stream.remote_addr, error)
            finally:
                self._per_peer[peer] -= 1
                if not self._per_peer[peer]:
                    del self._per_peer[peer]
