"""Discover, punch and relay: the table on a clock that tests turn, and the UDP port (rendezvous.md 7)."""

from __future__ import annotations

import asyncio
import math
import socket
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot.protocol import beacon as wire
from pilot.rendezvous import BeaconLimits, Rendezvous
from pilot.rendezvous.beacon import Beacon
from tests.rendezvous.helpers import Clock, Identity, connect

Source = tuple[Any, ...]


class Bench:
    """A beacon whose datagrams are collected."""

    def __init__(self, limits: BeaconLimits | None = None, **hooks: Any) -> None:
        self.clock = Clock()
        self._sent: list[tuple[bytes, Source]] = []
        self.beacon = Beacon(
            limits or BeaconLimits.relaxed(), lambda data, to: self._sent.append((bytes(data), to)), **hooks
        )

    def send(self, datagram: bytes, source: Source) -> list[tuple[bytes, Source]]:
        """What the beacon sends when `datagram` comes from `source`."""
        self._sent = []
        buffer = bytearray(datagram) + bytearray(8)
        self.beacon.receive_untrusted(buffer, len(datagram), source, self.clock())
        return self._sent

    def discover(self, node_id: int, source: Source, **options: Any) -> list[tuple[bytes, Source]]:
        return self.send(wire.encode_discover(node_id, **options), source)


A, B, C = (("192.0.2.1", 4001), ("192.0.2.2", 4002), ("192.0.2.3", 4003))


# ------------------------------------------------------------------------------------------- discover


def test_discover_is_answered_with_the_source() -> None:
    bench = Bench()
    assert bench.discover(1, A) == [(wire.encode_discover_reply(*A), A)]
    assert bench.beacon.address_of(1) == A
    v6 = ("2001:db8::1", 4, 0, 0)
    assert bench.discover(2, v6) == [(wire.encode_discover_reply("2001:db8::1", 4), v6)]


def test_mapped_sources_are_told_and_shown_as_ipv4() -> None:
    bench = Bench()
    mapped = ("::ffff:192.0.2.1", 4001, 0, 0)
    assert bench.discover(1, mapped) == [(bytes.fromhex("0204c0000201") + (4001).to_bytes(2, "big"), mapped)]
    assert bench.beacon.address_of(1) == A


@pytest.mark.parametrize("node_id", [0, 0xFFFFFFFE, 0xFFFFFFFF])
def test_reserved_ids_are_answered_and_not_stored(node_id: int) -> None:
    bench = Bench()
    assert len(bench.discover(node_id, A)) == 1
    assert len(bench.beacon) == 0


def test_a_new_source_counts_at_once() -> None:
    bench = Bench()
    bench.discover(1, A)
    bench.discover(1, B)
    assert bench.beacon.address_of(1) == B


def test_entries_live_ten_minutes_after_the_last_word() -> None:
    bench = Bench()
    bench.discover(1, A)
    bench.discover(2, B)
    bench.clock.now += 300
    bench.discover(1, A)
    bench.clock.now += 301
    assert bench.send(wire.wrap_relay(1, 2, b"PILA"), A) == []  # stale, though not swept yet
    bench.beacon.sweep(bench.clock())
    assert bench.beacon.address_of(2) is None
    assert bench.send(wire.wrap_relay(2, 1, b"PILA"), B) == [(wire.wrap_deliver(2, b"PILA"), A)]
    bench.clock.now += 300
    bench.beacon.sweep(bench.clock())
    assert len(bench.beacon) == 0


def test_a_full_table_has_room_for_registered_nodes_only() -> None:
    bench = Bench(BeaconLimits(capacity=2, discover_rate=math.inf), is_known=lambda node_id: node_id == 9)
    bench.discover(1, A)
    bench.discover(2, B)
    assert bench.discover(3, C) == []
    assert len(bench.discover(2, C)) == 1
    assert len(bench.discover(9, C)) == 1
    assert [bench.beacon.address_of(i) for i in (1, 2, 9)] == [None, C, C]
    assert len(bench.beacon) == 2


