"""The state table of streams.md sections 3 and 4, row by row, with what DESIGN narrows (L7)."""

from __future__ import annotations

import pytest

from pilot._fast.errors import ClosedError, PathError, RefusedError, ResetError
from tests.core.scripted import ScriptedPeer, Talk, accepted, dialed, stage
from tests.core.virtual import (
    CLOSED,
    CLOSED_WAKE,
    CLOSING,
    ESTABLISHED,
    FIN_WAIT,
    SYN_SENT,
    TIME_WAIT,
    Network,
    VirtualNode,
)
from tests.reference import packet
from tests.reference.packet import ACK, DATAGRAM, FIN, RST, SYN


def dialing() -> tuple[Network, VirtualNode, ScriptedPeer, Talk]:
    network, node, peer = stage()
    stream = node.dial(peer, 80)
    talk = peer.accept(stream, now=False)
    return network, node, peer, talk


class TestPacketForms:
    def test_syn_with_payload_opens_and_the_payload_is_ignored(self) -> None:
        _, node, peer = stage()
        listener = node.listen(7)
        peer.send(peer.packet(flags=SYN, source_port=1, destination_port=7, seq=5, window=512, payload=b"early"))
        [answer] = peer.heard()
        assert (answer.flags, answer.ack) == (SYN | ACK, 6)
        assert listener.streams[0].readable == 0

    @pytest.mark.parametrize("extra", [FIN, RST, FIN | RST])
    def test_syn_comes_before_fin_and_rst(self, extra: int) -> None:
        _, node, peer = stage()
        node.listen(7)
        peer.send(peer.packet(flags=SYN | extra, source_port=1, destination_port=7, window=512))
        assert [p.flags for p in peer.heard()] == [SYN | ACK]

    def test_fin_comes_before_rst(self) -> None:
        _, talk = accepted()
        talk.fin(flags=FIN | RST)
        assert [s.kind for s in talk.seen()] == ["FIN+ACK"]
        assert talk.core.read(1) == b""

    def test_payload_on_a_fin_is_dropped(self) -> None:
        _, talk = accepted()
        talk.fin(payload=b"gone")
        [answer] = talk.seen()
        assert (answer.kind, answer.ack) == ("FIN+ACK", 1)
        assert talk.core.read(10) == b""

    def test_ack_and_window_of_a_fin_are_ignored(self) -> None:
        _, talk = accepted()
        talk.core.write(b"unacknowledged")
        talk.seen()
        talk.peer.send(talk.make(FIN, talk.at(3), talk.theirs(99999), b"", 0))
        assert talk.core.unacknowledged == 14
        assert talk.core.stats().peer_window_slots == 512
        assert talk.core.state == ESTABLISHED

    def test_source_port_zero_is_served(self) -> None:
        _, node, peer = stage()
        node.listen(7)
        peer.send(peer.packet(flags=SYN, source_port=0, destination_port=7, window=512))
        [answer] = peer.heard()
        assert (answer.flags, answer.destination_port) == (SYN | ACK, 0)

    def test_damaged_and_foreign_packets_are_dropped(self) -> None:
        _, node, peer = stage()
        node.listen(7)
        syn = peer.packet(flags=SYN, source_port=1, destination_port=7, window=512)
        encoded = bytearray(syn.encode())
        encoded[20] ^= 1
        peer.send(bytes(encoded))
        peer.send(peer.packet(flags=SYN, source_port=1, destination_port=7, window=512, version=2))
        peer.send(peer.packet(flags=SYN, protocol=9, source_port=1, destination_port=7, window=512))
        assert peer.heard() == []
        peer.send(syn.encode() + b"trailing bytes")
        assert [p.flags for p in peer.heard()] == [SYN | ACK]

    def test_window_zero_in_the_syn_means_closed(self) -> None:
        _network, talk = accepted(window=0)
        talk.core.write(b"waits")
        assert talk.seen() == []
        assert [s.seq for s in talk.wait(0.6) if s.kind == "DATA"] == [-1]
        talk.ack(0, window=10)
        assert [s.payload for s in talk.seen() if s.seq == 0] == [b"waits"]

    def test_an_old_packet_does_not_move_the_window(self) -> None:
        """1.18.0 takes any window; DESIGN section 4 says the age is checked."""
        _network, talk = dialed()
        talk.core.write(bytes(100))
        talk.seen()
        talk.data(b"older", window=400)
        talk.data(b"newer", window=300)
        talk.peer.send(talk.make(ACK, talk.at(0), talk.theirs(0), b"", 1))
        assert talk.core.stats().peer_window_slots == 300
        talk.ack(100, window=200)
        talk.ack(50, window=1)
        assert talk.core.stats().peer_window_slots == 200


