"""Datagrams and control packets (streams.md 13 and 15)."""

from __future__ import annotations

from typing import Any

import pytest

from pilot._fast.errors import InvalidValueError
from tests.core.scripted import ScriptedPeer, overlay, stage
from tests.core.virtual import Gate, Network, VirtualNode
from tests.reference.addr import Address
from tests.reference.packet import ACK, CONTROL, DATAGRAM, Packet


class Box:
    """Collects datagrams."""

    def __init__(self, node: VirtualNode) -> None:
        self.got: list[tuple[Any, ...]] = []
        node.mux.on_datagram = lambda *args: self.got.append(args)


class TestDatagrams:
    def test_fields(self) -> None:
        _, node, peer = stage()
        assert node.mux.send_datagram(peer.peer, overlay(2, 6), 0, b"payload") is True
        [sent] = peer.heard()
        assert (sent.protocol, sent.flags, sent.seq, sent.ack, sent.window) == (DATAGRAM, 0, 0, 0, 0)
        assert (sent.source, sent.destination) == (Address(6, 1), Address(6, 2))
        assert sent.source_port >= 49152

    def test_header_numbers_are_ignored_on_receipt(self) -> None:
        _, node, peer = stage()
        box = Box(node)
        peer.send(
            peer.packet(
                protocol=DATAGRAM, flags=15, seq=9, ack=9, window=9, source_port=1, destination_port=7, payload=b"x"
            )
        )
        assert box.got == [(overlay(2), 1, 7, b"x")]
        assert peer.heard() == []

    def test_nothing_needs_to_be_bound_and_nothing_is_answered(self) -> None:
        _, node, peer = stage()
        peer.send(peer.packet(protocol=DATAGRAM, destination_port=9, payload=b"to nobody"))
        box = Box(node)
        peer.send(peer.packet(protocol=DATAGRAM, destination_port=9, payload=b"to somebody"))
        assert peer.heard() == []
        assert [data for *_, data in box.got] == [b"to somebody"]

    def test_the_last_ones_can_be_sent_again(self) -> None:
        """The salvage of wire.md 8.2: four of the last 5 s, each once; nothing long, no control packets, no streams."""
        network, node, peer = stage()
        node.mux.send_datagram(peer.peer, overlay(2), 1, b"too old")
        network.run(3.0)
        for number in range(6):
            node.mux.send_datagram(peer.peer, overlay(2, 6), number, b"%d" % number)
        node.mux.send_datagram(peer.peer, overlay(2), 1, bytes(1153))
        peer.send(peer.packet(protocol=CONTROL, payload=b"ping"))
        network.run(3.0)
        sent = {p.payload: p for p in peer.heard()}
        peer.new_session()
        assert node.datapath.resend_datagrams(peer.peer, 0.0, network.now) == 4
        again = peer.heard()
        assert [p.payload for p in again] == [b"2", b"3", b"4", b"5"]
        assert again == [sent[p.payload] for p in again], "the same packets, ports and networks too"
        assert node.datapath.resend_datagrams(peer.peer, 0.0, network.now) == 0
        assert peer.heard() == []

    def test_which_are_not_sent_again(self) -> None:
        network, node, peer = stage()
        other = ScriptedPeer(node, 3)

        def resent(since: float = 0.0) -> int:
            count = node.datapath.resend_datagrams(peer.peer, since, network.now)
            assert len(peer.heard()) == count
            return count

        def send(to: ScriptedPeer = peer) -> None:
            node.mux.send_datagram(to.peer, overlay(to.node), 1, b"x")
            assert len(to.heard()) == 1

        send()
        network.run(5.1)
        assert resent() == 0, "too old"
        send()
        now = network.now
        network.run(0.1)
        send()
        assert resent(now) == 1, "one was sent before the time"
        send()
        node.datapath.drop_session(peer.peer)
        peer.new_session()
        assert resent() == 0, "of a session that was dropped"
        send()
        for _ in range(256):
            send(other)
        assert resent() == 0, "too many to other peers since"
        assert node.datapath.resend_datagrams(other.peer, 0.0, network.now) == 4
        send()
        network.run(20.0)  # over the sweep

    def test_sizes(self) -> None:
        network, node, peer = stage()
        node.mux.send_datagram(peer.peer, overlay(2), 1, bytes(65437))
        network.settle()
        assert len(peer.heard()[0].payload) == 65437
        assert max(len(entry[3]) for entry in network.log) == 65507
        for size in (0, 65438, 70_000):
            with pytest.raises(InvalidValueError):
                node.mux.send_datagram(peer.peer, overlay(2), 1, bytes(size))
        node.datapath.beacon = ("192.0.2.1", 9001)
        peer.peer.relay = True
        with pytest.raises(InvalidValueError):
            node.mux.send_datagram(peer.peer, overlay(2), 1, bytes(65429))
        network.forget()
        node.mux.send_datagram(peer.peer, overlay(2), 1, bytes(65428))
        network.settle()
        assert [len(entry[3]) for entry in network.log] == [65507]

    @pytest.mark.parametrize("port", [-1, 65536])
    def test_bad_port(self, port: int) -> None:
        _, node, peer = stage()
        with pytest.raises(InvalidValueError):
            node.mux.send_datagram(peer.peer, overlay(2), port, b"x")

    def test_broadcast_is_refused_for_unicast(self) -> None:
        _, node, peer = stage()
        with pytest.raises(InvalidValueError):
            node.mux.send_datagram(peer.peer, overlay(0xFFFFFFFF), 1, b"x")

    def test_large_ones_are_taken(self) -> None:
        _, node, peer = stage()
        box = Box(node)
        peer.send(peer.packet(protocol=DATAGRAM, destination_port=9, payload=bytes(65437)))
        assert len(box.got[0][3]) == 65437

    def test_wait_for_the_session_in_order_and_bounded(self) -> None:
        network = Network(0, delay=0.0)
        node = VirtualNode(network, 1)
        peer = ScriptedPeer(node, session=False)
        for n in range(100):
            node.mux.send_datagram(peer.peer, overlay(2), 1, bytes([n]))
        network.settle()
        assert network.log == []
        assert peer.peer.pending_packets == 64
        peer.new_session()
        assert [p.payload for p in peer.heard()] == [bytes([n]) for n in range(64)]

    def test_to_oneself(self) -> None:
        network = Network(0)
        node = VirtualNode(network, 1)
        node.mux.gate = Gate()
        box = Box(node)
        node.mux.send_datagram(node.datapath.own_peer(), overlay(1), 9, b"to me")
        network.settle()
        assert [(source, port, data) for source, _, port, data in box.got] == [(overlay(1), 9, b"to me")]
        assert network.log == []

    def test_a_handler_that_fails_harms_nobody(self, caplog: pytest.LogCaptureFixture) -> None:
        _, node, peer = stage()

        def broken(*args: object) -> None:
            raise RuntimeError("no")

        node.mux.on_datagram = broken
        peer.send(peer.packet(protocol=DATAGRAM, destination_port=9, payload=b"x"))
        assert "datagram handler" in caplog.text

    def test_counts_as_use(self) -> None:
        network, node, peer = stage()
        Box(node)
        network.run(5.0)
        peer.send(peer.packet(protocol=DATAGRAM, destination_port=9, payload=b"x"))
        assert peer.peer.last_used == network.now


