"""What the handshake plugin needs beyond `Deps`, as Protocols; a node's facilities fit them (plugin handshake, L11)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from pathlib import Path

    from pilot.coreapi import TrustMatch

__all__ = [
    "HandshakeHost",
    "KeyedTrustChecker",
    "Mailbox",
    "NodeRecord",
    "Registry",
    "RelayedRequest",
    "RelayedResponse",
]


class NodeRecord(Protocol):
    """What the registry says of a node."""

    @property
    def public_key(self) -> bytes | None:
        """Its raw Ed25519 key, None where the registry has none."""
        ...

    @property
    def networks(self) -> Sequence[int]:
        """The networks it is a member of."""
        ...


class RelayedRequest(Protocol):
    """A request that came through the mailbox; the registry has checked who sent it."""

    @property
    def from_node_id(self) -> int:
        """Who asks."""
        ...

    @property
    def justification(self) -> str:
        """Why, in the requester's words."""
        ...


class RelayedResponse(Protocol):
    """An answer that came through the mailbox."""

    @property
    def from_node_id(self) -> int:
        """Who answers."""
        ...

    @property
    def accept(self) -> bool:
        """The decision."""
        ...


class Mailbox(Protocol):
    """What a poll brought."""

    @property
    def requests(self) -> Sequence[RelayedRequest]:
        """Who wants to be trusted."""
        ...

    @property
    def responses(self) -> Sequence[RelayedResponse]:
        """What those said whom this node asked."""
        ...


class Registry(Protocol):
    """The registry's calls; each raises `RegistryError`, where it says so `PeerNotFoundError`, and `ClosedError`."""

    async def lookup(self, node_id: int, *, max_age: float | None = None) -> NodeRecord:
        """The record of a node, at most `max_age` seconds old; `PeerNotFoundError` where there is none."""
        ...

    async def request_handshake(self, peer_id: int, justification: str = "") -> None:
        """Leaves a request in the mailbox of a node; `PeerNotFoundError` where there is none."""
        ...

    async def poll_handshakes(self) -> Mailbox:
        """Takes everything out of this node's mailbox."""
        ...

    async def respond_handshake(self, peer_id: int, accept: bool) -> bool:
        """Answers through the mailbox; False when the registry knows of no such request."""
        ...

    async def report_trust(self, peer_id: int) -> None:
        """Makes the pair known."""
        ...

    async def revoke_trust(self, peer_id: int) -> None:
        """Takes the pair back; fine when there is none."""
        ...


class HandshakeHost(Protocol):
    """What whoever composes the node passes in; one object for one run of a node."""

    @property
    def state_dir(self) -> Path | None:
        """Where `trust.json` lives; None: nothing is kept."""
        ...

    @property
    def registry(self) -> Registry:
        """The registry's calls."""
        ...

    @property
    def add_trust_source(self) -> Callable[[Callable[[int], bool]], None]:
        """Has the trust gate ask one more function whether a node is trusted."""
        ...

    @property
    def on_mailbox(self) -> Callable[[Callable[[], None]], None]:
        """Has a function called when the mailbox is known to hold something."""
        ...

    @property
    def drop_tunnel(self) -> Callable[[int], None]:
        """Ends the encrypted session with a node."""
        ...

    @property
    def add_counter(self) -> Callable[[str, Callable[[], int]], None]:
        """Shows a number in the node's statistics."""
        ...

    @property
    def clock(self) -> Callable[[], float]:
        """Monotonic seconds."""
        ...

    @property
    def wall(self) -> Callable[[], float]:
        """Unix seconds."""
        ...


@runtime_checkable
class KeyedTrustChecker(Protocol):
    """A `TrustChecker` that also honours the keys pinned in its list (services.md 10.6)."""

    def is_trusted_with_key(self, node_id: int, key: bytes) -> TrustMatch:
        """Whether the node is on the list, and `key` the one pinned there if any is."""
        ...
