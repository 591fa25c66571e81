"""From the relay back to the direct path: what proves it, what a path open one way costs, and the back-off (L5)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from pilot._fast.seal import Session
from pilot.tunnel import Resolved
from pilot.tunnel.interfaces import Address
from tests.reference import frames
from tests.reference.addr import Address as NodeAddress
from tests.reference.packet import ACK, CONTROL, Packet, decode_untrusted
from tests.tunnel import probe as probes
from tests.tunnel.fakes import BEACON, FakeDatapath, FakePeer, Host, Network, kinds
from tests.tunnel.probe import Probe, node_and_probe
from tests.tunnel.real import RealNetwork

LASTING = 1800.0


@pytest.fixture(autouse=True)
def compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our nodes here have the compiled datapath."""
    monkeypatch.setattr(probes, "Network", RealNetwork)


class StockDatapath(FakeDatapath):
    """1.18.0 as observed by tests/interop (wire.md 7.5, 7.6, 8.2, 11.3, 11.4).

    A dead path pins a peer to the relay until the next attempt, one every 15 s: five empty frames. The third direct
    frame since then makes it direct, however far apart they are. Frames are read faster than answered. Its last packets
    go again as soon as a changed key is announced.
    """

    answers_both_ways = False
    pinned = False
    direct_frames = 0

    def use_direct(self, peer: FakePeer, now: float) -> None:
        """It asks for no proof, and believes none."""

    def attempt(self, now: float) -> None:
        """The sweep over relayed peers; there is one peer here."""
        self.host.network.call(now + 15.0, self.attempt)
        for peer in self.peers():
            if peer.relay:
                self.pinned = False
                for number in range(5):
                    self.host.network.call(now + 0.2 * number, lambda at, peer=peer: self._probe(peer, at))  # type: ignore[misc]

    def _probe(self, peer: FakePeer, now: float) -> None:
        self.send_control(peer, ACK, 0, 0, 1, b"", now, direct=True)

    def _by_relay(self, peer: FakePeer, now: float) -> bool:
        before = peer.relay
        if super()._by_relay(peer, now) and not before:
            self.pinned, self.direct_frames = True, 0
        return peer.relay

    def install_session(self, peer: FakePeer, session: Session, now: float, *, keep_previous: float = 0.0) -> None:
        renewed = peer.session is not None
        super().install_session(peer, session, now, keep_previous=keep_previous)
        if renewed:
            super().resend_datagrams(peer, 0.0, now)

    def resend_datagrams(self, peer: FakePeer, since: float, now: float) -> int:
        """It has been done already."""
        return 0

    def _opened(self, peer: FakePeer, packet: Packet, source: Address | None, now: float) -> None:  # type: ignore[override]
        self.direct_frames += source is not None and peer.relay and not self.pinned
        if self.direct_frames == 3:
            peer.relay, self.direct_frames = False, 0
        super()._opened(peer, packet, source, now)  # type: ignore[arg-type]

    def _dispatch(self, peer: FakePeer, packet: Packet, source: Address | None, now: float) -> None:  # type: ignore[override]
        later = super()._dispatch
        self.host.network.call(now + 0.001, lambda at: later(peer, packet, source, at))  # type: ignore[arg-type]


def stock(network: Network, node: int) -> Host:
    """A node with that datapath, and without what our control plane does about paths."""
    never: dict[str, Any] = {"call_over_seconds": (), "search_seconds": (), "upgrade_seconds": math.inf}
    host = network.host(node, start=False, settings=replace(network.settings, **never))
    host.datapath = datapath = StockDatapath(host)
    host.tunnel.attach(datapath)  # type: ignore[arg-type]
    paths: Any = host.tunnel._paths
    paths.heard_directly = paths.heard_relayed = paths._failover.moved = lambda state, now: None
    host.start()
    network.call(network.now + 15.0, datapath.attempt)
    return host


def shut(network: Network, source: Host, target: Host) -> None:
    """Nothing direct arrives from `source` at `target` any more."""
    network.drop = lambda data, sender, to: (sender, to) == (source.address, target.address)


