"""A hostile peer inside an authenticated tunnel: lies in acknowledgments and windows, floods, injections (L7)."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest

from pilot._fast.mux import MuxSettings
from tests.core.scripted import ScriptedPeer, Talk, accepted, dialed, stage
from tests.core.virtual import ESTABLISHED, READ, Echo, Network, VirtualNode, join, pair
from tests.reference.addr import Address
from tests.reference.packet import ACK, CONTROL, FIN, RST, SYN

SEGMENT = 1152


def told(talk: Talk, seconds: float = 0.0) -> list[tuple[int, int]]:
    return [(s.seq, len(s.payload)) for s in talk.wait(seconds) if s.kind == "DATA"]


def read_all(stream: Any) -> bytes:
    got = bytearray()
    while data := stream.read(1 << 20):
        got += data
    return bytes(got)


class TestLiesAboutWhatArrived:
    def test_sack_of_bytes_never_sent_frees_nothing(self) -> None:
        _, talk = dialed()
        talk.core.write(bytes(5 * SEGMENT))
        talk.seen()
        for left, right in ((0, 6 * SEGMENT), (5 * SEGMENT, 9 * SEGMENT), (1 << 20, 2 << 20), (2**31 - 9, 2**31 - 1)):
            talk.ack(0, blocks=[(left, right)])
        stats = talk.core.stats()
        assert (stats.acknowledged, talk.core.unacknowledged) == (0, 5 * SEGMENT)
        assert stats.in_flight <= 5 * SEGMENT
        talk.ack(5 * SEGMENT)
        assert talk.core.unacknowledged == 0
        assert talk.peer.peer.in_flight == 0

    def test_what_was_only_sacked_is_kept_and_sent_again(self) -> None:
        """SACK is a promise that may be broken: only the cumulative acknowledgment frees a byte."""
        _, talk = dialed()
        data = random.Random(1).randbytes(6 * SEGMENT)
        talk.core.write(data)
        talk.seen()
        talk.ack(0, blocks=[(SEGMENT, 6 * SEGMENT)])
        got: dict[int, bytes] = {}
        for _ in range(400):
            for s in talk.wait(0.25):
                if s.kind == "DATA" and s.seq >= 0:
                    got[s.seq] = s.payload
            done = 0
            while done in got:
                done += len(got[done])
            talk.ack(done)
            if done == len(data):
                break
        assert b"".join(got[at] for at in sorted(got)) == data
        assert talk.core.unacknowledged == 0

    def test_moving_sacks_do_not_multiply_what_is_sent(self) -> None:
        """A different lie in every packet: repairs stay in proportion to the packets that ask for them."""
        network, talk = dialed()
        talk.core.write(bytes(100 * SEGMENT))
        count = len(told(talk))
        assert count > 8
        rng = random.Random(2)
        lies = 500
        for _ in range(lies):
            left = rng.randrange(1, count) * SEGMENT
            talk.ack(0, blocks=[(left, left + SEGMENT)])
            network.run(0.001)
        assert len(told(talk)) <= 2 * lies + 100
        assert talk.core.state == ESTABLISHED
        talk.ack(count * SEGMENT)
        assert talk.core.unacknowledged == (100 - count) * SEGMENT

    def test_acks_in_small_steps_gain_nothing(self) -> None:
        """Ten acknowledgments of a tenth of a segment open the congestion window no further than one of it all."""

        def sent(steps: int) -> int:
            _, talk = dialed(window=60_000)
            talk.core.write(bytes(1 << 20))
            first = told(talk)[-1]
            top = first[0] + first[1]
            for at in range(top // steps, top + 1, top // steps):
                talk.ack(at)
            return len(told(talk))

        assert sent(400) <= sent(40) * 1.25 + 4


class TestWindowTricks:
    def test_a_shrunk_window_is_obeyed_and_what_was_sent_is_repaired(self) -> None:
        _, talk = dialed()
        talk.core.write(bytes(40 * SEGMENT))
        sent = told(talk)
        assert len(sent) > 8
        talk.ack(0, window=2)
        talk.core.write(bytes(40 * SEGMENT))
        assert max((seq + size for seq, size in told(talk, 10.0)), default=0) <= sent[-1][0] + SEGMENT
        talk.ack(sent[-1][0] + SEGMENT, window=2)
        in_flight = {seq for seq, size in told(talk, 3.0) if size > 1}
        assert len(in_flight) <= 2

    def test_a_flapping_window_costs_no_more_than_its_own_packets(self) -> None:
        network, talk = dialed()
        talk.core.write(bytes(200 * SEGMENT))
        talk.seen()
        network.forget()
        for n in range(1000):
            talk.ack(0, window=0 if n % 2 else 512)
        assert len(network.log) <= 2 * 1000 + 200
        assert talk.core.state == ESTABLISHED

    def test_a_window_of_everything_holds_no_more_than_the_send_limit(self) -> None:
        network, talk = dialed(window=65535, settings=MuxSettings(send_limit=1 << 20))
        total = 0
        for _ in range(100):
            total += talk.core.write(bytes(1 << 16))
            network.run(0.01)
        assert total <= 1 << 20
        assert talk.core.stats().in_flight <= 1 << 20


class TestInjection:
    """Another authenticated node, and the right one in another network, against a stream of node 2."""

    def forged(self) -> tuple[Network, Talk, ScriptedPeer]:
        network, node, peer = stage()
        node.listen(7)
        talk = peer.open(7)
        talk.data(b"before")
        talk.seen()
        return network, talk, ScriptedPeer(node, 3)

    @pytest.mark.parametrize("flags", [RST, FIN, FIN | ACK, ACK, SYN, SYN | ACK])
    @pytest.mark.parametrize("source", [Address(0, 3), Address(0, 2)], ids=["own source", "forged source"])
    def test_of_another_node(self, flags: int, source: Address) -> None:
        _, talk, other = self.forged()
        for offset in (-100, 0, 6, 7, 1000):
            p = talk.make(flags, talk.at(offset), talk.theirs(0), b"evil" if flags & ACK else b"")
            other.send(other.packet(**{**vars_of(p), "source": source}))
        assert talk.core.state == ESTABLISHED
        talk.data(b" after")
        assert read_all(talk.core) == b"before after"
        assert {s.kind for s in talk.seen()} <= {"ACK"}

    @pytest.mark.parametrize("flags", [RST, FIN, ACK])
    def test_of_another_network(self, flags: int) -> None:
        _, talk, _ = self.forged()
        for offset in (0, 6, 7):
            p = talk.make(flags, talk.at(offset), talk.theirs(0), b"evil" if flags == ACK else b"")
            talk.peer.send(talk.peer.packet(**{**vars_of(p), "source": Address(5, 2)}))
        assert talk.core.state == ESTABLISHED
        talk.data(b" after")
        assert read_all(talk.core) == b"before after"

    def test_a_fin_with_a_lie_in_its_number_ends_nothing_early(self) -> None:
        _, talk, _ = self.forged()
        for offset in (7, 1000, 100_000, 1 << 30):
            talk.fin(offset)
        talk.data(b" after")
        assert read_all(talk.core) == b"before after"

    def test_resets_for_made_up_streams_do_nothing(self) -> None:
        network, talk, other = self.forged()
        network.forget()
        for port in range(1000):
            other.send(other.packet(flags=RST, source_port=port, destination_port=7))
            other.send(other.packet(flags=FIN, source_port=port, destination_port=7))
        assert network.log == []
        assert len(talk.peer.target.mux.all_streams()) == 1


def vars_of(p: Any) -> dict[str, Any]:
    return {name: getattr(p, name) for name in p.__dataclass_fields__ if name != "version"}


class TestFloods:
    def test_syns_of_one_node_under_many_addresses_share_its_bucket(self) -> None:
        """Ports and network numbers are free to choose, the node is not: the flood spends its own 64, others get in."""
        network, node, flooder = stage()
        node.listen(7, backlog=10_000)
        friend = ScriptedPeer(node, 3)
        for n in range(3000):
            flooder.send(
                flooder.packet(
                    flags=SYN, source=Address(n % 65_536, 2), source_port=n, destination_port=7, window=512, seq=n
                )
            )
        assert len(node.mux.all_streams()) <= 64
        assert len(flooder.heard()) <= 64
        assert friend.open(7).core.state == ESTABLISHED
        network.run(1.0)
        assert friend.open(7, source_port=50_002).core.state == ESTABLISHED

    def test_syns_with_forged_sources_make_nothing_and_spend_nothing(self) -> None:
        network, node, flooder = stage()
        node.listen(7, backlog=10_000)
        friend = ScriptedPeer(node, 3)
        network.forget()
        for n in range(3000):
            flooder.send(
                flooder.packet(flags=SYN, source=Address(0, 3 + n), source_port=n, destination_port=7, window=512)
            )
        assert network.log == []
        assert node.mux.all_streams() == []
        for n in range(60):
            assert friend.open(7, source_port=50_000 + n).core.state == ESTABLISHED

    def test_half_open_streams_of_a_flood_go_away(self) -> None:
        """Whoever opens and says nothing more is forgotten by the idle limit; nothing stays in the tables."""
        network, node, flooder = stage()
        node.listen(7, backlog=10_000)
        for n in range(60):
            flooder.send(flooder.packet(flags=SYN, source_port=1000 + n, destination_port=7, window=512))
        assert node.mux.live == 60
        network.run(400.0)
        assert node.mux.live == 0
        assert node.mux.budget.used == 0

    def test_pings_are_answered_one_by_one_and_no_larger(self) -> None:
        network, _, peer = stage()
        network.forget()
        for n in range(200):
            peer.send(peer.packet(protocol=CONTROL, source_port=9, seq=n, payload=bytes(n)))
        answers = peer.heard()
        assert len(answers) <= 200
        assert all(len(p.payload) <= p.seq for p in answers)


class TestMemory:
    @pytest.mark.parametrize("size", [1, 7, 100, 1152, 4096, 30_000, 60_000])
    @pytest.mark.parametrize("order", ["in order", "reversed", "every other"])
    def test_segments_of_any_size_stay_within_the_budget(self, size: int, order: str) -> None:
        limit = 4 << 20
        network, talk = accepted(settings=MuxSettings(receive_limit=limit, memory_budget=2 * limit))
        network.logging = False
        count = min(6000, 3 * limit // size)
        numbers = {
            "in order": range(count),
            "reversed": range(count - 1, -1, -1),
            "every other": range(1, count, 2),
        }[order]
        budget = talk.peer.target.mux.budget
        for n in numbers:
            talk.data(bytes(size), offset=n * size)
            assert budget.used <= 2 * limit
        talk.seen()
        assert talk.core.stats().unread <= limit
        talk.data(bytes(60_000), offset=0)
        assert read_all(talk.core).count(0) >= min(count * size, 60_000 if order == "every other" else 1)
        assert talk.core.state == ESTABLISHED

    def test_many_streams_of_one_peer_share_the_budget(self) -> None:
        limit = 4 << 20
        network, node, peer = stage(MuxSettings(memory_budget=limit))
        network.logging = False
        node.listen(7, backlog=100)
        talks = [peer.open(7, source_port=50_000 + n) for n in range(40)]
        for _ in range(10):
            for talk in talks:
                talk.data(bytes(30_000))
        assert node.mux.budget.used <= limit + 40 * 4096
        for talk in talks:
            read_all(talk.core)
            talk.core.abort()
        assert node.mux.budget.used == 0

    @pytest.mark.parametrize("hole", [0, 1], ids=["nobody reads", "a hole in each"])
    def test_a_peer_that_fills_the_budget_starves_nobody(self, hole: int) -> None:
        limit = 4 << 20
        network, node, peer = stage(MuxSettings(memory_budget=limit))
        network.logging = False
        node.listen(7, backlog=100)
        friend = ScriptedPeer(node, 3)
        early = friend.open(7)
        talks = [peer.open(7, source_port=50_000 + n) for n in range(40)]
        for talk in talks:
            talk.data(b"x", offset=(1 << 21) - 1 if hole else 0)
            for n in range(20):
                talk.data(bytes(30_000), offset=hole + 30_000 * n)
        late = friend.open(7, source_port=50_002)
        for talk in (early, late):
            for _ in range(100):
                talk.data(bytes(1000))
                assert read_all(talk.core) == bytes(1000)
            assert talk.seen()[-1].window > 0


class TestStalledReader:
    """One reader that stops: no other stream waits for it, in either direction, of the same peer or of another."""

    def clients(self, network: Network, near: VirtualNode, far: VirtualNode, count: int) -> list[Any]:
        streams = [near.dial(far, 8) for _ in range(count)]
        assert network.run(5.0, lambda: all(s.state == ESTABLISHED for s in streams))
        return streams

    def answer_times(self, network: Network, streams: list[Any], rounds: int) -> list[float]:
        """Virtual seconds each of many small requests on each stream waited for its answer."""
        times = []
        for number in range(rounds):
            request = b"request %4d" % number
            for stream in streams:
                stream.write(request)
            start = network.now
            left = dict.fromkeys(range(len(streams)), b"")
            for n in itertools.count():
                for at in [at for at in left if len(left[at]) < len(request)]:
                    left[at] += streams[at].read(100) or b""
                    if len(left[at]) == len(request):
                        times.append(network.now - start)
                if all(answer == request for answer in left.values()):
                    break
                assert n < 1000, left
                network.run(0.001)
        return times

    @pytest.mark.parametrize("side", ["ours", "theirs"])
    def test_delays_nobody_else(self, side: str) -> None:
        network, near, far = pair(3, delay=0.01)
        third = VirtualNode(network, 3)
        join(near, third)
        for node in (far, third):
            node.listen(8, owner=Echo())
        stalled = far.listen(9)
        source = near.dial(far, 9)
        assert network.run(5.0, lambda: bool(stalled.streams))
        writer, reader = (stalled.streams[0], source) if side == "ours" else (source, stalled.streams[0])
        streams = [*self.clients(network, near, far, 4), *self.clients(network, near, third, 4)]
        quiet = max(self.answer_times(network, streams, 5))
        for _ in range(200):
            writer.write(bytes(1 << 16))
            network.run(0.05)
        assert writer.write(bytes(1 << 16)) == 0, "the reader's window is closed and the writer's ring is full"
        assert reader.readable > 0
        assert max(self.answer_times(network, streams, 50)) <= quiet + 0.005
        reader.interest = READ
        assert len(read_all(reader)) > 0
        assert network.run(30.0, lambda: bool(reader.readable))
