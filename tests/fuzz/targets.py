"""What is fuzzed of the compiled core, and the table of all targets; `targets_plugins` and others hold the rest."""

from __future__ import annotations

import random
import zlib
from typing import Any

from pilot._fast.addr import Addr, SocketAddr
from pilot._fast.errors import PilotError
from pilot._fast.packet import Packet as CompiledPacket
from pilot._fast.packet import PacketError
from pilot._fast.seal import Session, Verdict
from tests.core.scripted import ScriptedPeer, Talk, accepted, dialed
from tests.core.virtual import Echo, Gate, Network, VirtualNode, connected
from tests.fuzz import control, exchange, expression, policy, registry, targets_plugins, trust
from tests.fuzz.driver import Target, chunks, joined
from tests.reference import addr, frames, packet, sack
from tests.reference.addr import Address
from tests.reference.packet import ACK, CONTROL, DATAGRAM, FIN, RST, SYN, Packet

KEY = bytes(range(32))


# ---- codecs ---------------------------------------------------------------------------------------------------------


def run_addr(data: bytes) -> None:
    """Bytes and text as addresses: the same answer as the reference, and only `ValueError`."""
    assert Addr.from_bytes(data).pack() == addr.unpack_untrusted(data).pack()
    text = data.decode("utf-8", "replace")
    for compiled, plain in ((Addr.parse, addr.parse_untrusted), (SocketAddr.parse, addr.parse_socket_untrusted)):
        try:
            expected = plain(text) is not None
        except ValueError:
            expected = False
        try:
            got = compiled(text) is not None
        except ValueError:
            got = False
        assert got is expected


def addr_seeds() -> list[bytes]:
    return [b"0:0000.0000.0001", b"65535:FFFF.0000.0001", b"1:0001.F291.0004:1000", bytes(6)]


def run_packet(data: bytes) -> None:
    """An inner packet: accepted or refused exactly as the reference does."""
    try:
        expected: bytes | None = packet.decode_untrusted(data).encode()
    except packet.PacketError:
        expected = None
    try:
        got: bytes | None = CompiledPacket.decode_untrusted(data).encode()
    except PacketError:
        got = None
    assert got == expected


def some_packets() -> list[Packet]:
    """One of every kind, from node 2 to node 1."""
    ends = {"source": Address(0, 2), "destination": Address(0, 1)}
    stream = {**ends, "source_port": 50001, "destination_port": 7, "window": 512}
    return [
        Packet(**stream, flags=SYN, seq=0),
        Packet(**stream, flags=SYN | ACK, seq=0, ack=1),
        Packet(**stream, flags=ACK, seq=1, ack=1),
        Packet(**stream, flags=ACK, seq=1, ack=1, payload=b"hello"),
        Packet(**stream, flags=ACK, seq=30, ack=1, payload=bytes(100)),
        Packet(**stream, flags=ACK, seq=1, ack=1, payload=sack.encode([(1, 5), (9, 20)])),
        Packet(**stream, flags=FIN, seq=6),
        Packet(**stream, flags=FIN | ACK, seq=6, ack=1),
        Packet(**stream, flags=RST),
        Packet(**ends, protocol=DATAGRAM, source_port=9, destination_port=10, payload=b"datagram"),
        Packet(**ends, protocol=CONTROL, source_port=3, seq=1, payload=b"ping"),
        Packet(**ends, protocol=CONTROL, flags=ACK, destination_port=3, seq=1, ack=2, payload=b"pong"),
    ]


def packet_seeds() -> list[bytes]:
    return [p.encode() for p in some_packets()]


