"""Receiving and acknowledging: reordering, trimming, SACK choice, windows, budget (streams.md 7, 8; DESIGN 4)."""

from __future__ import annotations

import gc
import random

import pytest

from pilot._fast.mux import MuxSettings
from tests.core.scripted import ScriptedPeer, Talk, accepted, stage
from tests.core.virtual import CLOSED, ESTABLISHED, READ, TIME_WAIT, VirtualNode, connected, pair, transfer

SMALLEST = 512 * 4096  # what 512 slots of the oldest builds may hold: no receive limit is below it


def drain(talk: Talk) -> bytes:
    got = b""
    while data := talk.core.read(1 << 20):
        got += data
    return got


class TestOrder:
    def test_reordered_overlapping_and_recut_segments(self) -> None:
        """1.18.0 takes whole segments or nothing; ours every byte, whatever the cut."""
        for seed in range(200):
            rng = random.Random(seed)
            whole = rng.randbytes(rng.randrange(1, 3000))
            _, talk = accepted()
            order = []
            for _ in range(3):
                at = 0
                while at < len(whole):
                    size = rng.randrange(1, 700)
                    order.append((at, whole[at : at + size]))
                    at += size
            rng.shuffle(order)
            for at, piece in order:
                talk.data(piece, offset=at)
            assert drain(talk) == whole, seed
            assert talk.seen()[-1].ack == len(whole), seed

    def test_new_tail_of_an_old_segment_is_taken(self) -> None:
        _, talk = accepted()
        talk.data(b"12345")
        talk.data(b"3456789", offset=2)
        assert drain(talk) == b"123456789"

    def test_far_ahead_data_is_not_held(self) -> None:
        """128 far-ahead segments block 1.18.0's reorder buffer; here they are beyond the limit, unanswered for."""
        _network, talk = accepted()
        for n in range(128):
            talk.data(b"far", offset=(1 << 30) + 1000 * n)
        talk.data(b"farthest", offset=2**31 - 20)
        assert {s.kind for s in talk.seen()} == {"ACK"}
        talk.data(b"near", offset=0)
        assert drain(talk) == b"near"
        assert talk.core.stats().received == 4

    def test_bytes_from_before_the_stream_are_not_delivered(self) -> None:
        _, talk = accepted()
        for offset in (-1, -1000, -(2**31) + 1):
            talk.data(b"x", offset=offset)
            [answer] = talk.seen()
            assert (answer.kind, answer.ack) == ("ACK", 0)
        assert talk.core.readable == 0

    def test_many_holes_are_bounded(self) -> None:
        """Every second byte of a large range: the table of ranges has a cap, and the stream survives it."""
        _, talk = accepted()
        for at in range(0, 40_000, 2):
            talk.data(b"x", offset=at + 1)
        talk.seen()
        talk.data(bytes(40_001), offset=0)
        assert len(drain(talk)) == 40_001

    def test_more_than_two_to_the_32_bytes(self) -> None:
        """64-bit offsets: sequence numbers wrap many times, here in jumps of a large segment."""
        _, talk = accepted(isn=0xFFFF0000)
        segment = bytes(65_000)
        for _n in range(200):
            talk.data(segment)
            assert len(talk.core.read(1 << 20)) == 65_000
        assert talk.core.stats().received == 200 * 65_000


