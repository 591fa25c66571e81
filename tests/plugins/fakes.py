"""Everything a plugin needs, in memory: streams with bounded buffers, listeners, identities, the compiled bus, `Deps`.

    network = Network()
    alice, bob = network.deps(1), network.deps(2)
    listener = await bob.streams.listen(7)
    stream = await alice.streams.dial(Addr(0, 2), 7)

Times are those of the running loop, so it works in virtual time (`pilot.testing.run`) as well.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pilot._fast.eventbus import EventBus
from pilot.coreapi import (
    Addr,
    BusyError,
    ClosedError,
    Deps,
    InvalidValueError,
    PeerInfo,
    PeerNotFoundError,
    RefusedError,
    ResetError,
    TrustChecker,
)

CAPACITY = 65536
FIRST_EPHEMERAL_PORT = 49152


class Identity:
    """A key that follows from the node id."""

    def __init__(self, node_id: int) -> None:
        self.node_id = node_id
        self.key = Ed25519PrivateKey.from_private_bytes(node_id.to_bytes(32, "big"))

    @property
    def address(self) -> Addr:
        return Addr(0, self.node_id)

    @property
    def public_key(self) -> bytes:
        return self.key.public_key().public_bytes_raw()

    def sign(self, msg: Any) -> bytes:
        return self.key.sign(bytes(msg))


class Pipe:
    """One direction: bytes written and not yet read, at most `capacity`."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.data = bytearray()
        self.ended = False
        self.error: Exception | None = None
        self.moved: set[asyncio.Future[None]] = set()

    def wake(self) -> None:
        for waiter in self.moved:
            if not waiter.done():
                waiter.set_result(None)

    async def wait(self, deadline: float | None) -> None:
        loop = asyncio.get_running_loop()
        waiter = loop.create_future()
        self.moved.add(waiter)
        try:
            async with asyncio.timeout_at(deadline):
                await waiter
        finally:
            self.moved.discard(waiter)


