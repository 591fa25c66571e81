"""Closing: lingering, lost FINs, early FINs, both sides at once, five different ends (streams.md 10; DESIGN 6)."""

from __future__ import annotations

import itertools

import pytest

from pilot._fast.errors import ClosedError, PathError, ResetError
from pilot._fast.mux import MuxSettings
from tests.core.scripted import Talk, accepted, dialed
from tests.core.virtual import (
    CLOSED,
    CLOSED_WAKE,
    CLOSING,
    ESTABLISHED,
    FIN_WAIT,
    READ,
    TIME_WAIT,
    WRITE,
    Sent,
    connected,
    kind,
    transfer,
)
from tests.reference.packet import FIN


def fins(talk: Talk, seconds: float) -> list[float]:
    return [s.at for s in talk.wait(seconds) if s.kind == "FIN"]


class TestOwnClose:
    def test_with_nothing_outstanding_the_fin_leaves_at_once(self) -> None:
        network, talk = dialed()
        talk.core.close()
        [fin] = talk.seen()
        assert (fin.kind, fin.at) == ("FIN", network.now)
        assert talk.core.state == FIN_WAIT

    def test_idempotent(self) -> None:
        network, talk = dialed()
        for _ in range(3):
            talk.core.close()
        network.settle()
        assert len(talk.seen()) == 1
        talk.fin_ack(1)
        for _ in range(3):
            talk.core.close()
            talk.core.abort()
        assert talk.wait(60.0) == []
        assert talk.core.error() is None
        assert len([bits for bits in talk.core.owner.wakes if bits & CLOSED_WAKE]) == 1

    def test_what_has_arrived_is_acknowledged_before_the_fin(self) -> None:
        """A FIN acknowledges nothing (streams.md 10): the peer would have to take its last bytes for lost."""
        network, first, second = connected(0)
        first.write(b"0123456789")
        network.run(0.02)
        assert second.read(100) == b"0123456789"
        second.close()  # long before the delayed acknowledgment
        network.run(1.0)
        assert first.unacknowledged == 0

    def test_everything_written_arrives_before_the_end(self) -> None:
        for seed in range(20):
            network, first, second = connected(seed, loss=0.1, reorder=0.1)
            data = bytes(range(256)) * 200
            first.write(data)
            first.close()
            network.run(30.0)
            assert second.read(1 << 20) == data, seed
            assert second.read(1) == b"", seed
            assert second.error() is None
            assert first.error() is None
            assert first.state == CLOSED

    def test_a_slow_path_gets_all_the_time_it_needs_as_long_as_acks_advance(self) -> None:
        """`close` ends the stream after the data (DESIGN 6): the 5 s count from the last acknowledged byte."""
        network, first, second = connected(0, rate=50_000)
        data = bytes(range(256)) * 4000
        assert first.write(data) == len(data)
        first.close()
        network.run(40.0)
        assert second.readable == len(data)
        assert second.read(1 << 21) == data
        assert second.error() is None

    def test_a_reader_that_pauses_gets_everything_too(self) -> None:
        """The closer waits on a closed window as a writer would: the peer is alive and answers."""
        network, first, second = connected(0, MuxSettings(send_limit=4 << 20), MuxSettings(receive_limit=0))
        data = bytes(range(256)) * 16_000
        assert first.write(data) == len(data)
        network.run(2.0)
        first.close()
        network.run(20.0)
        got = bytearray()

        def read() -> bool:
            while chunk := second.read(1 << 20):
                got.extend(chunk)
            return second.at_eof

        network.run(30.0, read)
        assert bytes(got) == data
        assert second.error() is None

    def test_nobody_acknowledges_five_seconds(self) -> None:
        network, talk = dialed()
        talk.core.write(b"x" * 100)
        talk.seen()
        talk.core.close()
        assert talk.core.state == CLOSING
        started = network.now
        times = fins(talk, 30.0)
        assert times[0] - started == pytest.approx(5.0, abs=0.01)
        assert talk.core.state == CLOSED

    def test_an_early_fin_of_the_peer_does_not_stretch_it(self) -> None:
        """A FIN beyond a gap, again and again, while our data is unacknowledged: the limits hold."""
        network, talk = dialed()
        talk.core.write(b"x" * 100)
        talk.seen()
        talk.core.close()
        started = network.now
        for _ in range(15):
            talk.fin(50)
            network.run(2.0)
        first = [s.at - started for s in talk.seen() if s.kind == "FIN"]
        assert first
        assert first[0] < 6.0

    def test_lost_fins_are_repeated(self) -> None:
        for lost in range(5):
            network, first, second = connected(0)
            count = itertools.count()

            def drop(sent: Sent, count: itertools.count = count, lost: int = lost) -> bool:
                return sent.packet is not None and bool(sent.packet.flags & FIN) and next(count) < lost

            network.drop = drop
            first.close()
            network.run(9.0)
            assert second.at_eof, lost
            assert first.state >= TIME_WAIT, lost

    def test_a_lost_fin_ack(self) -> None:
        """The peer has ended; our repeated FIN is answered without a FIN flag, and that ends it here too."""
        network, first, second = connected(0)
        network.drop = lambda sent: sent.packet is not None and kind(sent.packet) == "FIN+ACK"
        first.close()
        network.run(9.0)
        assert second.at_eof
        assert first.state >= TIME_WAIT
        flags = [kind(sent.packet) for sent in network.packets() if sent.packet is not None]
        assert flags.count("FIN+ACK") == 1

    def test_close_drops_what_was_not_read(self) -> None:
        _network, talk = accepted()
        talk.data(b"unread")
        talk.core.close()
        with pytest.raises(ClosedError):
            talk.core.read(10)
        with pytest.raises(ClosedError):
            talk.core.write(b"x")
        assert talk.peer.target.mux.budget.used == 0


