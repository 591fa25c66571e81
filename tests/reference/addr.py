"""Addresses in plain Python: text and byte forms exactly as wire.md section 1 has them (L2)."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

BROADCAST_NODE = 0xFFFFFFFF

_TEXT = re.compile(r"([0-9]+):([0-9A-Fa-f]{4})\.([0-9A-Fa-f]{4})\.([0-9A-Fa-f]{4})", re.ASCII)


@dataclass(frozen=True, slots=True, order=True)
class Address:
    """A network number (16 bits) and a node number (32 bits)."""

    network: int
    node: int

    def __str__(self) -> str:
        return f"{self.network}:{self.network:04X}.{self.node >> 16:04X}.{self.node & 0xFFFF:04X}"

    def pack(self) -> bytes:
        """Return the 6 bytes of the wire."""
        return self.network.to_bytes(2, "big") + self.node.to_bytes(4, "big")

    @property
    def is_zero(self) -> bool:
        return self.network == 0 and self.node == 0

    @property
    def is_broadcast(self) -> bool:
        return self.node == BROADCAST_NODE


def unpack_untrusted(data: bytes) -> Address:
    """Return the address in the first 6 bytes; fewer than 6 bytes are the zero address."""
    if len(data) < 6:
        return Address(0, 0)
    return Address(int.from_bytes(data[:2], "big"), int.from_bytes(data[2:6], "big"))


def parse_untrusted(text: str) -> Address:
    """Return the address written as N:NNNN.HHHH.LLLL, or raise ValueError."""
    match = _TEXT.fullmatch(text)
    if match is None:
        raise ValueError(f"not an address: {text!r}")
    decimal, network, high, low = match.groups()
    if int(decimal.lstrip("0")[:6] or "0") != int(network, 16):
        raise ValueError(f"decimal and hexadecimal network differ: {text!r}")
    return Address(int(network, 16), int(high + low, 16))


def parse_socket_untrusted(text: str) -> tuple[Address, int]:
    """Return address and port of ADDRESS:PORT, split at the last colon, or raise ValueError."""
    address, colon, port = text.rpartition(":")
    if not colon or re.fullmatch(r"0*[0-9]{1,5}", port, re.ASCII) is None or int(port.lstrip("0") or "0") > 65535:
        raise ValueError(f"not a socket address: {text!r}")
    return parse_untrusted(address), int(port.lstrip("0") or "0")


def redacted(identity: object) -> str:
    """Return the form in which events name a peer: 8 bytes of SHA-256 of its decimal id or address text, in hex."""
    return hashlib.sha256(str(identity).encode()).digest()[:8].hex()