def talk(network: Network, hosts: tuple[Host, Host], seconds: float, senders: Iterable[Host]) -> dict[int, list[float]]:
    """`senders` send two datagrams a second; when each of `hosts` got some, by node."""
    got: dict[int, list[float]] = {host.node: [network.now] for host in hosts}
    end = network.now + seconds
    while network.now < end:
        for host in senders:
            host.send(hosts[1] if host is hosts[0] else hosts[0])
        for _ in range(5):
            network.run(0.1)
            for host in hosts:
                if host.datapath.inbox:
                    host.datapath.inbox.clear()
                    got[host.node].append(network.now)
    for times in got.values():
        times.append(network.now)
    return got


def stalls(times: list[float]) -> list[float]:
    return [later - before for before, later in pairwise(times) if later - before > 2.0]


@pytest.mark.parametrize("senders", ["both", "a", "b"])
@pytest.mark.parametrize("deaf", ["a", "b"])
def test_a_path_open_one_way_costs_one_failover(deaf: str, senders: str) -> None:
    network = RealNetwork()
    a, b = hosts = network.pair()
    speaking = {"both": hosts, "a": (a,), "b": (b,)}[senders]
    shut(network, *((b, a) if deaf == "a" else (a, b)))
    start = network.now
    got = talk(network, hosts, LASTING, speaking)
    for host in hosts:
        other = b if host is a else a
        if other in speaking:
            assert len(stalls(got[host.node])) <= 1
            assert sum(stalls(got[host.node])) < 11.5
    assert a.peer(b).relay
    assert b.peer(a).relay
    assert kinds(network.sent(a, start)).count("punch request") <= 20


@pytest.mark.parametrize("senders", ["both", "ours", "stock"])
@pytest.mark.parametrize("deaf", ["ours", "stock"])
def test_a_path_open_one_way_to_a_1_18_0_peer(deaf: str, senders: str) -> None:
    """Our probes move it though we do not hear it: that costs a failover each time, and so the attempts back off."""
    network = RealNetwork()
    ours, other = hosts = network.host(1), stock(network, 2)
    network.run(0.5)
    speaking = {"both": hosts, "ours": (ours,), "stock": (other,)}[senders]
    talk(network, hosts, 5.0, hosts)
    assert not ours.peer(other).relay
    shut(network, *((other, ours) if deaf == "ours" else (ours, other)))
    got = talk(network, hosts, LASTING, speaking)
    for host in speaking:
        listener = other if host is ours else ours
        lost = stalls(got[listener.node])
        assert max(lost, default=0.0) < 18.0
        # One failover; when the attempts have backed off to 300 s, every third one leads to another.
        assert len(lost) <= (3 if deaf == "ours" else 1)
    assert ours.peer(other).relay


@pytest.mark.parametrize("make", [Network.host, stock])
def test_both_are_direct_again_once_the_path_is_open_both_ways(make: Callable[[Network, int], Host]) -> None:
    network = RealNetwork()
    hosts = a, b = network.host(1), make(network, 2)
    network.run(0.5)
    talk(network, hosts, 5.0, hosts)
    network.drop = lambda data, sender, to: BEACON not in (sender, to)
    talk(network, hosts, 20.0, hosts)
    assert a.peer(b).relay
    assert b.peer(a).relay
    network.drop = lambda data, sender, to: False
    got = talk(network, hosts, 120.0, hosts)
    assert not a.peer(b).relay
    assert not b.peer(a).relay
    assert [stalls(times) for times in got.values()] == [[], []]


def test_the_direct_path_is_found_when_the_beacon_has_gone() -> None:
    network = RealNetwork()
    hosts = a, b = network.pair()
    network.drop = lambda data, sender, to: BEACON not in (sender, to)
    talk(network, hosts, 14.0, hosts)
    network.drop = lambda data, sender, to: BEACON in (sender, to)
    got = talk(network, hosts, 40.0, hosts)
    assert not a.peer(b).relay
    assert not b.peer(a).relay
    assert max(max(stalls(times), default=0.0) for times in got.values()) < 20.0


# ---------------------------------------------------------------------------------------------- one step at a time


