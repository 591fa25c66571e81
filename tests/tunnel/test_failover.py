"""From a dead direct path to the relay: relayed frames as hints, forged addresses, calls to the other end (L5)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pilot.tunnel import TunnelSettings
from tests.tunnel import probe as probes
from tests.tunnel.fakes import BEACON, Address, Host, Network, kinds
from tests.tunnel.probe import Probe, met
from tests.tunnel.real import RealNetwork
from tests.tunnel.test_upgrades import pongs, talk

SETTINGS = TunnelSettings(probe_mtu=False)
PINGS = SETTINGS.check_pings
JUDGED = (PINGS - 1) * SETTINGS.upgrade_spacing_seconds + SETTINGS.check_wait_seconds
ELSEWHERE: Address = ("203.0.113.66", 53)


@pytest.fixture(autouse=True)
def compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our nodes here have the compiled datapath."""
    monkeypatch.setattr(probes, "Network", RealNetwork)


def pings(network: Network, host: Host, target: Address, start: float) -> list[float]:
    """When sealed frames went straight to an address, in seconds from `start`."""
    return [
        at - start
        for at, source, to, data in network.log
        if (source, to) == (host.address, target) and data[:4] == b"PILS" and at >= start
    ]


def relayed_frame(probe: Probe, host: Host) -> None:
    probe.relay(probe.sealed(host), host)


def test_a_relayed_frame_of_a_direct_peer_that_answers_no_direct_ping() -> None:
    network, host, probe = met()
    start = network.now
    relayed_frame(probe, host)
    assert not host.peer(probe).relay
    network.run(JUDGED - 0.1)
    assert not host.peer(probe).relay
    network.run(0.1)
    assert host.peer(probe).relay
    assert pings(network, host, probe.address, start) == pytest.approx([0.02 + 0.2 * n for n in range(PINGS)], abs=0.01)
    assert host.topics("tunnel.relay_activated") == [{"peer_node_id": probe.node}]


@pytest.mark.parametrize("way", ["direct", "relay"])
def test_a_pong_by_either_way_leaves_it_direct(way: str) -> None:
    network, host, probe = met()
    start = network.now
    relayed_frame(probe, host)
    (answer,) = pongs(probe, host)
    (probe.send if way == "direct" else probe.relay)(answer, host)
    network.run(5.0)
    assert not host.peer(probe).relay
    assert len(pings(network, host, probe.address, start)) <= 2


def test_another_pong_than_that_of_the_check_proves_nothing() -> None:
    network, host, probe = met()
    relayed_frame(probe, host)
    (answer,) = pongs(probe, host)
    network.run(SETTINGS.upgrade_fresh_seconds + 0.1)
    assert host.peer(probe).relay
    probe.relay(answer, host)
    probe.send(probe.sealed(host), host)
    assert host.peer(probe).relay  # a pong withheld for so long says nothing about now


def test_relayed_frames_of_a_hostile_peer_cause_few_pings() -> None:
    network, host, probe = met()
    start = network.now
    while network.now < start + 20.0:
        probe.relay(probe.sealed(host), host, settle=0.02)
        for answer in pongs(probe, host):
            probe.relay(answer, host, settle=0.0)
        probe.send(probe.sealed(host), host, settle=0.0)  # not so silent that the path is given up
    assert not host.peer(probe).relay
    assert len(pings(network, host, probe.address, start)) <= 20.0 / SETTINGS.check_spacing_seconds * 2


def test_relayed_frames_in_a_relay_only_node_cause_none() -> None:
    network, host, probe = met(settings=replace(SETTINGS, relay_only=True))
    start = network.now
    for _ in range(20):
        relayed_frame(probe, host)
    assert pings(network, host, probe.address, start) == []


# --------------------------------------------------------------------------------------- addresses nobody vouches for


def test_an_address_that_answers_nothing_gets_data_for_two_seconds() -> None:
    network, host, probe = met()
    start = network.now
    for _ in range(60):
        probe.send(probe.sealed(host), host, source=ELSEWHERE)  # its source is forged
        host.send(probe)
    sent = pings(network, host, ELSEWHERE, start)
    assert len(sent) > PINGS
    # After that only probes; four more probes for every five seconds in which frames go on coming from there.
    late = [at for at in sent if at > JUDGED + 0.2]
    assert host.peer(probe).relay
    assert len(late) <= 2 * SETTINGS.upgrade_probes


def test_an_address_that_answers_is_kept() -> None:
    network, host, probe = met()
    probe.move(("198.51.100.77", 4077))
    probe.send(probe.sealed(host), host)
    (answer,) = pongs(probe, host)
    probe.send(answer, host)
    network.run(5.0)
    assert host.peer(probe).address == probe.address
    assert not host.peer(probe).relay


