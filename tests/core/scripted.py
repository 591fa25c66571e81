"""A peer played by hand: seals and opens with the plain-Python reference and speaks packet by packet (test support)."""

from __future__ import annotations

from typing import Any, NamedTuple

from pilot._fast.addr import Addr
from pilot._fast.seal import Session
from tests.core.virtual import Address, Network, VirtualNode, address_of, kind
from tests.reference import frames, packet, sack
from tests.reference.addr import Address as Overlay
from tests.reference.packet import ACK, FIN, RST, STREAM, SYN, Packet

SEQ = 1 << 32


class Heard(NamedTuple):
    """A packet the datapath sent to the scripted peer."""

    at: float
    packet: Packet


class Seen(NamedTuple):
    """A stream packet with its numbers as stream offsets (SYN: raw seq); the first data byte of each end is 0."""

    kind: str
    seq: int
    ack: int
    window: int
    payload: bytes
    at: float


class ScriptedPeer:
    """Remote node `node` of `target`. Nothing is ever sent that a test did not ask for."""

    def __init__(self, target: VirtualNode, node: int = 2, *, session: bool = True) -> None:
        self.network: Network = target.network
        self.target = target
        self.node = node
        self.address: Address = address_of(node)
        self.network.ports[self.address] = self
        self.inbox: list[Heard] = []
        self.raw: list[tuple[bytes, Address]] = []
        self.peer = target.datapath.add_peer(node)
        self.peer.address = self.address
        self.key = bytes(32)
        if session:
            self.new_session()

    def new_session(self, *, keep_previous: float = 0.0) -> None:
        """A fresh key, installed at both ends at once."""
        self.key = self.network.random.randbytes(32)
        self.prefix = self.network.random.randbytes(4)
        self.counter = 0
        self.network.keys[frozenset((self.node, self.target.node))] = self.key
        session = Session(
            self.key,
            self.target.node,
            self.node,
            self.network.random.randbytes(4),
            self.network.now,
            authenticated=True,
            peer_x25519=bytes(32),
        )
        self.target.datapath.install_session(self.peer, session, self.network.now, keep_previous=keep_previous)

    def deliver(self, data: bytes, source: Address, now: float) -> None:
        """What the virtual network calls when a datagram arrives."""
        if data[:4] != frames.PILS:
            self.raw.append((data, source))
            return
        opened = frames.open_untrusted(self.key, data)
        assert opened.sender == self.target.node
        self.inbox.append(Heard(now, packet.decode_untrusted(opened.plaintext)))

    def frame(self, p: Packet | bytes) -> bytes:
        self.counter += 1
        inner = p if isinstance(p, bytes) else p.encode()
        return frames.seal(self.key, self.node, self.prefix, self.counter, inner)

    def send(self, p: Packet | bytes) -> None:
        """Seal and send one inner packet; it arrives at once, in its own batch."""
        self.batch(p)

    def batch(self, *packets: Packet | bytes) -> None:
        """Several inner packets that arrive together, as one receive batch."""
        for p in packets:
            self.target.port.deliver(self.frame(p), self.address, self.network.now, last=False)
        self.target.port.end_batch(self.network.now)
        self.network.settle()

    def packet(self, **fields: Any) -> Packet:
        """A packet from this node to the target; every field can be given."""
        fields.setdefault("source", Overlay(0, self.node))
        fields.setdefault("destination", Overlay(0, self.target.node))
        fields.setdefault("protocol", STREAM)
        return Packet(**fields)

    def heard(self) -> list[Packet]:
        """What arrived since the last call."""
        self.network.run(0.0)
        found = [item.packet for item in self.inbox]
        self.inbox.clear()
        return found

    def open(
        self,
        port: int = 7,
        *,
        window: int = 512,
        isn: int = 0,
        source_port: int = 50001,
        network: int = 0,
    ) -> Talk:
        """Open a stream to a listening port of the target."""
        talk = Talk(self, source_port, port, isn, network)
        talk.window = window
        talk.syn()
        answer = talk.seen()
        assert [s.kind for s in answer] == ["SYN+ACK"], answer
        talk.core = self.target.mux.all_streams()[-1]
        for core in self.target.mux.all_streams():
            if core.local_port == port and core.remote_port == source_port and core.remote_addr.node == self.node:
                talk.core = core
        return talk

    def accept(self, stream: Any, *, window: int = 512, isn: int = 0, now: bool = True) -> Talk:
        """Play the listener for a stream the target dialed; with `now` the SYN-ACK is sent."""
        [syn] = [p for p in self.heard() if p.flags == SYN]
        talk = Talk(self, syn.destination_port, syn.source_port, isn, syn.destination.network)
        talk.their_isn = syn.seq
        talk.window = window
        talk.core = stream
        if now:
            talk.syn_ack()
        return talk


