"""The 26 demands of streams.md section 20, one test each, on a compiled datapath and a peer played by hand (L7)."""

from __future__ import annotations

import pytest

from pilot._fast.errors import InvalidValueError, ResetError
from pilot._fast.mux import MuxSettings
from tests.core.scripted import ScriptedPeer, accepted, dialed, overlay, stage
from tests.core.virtual import CLOSED, ESTABLISHED, FIN_WAIT, TIME_WAIT, Gate, Network, VirtualNode, connected, transfer
from tests.reference import sack
from tests.reference.addr import Address
from tests.reference.packet import ACK, CONTROL, DATAGRAM, FIN, RST, SYN


@pytest.mark.parametrize("isn", [0, 1, 0xFFFFFFF0, 0xFFFFFFFF, 0x7FFFFFFF, 0x80000000])
def test_checklist_01_packet_forms_and_sequence_wrap(isn: int) -> None:
    """SYN and FIN each take a number, the first byte is ISN + 1; the peer's ISN may be 0 or wrap within the stream."""
    network, node, peer = stage()
    stream = node.dial(peer, 80)
    network.run(0.0)
    syn = peer.inbox[0].packet
    assert (syn.flags, syn.ack, syn.payload) == (SYN, 0, b"")
    assert syn.window > 0
    talk = peer.accept(stream, isn=isn)
    [third] = talk.wait(0.01)
    assert (third.kind, third.seq, third.ack, third.payload) == ("ACK", 0, 0, b"")
    stream.write(b"hello")
    [data] = talk.seen()
    assert (data.kind, data.seq, data.ack, data.payload) == ("DATA", 0, 0, b"hello")
    assert data.window > 0
    for n in range(8):
        talk.data(bytes([n]) * 5)
    assert stream.read(100) == bytes(byte for n in range(8) for byte in [n] * 5)
    talk.ack(5)
    talk.seen()
    stream.close()
    [fin] = [s for s in talk.wait(0.01) if s.kind == "FIN"]
    assert (fin.seq, fin.ack, fin.window, fin.payload) == (5, 0, 0, b"")
    talk.fin_ack(6)
    assert stream.state == TIME_WAIT


def test_checklist_01_own_sequence_numbers_wrap() -> None:
    """Our own ISN is random; whatever it is, 200 KiB across the wrap arrive whole."""

    class Nearly:
        def getrandbits(self, k: int) -> int:
            return 0xFFFFFF00

        def randrange(self, n: int) -> int:
            return 0

    network, first, second = connected(0)
    for end in (first, second):
        assert end.state == ESTABLISHED
    a, b = network.nodes
    a.mux.random_isn = b.mux.random_isn = Nearly()
    listener = b.listen(9)
    stream = a.dial(b, 9)
    network.run(1.0)
    data = bytes(range(256)) * 800
    assert transfer(network, stream, listener.streams[0], data) == data
    assert transfer(network, listener.streams[0], stream, data) == data


def test_checklist_02_syn_ack_opens_at_once() -> None:
    _network, node, peer = stage()
    listener = node.listen(7)
    peer.send(peer.packet(flags=SYN, source_port=50001, destination_port=7, seq=9, window=512))
    [answer] = peer.heard()
    assert (answer.flags, answer.ack) == (SYN | ACK, 10)
    assert 0 < answer.window <= 65535
    [stream] = listener.streams
    assert stream.state == ESTABLISHED
    peer.send(
        peer.packet(
            flags=ACK, source_port=50001, destination_port=7, seq=10, ack=answer.seq + 1, window=512, payload=b"early"
        )
    )
    assert stream.read(10) == b"early"
    stream.write(b"and back")
    assert any(p.payload == b"and back" for p in peer.heard())


def test_checklist_03_unbound_port_is_refused() -> None:
    _, _, peer = stage()
    peer.send(peer.packet(flags=SYN, source_port=50001, destination_port=4999, seq=77, window=512))
    [answer] = peer.heard()
    assert (answer.flags, answer.seq, answer.ack, answer.window, answer.payload) == (RST, 0, 0, 0, b"")
    assert (answer.source_port, answer.destination_port) == (4999, 50001)


def test_checklist_04_repeated_syn_repeats_the_syn_ack() -> None:
    _network, node, peer = stage()
    node.listen(7)
    talk = peer.open(7, isn=300)
    isn = talk.their_isn
    talk.core.write(b"already moved on")
    talk.data(b"0123456789")
    talk.wait(0.5)
    talk.syn()
    [again] = talk.seen()
    assert (again.kind, again.seq, again.ack) == ("SYN+ACK", isn, 10)
    assert talk.core.state == ESTABLISHED
    assert len(node.mux.all_streams()) == 1


