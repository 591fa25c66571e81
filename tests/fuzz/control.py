"""Fuzz targets of the control plane: key exchange frames into a live tunnel, beacon messages into both ends of them."""

from __future__ import annotations

import contextlib
import hashlib
from typing import Any

from pilot._fast.errors import InvalidValueError
from pilot.node.identity import LocalIdentity
from pilot.protocol import beacon as wire
from pilot.protocol.signed_request import verify_request_untrusted
from pilot.rendezvous.beacon import Beacon
from pilot.rendezvous.config import BeaconLimits
from pilot.tunnel.frames import FrameError, encode_pila, encode_pilk, parse_exchange_untrusted, signed_message
from tests.fuzz.driver import Target, chunks, joined
from tests.tunnel.fakes import BEACON, Host, Identity, Network

ELSEWHERE = ("203.0.113.66", 666)
POINTS = [bytes(32), b"\x01" + bytes(31), bytes(31) + b"\x80", b"\xff" * 32, b"\x09" + bytes(31)]
"""X25519 keys worth trying; the first ones are of low order."""
REQUEST_KEY = LocalIdentity.generate().public_key
"""Of nobody: its private half is gone."""


class Contact:
    """Nodes 1 and 2 with a session, node 3 registered and unknown to both; node 1 is the one under attack."""

    def __init__(self) -> None:
        self.network = Network(1)
        self.target, self.friend = self.network.pair()
        self.third = self.network.host(3, start=False)
        self.lost: list[bytes] = []

    def deliver(self, chunk: bytes) -> None:
        """The first byte says from where, by whom signed and after how long; the rest is the frame."""
        if not chunk:
            return
        how, frame = chunk[0], chunk[1:]
        if how & 0x0C and frame[:4] == b"PILA" and len(frame) >= 40:
            frame = signed((self.friend, self.third)[how >> 3 & 1], frame[8:40])
        now = self.network.now
        match how & 3:
            case 0:
                self.target.datapath.receive(frame, self.friend.address, now)
            case 1:
                self.target.datapath.receive(frame, ELSEWHERE, now)
            case 2:
                self.target.datapath.receive(wire.wrap_deliver(how >> 4, frame), BEACON, now)
            case _:
                self.target.datapath.receive(frame, BEACON, now)
        self.network.run((0.0, 0.05, 0.5, 4.0)[how >> 6])

    def works(self) -> bool:
        """Whether both ends hear each other within a minute."""
        for host in (self.target, self.friend):
            host.datapath.inbox.clear()
        for _ in range(20):
            self.target.send(self.friend, b"to the friend")
            self.friend.send(self.target, b"to the target")
            self.network.run(3.0)
            if self.target.received() and self.friend.received():
                return True
        return False


def signed(host: Host, key: bytes) -> bytes:
    identity: Identity = host.identity
    return encode_pila(host.node, key, identity.public_key, identity.sign(signed_message(host.node, key)))


def run_exchange(data: bytes) -> None:
    """Key exchange frames from anywhere, some well signed: sessions stay authenticated and the pair keeps talking."""
    contact = Contact()
    core = contact.target.tunnel
    for chunk in chunks(data):
        with contextlib.suppress(FrameError):
            parse_exchange_untrusted(chunk[1:])
        contact.deliver(chunk)
    registered = set(contact.network.registry)
    for peer in contact.target.datapath.peers():
        assert peer.node in registered, peer.node
        assert peer.session is None or peer.session.authenticated
    assert all(value >= 0 for value in core.counters.values())
    assert contact.works()


def exchange_seeds() -> list[bytes]:
    contact = Contact()
    names = [b"\x00", b"\x01", b"\x02", b"\x12", b"\x03", b"\x04", b"\x08", b"\x88", b"\xc4"]
    frames = [signed(contact.friend, hashlib.sha256(bytes([n])).digest()) for n in range(3)]
    frames += [signed(contact.third, key) for key in POINTS]
    frames += [encode_pilk(node, key) for node in (2, 3, 4) for key in POINTS[:2]]
    frames += [
        b"PILP",
        b"PILP\x00\x00\x00\x02",
        b"PILT" + bytes(40),
        b"PILS" + bytes(40),
        b"PILS\x00\x00\x00\x03" + bytes(40),
    ]
    frames += [data for _, _, target, data in contact.network.log if target == contact.target.address]
    parts = [name + frame for name in names for frame in frames]
    return [joined([part]) for part in parts[:: len(names) + 1]] + [
        joined(parts[at : at + 9]) for at in (0, 30, 60, 90)
    ]


# ---- beacon ---------------------------------------------------------------------------------------------------------


