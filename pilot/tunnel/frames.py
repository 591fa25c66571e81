"""The key-exchange frames PILA and PILK and the punch PILP: build and parse (tunnel, L4; wire.md 4)."""

from __future__ import annotations

import struct
from typing import NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

PUNCH = b"PILP"
"""The whole punch frame as 1.18.0 sends it; its only purpose is to open a NAT mapping."""

_PILA = struct.Struct(">4sI32s32s64s")
_PILK = struct.Struct(">4sI32s")


class FrameError(ValueError):
    """Bytes from the network that are no acceptable key exchange."""


class Pila(NamedTuple):
    """An authenticated key exchange: `ed25519` signed that `node` uses `x25519`. Not yet verified by anybody."""

    node: int
    x25519: bytes
    ed25519: bytes
    signature: bytes


class Pilk(NamedTuple):
    """An unauthenticated key exchange, taken for nothing but the request to send a PILA."""

    node: int
    x25519: bytes


def signed_message(node: int, x25519: bytes) -> bytes:
    """The 40 bytes a PILA signs."""
    return b"auth" + node.to_bytes(4, "big") + x25519


def encode_pila(node: int, x25519: bytes, ed25519: bytes, signature: bytes) -> bytes:
    """The 136-byte PILA."""
    return _PILA.pack(b"PILA", node, x25519, ed25519, signature)


def encode_pilk(node: int, x25519: bytes) -> bytes:
    """The 40-byte PILK."""
    return _PILK.pack(b"PILK", node, x25519)


def parse_exchange_untrusted(frame: bytes) -> Pila | Pilk:
    """The fields of a PILA or PILK, trailing bytes ignored; `FrameError` for any other or shorter frame."""
    if frame[:4] == b"PILA" and len(frame) >= _PILA.size:
        return Pila(*_PILA.unpack_from(frame)[1:])
    if frame[:4] == b"PILK" and len(frame) >= _PILK.size:
        return Pilk(*_PILK.unpack_from(frame)[1:])
    raise FrameError("no complete PILA or PILK")


def signature_holds_untrusted(pila: Pila) -> bool:
    """Whether the frame's own Ed25519 key signed it; who owns that key is the registry's word."""
    try:
        Ed25519PublicKey.from_public_bytes(pila.ed25519).verify(pila.signature, signed_message(pila.node, pila.x25519))
    except (InvalidSignature, ValueError):
        return False
    return True
