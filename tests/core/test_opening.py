"""Opening streams: dial timers, sessions that come late, relay, gates, buckets, limits, self dial (streams.md 5, 6)."""

from __future__ import annotations

import pytest

from pilot._fast.errors import BusyError, InvalidValueError, PathError, RefusedError
from pilot._fast.mux import MuxSettings
from tests.core.scripted import ScriptedPeer, overlay, stage
from tests.core.virtual import (
    CLOSED,
    ESTABLISHED,
    OPEN,
    Gate,
    Network,
    Owner,
    VirtualNode,
    connected,
    pair,
    transfer,
)
from tests.reference.packet import ACK, RST, SYN


class TestDial:
    def test_wakes_its_owner_once_when_open(self) -> None:
        network, node, peer = stage()
        stream = node.dial(peer, 80)
        stream.interest = OPEN
        peer.accept(stream)
        network.run(1.0)
        assert [bits & OPEN for bits in stream.owner.wakes] == [OPEN]

    def test_waits_for_the_session_without_counting_retries(self) -> None:
        network, node = Network(0, delay=0.02), None
        node = VirtualNode(network, 1)
        peer = ScriptedPeer(node, session=False)
        stream = node.dial(peer, 80)
        network.run(6.0)
        assert network.log == []
        assert [call[1].node for call in node.control.named("session_wanted")] == [2]
        peer.new_session()
        network.run(0.02)
        assert [p.flags for p in peer.heard()] == [SYN]
        network.run(8.0)
        assert stream.state != CLOSED

    def test_round_trip_sample_leaves_the_wait_for_the_session_out(self) -> None:
        network = Network(0, delay=0.02)
        node = VirtualNode(network, 1)
        peer = ScriptedPeer(node, session=False)
        stream = node.dial(peer, 80)
        network.run(3.0)
        peer.new_session()
        network.run(0.02)
        peer.accept(stream)
        network.run(0.1)
        assert stream.state == ESTABLISHED
        assert stream.stats().srtt < 0.5

    def test_no_session_in_ten_seconds(self) -> None:
        network = Network(0)
        node = VirtualNode(network, 1)
        peer = ScriptedPeer(node, session=False)
        stream = node.dial(peer, 80)
        assert network.run(20.0, lambda: stream.state == CLOSED)
        assert network.now - 1000.0 == pytest.approx(10.0, abs=0.3)
        assert "key exchange" in str(stream.error())
        assert node.mux.live == 0

    def test_late_syn_ack_still_opens(self) -> None:
        """1.18.0 sweeps slow dials away after 5-15 s although it goes on retrying."""
        network, node, peer = stage()
        stream = node.dial(peer, 80)
        network.run(16.0)
        syns = [p for p in peer.heard() if p.flags == SYN]
        assert len({p.seq for p in syns}) == 1
        network.run(8.0)
        talk = peer.accept(stream)
        assert stream.state == ESTABLISHED
        talk.data(b"worth the wait")
        assert stream.read(100) == b"worth the wait"

    def test_relay_from_the_first_syn(self) -> None:
        network, node, peer = stage()
        node.datapath.beacon = ("192.0.2.1", 9001)
        peer.peer.relay = True
        node.dial(peer, 80)
        assert [(target, data[:1]) for _, _, target, data in network.log] == [(("192.0.2.1", 9001), b"\x05")]

    def test_no_path_at_all_times_out(self) -> None:
        network = Network(0)
        node = VirtualNode(network, 1)
        peer = ScriptedPeer(node)
        peer.peer.address = None
        stream = node.dial(peer, 80)
        network.run(60.0)
        assert isinstance(stream.error(), TimeoutError)
        assert network.log == []

    def test_ephemeral_ports_are_taken_in_turn_and_returned(self) -> None:
        network, node, peer = stage()
        ports = []
        for _ in range(50):
            stream = node.dial(peer, 80)
            ports.append(stream.local_port)
            stream.abort()
        assert len(set(ports)) == 50
        assert all(port >= 49152 for port in ports)
        network.settle()
        assert node.mux.live == 0

    def test_exhausted_ephemeral_ports_are_an_error(self) -> None:
        network, node, peer = stage()
        network.logging = False
        for _ in range(16384):
            node.mux.dial(peer.peer, overlay(2), 80)
        with pytest.raises(BusyError):
            node.mux.dial(peer.peer, overlay(2), 80)
        node.mux.dial(peer.peer, overlay(2), 81).abort()

    def test_stream_limit(self) -> None:
        _network, node, peer = stage(MuxSettings(max_streams=3))
        streams = [node.dial(peer, 80) for _ in range(3)]
        with pytest.raises(BusyError):
            node.dial(peer, 80)
        streams[0].abort()
        node.dial(peer, 80)

    def test_removed_peer(self) -> None:
        network, node, peer = stage()
        dialing, open_ = node.dial(peer, 80), node.dial(peer, 81)
        node.datapath.remove_peer(2)
        network.settle()
        for stream in (dialing, open_):
            assert isinstance(stream.error(), PathError)
            assert stream.owner.wakes
        assert node.datapath.peer(2) is None
        assert node.mux.all_streams() == []


