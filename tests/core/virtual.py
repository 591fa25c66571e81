"""Datapaths on a virtual network with a virtual clock, seeded loss and a timer like a real node's (test support)."""

from __future__ import annotations

import errno
import heapq
import itertools
import math
import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pilot._fast.addr import Addr
from pilot._fast.datapath import Datapath
from pilot._fast.mux import MuxSettings
from pilot._fast.port import DatagramPort
from pilot._fast.seal import Session
from tests.reference import frames, packet
from tests.reference.packet import ACK, FIN, RST, SYN, Packet

Address = tuple[str, int]

ESTABLISHED, CLOSING, FIN_WAIT, TIME_WAIT, CLOSED = 1, 2, 3, 4, 5
SYN_SENT = 0

OPEN, READ, WRITE, ACKED, CLOSED_WAKE = 1, 2, 4, 8, 16

START = 1000.0


@dataclass
class Link:
    """What happens to a datagram on its way. Delay and jitter in seconds, rate in bytes per second (0 = infinite)."""

    delay: float = 0.01
    jitter: float = 0.0
    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    rate: float = 0.0
    queue: int = 256 * 1024
    mtu: int = 65507
    swallows: int = 65507  # larger datagrams vanish without an error
    busy_until: float = 0.0


class Sent(NamedTuple):
    """One datagram that was handed to the network, opened; `packet` is None for what is no PILS of a known session."""

    at: float
    source: Address
    target: Address
    packet: Packet | None
    size: int


class Network:
    """The wire and the clock. `run` moves time forward from event to event."""

    def __init__(self, seed: int = 0, **link: Any) -> None:
        self.random = random.Random(seed)
        self.now = START
        self.link_options = link
        self.links: dict[tuple[str, str], Link] = {}
        self.ports: dict[Address, Any] = {}
        self.nodes: list[VirtualNode] = []
        self.keys: dict[frozenset[int], bytes] = {}
        self.heap: list[tuple[float, int, Address, bytes, Address]] = []
        self.calls: list[tuple[float, int, Callable[[], object]]] = []
        self.order = itertools.count()
        self.log: list[tuple[float, Address, Address, bytes]] = []
        self.logging = True
        self.drop: Callable[[Sent], bool] | None = None
        self.dark = False  # an outage: everything sent is lost
        self.delivered = 0
        self.lost = 0

    def link(self, a: str, b: str) -> Link:
        return self.links.setdefault((a, b), Link(**self.link_options))

    def send(self, data: bytes, source: Address, target: Address) -> None:
        link = self.link(source[0], target[0])
        if self.logging:
            self.log.append((self.now, source, target, data))
        if len(data) > link.mtu:
            raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
        if self.drop is not None and self.drop(self.opened((self.now, source, target, data))):
            self.lost += 1
            return
        if self.dark or len(data) > link.swallows or self.random.random() < link.loss:
            self.lost += 1
            return
        at = self.now
        if link.rate:
            at = max(at, link.busy_until)
            if (at - self.now) * link.rate > link.queue:
                self.lost += 1
                return
            link.busy_until = at = at + len(data) / link.rate
        at += link.delay + self.random.random() * link.jitter
        if self.random.random() < link.reorder:
            at += link.delay * self.random.random()
        for _ in range(2 if self.random.random() < link.duplicate else 1):
            heapq.heappush(self.heap, (at, next(self.order), target, data, source))

    def call_later(self, seconds: float, call: Callable[[], object]) -> None:
        """Have `call` run when virtual time has come to it."""
        heapq.heappush(self.calls, (self.now + seconds, next(self.order), call))

    def run(self, seconds: float = 60.0, until: Any = None) -> bool:
        """Advance until `until()` is true (checked after every event) or the time is over; says which."""
        end = self.now + seconds
        self.settle()
        while not (until and until()):
            at = self.heap[0][0] if self.heap else math.inf
            if self.calls:
                at = min(at, self.calls[0][0])
            for node in self.nodes:
                at = min(at, node.scheduler.deadline)
            if at > end:
                self.now = end
                return bool(until and until())
            self.now = max(self.now, at)
            while self.heap and self.heap[0][0] <= self.now:
                _, _, target, data, source = heapq.heappop(self.heap)
                port = self.ports.get(target)
                if port is not None:
                    self.delivered += 1
                    port.deliver(data, source, self.now)
            for node in self.nodes:
                node.scheduler.run(node)
            while self.calls and self.calls[0][0] <= self.now:
                heapq.heappop(self.calls)[2]()
            self.settle()
        return True

    def settle(self) -> None:
        """End the loop iteration of every node that asked for it."""
        again = True
        while again:
            again = False
            for node in self.nodes:
                if getattr(node.scheduler, "soon_wanted", False):
                    node.scheduler.soon_wanted = False
                    node.datapath.end_of_iteration()
                    again = True

    def opened(self, entry: tuple[float, Address, Address, bytes]) -> Sent:
        at, source, target, data = entry
        return Sent(at, source, target, self.open(data), len(data))

    def open(self, data: bytes) -> Packet | None:
        """The inner packet of a PILS whose session `join` made, straight or in a relay message."""
        if data[:1] == b"\x05":
            data = data[9:]
        elif data[:1] == b"\x06":
            data = data[5:]
        if data[:4] != frames.PILS:
            return None
        sender = int.from_bytes(data[4:8], "big")
        for pair_, key in self.keys.items():
            if sender in pair_:
                try:
                    return packet.decode_untrusted(frames.open_untrusted(key, data).plaintext)
                except (frames.FrameError, packet.PacketError):
                    continue
        return None

    def packets(self, source: VirtualNode | None = None, *, since: float = 0.0) -> list[Sent]:
        """Everything sent, opened, by one node or by all, in order."""
        return [
            self.opened(entry)
            for entry in self.log
            if entry[0] >= since and (source is None or entry[1] == source.address)
        ]

    def forget(self) -> None:
        self.log.clear()