class TestBothAtOnce:
    @pytest.mark.parametrize("loss", [0.0, 0.3])
    def test_each_answers_once(self, loss: float) -> None:
        for seed in range(10):
            network, first, second = connected(seed, loss=loss)
            first.close()
            second.close()
            network.run(40.0)
            assert first.state == second.state == CLOSED
            sent = [kind(entry.packet) for entry in network.packets() if entry.packet is not None]
            assert sent.count("FIN+ACK") <= 4
            assert first.error() is None
            assert second.error() is None

    def test_with_data_in_both_directions(self) -> None:
        """No half close: what is unacknowledged when the other's FIN has its turn is forgotten, and nothing hangs."""
        for seed in range(20):
            network, first, second = connected(seed, loss=0.1)
            first.write(bytes(100_000))
            second.write(bytes(100_000))
            first.close()
            second.close()
            network.run(60.0)
            assert first.state == second.state == CLOSED, seed
            assert all(node.mux.all_streams() == [] for node in network.nodes)


class TestEarlyFin:
    def test_is_held_for_fifteen_seconds_of_silence_then_the_gap_is_an_error(self) -> None:
        """1.18.0 reports a plain end with the gap missing; ours says that bytes are missing."""
        network, talk = accepted()
        talk.data(b"12345")
        talk.fin(10)
        started = network.now
        talk.seen()
        [end] = [s for s in talk.wait(30.0) if s.kind == "FIN+ACK"]
        assert end.at - started == pytest.approx(15.0, abs=0.1)
        assert end.ack == 11
        assert talk.core.read(10) == b"12345"
        with pytest.raises(PathError):
            talk.core.read(10)

    def test_the_clock_starts_again_with_every_packet(self) -> None:
        network, talk = accepted()
        talk.fin(10)
        for _ in range(5):
            network.run(10.0)
            talk.ack()
        assert talk.core.state == ESTABLISHED
        talk.data(bytes(10), offset=0)
        assert talk.core.state == TIME_WAIT
        assert talk.core.read(100) == bytes(10)
        assert talk.core.read(1) == b""

    def test_far_ahead_it_is_ignored(self) -> None:
        network, talk = accepted()
        talk.fin(1 << 30)
        network.run(60.0)
        assert talk.core.state == ESTABLISHED

    def test_data_behind_a_fin_is_not_delivered(self) -> None:
        _network, talk = accepted()
        talk.fin(5)
        talk.data(b"12345SURPLUS", offset=0)
        assert talk.core.read(100)[:5] == b"12345"
        assert talk.core.state == TIME_WAIT