def run_session(data: bytes) -> None:
    """A sealed frame: only what the reference opens is accepted, and nothing twice."""
    session = Session(KEY, 1, 2, b"abcd", 0.0, authenticated=True, peer_x25519=bytes(32))
    try:
        expected: bytes | None = frames.open_untrusted(KEY, data).plaintext
    except frames.FrameError:
        expected = None
    verdict, inner = session.open_untrusted(data)
    if data[:4] == frames.PILS:
        assert (verdict == Verdict.ACCEPT) is (expected is not None)
    if verdict == Verdict.ACCEPT:
        assert expected is None or inner == expected
        assert session.open_untrusted(data)[0] == Verdict.REPLAY


def session_seeds() -> list[bytes]:
    return [frames.seal(KEY, 2, b"abcd", n, inner) for n, inner in enumerate([b"", b"x" * 34, packet_seeds()[0]])]


def close(network: Network) -> None:
    """What a node does at its end; a datapath that is merely forgotten keeps its open streams for ever."""
    for node in network.nodes:
        node.datapath.close()


# ---- a datapath -----------------------------------------------------------------------------------------------------


class Stage:
    """Node 1 with a listener, an open stream each way, a private gate that trusts node 2, and a stranger, node 3."""

    def __init__(self) -> None:
        self.network = Network(0, delay=0.0)
        self.network.logging = False
        self.node = VirtualNode(self.network, 1)
        self.node.mux.gate = Gate(2)
        self.node.mux.on_datagram = lambda *args: None
        self.node.datapath.beacon = ("192.0.2.1", 9001)
        self.node.listen(7, owner=Echo())
        self.peer = ScriptedPeer(self.node, 2)
        self.stranger = ScriptedPeer(self.node, 3)
        self.talk = self.peer.open(7)
        self.dialed = self.peer.accept(self.node.dial(self.peer, 80))

    def healthy(self) -> None:
        """After whatever came: timers run, a fresh stream works, the books balance."""
        self.network.run(3.0)
        datapath = self.node.datapath
        assert datapath.next_deadline() > self.network.now - 1.0
        assert len(self.node.mux.all_streams()) <= 300
        for stream in self.node.mux.all_streams():
            stats = stream.stats()
            assert 0 <= stats.in_flight <= 1 << 21
            assert stats.acknowledged <= stats.written
            assert 0 <= stats.unread <= stats.received
        assert 0 <= self.node.mux.budget.used <= 1 << 30
        self.peer.peer.address = self.peer.address
        self.peer.peer.relay = False
        self.network.run(5.0)
        self.peer.inbox.clear()
        fresh = self.peer.open(7, source_port=60_000)
        fresh.data(b"still alive")
        answers = b"".join(s.payload for s in fresh.wait(0.1))
        assert answers == b"still alive", answers
        close(self.network)


def run_datagram(data: bytes) -> None:
    """Raw datagrams from the peer's address, a stranger's and the beacon's, against a live datapath."""
    stage = Stage()
    for chunk in chunks(data):
        origin = (stage.peer.address, stage.stranger.address, ("192.0.2.1", 9001))[len(chunk) % 3]
        stage.node.port.deliver(chunk, origin, stage.network.now)
        stage.network.settle()
    stage.healthy()


def datagram_seeds() -> list[bytes]:
    sealed = session_seeds()
    raw = [
        *sealed,
        b"\x06\x00\x00\x00\x02" + sealed[1],
        b"\x02\x04\xc0\x00\x02\x01\x12\x34",
        b"\x0a\x01",
        b"PILA" + bytes(132),
        b"PILK" + bytes(36),
        b"PILP",
        b"PILT" + packet_seeds()[0],
        b"",
        b"\x06",
    ]
    return [joined([r]) for r in raw] + [joined(raw)]


def run_inner(data: bytes) -> None:
    """Inner packets, well sealed, half of them with their checksum put right, in all states of two streams."""
    stage = Stage()
    for chunk in chunks(data):
        sender = stage.stranger if len(chunk) % 16 == 15 else stage.peer
        sender.batch(with_checksum(chunk) if chunk[-1:] != b"\xee" else chunk)
        if len(chunk) % 8 == 7:
            stage.network.run(0.3)
    stage.healthy()


