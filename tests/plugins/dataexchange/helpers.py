"""A running service at node 2, and a client at node 1, over streams in memory."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from pilot.coreapi import Addr, Deps
from pilot.plugins.dataexchange import PORT, DataExchangeClient, DataExchangeService
from pilot.plugins.dataexchange.frames import HEADER_BYTES, header_untrusted
from tests.plugins.fakes import Network, Published, Stream, published

BOB = Addr(0, 2)
CONTENT = random.Random(1).randbytes(3_000_000)


def _client(deps: Deps) -> DataExchangeClient:
    return DataExchangeClient(deps.streams, deps.resolver, events=deps.events)


class Place:
    """What a test sees: `service` and its `directory`, the events of both ends, a `client`, raw streams."""

    def __init__(self, network: Network, service: DataExchangeService, directory: Path) -> None:
        self.service = service
        self.inbox = directory / "inbox"
        self.received = directory / "received"
        self._network = network
        self._receiver = network.deps(2)
        self._sender = network.deps(1)
        self.events: Published = published(self._receiver, "*")
        self.sent_events: Published = published(self._sender, "*")
        self.client = _client(self._sender)

    def new_client(self, node: int) -> DataExchangeClient:
        """One at another node."""
        return _client(self._network.deps(node))

    async def dial(self) -> Stream:
        stream: Any = await self._sender.streams.dial(BOB, PORT)
        return stream

    async def start(self) -> None:
        await self.service.start(self._receiver)

    def stored(self) -> list[Path]:
        """Finished files."""
        return sorted(path for path in self.received.iterdir() if path.is_file()) if self.received.exists() else []

    def partials(self) -> list[Path]:
        directory = self.received / ".partial"
        return sorted(directory.iterdir()) if directory.exists() else []


@asynccontextmanager
async def running(directory: Path, *, stores: bool = True, **options: Any) -> AsyncIterator[Place]:
    """A service with both stores below `directory`, or none."""
    if stores:
        options = {"inbox": directory / "inbox", "received": directory / "received", **options}
    place = Place(Network(), DataExchangeService(**options), directory)
    await place.start()
    try:
        yield place
    finally:
        await place.service.stop()


async def frame(stream: Stream) -> tuple[int, bytes]:
    """The next frame. `EOFError` when the other end has ended instead."""
    async with asyncio.timeout(5.0):
        number, length = header_untrusted(await stream.readexactly(HEADER_BYTES))
        return number, await stream.readexactly(length)