@pytest.mark.parametrize("size", [1, 1152, 1400, 4096, 8000, 30000, 60000, 65437])
def test_checklist_05_segments_of_any_size(size: int) -> None:
    _, talk = accepted()
    talk.data(bytes(size))
    assert talk.core.read(1 << 20) == bytes(size)


def test_checklist_05_sends_at_most_1152_until_the_path_is_known() -> None:
    _, talk = dialed()
    talk.core.write(bytes(100_000))
    assert max(len(s.payload) for s in talk.seen()) == 1152
    _, talk = dialed()
    talk.peer.peer.segment_bytes = 8000
    talk.core.write(bytes(100_000))
    assert max(len(s.payload) for s in talk.seen()) == 8000


@pytest.mark.parametrize("window", [1, 10, 36])
def test_checklist_06_window_counts_segments(window: int) -> None:
    network, talk = dialed(window=window)
    for _ in range(window + 5):
        talk.core.write(b"tiny")
        network.settle()
    assert len([s for s in talk.seen() if s.kind == "DATA"]) == window
    talk.ack(4, window=window)
    assert len(talk.seen()) >= 1


def test_checklist_06_sacked_segments_count_and_zero_is_honoured() -> None:
    network, talk = dialed(window=4)
    for _ in range(10):
        talk.core.write(b"tiny")
        network.settle()
    assert len(talk.seen()) == 4
    talk.ack(0, blocks=[(4, 16)])
    assert [s for s in talk.wait(0.05) if s.seq >= 16] == []
    talk.ack(16, window=0)
    assert talk.seen() == []


def test_checklist_07_at_most_128_segments_behind_a_hole() -> None:
    network, talk = dialed(window=512)
    talk.peer.peer.segment_bytes = 100  # so that the congestion window is not what stops it
    for _ in range(200):
        talk.core.write(bytes(100))
        network.settle()
    assert len(talk.seen()) == 200
    for edge in range(200, 15_000, 100):
        talk.ack(0, blocks=[(100, edge)])
    talk.seen()
    talk.core.write(bytes(10_000))
    assert [s for s in talk.wait(0.1) if s.seq >= 20_000] == []
    talk.ack(15_000)  # the hole is filled: 50 are outstanding in order, and any number may follow
    fresh = [s for s in talk.wait(0.0) if s.seq >= 20_000]
    assert len(fresh) == 100


def test_checklist_08_segment_boundaries_survive_retransmission() -> None:
    network, talk = dialed()
    sizes = [500, 1000, 3, 1152, 700]
    for size in sizes:
        talk.core.write(bytes(size))
        network.settle()
    first = [(s.seq, len(s.payload)) for s in talk.seen() if s.kind == "DATA"]
    assert [n for _, n in first] == sizes
    talk.peer.peer.segment_bytes = 8000
    again = [(s.seq, len(s.payload)) for s in talk.wait(30.0) if s.kind == "DATA" and s.seq >= 0]
    assert set(again) == set(first)
    talk.ack(1000)  # in the middle of the second segment: a new cut is allowed only here
    after = {(s.seq, len(s.payload)) for s in talk.wait(30.0) if s.kind == "DATA" and s.seq >= 1000}
    assert after == {(1000, 500), *first[2:]}


def test_checklist_09_acknowledgments() -> None:
    """Out of order at once with SACK; every second segment; a lone one within a few ms."""
    network, talk = accepted()
    talk.data(b"a" * 10)
    assert talk.seen() == []
    talk.data(b"b" * 10)
    [second] = talk.seen()
    assert (second.kind, second.ack) == ("ACK", 20)
    talk.data(b"c" * 10)
    started = network.now
    [lone] = talk.wait(1.0)
    assert (lone.ack, lone.at - started <= 0.006) == (30, True)
    talk.data(b"d" * 10, offset=50)
    [held] = talk.seen()
    assert (held.kind, held.ack, talk.blocks(held)) == ("SACK", 30, [(50, 60)])
    for n in range(1, 6):
        talk.data(b"e" * 10, offset=50 + 20 * n)
        [held] = talk.seen()
        assert len(talk.blocks(held)) == min(4, n + 1)
        assert len(held.payload) == 5 + 8 * min(4, n + 1)
        assert talk.blocks(held)[0] == (50 + 20 * n, 60 + 20 * n)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("at", [0, 1, 1000, 1151])