class TestListening:
    def test_established_without_the_third_ack(self) -> None:
        _, talk = accepted()
        assert talk.core.state == ESTABLISHED
        assert talk.core.inbound

    def test_same_ports_of_different_peers_and_networks_are_different_streams(self) -> None:
        _network, node, peer = stage()
        listener = node.listen(7)
        other = ScriptedPeer(node, 3)
        talks = [peer.open(7), other.open(7), peer.open(7, network=5)]
        assert len(listener.streams) == 3
        for n, talk in enumerate(talks):
            talk.data(bytes([n]))
        assert [stream.read(10) for stream in listener.streams] == [b"\0", b"\1", b"\2"]


class TestSynSent:
    def test_syn_ack_with_payload(self) -> None:
        _, _, _, talk = dialing()
        talk.syn_ack(payload=b"ignored")
        [ack] = talk.wait(0.01)
        assert (ack.kind, ack.ack) == ("ACK", 0)
        assert talk.core.state == ESTABLISHED
        assert talk.core.readable == 0

    @pytest.mark.parametrize("flags", [RST, RST | ACK])
    def test_rst_refuses_at_once(self, flags: int) -> None:
        _network, node, peer, talk = dialing()
        peer.send(talk.make(flags, 0, 0))
        assert talk.core.state == CLOSED
        with pytest.raises(RefusedError):
            talk.core.read(1)
        assert isinstance(talk.core.error(), ConnectionRefusedError)
        assert node.mux.all_streams() == []
        assert talk.core.owner.wakes[-1] & CLOSED_WAKE

    def test_data_and_acks_do_nothing(self) -> None:
        _, _, _, talk = dialing()
        talk.data(b"early", offset=0)
        talk.ack()
        talk.fin()
        assert talk.seen() == []
        assert talk.core.state == SYN_SENT
        talk.syn_ack()
        assert talk.core.state == ESTABLISHED
        assert talk.core.readable == 0

    def test_syn_ack_with_window_zero(self) -> None:
        _, _, _, talk = dialing()
        talk.window = 0
        talk.syn_ack()
        assert talk.core.state == ESTABLISHED
        talk.core.write(b"waits")
        talk.wait(0.4)
        assert [s.seq for s in talk.wait(0.3) if s.kind == "DATA"] == [-1]
        talk.ack(0, window=512)
        assert [s.payload for s in talk.seen()] == [b"waits"]

    def test_syn_on_the_same_ports_is_refused_and_the_dial_goes_on(self) -> None:
        """No simultaneous open."""
        _, _, _, talk = dialing()
        talk.syn()
        assert [s.kind for s in talk.seen()] == ["RST"]
        talk.syn_ack()
        assert talk.core.state == ESTABLISHED

    def test_written_before_the_answer_leaves_with_it(self) -> None:
        _, _, _, talk = dialing()
        assert talk.core.write(b"eager") == 5
        assert talk.seen() == []
        talk.syn_ack()
        assert [(s.kind, s.payload) for s in talk.seen()] == [("DATA", b"eager")]

    def test_close_and_abort_end_the_dial(self) -> None:
        for end in ("close", "abort"):
            network, node, _, talk = dialing()
            getattr(talk.core, end)()
            network.settle()
            assert talk.core.state == CLOSED
            assert isinstance(talk.core.error(), ClosedError)
            assert [s.kind for s in talk.seen()] == ["RST"]
            assert node.mux.live == 0
            talk.syn_ack()
            assert talk.wait(60.0) == []


