"""Records of the secure channel: sealing, opening, and the limits of one key (plugin policy, L11).

A record is its length (u32, of the rest), a 12-byte nonce and the AES-256-GCM ciphertext. The nonce is the sender's
role (4 bytes, also the associated data) and a counter from 1. Source: services.md 5.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from pilot.coreapi import ClosedError, InvalidValueError

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = [
    "MAX_PLAINTEXT_BYTES",
    "MAX_RECORD_BYTES",
    "RECORD_OVERHEAD_BYTES",
    "Opener",
    "Role",
    "Sealer",
    "record_length_untrusted",
]

HEADER_BYTES: Final = 4
NONCE_BYTES: Final = 12
TAG_BYTES: Final = 16
RECORD_OVERHEAD_BYTES: Final = NONCE_BYTES + TAG_BYTES
MAX_RECORD_BYTES: Final = 16 << 20
"""Of a record, its length field not counted."""
MAX_PLAINTEXT_BYTES: Final = 65536
"""What we put into one record; the peer may use up to `MAX_RECORD_BYTES`."""
MAX_SEALED_BYTES: Final = 1 << 38
MAX_SEALED_RECORDS: Final = 1 << 32
"""Both directions share the key, and the protocol cannot change it: beyond this the bounds of AES-GCM wear thin."""


class Role(enum.Enum):
    """Who speaks: the first 4 bytes of the nonce, and the associated data."""

    SERVER = b"\x00\x00\x00\x01"
    CLIENT = b"\x00\x00\x00\x02"

    @property
    def other(self) -> Role:
        """The peer's role."""
        return Role.CLIENT if self is Role.SERVER else Role.SERVER


class Sealer:
    """Makes the records of one direction; every nonce is used once."""

    __slots__ = ("_aead", "_bytes", "_counter", "_role")

    def __init__(self, key: bytes, role: Role) -> None:
        self._aead = AESGCM(key)
        self._role = role
        self._counter = 0
        self._bytes = 0

    def seal(self, plaintext: bytes | memoryview) -> bytes:
        """The next record, its length field included, around at most `MAX_PLAINTEXT_BYTES`.

        Raises:
            ClosedError: the key has protected as much as it may: a new channel brings a new one.
        """
        size = memoryview(plaintext).nbytes
        if self._counter >= MAX_SEALED_RECORDS or self._bytes + size > MAX_SEALED_BYTES:
            raise ClosedError(
                f"this secure channel has sent {self._counter} records with {self._bytes} bytes, all that one key may "
                "protect: open a new channel"
            )
        self._counter += 1
        self._bytes += size
        nonce = self._role.value + self._counter.to_bytes(8, "big")
        sealed = self._aead.encrypt(nonce, plaintext, self._role.value)
        return (NONCE_BYTES + len(sealed)).to_bytes(HEADER_BYTES, "big") + nonce + sealed


class Opener:
    """Takes the records of the other direction: each counter once, one after the other, from 1."""

    __slots__ = ("_aead", "_counter", "_role")

    def __init__(self, key: bytes, role: Role) -> None:
        self._aead = AESGCM(key)
        self._role = role
        self._counter = 0

    def open_untrusted(self, record: bytes) -> bytes:
        """The plaintext of `record`, given without its length field.

        1.18.0 does not look at counters. A sender counts from 1 and a stream keeps the order, so that any other counter
        is a record repeated, left out or moved, and any other role our own record thrown back.

        Raises:
            InvalidValueError: it cannot be what the peer sent next; the channel has to end.
        """
        if len(record) < RECORD_OVERHEAD_BYTES:
            raise InvalidValueError(f"a record of {len(record)} bytes is too short for nonce and tag")
        nonce = record[:NONCE_BYTES]
        if nonce[:4] != self._role.value:
            raise InvalidValueError(f"a record has the role {nonce[:4].hex()}, not that of the peer")
        counter = int.from_bytes(nonce[4:], "big")
        if counter != self._counter + 1:
            raise InvalidValueError(f"record {counter} came after record {self._counter}")
        try:
            plaintext = self._aead.decrypt(nonce, memoryview(record)[NONCE_BYTES:], self._role.value)
        except InvalidTag:
            raise InvalidValueError(f"record {counter} was not made with the key of this channel") from None
        self._counter = counter
        return plaintext


def record_length_untrusted(header: Buffer, most: int = MAX_RECORD_BYTES) -> int:
    """How many bytes of a record follow these first 4.

    Raises:
        InvalidValueError: too few for a nonce, or more than `most`.
    """
    length = int.from_bytes(memoryview(header)[:HEADER_BYTES], "big")
    if not NONCE_BYTES <= length <= most:
        raise InvalidValueError(f"a record of {length} bytes is announced: {NONCE_BYTES} to {most} may be")
    return length
