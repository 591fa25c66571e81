"""What the stream layer tells the event bus: topics, exact keys, and nothing built that nobody wants (L7).

Source: services.md 8.2 and 9.7, streams.md 6 and 16.
"""

from __future__ import annotations

from typing import Any

import pytest

from pilot._fast.mux import MuxSettings
from pilot._fast.stream import StreamState
from tests.core.scripted import ScriptedPeer, overlay, stage
from tests.core.virtual import Gate, Network, VirtualNode, pair
from tests.reference.addr import Address
from tests.reference.packet import ACK, DATAGRAM, RST, SYN


class Policy:
    """The policies of the networks: refuses the ports it was given."""

    def __init__(self, *refused: int) -> None:
        self.refused = refused
        self.asked: list[tuple[Any, ...]] = []

    def admit_syn(self, network: int, node: int, port: int) -> bool:
        self.asked.append(("syn", network, node, port))
        return port not in self.refused

    def admit_datagram(self, network: int, node: int, port: int, size: int) -> bool:
        self.asked.append(("datagram", network, node, port, size))
        return port not in self.refused


class Asleep:
    """A listener that takes none of its streams."""

    def _on_stream(self, core: object) -> None:
        pass


def syn(peer: ScriptedPeer, port: int, source_port: int = 5, network: int = 0) -> list[int]:
    """Sends a SYN; the flags of what came back."""
    ends = {"source": Address(network, peer.node), "destination": Address(network, 1)}
    peer.send(peer.packet(flags=SYN, source_port=source_port, destination_port=port, window=512, **ends))
    return [packet.flags for packet in peer.heard()]


def datagram(peer: ScriptedPeer, port: int, network: int = 0, payload: bytes = b"abc") -> None:
    ends = {"source": Address(network, peer.node), "destination": Address(network, 1)}
    peer.send(peer.packet(protocol=DATAGRAM, source_port=5, destination_port=port, payload=payload, **ends))


class TestStreams:
    def test_ends(self) -> None:
        network, a, b = pair()
        listener = b.listen(7)
        for n in (1, 2):
            stream = a.dial(b, 7)
            network.run(1.0)
            (stream.close if n == 1 else stream.abort)()
            network.run(2.0)
        fin = {"conn_id": 1, "local_port": 7, "remote_addr": str(a.addr), "remote_port": stream.local_port - 1}
        assert b.topics("conn.fin") == [fin]
        rst = {"conn_id": 2, "local_port": 7, "remote_addr": str(a.addr), "remote_port": stream.local_port}
        assert b.topics("conn.rst") == [rst]
        own = {"conn_id": 1, "local_port": fin["remote_port"], "remote_addr": str(b.addr), "remote_port": 7}
        assert a.events == [("conn.fin", own)], "it ended in order at both ends, once"
        assert [core.conn_id for core in listener.streams] == [1, 2]

    def test_a_peer_that_answers_no_probe_is_dead(self) -> None:
        network, _node, peer = stage()
        _node.listen(7)
        talk = peer.open(7)
        assert network.run(140.0, lambda: talk.core.state == StreamState.CLOSED)
        dead = {"conn_id": 1, "local_port": 7, "remote_addr": str(overlay(2)), "remote_port": 50001}
        assert peer.target.topics("conn.dead_peer") == [dead]
        assert peer.target.topics("conn.idle_timeout") == []

    def test_a_node_that_slept_calls_it_idle(self) -> None:
        network, node, peer = stage()
        node.listen(7)
        talk = peer.open(7)
        network.now += 130.0  # no timer ran meanwhile
        node.datapath.handle_timer(network.now)
        assert talk.core.state == StreamState.CLOSED
        idle = {"conn_id": 1, "local_port": 7, "remote_addr": str(overlay(2)), "remote_port": 50001}
        assert node.topics("conn.idle_timeout") == [idle]
        assert node.topics("conn.dead_peer") == []

    def test_full_accept_queue(self) -> None:
        _network, node, peer = stage()
        node.listen(7, backlog=1, owner=Asleep())
        assert syn(peer, 7, 5) == [SYN | ACK]
        assert syn(peer, 7, 6) == [RST]
        assert syn(peer, 7, 8) == [RST]
        full = {"port": 7, "src_addr": str(overlay(2)), "src_port": 6, "drops_total": 1}
        assert node.topics("conn.accept_queue_full") == [full, {**full, "src_port": 8, "drops_total": 2}]

    def test_a_full_port_is_no_full_queue(self) -> None:
        _network, node, peer = stage(MuxSettings(max_streams_per_port=1))
        node.listen(7)
        assert [syn(peer, 7, 5), syn(peer, 7, 6)] == [[SYN | ACK], [RST]]
        assert node.topics("conn.accept_queue_full") == []


