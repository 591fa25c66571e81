"""A node of ours in a process of its own, told what to do by lines of JSON on standard input (see nat.py).

Every line starts a call beside those under way; the answer has its `number`. End of input ends the process.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from typing import Any, TextIO

import pilot

ECHO_PORT = 7


class Process:
    """The calls."""

    def __init__(self) -> None:
        self.node: pilot.Node | None = None
        self._streams: dict[str, pilot.Stream] = {}
        self._turns: dict[str, asyncio.Lock] = {}

    async def start(self, **settings: Any) -> dict[str, Any]:
        """Starts the node."""
        self.node = pilot.Node(**settings)
        await self.node.start()
        return {"node_id": self.node.node_id, "address": str(self.node.address)}

    async def echo(self, peer: str, size: int, timeout: float) -> float:
        """Random bytes to the peer and back, on one stream that is kept; how long it took."""
        assert self.node is not None
        data, started = os.urandom(size), time.monotonic()
        async with asyncio.timeout(timeout), self._turns.setdefault(peer, asyncio.Lock()):
            if peer not in self._streams:
                self._streams[peer] = await self.node.dial(peer, ECHO_PORT, timeout=timeout)
            stream = self._streams[peer]
            writing = asyncio.create_task(stream.write(data))
            back = await stream.readexactly(size)
            await writing
        if back != data:
            raise ValueError("other bytes came back")
        return time.monotonic() - started

    async def path(self, node_id: int) -> str:
        """The way to a peer as the node reports it."""
        assert self.node is not None
        return next((peer.path for peer in self.node.stats().peers if peer.node_id == node_id), "none")

    async def peers(self) -> list[str]:
        """Everything the node knows about its peers, for the message of a failed test."""
        assert self.node is not None
        return [str(peer) for peer in self.node.stats().peers]

    async def answer(self, request: dict[str, Any], replies: TextIO) -> None:
        """Does one line."""
        number, do = request.pop("number"), request.pop("do")
        told: dict[str, Any]
        try:
            told = {"number": number, "result": await getattr(self, do)(**request)}
        except Exception as error:
            told = {"number": number, "error": f"{do}({request}): {type(error).__name__}: {error}"}
        replies.write(json.dumps(told) + "\n")
        replies.flush()


async def main() -> None:
    """Until the end of input."""
    reader, process, replies = asyncio.StreamReader(), Process(), sys.stdout
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    tasks: set[asyncio.Task[None]] = set()
    while line := await reader.readline():
        task = asyncio.create_task(process.answer(json.loads(line), replies))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    for task in list(tasks):
        task.cancel()
    if process.node is not None:
        await process.node.stop()


if __name__ == "__main__":
    pilot.run(main())
