"""Beacon messages of the tunnel socket in plain Python, wire.md section 10 (L5)."""

from __future__ import annotations

import ipaddress
import struct

DISCOVER, DISCOVER_REPLY, PUNCH_REQUEST, PUNCH_COMMAND, RELAY, RELAY_DELIVER = range(1, 7)
SYNC, DISCOVER_EX, RELAY_DELIVER_DEST, NOTIFY = range(7, 11)

INNER_MAGICS = (b"PILA", b"PILK", b"PILS", b"PILT")


class BeaconError(ValueError):
    """Bytes a node ignores."""


def is_beacon_message_untrusted(datagram: bytes) -> bool:
    """Return whether the first byte says that the datagram is a beacon message."""
    return len(datagram) > 0 and datagram[0] < 0x10


def discover(node: int, key: bytes = b"") -> bytes:
    """Return Discover, with the 32-byte key only newer beacons know."""
    return struct.pack(">BI", DISCOVER, node) + key


def punch_request(requester: int, target: int, grant: bytes = b"") -> bytes:
    """Return PunchRequest; a grant is 8 bytes of expiry and 64 of signature."""
    return struct.pack(">BII", PUNCH_REQUEST, requester, target) + grant


def punch_grant_text(requester: int, target: int, expiry: int) -> bytes:
    """Return what the target of a punch signs to allow it until `expiry` (Unix seconds)."""
    return f"punch-grant:{requester}:{target}:{expiry}".encode()


def relay(sender: int, destination: int, frame: bytes) -> bytes:
    """Return Relay around a whole tunnel frame."""
    return struct.pack(">BII", RELAY, sender, destination) + frame


def relay_deliver(sender: int, frame: bytes) -> bytes:
    """Return RelayDeliver around a whole tunnel frame."""
    return struct.pack(">BI", RELAY_DELIVER, sender) + frame


def endpoint_message(kind: int, host: str, port: int) -> bytes:
    """Return DiscoverReply or PunchCommand for an IP address in text and a port."""
    packed = ipaddress.ip_address(host).packed
    return bytes([kind, len(packed)]) + packed + port.to_bytes(2, "big")


def decode_endpoint_untrusted(message: bytes) -> tuple[str, int]:
    """Return IP (mapped ones as IPv4) and port of a DiscoverReply or PunchCommand; trailing bytes are ignored."""
    if len(message) < 2 or message[1] not in (4, 16) or len(message) < 4 + message[1]:
        raise BeaconError("no endpoint")
    end = 2 + message[1]
    host = ipaddress.ip_address(message[2:end])
    if isinstance(host, ipaddress.IPv6Address) and host.ipv4_mapped is not None:
        host = host.ipv4_mapped
    return str(host), int.from_bytes(message[end : end + 2], "big")


def decode_relay_deliver_untrusted(message: bytes) -> tuple[int, bytes]:
    """Return the claimed sender and the frame of a RelayDeliver whose frame a node looks at."""
    if len(message) < 9 or message[0] != RELAY_DELIVER or message[5:9] not in INNER_MAGICS:
        raise BeaconError("no relayed frame")
    return int.from_bytes(message[1:5], "big"), message[5:]


def is_handshake_notice_untrusted(message: bytes) -> bool:
    """Return whether a message is Notify of kind 1."""
    return len(message) >= 2 and message[0] == NOTIFY and message[1] == 1


def fnv1a32(data: bytes) -> int:
    """Return the 32-bit FNV-1a hash."""
    value = 0x811C9DC5
    for byte in data:
        value = (value ^ byte) * 0x01000193 % 2**32
    return value


def pick(public_key: bytes, beacons: int) -> int:
    """Return which of `beacons` candidates the owner of an Ed25519 key uses."""
    return fnv1a32(public_key) % beacons
