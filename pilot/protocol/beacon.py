"""Beacon datagrams as both ends see them: discover, punch, relay, sync (protocol room, L5/L8 wire formats).

The first byte is the type, below 0x10, so a beacon message never looks like a tunnel frame. Source: rendezvous.md 7.
"""

from __future__ import annotations

import ipaddress
import struct
from typing import Final, NamedTuple

from pilot._fast.errors import InvalidValueError

DISCOVER: Final = 0x01
DISCOVER_REPLY: Final = 0x02
PUNCH_REQUEST: Final = 0x03
PUNCH_COMMAND: Final = 0x04
RELAY: Final = 0x05
RELAY_DELIVER: Final = 0x06
SYNC: Final = 0x07
DISCOVER_EXTENDED: Final = 0x08
RELAY_DELIVER_TO: Final = 0x09
NOTIFY: Final = 0x0A
FIRST_TUNNEL_BYTE: Final = 0x10
"""Datagrams whose first byte is below this are beacon messages."""

NOTIFY_HANDSHAKE: Final = 0x01
RELAY_HEADER_BYTES: Final = 9
DELIVER_HEADER_BYTES: Final = 5
PUBLIC_KEY_BYTES: Final = 32
MAX_SYNC_IDS: Final = 0xFFFF

_IDS: Final = struct.Struct(">BII")
_GRANT: Final = struct.Struct(">Q64s")
_SYNC: Final = struct.Struct(">BIH")
_V4_MAPPED: Final = b"\0" * 10 + b"\xff\xff"

Endpoint = tuple[str, int]


class Discover(NamedTuple):
    """Tell the beacon where `node_id` is reached; `extended` asks for 0x09 deliveries."""

    node_id: int
    public_key: bytes | None
    extended: bool


class PunchGrant(NamedTuple):
    """A target's permission to be punched: expiry in unix seconds and its signature over `punch_grant_text`."""

    expiry: int
    signature: bytes


class PunchRequest(NamedTuple):
    """`requester_id` asks the beacon to introduce it to `target_id`."""

    requester_id: int
    target_id: int
    grant: PunchGrant | None


# ------------------------------------------------------------------------------------------- addresses


def normal_host(host: str) -> str:
    """`host` without a scope, an IPv4-mapped IPv6 address as IPv4: the form in which two addresses are compared."""
    host = host.partition("%")[0]
    if host[:7].lower() == "::ffff:" and "." in host:
        return host[7:]
    return host


def _pack_endpoint(host: str, port: int) -> bytes:
    try:
        address = ipaddress.ip_address(normal_host(host)).packed
        if len(address) == 16 and address.startswith(_V4_MAPPED):
            address = address[12:]
        return bytes((len(address),)) + address + port.to_bytes(2, "big")
    except (ValueError, OverflowError):
        raise InvalidValueError(f"({host!r}, {port!r}) is not an IP address and a port in 0..65535") from None


def parse_endpoint_untrusted(datagram: bytes | bytearray | memoryview) -> Endpoint:
    """The address in a discover reply (0x02) or punch command (0x04); IPv4-mapped ones as IPv4.

    Bytes after it are ignored. `InvalidValueError` when the length byte is neither 4 nor 16 or bytes are missing.
    """
    length = datagram[1] if len(datagram) > 1 else 0
    if length not in (4, 16) or len(datagram) < 4 + length:
        raise InvalidValueError("a beacon address must be 4 or 16 bytes and a port")
    raw = bytes(datagram[2 : 2 + length])
    if length == 16 and raw.startswith(_V4_MAPPED):
        raw = raw[12:]
    return str(ipaddress.ip_address(raw)), int.from_bytes(datagram[2 + length : 4 + length], "big")


# -------------------------------------------------------------------------------------- node to beacon


def encode_discover(node_id: int, public_key: bytes | None = None, *, extended: bool = False) -> bytes:
    """0x01 (or 0x08): here is `node_id`, tell me my address. 1.18.0 sends no key and never 0x08."""
    kind = DISCOVER_EXTENDED if extended else DISCOVER
    return bytes((kind,)) + node_id.to_bytes(4, "big") + (public_key or b"")


def parse_discover_untrusted(datagram: bytes | bytearray | memoryview) -> Discover:
    """The fields of a 0x01 or 0x08 datagram; `InvalidValueError` when it is too short."""
    if len(datagram) < 5:
        raise InvalidValueError("a discover datagram needs 5 bytes")
    key = bytes(datagram[5 : 5 + PUBLIC_KEY_BYTES])
    return Discover(
        int.from_bytes(datagram[1:5], "big"),
        key if len(key) == PUBLIC_KEY_BYTES else None,
        datagram[0] == DISCOVER_EXTENDED,
    )


