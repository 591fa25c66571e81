"""Tunnel frames in plain Python: PILA, PILK, PILS, PILT and the session key, wire.md sections 4 and 5 (L4-L6)."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

PILA, PILK, PILS, PILP, PILT = b"PILA", b"PILK", b"PILS", b"PILP", b"PILT"
INFO = b"pilot-tunnel-v1"

_PILA = struct.Struct(">4sI32s32s64s")
_PILK = struct.Struct(">4sI32s")
_NONCE = struct.Struct(">4sQ")


class FrameError(ValueError):
    """Bytes that are no acceptable frame: wrong magic, too short, bad signature, low-order key or failed tag."""


@dataclass(frozen=True, slots=True)
class KeyExchange:
    """What a PILA or a PILK says; a PILK has no identity and no signature."""

    node: int
    x25519: bytes
    ed25519: bytes = b""
    signature: bytes = b""


@dataclass(frozen=True, slots=True)
class Opened:
    """A decrypted PILS."""

    sender: int
    prefix: bytes
    counter: int
    plaintext: bytes


def public_bytes(private: X25519PrivateKey | Ed25519PrivateKey) -> bytes:
    """Return the 32 raw bytes of the public half."""
    return private.public_key().public_bytes_raw()


def signed_bytes(node: int, x25519: bytes) -> bytes:
    """Return the 40 bytes a PILA signs."""
    return b"auth" + node.to_bytes(4, "big") + x25519


def encode_pila(node: int, x25519: bytes, identity: Ed25519PrivateKey) -> bytes:
    """Return a signed 136-byte PILA."""
    signature = identity.sign(signed_bytes(node, x25519))
    return _PILA.pack(PILA, node, x25519, public_bytes(identity), signature)


def decode_pila_untrusted(frame: bytes, registered_key: bytes) -> KeyExchange:
    """Return a PILA whose key is the registered one and whose signature holds; trailing bytes are ignored."""
    if len(frame) < _PILA.size or frame[:4] != PILA:
        raise FrameError("not a PILA")
    exchange = KeyExchange(*_PILA.unpack_from(frame)[1:])
    if exchange.ed25519 != registered_key:
        raise FrameError("not the registered key")
    try:
        Ed25519PublicKey.from_public_bytes(registered_key).verify(
            exchange.signature, signed_bytes(exchange.node, exchange.x25519)
        )
    except InvalidSignature:
        raise FrameError("bad signature") from None
    return exchange


def encode_pilk(node: int, x25519: bytes) -> bytes:
    """Return a 40-byte PILK."""
    return _PILK.pack(PILK, node, x25519)


def decode_pilk_untrusted(frame: bytes) -> KeyExchange:
    """Return what a PILK says; trailing bytes are ignored."""
    if len(frame) < _PILK.size or frame[:4] != PILK:
        raise FrameError("not a PILK")
    return KeyExchange(*_PILK.unpack_from(frame)[1:])


def session_key(own: X25519PrivateKey, peer: bytes) -> bytes:
    """Return the AES-256 key both ends share; FrameError for a low-order point."""
    try:
        shared = own.exchange(X25519PublicKey.from_public_bytes(peer))
    except ValueError:
        raise FrameError("low-order point") from None
    return HKDF(SHA256(), 32, salt=None, info=INFO).derive(shared)


def seal(key: bytes, sender: int, prefix: bytes, counter: int, plaintext: bytes) -> bytes:
    """Return a PILS; the additional data are the 4 bytes of the sender id."""
    sender_id = sender.to_bytes(4, "big")
    nonce = _NONCE.pack(prefix, counter)
    return PILS + sender_id + nonce + AESGCM(key).encrypt(nonce, plaintext, sender_id)


def open_untrusted(key: bytes, frame: bytes) -> Opened:
    """Return the content of a PILS, or raise FrameError."""
    if len(frame) < 36 or frame[:4] != PILS:
        raise FrameError("not a PILS")
    sender_id, nonce = frame[4:8], frame[8:20]
    try:
        plaintext = AESGCM(key).decrypt(nonce, frame[20:], sender_id)
    except InvalidTag:
        raise FrameError("authentication") from None
    prefix, counter = _NONCE.unpack(nonce)
    return Opened(int.from_bytes(sender_id, "big"), prefix, counter, plaintext)


def encode_pilt(packet: bytes) -> bytes:
    """Return the plaintext frame of an encoded packet."""
    return PILT + packet


def decode_pilt_untrusted(frame: bytes) -> bytes:
    """Return the bytes a PILT carries, not yet looked at."""
    if frame[:4] != PILT:
        raise FrameError("not a PILT")
    return frame[4:]
