"""A datapath in plain Python, an in-memory network with virtual time, and a beacon: what the tunnel tests stand on.

`FakeDatapath` does what CONTRACT says the compiled one does, with the real `Session` and `Packet`.
"""

from __future__ import annotations

import errno
import hashlib
import heapq
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pilot._fast.addr import Addr
from pilot._fast.packet import Packet, PacketError
from pilot._fast.seal import Session, Verdict
from pilot.protocol import beacon
from pilot.tunnel import Resolved, Tunnel, TunnelSettings

Address = tuple[str, int]
BEACON: Address = ("192.0.2.100", 9001)
CONTROL, DATAGRAM = 3, 2
ACK = 2


class Identity:
    """An Ed25519 identity from a seed."""

    def __init__(self, seed: bytes) -> None:
        self.private = Ed25519PrivateKey.from_private_bytes(seed)
        self.public_key = self.private.public_key().public_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        return self.private.sign(message)


@dataclass(eq=False)
class FakePeer:
    """The fields of `Peer`."""

    node: int
    session: Session | None = None
    previous: Session | None = None
    previous_until: float = 0.0
    address: Address | None = None
    relay: bool = False
    misses: int = 0
    first_sent: float = 0.0
    last_sent: float = 0.0
    last_heard: float = 0.0
    last_heard_direct: float = 0.0
    last_used: float = 0.0
    open_streams: int = 0
    segment_bytes: int = 1152
    watched: bool = False
    pending: list[bytes] = field(default_factory=list)
    stash: list[tuple[bytes, Address | None, int | None, float]] = field(default_factory=list)
    salvage: list[tuple[bytes, float]] = field(default_factory=list)

    @property
    def pending_packets(self) -> int:
        return len(self.pending)


