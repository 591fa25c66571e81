"""A node around a policy plugin, in memory and virtual time: networks, members, handshakes (test support)."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pilot.coreapi import RegistryError, ServiceNotReadyError
from pilot.plugins.policy import PolicyService
from pilot.plugins.policy.manager import Manager
from pilot.plugins.policy.runner import Runner
from pilot.testing import run
from tests.plugins import fakes

WALL = 1_764_000_000.5


@dataclass(frozen=True)
class Member:
    node_id: int
    member_tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Entry:
    network_id: int
    rules: str = ""


@dataclass(frozen=True)
class Trusted:
    node_id: int
    approved_at: float


@dataclass
class Networks:
    """What the registry has. `down` makes it fail; `asked` are the times members were asked for."""

    member_lists: dict[int, list[Member]] = field(default_factory=dict)
    policies: dict[int, str] = field(default_factory=dict)
    rules: dict[int, str] = field(default_factory=dict)
    down: bool = False
    asked: list[float] = field(default_factory=list)

    def ids(self) -> list[int]:
        return sorted(self.member_lists)

    async def synced(self) -> None:
        await asyncio.sleep(0.1)

    async def members(self, network_id: int) -> list[Member]:
        self.asked.append(asyncio.get_running_loop().time())
        self._check()
        return list(self.member_lists[network_id])

    async def policy_text(self, network_id: int) -> str | None:
        self._check()
        return self.policies.get(network_id)

    async def list_networks(self) -> list[Entry]:
        self._check()
        return [Entry(network_id, self.rules.get(network_id, "")) for network_id in self.member_lists]

    def _check(self) -> None:
        if self.down:
            raise RegistryError("the registry is down")


class Handshakes:
    """Trust by hand: `requested` and `revoked` are what was asked of it."""

    def __init__(self, trusted: dict[int, float]) -> None:
        self.records = trusted
        self.requested: list[tuple[int, str]] = []
        self.revoked: list[int] = []
        self.by_user: set[int] = set()
        self.failing: set[int] = set()

    def trusted(self) -> list[Trusted]:
        return [Trusted(node_id, at) for node_id, at in self.records.items()]

    def distrusted(self) -> set[int]:
        return self.by_user

    async def request(self, node_id: int, justification: str = "") -> None:
        await asyncio.sleep(0.01)
        if node_id in self.failing:
            raise RegistryError("no way")
        self.requested.append((node_id, justification))

    async def revoke(self, node_id: int, *, automatic: bool) -> None:
        assert automatic
        await asyncio.sleep(0.01)
        self.revoked.append(node_id)
        self.records.pop(node_id, None)


class World:
    """Node 2 with a policy plugin, in networks of `members`; everything it publishes is in `events`."""

    def __init__(self, state_dir: Path | None = None, seed: int = 1) -> None:
        self.state_dir = state_dir
        self.networks = self.registry = Networks()
        self.random = random.Random(seed)
        self.handshakes: Handshakes | None = Handshakes({})
        self.counters: dict[str, Callable[[], int]] = {}
        self.deps = fakes.Network().deps(2, "policy")
        self.events = fakes.published(self.deps)
        self.service = self.new_service()

    def new_service(self) -> PolicyService:
        """Another plugin of the same node."""
        return PolicyService.for_node(_Host(self))

    def clock(self) -> float:
        return asyncio.get_running_loop().time()

    def wall(self) -> float:
        return WALL + self.clock() - 1000.0

    def add_counter(self, name: str, read: Callable[[], int]) -> None:
        self.counters[name] = read

    def service_named(self, name: str) -> Any:
        if name != "handshake" or self.handshakes is None:
            raise ServiceNotReadyError(f"{name} does not run")
        return self.handshakes

    @property
    def manager(self) -> Manager:
        return self.service.manager

    def members(self, *node_ids: int, network: int = 5, **tags: list[str]) -> None:
        """Sets the members of a network, node 2 among them; `n3=["x"]` gives node 3 member tags."""
        self.networks.member_lists[network] = [
            Member(node_id, tuple(tags.get(f"n{node_id}", ()))) for node_id in sorted({2, *node_ids})
        ]

    async def started(self, document: bytes, network: int = 5) -> Runner:
        """The runner of a network with this document, its members known."""
        runner = self.manager.start(network, document)
        await fakes.settle()
        return runner

    def topics(self) -> list[str]:
        """The topics published since the last look."""
        return [topic for topic, _ in self.events.take()]

    def payloads(self, topic: str) -> list[dict[str, Any]]:
        """The payloads of that topic since the last look, whatever else came."""
        return [dict(payload) for each, payload in self.events.take() if each == topic]


class _Host:
    """What the plugin is given: `World` with `service` as nodes have it."""

    def __init__(self, world: World) -> None:
        self._world = world

    def __getattr__(self, name: str) -> Any:
        return getattr(self._world, "service_named" if name == "service" else name)


def in_world(scenario: Callable[[World], Awaitable[None]], world: World | None = None) -> None:
    """Runs `scenario` with the plugin of a `World` started, in virtual time."""

    async def main() -> None:
        made = world or World()
        await made.service.start(made.deps)
        try:
            await scenario(made)
        finally:
            await made.service.stop()
        assert len(asyncio.all_tasks()) == 1, "a task is left"

    run(main())
