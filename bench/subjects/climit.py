"""`c-limit`: the two ends of `bench/climit.pyx` (bench)."""

from __future__ import annotations

import asyncio
import os
from typing import Any, Final

from bench import native
from bench.subjects import End

__all__ = ["Client", "Server"]

WINDOW_BYTES: Final = 2 << 20
SMALL_WINDOW_BYTES: Final = 512 << 10
SMALL_SEGMENT: Final = 4096
"""The fastest windows of those tried: many small segments should still be in the cache when they are opened."""


class _Loop(End):
    loop: Any

    async def close(self) -> None:
        """Closes the socket."""
        self.loop.close()


class Server(_Loop):
    """Receives and opens."""

    async def open(self, *, host: str, segment: int, **_: Any) -> dict[str, Any]:
        """Binds; answers with address and key."""
        self._segment = segment
        key = os.urandom(32)
        self.loop = native.load().Loop(host, key, b"serv")
        return {"address": self.loop.address, "key": key.hex()}

    async def meet(self, *, address: tuple[str, int]) -> None:
        """Where the client is."""
        self.loop.connect(tuple(address))

    async def expect(self, kind: str, count: int = 0, size: int = 0) -> None:
        """Receives in a thread, while the loop waits for the next command."""
        segments = -(-size // self._segment)
        self._running = asyncio.get_running_loop().run_in_executor(None, self.loop.receive, segments)

    async def collect(self) -> dict[str, Any]:
        """When the last byte came."""
        return {"end": await self._running}


class Client(_Loop):
    """Seals and sends."""

    async def open(self, *, host: str, address: tuple[str, int], key: str, segment: int, **_: Any) -> dict[str, Any]:
        """Binds, and answers with its address."""
        self._segment = segment
        self.loop = native.load().Loop(host, bytes.fromhex(key), b"clnt")
        self.loop.connect(tuple(address))
        return {"address": self.loop.address}

    async def send(self, size: int) -> dict[str, Any]:
        """`size` bytes, rounded up to whole segments."""
        window = WINDOW_BYTES if self._segment > SMALL_SEGMENT else SMALL_WINDOW_BYTES
        return {"start": self.loop.send(-(-size // self._segment), self._segment, window)}

    async def detail(self) -> dict[str, Any]:
        """Segment size and offloads."""
        return {"segment_bytes": self._segment, "offloads": list(self.loop.offloads)}
