"""X25519 pairs per peer, the session key they derive, and memory of keys that are refused (tunnel, L4).

A pair makes at most one session with any peer key. The wire derives one AES key for both directions from two X25519
keys and nothing else, so a second session from the same two would repeat the key with a forgotten replay window:
recorded frames would open again. With a fresh pair they never do, and whatever decrypts proves that the peer is live.
"""

from __future__ import annotations

from random import Random

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from pilot.tunnel.frames import FrameError, encode_pila, encode_pilk, signed_message
from pilot.tunnel.interfaces import TunnelIdentity

KDF_INFO = b"pilot-tunnel-v1"
MAX_SESSIONS_PER_PAIR = 64
"""Peer keys one pair may meet before it is replaced: bounds what is remembered about it."""


class KeyPair:
    """One X25519 pair of ours, made for one peer, and the PILA that announces it."""

    __slots__ = ("_met", "_pila", "_private", "public", "spent")

    def __init__(self, private: bytes) -> None:
        self._private: X25519PrivateKey | None = X25519PrivateKey.from_private_bytes(private)
        self.public = self._private.public_key().public_bytes_raw()
        self.spent = False
        self._met: set[bytes] = set()
        self._pila: tuple[int, bytes] = (0, b"")

    @classmethod
    def generate(cls, random: Random) -> KeyPair:
        """A new pair from the randomness handed in."""
        return cls(random.randbytes(32))

    @property
    def unused(self) -> bool:
        """Whether it may still be announced as new: no session was made with it and no cycle failed with it."""
        return not self._met and not self.spent

    def fits(self, peer_public: bytes) -> bool:
        """Whether a session with this peer key may be made: not a second one, and not one too many."""
        return peer_public not in self._met and len(self._met) < MAX_SESSIONS_PER_PAIR

    def session_key_untrusted(self, peer_public: bytes) -> bytes:
        """The AES-256 key shared with the owner of `peer_public`; `FrameError` for a low-order point."""
        if self._private is None:
            raise FrameError("the pair has been wiped")
        try:
            shared = self._private.exchange(X25519PublicKey.from_public_bytes(peer_public))
        except ValueError:
            raise FrameError("low-order X25519 point") from None
        self._met.add(peer_public)
        return HKDF(SHA256(), 32, salt=None, info=KDF_INFO).derive(shared)

    def pila(self, node: int, identity: TunnelIdentity) -> bytes:
        """The PILA that announces this pair; signed once per node id."""
        if self._pila[0] != node or not self._pila[1]:
            signature = identity.sign(signed_message(node, self.public))
            self._pila = (node, encode_pila(node, self.public, identity.public_key, signature))
        return self._pila[1]

    def pilk(self, node: int) -> bytes:
        """The PILK that announces this pair."""
        return encode_pilk(node, self.public)

    def wipe(self) -> None:
        """Drop the private half (OpenSSL clears it when it frees it)."""
        self._private = None

    def __repr__(self) -> str:
        return f"<KeyPair {self.public[:4].hex()}>"


class RefusedKeys:
    """X25519 keys that a PILA may not install any more, per peer, each until a time; both dimensions bounded."""

    def __init__(self, nodes: int, per_node: int) -> None:
        self._max_nodes = nodes
        self._max_per_node = per_node
        self._nodes: dict[int, dict[bytes, float]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._nodes.values()))

    def add(self, node: int, key: bytes, until: float) -> None:
        """Refuse `key` of `node` until then."""
        keys = self._nodes.pop(node, {})
        keys[key] = until
        if len(keys) > self._max_per_node:
            del keys[min(keys, key=keys.__getitem__)]
        self._nodes[node] = keys
        if len(self._nodes) > self._max_nodes:
            del self._nodes[next(iter(self._nodes))]

    def refuses(self, node: int, key: bytes, now: float) -> bool:
        """Whether `key` of `node` is refused now."""
        return now < self._nodes.get(node, {}).get(key, 0.0)