class FakeDatapath:
    """Frames of one node, without streams: datagrams go to `inbox`."""

    answers_both_ways = True

    def __init__(self, host: Host) -> None:
        self.host = host
        self.own_node = 0
        self.beacon: Address | None = None
        self.relay_only = False
        self.deadline = math.inf
        self.inbox: list[tuple[int, bytes]] = []
        self._peers: dict[int, FakePeer] = {}

    # the contract ---------------------------------------------------------------------------------

    def peer(self, node: int) -> FakePeer | None:
        return self._peers.get(node)

    def add_peer(self, node: int) -> FakePeer:
        return self._peers.setdefault(node, FakePeer(node))

    def remove_peer(self, node: int) -> None:
        peer = self._peers.pop(node, None)
        if peer is not None:
            self.drop_session(peer)

    def peers(self) -> list[FakePeer]:
        return list(self._peers.values())

    def install_session(self, peer: FakePeer, session: Session, now: float, *, keep_previous: float = 0.0) -> None:
        replaced = peer.session
        if peer.previous is not None and peer.previous is not session:
            peer.previous.wipe()
        peer.session, peer.previous = session, None
        if replaced is not None:
            if keep_previous > 0:
                peer.previous, peer.previous_until = replaced, now + keep_previous
            else:
                replaced.wipe()
        peer.last_used = now
        pending, peer.pending = peer.pending, []
        for packet in pending:
            self.send_packet(peer, packet, now)
        stash, peer.stash = peer.stash, []
        for frame, source, relayed_by, at in stash:
            if now - at <= 1:
                self._sealed(frame, source, relayed_by, now)

    def resend_datagrams(self, peer: FakePeer, since: float, now: float) -> int:
        sent = [packet for packet, at in peer.salvage if at > since and now - at <= 5][-4:]
        peer.salvage.clear()
        for packet in sent:
            self._seal_out(peer, packet, now)
        return len(sent)

    def drop_session(self, peer: FakePeer) -> None:
        for session in (peer.session, peer.previous):
            if session is not None:
                session.wipe()
        peer.session = peer.previous = None
        peer.salvage.clear()

    def use_direct(self, peer: FakePeer, now: float) -> None:
        if peer.relay and peer.address is not None:
            peer.relay = False
            self.host.tunnel.path_changed(peer, "direct", now)

    def send_frame(self, frame: bytes, address: Address) -> None:
        self.host.transmit(frame, address)

    def send_relayed(self, frame: bytes, node: int) -> None:
        if self.beacon is not None:
            self.host.transmit(beacon.wrap_relay(self.own_node, node, frame), self.beacon)

    def send_control(
        self,
        peer: FakePeer,
        flags: int,
        source_port: int,
        port: int,
        seq: int,
        payload: bytes,
        now: float,
        *,
        direct: bool = False,
        zero_destination: bool = False,
    ) -> bool:
        if peer.session is None:
            return False
        destination = Addr(0, 0 if zero_destination else peer.node)
        packet = Packet(flags, CONTROL, Addr(0, self.own_node), destination, source_port, port, seq, payload=payload)
        return self._seal_out(peer, packet.encode(), now, direct=direct)

    def set_control_deadline(self, deadline: float) -> None:
        self.deadline = deadline
        self.host.network.wake(self.host, deadline)

    # the rest of the hot path ---------------------------------------------------------------------

    def send_datagram(self, node: int, payload: bytes, now: float) -> None:
        """What an application send does."""
        peer = self.add_peer(node)
        peer.last_used = now
        packet = Packet(0, DATAGRAM, Addr(0, self.own_node), Addr(0, node), 7, 7, payload=payload).encode()
        self.send_packet(peer, packet, now)

    def send_packet(self, peer: FakePeer, packet: bytes, now: float) -> None:
        if peer.session is None:
            if len(peer.pending) < 64:
                peer.pending.append(packet)
            self.host.tunnel.session_wanted(peer, now)
            return
        peer.salvage = [*peer.salvage[-3:], (packet, now)]
        self._seal_out(peer, packet, now)

    def _seal_out(self, peer: FakePeer, packet: bytes, now: float, *, direct: bool = False) -> bool:
        address = peer.address
        if direct:
            if address is None or self.relay_only:
                return False
        elif self._by_relay(peer, now):
            address = None
        frame = peer.session.seal(packet)
        peer.last_sent = now
        peer.first_sent = peer.first_sent or now
        if address is None:
            if self.beacon is None:
                return False
            address, frame = self.beacon, beacon.wrap_relay(self.own_node, peer.node, frame)
        error = self.host.transmit(frame, address)
        if error:
            self.host.tunnel.send_failed(peer, error, len(frame), now)
        return True

    def _by_relay(self, peer: FakePeer, now: float) -> bool:
        if self.relay_only or peer.address is None:
            return True
        if not peer.relay and self.beacon is not None:
            since = peer.last_heard_direct or peer.first_sent
            if since and now - since > 8:
                peer.misses += 1
                if peer.misses >= 3:
                    peer.misses, peer.relay = 0, True
                    self.host.tunnel.path_changed(peer, "blackhole", now)
        return peer.relay

    def receive(self, data: bytes, source: Address, now: float) -> None:
        """A datagram from the socket."""
        if not data:
            return
        if data[0] == beacon.RELAY_DELIVER:
            if source == self.beacon and len(data) >= 9 and data[5] >= 0x10:
                self._frame(data[5:], None, int.from_bytes(data[1:5], "big"), now)
        elif data[0] < 0x10:
            self.host.tunnel.beacon_message_untrusted(data, source, now)
        elif len(data) >= 4:
            self._frame(data, source, None, now)

    def _frame(self, frame: bytes, source: Address | None, relayed_by: int | None, now: float) -> None:
        if frame[:4] in (b"PILA", b"PILK"):
            self.host.tunnel.key_exchange_untrusted(frame, source, relayed_by, now)
        elif frame[:4] == b"PILS" and len(frame) >= 36:
            self._sealed(frame, source, relayed_by, now)

    def _sealed(self, frame: bytes, source: Address | None, relayed_by: int | None, now: float) -> None:
        node = int.from_bytes(frame[4:8], "big")
        peer = self._peers.get(node)
        if peer is None or peer.session is None:
            if peer is not None and len(peer.stash) < 4:
                peer.stash.append((frame, source, relayed_by, now))
            self.host.tunnel.unknown_session(node, source, relayed_by, now)
            return
        if peer.previous is not None and now > peer.previous_until:
            peer.previous.wipe()
            peer.previous = None
        verdict, inner = peer.session.open_untrusted(frame)
        if verdict is Verdict.AUTH_FAILURE and peer.previous is not None:
            verdict, inner = peer.previous.open_untrusted(frame)
        if verdict is not Verdict.ACCEPT:
            self.host.tunnel.rejected(peer, verdict, now)
            return
        try:
            packet = Packet.decode_untrusted(inner)
        except PacketError:
            return
        if packet.source.node == node or (packet.source.node == 0 and not packet.payload):
            self._opened(peer, packet, source, now)

    def _opened(self, peer: FakePeer, packet: Packet, source: Address | None, now: float) -> None:
        peer.last_heard, peer.misses = now, 0
        if source is not None:
            peer.last_heard_direct = now
            moved, peer.address = peer.address != source, source
            if moved and not peer.relay:
                self.host.tunnel.path_changed(peer, "address", now)
        elif peer.address is None and not peer.relay:
            peer.relay = True
            self.host.tunnel.path_changed(peer, "relayed", now)
        if peer.watched or peer.relay == (source is not None):
            self.host.tunnel.heard(peer, source is not None, now)
        self._dispatch(peer, packet, source, now)

    def _dispatch(self, peer: FakePeer, packet: Packet, source: Address | None, now: float) -> None:
        if packet.protocol == DATAGRAM:
            peer.last_used = now
            self.inbox.append((peer.node, packet.payload))
        elif packet.protocol == CONTROL and packet.payload:
            if packet.flags & ACK:
                self.host.tunnel.pong(peer, packet.seq, packet.destination_port, packet.payload, now)
            elif packet.destination_port == 0 and self.host.answers_pings:
                pong = Packet(
                    ACK,
                    CONTROL,
                    Addr(0, self.own_node),
                    packet.source,
                    0,
                    packet.source_port,
                    packet.seq,
                    packet.seq + 1 & 0xFFFFFFFF,
                    payload=packet.payload,
                )
                asks_direct = self.answers_both_ways and peer.relay and source is not None
                if asks_direct:
                    self._seal_out(peer, pong.encode(), now, direct=True)
                if not asks_direct or len(packet.payload) <= peer.segment_bytes:
                    self._seal_out(peer, pong.encode(), now)