class Talk:
    """One stream between the scripted peer and the target, in stream offsets."""

    def __init__(self, peer: ScriptedPeer, source_port: int, port: int, isn: int, network: int) -> None:
        self.peer = peer
        self.source_port = source_port
        self.port = port
        self.isn = isn
        self.their_isn = 0
        self.network = network
        self.window = 512
        self.sent = 0
        self.got = 0
        self.core: Any = None

    def make(self, flags: int, seq: int, ack: int, payload: bytes = b"", window: int | None = None) -> Packet:
        """A packet of this stream with raw numbers."""
        return self.peer.packet(
            source=Overlay(self.network, self.peer.node),
            destination=Overlay(self.network, self.peer.target.node),
            flags=flags,
            source_port=self.source_port,
            destination_port=self.port,
            seq=seq % SEQ,
            ack=ack % SEQ,
            window=self.window if window is None else window,
            payload=payload,
        )

    def syn(self) -> None:
        self.peer.send(self.make(SYN, self.isn, 0))

    def syn_ack(self, ack: int | None = None, *, payload: bytes = b"") -> None:
        self.peer.send(self.make(SYN | ACK, self.isn, self.their_isn + 1 if ack is None else ack, payload))

    def at(self, offset: int) -> int:
        return (self.isn + 1 + offset) % SEQ

    def theirs(self, offset: int) -> int:
        return (self.their_isn + 1 + offset) % SEQ

    def segment(self, offset: int, payload: bytes, *, ack: int | None = None, window: int | None = None) -> Packet:
        return self.make(ACK, self.at(offset), self.theirs(self.got if ack is None else ack), payload, window)

    def data(self, payload: bytes, offset: int | None = None, **fields: Any) -> None:
        """A data segment; without `offset` the next bytes in order."""
        if offset is None:
            offset, self.sent = self.sent, self.sent + len(payload)
        self.peer.send(self.segment(offset, payload, **fields))

    def ack(self, offset: int | None = None, *, window: int | None = None, blocks: Any = None) -> None:
        """An acknowledgment of the target's bytes below `offset`, with SACK blocks in offsets where given."""
        if offset is not None:
            self.got = max(self.got, offset)
        acked = self.theirs(self.got if offset is None else offset)
        payload = sack.encode([(self.theirs(a), self.theirs(b)) for a, b in blocks]) if blocks else b""
        self.peer.send(self.make(ACK, self.at(self.sent), acked, payload, window))

    def fin(self, offset: int | None = None, *, flags: int = FIN, payload: bytes = b"") -> None:
        self.peer.send(self.make(flags, self.at(self.sent if offset is None else offset), 0, payload, 0))

    def fin_ack(self, ack: int) -> None:
        self.peer.send(self.make(FIN | ACK, self.at(self.sent), self.theirs(ack), b"", 0))

    def rst(self, seq: int = 0) -> None:
        self.peer.send(self.make(RST, seq, 0, b"", 0))

    def seen(self) -> list[Seen]:
        """The stream packets of this stream that arrived since the last call, in offsets."""
        self.peer.network.run(0.0)
        found, rest = [], []
        for item in self.peer.inbox:
            p = item.packet
            if (p.protocol, p.source_port, p.destination_port) == (STREAM, self.port, self.source_port):
                found.append(self.relative(item))
            else:
                rest.append(item)
        self.peer.inbox[:] = rest
        return found

    def relative(self, item: Heard) -> Seen:
        p = item.packet
        if p.flags & SYN:
            self.their_isn = p.seq
            return Seen(kind(p), p.seq, signed(p.ack - self.at(0)), p.window, p.payload, item.at)
        ack = signed(p.ack - self.at(0)) if p.flags & ACK else p.ack
        seq = p.seq if p.flags & RST else signed(p.seq - self.theirs(0))
        return Seen(kind(p), seq, ack, p.window, p.payload, item.at)

    def blocks(self, seen: Seen) -> list[tuple[int, int]]:
        """The SACK blocks of an acknowledgment, in offsets of the scripted peer's bytes."""
        decoded = sack.decode_untrusted(seen.payload, strict=True)
        assert decoded is not None
        return [(signed(a - self.at(0)), signed(b - self.at(0))) for a, b in decoded]

    def wait(self, seconds: float) -> list[Seen]:
        """Let time pass; what was heard meanwhile."""
        self.peer.network.run(seconds)
        return self.seen()


def signed(difference: int) -> int:
    """A 32-bit difference as signed number."""
    difference %= SEQ
    return difference - SEQ if difference >= SEQ // 2 else difference


def stage(settings: Any = None, **link: Any) -> tuple[Network, VirtualNode, ScriptedPeer]:
    """A node (1) with a scripted peer (2) on a network without delay."""
    link.setdefault("delay", 0.0)
    network = Network(0, **link)
    node = VirtualNode(network, 1, settings)
    return network, node, ScriptedPeer(node)


def dialed(window: int = 512, settings: Any = None, *, port: int = 80, isn: int = 0) -> tuple[Network, Talk]:
    """A stream the node dialed and the scripted peer accepted; the acknowledgment of the SYN-ACK has been taken."""
    network, node, peer = stage(settings)
    stream = node.dial(peer, port)
    talk = peer.accept(stream, window=window, isn=isn)
    talk.wait(0.1)
    return network, talk


def accepted(window: int = 512, settings: Any = None, *, isn: int = 0) -> tuple[Network, Talk]:
    """A stream the scripted peer opened to port 7 of the node; its owner only collects."""
    network, node, peer = stage(settings)
    node.listen(7)
    return network, peer.open(7, window=window, isn=isn)


def overlay(node: int, network: int = 0) -> Addr:
    return Addr(network, node)
