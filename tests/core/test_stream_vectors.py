"""The captured exchanges of 1.18.0 (vectors/streams.json) against a compiled datapath in the daemon's place (L7)."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from pilot._fast.addr import Addr
from pilot._fast.errors import RefusedError
from pilot._fast.packet import Packet as CompiledPacket
from tests.core.scripted import ScriptedPeer, accepted, dialed, signed, stage
from tests.core.virtual import CLOSED, ESTABLISHED, FIN_WAIT, TIME_WAIT, Echo, Network, VirtualNode
from tests.reference import frames, packet, sack
from tests.reference.packet import ACK, CONTROL, DATAGRAM, FIN, RST, SYN, Packet

STREAMS = json.loads((Path(__file__).parent.parent / "vectors" / "streams.json").read_text())
EXCHANGES = {exchange["name"]: exchange for exchange in STREAMS["exchanges"]}
TIMES = STREAMS["timelines"]
OURS = 3


class Replay:
    """One exchange: node 3 stands for the daemon, the frames "to" it are sent by a scripted peer.

    The capture has ISN 0 at the daemon; ours is random, so acknowledgments of it are moved to our ISN before they are
    sent, and our sequence numbers moved back before they are compared.
    """

    def __init__(self, name: str) -> None:
        self.frames = [
            packet.decode_untrusted(frames.decode_pilt_untrusted(bytes.fromhex(f["hex"])))
            for f in EXCHANGES[name]["frames"]
        ]
        self.inbound = [f["dir"] == "to_1.18.0" for f in EXCHANGES[name]["frames"]]
        other = next(
            (p.source if inward else p.destination) for p, inward in zip(self.frames, self.inbound, strict=True)
        )
        self.network = Network(0, delay=0.0)
        self.node = VirtualNode(self.network, OURS)
        self.peer = ScriptedPeer(self.node, other.node)
        self.isn = 0
        self.ports: dict[int, int] = {}

    def echo(self) -> Echo:
        return self.node.listen(7, owner=Echo())

    def feed(self, number: int) -> list[Packet]:
        """Send frame `number` of the capture; what came back at once."""
        assert self.inbound[number]
        self.peer.send(self.moved(self.frames[number]))
        return self.heard()

    def moved(self, p: Packet) -> Packet:
        fields = {name: getattr(p, name) for name in Packet.__dataclass_fields__}
        if p.flags & ACK and p.protocol == packet.STREAM:
            fields["ack"] = (p.ack + self.isn) % 2**32
        fields["destination_port"] = self.ports.get(p.destination_port, p.destination_port)
        return Packet(**fields)

    def heard(self, seconds: float = 0.0) -> list[Packet]:
        self.network.run(seconds)
        heard = self.peer.heard()
        for p in heard:
            if p.flags & SYN:
                self.isn = p.seq
        return heard

    def open(self, frame: int | None = None) -> None:
        """The SYN of the capture, or the one it must have had."""
        first = next(p for p, inward in zip(self.frames, self.inbound, strict=True) if inward)
        syn = (
            self.frames[frame]
            if frame is not None
            else self.peer.packet(flags=SYN, source_port=first.source_port, destination_port=7, window=512)
        )
        self.peer.send(syn)
        [answer] = self.heard()
        assert answer.flags == SYN | ACK

    def same(self, ours: Packet, number: int, *, but: tuple[str, ...] = ()) -> None:
        """Compare an answer of ours with frame `number`; windows only as closed or open."""
        theirs = self.frames[number]
        assert not self.inbound[number]
        if not ours.flags & RST and ours.protocol == packet.STREAM and "seq" not in but:
            assert (ours.seq - self.isn) % 2**32 == theirs.seq
        elif "seq" not in but:
            assert ours.seq == theirs.seq
        for name in ("flags", "protocol", "source", "destination", "source_port", "destination_port", "ack", "payload"):
            if name not in but:
                assert getattr(ours, name) == getattr(theirs, name), name
        assert bool(ours.window) == bool(theirs.window)


def test_handshake_data_echo_fin() -> None:
    replay = Replay("handshake_data_echo_fin")
    replay.echo()
    [answer] = replay.feed(0)
    replay.same(answer, 1)
    assert replay.feed(2) == []
    [echoed] = replay.feed(3)  # our acknowledgment rides on the echo: one packet instead of two
    replay.same(echoed, 5)
    assert replay.feed(6) == []
    [end] = replay.feed(7)
    replay.same(end, 8)
    assert replay.heard(60.0) == []


def test_duplicate_syn_on_established() -> None:
    replay = Replay("duplicate_syn_on_established")
    replay.node.listen(7)
    replay.open(0)
    first = replay.isn
    replay.peer.send(
        replay.peer.packet(
            flags=ACK, source_port=50001, destination_port=7, seq=8, ack=first + 1, window=512, payload=b"0123456789"
        )
    )
    replay.heard(1.0)
    [again] = replay.feed(0)
    replay.same(again, 1)
    assert again.seq == first
    assert replay.node.mux.all_streams()[0].readable == 10


def test_receiver_sack() -> None:
    replay = Replay("receiver_sack")
    replay.echo()
    replay.open()
    for number in (0, 2, 4):
        [answer] = replay.feed(number)
        replay.same(answer, number + 1, but=("payload",))
        blocks = sack.decode_untrusted(answer.payload, strict=True)
        assert blocks is not None
        assert sorted(blocks) == sack.decode_untrusted(replay.frames[number + 1].payload)
    answers = replay.feed(6)
    assert {p.ack for p in answers} == {51}
    assert b"".join(p.payload for p in answers) == b"".join(replay.frames[n].payload for n in (8, 9))


def test_sack_six_ranges() -> None:
    """1.18.0 reports the four highest; ours the one that changed and others in turn, any four being legal."""
    replay = Replay("sack_six_ranges_four_reported")
    replay.node.listen(7)
    replay.peer.send(replay.peer.packet(flags=SYN, source_port=50001, destination_port=7, window=512))
    replay.heard()
    held = {(101 + 200 * n, 201 + 200 * n) for n in range(6)}
    reported: set[tuple[int, int]] = set()
    for left, right in sorted(held):
        replay.peer.send(
            replay.peer.packet(
                flags=ACK,
                source_port=50001,
                destination_port=7,
                seq=left,
                ack=replay.isn + 1,
                window=512,
                payload=bytes(right - left),
            )
        )
        [answer] = replay.heard()
        blocks = sack.decode_untrusted(answer.payload, strict=True)
        assert blocks is not None
        assert len(blocks) == min(4, (left - 101) // 200 + 1)
        assert blocks[0] == (left, right)
        reported |= set(blocks)
    assert reported == held
    assert len(sack.decode_untrusted(replay.frames[0].payload) or ()) == 4


def test_connection_refused() -> None:
    replay = Replay("connection_refused")
    [answer] = replay.feed(0)
    replay.same(answer, 1)


def test_control_ping() -> None:
    replay = Replay("control_ping")
    [answer] = replay.feed(0)
    replay.same(answer, 1)


def test_active_open_and_close() -> None:
    replay = Replay("active_open_and_close_by_1.18.0")
    stream = replay.node.dial(replay.peer, 80)
    replay.ports[replay.frames[0].source_port] = stream.local_port
    [syn] = replay.heard()
    replay.same(syn, 0, but=("source_port",))
    assert replay.feed(1) == []
    assert stream.state == ESTABLISHED
    [acknowledgment] = replay.heard(0.006)
    replay.same(
        acknowledgment, 2, but=("source_port", "seq")
    )  # 1.18.0 acknowledges a SYN-ACK with its ISN, not ISN + 1
    assert acknowledgment.seq == (replay.isn + 1) % 2**32
    stream.write(replay.frames[3].payload)
    [data] = replay.heard()
    replay.same(data, 3, but=("source_port",))
    assert replay.feed(4) == []
    stream.close()
    [fin] = replay.heard()
    replay.same(fin, 5, but=("source_port",))
    assert stream.state == FIN_WAIT
    answers = replay.feed(6)  # 1.18.0 answers FIN-ACK with FIN-ACK; nobody needs the third
    assert answers == []
    assert stream.state == TIME_WAIT
    assert replay.heard(60.0) == []
    assert stream.state == CLOSED


def test_active_open_refused() -> None:
    replay = Replay("active_open_refused")
    stream = replay.node.dial(replay.peer, 80)
    replay.ports[replay.frames[0].source_port] = stream.local_port
    [syn] = replay.heard()
    replay.same(syn, 0, but=("source_port",))
    assert replay.feed(1) == []
    assert isinstance(stream.error(), RefusedError)


def test_fin_ahead_of_missing_data() -> None:
    replay = Replay("fin_ahead_of_missing_data")
    owner = replay.node.listen(7)
    replay.open()
    [acknowledgment] = replay.feed(0)
    replay.same(acknowledgment, 1)
    [end] = replay.feed(2)
    replay.same(end, 3)
    assert owner.streams[0].read(100) == replay.frames[2].payload
    assert owner.streams[0].read(100) == b""
    assert replay.heard(60.0) == []


def test_datagrams() -> None:
    replay = Replay("datagrams")
    got: list[Any] = []
    replay.node.mux.on_datagram = lambda *args: got.append(args)
    assert replay.feed(0) == []
    inbound, outbound = replay.frames
    assert got == [(Addr(0, inbound.source.node), inbound.source_port, inbound.destination_port, inbound.payload)]
    replay.node.mux.send_datagram(
        replay.peer.peer, Addr(0, replay.peer.node), outbound.destination_port, outbound.payload
    )
    [sent] = replay.heard()
    replay.same(sent, 1, but=("source_port",))
    assert (sent.flags, sent.seq, sent.ack, sent.window) == (0, 0, 0, 0)


def test_retransmission_timeout() -> None:
    """No RTT sample: 1 s, then doubling; ours has no 100 ms tick and no jitter."""
    replay = Replay("retransmission_timeout")
    replay.echo()
    replay.feed(0)
    replay.feed(2)
    started = replay.network.now
    [echoed] = replay.feed(3)
    replay.same(echoed, 5)
    replay.network.run(4.0)
    repeated = [(item.at - started, item.packet) for item in replay.peer.inbox]
    assert [at for at, _ in repeated] == pytest.approx([1.0, 3.0], abs=0.002)
    for _, p in repeated:
        replay.same(p, 6)


def test_user_data_mistaken_for_sack() -> None:
    """Data that begins like a SACK, cut longer than one: 1.18.0 swallows it, ours delivers and acknowledges it."""
    replay = Replay("user_data_mistaken_for_sack")
    owner = replay.node.listen(7)
    replay.open()
    answers = replay.feed(0) + replay.heard(0.01)
    assert owner.streams[0].read(1 << 16) == replay.frames[0].payload
    assert answers[-1].ack == 1 + len(replay.frames[0].payload)


def test_nagle_hold() -> None:
    """1.18.0 holds the short rest 40 ms. Ours has no hold: the first write leaves at once, the others together in the
    same loop iteration, with the same bytes at the same places."""
    network, talk = dialed(port=81)
    held = [packet.decode_untrusted(bytes.fromhex(f["hex"])[4:]) for f in EXCHANGES["nagle_hold"]["frames"]]
    whole = held[0].payload + held[1].payload
    for at in range(0, len(whole), 2):
        talk.core.write(whole[at : at + 2])
    sent = talk.seen()
    assert [(s.kind, s.seq + 1, s.payload) for s in sent] == [("DATA", p.seq, p.payload) for p in held]
    assert {s.at for s in sent} == {network.now}


DERIVED = {case["name"]: packet.decode_untrusted(bytes.fromhex(case["hex"])[4:]) for case in STREAMS["derived_frames"]}


class TestDerivedFrames:
    @pytest.mark.parametrize("case", STREAMS["derived_frames"], ids=lambda case: case["name"])
    def test_compiled_codec(self, case: dict[str, Any]) -> None:
        inner = bytes.fromhex(case["hex"])[4:]
        assert CompiledPacket.decode_untrusted(inner).encode() == inner

    def test_syn(self) -> None:
        _, node, peer = stage()
        node.dial(peer, 7)
        [ours] = peer.heard()
        theirs = DERIVED["syn_node1_to_node2_port7"]
        names = ("flags", "source", "destination", "destination_port", "ack", "protocol", "payload")
        assert {n: getattr(ours, n) for n in names} == {n: getattr(theirs, n) for n in names}
        assert ours.source_port >= 49152

    def test_zero_window_then_update(self) -> None:
        """`zero_window_ack` stops our sender, `window_update` starts it again at once."""
        network, node, peer = stage()
        stream = node.dial(peer, 7)
        talk = peer.accept(stream)
        for _ in range(10):
            stream.write(bytes(100))
            network.settle()
        assert len([s for s in talk.seen() if s.kind == "DATA"]) == 10
        closed, opened = DERIVED["zero_window_ack"], DERIVED["window_update"]
        assert closed.ack == opened.ack == 1001
        talk.ack(closed.ack - 1, window=closed.window)
        stream.write(b"waits")
        assert talk.seen() == []
        talk.ack(opened.ack - 1, window=opened.window)
        [data] = talk.seen()
        assert (data.kind, data.payload) == ("DATA", b"waits")

    def test_one_old_byte_probe(self) -> None:
        """Answered at any time with the current ack and window, the sender's own form of the probe being the same."""
        network, talk = accepted()
        talk.data(bytes(999))
        talk.wait(0.1)
        p = DERIVED["one_old_byte_probe"]
        assert len(p.payload) == 1
        talk.data(p.payload, offset=998)
        [answer] = talk.seen()
        assert (answer.kind, answer.ack, answer.window > 0) == ("ACK", 999, True)
        assert network.now == answer.at

    def test_keepalive_is_not_answered(self) -> None:
        _, talk = accepted()
        p = DERIVED["keepalive"]
        assert (p.flags, p.payload) == (ACK, b"")
        talk.ack()
        assert talk.wait(5.0) == []