@dataclass
class Record:
    """What the registry knows of a node."""

    key: bytes
    found: Resolved


class Host:
    """One node: tunnel, datapath and the hooks a real node would have."""

    def __init__(self, network: Network, node: int, address: Address, settings: TunnelSettings, seed: int) -> None:
        self.network = network
        self.node = node
        self.address = address
        self.identity = Identity(hashlib.sha256(b"identity %d" % node).digest())
        self.answers_pings = True
        self.trusted: set[int] = set()
        self.events: list[tuple[str, dict[str, object]]] = []
        self.ready: list[int] = []
        self.failed: list[tuple[int, str]] = []
        self.lookups: list[int] = []
        self.resolves: list[int] = []
        self.polls = 0
        self.addresses_changed: list[tuple[str, str, str, int]] = []
        self.datapath = FakeDatapath(self)
        self.tunnel = Tunnel(self.identity, self, settings=settings, random=Random(seed))
        self.tunnel.attach(self.datapath)

    # hooks

    def lookup_key(self, node: int) -> None:
        self.lookups.append(node)
        network = self.network
        record = network.registry.get(node)

        def answer(now: float) -> None:
            if network.registry_up:
                self.tunnel.key_found(node, record.key if record else None, False, now)
            else:
                self.tunnel.key_found(node, None, True, now)

        if network.registry_answers:
            network.call(network.now + network.registry_delay, answer)

    def resolve(self, node: int) -> None:
        self.resolves.append(node)
        network = self.network
        record = network.registry.get(node)

        def answer(now: float) -> None:
            if not network.registry_up:
                self.tunnel.resolved(node, None, "registry unreachable", now, unreachable=True)
            elif record is None:
                self.tunnel.resolved(node, None, "no such node", now)
            else:
                self.tunnel.resolved(node, record.found, None, now)

        if network.registry_answers:
            network.call(network.now + network.registry_delay, answer)

    def is_trusted(self, node: int) -> bool:
        return node in self.trusted

    def publish(self, topic: str, payload: dict[str, object]) -> None:
        self.events.append((topic, payload))

    def session_ready(self, node: int) -> None:
        self.ready.append(node)

    def contact_failed(self, node: int, reason: str) -> None:
        self.failed.append((node, reason))

    def poll_handshakes(self) -> None:
        self.polls += 1

    def address_changed(self, reason: str, previous: str, current: str, peers_notified: int) -> None:
        self.addresses_changed.append((reason, previous, current, peers_notified))

    # handles for tests

    def transmit(self, data: bytes, address: Address) -> int:
        return self.network.send(data, self.address, address)

    def start(self) -> None:
        now = self.network.now
        self.tunnel.start(now)
        self.tunnel.set_beacons([BEACON] if self.network.beacon else [], [], now)
        self.tunnel.registered(self.node, now)

    def send(self, other: Host, payload: bytes = b"data") -> None:
        self.datapath.send_datagram(other.node, payload, self.network.now)

    def peer(self, other: Host) -> FakePeer:
        peer = self.datapath.peer(other.node)
        assert peer is not None
        return peer

    def session(self, other: Host) -> Session:
        session = self.peer(other).session
        assert session is not None
        return session

    def topics(self, topic: str) -> list[dict[str, object]]:
        return [payload for name, payload in self.events if name == topic]

    def received(self) -> list[bytes]:
        return [payload for _, payload in self.datapath.inbox]