def test_checklist_10_user_bytes_that_look_like_sack(count: int, at: int) -> None:
    _, talk = dialed()
    look = b"SACK" + bytes([count]) + bytes(40)
    talk.core.write(bytes(at) + look)
    whole = b""
    for s in talk.wait(0.05):
        if s.kind == "DATA" and s.seq == len(whole):
            assert not (s.payload[:4] == b"SACK" and len(s.payload) >= 5 and 1 <= s.payload[4] <= 4)
            whole += s.payload
    assert whole == bytes(at) + look


def test_checklist_11_sack_or_data() -> None:
    network, talk = dialed()
    for _ in range(10):
        talk.core.write(bytes(100))
        network.settle()
    talk.seen()
    talk.ack(500)

    def encode(*blocks: tuple[int, int]) -> bytes:
        return sack.encode([(talk.theirs(a), talk.theirs(b)) for a, b in blocks])

    sacks = [encode((600, 700)), encode((600, 700), (800, 1000)), encode((400, 500)), encode((0, 1000))]
    for payload in sacks:
        talk.peer.send(talk.make(ACK, talk.at(0), talk.theirs(500), payload))
        assert talk.core.readable == 0
    look_alike = [
        encode((600, 700)) + b"x",
        encode((600, 700))[:-1],
        encode((700, 600)),
        encode((600, 600)),
        encode((600, 1001)),
        encode((600, 700), (900, 1100)),
        b"SACK\x00" + bytes(8),
        b"SACK\x05" + bytes(40),
        encode((-5000, -4000)),
    ]
    whole = b""
    for payload in look_alike:
        talk.data(payload)
        whole += payload
    assert talk.core.read(1000) == whole


def test_checklist_12_ack_flag_on_data() -> None:
    _, talk = accepted()
    talk.peer.send(talk.make(0, talk.at(0), talk.theirs(0), b"ignored"))
    assert talk.core.readable == 0
    assert talk.wait(1.0) == []
    talk.core.write(bytes(5000))
    assert all(p.packet.flags == ACK for p in talk.peer.inbox)


def test_checklist_13_never_acknowledges_what_was_not_sent() -> None:
    """A SACKed far-ahead segment moves no cumulative acknowledgment; a bad ack of the peer's is ignored."""
    _network, talk = accepted()
    talk.data(b"x" * 10, offset=100)
    assert [s.ack for s in talk.seen()] == [0]
    talk.core.write(b"y" * 100)
    talk.seen()
    talk.ack(101)  # beyond our SND.NXT
    assert talk.core.unacknowledged == 100
    talk.got = 0
    talk.ack(100)
    assert talk.core.unacknowledged == 0


