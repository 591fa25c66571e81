"""Which way frames go: first contact, relay, upgrade, reset (wire.md 11, 12.3; checklist 21-24)."""

from __future__ import annotations

import errno
from itertools import pairwise

import pytest

from pilot.protocol import beacon
from pilot.tunnel import Resolved, TunnelSettings
from tests.tunnel.fakes import BEACON, Address, Host, Network, kinds
from tests.tunnel.probe import met, node_and_probe

QUIET = TunnelSettings(probe_mtu=False)


def test_relay_only_peers_are_never_punched_or_probed() -> None:
    network, host, probe = node_and_probe()
    network.registry[9].found = Resolved(BEACON, relay_only=True)
    start = network.now
    host.send(probe, b"x")
    network.run(0.1)
    assert kinds(network.sent(host, start)) == ["relay PILA"]
    assert host.peer(probe).relay
    assert host.peer(probe).address is None
    probe.relay(probe.pila(), host)
    probe.relay(probe.sealed(host), host)
    for _ in range(20):
        host.send(probe)
        network.run(5.0)
    assert {target for target, _ in network.sent(host, start)} == {BEACON}
    assert "punch request" not in kinds(network.sent(host, start))


def test_a_registered_address_that_is_the_beacons_means_relay() -> None:
    network, host, probe = node_and_probe()
    network.registry[9].found = Resolved(BEACON)
    start = network.now
    host.send(probe, b"x")
    network.run(0.1)
    assert kinds(network.sent(host, start)) == ["relay PILA"]


def test_relay_only_node_shows_its_address_to_the_beacon_only() -> None:
    network = Network()
    hidden = network.host(1, settings=TunnelSettings(probe_mtu=False, relay_only=True))
    other = network.host(2)
    network.registry[1].found = Resolved(BEACON, relay_only=True)
    network.run(0.5)
    hidden.send(other, b"from hiding")
    network.run(1.0)
    other.send(hidden, b"to hiding")
    network.send(b"\x04\x04\xcb\x00\x71\x07\x9c\x40", BEACON, hidden.address)
    hidden.tunnel.local_address("192.0.2.1", network.now)
    hidden.tunnel.local_address("192.0.2.2", network.now)
    network.run(40.0)
    assert other.received() == [b"from hiding"]
    assert hidden.received() == [b"to hiding"]
    assert {target for target, _ in network.sent(hidden)} == {BEACON}
    assert all(target != hidden.address for target, _ in network.sent(other))


@pytest.mark.parametrize(
    ("own", "lan", "loopback", "used"),
    [
        (("192.168.7.2",), (("192.168.7.9", 5000),), False, True),
        (("192.168.8.2", "10.1.2.3"), (("10.9.9.9", 5000), ("10.1.2.77", 5000)), False, True),
        (("192.168.8.2",), (("192.168.7.9", 5000),), False, False),
        (("8.8.8.8",), (("8.8.8.9", 5000),), False, False),
        (("192.168.7.2",), (("192.168.7.9", 5000),), True, False),
        ((), (("192.168.7.9", 5000),), False, False),
        (("192.168.7.2",), (("nonsense", 5000),), False, False),
    ],
)
def test_same_lan(own: tuple[str, ...], lan: tuple, loopback: bool, used: bool) -> None:
    network, host, probe = node_and_probe()
    network.registry[9].found = Resolved(("127.0.0.1", 9) if loopback else probe.address, lan)
    host.tunnel.set_lan_addresses(list(own))
    start = network.now
    host.tunnel.contact(9, network.now)
    network.run(0.015)
    assert (host.peer(probe).address in lan) is used
    assert ("punch request" in kinds(network.sent(host, start))) is not used


def test_registry_outage_uses_the_last_endpoint_for_an_hour() -> None:
    network, host, probe = node_and_probe()
    host.send(probe)
    network.run(1.0)
    probe.send(probe.pila(), host)
    network.registry_up = False
    host.tunnel.forget(9, network.now)
    network.run(100.0)
    probe.take()
    host.send(probe)
    network.run(1.0)
    assert "PILA" in probe.take()
    host.tunnel.forget(9, network.now)
    network.run(3600.0)
    host.send(probe)
    network.run(1.0)
    assert host.failed[-1] == (9, "registry unreachable")


def test_a_resolve_answer_is_used_for_a_minute() -> None:
    network, host, _ = node_and_probe()
    host.tunnel.contact(9, network.now)
    network.run(1.0)
    host.tunnel.forget(9, network.now)
    network.run(30.0)
    host.tunnel.contact(9, network.now)
    assert host.resolves == [9]
    host.tunnel.forget(9, network.now)
    network.run(31.0)
    host.tunnel.contact(9, network.now)
    assert host.resolves == [9, 9]