class TestSelfDial:
    def test_connects_at_once_and_carries_bytes(self) -> None:
        network = Network(0)
        node = VirtualNode(network, 1)
        listener = node.listen(7)
        stream = node.dial_self(7)
        network.settle()
        assert stream.state == ESTABLISHED
        assert network.now == 1000.0
        data = bytes(range(256)) * 4000
        assert transfer(network, stream, listener.streams[0], data) == data
        assert transfer(network, listener.streams[0], stream, data) == data
        stream.close()
        network.run(30.0)
        assert stream.state == CLOSED
        assert listener.streams[0].read(1) == b""
        assert network.log == []
        assert node.mux.all_streams() == []

    def test_refused_at_once(self) -> None:
        network = Network(0)
        node = VirtualNode(network, 1)
        stream = node.dial_self(4999)
        network.settle()
        assert isinstance(stream.error(), RefusedError)
        assert network.now == 1000.0

    def test_needs_no_trust_and_no_bucket(self) -> None:
        network = Network(0)
        node = VirtualNode(network, 1, MuxSettings(syn_rate=1, source_syn_burst=1))
        node.mux.gate = Gate()
        node.listen(7)
        streams = [node.dial_self(7) for _ in range(10)]
        network.settle()
        assert all(stream.state == ESTABLISHED for stream in streams)


