"""Mutual authentication inside a secure channel: the frame each end sends, and how it is judged (plugin policy, L11).

Source: services.md 5.4.
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from pilot.coreapi import InvalidValueError, PilotError
from pilot.plugins.secure.replay import ReplayCache

if TYPE_CHECKING:
    from pilot.coreapi import Addr, Identity

__all__ = ["ANY_NODE", "FRAME_BYTES", "AuthFrame", "Authentication", "KeyLookup"]

KeyLookup = Callable[[int], Awaitable[bytes | None]]
"""Node id to Ed25519 public key, None where there is none."""

ANY_NODE: Final = 0
FRAME_BYTES: Final = 92
SIGNED_BYTES: Final = 28
CONTEXT: Final = b"pilot-secure-auth:"
MAX_CLOCK_DIFFERENCE: Final = 5


class AuthFrame(NamedTuple):
    """Node id (u32), Unix seconds (u64), nonce (16), signature (64)."""

    node_id: int
    timestamp: int
    nonce: bytes
    signature: bytes

    @classmethod
    def parse_untrusted(cls, data: bytes) -> AuthFrame:
        """`data` as a frame, nothing of it judged.

        Raises:
            InvalidValueError: it has not 92 bytes.
        """
        if len(data) != FRAME_BYTES:
            raise InvalidValueError(f"an authentication frame has {FRAME_BYTES} bytes, this one {len(data)}")
        node_id, timestamp = int.from_bytes(data[:4], "big"), int.from_bytes(data[4:12], "big")
        return cls(node_id, timestamp, data[12:SIGNED_BYTES], data[SIGNED_BYTES:])

    def pack(self) -> bytes:
        """The 92 bytes."""
        return self.node_id.to_bytes(4, "big") + self.timestamp.to_bytes(8, "big") + self.nonce + self.signature

    def signed(self, exchange_key: bytes) -> bytes:
        """What the signature covers, the signer's own X25519 public key of this channel among it."""
        node_id, timestamp = self.node_id.to_bytes(4, "big"), self.timestamp.to_bytes(8, "big")
        return CONTEXT + node_id + exchange_key + timestamp + self.nonce


def random_nonce() -> bytes:
    """16 bytes from the system."""
    return os.urandom(16)


@dataclass(frozen=True)
class Authentication:
    """How this end proves who it is, and whom it accepts. May be shared by all channels of a node.

    The peer's key is `peer_key`, or what `lookup` finds for the node id in its frame; one of the two must be given.
    """

    identity: Identity
    peer_key: bytes | None = None
    lookup: KeyLookup | None = None
    peer_node: int | None = None
    """The node id the peer must have. None: that of the other end of the stream, whoever may be there. `ANY_NODE`: no
    matter which, for streams through a proxy; `SecureChannel.peer_node_id` then says who it is."""
    wall: Callable[[], float] = time.time
    """Unix seconds. A peer's clock may differ by 5 s."""
    replays: ReplayCache = field(default_factory=lambda: ReplayCache(time.monotonic))
    nonce: Callable[[], bytes] = random_nonce

    def __post_init__(self) -> None:
        if (self.peer_key is None) == (self.lookup is None):
            raise InvalidValueError("authentication needs either the key of the peer or a lookup for it")
        if self.peer_key is not None and len(self.peer_key) != 32:
            raise InvalidValueError(f"an Ed25519 public key has 32 bytes, this one {len(self.peer_key)}")

    def frame(self, exchange_key: bytes) -> bytes:
        """Our frame for the channel in which we use the X25519 public key `exchange_key`.

        Raises:
            InvalidValueError: this node has no id yet.
        """
        node_id = self.identity.node_id
        if not node_id:
            raise InvalidValueError("this node cannot authenticate itself before it is registered")
        unsigned = AuthFrame(node_id, int(self.wall()), self.nonce(), b"")
        return unsigned._replace(signature=self.identity.sign(unsigned.signed(exchange_key))).pack()

    async def check_untrusted(self, data: bytes, exchange_key: bytes, remote: Addr) -> int:
        """The node id of the peer whose frame is `data` and whose X25519 public key is `exchange_key`.

        Raises:
            PilotError: it has not proved to be who we talk to; the text says why, in the official words where there are
                some.
            Whatever `lookup` raises.
        """
        frame = AuthFrame.parse_untrusted(data)
        ahead = frame.timestamp - int(self.wall())
        if abs(ahead) > MAX_CLOCK_DIFFERENCE:
            raise PilotError(f"auth timestamp of node {frame.node_id} is {ahead} s ahead: set the clocks of both ends")
        expected = remote.node if self.peer_node is None else self.peer_node
        if expected != ANY_NODE and frame.node_id != expected:
            raise PilotError(f"auth frame of node {frame.node_id} instead of node {expected}")
        key = self.peer_key if self.lookup is None else await self.lookup(frame.node_id)
        if key is None:
            raise PilotError(f"unknown peer node {frame.node_id}: no public key found")
        try:
            Ed25519PublicKey.from_public_bytes(key).verify(frame.signature, frame.signed(exchange_key))
        except (InvalidSignature, ValueError):
            raise PilotError("auth signature verification failed") from None
        self.replays.add(frame.node_id, frame.nonce)
        return frame.node_id
