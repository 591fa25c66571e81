"""A stream in memory that looks enough like `coreapi.Stream` for the file transfer."""

from __future__ import annotations

import asyncio
from typing import Any


class PipeStream:
    """One end of a pair; `cut_after` bytes written it breaks, as a network would."""

    def __init__(self, cut_after: int | None = None) -> None:
        self.reader = asyncio.StreamReader(limit=1 << 30)
        self.peer: PipeStream = self
        self.room = cut_after

    async def read_into(self, buffer: Any) -> int:
        data = await self.reader.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    async def readexactly(self, n: int) -> bytes:
        return await self.reader.readexactly(n)

    async def write(self, data: Any) -> None:
        await asyncio.sleep(0)
        if self.room is not None and len(data) > self.room:
            self.peer.reader.feed_data(bytes(data[: self.room]))
            self.finish()
            raise ConnectionResetError("cut")
        if self.room is not None:
            self.room -= len(data)
        self.peer.reader.feed_data(bytes(data))

    async def drain(self) -> None:
        return None

    def finish(self) -> None:
        self.peer.reader.feed_eof()

    def set_read_deadline(self, when: float | None) -> None:
        return None

    def set_write_deadline(self, when: float | None) -> None:
        return None


def pipe(cut_after: int | None = None) -> tuple[Any, Any]:
    """Two connected ends; the first breaks after `cut_after` bytes."""
    left, right = PipeStream(cut_after), PipeStream()
    left.peer, right.peer = right, left
    return left, right