class TestSack:
    @pytest.mark.parametrize("case", STREAMS["sack_payloads"], ids=lambda case: repr(case["blocks"]))
    def test_receiver_builds(self, case: dict[str, Any]) -> None:
        blocks = [tuple(block) for block in case["blocks"]]
        _, talk = accepted(isn=blocks[0][0] - 11)
        talk.seen()
        for left, right in blocks:
            talk.data(bytes((right - left) % 2**32), offset=signed(left - talk.at(0)))
            [answer] = talk.seen()
        built = sack.decode_untrusted(answer.payload, strict=True)
        assert built is not None
        assert sorted(built, key=lambda block: signed(block[0] - talk.at(0))) == blocks
        assert len(answer.payload) == len(case["hex"]) // 2

    @pytest.mark.parametrize("case", STREAMS["sack_payloads"], ids=lambda case: repr(case["blocks"]))
    def test_sender_understands(self, case: dict[str, Any]) -> None:
        """The payload itself, with our ISN such that it speaks of the bytes in flight: nothing of it is delivered."""
        _, talk = dialed()
        blocks = [tuple(block) for block in case["blocks"]]
        shift = talk.theirs(0) - blocks[0][0] + 10
        for _ in range(10):
            talk.core.write(bytes(100))
        talk.seen()
        talk.peer.send(
            talk.make(
                ACK,
                talk.at(0),
                talk.theirs(0),
                sack.encode([(a + shift & 0xFFFFFFFF, b + shift & 0xFFFFFFFF) for a, b in blocks]),
            )
        )
        assert talk.core.readable == 0
        assert talk.core.stats().received == 0

    @pytest.mark.parametrize("case", STREAMS["sack_decode_cases"], ids=lambda case: case["hex"][:20])
    def test_told_from_data(self, case: dict[str, Any]) -> None:
        """None of these is a SACK here: the first one too has no block with left < right in what was sent."""
        _, talk = accepted()
        payload = bytes.fromhex(case["hex"])
        talk.data(payload)
        assert talk.core.read(100) == payload