class Stream:
    """A `coreapi.Stream` end; `pipes` and `reset` let tests look inside and misbehave."""

    def __init__(self, incoming: Pipe, outgoing: Pipe, local: tuple[Addr, int], remote: tuple[Addr, int]) -> None:
        self.incoming = incoming
        self.outgoing = outgoing
        self.local_addr, self.local_port = local
        self.remote_addr, self.remote_port = remote
        self.written = 0
        self.closed = False
        self.was_reset = False
        self._reading = self._writing = False
        self._read_deadline: float | None = None
        self._write_deadline: float | None = None

    def _check(self) -> None:
        if self.closed:
            raise ClosedError("this end is closed")

    async def _fill(self, size: int) -> None:
        """Returns once `size` bytes are there or the peer has finished."""
        if self._reading:
            raise BusyError("another task is reading")
        self._reading = True
        try:
            while True:
                self._check()
                if len(self.incoming.data) >= size or (self.incoming.ended and not self.incoming.error):
                    return
                if self.incoming.error is not None:
                    raise self.incoming.error
                await self.incoming.wait(self._read_deadline)
        finally:
            self._reading = False

    def _take(self, size: int) -> bytes:
        taken = bytes(self.incoming.data[:size])
        del self.incoming.data[:size]
        self.incoming.wake()
        return taken

    async def read(self, max_bytes: int = 65536) -> bytes:
        if max_bytes < 1:
            raise InvalidValueError("ask for at least 1")
        await self._fill(1)
        return self._take(max_bytes)

    async def readexactly(self, n: int) -> bytes:
        # A real stream takes more than its window holds.
        self.incoming.capacity = max(self.incoming.capacity, n)
        self.incoming.wake()
        await self._fill(n)
        if len(self.incoming.data) < n:
            raise asyncio.IncompleteReadError(self._take(n), n)
        return self._take(n)

    async def read_into(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        data = await self.read(len(view))
        view[: len(data)] = data
        return len(data)

    async def write(self, data: Any) -> None:
        if self._writing:
            raise BusyError("another task is writing")
        self._writing = True
        rest = memoryview(bytes(data))
        try:
            while True:
                self._check()
                if self.outgoing.error is not None:
                    raise self.outgoing.error
                if self.outgoing.ended:
                    raise ClosedError("the peer has closed")
                room = max(0, self.outgoing.capacity - len(self.outgoing.data))
                self.outgoing.data += rest[:room]
                self.written += len(rest[:room])
                rest = rest[room:]
                self.outgoing.wake()
                if not rest:
                    return
                await self.outgoing.wait(self._write_deadline)
        finally:
            self._writing = False

    async def drain(self) -> None:
        while self.outgoing.data:
            self._check()
            if self.outgoing.error is not None:
                raise self.outgoing.error
            await self.outgoing.wait(self._write_deadline)

    async def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.outgoing.ended = True
            self.incoming.ended = True
            self.outgoing.wake()
            self.incoming.wake()

    def reset(self) -> None:
        """What a stream does that is left by an exception."""
        if not self.closed:
            self.closed = self.was_reset = True
            for pipe in (self.incoming, self.outgoing):
                pipe.data.clear()
                pipe.ended = True
                pipe.error = ResetError("the peer reset the stream")
                pipe.wake()

    def set_deadline(self, when: float | None) -> None:
        self.set_read_deadline(when)
        self.set_write_deadline(when)

    def set_read_deadline(self, when: float | None) -> None:
        self._read_deadline = when
        self.incoming.wake()

    def set_write_deadline(self, when: float | None) -> None:
        self._write_deadline = when
        self.outgoing.wake()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        chunk = await self.read()
        if not chunk:
            raise StopAsyncIteration
        return chunk

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if exc_type is None:
            await self.close()
        else:
            self.reset()


def stream_pair(
    dialer: int = 1, accepter: int = 2, port: int = 1000, capacity: int = CAPACITY
) -> tuple[Stream, Stream]:
    """Two ends of one stream: the dialer's and the accepter's."""
    there, back = Pipe(capacity), Pipe(capacity)
    ends = (Addr(0, dialer), FIRST_EPHEMERAL_PORT), (Addr(0, accepter), port)
    return Stream(back, there, ends[0], ends[1]), Stream(there, back, ends[1], ends[0])


class Listener:
    """A `coreapi.Listener`."""

    def __init__(self, network: Network, addr: Addr, port: int) -> None:
        self._network = network
        self.addr = addr
        self.port = port
        self.closed = False
        self._waiting: deque[Stream] = deque()
        self._news = asyncio.Event()

    def offer(self, stream: Stream) -> None:
        self._waiting.append(stream)
        self._news.set()

    async def accept(self) -> Stream:
        while not self._waiting:
            if self.closed:
                raise ClosedError("listener closed")
            self._news.clear()
            await self._news.wait()
        return self._waiting.popleft()

    async def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._network.listeners.pop((self.addr.node, self.port), None)
            while self._waiting:
                self._waiting.popleft().reset()
            self._news.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Stream:
        try:
            return await self.accept()
        except ClosedError:
            raise StopAsyncIteration from None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()


class Streams:
    """The `coreapi.Streams` of one node; `streams` are the ends it has dialed, `sent` its datagrams."""

    def __init__(self, network: Network, node_id: int) -> None:
        self.network = network
        self.node_id = node_id
        self.streams: list[Stream] = []
        self.sent: list[tuple[Addr, int, bytes]] = []
        self._ports = FIRST_EPHEMERAL_PORT

    async def dial(self, dst: Addr, port: int, *, timeout: float | None = None) -> Stream:
        if dst.node not in self.network.nodes:
            raise PeerNotFoundError(f"there is no node {dst.node}")
        if (dst.node, port) in self.network.silent:
            await asyncio.sleep(30.0 if timeout is None else timeout)
            raise TimeoutError(f"node {dst.node} does not answer")
        listener = self.network.listeners.get((dst.node, port))
        if listener is None:
            raise RefusedError(f"nobody listens on port {port} of node {dst.node}")
        self._ports += 1
        there, back = Pipe(self.network.capacity), Pipe(self.network.capacity)
        ends = (Addr(dst.network, self.node_id), self._ports), (dst, port)
        stream = Stream(back, there, ends[0], ends[1])
        self.streams.append(stream)
        listener.offer(Stream(there, back, ends[1], ends[0]))
        await asyncio.sleep(0)
        return stream

    async def listen(self, port: int) -> Listener:
        if port == 0:
            self._ports += 1
            port = self._ports
        if (self.node_id, port) in self.network.listeners:
            raise BusyError(f"port {port} is taken")
        made = self.network.listeners[self.node_id, port] = Listener(self.network, Addr(0, self.node_id), port)
        return made

    async def send_datagram(self, dst: Addr, port: int, data: Any) -> None:
        self.sent.append((dst, port, bytes(data)))


class Resolver:
    """A `coreapi.PeerResolver` that knows the nodes of the network; `names` and `members` are a test's to fill."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.names: dict[str, int] = {}
        self.members: dict[int, list[int]] = {}

    async def resolve(self, node_id: int) -> PeerInfo:
        if node_id not in self.network.nodes:
            raise PeerNotFoundError(f"there is no node {node_id}")
        return PeerInfo(node_id, Addr(0, node_id), pub_key=Identity(node_id).public_key)

    async def resolve_hostname(self, name: str) -> int:
        if name not in self.names:
            raise PeerNotFoundError(f"nobody is called {name}")
        return self.names[name]

    async def list_by_network(self, network_id: int) -> list[PeerInfo]:
        return [PeerInfo(node, Addr(network_id, node)) for node in self.members.get(network_id, [])]


class Network:
    """Nodes that can dial each other. Nodes in `silent`, with a port, never answer."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self.capacity = capacity
        self.nodes: set[int] = set()
        self.listeners: dict[tuple[int, int], Listener] = {}
        self.silent: set[tuple[int, int]] = set()

    def deps(self, node_id: int, name: str = "fake", trust: TrustChecker | None = None) -> Deps:
        """The dependencies of one plugin of node `node_id`, with a bus of its own."""
        self.nodes.add(node_id)
        return Deps(
            streams=Streams(self, node_id),
            identity=Identity(node_id),
            resolver=Resolver(self),
            events=EventBus(node_id=node_id),
            logger=logging.getLogger(f"pilot.plugin.{name}"),
            trust=trust,
        )


def published(deps: Deps, pattern: str = "") -> Published:
    """Collects what is published from now on."""
    return Published(deps.events.subscribe(pattern))


class Published:
    """Events as (topic, payload), in order."""

    def __init__(self, subscription: Any) -> None:
        self._subscription = subscription

    def take(self) -> list[tuple[str, Mapping[str, Any]]]:
        """Those since the last call."""
        return [(event.topic, event.payload) for event in self._subscription.get_all()]


async def settle(turns: int = 20) -> None:
    """Lets every task that can run do so."""
    for _ in range(turns):
        await asyncio.sleep(0)


async def eventually(condition: Any, seconds: float = 5.0) -> None:
    """Returns when `condition()` holds; fails when it does not in time."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.002)
