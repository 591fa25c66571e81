"""The key exchange that opens a secure channel (plugin, L11). Source: services.md 5.1-5.2."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from pilot.coreapi import PilotError
from pilot.plugins.secure.records import Role

if TYPE_CHECKING:
    from pilot.coreapi import Stream

__all__ = ["PORT", "Exchanged", "derive_untrusted", "exchange"]

PORT: Final = 443
HELLO_BYTES: Final = 32
KEY_INFO: Final = b"pilot-secure-v1"


class Exchanged(NamedTuple):
    """The outcome: the channel's AES key and both X25519 public keys."""

    key: bytes
    own: bytes
    peer: bytes

    def __repr__(self) -> str:
        """Without the key."""
        return f"<exchanged {self.own.hex()[:8]} for {self.peer.hex()[:8]}>"


async def exchange(stream: Stream, role: Role, private: X25519PrivateKey | None = None) -> Exchanged:
    """Sends our hello and reads the peer's, the client first. `private` is a new key unless a test brings one.

    Raises:
        PilotError: the peer's hello is no usable key.
        asyncio.IncompleteReadError: the peer finished instead.
        What `Stream.write` and `Stream.readexactly` raise.
    """
    private = private or X25519PrivateKey.generate()
    own = private.public_key().public_bytes_raw()
    if role is Role.CLIENT:
        await stream.write(own)
    peer = await stream.readexactly(HELLO_BYTES)
    key = derive_untrusted(private, peer)
    if role is Role.SERVER:
        await stream.write(own)
    return Exchanged(key, own, peer)


def derive_untrusted(private: X25519PrivateKey, peer: bytes) -> bytes:
    """The AES-256 key of a channel with whoever sent `peer`.

    Raises:
        PilotError: it is our own key thrown back, or one with which every secret is the same.
    """
    if peer == private.public_key().public_bytes_raw():
        raise PilotError("the peer sent this end's own key back")
    try:
        secret = private.exchange(X25519PublicKey.from_public_bytes(peer))
    except ValueError:
        raise PilotError("the peer sent a key that makes no secret") from None
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=KEY_INFO).derive(secret)