class TestTimelines:
    def test_syn_direct_only(self) -> None:
        network, node, peer = stage()
        stream = node.dial(peer, 7)
        network.run(40.0)
        times = [round(item.at - 1000.0, 3) for item in peer.inbox]
        assert times == TIMES["syn_direct_only_s"]["sent"]
        assert isinstance(stream.error(), TimeoutError)
        closed = [call for call in stream.owner.wakes if call & 16]
        assert len(closed) == 1

    def test_syn_direct_only_gives_up(self) -> None:
        network, node, peer = stage()
        stream = node.dial(peer, 7)
        network.run(60.0, lambda: stream.state == CLOSED)
        assert network.now - 1000.0 == pytest.approx(TIMES["syn_direct_only_s"]["gives_up_source_only"], abs=0.01)

    def test_syn_direct_then_relay(self) -> None:
        network, node, peer = stage()
        beacon = ("192.0.2.1", 9001)
        node.datapath.beacon = beacon
        node.control.relay_dials = True
        stream = node.dial(peer, 7)
        network.run(60.0, lambda: stream.state == CLOSED)
        line = TIMES["syn_direct_then_relay_s"]
        direct = [round(at - 1000.0, 3) for at, _, target, _ in network.log if target == peer.address]
        relayed = [round(at - 1000.0, 3) for at, _, target, _ in network.log if target == beacon]
        assert direct == line["direct"]
        assert relayed == line["via_relay"]
        assert network.now - 1000.0 == pytest.approx(line["gives_up"], abs=0.01)
        assert "relay" in str(stream.error())

    def test_retransmissions_without_a_sample_are_never_sooner(self) -> None:
        """1.18.0 repeats at 1.1, 3.6, 9.2 s ... and dies at the eighth; ours gives up by time alone."""
        network, talk = accepted()
        talk.core.write(b"x")
        talk.seen()
        network.run(55.0)
        times = [s.at - 1000.0 for s in talk.seen() if s.seq == 0]
        assert times[:3] == pytest.approx([1.0, 3.0, 7.0], abs=0.003)
        assert talk.core.state == ESTABLISHED

    def test_zero_window_probes(self) -> None:
        """Ours are old bytes, as often as 1.18.0's at first and at least every 10 s later."""
        network, talk = dialed(window=512)
        talk.ack(0, window=0)
        talk.core.write(b"waits")
        talk.seen()
        started = network.now
        times = []
        for _ in range(300):
            network.run(0.1)
            for s in talk.seen():
                assert (s.kind, s.seq, len(s.payload)) == ("DATA", -1, 1)
                times.append(round(s.at - started, 2))
                talk.ack(0, window=0)
        assert times[:4] == TIMES["zero_window_probes_s"]["sent"][:4]
        assert all(b - a <= 10.01 for a, b in itertools.pairwise(times))

    def test_keepalive_beats_the_stock_limits(self) -> None:
        """A stock node asks after 68 s and closes after 113 s without an answer: ours speaks well before."""
        network, talk = accepted()
        network.run(TIMES["keepalive_silent_peer_s"]["probes"][0])
        assert [s.kind for s in talk.seen()][:1] == ["DATA"]

    def test_ack_cadence(self) -> None:
        """Never thinner than every second segment, a lone one within 5 ms."""
        _, talk = accepted()
        line = TIMES["ack_cadence"]
        answers = 0
        for n in range(60):
            talk.data(b"x")
            answers += len(talk.seen())
            assert answers >= (n + 1) // line["then_every"]
        talk.wait(1.0)
        talk.data(b"x")
        started = talk.peer.network.now
        [lone] = talk.wait(1.0)
        assert lone.at - started <= line["lone_delay_ms"] / 1000 + 0.001

    def test_fin_waits_five_seconds_for_the_last_data(self) -> None:
        network, talk = dialed()
        talk.core.write(b"never acknowledged")
        talk.seen()
        started = network.now
        talk.core.close()
        network.run(6.0)
        fins = [s.at - started for s in talk.seen() if s.kind == "FIN"]
        assert fins[0] == pytest.approx(TIMES["fin_with_unacked_data_s"]["fin"], abs=0.002)


def test_control_and_flags_are_what_the_reference_says() -> None:
    """The header layout of the vectors and of the reference are one and the same."""
    assert (SYN, ACK, FIN, RST) == (1, 2, 4, 8)
    assert (packet.STREAM, DATAGRAM, CONTROL) == (1, 2, 3)
