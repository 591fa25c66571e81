"""The datapath below streams: opening, replay, binding, queues, relay, blackhole, teardown (wire.md 7-11) (L2-L6)."""

from __future__ import annotations

import errno
import gc
import math
import weakref
from typing import Any

import pytest

from pilot._fast.errors import ClosedError, PathError
from pilot._fast.seal import Verdict
from tests.core.scripted import ScriptedPeer, overlay, stage
from tests.core.virtual import CLOSED, CLOSED_WAKE, Echo, Network, VirtualNode, address_of, connected
from tests.reference import beacon, frames
from tests.reference.addr import Address
from tests.reference.packet import ACK, CONTROL, SYN, Packet

BEACON = ("192.0.2.1", 9001)
ELSEWHERE = ("198.51.100.7", 555)


def ping(peer: ScriptedPeer, **fields: Any) -> Packet:
    return peer.packet(protocol=CONTROL, source_port=5, **{"payload": b"ping", **fields})


def arrive(peer: ScriptedPeer, p: Packet | bytes, source: Any = None, *, relayed: bool = False) -> None:
    """One sealed packet, straight from `source` or through the beacon."""
    frame = peer.frame(p)
    if relayed:
        frame, source = beacon.relay_deliver(peer.node, frame), BEACON
    peer.target.port.deliver(frame, source or peer.address, peer.network.now)
    peer.network.settle()


class TestOpening:
    def test_replays_are_dropped_and_reported_sparingly(self) -> None:
        _, node, peer = stage()
        frame = peer.frame(ping(peer))
        for _ in range(50):
            node.port.deliver(frame, peer.address, peer.network.now)
        assert len(peer.heard()) == 1
        assert peer.peer.replays == 49
        assert [call[2] for call in node.control.named("rejected")] == [Verdict.REPLAY]
        told = {"peer_node_id": 2, "counter": 1}
        assert node.control.named("publish") == [("publish", "security.nonce_replay", told)]
        arrive(peer, ping(peer))
        assert peer.peer.replays == 0

    def test_a_window_of_8192(self) -> None:
        _, node, peer = stage()
        old = [peer.frame(ping(peer, seq=n)) for n in range(3)]
        peer.counter = 8000
        arrive(peer, ping(peer))
        node.port.deliver(old[0], peer.address, peer.network.now)
        assert len(peer.heard()) == 2
        peer.counter = 20_000
        arrive(peer, ping(peer))
        peer.heard()
        node.port.deliver(old[1], peer.address, peer.network.now)
        assert peer.heard() == []
        assert peer.peer.outside == 1

    def test_forged_frames_change_nothing_but_a_counter(self) -> None:
        _, node, peer = stage()
        forged = frames.seal(bytes(32), 2, peer.prefix, 2**64 - 1, ping(peer).encode())
        heard = peer.peer.last_heard
        for _ in range(10):
            node.port.deliver(forged, ELSEWHERE, peer.network.now)
        assert peer.peer.auth_failures == 10
        assert peer.peer.address == peer.address
        assert peer.peer.last_heard == heard
        arrive(peer, ping(peer))
        assert len(peer.heard()) == 1
        assert peer.peer.auth_failures == 0

    def test_a_fifth_prefix_asks_for_a_rekey(self) -> None:
        _, node, peer = stage()
        for n in range(6):
            peer.prefix, peer.counter = bytes([n, 1, 2, 3]), 0
            arrive(peer, ping(peer))
        assert len(peer.heard()) == 4
        assert node.control.named("rekey_due")

    def test_source_binding(self) -> None:
        _, node, peer = stage()
        arrive(peer, ping(peer, source=Address(0, 99)))
        assert peer.heard() == []
        [(_, topic, payload)] = node.control.named("publish")
        assert topic == "security.src_spoofed"
        assert set(payload) == {"authenticated_peer_hash", "claimed_src_hash"}
        assert peer.peer.last_heard == 0.0
        arrive(peer, ping(peer, source=Address(77, 2)))
        assert len(peer.heard()) == 1

    def test_unknown_senders_are_reported_sparingly(self) -> None:
        network, node, _ = stage()
        for n in range(1000):
            node.port.deliver(frames.seal(bytes(32), 1000 + n, b"abcd", 1, b"?"), ELSEWHERE, network.now)
        calls = node.control.named("unknown_session")
        assert 1 <= len(calls) <= 64
        assert calls[0][1:4] == (1000, ELSEWHERE, None)
        assert node.datapath.peers() == [node.datapath.peer(2)]

    def test_noise(self) -> None:
        network, node, _ = stage()
        for data in (
            b"",
            b"P",
            b"PILS",
            b"PILS" + bytes(31),
            b"PILT" + bytes(60),
            b"PILP",
            b"GET / HTTP/1.1",
            b"\xff" * 9,
        ):
            node.port.deliver(data, ELSEWHERE, network.now)
        assert node.control.calls == []
        assert network.log == []

    def test_key_exchanges_and_beacon_messages_are_handed_on(self) -> None:
        network, node, _ = stage()
        node.datapath.beacon = BEACON
        pila, reply = b"PILA" + bytes(132), beacon.endpoint_message(2, "203.0.113.7", 4000)
        node.port.deliver(pila, ELSEWHERE, network.now)
        node.port.deliver(beacon.relay_deliver(7, pila), BEACON, network.now)
        node.port.deliver(reply, ELSEWHERE, network.now)
        assert [call[1:4] for call in node.control.named("key_exchange_untrusted")] == [
            (pila, ELSEWHERE, None),
            (pila, None, 7),
        ]
        assert [call[1:3] for call in node.control.named("beacon_message_untrusted")] == [(reply, ELSEWHERE)]