def test_contact_is_idempotent() -> None:
    network, host, _ = node_and_probe()
    start = network.now
    for _ in range(5):
        host.tunnel.contact(9, network.now)
    network.run(0.05)
    for _ in range(5):
        host.tunnel.contact(9, network.now)
    assert host.resolves == [9]
    assert kinds(network.sent(host, start)).count("PILA") == 1


def test_blackhole_moves_to_relay_and_counts_anew() -> None:
    network, host, probe = met()
    network.run(8.5)
    probe.take()
    for _ in range(3):
        host.send(probe)
    network.run(0.1)
    assert probe.take() == ["PILS", "PILS", "deliver PILS"]


def test_direct_frames_alone_do_not_end_the_relay() -> None:
    network, host, probe = node_and_probe()
    probe.relay(probe.pila(), host)
    for _ in range(5):
        probe.send(probe.sealed(host), host)
        network.run(1.0)
    host.send(probe)
    network.run(0.1)
    assert host.peer(probe).address == probe.address
    assert probe.take()[-1] == "deliver PILS"


def test_relayed_frame_of_a_peer_without_address() -> None:
    _, host, probe = met()
    host.peer(probe).address = None
    probe.relay(probe.sealed(host), host)
    assert host.peer(probe).relay
    assert host.topics("tunnel.relay_activated") == [{"peer_node_id": 9}]


def test_unreachable_errors_move_to_relay() -> None:
    network, host, probe = met()
    peer = host.peer(probe)
    for error in (errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.EPERM):
        host.tunnel.send_failed(peer, error, 100, network.now)
    assert not peer.relay
    network.run(1.0)
    probe.send(probe.sealed(host), host)
    for error in (errno.ECONNREFUSED, errno.ENETUNREACH):
        host.tunnel.send_failed(peer, error, 100, network.now)
    assert not peer.relay
    host.tunnel.send_failed(peer, errno.ECONNREFUSED, 100, network.now)
    assert peer.relay


def test_a_dial_may_move_to_relay() -> None:
    network, host, probe = met()
    assert host.tunnel.dial_needs_relay(host.peer(probe), network.now)
    assert host.peer(probe).relay
    host.datapath.beacon = None
    host.peer(probe).relay = False
    assert not host.tunnel.dial_needs_relay(host.peer(probe), network.now)


def test_upgrade_attempts() -> None:
    network, host, probe = node_and_probe()
    probe.relay(probe.pila(), host)
    probe.relay(probe.sealed(host), host)
    start = network.now
    network.run(3.0)
    sent = [
        (round(at, 3), target, data)
        for at, source, target, data in network.log
        if source == host.address and at >= start and (target == probe.address or data[0] == 3) and data != b"PILP"
    ]
    assert kinds([(target, data) for _, target, data in sent]) == ["punch request", "PILS"]
    assert sent[1][0] - sent[0][0] == pytest.approx(0.4, abs=0.01)
    opened = probe.opened(host, sent[1][2])
    assert opened.plaintext[:2] == b"\x10\x03"  # version 1, no flags, control: a ping
    assert opened.plaintext[16:20] == b"\xff\xfc\0\0"
    assert opened.plaintext[34:] == b"pathprobe.v1"
    assert sent[0][0] - start == pytest.approx(1.0, abs=0.3)  # soon after the session, then with the sweep
    for attempts in (2, 3):
        network.run(15.0)
        assert kinds(network.sent(host, start)).count("punch request") == attempts


def test_a_peer_met_directly_is_not_upgraded() -> None:
    network, host, _ = met()
    start = network.now
    network.run(20.0)
    assert "punch request" not in kinds(network.sent(host, start))


def test_the_port_a_punch_command_names_is_tried_instead_of_the_registered_one() -> None:
    network, host, probe = node_and_probe()
    mapped = (probe.address[0], 61000)
    probe.relay(probe.pila(), host)
    probe.relay(probe.sealed(host), host)
    network._known[9] = mapped
    start = network.now
    network.run(3.0)
    targets = [target for target, data in network.sent(host, start) if kinds([(target, data)]) == ["PILS"]]
    assert targets == [mapped]


@pytest.mark.parametrize("endpoint", [("203.0.113.77", 61000), ("198.51.100.9", 4000)])
def test_a_punch_command_for_somebody_else_moves_nobody(endpoint: tuple[str, int]) -> None:
    network, host, probe = node_and_probe()
    probe.relay(probe.pila(), host)
    probe.relay(probe.sealed(host), host)
    network._known[9] = endpoint
    network.run(3.0)
    assert host.peer(probe).address == probe.address