class TestListen:
    def test_ports(self) -> None:
        _, node, _ = stage()
        assert node.listen(7).core.port == 7
        with pytest.raises(BusyError):
            node.listen(7)
        assert node.listen(0).core.port >= 49152
        for port in (-1, 65536):
            with pytest.raises(InvalidValueError):
                node.listen(port)
        with pytest.raises(InvalidValueError):
            node.mux.listen(9, 0, Owner())

    def test_unlisten_frees_the_port_and_keeps_the_streams(self) -> None:
        _, node, peer = stage()
        listener = node.listen(7)
        talk = peer.open(7)
        node.mux.unlisten(listener.core)
        node.mux.unlisten(listener.core)
        talk.data(b"alive")
        assert talk.core.read(10) == b"alive"
        peer.send(peer.packet(flags=SYN, source_port=2, destination_port=7, window=512))
        assert RST in [p.flags for p in peer.heard()]
        again = node.listen(7)
        node.mux.unlisten(listener.core)  # the old one does not take the new one's port
        peer.send(peer.packet(flags=SYN, source_port=3, destination_port=7, window=512))
        assert len(again.streams) == 1

    def test_backlog_full_is_a_reset(self) -> None:
        _, node, peer = stage()

        class Full(Owner):
            def _on_stream(self, stream: object) -> None:
                self.streams.append(stream)

        owner = node.listen(7, backlog=4, owner=Full())
        flags = []
        for n in range(6):
            peer.send(peer.packet(flags=SYN, source_port=100 + n, destination_port=7, window=512))
            flags += [p.flags for p in peer.heard()]
        assert flags == [SYN | ACK] * 4 + [RST] * 2
        assert owner.core.dropped == 2
        owner.core.taken()
        peer.send(peer.packet(flags=SYN, source_port=110, destination_port=7, window=512))
        assert [p.flags for p in peer.heard()] == [SYN | ACK]

    def test_a_stream_its_owner_could_not_take_is_reset(self) -> None:
        _, node, peer = stage()

        class Broken(Owner):
            def _on_stream(self, stream: object) -> None:
                raise RuntimeError("no")

        node.listen(7, owner=Broken())
        peer.send(peer.packet(flags=SYN, source_port=100, destination_port=7, window=512))
        assert peer.heard()[-1].flags == RST
        assert node.mux.live == 0

    def test_port_limit_is_a_reset_and_live_streams_are_what_counts(self) -> None:
        _network, node, peer = stage(MuxSettings(max_streams_per_port=2))
        listener = node.listen(7)
        talks = [peer.open(7, source_port=n) for n in (1, 2)]
        peer.send(peer.packet(flags=SYN, source_port=3, destination_port=7, window=512))
        assert [p.flags for p in peer.heard()] == [RST]
        talks[0].fin()
        talks[0].seen()
        peer.send(peer.packet(flags=SYN, source_port=3, destination_port=7, window=512))
        assert [p.flags for p in peer.heard()] == [SYN | ACK]
        assert len(listener.streams) == 3

    def test_total_limit_is_a_reset(self) -> None:
        _, node, peer = stage(MuxSettings(max_streams=1))
        node.listen(7)
        peer.open(7)
        peer.send(peer.packet(flags=SYN, source_port=3, destination_port=7, window=512))
        assert [p.flags for p in peer.heard()] == [RST]


class TestBuckets:
    def test_one_source(self) -> None:
        """The measurement of section 6: 100 SYNs at once, port limit 20, then 1.6 s later some more."""
        network, node, peer = stage(MuxSettings(max_streams_per_port=20))
        node.listen(7)

        def burst(count: int, first: int) -> list[int]:
            for n in range(count):
                peer.send(peer.packet(flags=SYN, source_port=first + n, destination_port=7, window=512))
            return [p.flags for p in peer.heard()]

        flags = burst(100, 1000)
        assert (flags.count(SYN | ACK), flags.count(RST)) == (20, 44)
        network.run(1.65)
        assert len([f for f in burst(100, 2000) if f in (SYN | ACK, RST)]) == 16

    def test_whole_node(self) -> None:
        network = Network(0, delay=0.0)
        node = VirtualNode(network, 1)
        node.listen(7)
        answered = 0
        for n in range(8):
            peer = ScriptedPeer(node, 10 + n)
            for port in range(30):
                peer.send(peer.packet(flags=SYN, source_port=1000 + port, destination_port=7, window=512))
            answered += len(peer.heard())
        assert answered == 100
        assert len(node.topics("security.syn_rate_limited")) == 140
        assert node.topics("security.syn_rate_limited")[-1] == {"src_addr": str(overlay(17)), "src_port": 1029}

    def test_sources_are_bounded(self) -> None:
        """4096 tracked sources; one more is refused until an idle one is forgotten."""
        network = Network(0, delay=0.0)
        network.logging = False
        node = VirtualNode(network, 1, MuxSettings(syn_rate=1e6, max_streams_per_port=10_000))
        node.listen(7, backlog=10000)
        first = ScriptedPeer(node, 10_000)
        for n in range(4096):
            peer = ScriptedPeer(node, 20_000 + n)
            peer.send(peer.packet(flags=SYN, source_port=1, destination_port=7, window=512))
        first.send(first.packet(flags=SYN, source_port=1, destination_port=7, window=512))
        assert first.heard() == []
        network.run(11.0)
        first.send(first.packet(flags=SYN, source_port=2, destination_port=7, window=512))
        assert [p.flags for p in first.heard() if p.flags == SYN | ACK] == [SYN | ACK]