class TestAcknowledging:
    def test_stock_peer_gets_one_per_two_segments_even_in_one_batch(self) -> None:
        _, talk = accepted(window=512)
        talk.peer.batch(*(talk.segment(10 * n, b"0123456789") for n in range(64)))
        acks = [s.ack for s in talk.seen()]
        assert acks == [20 * n for n in range(1, 33)]

    def test_our_peer_gets_one_per_batch(self) -> None:
        _, talk = accepted(window=2000)
        assert talk.core.peer_is_ours
        talk.peer.batch(*(talk.segment(10 * n, b"0123456789") for n in range(64)))
        assert [s.ack for s in talk.seen()] == [640]

    def test_stock_peer_hears_of_every_out_of_order_segment(self) -> None:
        """Its fast retransmit counts three duplicates; a batch that brings a hole must bring it that many."""
        _, talk = accepted(window=512)
        talk.peer.batch(*(talk.segment(10 * n, b"0123456789") for n in range(1, 20)))
        assert len([s for s in talk.seen() if s.kind == "SACK"]) >= 3

    def test_data_carries_the_acknowledgment(self) -> None:
        _, talk = accepted()
        talk.data(b"ping")
        talk.core.write(b"pong")
        [data] = talk.seen()
        assert (data.kind, data.ack) == ("DATA", 4)
        assert [s for s in talk.wait(0.05) if s.kind == "ACK"] == []

    def test_old_duplicates_are_acknowledged_at_once(self) -> None:
        _, talk = accepted()
        talk.data(b"0123456789")
        talk.wait(0.1)
        talk.data(b"0123456789", offset=0)
        [answer] = talk.seen()
        assert answer.ack == 10

    def test_filling_a_part_of_a_hole_is_told_at_once(self) -> None:
        _, talk = accepted()
        talk.data(b"x" * 10, offset=20)
        talk.seen()
        talk.data(b"y" * 10, offset=0)
        [answer] = talk.seen()
        assert (answer.ack, talk.blocks(answer)) == (10, [(20, 30)])
        talk.data(b"z" * 10, offset=10)
        [answer] = talk.seen()
        assert (answer.kind, answer.ack) == ("ACK", 30)

    def test_sack_reports_the_changed_range_first_and_every_range_in_turn(self) -> None:
        _, talk = accepted()
        ranges = [(100 * n, 100 * n + 50) for n in range(1, 21)]
        for left, right in ranges:
            talk.data(bytes(right - left), offset=left)
        talk.seen()
        reported: list[tuple[int, int]] = []
        for _ in range(7):
            talk.data(bytes(50), offset=100)
            for answer in talk.seen():
                blocks = talk.blocks(answer)
                assert blocks[0] == (100, 150)
                assert len(set(blocks)) == 4
                reported += blocks
        assert set(reported) == set(ranges)

    def test_between_ours_several_sacks_per_batch_tell_of_many_ranges(self) -> None:
        _, talk = accepted(window=2000)
        talk.peer.batch(*(talk.segment(100 * n, bytes(50)) for n in range(1, 13)))
        sacks = [s for s in talk.seen() if s.kind == "SACK"]
        told = {block for s in sacks for block in talk.blocks(s)}
        assert len(told) >= 10
        assert told <= {(100 * n, 100 * n + 50) for n in range(1, 13)}
        assert len(sacks) <= 4


class TestWindow:
    def test_counts_slots_of_1152_bytes(self) -> None:
        _, talk = accepted(settings=MuxSettings(receive_limit=4 << 20))
        assert talk.wait(0.1) == []
        talk.data(bytes(1152 * 10))
        [answer] = talk.wait(0.01)
        assert answer.window == (4 << 20) // 1152 - 10
        drain(talk)

    @pytest.mark.parametrize("limit", [0, 1, 100_000])
    def test_no_limit_is_smaller_than_the_oldest_builds_need(self, limit: int) -> None:
        """512 slots of 4096 bytes each must fit, whatever was configured."""
        _, talk = accepted(settings=MuxSettings(receive_limit=limit))
        for _ in range(512):
            talk.data(bytes(4096))
        assert talk.core.readable == SMALLEST
        assert talk.seen()[-1].window == 0

    def test_beyond_the_limit_is_dropped_unacknowledged(self) -> None:
        _, talk = accepted(settings=MuxSettings(receive_limit=0))
        for _ in range(512):
            talk.data(bytes(4096))
        talk.seen()
        talk.data(b"beyond", offset=SMALLEST)
        [answer] = talk.seen()
        assert (answer.ack, answer.window, talk.core.readable) == (SMALLEST, 0, SMALLEST)

    def test_the_reorder_buffer_does_not_lower_it(self) -> None:
        _, talk = accepted()
        talk.data(bytes(50_000), offset=100_000)
        [answer] = talk.seen()
        assert answer.window == (4 << 20) // 1152

    def test_old_byte_is_answered_with_the_window_at_any_time(self) -> None:
        _, talk = accepted(settings=MuxSettings(receive_limit=0))
        for _ in range(512):
            talk.data(bytes(4096))
        talk.wait(1.0)
        talk.data(b"x", offset=SMALLEST - 1)
        [answer] = talk.seen()
        assert (answer.ack, answer.window) == (SMALLEST, 0)

    def test_update_needs_room_worth_telling(self) -> None:
        """A reader that takes one byte at a time causes no update per byte."""
        network, talk = accepted(settings=MuxSettings(receive_limit=0))
        for _ in range(512):
            talk.data(bytes(4096))
        talk.wait(1.0)
        for _ in range(1000):
            talk.core.read(1)
            network.settle()
        assert talk.seen() == []
        while talk.core.readable > SMALLEST // 2:
            talk.core.read(1152)
            network.settle()
        updates = talk.seen()
        assert 1 <= len(updates) <= 16
        assert updates[0].window > 0


