"""Keepalive, dead peers, idle nodes, and timers under an exact clock (streams.md 11)."""

from __future__ import annotations

import pytest

from tests.core.scripted import accepted, dialed, stage
from tests.core.virtual import CLOSED, ESTABLISHED, Scheduler, connected


class TestKeepalive:
    def test_two_of_ours_live_for_ever_and_say_little(self) -> None:
        network, first, second = connected(0)
        network.run(3600.0)
        assert first.state == second.state == ESTABLISHED
        assert len(network.log) <= 3600 / 30 * 4

    def test_probe_is_something_a_stock_peer_answers(self) -> None:
        _network, talk = accepted()
        talk.data(b"12345")
        talk.core.write(b"abc")
        talk.seen()
        talk.ack(3)
        talk.wait(1.0)
        [probe] = [s for s in talk.wait(31.0) if s.kind == "DATA"]
        assert (probe.seq, probe.payload, probe.ack) == (2, b"c", 5)

    def test_a_stock_peer_that_only_asks_is_kept(self) -> None:
        """It sends an empty ACK after 60 s of idleness and never answers ours with anything but ACKs."""
        network, talk = accepted()
        for _ in range(20):
            network.run(65.0)
            talk.ack()
        assert talk.core.state == ESTABLISHED

    def test_dead_peer(self) -> None:
        network, talk = accepted()
        probes = [s for s in talk.wait(119.0) if s.kind == "DATA"]
        assert len(probes) >= 3
        assert network.run(20.0, lambda: talk.core.state == CLOSED)
        assert 110.0 <= network.now - 1000.0 <= 140.0
        assert isinstance(talk.core.error(), TimeoutError)
        assert talk.peer.target.topics("conn.dead_peer")

    def test_dead_peer_is_told_by_fin_not_by_rst(self) -> None:
        """Section 19: RST from the keepalive reaper makes peers refuse new dials; section 10.1: FIN is used."""
        network, talk = accepted()
        network.run(140.0)
        assert [s.kind for s in talk.seen() if s.kind in ("FIN", "RST")][:1] == ["FIN"]

    def test_any_ack_flagged_packet_counts(self) -> None:
        network, talk = accepted()
        for _ in range(10):
            network.run(100.0)
            talk.ack()
        assert talk.core.state == ESTABLISHED
        network, talk = accepted()
        for _ in range(10):
            network.run(100.0)
            talk.peer.send(talk.make(0, talk.at(0), talk.theirs(0), b"no ack flag"))
        assert talk.core.state == CLOSED

    def test_outgoing_data_alone_keeps_nothing_alive(self) -> None:
        network, talk = dialed()
        for _ in range(200):
            if talk.core.state == CLOSED:
                break
            talk.core.write(b"x")
            network.run(1.0)
        assert talk.core.state == CLOSED

    def test_closing_streams_end_without_keepalive(self) -> None:
        network, talk = dialed()
        talk.core.close()
        network.run(500.0)
        assert talk.core.state == CLOSED
        assert talk.peer.target.datapath.next_deadline() - network.now <= 15.0


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """A virtual clock fires timers at exactly their deadline, to the last bit."""
    monkeypatch.setattr(Scheduler, "LATE", 0.0)


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("start", [0.1, 0.2, 0.3, 0.7, 1.1, 2.3])
def test_timers_at_their_exact_time(start: float) -> None:
    network, talk = accepted()
    network.run(start)
    talk.ack()
    network.run(100.0)
    talk.ack()
    talk.fin(50)
    network.run(14.0 + start)
    talk.ack()
    network.run(60.0)
    assert talk.core.state == CLOSED


@pytest.mark.usefixtures("exact")
def test_give_up_at_the_exact_time() -> None:
    network, talk = dialed()
    talk.core.write(b"x")
    assert network.run(200.0, lambda: talk.core.state == CLOSED)


def test_calling_the_timer_early_or_often_is_harmless() -> None:
    network, node, peer = stage()
    node.listen(7)
    talk = peer.open(7)
    talk.core.write(b"x")
    talk.seen()
    for _ in range(500):
        node.datapath.handle_timer(network.now)
        node.datapath.end_of_iteration()
    assert talk.seen() == []
    network.run(1.1)
    assert len(talk.seen()) == 1


def test_a_timer_that_comes_very_late_catches_up() -> None:
    """A suspended machine: an hour passes without a call."""
    network, node, peer = stage()
    node.listen(7)
    talk = peer.open(7)
    talk.core.write(b"x")
    talk.seen()
    network.now += 3600.0
    node.datapath.handle_timer(network.now)
    network.settle()
    assert talk.seen()
    network.run(100.0)
    assert talk.core.state == CLOSED