def relayed() -> tuple[Network, Host, Probe]:
    """A probe that was met by relay, after the first attempt."""
    network, host, probe = node_and_probe()
    probe.relay(probe.pila(), host)
    probe.relay(probe.sealed(host), host)
    network.run(3.0)
    return network, host, probe


def pongs(probe: Probe, host: Host) -> list[bytes]:
    """Answers to the direct pings the probe has got since it last looked."""
    probe.take()
    answers = []
    for data in probe.seen:
        if data[:4] != b"PILS":
            continue
        asked = decode_untrusted(probe.opened(host, data).plaintext)
        probe.counter += 1
        answer = Packet(
            NodeAddress(0, probe.node),
            NodeAddress(0, host.node),
            CONTROL,
            ACK,
            0,
            asked.source_port,
            asked.seq,
            asked.seq + 1 & 0xFFFFFFFF,
            payload=asked.payload,
        ).encode()
        answers.append(frames.seal(probe.key(host), probe.node, probe.prefix, probe.counter, answer))
    return answers


def test_a_pong_that_came_directly_proves_both_ways() -> None:
    _, host, probe = relayed()
    probe.send(pongs(probe, host)[0], host)
    assert not host.peer(probe).relay


def test_a_relayed_pong_proves_our_way_alone() -> None:
    network, host, probe = relayed()
    for answer in pongs(probe, host):
        probe.relay(answer, host)
    assert host.peer(probe).relay
    probe.send(probe.sealed(host), host)
    assert not host.peer(probe).relay
    assert network.now < 1020.0


def test_what_was_seen_long_ago_proves_nothing() -> None:
    network, host, probe = relayed()
    probe.relay(pongs(probe, host)[0], host)
    network.run(5.5)
    probe.send(probe.sealed(host), host)
    assert host.peer(probe).relay


def test_a_direct_frame_is_asked_back_at_once_and_then_every_five_seconds() -> None:
    network, host, probe = relayed()
    probe.take()
    start = network.now
    while network.now < start + 5.9:
        probe.send(probe.sealed(host), host)
    asked = [at - start for at, _, data in probe.got if data[:4] == b"PILS"]
    assert len(asked) == 10
    assert [asked[0], asked[5]] == pytest.approx([0.04, 5.04], abs=0.2)


def test_a_pong_from_before_the_peer_moved_proves_nothing() -> None:
    _, host, probe = relayed()
    (old, *_) = pongs(probe, host)
    probe.relay(old, host)
    probe.move(("198.51.100.77", 4077))
    probe.send(probe.sealed(host), host)
    probe.send(old, host)  # a replay is no proof either
    assert host.peer(probe).address == probe.address
    assert host.peer(probe).relay
    probe.send(pongs(probe, host)[0], host)
    assert not host.peer(probe).relay


def test_a_peer_registered_as_relay_only_is_not_asked_back() -> None:
    network, host, probe = node_and_probe()
    network.registry[9].found = Resolved(BEACON, relay_only=True)
    host.send(probe)
    network.run(0.1)
    probe.relay(probe.pila(), host)
    start = network.now
    for _ in range(5):
        probe.send(probe.sealed(host), host)
    assert host.peer(probe).relay
    assert probe.address not in {target for target, _ in network.sent(host, start)}


def attempts(network: Network, host: Host, start: float) -> list[int]:
    """When the beacon was asked for an introduction, in seconds from `start`."""
    asked = [at - start for at, source, _, data in network.log if source == host.address and data[0] == 3]
    return [round(at) for at in asked if at >= 0.0]


def test_attempts_in_vain_back_off() -> None:
    network, host, probe = relayed()
    start = network.now
    while network.now < start + 1500.0:
        probe.relay(probe.sealed(host), host)
        network.run(5.0)
    gaps = [later - before for before, later in pairwise(attempts(network, host, start))]
    assert gaps == pytest.approx([15, 30, 60, 120, 240, 300, 300, 300], abs=1)