def test_checklist_14_window_update_when_it_opens() -> None:
    network, talk = accepted(settings=MuxSettings(receive_limit=1))
    size = 60_000
    while True:
        talk.data(bytes(size))
        window = talk.wait(0.01)[-1].window
        if window * 1152 < size:
            break
    talk.data(bytes(window * 1152))
    while talk.wait(0.01)[-1:][0].window:
        talk.data(bytes(1152))
    unread = talk.core.readable
    assert talk.core.read(unread // 2)
    network.settle()
    [update] = talk.seen()
    assert (update.kind, update.ack) == ("ACK", talk.sent)
    assert update.window > 100


def test_checklist_14_lost_window_update_is_repeated() -> None:
    """The update is not used: a stock sender asks with empty ACKs, which must be answered, or both wait for ever."""
    network, talk = accepted(settings=MuxSettings(receive_limit=1))
    while talk.core.readable < 2_000_000:
        talk.data(bytes(60_000))
    while talk.wait(0.01)[-1:][0].window:
        talk.data(bytes(1152))
    talk.core.read(1 << 20)
    network.settle()
    assert talk.seen()[-1].window > 0  # this one is lost on the way
    reopened = []
    for pause in (0.5, 1.0, 2.0, 4.0):
        network.run(pause)
        talk.ack()
        reopened += [s for s in talk.seen() if s.window > 0]
    assert reopened


def test_checklist_15_window_probe_is_an_old_byte() -> None:
    _network, talk = dialed()
    talk.ack(0, window=0)
    talk.core.write(b"waiting")
    probes = [s for s in talk.wait(1.0) if s.kind == "DATA"]
    assert probes
    assert all((s.seq, len(s.payload)) == (-1, 1) for s in probes)
    talk.ack(0, window=1)
    [data] = [s for s in talk.seen() if s.seq == 0]
    assert data.payload == b"waiting"
    talk.ack(7, window=0)
    talk.core.write(b"more")
    [probe, *_] = [s for s in talk.wait(1.0) if s.kind == "DATA"]
    assert (probe.seq, probe.payload) == (6, b"g")


def test_checklist_16_keepalive() -> None:
    network, talk = accepted()
    talk.data(b"x")
    talk.seen()
    times = []
    for _ in range(200):
        network.run(1.0)
        heard = talk.seen()
        times += [s.at for s in heard if s.kind == "DATA"]
        if any(s.kind == "DATA" for s in heard):
            talk.ack()
    gaps = [b - a for a, b in zip([1000.0, *times], times, strict=False)]
    assert max(gaps) <= 60.0
    assert talk.core.state == ESTABLISHED


def test_checklist_16_empty_acks_do_not_echo() -> None:
    _, talk = accepted()
    answers = 0
    for _ in range(100):
        talk.ack()
        answers += len(talk.wait(0.01))
    assert answers <= 1 / 0.25 + 1


def test_checklist_17_exactly_one_fin_ack() -> None:
    _network, talk = accepted()
    talk.fin(5)  # overtook five bytes
    assert [s.kind for s in talk.seen()] == ["ACK"]
    talk.data(b"12345")
    talk.sent = 5
    [answer] = talk.seen()
    assert (answer.kind, answer.seq, answer.ack) == ("FIN+ACK", 0, 6)
    talk.fin(5)
    talk.fin(5, flags=FIN | ACK)
    talk.data(b"12345", offset=0)
    talk.ack()
    assert not [s for s in talk.wait(5.0) if "FIN" in s.kind]
    assert talk.core.read(10) == b"12345"
    assert talk.core.read(10) == b""


def test_checklist_18_fin_ends_both_directions() -> None:
    """Our side stays open until the user closes it; the peer's FIN ends what we still had to send."""
    _network, talk = accepted()
    talk.core.write(b"answer")
    talk.seen()
    talk.fin()
    assert [s.kind for s in talk.seen()] == ["FIN+ACK"]
    with pytest.raises(ConnectionError):
        talk.core.write(b"more")
    assert [s for s in talk.wait(9.0) if s.kind == "DATA"] == []


def test_checklist_19_fin_after_the_last_acknowledgment_and_again() -> None:
    _network, talk = dialed()
    talk.core.write(b"last words")
    talk.core.close()
    assert [s.kind for s in talk.seen()] == ["DATA"]
    talk.ack(10)
    [fin] = talk.seen()
    assert (fin.kind, fin.seq) == ("FIN", 10)
    again = [s for s in talk.wait(3.0) if s.kind == "FIN"]
    assert again
    assert all(s.seq == 10 for s in again)
    talk.rst()
    assert [s for s in talk.wait(60.0) if s.kind == "FIN"] == []


def test_checklist_19_fin_has_a_time_limit() -> None:
    _network, talk = dialed()
    talk.core.close()
    fins = [s for s in talk.wait(60.0) if s.kind == "FIN"]
    assert 3 <= len(fins) <= 10
    assert talk.core.state == CLOSED
    assert talk.core.error() is None


def test_checklist_20_plain_ack_of_the_fin_is_enough() -> None:
    network, talk = dialed()
    talk.core.write(b"x")
    talk.ack(1)
    talk.core.close()
    assert talk.core.state == FIN_WAIT
    talk.ack(2)
    assert talk.core.state == TIME_WAIT
    network.run(9.0)
    assert talk.core.state == TIME_WAIT
    network.run(2.0)
    assert talk.core.state == CLOSED


@pytest.mark.parametrize("seq", [0, 1, 12345, 0xFFFFFFFF])
def test_checklist_21_rst_at_any_sequence_number(seq: int) -> None:
    _, talk = accepted()
    talk.data(b"before")
    talk.rst(seq)
    assert talk.core.read(10) == b"before"
    with pytest.raises(ResetError):
        talk.core.read(10)
    assert talk.core.state == CLOSED


def test_checklist_22_stale_syn_ack() -> None:
    _network, node, peer = stage()
    stream = node.dial(peer, 80)
    talk = peer.accept(stream, now=False)
    first_port = stream.local_port
    talk.syn_ack(ack=talk.their_isn + 101)
    sent = peer.heard()
    assert sent[0].flags == RST
    assert sent[0].source_port == first_port
    assert sent[1].flags == SYN
    assert sent[1].source_port != first_port
    peer.send(
        peer.packet(
            flags=SYN | ACK,
            source_port=80,
            destination_port=sent[1].source_port,
            seq=0,
            ack=sent[1].seq + 1,
            window=512,
        )
    )
    assert stream.state == ESTABLISHED


def test_checklist_22_random_isn_and_first_port() -> None:
    isns, ports = set(), set()
    for seed in range(20):
        network = Network(seed)
        node = VirtualNode(network, 1)
        peer = ScriptedPeer(node)
        node.dial(peer, 7)
        network.run(0.02)
        [syn] = peer.heard()
        isns.add(syn.seq)
        ports.add(syn.source_port)
    assert len(isns) == 20
    assert len(ports) >= 19
    assert min(ports) >= 49152


def test_checklist_23_control_packets() -> None:
    _, _node, peer = stage()

    def control(**fields: object) -> list[object]:
        peer.send(peer.packet(protocol=CONTROL, **fields))
        return peer.heard()

    [pong] = control(source_port=5, destination_port=0, seq=41, payload=b"ping")
    assert (pong.flags, pong.source_port, pong.destination_port, pong.seq, pong.ack, pong.payload) == (  # type: ignore[attr-defined]
        ACK,
        0,
        5,
        41,
        42,
        b"ping",
    )
    assert control(flags=ACK, source_port=0, destination_port=0, seq=1) == []
    assert control(flags=ACK, source_port=5, destination_port=0, seq=1, payload=b"pong") == []
    assert control(source_port=5, destination_port=1, payload=b"ping") == []


def test_checklist_24_datagrams() -> None:
    network, node, peer = stage()
    got = []
    node.mux.on_datagram = lambda *args: got.append(args)
    for payload in (b"one", b"", b"two"):
        peer.send(peer.packet(protocol=DATAGRAM, source_port=9, destination_port=0, payload=payload))
    assert got == [(overlay(2), 9, 0, b"one"), (overlay(2), 9, 0, b"two")]
    for _ in range(3):
        node.mux.send_datagram(peer.peer, overlay(2), 1001, b"out")
    network.settle()
    sent = peer.heard()
    assert len({p.source_port for p in sent}) == len(sent) == 3
    assert {p.destination_port for p in sent} == {1001}
    with pytest.raises(InvalidValueError):
        node.mux.send_datagram(peer.peer, overlay(2), 1001, b"")


def test_checklist_25_network_numbers() -> None:
    _network, node, peer = stage()
    listener = node.listen(7)
    stream = node.mux.dial(peer.peer, overlay(2, 5), 80)
    [syn] = peer.heard()
    assert (syn.source, syn.destination) == (Address(5, 1), Address(5, 2))
    assert stream.local_addr == overlay(1, 5)
    peer.send(
        peer.packet(
            flags=SYN,
            source=Address(9, 2),
            destination=Address(6, 77),
            source_port=50001,
            destination_port=7,
            window=512,
        )
    )
    [answer] = peer.heard()
    assert (answer.source, answer.destination) == (Address(6, 77), Address(9, 2))
    [accepted_stream] = listener.streams
    assert accepted_stream.local_addr == overlay(77, 6)
    assert accepted_stream.remote_addr == overlay(2, 9)


def test_checklist_26_gates_in_order() -> None:
    """DESIGN narrows: the trust gate stands before everything; then port, source bucket, node bucket, limits."""
    _network, node, peer = stage(MuxSettings(source_syn_burst=5, source_syn_rate=1, max_streams_per_port=3))
    node.mux.gate = gate = Gate()
    node.listen(7)

    def syn(port: int, source_port: int) -> list[int]:
        peer.send(peer.packet(flags=SYN, source_port=source_port, destination_port=port, window=512))
        return [p.flags for p in peer.heard()]

    assert syn(7, 1) == []
    assert syn(4999, 2) == []
    assert len(node.topics("syn.rejected")) == 2
    gate.trusted.add(2)
    assert [syn(4999, n) for n in range(10, 30)] == [[RST]] * 20  # no bucket is asked about unbound ports
    answers = [syn(7, n) for n in range(100, 108)]
    assert answers[:3] == [[SYN | ACK]] * 3
    assert answers[3:5] == [[RST]] * 2  # the port is full
    assert answers[5:] == [[]] * 3  # the bucket is empty: silence, no event
    assert node.topics("security.syn_rate_limited") == []
