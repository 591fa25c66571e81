"""Floods of strangers at the tunnel socket and at the beacon: little is answered, tables end, a pair talks on (L4)."""

from __future__ import annotations

from collections import Counter

import pytest

from pilot.protocol import beacon as wire
from pilot.rendezvous.beacon import Beacon
from pilot.rendezvous.config import BeaconLimits
from tests.tunnel.fakes import BEACON, Address, Host
from tests.tunnel.real import RealNetwork

SECONDS = 10
PER_SECOND = 2000


def spoofed(n: int) -> Address:
    """Another address for every n, as a spoofer has them."""
    return (f"203.{n >> 16 & 255}.{n >> 8 & 255}.{n & 255}", 1024 + n % 60_000)


def stranger(n: int) -> bytes:
    return (10_000 + n).to_bytes(4, "big")


def pils(n: int) -> bytes:
    return b"PILS" + stranger(n) + bytes(28)


def pila(n: int) -> bytes:
    return b"PILA" + stranger(n) + n.to_bytes(32, "big") + bytes(96)


def pilk(n: int) -> bytes:
    return b"PILK" + stranger(n) + n.to_bytes(32, "big")


def flood(network: RealNetwork, a: Host, b: Host, frame: bytes, n: int, relayed: bool) -> None:
    if relayed:
        network.send(wire.wrap_deliver(10_000 + n, frame), BEACON, b.address)
    else:
        network.send(frame, spoofed(n), b.address)


@pytest.mark.parametrize("relayed", [False, True], ids=["spoofed addresses", "by relay"])
@pytest.mark.parametrize("make", [pils, pila, pilk])
def test_of_unknown_nodes(make: object, relayed: bool) -> None:
    """Each datagram with another sender and address: answers are capped over all of them, and so is what is kept."""
    assert callable(make)
    network = RealNetwork()
    a, b = network.pair()
    session = b.session(a)
    b.datapath.inbox.clear()
    a.datapath.inbox.clear()
    start, sent = network.now, []
    for second in range(SECONDS):
        for n in range(PER_SECOND):
            flood(network, a, b, make(second * PER_SECOND + n), second * PER_SECOND + n, relayed)
        sent.append(b"during %d" % second)
        a.send(b, sent[-1])
        b.send(a, sent[-1])
        network.run(1.0)
        network.log[:] = [entry for entry in network.log if entry[1] == b.address]
    assert b.received() == a.received() == sent
    assert b.session(a) is session
    answers = [data for to, data in network.sent(b, start) if to != a.address and data[:1] != bytes([wire.DISCOVER])]
    assert bool(answers) is (make is pils)
    assert bool(b.lookups[1:]) is (make is pila)
    # At most 64 frames of unknown sessions a second are looked at; the answer to each is PILA and PILK, twice.
    assert len(answers) <= (SECONDS + 1) * 64 * 4
    core = b.tunnel._core
    assert len(core._strangers) <= core.settings.max_strangers
    assert core.peer_count() == 1
    assert b.tunnel._exchange.identities.waiting <= core.settings.waiting_cap
    assert len(b.lookups) <= SECONDS * core.settings.total_exchange_rate
    network.run(60.0)
    assert len(network.sent(b, network.now - 20.0)) < 100


def test_of_one_address_with_many_nodes() -> None:
    """One attacker that is no spoofer: five key exchanges a second and two answers, whatever ids it claims."""
    network = RealNetwork()
    _, b = network.pair()
    start = network.now
    for n in range(SECONDS * 200):
        network.send(pils(n), ("203.0.113.66", 6666), b.address)
        network.send(pila(n), ("203.0.113.66", 6666), b.address)
        network.run(0.005)
    sent = Counter(target for target, _ in network.sent(b, start))
    assert sent[("203.0.113.66", 6666)] <= (SECONDS * 2 + 5) * 2
    assert len(b.lookups) <= SECONDS * 5 + 6


def test_of_the_beacon_says_nothing_to_the_victim_of_a_spoofer() -> None:
    """Discovers, punches and relays from spoofed addresses: no reply is larger than a few bytes more than its cause."""
    sent: list[tuple[int, object]] = []
    limits = BeaconLimits()
    beacon = Beacon(limits, lambda data, to: sent.append((len(data), to)))
    received = 0
    for n in range(50_000):
        message = (wire.encode_discover(n + 1), wire.encode_punch_request(n + 1, 7), wire.wrap_relay(n, 7, b"x" * 90))[
            n % 3
        ]
        received += len(message)
        beacon.receive_untrusted(bytearray(message), len(message), spoofed(n), 1000.0 + n / 5000)
    assert sum(size for size, _ in sent) <= 2 * received
    assert max(size for size, _ in sent) <= 100
    assert len(beacon) <= limits.capacity