class TestDatagrams:
    def test_received(self) -> None:
        _network, node, peer = stage()
        node.mux.on_datagram = lambda *args: None
        datagram(peer, 9, network=6)
        told = {"src_addr": str(overlay(2, 6)), "src_port": 5, "dst_port": 9, "size": 3}
        assert node.events == [("data.datagram", told)]


class TestUnwanted:
    @pytest.mark.parametrize("topic", ["conn.syn_received", "data.datagram", "syn.rejected", "security.src_spoofed"])
    def test_nothing_is_built_for_nobody(self, topic: str) -> None:
        _network, node, peer = stage()
        asked: list[str] = []
        node.mux.on_datagram = lambda *args: None
        node.mux.wanted = lambda name: bool(asked.append(name))  # type: ignore[func-returns-value]
        node.listen(7)
        syn(peer, 7)
        datagram(peer, 9)
        node.mux.gate = Gate()
        syn(peer, 7, 6)
        peer.send(peer.packet(source=Address(0, 99), protocol=DATAGRAM, destination_port=1, payload=b"x"))
        assert topic in asked
        assert node.events == []
        assert node.control.named("publish") == []

    def test_a_failing_question_is_no(self, caplog: pytest.LogCaptureFixture) -> None:
        _network, node, peer = stage()

        def broken(topic: str) -> bool:
            raise RuntimeError("no")

        node.mux.wanted = broken
        node.listen(7)
        assert syn(peer, 7) == [SYN | ACK]
        assert node.events == []
        assert "wanted" in caplog.text


class TestPolicy:
    def test_is_asked_after_the_trust_gate_and_for_bound_ports_only(self) -> None:
        network, node, peer = stage()
        node.mux.policy = policy = Policy(7)
        node.mux.gate = gate = Gate()
        node.listen(7)
        assert syn(peer, 7) == []
        assert policy.asked == [], "the trust gate stands before it"
        gate.trusted.add(2)
        assert syn(peer, 4999) == [RST]
        assert policy.asked == [], "nobody listens there"
        assert syn(peer, 7, network=6) == []
        assert syn(peer, 7, network=6) == []
        network.run(5.0)
        assert policy.asked == [("syn", 6, 2, 7)] * 2, "a retransmission is judged again"
        assert node.mux.counters["syn_port_rejected"] == 2
        assert node.mux.live == 0

    def test_admitted_is_asked_once(self) -> None:
        _network, node, peer = stage()
        node.mux.policy = policy = Policy()
        node.listen(7)
        assert [syn(peer, 7), syn(peer, 7)] == [[SYN | ACK]] * 2
        assert policy.asked == [("syn", 0, 2, 7)], "a copy of the SYN of an open stream is no new one"

    def test_a_denied_syn_spends_no_tokens(self) -> None:
        _network, node, peer = stage(MuxSettings(syn_rate=5))
        node.mux.policy = Policy(7)
        node.listen(7)
        node.listen(8)
        for n in range(100):
            syn(peer, 7, 100 + n)
        assert syn(peer, 8) == [SYN | ACK]

    def test_datagrams(self) -> None:
        _network, node, peer = stage()
        got: list[Any] = []
        node.mux.on_datagram = lambda *args: got.append(args)
        node.mux.policy = policy = Policy(9)
        datagram(peer, 9, network=6)
        datagram(peer, 10)
        assert policy.asked == [("datagram", 6, 2, 9, 3), ("datagram", 0, 2, 10, 3)]
        assert [port for _addr, _source, port, _data in got] == [10]
        assert node.mux.counters["datagram_port_rejected"] == 1
        assert [payload["dst_port"] for payload in node.topics("data.datagram")] == [10]

    def test_a_policy_that_fails_is_shut(self, caplog: pytest.LogCaptureFixture) -> None:
        _network, node, peer = stage()

        class Broken(Policy):
            def admit_syn(self, network: int, node: int, port: int) -> bool:
                raise RuntimeError("the rules are gone")

            admit_datagram = admit_syn  # type: ignore[assignment]

        got: list[Any] = []
        node.mux.on_datagram = lambda *args: got.append(args)
        node.mux.policy = Broken()
        node.listen(7)
        assert syn(peer, 7) == []
        datagram(peer, 9)
        assert got == []
        assert "policy gate failed" in caplog.text

    def test_oneself_is_not_judged(self) -> None:
        network = Network(0)
        node = VirtualNode(network, 1)
        node.mux.policy = policy = Policy(7)
        node.listen(7)
        stream = node.dial_self(7)
        network.run(1.0)
        assert stream.state == StreamState.ESTABLISHED
        assert policy.asked == []