def test_discovers_are_limited_per_source() -> None:
    bench = Bench(BeaconLimits(discover_rate=2))
    assert [len(bench.discover(1, A)) for _ in range(3)] == [1, 1, 0]
    assert len(bench.discover(2, B)) == 1
    bench.clock.now += 1
    assert len(bench.discover(1, A)) == 1


# ---------------------------------------------------------------------------------------------- punch


def test_punch_introduces_both() -> None:
    bench = Bench()
    bench.discover(1, A)
    sent = bench.send(wire.encode_punch_request(2, 1), B)
    assert sent == [(wire.encode_punch_command(*A), B), (wire.encode_punch_command(*B), A)]
    assert bench.beacon.address_of(2) == B
    assert bench.send(wire.encode_punch_request(2, 9), B) == []
    assert bench.send(wire.encode_punch_request(0, 1), B) == []


def test_punch_updates_the_requester_and_forgets_stale_targets() -> None:
    bench = Bench()
    bench.discover(1, A)
    bench.clock.now += 601
    assert bench.send(wire.encode_punch_request(2, 1), B) == []
    assert bench.beacon.address_of(2) == B


def test_who_may_not_be_introduced_is_not() -> None:
    bench = Bench(may_punch=lambda requester, target: target != 1)
    bench.discover(1, A)
    bench.discover(3, C)
    assert bench.send(wire.encode_punch_request(2, 1), B) == []
    assert len(bench.send(wire.encode_punch_request(2, 3), B)) == 2


def test_punch_rates() -> None:
    bench = Bench(BeaconLimits())
    for node_id, source in ((1, A), (2, B), (3, C)):
        bench.discover(node_id, source)

    def punch(node_id: int, source: Source) -> int:
        return len(bench.send(wire.encode_punch_request(node_id, 1), source))

    assert punch(2, B) == 2
    assert punch(3, C) == 0  # within 100 ms of another
    bench.clock.now += 0.125
    assert punch(3, C) == 2
    bench.clock.now += 0.125
    assert punch(2, ("192.0.2.2", 9)) == 0  # the same IP within a second
    bench.clock.now += 1
    assert punch(2, B) == 2
    bench.clock.now += 301
    bench.beacon.sweep(bench.clock())
    assert punch(2, B) == 2


def test_exempt_sources_punch_at_any_rate() -> None:
    bench = Bench(BeaconLimits(punch_exempt=("192.0.2.2",)))
    bench.discover(1, A)
    bench.discover(3, C)
    assert [len(bench.send(wire.encode_punch_request(2, 1), B)) for _ in range(3)] == [2, 2, 2]
    assert [len(bench.send(wire.encode_punch_request(3, 1), C)) for _ in range(2)] == [2, 0]


# ---------------------------------------------------------------------------------------------- relay


@given(st.integers(1, 0xFFFFFFFD), st.binary(min_size=1, max_size=300), st.booleans())
def test_relay_passes_the_frame_unchanged(sender: int, frame: bytes, extended: bool) -> None:
    bench = Bench()
    bench.discover(7, A, extended=extended)
    expected = wire.wrap_deliver_to(sender, 7, frame) if extended else wire.wrap_deliver(sender, frame)
    assert bench.send(wire.wrap_relay(sender, 7, frame), B) == [(expected, A)]


def test_relay_teaches_nothing_and_needs_a_frame() -> None:
    bench = Bench()
    bench.discover(1, A)
    assert len(bench.send(wire.wrap_relay(2, 1, b"x"), B)) == 1
    assert bench.beacon.address_of(2) is None
    assert bench.send(wire.wrap_relay(2, 1, b""), B) == []
    assert bench.send(wire.wrap_relay(2, 9, b"x"), B) == []
    assert bench.beacon.dropped == 2


def test_relay_rate_is_per_source_endpoint() -> None:
    bench = Bench(BeaconLimits(relay_rate=2))
    bench.discover(1, A)
    frame = wire.wrap_relay(2, 1, b"x")
    assert [len(bench.send(frame, B)) for _ in range(3)] == [1, 1, 0]
    assert len(bench.send(frame, ("192.0.2.2", 9))) == 1
    bench.clock.now += 1
    assert len(bench.send(frame, B)) == 1


