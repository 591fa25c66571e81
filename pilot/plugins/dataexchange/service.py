"""`DataExchangeService`: messages and files on port 1001 (plugin dataexchange, L11).

Source: services.md section 2.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Self

from pilot.coreapi import Service, ServiceNotReadyError
from pilot.plugins._receiving import MemoryBudget
from pilot.plugins._serving import StreamServer
from pilot.plugins.dataexchange.client import DataExchangeClient
from pilot.plugins.dataexchange.connection import Connection
from pilot.plugins.dataexchange.deliveries import FEED_CAPACITY, Deliveries, in_thread
from pilot.plugins.dataexchange.model import PLUGIN, PORT, FileProgress, Limits
from pilot.plugins.dataexchange.naming import Stamps
from pilot.plugins.dataexchange.received import Received
from pilot.plugins.dataexchange.store import Inbox

if TYPE_CHECKING:
    from pathlib import Path

    from pilot.coreapi import Deps, Stream
    from pilot.plugins.dataexchange.feed import Feed
    from pilot.plugins.dataexchange.host import Host
    from pilot.plugins.dataexchange.model import Message, ReceivedFile

__all__ = ["DataExchangeService"]

STOP_SECONDS: Final = 2.0
"""How long answers under way are waited for in `stop`."""


class DataExchangeService(Service):
    """Takes messages and files from anyone who can reach the node, and sends them.

    `inbox` and `received` are the directories of messages and files. Without an inbox messages go to the readers of
    `messages()` alone, and are refused while there is none or none has room; without a received directory every file
    is refused: nothing is collected in memory that nobody asked for.

    `keep_names` stores files under their senders' names, numbered where taken, instead of stamped ones; `base64_only`
    writes message data as base64 always; `on_progress` is told where file streams stand, from the event loop.
    """

    name = PLUGIN
    order = 110

    def __init__(
        self,
        *,
        inbox: Path | None = None,
        received: Path | None = None,
        limits: Limits | None = None,
        base64_only: bool = False,
        keep_names: bool = False,
        on_progress: Callable[[FileProgress], None] | None = None,
        port: int = PORT,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._inbox_directory = inbox
        self._received_directory = received
        self._limits = limits or Limits()
        self._base64_only = base64_only
        self._keep_names = keep_names
        self._on_progress = on_progress
        self._port = port
        self._clock = clock
        self._wall = wall
        self._deps: Deps | None = None
        self._deliveries: Deliveries | None = None
        self._client: DataExchangeClient | None = None
        self._server: StreamServer | None = None
        self._connections: set[Connection] = set()

    @classmethod
    def for_node(cls, host: Host, **options: Any) -> Self:
        """A service with `inbox` and `received` in the node's own directory. `options` are those of the class."""
        directory = host.state_dir
        places = {"inbox": directory / "inbox", "received": directory / "received"} if directory else {}
        service = cls(**{**places, "clock": host.clock, "wall": host.wall, **options})
        for counter in ("stored_messages", "stored_files", "refused"):
            host.add_counter(f"{PLUGIN}.{counter}", lambda counter=counter: service._count(counter))  # type: ignore[misc]
        return service

    async def start(self, deps: Deps) -> None:
        """Opens the directories and the port.

        Raises:
            OSError, InvalidValueError: a directory cannot be used.
            BusyError: somebody listens on the port already.
        """
        inbox, received = await in_thread(self._open_stores)
        self._deps = deps
        self._budget = MemoryBudget(self._limits.memory_bytes, self._limits.peer_memory_bytes)
        self._connections = set()
        self._deliveries = Deliveries(inbox, received, deps.events, self._clock, self._wall)
        limits = self._limits
        server = StreamServer(PLUGIN, deps, self._serve, most=limits.streams, most_per_peer=limits.streams_per_peer)
        await server.start(self._port)
        self._server = server
        self._client = DataExchangeClient(deps.streams, deps.resolver, events=deps.events, port=self._port)

    async def stop(self) -> None:
        """Frees the port, finishes answers under way, cuts files off (they can be resumed) and ends all readers."""
        server, self._server = self._server, None
        if server is not None:
            for connection in list(self._connections):
                connection.end()
            await server.stop(STOP_SECONDS)
        if self._deliveries is not None:
            self._deliveries.close()
        self._client = None

    @property
    def client(self) -> DataExchangeClient:
        """Sends messages and files from this node. Raises `ServiceNotReadyError` while the service does not run."""
        if self._client is None:
            raise ServiceNotReadyError("the data exchange does not run: start its node first")
        return self._client

    def messages(self, capacity: int = FEED_CAPACITY) -> Feed[Message]:
        """The messages that arrive from now on: `async for message in service.messages()`.

        At most `capacity` of them wait; further ones are lost to this reader, and counted in its `dropped`, though not
        to the inbox. It ends with the service. Raises `ServiceNotReadyError` while the service does not run.
        """
        return self._running().messages(capacity)

    def files(self, capacity: int = FEED_CAPACITY) -> Feed[ReceivedFile]:
        """The files that arrive from now on. See `messages`."""
        return self._running().files(capacity)

    def _running(self) -> Deliveries:
        if self._deliveries is None or self._server is None:
            raise ServiceNotReadyError("the data exchange does not run: start its node first")
        return self._deliveries

    def _count(self, counter: str) -> int:
        return 0 if self._deliveries is None else int(getattr(self._deliveries, counter))

    def _open_stores(self) -> tuple[Inbox | None, Received | None]:
        stamps, inbox, received = Stamps(self._wall), None, None
        if self._inbox_directory is not None:
            inbox = Inbox(self._inbox_directory, self._limits, stamps, base64_only=self._base64_only)
            inbox.open()
        if self._received_directory is not None:
            received = Received(self._received_directory, self._limits, stamps, keep_names=self._keep_names)
            received.open(time.time())  # compared with the times of files, which are the kernel's
        return inbox, received

    async def _serve(self, stream: Stream) -> None:
        assert self._deps is not None
        assert self._deliveries is not None
        deps = self._deps
        connection = Connection(
            stream, self._deliveries, self._limits, self._budget, deps.events, deps.logger, self._on_progress
        )
        self._connections.add(connection)
        try:
            await connection.run()
        finally:
            self._connections.discard(connection)