class TestSessions:
    def test_the_replaced_session_still_opens_for_a_while(self) -> None:
        network, node, peer = stage()
        late = peer.frame(ping(peer))
        later = peer.frame(ping(peer))
        peer.new_session(keep_previous=1.0)
        node.port.deliver(late, peer.address, network.now)
        assert len(peer.heard()) == 1
        network.run(1.5)
        node.port.deliver(later, peer.address, network.now)
        assert peer.heard() == []
        arrive(peer, ping(peer))
        assert len(peer.heard()) == 1

    def test_frames_that_came_before_their_session_are_kept_a_second(self) -> None:
        network = Network(0, delay=0.0)
        node = VirtualNode(network, 1)
        peer = ScriptedPeer(node)
        node.datapath.drop_session(peer.peer)
        early = [peer.frame(ping(peer, seq=n)) for n in range(6)]
        for frame in early:
            node.port.deliver(frame, peer.address, network.now)
        assert peer.heard() == []
        self.reinstall(node, peer)
        assert [p.seq for p in peer.heard()] == [2, 3, 4, 5]

    def test_but_not_longer(self) -> None:
        network = Network(0, delay=0.0)
        node = VirtualNode(network, 1)
        peer = ScriptedPeer(node)
        node.datapath.drop_session(peer.peer)
        node.port.deliver(peer.frame(ping(peer)), peer.address, network.now)
        network.run(1.5)
        self.reinstall(node, peer)
        assert peer.heard() == []

    def reinstall(self, node: VirtualNode, peer: ScriptedPeer) -> None:
        from pilot._fast.seal import Session

        session = Session(peer.key, 1, 2, b"zzzz", peer.network.now, authenticated=True, peer_x25519=bytes(32))
        node.datapath.install_session(peer.peer, session, peer.network.now)

    def test_pending_packets_are_given_up_after_two_minutes(self) -> None:
        network = Network(0, delay=0.0)
        node = VirtualNode(network, 1)
        peer = ScriptedPeer(node, session=False)
        node.mux.send_datagram(peer.peer, overlay(2), 1, b"old")
        network.run(100.0)
        node.mux.send_datagram(peer.peer, overlay(2), 1, b"young")
        network.run(40.0)
        assert peer.peer.pending_packets == 1
        peer.new_session()
        assert [p.payload for p in peer.heard()] == [b"young"]

    def test_pending_peers_are_bounded(self) -> None:
        network = Network(0, delay=0.0)
        node = VirtualNode(network, 1)
        for n in range(300):
            node.mux.send_datagram(node.datapath.add_peer(100 + n), overlay(100 + n), 1, b"x")
        assert sum(peer.pending_packets for peer in node.datapath.peers()) == 256
        for peer in node.datapath.peers()[:]:
            node.datapath.remove_peer(peer.node)
        for n in range(256):
            node.mux.send_datagram(node.datapath.add_peer(1000 + n), overlay(1000 + n), 1, b"x")
        assert sum(peer.pending_packets for peer in node.datapath.peers()) == 256

    def test_installing_keeps_streams_alive(self) -> None:
        _network, node, peer = stage()
        node.listen(7, owner=Echo())
        talk = peer.open(7)
        echoed = b""
        for n in range(5):
            peer.new_session(keep_previous=1.0)
            talk.data(bytes([n]) * 3)
            answers = talk.wait(0.01)
            echoed += b"".join(s.payload for s in answers if s.kind == "DATA" and s.seq == len(echoed))
            talk.ack(len(echoed))
        assert echoed == b"".join(bytes([n]) * 3 for n in range(5))