def test_a_path_that_lasted_is_tried_soon_again_and_another_is_not() -> None:
    network = RealNetwork()
    a, b = hosts = network.pair()
    state = a.tunnel._core.get(2)
    assert state is not None

    def held_back_after_loss() -> float:
        """The path dies; for how long no attempt may be made then."""
        network.drop = lambda data, sender, to: BEACON not in (sender, to)
        while not a.peer(b).relay:
            talk(network, hosts, 0.5, hosts)
        held_back = state.upgrade.not_before - network.now
        talk(network, hosts, 60.0, hosts)
        return held_back

    def found() -> None:
        network.drop = lambda data, sender, to: False
        while a.peer(b).relay or b.peer(a).relay:
            talk(network, hosts, 1.0, hosts)

    assert held_back_after_loss() < 0.0
    found()
    spacing = state.upgrade.spacing
    assert spacing >= 30.0
    assert held_back_after_loss() > 15.0
    assert state.upgrade.spacing >= spacing
    found()
    talk(network, hosts, 61.0, hosts)
    assert held_back_after_loss() < 0.0
    assert state.upgrade.spacing < spacing


def test_a_peer_that_may_not_have_given_the_path_up_is_left_alone_for_a_while() -> None:
    network, host, probe = relayed()
    probe.send(pongs(probe, host)[0], host)
    assert not host.peer(probe).relay
    network.run(61.0)
    while not host.peer(probe).relay:
        host.send(probe)
        network.run(0.5)
    start = network.now
    for _ in range(35):
        host.send(probe)
        network.run(1.0)
    pings = [
        at - start
        for at, source, target, data in network.log
        if (source, target) == (host.address, probe.address) and data[:4] == b"PILS" and at > start
    ]
    assert 15.0 <= pings[0] <= 30.1


def test_another_own_address_lifts_the_back_off() -> None:
    network, host, probe = relayed()
    state = host.tunnel._core.get(9)
    assert state is not None
    host.tunnel.local_address("192.0.2.1", network.now)
    while state.upgrade.spacing < 60.0:
        probe.relay(probe.sealed(host), host)
        network.run(5.0)
    host.tunnel.local_address("192.0.2.2", network.now)
    start = network.now
    network.run(15.0)
    assert len(attempts(network, host, start)) >= 1
    assert state.upgrade.spacing == 15.0


def test_probes_remembered_are_bounded() -> None:
    _, host, probe = relayed()
    state = host.tunnel._core.get(9)
    assert state is not None
    for _ in range(200):
        probe.send(probe.sealed(host), host)
    assert len(state.upgrade.probes) == 10


def test_a_pong_withheld_for_long_proves_nothing() -> None:
    network, host, probe = relayed()
    (answer,) = pongs(probe, host)
    network.run(5.0)
    probe.relay(answer, host)
    probe.send(probe.sealed(host), host)
    assert host.peer(probe).relay


def test_a_path_that_dies_while_probes_are_being_sent_is_tried_again() -> None:
    network, host, probe = relayed()
    probe.take()
    probe.send(probe.sealed(host), host, settle=0.05)
    probe.send(pongs(probe, host)[0], host, settle=0.05)
    peer = host.peer(probe)
    assert not peer.relay
    peer.relay = True
    host.tunnel.path_changed(peer, "blackhole", network.now)
    start = network.now
    for _ in range(20):
        probe.relay(probe.sealed(host), host)
        network.run(2.0)
    assert "PILS" in kinds([(to, data) for to, data in network.sent(host, start) if to == probe.address])


def test_a_peer_that_answered_is_left_to_notice_when_its_way_opens() -> None:
    network, host, probe = relayed()
    probe.relay(pongs(probe, host)[0], host)
    start = network.now
    while network.now < start + 440.0:
        probe.relay(probe.sealed(host), host)
        network.run(5.0)
    seen = network.sent(host, start)
    assert len(attempts(network, host, start)) >= 4  # it is asked to punch, as its NAT may have to be opened
    assert "PILS" not in kinds([(to, data) for to, data in seen if to == probe.address])
    while network.now < start + 1500.0:
        probe.relay(probe.sealed(host), host)
        network.run(5.0)
    seen = network.sent(host, start)
    assert 1 <= kinds([(to, data) for to, data in seen if to == probe.address]).count("PILS") <= 4