class TestPrivateGate:
    """DESIGN section 4: a stranger learns nothing of a private node."""

    def test_silence_to_strangers(self) -> None:
        network, node, peer = stage()
        node.mux.gate = gate = Gate()
        got = []
        node.mux.on_datagram = lambda *args: got.append(args)
        node.listen(7)
        for fields in (
            {"flags": SYN, "destination_port": 7},
            {"flags": SYN, "destination_port": 4999},
            {"flags": ACK, "destination_port": 7, "payload": b"data for nobody", "seq": 1, "ack": 1},
            {"flags": RST, "destination_port": 7},
            {"protocol": 3, "destination_port": 0, "payload": b"ping"},
            {"protocol": 2, "destination_port": 9, "payload": b"datagram"},
        ):
            peer.send(peer.packet(source_port=5, window=512, **fields))
        network.run(10.0)
        assert peer.heard() == []
        assert network.log == []
        assert got == []
        assert {asked[0] for asked in gate.asked} == {"syn", "ping", "datagram"}
        who = {"src_node_id": 2, "src_addr": str(overlay(2))}
        assert node.topics("datagram.rejected") == [{**who, "dst_port": 9}]
        assert node.topics("syn.rejected") == [{**who, "dst_port": 7}, {**who, "dst_port": 4999}]

    def test_strangers_spend_no_tokens(self) -> None:
        _network, node, peer = stage(MuxSettings(syn_rate=5))
        node.mux.gate = gate = Gate()
        node.listen(7)
        for n in range(100):
            peer.send(peer.packet(flags=SYN, source_port=n, destination_port=7, window=512))
        gate.trusted.add(2)
        peer.send(peer.packet(flags=SYN, source_port=1000, destination_port=7, window=512))
        assert [p.flags for p in peer.heard()] == [SYN | ACK]

    def test_existing_streams_are_served_without_asking(self) -> None:
        _network, node, peer = stage()
        node.mux.gate = gate = Gate(2)
        node.listen(7)
        talk = peer.open(7)
        gate.trusted.clear()
        asked = len(gate.asked)
        talk.data(b"still here")
        assert talk.core.read(100) == b"still here"
        talk.syn()
        assert [s.kind for s in talk.seen()][-1] == "SYN+ACK"
        assert len(gate.asked) == asked

    def test_a_gate_that_fails_is_shut(self) -> None:
        _network, node, peer = stage()

        class Broken(Gate):
            def admit_syn(self, node: int, port: int) -> bool:
                raise RuntimeError("store is gone")

            admit_ping = admit_datagram = admit_syn  # type: ignore[assignment]

        node.mux.gate = Broken()
        node.listen(7)
        peer.send(peer.packet(flags=SYN, source_port=5, destination_port=7, window=512))
        peer.send(peer.packet(protocol=3, source_port=5, destination_port=0, payload=b"ping"))
        assert peer.heard() == []


class TestLossOnTheWay:
    def test_lost_syns_and_syn_acks(self) -> None:
        for seed in range(30):
            network, a, b = pair(seed, loss=0.4)
            listener = b.listen(7)
            stream = a.dial(b, 7)
            assert network.run(40.0, lambda s=stream: s.state == ESTABLISHED), seed
            assert len(listener.streams) == 1, seed

    def test_duplicated_syns_make_one_stream(self) -> None:
        network, _, _ = connected(3, duplicate=1.0)
        assert [len(node.mux.all_streams()) for node in network.nodes] == [1, 1]

    def test_events(self) -> None:
        network, a, b = pair()
        b.listen(7)
        stream = a.dial(b, 7)
        network.run(1.0)
        told = {"conn_id": 1, "src_addr": str(a.addr), "src_port": stream.local_port, "dst_port": 7}
        assert b.events == [("conn.syn_received", told), ("conn.established", told)]
        assert a.events == []