class TestPaths:
    def test_an_authenticated_frame_tells_the_address(self) -> None:
        _, node, peer = stage()
        peer.peer.segment_bytes = 9000
        arrive(peer, ping(peer), ELSEWHERE)
        assert peer.peer.address == ELSEWHERE
        assert peer.peer.segment_bytes == 1152
        assert [call[2] for call in node.control.named("path_changed")] == ["address"]

    def test_the_beacon_is_no_direct_address(self) -> None:
        _, node, peer = stage()
        node.datapath.beacon = BEACON
        arrive(peer, ping(peer), BEACON)
        assert peer.peer.address == peer.address

    def test_relay_messages_only_from_the_selected_beacon(self) -> None:
        network, node, peer = stage()
        node.datapath.beacon = BEACON
        relayed = beacon.relay_deliver(2, peer.frame(ping(peer)))
        node.port.deliver(relayed, ELSEWHERE, network.now)
        node.port.deliver(relayed, (BEACON[0], 9002), network.now)
        assert peer.heard() == []
        node.port.deliver(relayed, BEACON, network.now)
        assert len(peer.heard()) == 1

    @pytest.mark.parametrize("inner", [b"", b"PI", b"\x06\x00\x00\x00\x02PILS", b"\x02aaaa"])
    def test_nothing_but_frames_in_relay_messages(self, inner: bytes) -> None:
        network, node, _ = stage()
        node.datapath.beacon = BEACON
        node.port.deliver(b"\x06\x00\x00\x00\x02" + inner, BEACON, network.now)
        assert node.control.calls == []

    def test_a_relayed_frame_without_a_known_address_flags_relay(self) -> None:
        network, node, peer = stage()
        node.datapath.beacon = BEACON
        peer.peer.address = None
        arrive(peer, ping(peer), relayed=True)
        assert peer.peer.relay is True
        assert [target for _, _, target, _ in network.log] == [BEACON]
        assert [call[2] for call in node.control.named("path_changed")] == ["relayed"]

    def test_a_relayed_frame_leaves_a_known_address_alone(self) -> None:
        network, node, peer = stage()
        node.datapath.beacon = BEACON
        arrive(peer, ping(peer), relayed=True)
        assert peer.peer.relay is False
        assert [target for _, _, target, _ in network.log] == [peer.address]

    @pytest.mark.parametrize("relay_only", [False, True])
    def test_direct_frames_of_a_relayed_peer(self, relay_only: bool) -> None:
        """They teach the address and are reported; a ping is answered both ways. The relay stays in use."""
        network, node, peer = stage()
        node.datapath.beacon = BEACON
        node.datapath.relay_only = relay_only
        peer.peer.relay = True
        for _ in range(10):
            arrive(peer, ping(peer), ELSEWHERE)
        assert peer.peer.relay is True
        assert peer.peer.address == ELSEWHERE
        assert [call[2] for call in node.control.named("heard")] == [True] * 10
        assert [target for _, _, target, _ in network.log] == ([BEACON] if relay_only else [ELSEWHERE, BEACON]) * 10

    def test_a_direct_ping_too_long_for_the_relay_is_answered_directly_alone(self) -> None:
        network, node, peer = stage()
        node.datapath.beacon = BEACON
        peer.peer.relay = True
        for size in (1152, 1153):
            arrive(peer, ping(peer, payload=bytes(size)))
        assert [target for _, _, target, _ in network.log] == [peer.address, BEACON, peer.address]

    def test_relayed_pings_of_a_relayed_peer_are_answered_by_relay_alone(self) -> None:
        network, node, peer = stage()
        node.datapath.beacon = BEACON
        peer.peer.relay = True
        arrive(peer, ping(peer), relayed=True)
        assert [target for _, _, target, _ in network.log] == [BEACON]
        assert node.control.named("heard") == []

    def test_use_direct(self) -> None:
        network, node, peer = stage()
        node.datapath.beacon = BEACON
        peer.peer.relay = True
        peer.peer.address = None
        node.datapath.use_direct(peer.peer, network.now)
        assert peer.peer.relay is True
        peer.peer.address = peer.address
        node.datapath.use_direct(peer.peer, network.now)
        node.datapath.use_direct(peer.peer, network.now)
        arrive(peer, ping(peer))
        assert [target for _, _, target, _ in network.log] == [peer.address]
        assert [call[2] for call in node.control.named("path_changed")] == ["direct"]

    def test_blackhole(self) -> None:
        """Eight seconds without a direct frame and three sends that had time to be answered: relay."""
        network, node, peer = stage()
        node.datapath.beacon = BEACON
        talk = peer.accept(node.dial(peer, 80))
        network.run(0.1)
        network.forget()
        started = network.now
        while not peer.peer.relay and network.now < started + 30.0:
            talk.core.write(b"x")
            network.run(0.5)
        assert peer.peer.relay is True
        assert 8.0 <= network.now - started <= 12.0
        assert [call[2] for call in node.control.named("path_changed")] == ["blackhole"]
        assert network.log[-1][2] == BEACON

    def test_no_blackhole_without_a_beacon_or_with_answers(self) -> None:
        network, node, peer = stage()
        talk = peer.accept(node.dial(peer, 80))
        for _ in range(40):
            talk.core.write(b"x")
            network.run(0.5)
        assert peer.peer.relay is False
        network, node, peer = stage()
        node.datapath.beacon = BEACON
        talk = peer.accept(node.dial(peer, 80))
        for _ in range(40):
            talk.core.write(b"x")
            network.run(0.5)
            talk.ack(talk.core.written)
        assert peer.peer.relay is False

    def test_relay_only_sends_nothing_direct(self) -> None:
        network, node, peer = stage()
        node.datapath.relay_only = True
        talk_stream = node.dial(peer, 80)
        network.run(1.0)
        assert network.log == []
        node.datapath.beacon = BEACON
        network.run(60.0, lambda: talk_stream.state == CLOSED)
        assert {target for _, _, target, _ in network.log} == {BEACON}

    def test_send_errors_reach_the_control_plane(self) -> None:
        network, node, peer = stage()
        network.link(node.address[0], peer.address[0]).mtu = 1000
        peer.accept(node.dial(peer, 80)).core.write(bytes(5000))
        network.settle()
        errors = node.control.named("send_failed")
        assert errors
        assert {(call[1], call[2]) for call in errors} == {(peer.peer, errno.EMSGSIZE)}

    def test_cold_sends(self) -> None:
        network, node, _ = stage()
        node.datapath.send_relayed(b"PILAxxxx", 9)
        assert network.log == []
        node.datapath.beacon = BEACON
        node.datapath.send_relayed(b"PILAxxxx", 9)
        node.datapath.send_frame(b"PILP", ELSEWHERE)
        assert [(target, data) for _, _, target, data in network.log] == [
            (BEACON, beacon.relay(1, 9, b"PILAxxxx")),
            (ELSEWHERE, b"PILP"),
        ]