PARSERS = (
    wire.parse_endpoint_untrusted,
    wire.parse_discover_untrusted,
    wire.parse_punch_request_untrusted,
    wire.unwrap_relay_untrusted,
    wire.unwrap_deliver_untrusted,
    wire.parse_sync_untrusted,
)


def run_beacon(data: bytes) -> None:
    """Beacon messages into a live tunnel, from the beacon and elsewhere: little is sent, the pair keeps talking."""
    contact = Contact()
    target = contact.target
    for chunk in chunks(data):
        for parse in PARSERS:
            parser: Any = parse
            with contextlib.suppress(InvalidValueError):
                parser(chunk)
        start = len(contact.network.log)
        source = (BEACON, ELSEWHERE, contact.friend.address)[len(chunk) % 3]
        target.datapath.receive(chunk, source, contact.network.now)
        # Three punches, or the answer to a frame of an unknown session: two frames, direct and by relay.
        assert len(contact.network.log) - start <= 4, chunk
        assert target.datapath.beacon == BEACON
        contact.network.run(0.2)
    assert contact.works()


def messages() -> list[bytes]:
    return [
        wire.encode_discover(7),
        wire.encode_discover(7, extended=True),
        wire.encode_discover_reply("192.0.2.9", 4000),
        wire.encode_discover_reply("2001:db8::9", 4000),
        wire.encode_punch_request(7, 8),
        wire.encode_punch_command("192.0.2.9", 4000),
        wire.encode_punch_command("2001:db8::9", 4000),
        wire.wrap_relay(7, 8, b"PILS" + bytes(40)),
        wire.wrap_deliver(2, b"PILS\x00\x00\x00\x02" + bytes(40)),
        wire.wrap_deliver_to(7, 8, b"PILP"),
        wire.encode_sync(9, [1, 2, 3]),
        b"\x0a\x01",
        b"\x0a\x01" + bytes(8),
        b"\x0f",
    ]


def beacon_seeds() -> list[bytes]:
    found = messages()
    # Length decides the source: every message from each of the three.
    return [joined([m + bytes(n)]) for m in found for n in range(3)] + [joined(found), joined(found[::-1] * 2)]


def run_relay(data: bytes) -> None:
    """Datagrams of strangers into our beacon: nothing is amplified, nothing grows without limit."""
    sent: list[tuple[int, Any]] = []
    limits = BeaconLimits()
    beacon = Beacon(limits, lambda datagram, to: sent.append((len(datagram), to)))
    for node in (7, 8):
        hello = wire.encode_discover(node, extended=node == 8)
        beacon.receive_untrusted(bytearray(hello), len(hello), ("192.0.2.7", node), 100.0)
    now = 100.0
    for chunk in chunks(data):
        sent.clear()
        source: tuple[Any, ...] = (f"192.0.2.{len(chunk) % 7 + 1}", 7 + len(chunk) % 2)
        if len(chunk) % 5 == 4:
            source = ("2001:db8::1", 9, 0, 0)
        beacon.receive_untrusted(bytearray(chunk) + bytearray(8), len(chunk), source, now)
        assert len(sent) <= 2
        assert sum(size for size, _ in sent) <= len(chunk) + 2 * 19, (chunk, sent)
        now += 0.3
        beacon.sweep(now)
    assert len(beacon) <= 2 + len(data)
    assert beacon.dropped >= 0
    sent.clear()
    hello = wire.encode_discover(9)
    beacon.receive_untrusted(bytearray(hello), len(hello), ("198.51.100.9", 9), now + 60.0)
    assert sent == [(len(wire.encode_discover_reply("198.51.100.9", 9)), ("198.51.100.9", 9))]


def run_signed_request(data: bytes) -> None:
    """Anything as envelope and signature of a request: refused in one way, for nobody has signed it."""
    envelope, _, signature = data.decode("latin-1").partition("\n")
    try:
        verify_request_untrusted(
            envelope, signature.encode("latin-1"), b"", audience="a", public_key=REQUEST_KEY, now=1000.0
        )
    except InvalidValueError:
        return
    raise AssertionError("a forged request was accepted")


def signed_request_seeds() -> list[bytes]:
    identity = LocalIdentity.generate()
    envelope, signature = identity.sign_request(b"", "a", now=1000.0)
    return [envelope.encode() + b"\n" + signature]


TARGETS = (
    Target("signed_request", "signed requests of others", run_signed_request, signed_request_seeds),
    Target("exchange", "key exchange frames into a live tunnel", run_exchange, exchange_seeds),
    Target("beacon", "beacon messages into a live tunnel", run_beacon, beacon_seeds),
    Target("relay", "datagrams into our beacon", run_relay, beacon_seeds),
)
