"""The beacon: choice, Discover schedule, messages (wire.md 10, 12.4, 13; checklist 20-22; beacon vectors)."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

from pilot.tunnel import Resolved, TunnelSettings
from pilot.tunnel.beacons import fnv1a32
from pilot.tunnel.paths import usable_beacons
from tests.tunnel.fakes import BEACON, Network, kinds
from tests.tunnel.probe import node_and_probe

VECTORS = Path(__file__).parents[1] / "vectors"
WIRE = json.loads((VECTORS / "wire_beacon.json").read_text())
RENDEZVOUS = json.loads((VECTORS / "rendezvous_beacon.json").read_text())["datagrams"]
MISC = json.loads((VECTORS / "wire_misc.json").read_text())
OTHERS = [("192.0.2.101", 9001), (BEACON[0], 9002), ("203.0.113.66", 9001)]


def vector(name: str) -> bytes:
    found = [f["frame"] for f in WIRE["frames"] if f["name"] == name]
    found += [d["hex"] for d in RENDEZVOUS if d["name"] == name]
    return bytes.fromhex(found[0])


def to_node(network: Network, host: object, message: bytes, source: tuple[str, int] = BEACON) -> list[str]:
    start = network.now
    network.send(message, source, host.address)
    network.run(0.1)
    return kinds([sent for sent in network.sent(host, start) if sent[0] != BEACON])


@pytest.mark.parametrize("case", MISC["beacon_pick"], ids=lambda c: c["key"][:8])
def test_beacon_pick(case: dict) -> None:
    assert fnv1a32(bytes.fromhex(case["key"])) == case["fnv1a32"]
    network = Network()
    host = network.host(1)
    host.identity.public_key = bytes.fromhex(case["key"])
    for count, index in case["index_of"].items():
        beacons = [(f"192.0.2.{n}", 9001) for n in range(int(count))]
        host.tunnel.set_beacons(beacons, [], network.now)
        assert host.datapath.beacon == beacons[index]


def test_configured_come_first_and_useless_ones_are_left_out() -> None:
    discovered = [("8.8.4.4", 2), ("10.0.0.1", 1), ("8.8.4.4", 1), ("127.0.0.1", 1), ("0.0.0.0", 1), ("fe80::1", 1)]
    discovered += [("8.8.4.4", 1), ("beacon.example", 1), ("2606:4700::1", 1), ("100.64.0.1", 1), ("203.0.113.9", 1)]
    # Documentation addresses are public for 1.18.0, and both must pick from the same list.
    assert usable_beacons(discovered) == [("203.0.113.9", 1), ("2606:4700::1", 1), ("8.8.4.4", 1), ("8.8.4.4", 2)]
    network = Network()
    host = network.host(1)
    host.tunnel.set_beacons([("127.0.0.1", 5)], [("10.0.0.1", 1)], network.now)
    assert host.datapath.beacon == ("127.0.0.1", 5)
    host.tunnel.set_beacons([], [], network.now)
    assert host.datapath.beacon is None


def test_discover_schedule() -> None:
    network = Network()
    host = network.host(1)
    network.run(190.0)
    times = [at - 1000 for at, source, _, data in network.log if source == host.address and data == b"\1\0\0\0\1"]
    assert times[0] == 0
    assert 1.6 in [pytest.approx(at) for at in times]
    periodic = [at for at in times if at > 2]
    assert 20 <= periodic[0] <= 25
    assert [later - earlier for earlier, later in pairwise(periodic)] == pytest.approx([25] * 6)


def test_another_beacon_is_told_at_once() -> None:
    network, host, _ = node_and_probe()
    start = network.now
    host.tunnel.set_beacons([BEACON], [], network.now)
    assert network.sent(host, start) == []
    host.tunnel.set_beacons([OTHERS[0]], [], network.now)
    assert network.sent(host, start) == [(OTHERS[0], b"\1\0\0\0\1")]


def test_discover_and_punch_request_bytes() -> None:
    network = Network()
    host = network.host(2)
    host.tunnel.contact(3, network.now)
    host.tunnel.resolved(3, Resolved(("203.0.113.1", 1)), None, network.now)
    sent = [data for _, data in network.sent(host)]
    assert vector("discover") in sent
    assert vector("punch_request") in sent


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("punch_command_v4", ("203.0.113.7", 40000)),
        ("punch_command_v4_mapped", ("203.0.113.7", 40000)),
        ("punch_command_v6", ("2001:db8::1", 40000)),
        ("punch_command_to_requester", ("127.0.0.1", 20201)),
    ],
)
def test_punch_command(name: str, target: tuple[str, int]) -> None:
    network, host, _ = node_and_probe()
    start = network.now
    assert to_node(network, host, vector(name) + b"trailing") == ["PILP"] * 3
    assert network.sent(host, start) == [(target, vector("pilp_sent_by_1_18"))] * 3


@pytest.mark.parametrize("source", OTHERS)
@pytest.mark.parametrize("name", ["punch_command_v4", "notify_handshake", "relay_deliver_PILA_A_to_B"])
def test_wrong_source(name: str, source: tuple[str, int]) -> None:
    network, host, _ = node_and_probe()
    start = network.now
    to_node(network, host, vector(name), source)
    assert network.sent(host, start) == []
    assert host.polls == 0
    assert host.lookups == []


@pytest.mark.parametrize("ignored", WIRE["node_ignores"], ids=lambda v: v["name"])
def test_ignored(ignored: dict) -> None:
    network, host, _ = node_and_probe()
    start = network.now
    to_node(network, host, bytes.fromhex(ignored["frame"]))
    assert network.sent(host, start) == []
    assert host.polls == 0
    assert host.datapath.peers() == []


@pytest.mark.parametrize("name", ["beacon_sync", "discover_ex", "pilp_draft_form", "relay_deliver_dest", "relay"])
def test_noise(name: str) -> None:
    network, host, _ = node_and_probe()
    start = network.now
    to_node(network, host, vector(name))
    assert network.sent(host, start) == []


def test_punches_are_limited() -> None:
    network, host, _ = node_and_probe()
    for _ in range(50):
        network.send(vector("punch_command_v4"), BEACON, host.address)
    start = network.now
    network.run(0.1)
    assert len(network.sent(host, start)) == 3 * 20


@pytest.mark.parametrize("name", ["notify_handshake", "notify_handshake_extended"])
def test_notices_poll_the_mailbox_at_a_bounded_rate(name: str) -> None:
    network, host, _ = node_and_probe()
    to_node(network, host, vector(name))
    assert host.polls == 1
    for _ in range(20):
        to_node(network, host, vector(name))
    network.run(2.0)
    assert host.polls == 4


def test_relay_layout() -> None:
    network, host, probe = node_and_probe()
    probe.relay(probe.pila(), host)
    (relayed,) = [data for _, data in network.sent(host) if data[0] == 5]
    assert relayed[:9] == b"\5" + (1).to_bytes(4, "big") + (9).to_bytes(4, "big")
    assert len(relayed) == 145


def test_a_false_relay_sender_decides_nothing() -> None:
    _, host, probe = node_and_probe()
    probe.relay(probe.pila(), host, sender=4242)
    assert host.datapath.peer(4242) is None
    assert host.datapath.peer(9) is not None
    assert probe.take() == ["deliver PILA"]


# --------------------------------------------------------------------------------------- own address


def reply(host_bytes: bytes, port: int = 4000) -> bytes:
    return b"\2\4" + host_bytes + port.to_bytes(2, "big")


class Observed:
    """A node with a session, whose beacon answers as the test says."""

    def __init__(self, settings: TunnelSettings | None = None) -> None:
        self.network = Network(settings=settings)
        self.host, self.other = self.network.pair()
        self.network.run(5.0)
        self.network.beacon = False

    def see(self, last: int, *, source: tuple[str, int] = BEACON, port: int = 4000, ask: bool = True) -> None:
        """One Discover and its answer."""
        if ask:
            self.host.tunnel.discover(self.network.now)
        self.network.send(reply(bytes((203, 0, 113, last)), port), source, self.host.address)
        self.network.run(0.05)


def test_two_replies_in_a_row_are_believed() -> None:
    world = Observed()
    assert world.host.tunnel.observed_host == "198.51.100.1"
    world.see(7)
    assert world.host.addresses_changed == []
    world.see(8)
    world.see(7)
    assert world.host.addresses_changed == []
    world.see(7, port=5000)
    assert world.host.addresses_changed == [("observed_endpoint", "198.51.100.1", "203.0.113.7", 1)]
    assert world.host.tunnel.observed_host == "203.0.113.7"


def test_late_and_foreign_replies_are_not_believed() -> None:
    world = Observed()
    world.network.run(31.0)
    for _ in range(4):
        world.see(7, source=OTHERS[0])
    world.network.run(3.0)
    for _ in range(4):
        world.see(7, ask=False)
    assert world.host.addresses_changed == []


def test_a_confirming_discover_is_sent_at_most_every_30_seconds() -> None:
    world = Observed()
    world.network.run(60.0)
    start = world.network.now
    for last in (7, 8, 9, 10):
        world.see(last, ask=last == 7)
    assert kinds(world.network.sent(world.host, start)).count("discover") == 2


def test_a_changed_local_address_is_told_to_everybody() -> None:
    world = Observed()
    host, network = world.host, world.network
    host.tunnel.local_address("198.51.100.1", network.now)
    host.tunnel.local_address("198.51.100.1", network.now)
    assert host.addresses_changed == []
    start = network.now
    network.drop = lambda data, source, target: target == host.address
    host.tunnel.local_address("198.51.100.77", network.now)
    assert host.addresses_changed == [("local_address", "198.51.100.1", "198.51.100.77", 1)]
    network.run(32.0)
    sent = [(round(at - start), data) for at, source, target, data in network.log if source == host.address]
    discovers = [at for at, data in sent if data[:1] == b"\1" and at >= 0]
    assert {0, 6, 12, 18, 24, 31} <= set(discovers)
    assert [at for at, data in sent if data[:1] == b"\3" and at >= 0][:3] == [0, 1, 3]
    assert [at for at, data in sent if data[:4] == b"PILS" and at >= 0][:3] == [0, 1, 3]


def test_what_the_beacon_saw_before_a_local_change_is_forgotten_and_asked_anew() -> None:
    """Else the former address would be registered again."""
    network = Network()
    host, _ = network.pair()
    network.run(5.0)
    host.tunnel.local_address("198.51.100.1", network.now)
    assert host.tunnel.observed_host == "198.51.100.1"
    host.tunnel.local_address("192.168.7.7", network.now)
    assert host.tunnel.observed_host == ""
    network.run(0.5)
    assert host.tunnel.observed_host == "198.51.100.1"
    network.run(11.0)
    assert [change[:3] for change in host.addresses_changed] == [
        ("local_address", "198.51.100.1", "192.168.7.7"),
        ("observed_endpoint", "192.168.7.7", "198.51.100.1"),
    ]


def test_peers_that_were_heard_are_not_pinged_again() -> None:
    world = Observed()
    host, network = world.host, world.network
    host.tunnel.local_address("198.51.100.1", network.now)
    start = network.now
    host.tunnel.local_address("198.51.100.77", network.now)
    network.run(4.0)
    assert kinds(network.sent(host, start)).count("PILS") == 1


def test_recoveries_are_spaced_and_slow_down() -> None:
    world = Observed()
    host, network = world.host, world.network
    host.tunnel.local_address("198.51.100.1", network.now)
    start = network.now
    times: list[float] = []
    host.address_changed = lambda *change: times.append(network.now - start)
    for number in range(400):
        host.tunnel.local_address(f"198.51.100.{100 + number % 2}", network.now)
        network.run(1.0)
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert min(gaps) >= 10
    assert gaps == sorted(gaps)
    assert max(gaps) <= 125


def test_a_flap_back_needs_no_recovery() -> None:
    world = Observed()
    host, network = world.host, world.network
    host.tunnel.local_address("198.51.100.1", network.now)
    host.tunnel.local_address("198.51.100.2", network.now)
    host.tunnel.local_address("198.51.100.3", network.now)
    host.tunnel.local_address("198.51.100.2", network.now)
    network.run(60.0)
    assert len(host.addresses_changed) == 1


def test_another_beacon_restarts_the_baselines() -> None:
    world = Observed()
    host, network = world.host, world.network
    host.tunnel.local_address("198.51.100.1", network.now)
    host.tunnel.set_beacons([OTHERS[0]], [], network.now)
    host.tunnel.local_address("192.168.1.1", network.now)
    network.run(60.0)
    assert host.addresses_changed == []


def discovers(network: Network, host: object, since: float) -> list[float]:
    return [
        round(at - since, 1)
        for at, source, _, data in network.log
        if source == host.address and at >= since and kinds([(BEACON, data)]) == ["discover"]
    ]


def test_a_beacon_that_does_not_answer_is_asked_ever_more_slowly() -> None:
    """Until it knows this node nobody reaches it behind a NAT (campaign seed 6579)."""
    network = Network()
    start = network.now
    host = network.host(1)
    network.beacon = False
    network.run(58.0)
    times = discovers(network, host, start)
    assert [at for at in times if at < 12] == [0.0, 1.6, 4.8, 11.2]
    assert 24.0 in times
    assert len(times) == 7  # two periodic ones
    network.beacon = True
    network.run(60.0)
    back = network.now
    network.run(75.0)
    assert len(discovers(network, host, back)) == 3


def test_the_first_answer_ends_the_repeats() -> None:
    network = Network()
    start = network.now
    host = network.host(1)
    network.beacon = False
    network.run(3.0)
    network.beacon = True
    network.run(50.0)
    times = discovers(network, host, start)
    assert times[:3] == [0.0, 1.6, 4.8]
    assert all(at < 7.0 or at >= 20.0 for at in times)