class TestControl:
    def ping(self, peer: ScriptedPeer, **fields: Any) -> list[Packet]:
        peer.send(peer.packet(protocol=CONTROL, **fields))
        return peer.heard()

    def test_source_of_the_pong_is_the_pings_destination(self) -> None:
        _, _, peer = stage()
        [pong] = self.ping(peer, destination=Address(4, 77), payload=b"x")
        assert (pong.source, pong.destination) == (Address(4, 77), Address(0, 2))
        [pong] = self.ping(peer, destination=Address(0, 0), payload=b"x")
        assert pong.source == Address(0, 1)

    @pytest.mark.parametrize("size", [1, 12, 1152, 8000, 65000])
    def test_payload_comes_back_whole(self, size: int) -> None:
        _, _, peer = stage()
        [pong] = self.ping(peer, payload=bytes(size), seq=0xFFFFFFFF)
        assert (pong.payload, pong.seq, pong.ack) == (bytes(size), 0xFFFFFFFF, 0)

    def test_keepalives_are_swallowed(self) -> None:
        _, _, peer = stage()
        assert self.ping(peer, destination=Address(0, 0)) == []
        assert self.ping(peer, source=Address(0, 0), destination=Address(0, 0)) == []

    def test_does_not_count_as_use(self) -> None:
        network, _node, peer = stage()
        used = peer.peer.last_used
        network.run(5.0)
        self.ping(peer, payload=b"x")
        assert peer.peer.last_used == used
        assert peer.peer.last_heard == network.now

    def test_pongs_reach_the_control_plane(self) -> None:
        _, node, peer = stage()
        self.ping(peer, flags=ACK, source_port=0, destination_port=77, seq=5, ack=6, payload=b"echo")
        [(_, answered, seq, port, payload, _)] = node.control.named("pong")
        assert (answered, seq, port, payload) == (peer.peer, 5, 77, b"echo")

    def test_only_from_port_zero_and_with_payload(self) -> None:
        _, node, peer = stage()
        self.ping(peer, flags=ACK, source_port=9, destination_port=77, payload=b"echo")
        self.ping(peer, flags=ACK, source_port=0, destination_port=77)
        assert node.control.named("pong") == []

    def test_send_control(self) -> None:
        network, node, peer = stage()
        sent = node.datapath.send_control(peer.peer, 0, 5, 0, 7, b"probe", network.now, zero_destination=True)
        assert sent is True
        [p] = peer.heard()
        assert (p.protocol, p.flags, p.source_port, p.destination_port, p.seq) == (CONTROL, 0, 5, 0, 7)
        assert (p.source, p.destination, p.payload) == (Address(0, 1), Address(0, 0), b"probe")
        assert peer.peer.last_used == 1000.0
        node.datapath.drop_session(peer.peer)
        assert node.datapath.send_control(peer.peer, 0, 5, 0, 7, b"probe", network.now) is False

    def test_to_oneself(self) -> None:
        network = Network(0)
        node = VirtualNode(network, 1)
        own = node.datapath.own_peer()
        assert node.datapath.send_control(own, 0, 5, 0, 7, b"probe", network.now)
        network.settle()
        [(_, peer, seq, port, payload, _)] = node.control.named("pong")
        assert (peer.is_self, seq, port, payload) == (True, 7, 5, b"probe")
