"""`Identity`: who a node is and how it proves it, as plugins see it (L10)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from pilot._fast.addr import Addr

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["Identity"]


@runtime_checkable
class Identity(Protocol):
    """A node's Ed25519 key pair, its node id and its address.

    Plugins may sign anything with it but can neither replace it nor read the private key.
    Source: seed `coreapi.Identity`.
    """

    @property
    def node_id(self) -> int:
        """The id the registry gave this node (1..2^32-2), or 0 before the first registration.

        It can change when a registry lost its state and hands out ids anew: read it when needed, do not keep it.
        """
        ...

    @property
    def address(self) -> Addr:
        """The node's address on the backbone (network 0), or the zero address before the first registration."""
        ...

    @property
    def public_key(self) -> bytes:
        """The raw Ed25519 public key, 32 bytes. It changes when the key is rotated."""
        ...

    def sign(self, msg: Buffer) -> bytes:
        """The 64-byte Ed25519 signature over `msg` by the present key. Never waits."""
        ...
