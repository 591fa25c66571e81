"""`EventStreamService`: a broker on port 1002, and a client (plugin eventstream, L11).

Source: services.md section 3.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Protocol, Self

from pilot.coreapi import Addr, InvalidValueError, ResetError, Service, ServiceNotReadyError
from pilot.plugins._receiving import MemoryBudget
from pilot.plugins._serving import StreamServer
from pilot.plugins.eventstream.broker import Broker
from pilot.plugins.eventstream.client import EVENT_STREAM_PORT, EventStreamClient
from pilot.plugins.eventstream.frames import MAX_PAYLOAD_BYTES, StreamEvent, encode_event, read_event_untrusted

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from pilot.coreapi import Deps, EventBus, Stream
    from pilot.plugins.eventstream.broker import Subscriber

__all__ = ["EventStreamService", "Host", "TopicPolicy"]

PLUGIN: Final = "eventstream"
MEMORY_BYTES: Final = 128 << 20
"""All events in memory that have not arrived whole."""
MAX_STREAMS: Final = 1024
MAX_STREAMS_PER_PEER: Final = 64
FRAME_SECONDS: Final = 60.0
"""A frame that has begun has to go on within it; between frames a stream may be silent for as long as it lives."""
SLOW_SECONDS: Final = 60.0
"""A subscriber that takes nothing for so long is removed."""
STOP_SECONDS: Final = 2.0

TopicPolicy = Callable[[Addr, str], bool]
"""Whether the node at an address may use a topic. Answers at once."""


class Host(Protocol):
    """What the event stream takes from the node beyond `Deps`."""

    @property
    def add_counter(self) -> Callable[[str, Callable[[], int]], None]:
        """Adds a number to the node's statistics."""
        ...


def _allow(peer: Addr, topic: str) -> bool:
    """The policy where none is given: everybody may."""
    return True


class EventStreamService(Service):
    """Brings the events that peers publish at this node to those who subscribed here. Brokers do not talk to another.

    `may_subscribe` and `may_publish` are asked for every subscription and event of a peer; without them everybody who
    can reach the node may do both.
    """

    name = PLUGIN
    order = 120

    def __init__(
        self,
        *,
        may_subscribe: TopicPolicy = _allow,
        may_publish: TopicPolicy = _allow,
        port: int = EVENT_STREAM_PORT,
    ) -> None:
        self._may_subscribe = may_subscribe
        self._may_publish = may_publish
        self._port = port
        self._deps: Deps | None = None
        self._broker: Broker | None = None
        self._server: StreamServer | None = None
        self._connections: set[_Connection] = set()

    @classmethod
    def for_node(cls, host: Host, **options: Any) -> Self:
        """A service that counts in the node's statistics. `options` are those of the class."""
        service = cls(**options)
        for counter in ("published", "dropped", "subscribers"):
            host.add_counter(f"{PLUGIN}.{counter}", lambda counter=counter: service._count(counter))  # type: ignore[misc]
        return service

    async def start(self, deps: Deps) -> None:
        """Opens the port. Raises `BusyError`: somebody listens there already."""
        self._deps = deps
        self._broker = Broker(deps.events)
        self._connections = set()
        self._budget = MemoryBudget(MEMORY_BYTES, 2 * MAX_PAYLOAD_BYTES)
        server = StreamServer(PLUGIN, deps, self._serve, most=MAX_STREAMS, most_per_peer=MAX_STREAMS_PER_PEER)
        await server.start(self._port)
        self._server = server

    async def stop(self) -> None:
        """Frees the port and ends every stream in order. What waits for slow subscribers is lost to them."""
        server, self._server = self._server, None
        if server is not None:
            for connection in list(self._connections):
                connection.end()
            await server.stop(STOP_SECONDS)

    @property
    def client(self) -> EventStreamClient:
        """Subscribes and publishes at other nodes. Raises `ServiceNotReadyError` while the service does not run."""
        deps = self._running()[0]
        return EventStreamClient(deps.streams, deps.resolver, port=self._port)

    def broadcast(self, topic: str, payload: Buffer | str = b"") -> int:
        """Publishes to the subscribers of this node; for how many it was queued. No rate or policy applies to it.

        Raises:
            InvalidValueError: topic or payload is too long, or the topic is the reserved one.
            ServiceNotReadyError: the service does not run.
        """
        deps, broker = self._running()
        data = payload.encode() if isinstance(payload, str) else bytes(payload)
        encode_event(topic, data)
        return broker.publish(StreamEvent(topic, data), None, f"{deps.identity.address}:{self._port}", 0.0, True)

    async def _serve(self, stream: Stream) -> None:
        deps, broker = self._running()
        connection = _Connection(stream, broker, deps.events, self._budget, self._may_subscribe, self._may_publish)
        self._connections.add(connection)
        try:
            await connection.run()
        except InvalidValueError as error:
            deps.logger.debug("the stream of %s ends: %s", stream.remote_addr, error)
        finally:
            self._connections.discard(connection)

    def _running(self) -> tuple[Deps, Broker]:
        if self._deps is None or self._broker is None or self._server is None:
            raise ServiceNotReadyError("the event stream does not run: start its node first")
        return self._deps, self._broker

    def _count(self, counter: str) -> int:
        return 0 if self._broker is None else int(getattr(self._broker, counter))


