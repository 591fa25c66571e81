"""What the tunnel needs of its neighbours, as protocols: datapath and peers below, node above (tunnel, L4-5).

The compiled datapath and a fake in the tests both fit; the tunnel imports neither.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

from pilot._fast.seal import Session

Address = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Resolved:
    """What the registry says about reaching a node: its address, its LAN addresses, and whether it hides."""

    address: Address | None
    lan: tuple[Address, ...] = ()
    relay_only: bool = False


class ContactState(Enum):
    """How far the contact with a peer is; the values are the words for a timeout message."""

    RESOLVING = "resolve"
    EXCHANGING = "key exchange"
    READY = "ready"
    COOLING = "key exchange given up"


class TunnelIdentity(Protocol):
    """The node's Ed25519 identity."""

    @property
    def public_key(self) -> bytes:
        """The 32 raw bytes registered under the node id."""

    def sign(self, message: bytes) -> bytes:
        """The 64-byte Ed25519 signature of `message`."""


class TunnelHooks(Protocol):
    """What the node does for the tunnel. Every method returns at once and may call back into the tunnel."""

    def lookup_key(self, node: int) -> None:
        """Ask the registry for the Ed25519 key of `node`; answered by `Tunnel.key_found`."""

    def resolve(self, node: int) -> None:
        """Ask the registry where `node` is; answered by `Tunnel.resolved`."""

    def is_trusted(self, node: int) -> bool:
        """Whether `node` is trusted, from local knowledge."""

    def publish(self, topic: str, payload: dict[str, object]) -> None:
        """Put an event on the node's bus."""

    def session_ready(self, node: int) -> None:
        """A session with `node` was installed."""

    def contact_failed(self, node: int, reason: str) -> None:
        """The contact with `node` came to nothing; `reason` is a phrase for an error message."""

    def poll_handshakes(self) -> None:
        """The beacon says that the registry's mailbox holds a handshake for this node."""

    def address_changed(self, reason: str, previous: str, current: str, peers_notified: int) -> None:
        """The own address changed (`local_address` or `observed_endpoint`): register anew, then publish
        `tunnel.addr_changed` with `registry_ok`. Beacon and peers have been told already."""


class PeerLike(Protocol):
    """The fields of `pilot._fast.peer.Peer` the tunnel reads and writes."""

    address: Address | None
    relay: bool
    segment_bytes: int
    watched: bool

    @property
    def node(self) -> int: ...
    @property
    def session(self) -> Session | None: ...
    @property
    def last_sent(self) -> float: ...
    @property
    def last_heard(self) -> float: ...
    @property
    def last_heard_direct(self) -> float: ...
    @property
    def last_used(self) -> float: ...
    @property
    def open_streams(self) -> int: ...
    @property
    def pending_packets(self) -> int: ...


class VerdictLike(Protocol):
    """A member of `pilot._fast.seal.Verdict`."""

    @property
    def name(self) -> str: ...


class DatapathLike(Protocol):
    """The part of `pilot._fast.datapath.Datapath` the tunnel drives."""

    own_node: int
    beacon: Address | None
    relay_only: bool

    def peer(self, node: int, /) -> PeerLike | None: ...
    def add_peer(self, node: int, /) -> PeerLike: ...
    def remove_peer(self, node: int, /) -> None: ...
    def peers(self) -> list[Any]: ...
    def install_session(self, peer: Any, session: Session, now: float, *, keep_previous: float = 0.0) -> None: ...
    def resend_datagrams(self, peer: Any, since: float, now: float, /) -> int: ...
    def drop_session(self, peer: Any, /) -> None: ...
    def use_direct(self, peer: Any, now: float, /) -> None: ...
    def send_frame(self, frame: bytes, address: Address, /) -> None: ...
    def send_relayed(self, frame: bytes, node: int, /) -> None: ...
    def send_control(
        self,
        peer: Any,
        flags: int,
        source_port: int,
        port: int,
        seq: int,
        payload: bytes,
        now: float,
        *,
        direct: bool = False,
        zero_destination: bool = False,
    ) -> bool: ...
    def set_control_deadline(self, deadline: float, /) -> None: ...
