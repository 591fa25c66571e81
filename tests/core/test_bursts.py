"""The self-check of segmentation offload: decisions, and transfers over ways that eat bursts, or do not."""

from __future__ import annotations

import logging
import random

import pytest

from pilot._fast.bursts import BurstCheck
from tests.core.virtual import Address, Network, VirtualNode, VirtualPort, pair, transfer


class Way:
    """A check and its clock. Every `flight` leaves at a time of its own."""

    def __init__(self) -> None:
        self.check = BurstCheck()
        self.now = 0.0

    def flight(self, *, arrived: int = 0, lost: int = 0) -> bool:
        """So many packets of one burst are judged; whether the next burst's beginning gives bursts up."""
        self.now += 1.0
        for has_arrived in [True] * arrived + [False] * lost:
            self.check.judge(self.now, has_arrived)
        return self.check.decide(self.now)

    def lone(self, *, arrived: int = 0, lost: int = 0) -> None:
        """Each packet leaves at a time of its own."""
        for has_arrived in [True] * arrived + [False] * lost:
            self.flight(arrived=has_arrived, lost=not has_arrived)


def test_bursts_that_never_arrive_are_given_up_after_two_trials() -> None:
    way = Way()
    assert not way.flight(lost=8)
    assert way.check.single
    assert not way.flight(arrived=32)
    assert not way.check.single
    assert not way.flight(lost=8)
    assert way.check.single
    assert way.flight(arrived=32)
    assert (way.check.off, way.check.single) == (True, True)
    assert not way.flight(arrived=100)
    assert way.check.single
    way.check.reset()
    assert (way.check.off, way.check.single) == (False, False)


def test_three_packets_of_one_burst_prove_the_path() -> None:
    way = Way()
    way.flight(arrived=3)
    assert way.check.proven
    way.flight(lost=1000)
    assert not way.check.single


@pytest.mark.parametrize("before", [0, 2, 200])
def test_lone_packets_prove_nothing(before: int) -> None:
    way = Way()
    way.lone(arrived=before)
    assert not way.check.proven
    way.flight(lost=100)
    assert way.check.single


def test_some_loss_among_lone_packets_is_no_suspicion() -> None:
    way = Way()
    for _ in range(100):
        way.lone(arrived=3, lost=1)
        assert not way.check.single


def test_a_path_that_loses_single_datagrams_too_keeps_its_bursts() -> None:
    way = Way()
    way.flight(lost=8)
    for _ in range(4):
        way.flight(arrived=6, lost=2)
    assert (way.check.single, way.check.off) == (False, False)
    way.flight(lost=50)
    assert not way.check.single  # not again within a minute
    way.now += 60
    way.flight(lost=50)
    assert way.check.single


def test_a_dark_spell_is_not_held_against_bursts() -> None:
    way = Way()
    for _ in range(10):
        way.check.doubt()
        way.flight(lost=8)
        assert way.check.single
        way.flight(arrived=32)
        assert not way.check.single
        way.flight(arrived=3)
        assert way.check.proven
    assert not way.check.off


def test_what_left_before_a_trial_does_not_count_in_it() -> None:
    way = Way()
    way.flight(lost=8)
    before = way.now
    for _ in range(100):
        way.check.judge(before, False)
    way.flight(arrived=32)
    way.flight(lost=8)
    assert way.flight(arrived=32)


class Eater(VirtualPort):
    """A port whose kernel cuts bursts, upon which they are lost."""

    def __init__(self, network: Network, address: Address) -> None:
        super().__init__(network, address)
        self.segmenting = True
        self.eaten = 0
        self.eats = True

    def send_burst(self, data: bytes, segment: int, address: Address) -> None:
        if len(data) > segment and self.eats:
            self.eaten += 1
        else:
            super().send_burst(data, segment, address)


def eaters(monkeypatch: pytest.MonkeyPatch, **link: float) -> tuple[Network, VirtualNode, VirtualNode]:
    monkeypatch.setattr("tests.core.virtual.VirtualPort", Eater)
    return pair(1, **link)


def moved(network: Network, a: VirtualNode, b: VirtualNode, port: int, size: int, seconds: float) -> float:
    """Virtual seconds `size` bytes take from `a` to `b`; fails when they do not arrive in time."""
    listener = b.listen(port)
    stream = a.dial(b, port)
    assert network.run(10, lambda: bool(listener.streams))
    data = random.Random(port).randbytes(size)
    began = network.now
    same = transfer(network, stream, listener.streams[0], data, seconds) == data
    assert same
    return network.now - began


def test_where_bursts_are_eaten_single_datagrams_go_through(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    network, a, b = eaters(monkeypatch)
    with caplog.at_level(logging.WARNING, "pilot.datapath"):
        moved(network, a, b, 7, 1_000_000, 30.0)
    assert a.peer(b).path.bursts.off
    assert a.datapath.counters["bursts_given_up"] == 1
    assert [record.getMessage() for record in caplog.records] == [
        "UDP segmentation offload is not used towards node 2: bursts are lost on the way, single datagrams arrive"
    ]
    eaten = a.port.eaten  # type: ignore[attr-defined]
    assert moved(network, a, b, 8, 1_000_000, 30.0) < 2.0
    assert a.port.eaten == eaten  # type: ignore[attr-defined]
    a.peer(b).address = ("10.9.9.9", 1)
    assert not a.peer(b).path.bursts.single


@pytest.mark.parametrize("link", [{"loss": 0.0}, {"loss": 0.2}, {"loss": 0.02, "rate": 200_000, "queue": 8_000}])
def test_where_they_arrive_bursts_stay(monkeypatch: pytest.MonkeyPatch, link: dict[str, float]) -> None:
    monkeypatch.setattr(Eater, "send_burst", VirtualPort.send_burst)
    network, a, b = eaters(monkeypatch, **link)
    moved(network, a, b, 7, 400_000, 300.0)
    assert not a.peer(b).path.bursts.off
    assert a.datapath.counters["bursts_given_up"] == 0


def test_without_segmentation_there_is_nothing_to_check(monkeypatch: pytest.MonkeyPatch) -> None:
    network, a, b = eaters(monkeypatch)
    a.port.segmenting = b.port.segmenting = False
    listener = b.listen(7)
    stream = a.dial(b, 7)
    assert network.run(10, lambda: bool(listener.streams))
    stream.write(bytes(100_000))
    network.run(30)
    assert not a.peer(b).path.bursts.single


def test_a_port_that_stops_cutting_bursts_gets_whole_ones_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel has refused one: from then on the port cuts them itself, and single datagrams would only be slow."""
    network, a, b = eaters(monkeypatch)
    moved(network, a, b, 7, 1_000_000, 30.0)
    a.port.segmenting = False
    a.port.eats = False  # type: ignore[attr-defined]
    bursts = []
    send_burst = a.port.send_burst

    def counted(data: bytes, segment: int, address: Address) -> None:
        bursts.append(len(data) > segment)
        send_burst(data, segment, address)

    monkeypatch.setattr(a.port, "send_burst", counted)
    moved(network, a, b, 8, 1_000_000, 30.0)
    assert any(bursts)