class TestEstablished:
    def test_syn_ack_again_is_ignored(self) -> None:
        _, talk = dialed()
        talk.syn_ack()
        talk.peer.send(talk.make(SYN | ACK, 999, 999))
        assert talk.wait(1.0) == []
        assert talk.core.state == ESTABLISHED

    def test_syn_while_a_fin_is_held_opens_afresh(self) -> None:
        _, talk = accepted()
        talk.fin(50)
        talk.seen()
        old = talk.core
        talk.peer.network.run(4.0)
        talk.isn = 77
        talk.syn()
        assert [s.kind for s in talk.seen()] == ["SYN+ACK"]
        assert old.state == CLOSED
        [fresh] = talk.peer.target.mux.all_streams()
        assert fresh is not old

    def test_fin_at_or_below_what_is_next(self) -> None:
        for offset in (5, 3, 0, -1):
            _, talk = accepted()
            talk.data(b"12345")
            talk.fin(offset)
            ends = [s for s in talk.seen() if s.kind == "FIN+ACK"]
            assert [s.ack for s in ends] == [max(offset, 5) + 1 if offset == 5 else ends[0].ack]
            assert talk.core.read(10) == b"12345"
            assert talk.core.read(10) == b""
            assert talk.core.state == TIME_WAIT

    def test_fin_ahead_is_remembered_and_the_sack_goes_with_the_ack(self) -> None:
        _, talk = accepted()
        talk.data(b"67890", offset=5)
        talk.seen()
        talk.fin(10)
        [held] = talk.seen()
        assert (held.kind, held.ack, talk.blocks(held)) == ("SACK", 0, [(5, 10)])
        assert talk.core.state == ESTABLISHED
        talk.data(b"12345", offset=0)
        assert [s.kind for s in talk.seen()] == ["FIN+ACK"]
        assert talk.core.read(20) == b"1234567890"

    def test_rst_in_the_middle(self) -> None:
        _network, talk = accepted()
        talk.core.interest = 0
        talk.rst()
        assert talk.core.state == CLOSED
        assert talk.core.owner.wakes[-1] & CLOSED_WAKE
        assert talk.peer.target.topics("conn.rst")
        assert isinstance(talk.core.error(), ResetError)
        assert talk.wait(60.0) == []


class TestClosing:
    def test_data_after_the_own_close_is_acknowledged(self) -> None:
        """1.18.0 drops it without an acknowledgment and the peer retransmits; ours takes and forgets it."""
        _network, talk = dialed()
        talk.core.write(b"not yet acknowledged")
        talk.seen()
        talk.core.close()
        assert talk.core.state == CLOSING
        talk.data(b"1" * 10, ack=0)
        talk.data(b"2" * 10, ack=0)
        assert max(s.ack for s in talk.wait(0.1)) == 20
        with pytest.raises(ClosedError):
            talk.core.read(10)

    def test_the_peers_fin_first(self) -> None:
        """It ends both directions: what is unacknowledged is forgotten."""
        _, talk = dialed()
        talk.core.write(b"never acknowledged")
        talk.core.close()
        talk.seen()
        talk.fin()
        assert [s.kind for s in talk.seen()] == ["FIN+ACK"]
        assert talk.core.state == TIME_WAIT
        assert talk.wait(9.0) == []

    def test_rst(self) -> None:
        _, talk = dialed()
        talk.core.write(b"x")
        talk.core.close()
        talk.rst()
        assert talk.core.state == CLOSED
        assert isinstance(talk.core.error(), ResetError)


