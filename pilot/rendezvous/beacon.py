"""The beacon: tells nodes their address, introduces pairs, relays frames (rendezvous room, L5 server side).

`Beacon` is sans-IO; `BeaconPort` gives it a UDP socket. Source: rendezvous.md 7.1 to 7.3.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from pilot._fast.errors import InvalidValueError
from pilot.protocol import beacon as wire
from pilot.protocol.registry import RESERVED_NODE_IDS
from pilot.rendezvous.config import BeaconLimits
from pilot.rendezvous.limits import Exemptions, Spacing, WindowCounter

logger = logging.getLogger("pilot.rendezvous")

SocketAddress = tuple[Any, ...]
Send = Callable[[bytes | memoryview, SocketAddress], None]

MAX_DATAGRAM: Final = 65_535
BATCH: Final = 64
"""Datagrams taken from the socket before other work gets its turn."""
SOCKET_BUFFER_BYTES: Final = 4 * 1024 * 1024
PUNCH_MEMORY_SECONDS: Final = 300.0
_ALL_SOURCES: Final = ""


@dataclass(slots=True)
class _Entry:
    """Where a node was last heard, and whether it wants 0x09 deliveries."""

    address: SocketAddress
    seen: float
    extended: bool


class Beacon:
    """The endpoint table and what each datagram does.

    Ids are not authenticated (rendezvous.md 14): whoever announces an id gets its relayed, encrypted frames. `is_known`
    says whether the registry knows an id, which decides who still gets into a full table; `may_punch` whether a pair
    may be introduced. Malformed, unknown and excess datagrams are dropped in silence; `dropped` counts them.
    """

    def __init__(
        self,
        limits: BeaconLimits,
        send: Send,
        *,
        is_known: Callable[[int], bool] = lambda node_id: False,
        may_punch: Callable[[int, int], bool] = lambda requester, target: True,
    ) -> None:
        self._limits = limits
        self._send = send
        self._is_known = is_known
        self._may_punch = may_punch
        self._entries: OrderedDict[int, _Entry] = OrderedDict()
        self._relays = WindowCounter(limits.relay_rate, limits.source_table)
        self._discovers = WindowCounter(limits.discover_rate, limits.source_table)
        self._punches = Spacing(1 / limits.punch_rate, 1)
        self._punches_by_ip = Spacing(1 / limits.punch_rate_per_ip, limits.source_table)
        self._punch_exempt = Exemptions(limits.punch_exempt)
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._entries)

    def address_of(self, node_id: int) -> wire.Endpoint | None:
        """(host, port) at which the node was last heard, None when it is not in the table."""
        entry = self._entries.get(node_id)
        return (wire.normal_host(entry.address[0]), entry.address[1]) if entry is not None else None

    def receive_untrusted(self, buffer: bytearray, length: int, source: SocketAddress, now: float) -> None:
        """Handle the datagram in the first `length` bytes of `buffer`, which may be overwritten. Never raises."""
        kind = buffer[0] if length else 0
        if kind == wire.RELAY:
            self._relay_untrusted(buffer, length, source, now)
        elif kind in (wire.DISCOVER, wire.DISCOVER_EXTENDED) and length >= 5:
            self._discover(wire.parse_discover_untrusted(memoryview(buffer)[:length]), source, now)
        elif kind == wire.PUNCH_REQUEST and length >= 9:
            self._punch(wire.parse_punch_request_untrusted(memoryview(buffer)[:length]), source, now)
        else:
            self.dropped += 1

    def sweep(self, now: float) -> None:
        """Forget the nodes not heard for `lifetime`."""
        while self._entries:
            node_id, entry = next(iter(self._entries.items()))
            if now - entry.seen <= self._limits.lifetime:
                break
            del self._entries[node_id]
        self._punches_by_ip.expire(now - PUNCH_MEMORY_SECONDS)

    def _relay_untrusted(self, buffer: bytearray, length: int, source: SocketAddress, now: float) -> None:
        """0x05 becomes 0x06 (or 0x09) in place: the inner frame is not copied."""
        entry = self._entries.get(int.from_bytes(buffer[5:9], "big"))
        if length <= wire.RELAY_HEADER_BYTES or not self._relays.take(source, now) or self._is_stale(entry, now):
            self.dropped += 1
            return
        assert entry is not None
        if entry.extended:
            buffer[0] = wire.RELAY_DELIVER_TO
            self._send(memoryview(buffer)[:length], entry.address)
            return
        buffer[5:9] = buffer[1:5]
        buffer[4] = wire.RELAY_DELIVER
        self._send(memoryview(buffer)[4:length], entry.address)

    def _discover(self, discover: wire.Discover, source: SocketAddress, now: float) -> None:
        if self._discovers.take(source, now) and self._remember(discover.node_id, source, now, discover.extended):
            self._send(wire.encode_discover_reply(source[0], source[1]), source)
        else:
            self.dropped += 1

    def _remember(self, node_id: int, source: SocketAddress, now: float, extended: bool) -> bool:
        """Note where `node_id` is; False when the table has no room for it. Reserved ids are fine and not stored."""
        if node_id in RESERVED_NODE_IDS:
            return True
        if node_id not in self._entries and len(self._entries) >= self._limits.capacity:
            if not self._is_known(node_id):
                return False
            self._entries.popitem(last=False)
        self._entries[node_id] = _Entry(source, now, extended)
        self._entries.move_to_end(node_id)
        return True

    def _punch(self, request: wire.PunchRequest, source: SocketAddress, now: float) -> None:
        known = self._entries.get(request.requester_id)
        if not self._punch_is_due(source, now) or not self._remember(
            request.requester_id, source, now, known is not None and known.extended
        ):
            self.dropped += 1
            return
        requester = self._entries.get(request.requester_id)
        target = self._entries.get(request.target_id)
        if (
            self._is_stale(requester, now)
            or self._is_stale(target, now)
            or not self._may_punch(request.requester_id, request.target_id)
        ):
            self.dropped += 1
            return
        assert requester is not None
        assert target is not None
        self._send(wire.encode_punch_command(target.address[0], target.address[1]), requester.address)
        self._send(wire.encode_punch_command(requester.address[0], requester.address[1]), target.address)

    def _punch_is_due(self, source: SocketAddress, now: float) -> bool:
        host = wire.normal_host(source[0])
        if host in self._punch_exempt:
            return True
        if not (self._punches.ready(_ALL_SOURCES, now) and self._punches_by_ip.ready(host, now)):
            return False
        self._punches.mark(_ALL_SOURCES, now)
        self._punches_by_ip.mark(host, now)
        return True

    def _is_stale(self, entry: _Entry | None, now: float) -> bool:
        return entry is None or now - entry.seen > self._limits.lifetime


class BeaconPort:
    """A UDP socket for a `Beacon`: read in batches, sent at once, in order; what the kernel refuses is dropped."""

    def __init__(self, host: str, port: int, clock: Callable[[], float]) -> None:
        """Bind; raises `OSError` when the address cannot be had."""
        self._clock = clock
        self._buffer = bytearray(MAX_DATAGRAM)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._beacon: Beacon | None = None
        self._socket = _bind(host, port)

    @property
    def address(self) -> wire.Endpoint:
        """The bound (host, port)."""
        host, port = self._socket.getsockname()[:2]
        return host, port

    def start(self, beacon: Beacon) -> None:
        """Hand what arrives to `beacon` from now on, on the running loop."""
        self._beacon = beacon
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._socket.fileno(), self._readable)

    def close(self) -> None:
        """Stop and close the socket. Safe to call twice."""
        if self._loop is not None:
            self._loop.remove_reader(self._socket.fileno())
            self._loop = None
        self._socket.close()

    def send(self, datagram: bytes | memoryview, address: SocketAddress) -> None:
        """Send now or never: a full kernel queue and an unreachable address drop the datagram."""
        try:
            self._socket.sendto(datagram, address)
        except OSError as error:
            logger.debug("a datagram to %s was dropped: %s", address, error)

    def _readable(self) -> None:
        beacon = self._beacon
        assert beacon is not None
        now = self._clock()
        for _ in range(BATCH):
            try:
                length, source = self._socket.recvfrom_into(self._buffer)
            except BlockingIOError:
                return
            except OSError as error:
                logger.debug("a datagram could not be read: %s", error)
                continue
            beacon.receive_untrusted(self._buffer, length, source, now)


def _bind(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ipaddress.ip_address(host).version == 6 else socket.AF_INET
    except ValueError:
        raise InvalidValueError(f"the rendezvous host {host!r} is not an IP address") from None
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER_BYTES)
        sock.bind((host, port))
    except BaseException:
        sock.close()
        raise
    return sock
