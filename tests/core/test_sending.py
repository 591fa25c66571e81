"""Sending: flushes, windows, loss recovery, timeouts, give-up, closed windows (streams.md 9; DESIGN 3 and 4)."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from pilot._fast.errors import ClosedError, PathError
from pilot._fast.mux import MuxSettings
from tests.core.scripted import Talk, dialed, stage
from tests.core.virtual import (
    ACKED,
    CLOSED,
    ESTABLISHED,
    WRITE,
    Network,
    Sent,
    connected,
    pair,
    transfer,
)
from tests.reference.packet import ACK


def data_seen(talk: Talk, seconds: float = 0.0) -> list[tuple[int, int]]:
    return [(s.seq, len(s.payload)) for s in talk.wait(seconds) if s.kind == "DATA" and s.seq >= 0]


class TestFlush:
    def test_first_write_at_once_others_once_per_iteration(self) -> None:
        network, talk = dialed()
        network.forget()
        talk.core.write(b"first")
        assert len(network.log) == 1
        for n in range(10):
            talk.core.write(b"later" * n)
        assert len(network.log) == 1
        network.settle()
        assert len(network.log) == 2
        assert network.packets()[1].packet.payload == b"".join(b"later" * n for n in range(10))  # type: ignore[union-attr]
        talk.core.write(b"next iteration")
        assert len(network.log) == 3

    def test_first_write_of_the_node_not_of_each_stream(self) -> None:
        network, node, peer = stage()
        talks = [peer.accept(node.dial(peer, 80 + n)) for n in range(3)]
        network.run(0.1)
        network.forget()
        for talk in talks:
            talk.core.write(b"x")
        assert len(network.log) == 1
        network.settle()
        assert len(network.log) == 3

    def test_streams_take_turns(self) -> None:
        """A burst each: a stream with much to send does not keep another waiting for its end."""
        network, a, b = pair(0, MuxSettings(send_limit=4 << 20), rate=1_000_000)
        listener = b.listen(7)
        big, small = a.dial(b, 7), a.dial(b, 7)
        network.run(1.0)
        big.write(bytes(4 << 20))
        small.write(bytes(20_000))
        target = listener.streams[1]
        assert network.run(2.0, lambda: target.stats().received == 20_000)
        assert listener.streams[0].stats().received < 4 << 20

    def test_timer_is_rearmed_only_when_earlier(self) -> None:
        """A busy stream moves its deadline back all the time; the node's one loop timer hears nothing of it."""
        network, talk = dialed()
        talk.core.write(b"x")
        talk.seen()
        arms = talk.peer.target.scheduler.arms
        for n in range(100):
            network.run(0.0005)
            talk.ack(1 + n)
            talk.core.write(b"x")
            talk.seen()
        assert talk.peer.target.scheduler.arms - arms < 40

    def test_an_idle_node_sleeps(self) -> None:
        network, a, b = pair(0)
        listener = b.listen(7)
        stream = a.dial(b, 7)
        network.run(1.0)
        stream.write(bytes(10_000))
        network.run(1.0)
        assert listener.streams
        arms = a.scheduler.arms
        network.run(100.0)
        assert a.scheduler.arms - arms < 30

    def test_writes_of_any_buffer(self) -> None:
        _, talk = dialed()
        for data in (b"bytes", bytearray(b"array"), memoryview(b"view")):
            assert talk.core.write(data) == len(data)
        assert talk.core.write(b"offset", 3) == 3
        assert talk.core.write(b"offset", 6) == 0
        assert talk.core.write(b"offset", 60) == 0
        assert talk.core.write(b"") == 0
        assert b"".join(s.payload for s in talk.wait(0.0)) == b"bytesarrayviewset"
        with pytest.raises(TypeError):
            talk.core.write("text")

    def test_a_negative_offset_is_refused(self) -> None:
        _, talk = dialed()
        with pytest.raises((ValueError, IndexError, OverflowError)):
            talk.core.write(b"offset", -1)
        assert talk.core.written == 0