def encode_punch_request(requester_id: int, target_id: int, grant: PunchGrant | None = None) -> bytes:
    """0x03: introduce `requester_id` and `target_id` to each other. 1.18.0 sends no grant."""
    return _IDS.pack(PUNCH_REQUEST, requester_id, target_id) + (_GRANT.pack(*grant) if grant else b"")


def parse_punch_request_untrusted(datagram: bytes | bytearray | memoryview) -> PunchRequest:
    """The fields of a 0x03 datagram; `InvalidValueError` when it is too short. Half a grant counts as none."""
    if len(datagram) < _IDS.size:
        raise InvalidValueError("a punch request needs 9 bytes")
    _, requester, target = _IDS.unpack_from(datagram)
    whole = len(datagram) >= _IDS.size + _GRANT.size
    grant = PunchGrant(*_GRANT.unpack_from(datagram, _IDS.size)) if whole else None
    return PunchRequest(requester, target, grant)


def punch_grant_text(requester_id: int, target_id: int, expiry: int) -> str:
    """What the target signs to permit a punch until `expiry` (unix seconds)."""
    return f"punch-grant:{requester_id}:{target_id}:{expiry}"


def wrap_relay(sender_id: int, dest_id: int, frame: bytes | bytearray | memoryview) -> bytes:
    """0x05: `frame` for the beacon to pass on to `dest_id`; `RELAY_HEADER_BYTES` longer than the frame."""
    return _IDS.pack(RELAY, sender_id, dest_id) + frame


def unwrap_relay_untrusted(datagram: bytes) -> tuple[int, int, memoryview]:
    """(sender id, destination id, frame) of a 0x05 or 0x09 datagram; `InvalidValueError` when no frame is in it."""
    if len(datagram) <= RELAY_HEADER_BYTES:
        raise InvalidValueError("a relay datagram needs two ids and a frame")
    _, sender, dest = _IDS.unpack_from(datagram)
    return sender, dest, memoryview(datagram)[RELAY_HEADER_BYTES:]


# -------------------------------------------------------------------------------------- beacon to node


def encode_discover_reply(host: str, port: int) -> bytes:
    """0x02: this is the address your datagram came from. `InvalidValueError` when `host` is no IP address."""
    return bytes((DISCOVER_REPLY,)) + _pack_endpoint(host, port)


def encode_punch_command(host: str, port: int) -> bytes:
    """0x04: send "PILP" to this address. `InvalidValueError` when `host` is no IP address."""
    return bytes((PUNCH_COMMAND,)) + _pack_endpoint(host, port)


def wrap_deliver(sender_id: int, frame: bytes | bytearray | memoryview) -> bytes:
    """0x06: `frame`, relayed on behalf of `sender_id` (which nobody verified)."""
    return bytes((RELAY_DELIVER,)) + sender_id.to_bytes(4, "big") + frame


def unwrap_deliver_untrusted(datagram: bytes) -> tuple[int, memoryview]:
    """(sender id, frame) of a 0x06 datagram; `InvalidValueError` when no frame is in it."""
    if len(datagram) <= DELIVER_HEADER_BYTES:
        raise InvalidValueError("a relay delivery needs a sender id and a frame")
    return int.from_bytes(datagram[1:5], "big"), memoryview(datagram)[DELIVER_HEADER_BYTES:]


def wrap_deliver_to(sender_id: int, dest_id: int, frame: bytes | bytearray | memoryview) -> bytes:
    """0x09: as 0x06 with the destination, for who announced itself with 0x08."""
    return _IDS.pack(RELAY_DELIVER_TO, sender_id, dest_id) + frame


# ------------------------------------------------------------------------------------ beacon to beacon


def encode_sync(beacon_id: int, node_ids: list[int]) -> bytes:
    """0x07: the nodes `beacon_id` knows at first hand, at most `MAX_SYNC_IDS`."""
    if len(node_ids) > MAX_SYNC_IDS:
        raise InvalidValueError(f"a sync carries at most {MAX_SYNC_IDS} ids, not {len(node_ids)}")
    return _SYNC.pack(SYNC, beacon_id, len(node_ids)) + struct.pack(f">{len(node_ids)}I", *node_ids)


def parse_sync_untrusted(datagram: bytes) -> tuple[int, tuple[int, ...]]:
    """(beacon id, node ids) of a 0x07 datagram; `InvalidValueError` when it is shorter than it announces."""
    if len(datagram) < _SYNC.size:
        raise InvalidValueError("a sync datagram needs 7 bytes")
    _, beacon_id, count = _SYNC.unpack_from(datagram)
    if len(datagram) < _SYNC.size + 4 * count:
        raise InvalidValueError("a sync datagram is shorter than it announces")
    return beacon_id, struct.unpack_from(f">{count}I", datagram, _SYNC.size)
