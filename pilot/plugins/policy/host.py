"""What the plugin needs from its node beyond `Deps`: networks, handshakes, clocks, a directory (plugin policy, L11)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from random import Random
from typing import Protocol

from pilot.coreapi import Service

__all__ = ["Handshakes", "Member", "NetworkEntry", "NetworkRegistry", "Networks", "PolicyHost", "TrustedPeer"]


class Member(Protocol):
    """A member of a network, as its registry lists it."""

    @property
    def node_id(self) -> int:
        """The node."""
        ...

    @property
    def member_tags(self) -> tuple[str, ...]:
        """What the network's administrators call it."""
        ...


class NetworkEntry(Protocol):
    """A network in the registry's list."""

    @property
    def network_id(self) -> int:
        """The network."""
        ...

    @property
    def rules(self) -> str:
        """The rules of a managed network (services.md 9.9) as JSON, empty for others."""
        ...


class NetworkRegistry(Protocol):
    """What the registry tells about networks."""

    async def list_networks(self) -> Sequence[NetworkEntry]:
        """All networks. Raises `RegistryError`."""
        ...


class Networks(Protocol):
    """The networks this node is in."""

    def ids(self) -> Sequence[int]:
        """Their ids, without the backbone."""
        ...

    async def synced(self) -> None:
        """Returns when they are known from the registry."""
        ...

    async def members(self, network_id: int) -> Sequence[Member]:
        """All members of a network, this node included, asked of the registry now. Raises `RegistryError`."""
        ...

    async def policy_text(self, network_id: int) -> str | None:
        """The policy document of a network, None where it has none. Raises `RegistryError`."""
        ...


class TrustedPeer(Protocol):
    """A node that this one trusts."""

    @property
    def node_id(self) -> int:
        """The node."""
        ...

    @property
    def approved_at(self) -> float:
        """Since when, unix seconds."""
        ...


class Handshakes(Protocol):
    """The trust of this node, as the handshake plugin keeps it."""

    def trusted(self) -> Sequence[TrustedPeer]:
        """Everybody trusted now."""
        ...

    def distrusted(self) -> Collection[int]:
        """The nodes whose trust the user has revoked; no rule asks them for it."""
        ...

    async def request(self, node_id: int, justification: str = "") -> object:
        """Asks a node for trust. Raises `PilotError` or `TimeoutError`."""
        ...

    async def revoke(self, node_id: int, *, automatic: bool) -> None:
        """Ends the trust in a node; `automatic`: not the user does. Raises `PilotError` or `TimeoutError`."""
        ...


class PolicyHost(Protocol):
    """What the node offers; `pilot.node` has an object that fits."""

    @property
    def state_dir(self) -> Path | None:
        """Where the files go; None: nowhere."""
        ...

    @property
    def registry(self) -> NetworkRegistry:
        """The registry's calls."""
        ...

    @property
    def networks(self) -> Networks:
        """The networks this node is in."""
        ...

    @property
    def service(self) -> Callable[[str], Service]:
        """Another plugin by name; raises `ServiceNotReadyError` where it does not run."""
        ...

    @property
    def add_counter(self) -> Callable[[str, Callable[[], int]], None]:
        """Shows a number among the node's counters."""
        ...

    @property
    def clock(self) -> Callable[[], float]:
        """Monotonic seconds."""
        ...

    @property
    def wall(self) -> Callable[[], float]:
        """Unix seconds."""
        ...

    @property
    def random(self) -> Random:
        """Whom to pick."""
        ...