def inner_seeds() -> list[bytes]:
    encoded = packet_seeds()
    return [joined([p]) for p in encoded] + [
        joined(encoded),
        joined(encoded[3:6] * 4),
        joined(encoded[6:] + encoded[:3]),
    ]


def with_checksum(inner: bytes) -> bytes:
    """The same bytes with length and CRC as they should be, so that mutations get past the header check."""
    if len(inner) < 34:
        return inner
    fixed = bytearray(inner)
    fixed[0] = 0x10 | (fixed[0] & 15)
    fixed[2:4] = (len(fixed) - 34).to_bytes(2, "big")
    fixed[30:34] = bytes(4)
    fixed[30:34] = zlib.crc32(fixed).to_bytes(4, "big")
    return bytes(fixed)


# ---- streams --------------------------------------------------------------------------------------------------------


def run_sack(data: bytes) -> None:
    """Acknowledgments with any payload while a kilobyte is in flight: nothing made up is acknowledged."""
    network, talk = dialed()
    stream = talk.core
    for _ in range(10):
        stream.write(bytes(100))
        network.settle()
    isn = talk.theirs(0)
    received = 0
    for chunk in chunks(data):
        payload = relocated(chunk, isn)
        before = stream.stats().received
        talk.peer.send(talk.make(ACK, talk.at(received), isn, payload))
        got = stream.stats().received - before
        assert got in (0, len(payload)), got
        received += got
        stats = stream.stats()
        assert stats.acknowledged == 0
        assert 0 <= stats.in_flight <= 1000
    talk.ack(1000)
    assert stream.unacknowledged == 0
    assert talk.peer.peer.in_flight == 0
    close(network)