class _Connection:
    """One stream at the broker: its subscription, then events in and events out, until either end has enough."""

    def __init__(
        self,
        stream: Stream,
        broker: Broker,
        events: EventBus,
        budget: MemoryBudget,
        may_subscribe: TopicPolicy,
        may_publish: TopicPolicy,
    ) -> None:
        self._stream = stream
        self._addr = stream.remote_addr
        self._remote = f"{stream.remote_addr}:{stream.remote_port}"
        self._broker = broker
        self._events = events
        self._budget = budget
        self._may_subscribe = may_subscribe
        self._may_publish = may_publish
        self._loop = asyncio.get_running_loop()
        self._ended = self._loop.create_future()
        self._wanted = asyncio.Event()
        self._subscriber: Subscriber | None = None

    def end(self) -> None:
        """Has `run` return."""
        if not self._ended.done():
            self._ended.set_result(None)

    async def run(self) -> None:
        """Serves until the peer ends the stream. Raises what ended it otherwise, `ResetError` for a slow subscriber."""
        tasks = [
            asyncio.create_task(self._read(), name=f"{PLUGIN} read {self._remote}"),
            asyncio.create_task(self._send(), name=f"{PLUGIN} send {self._remote}"),
        ]
        try:
            await asyncio.wait([*tasks, self._ended], return_when=asyncio.FIRST_COMPLETED)
        finally:
            if self._subscriber is not None:
                self._broker.unsubscribe(self._subscriber)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        if self._subscriber is not None and self._subscriber.removed:
            raise ResetError(f"{self._remote} takes its events too slowly")
        for task in tasks:
            if not task.cancelled():
                task.result()

    async def _read(self) -> None:
        first = await self._next_event(FRAME_SECONDS)
        if first is None:
            return
        if not self._may_subscribe(self._addr, first.topic):
            self._events.publish("pubsub.subscribe_denied", {"topic": first.topic, "remote": self._remote})
            return
        now = self._loop.time()
        self._subscriber = subscriber = self._broker.subscribe(first.topic, self._remote, self._on_change, now)
        while (event := await self._next_event(None)) is not None:
            allowed = self._may_publish(self._addr, event.topic)
            self._broker.publish(event, subscriber, self._remote, self._loop.time(), allowed)

    async def _next_event(self, seconds: float | None) -> StreamEvent | None:
        with self._budget.lease(self._addr.node) as lease:
            return await read_event_untrusted(self._stream, lease, FRAME_SECONDS, first_seconds=seconds)

    def _on_change(self) -> None:
        self._wanted.set()
        if self._subscriber is not None and self._subscriber.removed:
            self.end()

    async def _send(self) -> None:
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            while self._subscriber is not None and (frame := self._broker.taken(self._subscriber)) is not None:
                self._stream.set_write_deadline(self._loop.time() + SLOW_SECONDS)
                await self._stream.write(frame)