class TestFinWait:
    @pytest.mark.parametrize("flags", [FIN, FIN | ACK])
    @pytest.mark.parametrize("offset", [0, 40, -40])
    def test_fin_or_fin_ack_at_any_seq(self, flags: int, offset: int) -> None:
        _, talk = dialed()
        talk.core.close()
        talk.seen()
        talk.fin(offset, flags=flags)
        answers = [s.kind for s in talk.seen()]
        assert answers == (["FIN+ACK"] if flags == FIN else [])
        assert talk.core.state == TIME_WAIT
        assert talk.core.error() is None

    def test_a_late_copy_of_the_first_syn(self) -> None:
        """Closed at once, before the dialer's repeated SYN arrives: it gets its SYN-ACK, with the same ISN, again."""
        _, talk = accepted(isn=123_456)
        isn = talk.their_isn
        talk.core.close()
        talk.seen()
        talk.syn()
        answers = [s for s in talk.seen() if s.kind == "SYN+ACK"]
        assert [s.seq for s in answers] == [isn]
        assert len(talk.peer.target.mux.all_streams()) == 1

    def test_data_is_not_answered(self) -> None:
        _, talk = dialed()
        talk.core.close()
        talk.seen()
        talk.data(b"late", ack=0)
        assert [s for s in talk.wait(0.1) if s.kind != "FIN"] == []
        assert talk.core.state == FIN_WAIT


class TestTimeWait:
    def make(self) -> tuple[Network, Talk]:
        network, talk = accepted()
        talk.fin()
        talk.seen()
        assert talk.core.state == TIME_WAIT
        return network, talk

    def test_nothing_flagged_fin_is_sent_and_a_storm_cannot_start(self) -> None:
        _, talk = self.make()
        for _ in range(50):
            talk.fin(flags=FIN | ACK)
            talk.data(b"late", offset=1)
            talk.ack()
        assert talk.seen() == []
        for _ in range(50):
            talk.fin()
        answers = talk.seen()
        assert {s.kind for s in answers} <= {"ACK"}
        assert len(answers) <= 8

    def test_a_fin_does_not_prolong_it(self) -> None:
        network, talk = self.make()
        for _ in range(12):
            network.run(1.0)
            talk.fin()
        assert talk.core.state == CLOSED

    def test_syn_opens_afresh_at_once(self) -> None:
        _, talk = self.make()
        old = talk.core
        talk.isn, talk.sent = 0, 0
        talk.syn()
        assert [s.kind for s in talk.seen()] == ["SYN+ACK"]
        [fresh] = [s for s in talk.peer.target.mux.all_streams() if s.state == ESTABLISHED]
        assert fresh is not old
        talk.data(b"fresh")
        assert fresh.read(10) == b"fresh"
        assert old.read(10) == b""

    def test_a_late_copy_of_the_first_syn_opens_nothing(self) -> None:
        """Random ISNs tell a copy from a new dial; those of 1.18.0, always 0, cannot."""
        _, talk = accepted(isn=123_456)
        talk.fin()
        talk.seen()
        talk.syn()
        assert not [s for s in talk.wait(1.0) if s.kind == "SYN+ACK"]
        assert len(talk.peer.target.mux.all_streams()) == 1

    def test_rst_removes_it(self) -> None:
        _, talk = self.make()
        talk.rst()
        assert talk.core.state == CLOSED
        assert talk.core.read(1) == b""
        assert talk.core.error() is None


class TestNoSuchStream:
    @pytest.mark.parametrize("flags", [ACK, FIN, FIN | ACK, SYN | ACK, RST, RST | ACK, 0])
    def test_silence(self, flags: int) -> None:
        _, node, peer = stage()
        node.listen(7)
        peer.send(peer.packet(flags=flags, source_port=50001, destination_port=7, seq=1, ack=1, window=512))
        assert peer.heard() == []

    def test_data_is_reset_but_only_so_often(self) -> None:
        """Section 21: a restarted node ends its peers' streams at once instead of letting them retransmit."""
        network, _node, peer = stage()
        lost = peer.packet(flags=ACK, source_port=50001, destination_port=7, seq=1, ack=1, window=512, payload=b"data")
        peer.send(lost)
        [reset] = peer.heard()
        assert (reset.flags, reset.source_port, reset.destination_port, reset.seq) == (RST, 7, 50001, 0)
        for _ in range(1000):
            peer.send(lost)
        assert len(peer.heard()) <= 10
        network.run(1.0)
        peer.send(lost)
        assert len(peer.heard()) == 1

    def test_not_for_a_tuple_closed_lately(self) -> None:
        _network, talk = accepted()
        talk.fin()
        talk.seen()
        talk.data(b"late", offset=1)
        assert talk.seen() == []

    def test_other_protocols_make_no_stream(self) -> None:
        _, node, peer = stage()
        node.listen(7)
        peer.send(peer.packet(flags=SYN, protocol=DATAGRAM, source_port=1, destination_port=7, window=512))
        assert peer.heard() == []
        assert node.mux.all_streams() == []


