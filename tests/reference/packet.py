"""The inner packet in plain Python: 34-byte header, CRC-32 and payload, wire.md section 2 (L3)."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from tests.reference.addr import Address, unpack_untrusted

VERSION = 1
HEADER_SIZE = 34
MAX_PAYLOAD = 65535

SYN, ACK, FIN, RST = 1, 2, 4, 8
STREAM, DATAGRAM, CONTROL = 1, 2, 3

_HEADER = struct.Struct(">BBH6s6sHHIIHI")
assert _HEADER.size == HEADER_SIZE


class PacketError(ValueError):
    """Bytes that are no packet; the argument is too_short, truncated, checksum_mismatch or unsupported_version."""


@dataclass(frozen=True, slots=True)
class Packet:
    """One inner packet; `version` exists so that tests can build wrong ones."""

    source: Address
    destination: Address
    protocol: int = STREAM
    flags: int = 0
    source_port: int = 0
    destination_port: int = 0
    seq: int = 0
    ack: int = 0
    window: int = 0
    payload: bytes = b""
    version: int = VERSION

    def encode(self) -> bytes:
        """Return header and payload with the checksum in place; ValueError for more than 65535 bytes of payload."""
        if len(self.payload) > MAX_PAYLOAD:
            raise ValueError("payload too large")
        unsummed = self._header(0) + self.payload
        return self._header(zlib.crc32(unsummed)) + self.payload

    def _header(self, checksum: int) -> bytes:
        return _HEADER.pack(
            self.version << 4 | self.flags,
            self.protocol,
            len(self.payload),
            self.source.pack(),
            self.destination.pack(),
            self.source_port,
            self.destination_port,
            self.seq,
            self.ack,
            self.window,
            checksum,
        )


def decode_untrusted(data: bytes) -> Packet:
    """Return the packet at the start of `data`, ignoring bytes after its payload, or raise PacketError."""
    if len(data) < HEADER_SIZE:
        raise PacketError("too_short")
    first, protocol, length, source, destination, sport, dport, seq, ack, window, checksum = _HEADER.unpack_from(data)
    end = HEADER_SIZE + length
    if len(data) < end:
        raise PacketError("truncated")
    if zlib.crc32(data[:30] + bytes(4) + data[34:end]) != checksum:
        raise PacketError("checksum_mismatch")
    if first >> 4 != VERSION:
        raise PacketError("unsupported_version")
    return Packet(
        unpack_untrusted(source),
        unpack_untrusted(destination),
        protocol,
        first & 0x0F,
        sport,
        dport,
        seq,
        ack,
        window,
        data[HEADER_SIZE:end],
    )