class TestWindows:
    def test_slots_and_bytes_between_ours(self) -> None:
        """A slot is worth 1152 bytes between our nodes: never more than slots segments, nor slots x 1152 bytes."""
        _, talk = dialed(window=600, settings=MuxSettings(send_limit=8 << 20))
        assert talk.core.peer_is_ours
        talk.peer.peer.segment_bytes = 60_000
        talk.core.write(bytes(4 << 20))
        top = 0
        for _ in range(60):
            for at, length in data_seen(talk):
                top = max(top, at + length)
                assert top - talk.got <= 600 * 1152
            talk.ack(min(top, talk.got + 20_000))
        assert top > 600 * 1152

    def test_larger_segments_to_a_stock_peer_stay_within_its_socket_buffer(self) -> None:
        _, talk = dialed(window=512, settings=MuxSettings(send_limit=16 << 20))
        talk.peer.peer.segment_bytes = 60_000
        talk.core.write(bytes(16 << 20))
        top = 0
        for _ in range(200):
            for at, length in data_seen(talk):
                assert length <= 32_000
                top = max(top, at + length)
                assert top - talk.got <= 2 << 20
            talk.ack(talk.got + (top - talk.got) // 2)
        assert top > 4 << 20

    def test_window_update_with_unchanged_ack_wakes_the_sender(self) -> None:
        network, talk = dialed(window=2)
        for _ in range(6):
            talk.core.write(b"x")
            network.settle()
        assert len(data_seen(talk)) == 2
        talk.ack(0, window=4)
        assert len(data_seen(talk)) >= 1

    def test_the_mark_is_a_hint(self) -> None:
        """DESIGN section 4: segments beyond 128 behind a hole that are never SACKed turn it off for the peer."""
        network, talk = dialed(window=1000, settings=MuxSettings(send_limit=4 << 20))
        assert talk.core.peer_is_ours
        talk.peer.peer.segment_bytes = 100
        for _ in range(10):
            talk.core.write(bytes(40_000))
            got = max((at + length for at, length in data_seen(talk)), default=0)
            talk.ack(got)
        talk.core.write(bytes(60_000))
        network.settle()
        base = talk.got
        sent = data_seen(talk)
        assert len(sent) > 200
        for _ in range(40):
            # A stock reorder buffer: of everything behind the hole it holds the first 128 segments, and repeats so.
            talk.ack(base, blocks=[(base + 100, base + 100 + 12_800)])
            network.run(0.05)
            talk.seen()
        assert not talk.core.peer_is_ours

    def test_room_and_backpressure(self) -> None:
        _, talk = dialed(settings=MuxSettings(send_limit=10_000, max_send_limit=10_000))
        assert talk.core.writable == 10_000
        assert talk.core.write(bytes(30_000)) == 10_000
        assert talk.core.write(b"x") == 0
        talk.core.interest = WRITE
        talk.seen()
        talk.ack(1152)
        assert talk.core.owner.wakes == []
        talk.ack(6000)
        assert [bits & WRITE for bits in talk.core.owner.wakes] == [WRITE]
        assert talk.core.write(bytes(30_000)) == 6000

    def test_drain(self) -> None:
        _, talk = dialed()
        talk.core.write(bytes(3000))
        talk.seen()
        for at in (1152, 2304, 3000):
            talk.core.interest = ACKED
            talk.ack(at)
            assert talk.core.unacknowledged == 3000 - at
        assert talk.core.owner.wakes == [ACKED] * 3


class TestAcceptanceOfAcks:
    def test_an_ack_of_what_was_never_sent_is_ignored(self) -> None:
        _, talk = dialed()
        talk.core.write(b"x" * 10)
        talk.seen()
        for beyond in (11, 1000, 2**31 - 1):
            talk.peer.send(talk.make(ACK, talk.at(0), talk.theirs(beyond)))
        assert talk.core.unacknowledged == 10
        talk.ack(10)
        assert talk.core.unacknowledged == 0

    def test_an_old_ack_is_ignored_and_its_data_taken(self) -> None:
        _, talk = dialed()
        talk.core.write(b"x" * 10)
        talk.seen()
        talk.ack(10)
        talk.data(b"with an old ack", ack=5)
        assert talk.core.unacknowledged == 0
        assert talk.core.read(100) == b"with an old ack"

    def test_an_old_sack_is_not_data(self) -> None:
        """Delayed by more than a round trip it speaks of bytes far below SND.UNA; it must not reach the reader."""
        _, talk = dialed()
        top = 0
        for _ in range(50):
            talk.core.write(bytes(2000))
            top = max([top, *(at + n for at, n in data_seen(talk))])
            talk.ack(top)
        assert top == 100_000
        for left in range(0, 100_000, 1000):
            talk.ack(left, blocks=[(left + 100, left + 600)])
        assert talk.core.readable == 0

    def test_unknown_window_of_a_reset_stream(self) -> None:
        _, talk = dialed()
        talk.rst()
        with pytest.raises(ConnectionResetError):
            talk.core.write(b"x")
        assert talk.core.state == CLOSED


class TestRecovery:
    def lose(self, network: Network, *numbers: int) -> None:
        """Drop the n-th data segments that node 1 sends from now on."""
        count = 0
        wanted = set(numbers)

        def drop(sent: Sent) -> bool:
            nonlocal count
            if sent.packet is None or not sent.packet.payload or sent.source != network.nodes[0].address:
                return False
            count += 1
            return count - 1 in wanted

        network.drop = drop

    def test_a_single_loss_costs_about_one_round_trip(self) -> None:
        network, sender, receiver = connected(0, delay=0.05)
        data = bytes(30_000)
        self.lose(network, 5)
        started = network.now
        assert transfer(network, sender, receiver, data) == data
        assert network.now - started < 0.05 + 0.1 + 0.06
        assert sender.stats().retransmissions == 1

    def test_many_losses_of_one_window_cost_about_one_round_trip(self) -> None:
        """1.18.0 needs a round trip for each."""
        network, sender, receiver = connected(0, delay=0.05)
        data = bytes(36_000)
        self.lose(network, *range(3, 20, 2))
        started = network.now
        assert transfer(network, sender, receiver, data) == data
        assert network.now - started < 0.4
        assert sender.stats().retransmissions <= 12

    def test_a_lost_tail_is_probed(self) -> None:
        """The last segment: no later one tells of it; a probe after two round trips, not a timeout."""
        network, sender, receiver = connected(0, delay=0.02)
        transfer(network, sender, receiver, bytes(5000))
        network.run(1.0)
        self.lose(network, 2)
        started = network.now
        assert transfer(network, sender, receiver, bytes(3000)) == bytes(3000)
        assert network.now - started < 0.02 + 2 * 0.04 + 0.005 + 0.06

    def test_a_new_stream_knows_the_path(self) -> None:
        """An accepted stream has measured nothing yet, but its path has: no second is lost on its first loss."""
        network, first, second = connected(0, delay=0.02)
        transfer(network, second, first, bytes(5000))
        a, b = network.nodes
        listener = b.listen(9)
        stream = a.dial(b, 9)
        network.run(0.2)
        [accepted_stream] = listener.streams
        network.drop = lambda sent: True
        accepted_stream.write(b"lost at first")
        network.drop = None
        assert network.run(0.3, lambda: stream.readable == 13)

    def test_no_tail_probe_after_a_timeout(self) -> None:
        """A peer that is gone gets each segment once per timeout."""
        network, talk = dialed()
        talk.core.write(bytes(100))
        talk.ack(100)
        network.run(1.0)
        talk.core.write(bytes(100))
        started = network.now
        times = [s.at - started for s in talk.wait(5.0) if s.kind == "DATA" and s.seq == 100]
        assert len(times) <= 2 + 6
        assert all(b - a > 0.15 for a, b in itertools.pairwise(times))

    def test_a_lost_retransmission_is_noticed(self) -> None:
        network, sender, receiver = connected(0, delay=0.05)
        transfer(network, sender, receiver, bytes(20_000))
        seen: dict[int, int] = {}

        def drop(sent: Sent) -> bool:
            p = sent.packet
            if p is None or len(p.payload) < 100:
                return False
            seen[p.seq] = seen.get(p.seq, 0) + 1
            return p.seq == victim and seen[p.seq] <= 2

        network.drop = lambda sent: False
        data = bytes(2_000_000)
        network.forget()
        sender.write(data[:1])
        victim = (network.packets(network.nodes[0])[0].packet.seq + 1 + 10 * 1152) % 2**32  # type: ignore[union-attr]
        network.drop = drop
        started = network.now
        assert len(transfer(network, sender, receiver, data[:400_000])) >= 400_000
        assert seen[victim] == 3
        assert network.now - started < 3.0

    def test_reordering_is_no_loss_for_long(self) -> None:
        """Needless retransmissions teach the sender to wait: most of the transfer has none."""
        network, sender, receiver = connected(0, delay=0.02, reorder=0.3)
        data = bytes(3_000_000)
        assert transfer(network, sender, receiver, data) == data
        assert sender.stats().retransmissions < 3_000_000 / 1152 * 0.05

    def test_sacked_head_is_sent_again_after_a_timeout(self) -> None:
        """A receiver may renege ("parked", section 7): SACKed bytes that never get acknowledged are wanted again."""
        network, talk = dialed()
        for _ in range(3):
            talk.core.write(bytes(100))
            network.settle()
        talk.seen()
        talk.ack(0, blocks=[(0, 200)])
        again = data_seen(talk, 5.0)
        assert (0, 100) in again
        assert (100, 100) in again

    def test_in_flight_comes_back_to_zero(self) -> None:
        network, sender, receiver = connected(0, loss=0.05, reorder=0.2, duplicate=0.1)
        data = bytes(500_000)
        assert transfer(network, sender, receiver, data) == data
        network.run(5.0)
        assert sender.stats().in_flight == 0
        assert network.nodes[0].peer(network.nodes[1]).in_flight == 0

    def test_data_that_looks_like_sack_after_a_new_cut(self) -> None:
        """A path that narrows cuts a lost segment anew: no piece of it may begin like a SACK."""
        _network, talk = dialed()
        talk.peer.peer.segment_bytes = 8000
        for offset in (1152, 2304, 1153):
            base = talk.core.written
            payload = bytes(offset) + b"SACK\x01" + bytes(8000 - offset - 5)
            talk.peer.peer.segment_bytes = 8000
            talk.core.write(payload)
            assert data_seen(talk) == [(base, 8000)]
            talk.peer.peer.segment_bytes = 1152
            whole: dict[int, bytes] = {}
            for _ in range(100):
                for s in talk.wait(0.2):
                    if s.kind != "ACK" and s.seq >= base:
                        assert not s.payload.startswith(b"SACK\x01"), offset
                        whole[s.seq] = s.payload
                edge = base
                while edge in whole:
                    edge += len(whole[edge])
                talk.ack(edge)
                if edge == base + 8000:
                    break
            assert b"".join(whole[at] for at in sorted(whole)) == payload

    def test_emsgsize_falls_back_at_once(self) -> None:
        network, sender, receiver = connected(0)
        network.nodes[0].peer(network.nodes[1]).segment_bytes = 30_000
        network.link(network.nodes[0].address[0], network.nodes[1].address[0]).mtu = 1300
        started = network.now
        data = bytes(200_000)
        assert transfer(network, sender, receiver, data) == data
        assert network.now - started < 0.4
        assert network.nodes[0].control.named("send_failed")

    def test_a_path_that_shrinks_silently(self) -> None:
        """Large segments vanish without an error, small ones pass: the segment size falls back and the bytes arrive."""
        network, sender, receiver = connected(0)
        network.nodes[0].peer(network.nodes[1]).segment_bytes = 30_000
        network.drop = lambda sent: sent.size > 1300
        started = network.now
        data = bytes(200_000)
        assert transfer(network, sender, receiver, data) == data
        assert network.now - started < 2.5
        assert network.nodes[0].control.named("full_segments_lost")
        assert network.nodes[0].peer(network.nodes[1]).segment_bytes == 1152


class TestTimeouts:
    def test_timeouts_double_and_any_new_ack_restores_them(self) -> None:
        network, talk = dialed()
        talk.core.write(b"x" * 10)
        started = network.now
        talk.seen()
        times = [s.at - started for s in talk.wait(12.0) if s.kind == "DATA" and s.seq == 0]
        gaps = [b - a for a, b in itertools.pairwise(times)]
        assert all(b >= a * 0.99 for a, b in itertools.pairwise(gaps))
        assert gaps[-1] <= 10.01
        talk.ack(10)
        talk.core.write(b"y" * 10)
        started = network.now
        talk.seen()
        again = [s.at - started for s in talk.wait(3.0) if s.kind == "DATA" and s.seq == 10]
        assert again[0] <= 1.01

    def test_gives_up_by_time_not_by_count(self) -> None:
        network, talk = dialed()
        talk.core.write(b"x" * 10)
        started = network.now
        assert network.run(200.0, lambda: talk.core.state == CLOSED)
        assert 55.0 <= network.now - started <= 90.0
        assert isinstance(talk.core.error(), PathError)
        assert talk.seen()[-1].kind == "RST"

    def test_lives_on_while_acks_advance(self) -> None:
        """1.18.0 counts 8 transmissions of one segment, ACK-clocked ones too; ours only the time without progress."""
        network, sender, receiver = connected(4, loss=0.45, delay=0.02)
        data = bytes(60_000)
        assert transfer(network, sender, receiver, data, seconds=3000.0) == data
        assert sender.error() is None

    @pytest.mark.parametrize("idle", [61.0, 100.0, 1000.0])
    def test_an_idle_stream_survives_a_short_outage(self, idle: float) -> None:
        """Time without progress counts only while something waits for progress, not the idle time before it."""
        network, sender, receiver = connected(0)
        network.run(idle)
        assert sender.state == ESTABLISHED
        network.drop = lambda sent: True
        sender.write(b"after a long silence")
        network.run(2.0)
        assert sender.state == ESTABLISHED, sender.error()
        network.drop = None
        assert network.run(10.0, lambda: receiver.readable == 20)

    def test_an_outage_shorter_than_the_limit(self) -> None:
        network, sender, receiver = connected(0)
        sender.write(bytes(50_000))
        network.run(0.01)
        network.drop = lambda sent: True
        network.run(50.0)
        network.drop = None
        assert network.run(15.0, lambda: receiver.readable == 50_000)

    def test_session_lost_and_found(self) -> None:
        """The peer's keys are dropped under a stream: it asks for a session and goes on with the new one."""
        network, talk = dialed()
        node = talk.peer.target
        node.datapath.drop_session(talk.peer.peer)
        talk.core.write(b"while there is no key")
        network.run(2.0)
        assert node.control.named("session_wanted")
        talk.peer.inbox.clear()
        talk.peer.new_session()
        network.run(2.0)
        assert b"".join({s.seq: s.payload for s in talk.seen() if s.seq == 0}.values()) == b"while there is no key"


class TestClosedWindow:
    def test_probes_go_on_as_long_as_the_peer_answers(self) -> None:
        network, talk = dialed()
        talk.ack(0, window=0)
        talk.core.write(b"patience")
        for _ in range(900):
            network.run(1.0)
            if talk.seen():
                talk.ack(0, window=0)
        assert talk.core.state == ESTABLISHED, talk.core.error()
        talk.ack(0, window=512)
        assert (0, 8) in data_seen(talk)

    def test_a_silent_peer_is_given_up(self) -> None:
        network, talk = dialed()
        talk.ack(0, window=0)
        talk.core.write(b"patience")
        assert network.run(200.0, lambda: talk.core.state == CLOSED)
        assert 55.0 <= network.now - 1000.0 <= 130.0
        assert isinstance(talk.core.error(), (PathError, TimeoutError))

    def test_a_loss_proven_as_the_window_closes_ends_the_flush(self) -> None:
        """A stream with something to repair and no window to do it in once took its turn in the flush for ever."""
        network, talk = dialed()
        talk.core.write(bytes(10 * 1152))
        assert len(data_seen(talk)) == 10
        network.run(0.05)
        talk.ack(0, blocks=[(1152, 10 * 1152)], window=0)
        talk.core.write(b"more")
        assert all(size <= 1 for _, size in data_seen(talk, 5.0))
        talk.ack(0, blocks=[(1152, 10 * 1152)], window=512)
        assert (0, 1152) in data_seen(talk, 5.0)

    def test_never_a_new_segment_into_a_closed_window(self) -> None:
        """Each would freeze a 1.18.0 peer for a second; nor are segments repeated that it has no room for."""
        _network, talk = dialed()
        talk.core.write(bytes(5000))
        talk.seen()
        talk.ack(1152, window=0)
        for _ in range(60):
            for s in talk.wait(0.5):
                assert s.kind == "ACK" or (len(s.payload) == 1 and s.seq == 1151), s
                talk.ack(1152, window=0)
        talk.ack(5000, window=0)
        talk.core.write(b"new")
        for s in talk.wait(20.0):
            assert s.kind == "ACK" or (s.seq, len(s.payload)) == (4999, 1)
        talk.ack(5000, window=9)
        assert (5000, 3) in data_seen(talk)

    def test_both_directions_at_once(self) -> None:
        """Neither end reads for a minute; then both do: no deadlock."""
        small = MuxSettings(receive_limit=0, send_limit=8 << 20)
        network, first, second = connected(0, small, rate=20_000_000)
        data = bytes(range(256)) * 20_000
        assert first.write(data) == second.write(data) == len(data)
        network.run(90.0)
        assert first.state == second.state == ESTABLISHED
        assert first.unacknowledged > 0
        assert second.unacknowledged > 0
        got = [bytearray(), bytearray()]

        def read() -> bool:
            for end, kept in zip((first, second), got, strict=True):
                while chunk := end.read(100_000):
                    kept.extend(chunk)
            return len(got[0]) == len(got[1]) == len(data)

        assert network.run(60.0, read)
        assert bytes(got[0]) == bytes(got[1]) == data


class TestWriting:
    def test_after_the_end(self) -> None:
        network, talk = dialed()
        talk.core.close()
        network.settle()
        with pytest.raises(ClosedError):
            talk.core.write(b"x")
        _, talk = dialed()
        talk.fin()
        with pytest.raises(ClosedError):
            talk.core.write(b"x")

    def test_errors_are_fresh_each_time(self) -> None:
        _, talk = dialed()
        talk.rst()
        errors = [talk.core.error() for _ in range(3)]
        assert len({id(error) for error in errors}) == 3
        assert all(error.__traceback__ is None for error in errors if error is not None)

    def test_congestion_window_is_shared_and_the_path_can_change(self) -> None:
        network, node, peer = stage()
        talks = [peer.accept(node.dial(peer, 80 + n)) for n in range(4)]
        network.run(0.1)
        for talk in talks:
            talk.core.write(bytes(40_000))
        network.settle()
        assert peer.peer.in_flight <= peer.peer.congestion_window + 1152
        assert peer.peer.in_flight == sum(talk.core.stats().in_flight for talk in talks)
        for talk in talks:
            talk.rst()
        assert peer.peer.in_flight == 0

    def test_no_deadline_when_nothing_is_due(self) -> None:
        network = Network(0)
        assert network.run(10.0) is False
        _, node, _ = stage()
        assert node.datapath.next_deadline() < math.inf


class TestMemory:
    """Send rings of a node share a budget; what does not fit waits, and every stream gets on."""

    def test_all_streams_together(self) -> None:
        limit = 1 << 20
        network, a, b = pair(0, MuxSettings(memory_budget=limit), MuxSettings())
        listener = b.listen(7, backlog=300)
        streams = [a.dial(b, 7) for _ in range(100)]
        network.run(30.0, lambda: len(listener.streams) == 100)
        data = random.Random(1).randbytes(60_000)
        sent = [0] * 100
        got = [bytearray() for _ in range(100)]

        def step() -> bool:
            for n, stream in enumerate(streams):
                assert stream.writable >= (4096 if sent[n] == stream.stats().acknowledged else 0)
                if sent[n] < len(data):
                    sent[n] += stream.write(data, sent[n])
            for n, stream in enumerate(listener.streams):
                while chunk := stream.read(1 << 20):
                    got[n].extend(chunk)
            assert a.mux.send_budget.used <= limit + 100 * 4096
            return all(len(each) == len(data) for each in got)

        assert step() is False
        assert limit // 2 <= a.mux.send_budget.used
        assert network.run(60.0, step)
        assert all(each == data for each in got)
        network.run(40.0)
        assert a.mux.send_budget.used == 0

    def test_a_writer_that_waits_is_woken(self) -> None:
        """Its ring cannot grow to what would wake a writer elsewhere: all acknowledged will do."""
        network, a, b = pair(0, MuxSettings(memory_budget=4096), MuxSettings())
        b.listen(7)
        stream = a.dial(b, 7)
        network.run(5.0)
        assert stream.write(bytes(10_000)) == 4096
        stream.owner.wakes.clear()
        stream.interest = WRITE
        assert network.run(5.0, lambda: any(due & WRITE for due in stream.owner.wakes))
        assert stream.writable == 4096