class TestControlPlane:
    def test_its_deadline_is_kept(self) -> None:
        network, node, _ = stage()
        node.datapath.set_control_deadline(network.now + 3.0)
        network.run(2.9)
        assert node.control.named("handle_timer") == []
        network.run(0.2)
        assert len(node.control.named("handle_timer")) == 1
        node.datapath.set_control_deadline(network.now + 3.0)
        node.datapath.set_control_deadline(math.inf)
        network.run(10.0)
        assert len(node.control.named("handle_timer")) == 1

    def test_one_that_raises_harms_nobody(self, caplog: pytest.LogCaptureFixture) -> None:
        network, node, peer = stage()
        node.listen(7, owner=Echo())

        def broken(*args: object) -> None:
            raise RuntimeError("no")

        for name in ("rejected", "unknown_session", "path_changed", "heard", "pong", "publish", "handle_timer"):
            setattr(node.control, name, broken)
        peer.peer.watched = True
        node.port.deliver(frames.seal(bytes(32), 2, b"abcd", 1, b"?"), peer.address, network.now)
        node.port.deliver(frames.seal(bytes(32), 9, b"abcd", 1, b"?"), peer.address, network.now)
        arrive(peer, ping(peer, source=Address(0, 9)))
        arrive(peer, ping(peer, flags=ACK))
        node.datapath.set_control_deadline(network.now)
        network.run(0.1)
        talk = peer.open(7)
        talk.data(b"still working")
        assert b"".join(s.payload for s in talk.seen()) == b"still working"
        assert caplog.text

    def test_watched_peers(self) -> None:
        _, node, peer = stage()
        arrive(peer, ping(peer))
        assert node.control.named("heard") == []
        peer.peer.watched = True
        arrive(peer, ping(peer))
        assert [call[1:3] for call in node.control.named("heard")] == [(peer.peer, True)]