class TestMemory:
    def test_empty_rings_own_nothing(self) -> None:
        network, sender, receiver = connected(0)
        budget = network.nodes[1].mux.budget
        assert budget.used == 0
        sender.write(b"small")
        network.run(0.1)
        assert budget.used > 0
        assert receiver.read(10) == b"small"
        assert budget.used == 0

    def test_large_rings_are_freed_when_idle(self) -> None:
        network, sender, receiver = connected(0)
        budget = network.nodes[1].mux.budget
        data = bytes(600_000)
        assert transfer(network, sender, receiver, data) == data
        network.run(100.0)
        assert sender.state == ESTABLISHED
        assert budget.used == 0

    @pytest.mark.parametrize("end", ["close", "abort"])
    def test_ended_streams_own_nothing_but_what_is_unread(self, end: str) -> None:
        network, sender, receiver = connected(0)
        budget = network.nodes[1].mux.budget
        sender.write(bytes(100_000))
        network.run(0.5)
        sender.write(bytes(1000))
        getattr(sender, end)()
        network.run(60.0)
        assert receiver.readable == 101_000
        assert receiver.read(1 << 20) == bytes(101_000)
        assert budget.used == 0

    def test_streams_in_garbage_cycles_give_the_budget_back(self) -> None:
        network, sender, receiver = connected(0)
        node = network.nodes[1]
        sender.write(bytes(100_000))
        network.run(0.5)
        receiver.owner.stream = receiver
        sender.abort()
        network.run(1.0)
        assert node.mux.budget.used > 0
        del receiver
        for listener in gc.get_objects():
            if type(listener).__name__ == "Owner" and listener.streams:
                listener.streams.clear()
        gc.collect()
        assert node.mux.budget.used == 0

    def test_budget_covers_all_streams(self) -> None:
        """Beyond the budget segments are dropped as if lost; nothing fails, and reading makes room again."""
        budget = 4 << 20
        network, a, b = pair(0, MuxSettings(), MuxSettings(memory_budget=budget))
        listener = b.listen(7, backlog=100)
        senders = [a.dial(b, 7) for _ in range(10)]
        network.run(2.0)
        for stream in senders:
            stream.write(bytes(1 << 20))
        network.run(5.0)
        assert b.mux.budget.used <= budget
        got = [0] * 10

        def read() -> bool:
            for n, stream in enumerate(listener.streams):
                while data := stream.read(1 << 20):
                    got[n] += len(data)
            return got == [1 << 20] * 10

        assert network.run(120.0, read), got
        assert all(stream.error() is None for stream in senders)

    def test_a_paused_reader_under_a_small_budget_keeps_its_stream(self) -> None:
        """The window advertised must be one the budget can honour, or the sender takes a full house for a dead path."""
        network, sender, receiver = connected(0, MuxSettings(), MuxSettings(memory_budget=1 << 20))
        data = bytes(range(256)) * 8192
        sender.write(data)
        network.run(100.0)
        assert sender.state == ESTABLISHED, sender.error()
        got = transfer(network, _Done(), receiver, data[: sender.written])
        assert got == data[: sender.written]

    def test_aborted_reader(self) -> None:
        network, sender, receiver = connected(0)
        sender.write(bytes(200_000))
        network.run(0.5)
        receiver.close()
        assert network.nodes[1].mux.budget.used == 0
        network.run(60.0)
        assert receiver.state == sender.state == CLOSED