def test_the_answer_of_the_old_address_does_not_vouch_for_the_new_one() -> None:
    network, host, probe = met()
    relayed_frame(probe, host)
    (answer,) = pongs(probe, host)
    probe.send(probe.sealed(host), host, source=ELSEWHERE)
    probe.relay(answer, host)
    network.run(JUDGED + 0.5)
    assert host.peer(probe).relay


def test_a_new_key_from_a_forged_address_is_checked_too() -> None:
    network, host, probe = met()
    probe.send(probe.sealed(host), host)
    probe.new_key(7)
    probe.send(probe.pila(), host, source=ELSEWHERE)
    start = network.now
    for _ in range(40):
        probe.send(probe.sealed(host), host, source=ELSEWHERE)
    assert host.peer(probe).relay
    assert len(pings(network, host, ELSEWHERE, start)) < 20


def test_a_peer_whose_address_keeps_changing_is_relayed() -> None:
    """Though its true address answers, as when it forges every other frame."""
    network, host, probe = met()
    start = network.now
    forged = 0
    for number in range(500):
        probe.send(probe.sealed(host), host, source=ELSEWHERE if number % 2 else None, settle=0.05)
        host.send(probe)
        for answer in pongs(probe, host):
            probe.relay(answer, host, settle=0.0)
        forged = len(pings(network, host, ELSEWHERE, start))
    assert host.peer(probe).relay
    assert host.tunnel.counters["address_flapping"] <= 3  # at once, for the first time, and then after 15 s
    # Then as many probes as ask any peer back that is heard directly.
    assert forged <= 5 + (network.now - start) / SETTINGS.upgrade_reply_seconds * SETTINGS.upgrade_probes


def test_addresses_may_change_now_and_then() -> None:
    network, host, probe = met()
    for number in range(30):
        probe.move(("198.51.100.77", 4000 + number))
        probe.send(probe.sealed(host), host)
        for answer in pongs(probe, host):
            probe.send(answer, host)
        network.run(20.0)
        assert not host.peer(probe).relay


# -------------------------------------------------------------------------------------------------- loss is no death


def flips(hosts: tuple[Host, Host]) -> int:
    return sum(len(host.topics("tunnel.relay_activated")) for host in hosts)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("senders", ["both", "a"])
@pytest.mark.parametrize("start", ["direct", "relay"])
def test_random_loss_leads_to_the_relay_no_more_often_than_before(start: str, senders: str, seed: int) -> None:
    """Before: with no check at all. A sender that is not answered was silent for 8 s, and is asked now."""

    def lossy(settings: TunnelSettings) -> int:
        network = RealNetwork(seed, settings=settings)
        hosts = a, _ = network.pair()
        if start == "relay":
            network.drop = lambda data, sender, to: BEACON not in (sender, to)
            talk(network, hosts, 14.0, hosts)
            network.drop = lambda data, sender, to: False
        for host in hosts:
            host.events.clear()
        network.loss = 0.3
        talk(network, hosts, 900.0, hosts if senders == "both" else (a,))
        return flips(hosts)

    before = lossy(replace(SETTINGS, check_spacing_seconds=1e9, ask_spacing_seconds=1e9))
    found = lossy(SETTINGS)
    assert found <= min(before, 2)
    assert before > 5 or senders == "both"


# ----------------------------------------------------------------------------------------------------- calling over


def silent_until_relayed() -> tuple[Network, Host, Probe, float]:
    """A peer that has gone silent; the time at which the direct path was given up."""
    network, host, probe = met()
    while not host.peer(probe).relay:
        host.send(probe)
        network.run(0.1)
    return network, host, probe, network.now


def bursts(network: Network, host: Host, start: float) -> list[float]:
    """When at least as many relayed frames as a call has left at once, in seconds from `start`."""
    times = [
        at for at, source, to, data in network.log if source == host.address and kinds([(to, data)]) == ["relay PILS"]
    ]
    return [
        round(at - start, 1) for at in sorted(set(times)) if at > start and times.count(at) >= SETTINGS.call_over_pings
    ]


def test_a_silent_peer_is_called_three_times() -> None:
    network, host, _, start = silent_until_relayed()
    network.run(14.0)
    assert bursts(network, host, start) == pytest.approx([1.0, 8.3, 8.8], abs=0.15)
    assert host.tunnel.counters["peers_called_over"] == 3


def test_a_peer_that_is_heard_is_not_called() -> None:
    network, host, probe, start = silent_until_relayed()
    for _ in range(7):
        relayed_frame(probe, host)
        network.run(2.0)
    assert bursts(network, host, start) == []