class VirtualPort(DatagramPort):
    """A datagram port on the virtual network."""

    def __init__(self, network: Network, address: Address) -> None:
        self.network = network
        self.address = address
        network.ports[address] = self

    def send_datagram(self, data: bytes, address: Address) -> None:
        self.network.send(data, self.address, address)


class Scheduler:
    """One timer, as a node keeps it: armed by the datapath alone, delays rounded up to a millisecond and a bit."""

    LATE = 2e-5

    def __init__(self, network: Network) -> None:
        self.network = network
        self.soon_wanted = False
        self.deadline = math.inf
        self.arms = 0

    def arm(self, deadline: float) -> None:
        self.arms += 1
        delay = max(0.0, deadline - self.network.now)
        at = self.network.now + math.ceil(delay * 1000.0) / 1000.0 + self.LATE
        assert at < self.deadline or at == deadline == self.deadline or deadline < self.deadline, "armed for later"
        self.deadline = max(at, deadline)

    def soon(self) -> None:
        self.soon_wanted = True

    def run(self, node: VirtualNode) -> None:
        if self.deadline <= self.network.now:
            self.deadline = math.inf
            node.datapath.handle_timer(self.network.now)


class Control:
    """A control plane that records what it is told and lets everything be, but for a path that proved too narrow."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.relay_dials = False

    def __getattr__(self, name: str) -> Any:
        def record(*args: Any) -> Any:
            self.calls.append((name, *args))

        return record

    def dial_needs_relay(self, peer: Any, now: float) -> bool:
        self.calls.append(("dial_needs_relay", peer, now))
        if self.relay_dials:
            peer.relay = True
        return self.relay_dials

    def send_failed(self, peer: Any, error: int, size: int, now: float) -> None:
        self.calls.append(("send_failed", peer, error, size, now))
        if error == errno.EMSGSIZE and peer is not None:
            peer.segment_bytes = 1152

    def named(self, name: str) -> list[tuple[Any, ...]]:
        return [call for call in self.calls if call[0] == name]


@dataclass
class Owner:
    """Collects wake-ups and accepted streams."""

    wakes: list[int] = field(default_factory=list)
    streams: list[Any] = field(default_factory=list)
    core: Any = None

    def _on_wake(self, events: int) -> None:
        self.wakes.append(events)

    def _on_stream(self, stream: Any) -> None:
        stream.owner = Owner()
        self.streams.append(stream)
        self.core.taken()


class Echo:
    """The echo service: owner of a listener and of its streams; writes back what arrives, read by read."""

    def __init__(self) -> None:
        self.core: Any = None
        self.streams: list[Any] = []

    def _on_stream(self, stream: Any) -> None:
        self.streams.append(stream)
        self.core.taken()
        stream.owner = Echoer(stream)
        stream.interest = READ


class Echoer:
    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.received = bytearray()

    def _on_wake(self, events: int) -> None:
        if events & CLOSED_WAKE:
            return
        while data := self.stream.read(1 << 20):
            self.received += data
            self.stream.write(data)
        self.stream.interest = READ


class Gate:
    """The trust gate of a private node: admits only the nodes it was given."""

    def __init__(self, *trusted: int) -> None:
        self.trusted = set(trusted)
        self.asked: list[tuple[Any, ...]] = []

    def admit_syn(self, node: int, port: int) -> bool:
        self.asked.append(("syn", node, port))
        return node in self.trusted

    def admit_datagram(self, node: int) -> bool:
        self.asked.append(("datagram", node))
        return node in self.trusted

    def admit_ping(self, node: int) -> bool:
        self.asked.append(("ping", node))
        return node in self.trusted


class VirtualNode:
    """A datapath with its port; sessions are installed by `join`, as if a key exchange had taken place."""

    def __init__(self, network: Network, node: int, settings: MuxSettings | None = None) -> None:
        self.network = network
        self.node = node
        self.address = address_of(node)
        self.port = VirtualPort(network, self.address)
        self.scheduler = Scheduler(network)
        self.control = Control()
        self.datapath = Datapath(
            self.port,
            self.control,
            clock=lambda: network.now,
            scheduler=self.scheduler,
            settings=settings,
            random=random.Random(node * 7919 + network.random.randrange(1 << 30)),
        )
        self.datapath.own_node = node
        self.mux = self.datapath.mux
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.mux.publish = lambda topic, payload: self.events.append((topic, payload))
        network.nodes.append(self)

    @property
    def addr(self) -> Addr:
        return Addr(0, self.node)

    def move(self, port: int) -> None:
        """A NAT on the way gives the node another address; what is sent to the old one is lost."""
        del self.network.ports[self.address]
        self.address = self.port.address = (self.address[0], port)
        self.network.ports[self.address] = self.port

    def peer(self, other: Any) -> Any:
        return self.datapath.peer(other.node)

    def dial(self, other: Any, port: int) -> Any:
        stream = self.mux.dial(self.peer(other), Addr(0, other.node), port)
        stream.owner = Owner()
        return stream

    def dial_self(self, port: int) -> Any:
        stream = self.mux.dial(self.datapath.own_peer(), self.addr, port)
        stream.owner = Owner()
        return stream

    def listen(self, port: int, backlog: int = 64, owner: Any = None) -> Any:
        owner = owner if owner is not None else Owner()
        owner.core = self.mux.listen(port, backlog, owner)
        return owner

    def topics(self, topic: str) -> list[dict[str, Any]]:
        return [payload for name, payload in self.events if name == topic]


def address_of(node: int) -> Address:
    return (f"10.{node >> 16 & 255}.{node >> 8 & 255}.{node & 255}", 4000)


def join(a: VirtualNode, b: VirtualNode, *, key: bytes | None = None, keep_previous: float = 0.0) -> None:
    """Give both nodes a session with each other and their addresses; on joined nodes this is a rekey."""
    key = key or a.network.random.randbytes(32)
    a.network.keys[frozenset((a.node, b.node))] = key
    for own, other in ((a, b), (b, a)):
        prefix = a.network.random.randbytes(4)
        peer = own.datapath.add_peer(other.node)
        peer.address = other.address
        session = Session(key, own.node, other.node, prefix, a.network.now, authenticated=True, peer_x25519=bytes(32))
        own.datapath.install_session(peer, session, a.network.now, keep_previous=keep_previous)


def pair(
    seed: int = 0, settings: MuxSettings | None = None, other: MuxSettings | None = None, **link: Any
) -> tuple[Network, VirtualNode, VirtualNode]:
    """A network and two joined nodes, 1 and 2; `other` are the settings of the second when they differ."""
    network = Network(seed, **link)
    a, b = VirtualNode(network, 1, settings), VirtualNode(network, 2, other or settings)
    join(a, b)
    return network, a, b


def connected(
    seed: int = 0, settings: MuxSettings | None = None, other: MuxSettings | None = None, **link: Any
) -> tuple[Network, Any, Any]:
    """A network and the two ends of one open stream, node 1's and node 2's."""
    network, a, b = pair(seed, settings, other, **link)
    listener = b.listen(7)
    stream = a.dial(b, 7)
    assert network.run(30, lambda: stream.state == ESTABLISHED and listener.streams)
    network.run(1)
    network.forget()
    return network, stream, listener.streams[0]


def transfer(network: Network, source: Any, target: Any, data: bytes, seconds: float = 600.0) -> bytes:
    """Write `data` at one end as room allows and read it at the other; what was read in the end."""
    got = bytearray()
    sent = 0

    def step() -> bool:
        nonlocal sent
        if sent < len(data):
            sent += source.write(data, sent)
        while chunk := target.read(1 << 20):
            got.extend(chunk)
        return len(got) >= len(data)

    network.run(seconds, step)
    return bytes(got)


def kind(p: Packet) -> str:
    """What section 3 of streams.md calls a stream packet."""
    names = "+".join(name for bit, name in ((SYN, "SYN"), (FIN, "FIN"), (RST, "RST"), (ACK, "ACK")) if p.flags & bit)
    if p.flags == ACK:
        if p.payload:
            return "SACK" if p.payload[:4] == b"SACK" and len(p.payload) >= 13 else "DATA"
        return "ACK"
    return names or "-"