def test_a_punch_command_nobody_asked_for_moves_nobody() -> None:
    network, host, probe = node_and_probe()
    probe.relay(probe.pila(), host)
    probe.relay(probe.sealed(host), host)
    network.run(10.0)
    network.send(beacon.encode_punch_command("198.51.100.9", 61000), BEACON, host.address)
    network.run(1.0)
    assert host.peer(probe).address == probe.address


def test_a_punch_command_does_not_move_a_peer_that_is_heard_directly() -> None:
    network, host, probe = met()
    network.send(beacon.encode_punch_command("198.51.100.9", 61000), BEACON, host.address)
    network.run(1.0)
    assert host.peer(probe).address == probe.address
    assert not host.peer(probe).relay


def test_a_path_that_died_makes_both_ends_ask_for_addresses() -> None:
    network = Network()
    a, b = network.pair()
    network.drop = lambda data, source, target: BEACON not in (source, target)
    start = network.now
    moved = ("203.0.113.200", 4000)
    network.registry[2].found = Resolved(moved)
    for _ in range(12):
        a.send(b)
        network.run(1.0)
    assert a.peer(b).relay
    assert "discover" in kinds(network.sent(a, start))
    network.run(16.0)
    assert a.peer(b).address == moved
    assert moved in {target for target, _ in network.sent(a, start)}


def died(network: Network, a: Host, b: Host) -> float:
    """Takes the direct way from both, until `a` has given it up; when that was."""
    network.drop = lambda data, source, target: BEACON not in (source, target)
    while not a.peer(b).relay:
        a.send(b)
        b.send(a)
        network.run(0.5)
    return network.now


def test_a_path_that_died_is_searched_for_soon_and_with_fresh_answers() -> None:
    network = Network()
    a, b = network.pair()
    start = died(network, a, b)
    asked: list[float] = []
    a.resolve = lambda node: asked.append(network.now - start) or Host.resolve(a, node)
    network.run(34.0)
    assert asked[0] < 1.5
    assert asked[-1] > 28.0
    assert max(later - before for before, later in pairwise(asked)) < 9.0
    assert 5 <= len(asked) <= 6  # not while the sweep's attempt is under way
    network.run(66.0)
    assert len([at for at in asked if at > 34]) <= 1  # once a minute from then on


def test_a_search_ends_with_the_direct_path_and_is_not_repeated_at_once() -> None:
    """On a path that is open one way only each attempt may cost 8 s."""
    network = Network()
    a, b = network.pair()
    died(network, a, b)
    network.drop = lambda data, source, target: False
    for _ in range(12):
        a.send(b)
        b.send(a)
        network.run(0.5)
    assert not a.peer(b).relay
    start = network.now
    network.run(10.0)
    assert "punch request" not in kinds(network.sent(a, start))
    start = died(network, a, b)
    network.run(9.0)
    assert kinds(network.sent(a, start)).count("punch request") <= 1  # the sweep's


def test_a_peer_that_was_never_looked_up_is_found_where_the_registry_says_it_is_now() -> None:
    """The callee has only heard the caller; the beacon says nothing here."""
    network = Network()
    a, b = network.pair()
    b.tunnel._paths._endpoints.clear()
    moved = ("203.0.113.200", 4000)
    network.registry[1].found = Resolved(moved)
    start = died(network, b, a)
    network.run(2.5)
    assert b.peer(a).address == moved
    assert "PILS" in kinds([sent for sent in network.sent(b, start) if sent[0] == moved])


def test_another_registered_port_does_not_move_a_peer_that_was_heard() -> None:
    network = Network()
    a, b = network.pair()
    b.tunnel._paths._endpoints.clear()
    network.registry[1].found = Resolved((a.address[0], 9))
    died(network, b, a)
    network.run(2.5)
    assert b.peer(a).address == a.address


class Translated(Network):
    """Every host is behind a NAT of its own that shows another port and lets nobody in who was not written to."""

    def __init__(self) -> None:
        super().__init__()
        self.opened: set[tuple[Address, Address]] = set()

    def send(self, data: bytes, source: Address, target: Address) -> int:
        if source != BEACON:
            source = public(source)
            self.opened.add((source, target))
        return super().send(data, source, target)

    def _deliver(self, data: bytes, source: Address, target: Address, now: float) -> None:
        if target == BEACON:
            super()._deliver(data, source, target, now)
        elif (target, source) in self.opened:
            super()._deliver(data, source, (target[0], target[1] - 50_000), now)


def public(address: Address) -> Address:
    return address[0], address[1] + 50_000