class TestPeers:
    def test_table(self) -> None:
        _, node, peer = stage()
        assert node.datapath.add_peer(2) is peer.peer is node.datapath.peer(2)
        assert node.datapath.peer(3) is None
        node.datapath.remove_peer(3)
        node.datapath.remove_peer(2)
        assert node.datapath.peers() == []
        assert peer.peer.session is None

    def test_is_bounded(self) -> None:
        _, node, _ = stage()
        for n in range(65_535):
            node.datapath.add_peer(10_000 + n)
        with pytest.raises(PathError):
            node.datapath.add_peer(5)

    def test_a_removed_peers_frames_are_unknown(self) -> None:
        _, node, peer = stage()
        node.datapath.remove_peer(2)
        arrive(peer, ping(peer))
        assert peer.heard() == []
        assert [call[1] for call in node.control.named("unknown_session")] == [2]

    def test_fields(self) -> None:
        network, node, peer = stage()
        p = peer.peer
        assert (p.node, p.is_self, p.relay, p.open_streams) == (2, False, False, 0)
        node.listen(7)
        talk = peer.open(7)
        assert p.open_streams == 1
        assert p.last_heard == p.last_heard_direct == p.last_sent == p.last_used == network.now
        talk.rst()
        assert p.open_streams == 0
        for value in (0, -1, 70_000):
            with pytest.raises(ValueError):
                p.segment_bytes = value


class TestClose:
    def test_ends_every_stream_and_sends_nothing(self) -> None:
        network, node, peer = stage()
        node.listen(7)
        talks = [peer.open(7, source_port=n) for n in (1, 2)]
        dialing = node.dial(peer, 80)
        for talk in talks:
            talk.core.write(b"unacknowledged")
        network.settle()
        network.forget()
        node.datapath.close()
        node.datapath.close()
        for core in (*(talk.core for talk in talks), dialing):
            assert core.state == CLOSED
            assert isinstance(core.error(), ClosedError)
        assert peer.peer.session is None
        assert node.mux.all_streams() == []
        assert node.mux.live == 0
        node.port.deliver(b"PILS" + bytes(100), peer.address, network.now)
        node.datapath.handle_timer(network.now + 1000.0)
        node.datapath.end_of_iteration()
        network.nodes.remove(node)
        network.run(100.0)
        assert network.log == []

    def test_owners_are_told(self) -> None:
        network, first, second = connected(0)
        owner = first.owner
        network.nodes[0].datapath.close()
        assert owner.wakes[-1] & CLOSED_WAKE
        network.nodes.pop(0)
        network.run(200.0)
        assert second.state == CLOSED

    def test_leaves_nothing_behind(self) -> None:
        class Marker:
            def _on_wake(self, events: int) -> None: ...

        network, first, _ = connected(0)
        first.owner = marker = Marker()
        marker.stream = first  # type: ignore[attr-defined]
        seen = weakref.ref(marker)
        for node in network.nodes:
            node.datapath.close()
        del first, marker, node, _
        network.nodes.clear()
        network.ports.clear()
        gc.collect()
        assert seen() is None

    def test_removed_while_others_live(self) -> None:
        network, node, peer = stage()
        others = [ScriptedPeer(node, 3 + n) for n in range(5)]
        streams = [node.dial(other, 80) for other in others]
        node.datapath.remove_peer(4)
        network.settle()
        assert [stream.state == CLOSED for stream in streams] == [False, True, False, False, False]
        assert sorted(p.node for p in node.datapath.peers()) == [2, 3, 5, 6, 7]
        assert address_of(4) in network.ports
        peer.send(peer.packet(flags=SYN, source_port=1, destination_port=9, window=1))
        assert len(peer.heard()) == 1
