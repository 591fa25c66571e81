"""`PeerInfo` and `PeerResolver`: the directory of nodes as plugins see it (L10)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from pilot._fast.addr import Addr

__all__ = ["PeerInfo", "PeerResolver"]


@dataclass(frozen=True, slots=True)
class PeerInfo:
    """What the directory tells about a node. Source: seed `coreapi.PeerInfo`.

    Nothing in it is proof: it is what the registry says, and the registry repeats what nodes told it.
    """

    node_id: int
    """1..2^32-2."""
    addr: Addr
    """On the backbone, or on the network that was listed."""
    endpoint: tuple[str, int] | None = None
    """The best-known UDP endpoint: an IP address (or a DNS name, if the node registered one) and a port."""
    pub_key: bytes | None = None
    """The raw Ed25519 public key, 32 bytes; None where the directory did not tell it."""
    public: bool = False
    """Whether strangers may resolve the node."""
    hostname: str = ""
    """The name it registered, or an empty string."""
    relay_only: bool = False
    """Whether the node wants to be reached through the beacon only; `endpoint` is then the beacon's."""


@runtime_checkable
class PeerResolver(Protocol):
    """Finds nodes. Answers may come from a cache.

    Cancelling any of these has no effect besides the answer not arriving. Source: seed `coreapi.PeerResolver`.
    """

    async def resolve(self, node_id: int) -> PeerInfo:
        """The record of a node, with its endpoint, as soon as the directory has answered.

        Raises:
            PeerNotFoundError: there is no such node, or it is private and this node may not see where it is.
            RegistryError: the directory could not be asked, or gave an unusable answer.
        """
        ...

    async def resolve_hostname(self, name: str) -> int:
        """The id of the node that registered `name`.

        Raises:
            PeerNotFoundError: nobody has that name, or its owner is private and this node may not see it.
            RegistryError: the directory could not be asked, or gave an unusable answer.
        """
        ...

    async def list_by_network(self, network_id: int) -> list[PeerInfo]:
        """The members of a network (1..65535) in the directory's order, those that are offline included.

        `addr` is their address on that network; keys are not part of a listing, so `pub_key` is None.

        Raises:
            RegistryError: the directory could not be asked, refuses to list that network (it always does so for the
                backbone, 0), or gave an unusable answer.
        """
        ...