def test_two_nodes_behind_nats_with_other_ports_meet_directly() -> None:
    """Only the beacon knows the ports at which they are reached."""
    network = Translated()
    a, b = network.host(1), network.host(2)
    network.run(0.5)
    a.send(b, b"hello")
    network.run(0.5)
    assert b.received() == [b"hello"]
    assert a.peer(b).relay
    network.run(4.0)
    for _ in range(4):
        a.send(b)
        b.send(a)
        network.run(1.0)
    assert not a.peer(b).relay
    assert not b.peer(a).relay
    assert (a.peer(b).address, b.peer(a).address) == (public(b.address), public(a.address))


def test_two_nodes_get_back_to_direct() -> None:
    network = Network()
    a, b = network.host(1), network.host(2)
    network.run(0.5)
    network.drop = lambda data, source, target: BEACON not in (source, target)
    a.send(b, b"by relay")
    network.run(5.0)
    assert b.received() == [b"by relay"]
    b.send(a, b"by relay")
    network.run(1.0)
    assert a.peer(b).relay
    network.drop = lambda data, source, target: False
    for _ in range(8):
        a.send(b)
        b.send(a)
        network.run(5.0)
    assert not a.peer(b).relay
    assert not b.peer(a).relay
    assert a.session(b).received > 8


def test_idle_peers_are_not_upgraded() -> None:
    network, host, probe = node_and_probe()
    probe.relay(probe.pila(), host)
    network.run(125.0)
    start = network.now
    network.run(60.0)
    assert "punch request" not in kinds(network.sent(host, start))


def test_path_reset_keeps_the_session_and_asks_anew() -> None:
    network, host, probe = met()
    session = host.session(probe)
    host.peer(probe).relay = True
    start = network.now
    assert host.tunnel.reset_path(9, network.now)
    assert not host.tunnel.reset_path(9, network.now)
    network.run(0.05)
    assert host.session(probe) is session
    assert host.peer(probe).relay
    assert host.lookups[-1] == 9
    assert kinds(network.sent(host, start))[:3] == ["punch request", "relay PILA", "relay PILK"]
    assert host.tunnel._core.get(9).cycle is not None
    probe.relay(probe.sealed(host), host)
    assert host.tunnel._core.get(9).cycle is None


def test_path_reset_without_answer_from_the_registry_still_exchanges_keys() -> None:
    network, host, probe = met()
    network.registry_up = False
    host.tunnel.reset_path(9, network.now)
    network.run(0.2)
    assert probe.take() == ["PILA", "PILK", "deliver PILA", "deliver PILK"]


def test_a_peer_that_lost_everything_is_found_by_a_path_reset() -> None:
    network = Network()
    a, b = network.pair()
    b = network.restart(b)
    network.run(0.5)
    a.tunnel.reset_path(2, network.now)
    network.run(1.0)
    b.send(a, b"hello again")
    a.send(b, b"hello again")
    network.run(1.0)
    assert a.received()[-1] == b.received()[-1] == b"hello again"


def test_path_changes_of_unknown_peers_are_ignored() -> None:
    network, host, probe = met()
    peer = host.peer(probe)
    host.tunnel.forget(9, network.now)
    host.tunnel.path_changed(peer, "address", network.now)
    host.tunnel.heard(peer, True, network.now)
    host.tunnel.pong(peer, 1, 1, b"x", network.now)
    host.tunnel.send_failed(peer, errno.EMSGSIZE, 2000, network.now)
    host.tunnel.full_segments_lost(peer, network.now)
    host.tunnel.rekey_due(peer, network.now)
    assert not host.tunnel.dial_needs_relay(peer, network.now)
    assert not host.tunnel.reset_path(9, network.now)
    assert not host.tunnel.rekey(9, network.now)
    assert host.datapath.peers() == []


def test_endpoints_remembered_are_bounded() -> None:
    settings = TunnelSettings(probe_mtu=False, endpoint_cap=5)
    network, host, _ = node_and_probe(settings=settings)
    for node in range(20, 40):
        host.tunnel.contact(node, network.now)
        host.tunnel.resolved(node, Resolved(("203.0.113.1", node)), None, network.now)
    assert len(host.tunnel._paths._endpoints) == 5


def test_resolves_under_way_are_bounded() -> None:
    settings = TunnelSettings(probe_mtu=False, contact_cap=3)
    network, host, _ = node_and_probe(settings=settings)
    network.registry_answers = False
    for node in range(20, 30):
        host.tunnel.contact(node, network.now)
    assert host.resolves == [20, 21, 22]
    assert host.failed[0] == (23, "too many peers are being resolved")
    host.tunnel.forget(20, network.now)
    host.tunnel.contact(30, network.now)
    assert host.resolves[-1] == 30