def relocated(payload: bytes, isn: int) -> bytes:
    """Edges of a SACK are written in stream offsets in the seeds; the wire wants them from the ISN."""
    if payload[:4] != b"SACK" or len(payload) < 13:
        return payload
    edges = payload[5 : 5 + (len(payload) - 5) // 4 * 4]
    moved = b"".join(
        ((int.from_bytes(edges[i : i + 4], "big") + isn) % 2**32).to_bytes(4, "big") for i in range(0, len(edges), 4)
    )
    return payload[:5] + moved + payload[5 + len(moved) :]


def sack_seeds() -> list[bytes]:
    blocks = [[(100, 200)], [(100, 200), (300, 400)], [(0, 1000)], [(900, 1000), (700, 800), (500, 600), (100, 300)]]
    return [joined([sack.encode(b)]) for b in blocks] + [
        joined([sack.encode(b) for b in blocks]),
        joined([b"SACK" * 9]),
    ]


PATTERN = bytes((n * n + n // 251) % 256 for n in range(1 << 16))


class Script:
    """Bytes as the doings of a hostile or unlucky peer on one stream: op, two-byte argument, one-byte length."""

    def __init__(self, talk: Talk) -> None:
        self.talk = talk
        self.stream = talk.core
        self.read = 0
        self.written = 0

    def step(self, op: int, argument: int, length: int) -> None:
        talk, stream = self.talk, self.stream
        match op % 13:
            case 0 | 1:
                talk.data(PATTERN[argument : argument + length * 4], offset=argument)
            case 2:
                talk.ack(min(argument, self.sent_by_us()))
            case 3:
                talk.ack(min(talk.got, self.sent_by_us()), blocks=[(argument, argument + length + 1)])
            case 4:
                self.write(argument)
            case 5:
                self.take(length * 100)
            case 6:
                talk.peer.network.run(length / 50)
            case 7:
                talk.ack(window=argument % 600)
            case 8 if length > 200:
                talk.fin(argument, flags=FIN if length % 2 else FIN | ACK)
            case 9:
                talk.syn()
            case 10:
                talk.peer.peer.segment_bytes = max(1, argument % 9000)
            case 11 if length > 250:
                stream.close()
            case 12:
                talk.peer.send(
                    talk.make(argument & 15 & ~(SYN | RST), talk.at(argument), talk.theirs(length), b"?" * 3, 9)
                )
            case _:
                talk.data(PATTERN[self.read : self.read + length], offset=self.read)

    def sent_by_us(self) -> int:
        return self.stream.written

    def write(self, size: int) -> None:
        try:
            self.written += self.stream.write(PATTERN[:size])
        except (PilotError, TimeoutError):
            return

    def take(self, size: int) -> None:
        try:
            data = self.stream.read(size)
        except (PilotError, TimeoutError):
            return
        if data:
            self.read += len(data)


def run_script(data: bytes) -> None:
    """A script on an accepted and on a dialed stream: it never crashes, and its books balance to the end."""
    for make in (accepted, dialed):
        network, talk = make()
        network.logging = False
        script = Script(talk)
        for at in range(0, min(len(data) - 3, 400), 4):
            script.step(data[at], int.from_bytes(data[at + 1 : at + 3], "big"), data[at + 3])
            stats = script.stream.stats()
            assert stats.acknowledged <= stats.written == script.written
            assert 0 <= stats.in_flight <= stats.written - stats.acknowledged
            assert stats.received - stats.unread == script.read or stats.unread == 0
        network.run(400.0)
        assert talk.peer.peer.in_flight == 0 or script.stream.error() is None
        for stream in talk.peer.target.mux.all_streams():
            stream.abort()
        assert talk.peer.peer.in_flight == 0
        assert talk.peer.target.mux.live == 0
        close(network)


def script_seeds() -> list[bytes]:
    rng = random.Random(1)
    ordered = b"".join(bytes([0, *(n * 100).to_bytes(2, "big"), 25]) for n in range(20))
    holes = b"".join(bytes([1, *(n * 200).to_bytes(2, "big"), 25, 5, 0, 0, 9]) for n in range(20))
    talking = b"".join(bytes([4, 8, 0, 0, 6, 0, 0, 5, 2, *(n * 999).to_bytes(2, "big"), 0]) for n in range(20))
    return [ordered, holes, talking, ordered + holes + talking, rng.randbytes(400), rng.randbytes(400)]


def run_wire(data: bytes) -> None:
    """Two live nodes on a wire that damages, drops, repeats, cuts and delays datagrams as the input says."""
    network, first, second = connected(len(data))
    network.logging = False
    wire = Wire(network, data)
    original = network.send
    network.send = wire.send  # type: ignore[method-assign]
    wire.pass_on = original
    payload = PATTERN[:30_000]
    got = bytearray()
    back = bytearray()
    sent = sent_back = 0

    def step() -> bool:
        nonlocal sent, sent_back
        sent += first.write(payload, sent) if sent < len(payload) else 0
        sent_back += second.write(payload, sent_back) if sent_back < len(payload) else 0
        while chunk := second.read(1 << 20):
            got.extend(chunk)
        while chunk := first.read(1 << 20):
            back.extend(chunk)
        return len(got) == len(back) == len(payload)

    assert network.run(300.0, step), (len(got), len(back), first, second)
    assert bytes(got) == bytes(back) == payload
    close(network)


class Wire:
    """Each byte of the input decides the fate of one datagram; when it is used up the wire is clean.

    At most two in a row of each end are lost: where no acknowledgment passes for a minute, a stream may well end.
    """

    def __init__(self, network: Network, data: bytes) -> None:
        self.network = network
        self.fates = list(data[:2000])
        self.kept: list[tuple[bytes, Any, Any]] = []
        self.pass_on: Any = None
        self.gone: dict[Any, int] = {}

    def send(self, data: bytes, source: Any, target: Any) -> None:
        fate = self.fates.pop() if self.fates else 255
        gone = self.gone.get(source, 0) + 1 if fate % 16 in (0, 1, 3, 4, 5, 6) else 0
        if gone > 2:
            fate, gone = 7, 0
        self.gone[source] = gone
        match fate % 16:
            case 0 | 1:
                return
            case 2:
                self.pass_on(data, source, target)
            case 3:
                at = fate * 7 % len(data)
                data = data[:at] + bytes([data[at] ^ (fate | 1)]) + data[at + 1 :]
            case 4:
                data = data[: fate * len(data) // 256]
            case 5:
                data = data + bytes(fate)
            case 6:
                self.kept.append((data, source, target))
                return
            case 7 if self.kept:
                for kept in self.kept:
                    self.pass_on(*kept)
                self.kept.clear()
            case _:
                pass
        self.pass_on(data, source, target)


def wire_seeds() -> list[bytes]:
    rng = random.Random(2)
    return [b"", bytes(50), bytes(range(256)), rng.randbytes(100), rng.randbytes(1000), b"\x06" * 40 + b"\x07" * 4]


def run_pair(data: bytes) -> None:
    """The input is both what two ends write and in which portions they write, read and wait; it arrives unharmed."""
    network, first, second = connected(len(data))
    network.logging = False
    whole = data[:8000] * 4
    ends = [End(first, whole), End(second, whole[::-1])]
    for at, byte in enumerate(data[:600]):
        end, size = ends[byte >> 7], (byte & 15) * (1, 40, 700)[at % 3]
        match byte >> 4 & 7:
            case 0 | 1 | 2:
                end.write(size)
            case 3 | 4:
                end.read(size + 1)
            case 5:
                network.run(size / 1000)
            case 6:
                end.read_into(size + 1)
            case _:
                network.settle()
    assert network.run(300.0, lambda: ends[0].step() & ends[1].step()), (first, second)
    assert bytes(ends[0].got) == ends[1].whole
    assert bytes(ends[1].got) == ends[0].whole
    close(network)


class End:
    """One end of a stream: what it has to write, what it has read."""

    def __init__(self, stream: Any, whole: bytes) -> None:
        self.stream = stream
        self.whole = whole
        self.sent = 0
        self.got = bytearray()

    def write(self, size: int) -> None:
        self.sent += self.stream.write(self.whole[self.sent : self.sent + size])

    def read(self, size: int) -> None:
        self.got += self.stream.read(size) or b""

    def read_into(self, size: int) -> None:
        room = bytearray(size)
        self.got += room[: max(0, self.stream.read_into(room))]

    def step(self) -> bool:
        self.write(len(self.whole))
        self.read(1 << 20)
        return self.sent == len(self.whole) == len(self.got)


def pair_seeds() -> list[bytes]:
    rng = random.Random(3)
    looks_like_sack = sack.encode([(1, 5), (9, 20)])
    return [b"", b"short", looks_like_sack * 20, bytes(range(256)) * 4, rng.randbytes(500), rng.randbytes(8000)]


TARGETS = {
    target.name: target
    for target in (
        Target("addr", "addresses as bytes and text", run_addr, addr_seeds),
        Target("packet", "inner packet header", run_packet, packet_seeds),
        Target("session", "sealed frames", run_session, session_seeds),
        Target("datagram", "raw datagrams into a datapath", run_datagram, datagram_seeds),
        Target("inner", "sealed inner packets into a datapath", run_inner, inner_seeds),
        Target("sack", "acknowledgment payloads", run_sack, sack_seeds),
        Target("script", "a stream driven by a hostile peer", run_script, script_seeds),
        Target("wire", "a live pair on a damaging wire", run_wire, wire_seeds),
        Target("pair", "bytes in any portions through a live pair", run_pair, pair_seeds),
        *control.TARGETS,
        *exchange.TARGETS,
        *registry.TARGETS,
        *targets_plugins.TARGETS,
        *policy.TARGETS,
        *expression.TARGETS,
        *trust.TARGETS,
    )
}
