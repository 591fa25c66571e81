"""A registry in memory, and handshake services on the plugin tests' fake network (test support)."""

from __future__ import annotations

import asyncio
import random
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pilot.coreapi import Deps, PeerNotFoundError, RegistryError, TrustChecker
from pilot.plugins.handshake import HandshakeService
from pilot.plugins.handshake.message import Message, MessageType, encode, signed_text
from tests.plugins.fakes import Identity, Network


@dataclass(frozen=True)
class Record:
    public_key: bytes | None
    networks: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class Asked:
    from_node_id: int
    justification: str


@dataclass(frozen=True)
class Answered:
    from_node_id: int
    accept: bool


@dataclass
class Box:
    requests: list[Asked] = field(default_factory=list)
    responses: list[Answered] = field(default_factory=list)


class FakeRegistry:
    """The registry of every node; `for_node` gives the calls of one. `down` makes all of them fail."""

    def __init__(self) -> None:
        self.records: dict[int, Record] = {}
        self.boxes: defaultdict[int, Box] = defaultdict(Box)
        self.pairs: set[frozenset[int]] = set()
        self.down = False
        self.lookups = 0
        self.polls = 0

    def add(self, node_id: int, *networks: int) -> None:
        self.records[node_id] = Record(Identity(node_id).public_key, (0, *networks))

    def for_node(self, node_id: int) -> Calls:
        return Calls(self, node_id)


class Calls:
    def __init__(self, registry: FakeRegistry, node_id: int) -> None:
        self.all = registry
        self.node_id = node_id

    def _check(self) -> None:
        if self.all.down:
            raise RegistryError("the registry cannot be reached")

    async def lookup(self, node_id: int, *, max_age: float | None = None) -> Record:
        self._check()
        self.all.lookups += 1
        if node_id not in self.all.records:
            raise PeerNotFoundError(f"no node {node_id}")
        return self.all.records[node_id]

    async def request_handshake(self, peer_id: int, justification: str = "") -> None:
        self._check()
        if peer_id not in self.all.records:
            raise PeerNotFoundError(f"no node {peer_id}")
        self.all.boxes[peer_id].requests.append(Asked(self.node_id, justification))

    async def poll_handshakes(self) -> Box:
        self._check()
        self.all.polls += 1
        return self.all.boxes.pop(self.node_id, Box())

    async def respond_handshake(self, peer_id: int, accept: bool) -> bool:
        self._check()
        self.all.boxes[peer_id].responses.append(Answered(self.node_id, accept))
        if accept:
            self.all.pairs.add(frozenset({self.node_id, peer_id}))
        return True

    async def report_trust(self, peer_id: int) -> None:
        self._check()
        self.all.pairs.add(frozenset({self.node_id, peer_id}))

    async def revoke_trust(self, peer_id: int) -> None:
        self._check()
        self.all.pairs.discard(frozenset({self.node_id, peer_id}))


class FakeHost:
    """Fits `HandshakeHost`; keeps what the service did to it."""

    def __init__(self, calls: Calls, state_dir: Path | None = None, wall: Callable[[], float] = time.time) -> None:
        self.state_dir = state_dir
        self.registry = calls
        self.trust_sources: list[Callable[[int], bool]] = []
        self.add_trust_source = self.trust_sources.append
        self.mailbox: list[Callable[[], None]] = []
        self.on_mailbox = self.mailbox.append
        self.dropped: list[int] = []
        self.drop_tunnel = self.dropped.append
        self.counters: dict[str, Callable[[], int]] = {}
        self.add_counter = self.counters.__setitem__
        self.clock = asyncio.get_running_loop().time
        self.wall = wall
        self.random = random.Random(1)


class Stage:
    """A network, a registry, and services by node id."""

    def __init__(self) -> None:
        self.network = Network()
        self.registry = FakeRegistry()
        self.hosts: dict[int, FakeHost] = {}
        self.deps: dict[int, Deps] = {}

    @asynccontextmanager
    async def service(
        self,
        node_id: int,
        *,
        networks: tuple[int, ...] = (),
        agents: TrustChecker | None = None,
        state_dir: Path | None = None,
        wall: Callable[[], float] = time.time,
        **options: Any,
    ) -> AsyncIterator[HandshakeService]:
        self.registry.add(node_id, *networks)
        self.hosts[node_id] = host = FakeHost(self.registry.for_node(node_id), state_dir, wall)
        self.deps[node_id] = deps = self.network.deps(node_id, "handshake", agents)
        service = HandshakeService.for_node(host, **options)
        await service.start(deps)
        try:
            yield service
        finally:
            await service.stop()


def message(sender: int, receiver: int, kind: str = MessageType.REQUEST, **changes: Any) -> bytes:
    """A message as `sender` would send it, but for `changes`."""
    identity = Identity(changes.pop("key_of", sender))
    fields = {
        "type": kind,
        "node_id": sender,
        "public_key": identity.public_key,
        "signature": identity.sign(signed_text(sender, receiver)),
        "timestamp": int(time.time()),
        **changes,
    }
    return encode(Message(**fields))


async def poll(service: HandshakeService) -> None:
    """Reads the mailbox now, however lately that was done."""
    assert service._life is not None
    service._life.mailbox._last -= 10
    await service.refresh()