class TestShares:
    """No peer can take all the memory there is for buffers, and one alone can take most of it."""

    LIMIT = 16 << 20
    SETTINGS = MuxSettings(memory_budget=LIMIT, syn_rate=1e6, source_syn_burst=1e6)

    def full(self, node: VirtualNode, peer: ScriptedPeer, streams: int, first_port: int = 50_000) -> list[Talk]:
        """Streams of one peer whose reader has stopped, each filled as far as its ring grows."""
        talks = [peer.open(7, source_port=first_port + n) for n in range(streams)]
        for _ in range(70):
            for talk in talks:
                talk.data(bytes(60_000))
        return talks

    def test_a_lone_peer_may_use_three_quarters(self) -> None:
        network, node, peer = stage(self.SETTINGS)
        network.logging = False
        node.listen(7, backlog=100)
        self.full(node, peer, 4)
        assert peer.peer.reading.used == node.mux.budget.used == self.LIMIT // 4 * 3

    def test_the_next_peer_finds_room(self) -> None:
        network, node, peer = stage(self.SETTINGS)
        network.logging = False
        node.listen(7, backlog=1000)
        self.full(node, peer, 200)
        greedy = peer.peer.reading.used
        assert self.LIMIT // 4 * 3 <= greedy <= self.LIMIT // 8 * 7
        friend = ScriptedPeer(node, 3)
        self.full(node, friend, 8)
        assert friend.peer.reading.used >= self.LIMIT // 16
        assert node.mux.budget.used <= self.LIMIT
        assert peer.peer.reading.used == greedy

    def test_what_is_given_back_is_free_again(self) -> None:
        network, node, peer = stage(self.SETTINGS)
        network.logging = False
        node.listen(7, backlog=100)
        for talk in self.full(node, peer, 4):
            drain(talk)
            talk.core.abort()
        friend = ScriptedPeer(node, 3)
        self.full(node, friend, 4)
        assert friend.peer.reading.used == self.LIMIT // 4 * 3
        assert node.mux.budget.used == peer.peer.reading.used + friend.peer.reading.used

    @pytest.mark.parametrize("ended", [False, True])
    def test_an_aborted_stream_gives_back_what_nobody_has_read(self, ended: bool) -> None:
        _network, node, peer = stage(self.SETTINGS)
        node.listen(7)
        [talk] = self.full(node, peer, 1)
        if ended:
            talk.fin(talk.core.stats().received)
            assert talk.core.state == TIME_WAIT
        assert node.mux.budget.used > 0
        talk.core.abort()
        assert node.mux.budget.used == 0

    @pytest.mark.parametrize("limit", [4096, 65536, 1 << 20])
    @pytest.mark.parametrize("late", [False, True])
    def test_a_small_share_is_slow_and_not_stuck(self, limit: int, late: bool) -> None:
        """A window opens again when much of what there can be is free, however little that is."""
        network, sender, receiver = connected(0, MuxSettings(), MuxSettings(memory_budget=limit))
        data = random.Random(1).randbytes(200_000)
        if late:
            assert sender.write(data) == len(data)
            network.run(3.0)
        began, rounds = network.now, -(-len(data) // (limit - limit % 1152)) + 1
        assert transfer(network, _Done() if late else sender, receiver, data) == data
        # Half a second is what a sender waits before it asks about a closed window: once, not in each round.
        assert network.now - began < 0.5 + 0.05 * rounds


class _Done:
    """A source that has nothing left to write."""

    def write(self, data: bytes, offset: int) -> int:
        return len(data) - offset


class TestReading:
    def test_read_and_read_into(self) -> None:
        _, talk = accepted()
        assert talk.core.read(10) is None
        assert talk.core.read_into(bytearray(10)) == -1
        talk.data(b"0123456789")
        assert talk.core.readable == 10
        assert talk.core.read(4) == b"0123"
        buffer = bytearray(4)
        assert talk.core.read_into(buffer) == 4
        assert bytes(buffer) == b"4567"
        assert talk.core.read_into(memoryview(bytearray(100))[10:]) == 2
        assert talk.core.read(10) is None
        talk.data(b"more")
        with pytest.raises((BufferError, TypeError)):
            talk.core.read_into(b"read-only")
        assert talk.core.read(10) == b"more"
        talk.fin()
        assert talk.core.at_eof
        assert talk.core.read(10) == b""
        assert talk.core.read_into(bytearray(4)) == 0

    @pytest.mark.parametrize("left", [0, 3])
    def test_nobody_else_reads_what_is_lent(self, left: int) -> None:
        """A task that starts eagerly may ask in the middle of a callback; it is told as soon as there is something."""
        network, talk = accepted()
        core = talk.core
        talk.data(b"0123456789")
        with core.lend() as lent:
            assert bytes(lent) == b"0123456789"
            assert core.lend() is None
            assert core.read(100) is None
            assert core.read_into(bytearray(100)) == -1
            core.interest = READ
            talk.data(b"more", offset=10)
            core.owner.wakes.clear()
            core.interest = READ
        core.give_back(10 - left)
        network.run(0.0)
        assert core.owner.wakes == [READ]
        assert core.read(100) == b"0123456789"[10 - left :] + b"more"

    def test_the_end_is_told_to_who_asked_while_bytes_were_lent(self) -> None:
        network, talk = accepted()
        talk.data(b"last")
        talk.fin()
        with talk.core.lend():
            assert talk.core.read(100) is None
            talk.core.owner.wakes.clear()
            talk.core.interest = READ
        talk.core.give_back(4)
        network.run(0.0)
        assert talk.core.owner.wakes == [READ]
        assert talk.core.read(100) == b""

    def test_one_wake_per_stream_and_batch(self) -> None:
        _, talk = accepted()
        talk.core.interest = READ
        talk.peer.batch(*(talk.segment(10 * n, b"0123456789") for n in range(64)))
        assert talk.core.owner.wakes == [READ]
        assert talk.core.interest == 0
        talk.data(b"no interest", offset=640)
        assert talk.core.owner.wakes == [READ]

    def test_no_wake_for_what_cannot_be_read_yet(self) -> None:
        _, talk = accepted()
        talk.core.interest = READ
        talk.data(b"behind a hole", offset=100)
        assert talk.core.owner.wakes == []
        talk.data(bytes(100), offset=0)
        assert talk.core.owner.wakes == [READ]

    def test_readers_are_woken_after_the_answers_are_on_the_wire(self) -> None:
        network, node, peer = stage()
        node.listen(7)
        talk = peer.open(7)
        sent_at_wake = []

        class Watcher:
            def _on_wake(self, events: int) -> None:
                sent_at_wake.append(len(network.log))

        talk.core.owner = Watcher()
        talk.core.interest = READ
        network.forget()
        peer.batch(talk.segment(0, b"one"), talk.segment(3, b"two"))
        assert sent_at_wake == [1]

    def test_an_owner_that_fails_harms_nobody(self, caplog: pytest.LogCaptureFixture) -> None:
        _network, node, peer = stage()
        node.listen(7)
        first, second = peer.open(7, source_port=1), peer.open(7, source_port=2)

        class Broken:
            def _on_wake(self, events: int) -> None:
                raise RuntimeError("no")

        first.core.owner = Broken()
        first.core.interest = second.core.interest = READ
        peer.batch(first.segment(0, b"one"), second.segment(0, b"two"))
        assert second.core.owner.wakes == [READ]
        assert "waking the owner" in caplog.text
        assert first.core.read(10) == b"one"