class TestRestart:
    """The stale-connection trap: a peer that starts again with the same ports and the same ISN 0."""

    def test_new_session_key(self) -> None:
        _network, talk = accepted()
        talk.data(b"old life")
        talk.seen()
        old = talk.core
        talk.peer.new_session()
        talk.sent = 0
        talk.syn()
        [answer] = talk.seen()
        assert (answer.kind, answer.ack) == ("SYN+ACK", 0)
        assert isinstance(old.error(), PathError)
        talk.data(b"new life")
        [fresh] = talk.peer.target.mux.all_streams()
        assert fresh.read(100) == b"new life"

    def test_a_syn_repeated_across_a_rekey_is_no_restart(self) -> None:
        """The same random ISN under a new key: a copy on its way while the keys changed."""
        _, talk = accepted(isn=123_456)
        isn = talk.their_isn
        talk.peer.new_session(keep_previous=2.0)
        talk.syn()
        [answer] = talk.seen()
        assert (answer.kind, answer.seq) == ("SYN+ACK", isn)
        talk.data(b"the one stream")
        assert talk.core.read(100) == b"the one stream"

    def test_carried_data_and_time(self) -> None:
        _network, talk = accepted()
        talk.data(b"old life")
        talk.wait(5.0)
        talk.sent = 0
        talk.syn()
        [answer] = talk.seen()
        assert (answer.kind, answer.ack) == ("SYN+ACK", 0)

    def test_another_isn(self) -> None:
        _network, talk = accepted()
        talk.data(b"old life")
        talk.seen()
        talk.isn, talk.sent = 1 << 20, 0
        talk.syn()
        [answer] = talk.seen()
        assert (answer.kind, answer.ack) == ("SYN+ACK", 0)
        assert len(talk.peer.target.mux.all_streams()) == 1

    def test_a_late_repeated_syn_is_none(self) -> None:
        """Dialers repeat at 0.25, 0.75 and 1.75 s; data may have come before the last one does."""
        network, talk = accepted()
        for pause in (0.25, 0.5, 1.0):
            network.run(pause)
            talk.data(b"12")
            talk.syn()
        assert talk.core.state == ESTABLISHED
        assert talk.core.read(10) == b"121212"

    def test_our_own_stale_dial_gives_up_in_the_end(self) -> None:
        """A peer that answers every dial with an old acknowledgment: a few new ports are tried, then it is an error."""
        _network, node, peer = stage()
        stream = node.dial(peer, 80)
        ports = []
        for _ in range(20):
            syns = [p for p in peer.heard() if p.flags == SYN]
            if not syns:
                break
            ports.append(syns[0].source_port)
            peer.send(
                peer.packet(
                    flags=SYN | ACK,
                    source_port=80,
                    destination_port=syns[0].source_port,
                    ack=(syns[0].seq + 9) % 2**32,
                    window=512,
                )
            )
        assert len(set(ports)) == len(ports)
        assert 2 <= len(ports) <= 8
        assert isinstance(stream.error(), RefusedError)
        assert node.mux.all_streams() == []


def test_packet_reference_agrees_on_flags() -> None:
    assert (packet.SYN, packet.ACK, packet.FIN, packet.RST) == (SYN, ACK, FIN, RST)