class Network:
    """Virtual time, datagrams with latency, seeded loss, duplication and reordering; a registry; a beacon."""

    host_type: type[Host] = Host

    def __init__(self, seed: int = 1, *, beacon: bool = True, settings: TunnelSettings | None = None) -> None:
        self.now = 1000.0
        self.random = Random(seed)
        self.seed = seed
        self.settings = settings or TunnelSettings(probe_mtu=False)
        self.latency = 0.02
        self.jitter = 0.0
        self.loss = 0.0
        self.duplication = 0.0
        self.mtu = 1500
        self.registry_delay = 0.01
        self.registry_up = True
        self.registry_answers = True
        self.drop: Callable[[bytes, Address, Address], bool] = lambda data, source, target: False
        self.beacon = beacon
        self.registry: dict[int, Record] = {}
        self.hosts: dict[Address, Host] = {}
        self.log: list[tuple[float, Address, Address, bytes]] = []
        self._queue: list[tuple[float, int, Callable[[float], None]]] = []
        self._serial = itertools.count()
        self._known: dict[int, Address] = {}

    def host(
        self, node: int, *, settings: TunnelSettings | None = None, start: bool = True, generation: int = 0
    ) -> Host:
        """A registered node at 198.51.100.<node>; a later generation is the same node restarted."""
        address = (f"198.51.100.{node}", 4000)
        host = self.host_type(self, node, address, settings or self.settings, hash((self.seed, node, generation)))
        self.hosts[address] = host
        self.registry[node] = Record(host.identity.public_key, Resolved(address))
        if start:
            host.start()
        return host

    def restart(self, host: Host, **options: object) -> Host:
        """The same node again, without any memory."""
        host.tunnel.stop(self.now)
        return self.host(host.node, generation=self.random.getrandbits(32), **options)  # type: ignore[arg-type]

    def call(self, when: float, function: Callable[[float], None]) -> None:
        heapq.heappush(self._queue, (when, next(self._serial), function))

    def wake(self, host: Host, deadline: float) -> None:
        if deadline < math.inf:

            def due(now: float) -> None:
                if host.datapath.deadline <= now:
                    host.tunnel.handle_timer(now)

            self.call(max(deadline, self.now), due)

    def send(self, data: bytes, source: Address, target: Address) -> int:
        """Put a datagram on its way; a positive errno if the system refuses it."""
        limit = 65536 if target[0].startswith("127.") else self.mtu
        if len(data) + 28 > limit:
            return errno.EMSGSIZE
        self.log.append((self.now, source, target, data))
        if self.drop(data, source, target):
            return 0
        for _ in range(2 if self.random.random() < self.duplication else 1):
            if self.random.random() >= self.loss:
                delay = self.latency + self.random.random() * self.jitter
                self.call(self.now + delay, lambda now: self._deliver(data, source, target, now))
        return 0

    def _deliver(self, data: bytes, source: Address, target: Address, now: float) -> None:
        if target == BEACON and self.beacon:
            self._at_beacon(data, source)
        elif target in self.hosts:
            self.hosts[target].datapath.receive(data, source, now)

    def _at_beacon(self, data: bytes, source: Address) -> None:
        if data[0] == beacon.DISCOVER:
            self._known[beacon.parse_discover_untrusted(data).node_id] = source
            self.send(beacon.encode_discover_reply(*source), BEACON, source)
        elif data[0] == beacon.PUNCH_REQUEST:
            request = beacon.parse_punch_request_untrusted(data)
            self._known[request.requester_id] = source
            target = self._known.get(request.target_id)
            if target is not None:
                self.send(beacon.encode_punch_command(*target), BEACON, source)
                self.send(beacon.encode_punch_command(*source), BEACON, target)
        elif data[0] == beacon.RELAY:
            sender, destination, frame = beacon.unwrap_relay_untrusted(data)
            if destination in self._known:
                self.send(beacon.wrap_deliver(sender, frame), BEACON, self._known[destination])

    def run(self, seconds: float) -> None:
        """Let virtual time pass."""
        until = self.now + seconds
        while self._queue and self._queue[0][0] <= until:
            when, _, function = heapq.heappop(self._queue)
            self.now = max(self.now, when)
            function(self.now)
        self.now = until

    def sent(self, source: Host | Address, since: float = 0.0) -> list[tuple[Address, bytes]]:
        """What a host has sent from a time on."""
        address = source.address if isinstance(source, Host) else source
        return [(target, data) for at, origin, target, data in self.log if origin == address and at >= since]

    def pair(self) -> tuple[Host, Host]:
        """Two nodes with a session between them, both sides heard."""
        a, b = self.host(1), self.host(2)
        self.run(0.5)
        a.send(b, b"hello")
        self.run(0.5)
        b.send(a, b"hello")
        self.run(0.5)
        assert a.received() == [b"hello"]
        assert b.received() == [b"hello"]
        return a, b


def kind(data: bytes) -> str:
    """What a datagram is: PILA, relay PILA, discover ..."""
    names = {1: "discover", 2: "reply", 3: "punch request", 4: "punch command", 10: "notify"}
    if data[0] == beacon.RELAY:
        return "relay " + data[9:13].decode()
    if data[0] == beacon.RELAY_DELIVER:
        return "deliver " + data[5:9].decode()
    return names[data[0]] if data[0] in names else data[:4].decode()


def kinds(sent: list[tuple[Address, bytes]]) -> list[str]:
    """The kinds of datagrams sent, in order."""
    return [kind(data) for _, data in sent]