def test_a_punch_keeps_the_wish_for_0x09() -> None:
    bench = Bench()
    bench.discover(1, A)
    bench.discover(2, B, extended=True)
    bench.send(wire.encode_punch_request(2, 1), B)
    assert bench.send(wire.wrap_relay(1, 2, b"x"), A) == [(wire.wrap_deliver_to(1, 2, b"x"), B)]


@given(st.binary(max_size=100))
def test_no_datagram_disturbs_the_beacon(datagram: bytes) -> None:
    bench = Bench()
    bench.discover(1, A)
    bench.send(datagram, B)
    assert len(bench.discover(1, A)) == 1


# ----------------------------------------------------------------------------------------------- port


class Peer:
    """A UDP socket that waits without blocking the loop."""

    def __init__(self, server: Rendezvous) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
        self.socket.connect(server.beacon_address)  # takes datagrams from the contacted port only

    async def __aenter__(self) -> Peer:
        return self

    async def __aexit__(self, *error: object) -> None:
        self.socket.close()

    def send(self, datagram: bytes) -> None:
        self.socket.send(datagram)

    async def receive(self) -> bytes:
        loop = asyncio.get_running_loop()
        return await asyncio.wait_for(loop.sock_recv(self.socket, 65_536), 10)

    async def discover(self, node_id: int) -> None:
        self.send(wire.encode_discover(node_id))
        assert wire.parse_endpoint_untrusted(await self.receive()) == self.socket.getsockname()


async def test_largest_frames_pass_in_order(server: Rendezvous) -> None:
    async with Peer(server) as a, Peer(server) as b:
        await a.discover(1)
        await b.discover(2)
        largest = 65_507 - wire.RELAY_HEADER_BYTES
        for at in range(40):
            frame = at.to_bytes(2, "big") + bytes(largest - 2 if at % 4 == 0 else at)
            a.send(wire.wrap_relay(1, 2, frame))
            if at % 8 == 7:
                received = [await b.receive() for _ in range(8)]
                assert [wire.unwrap_deliver_untrusted(d)[0] for d in received] == [1] * 8
                orders = [int.from_bytes(wire.unwrap_deliver_untrusted(d)[1][:2], "big") for d in received]
                assert orders == list(range(at - 7, at + 1))
        a.send(wire.wrap_relay(1, 2, bytes(largest)))
        assert len(await b.receive()) == largest + wire.DELIVER_HEADER_BYTES


async def test_nobody_is_introduced_to_a_relay_only_node(server: Rendezvous) -> None:
    shy, open_ = Identity(), Identity()
    async with (
        await connect(server.registry_address) as client,
        Peer(server) as a,
        Peer(server) as b,
        Peer(server) as c,
    ):
        for node, options in ((shy, {"relay_only": True}), (open_, {})):
            node.node_id = (await client.call(node.registration(**options)))["node_id"]
        await a.discover(shy.node_id)
        await b.discover(open_.node_id)
        await c.discover(77)
        a.send(wire.encode_punch_request(shy.node_id, open_.node_id))
        b.send(wire.encode_punch_request(open_.node_id, shy.node_id))
        c.send(wire.encode_punch_request(77, open_.node_id))
        assert wire.parse_endpoint_untrusted(await b.receive()) == c.socket.getsockname()
        assert wire.parse_endpoint_untrusted(await c.receive()) == b.socket.getsockname()
        for peer, node_id in ((a, shy.node_id), (b, open_.node_id)):
            await peer.discover(node_id)  # the next datagram is its reply: no punch command came before it


async def test_garbage_on_the_port(server: Rendezvous) -> None:
    async with Peer(server) as a:
        for datagram in (b"", b"\x01", b"\x05", b"\x0a\x01", b"PILA", bytes(2_000), b"\x07\0\0\0\1\xff\xff"):
            a.send(datagram)
        await a.discover(1)