class TestFiveEnds:
    """FIN, reset, broken path, idle timeout and own close are five different outcomes."""

    def test_outcomes(self) -> None:
        network, fin = accepted()
        fin.fin()
        assert (fin.core.read(1), fin.core.error()) == (b"", None)
        network, reset = accepted()
        reset.rst()
        assert type(reset.core.error()) is ResetError
        network, broken = dialed()
        broken.core.write(b"x")
        network.run(200.0)
        assert type(broken.core.error()) is PathError
        network, idle = accepted()
        network.run(200.0)
        assert type(idle.core.error()) is TimeoutError
        network, own = accepted()
        own.core.close()
        own.fin_ack(1)
        network.run(20.0)
        assert own.core.error() is None
        with pytest.raises(ClosedError):
            own.core.read(1)

    def test_buffered_bytes_come_before_the_error(self) -> None:
        for end in ("rst", "silence"):
            network, talk = accepted()
            talk.data(b"buffered")
            if end == "rst":
                talk.rst()
            else:
                network.run(300.0)
            assert talk.core.state == CLOSED
            assert talk.core.read(4) == b"buff"
            assert talk.core.read(10) == b"ered"
            with pytest.raises((ResetError, TimeoutError)):
                talk.core.read(10)

    def test_abort(self) -> None:
        network, talk = accepted()
        talk.core.write(b"unacknowledged")
        talk.data(b"unread")
        talk.seen()
        talk.core.abort()
        network.settle()
        assert [s.kind for s in talk.seen()] == ["RST"]
        assert talk.core.state == CLOSED
        assert talk.peer.target.mux.all_streams() == []
        assert talk.peer.peer.in_flight == 0
        with pytest.raises(ClosedError):
            talk.core.write(b"x")

    def test_every_waiter_is_woken_by_the_end(self) -> None:
        for end in ("fin", "rst"):
            _network, talk = accepted()
            talk.core.interest = READ | WRITE
            getattr(talk, end)()
            [bits] = talk.core.owner.wakes
            assert bits & READ
            assert bits & WRITE
            assert bits & CLOSED_WAKE

    def test_an_ended_stream_leaves_the_tables(self) -> None:
        network, first, second = connected(0)
        transfer(network, first, second, bytes(100_000))
        first.close()
        network.run(60.0)
        for node in network.nodes:
            assert node.mux.all_streams() == []
            assert node.mux.live == 0
            assert node.datapath.peers()[0].open_streams == 0


class TestPeersThatDoNotFinish:
    def test_fin_wait_ends_by_time(self) -> None:
        network, talk = dialed()
        talk.core.close()
        network.run(12.0)
        assert talk.core.state == CLOSED
        assert len(talk.core.owner.wakes) == 1

    def test_a_closer_whose_peer_closed_its_window(self) -> None:
        """Unacknowledged data and window 0 from a peer that stays alive but never reads: the close ends in the end."""
        network, talk = dialed()
        talk.ack(0, window=0)
        talk.core.write(b"nobody reads this")
        talk.core.close()
        for _ in range(600):
            network.run(1.0)
            if any(s.kind == "DATA" for s in talk.seen()):
                talk.ack(0, window=0)
            if talk.core.state == CLOSED:
                break
        assert talk.core.state == CLOSED

    def test_a_closer_whose_peer_goes_silent_in_the_middle(self) -> None:
        network, first, second = connected(0, rate=100_000)
        first.write(bytes(500_000))
        first.close()
        network.run(2.0)
        network.drop = lambda sent: True
        network.run(100.0)
        assert first.state == CLOSED
        assert second.state in (ESTABLISHED, CLOSED)
