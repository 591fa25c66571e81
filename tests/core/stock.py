"""A plain-Python model of the streams of 1.18.0, limits and defects included, as streams.md has them (test support)."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

from tests.core.scripted import signed
from tests.core.virtual import Address, Network, VirtualNode, address_of
from tests.reference import frames, packet, sack
from tests.reference.addr import Address as Overlay
from tests.reference.packet import ACK, FIN, RST, STREAM, SYN, Packet

SEGMENT = 1152
OLD_SEGMENT = 4096  # still used in its congestion arithmetic
SLOTS = 512
REORDER = 128
OUTSTANDING = 128
QUICK = 32
SEQ = 1 << 32

OPENING, ESTABLISHED, FIN_WAIT, TIME_WAIT, CLOSED = "SYN_SENT", "ESTABLISHED", "FIN_WAIT", "TIME_WAIT", "CLOSED"


class StockNode:
    """A stock daemon with one peer, a compiled datapath. It is its own scheduler entry in the network."""

    def __init__(self, target: VirtualNode, node: int = 2) -> None:
        self.network: Network = target.network
        self.target = target
        self.node = node
        self.address: Address = address_of(node)
        self.network.ports[self.address] = self
        self.network.nodes.append(self)  # type: ignore[arg-type]
        self.scheduler = self
        self.key = self.network.random.randbytes(32)
        self.prefix = self.network.random.randbytes(4)
        self.counter = 0
        self.streams: dict[tuple[int, int], StockStream] = {}
        self.listening: set[int] = set()
        self.accepted: list[StockStream] = []
        self.frozen_until = 0.0
        self.stalled: StockStream | None = None
        self.backlog: deque[Packet] = deque()
        self.next_port = 49152
        self.install()

    def install(self) -> None:
        from pilot._fast.seal import Session

        self.network.keys[frozenset((self.node, self.target.node))] = self.key
        peer = self.target.datapath.add_peer(self.node)
        peer.address = self.address
        prefix = self.network.random.randbytes(4)
        session = Session(
            self.key,
            self.target.node,
            self.node,
            prefix,
            self.network.now,
            authenticated=True,
            peer_x25519=bytes(32),
        )
        self.target.datapath.install_session(peer, session, self.network.now)

    @property
    def now(self) -> float:
        return self.network.now

    def dial(self, port: int) -> StockStream:
        stream = StockStream(self, self.next_port, port)
        self.next_port += 1
        self.streams[stream.key] = stream
        stream.dial()
        return stream

    def send(self, p: Packet) -> None:
        self.counter += 1
        frame = frames.seal(self.key, self.node, self.prefix, self.counter, p.encode())
        self.network.send(frame, self.address, self.target.address)

    def deliver(self, data: bytes, source: Address, now: float) -> None:
        opened = frames.open_untrusted(self.key, data)
        self.backlog.append(packet.decode_untrusted(opened.plaintext))
        self.work()

    def work(self) -> None:
        """The one packet-handling loop; a stalled reader freezes it, and with it every stream of the node."""
        while self.backlog and self.now >= self.frozen_until:
            p = self.backlog.popleft()
            if p.protocol == STREAM:
                self.dispatch(p)

    def dispatch(self, p: Packet) -> None:
        key = (p.destination_port, p.source_port)
        stream = self.streams.get(key)
        if p.flags & SYN and not p.flags & ACK:
            if stream is not None and stream.state == ESTABLISHED and stream.held_fin is None:
                stream.emit(SYN | ACK, seq=0, ack=stream.rcv)
            elif p.destination_port in self.listening:
                stream = StockStream(self, *key)
                self.streams[key] = stream
                self.accepted.append(stream)
                stream.accept(p)
            else:
                StockStream(self, *key).emit(RST, seq=0, ack=0, window=0)
        elif stream is not None:
            stream.on_packet(p)

    # ---- the scheduler face of the network ----------------------------------------------------------------------

    @property
    def deadline(self) -> float:
        at = min((stream.deadline for stream in self.streams.values()), default=math.inf)
        return min(at, self.frozen_until) if self.frozen_until > self.now else at

    def run(self, node: object) -> None:
        if self.stalled is not None and self.now >= self.frozen_until:
            self.thaw()
        for stream in list(self.streams.values()):
            if stream.deadline <= self.now:
                stream.on_timer()

    def freeze(self, stream: StockStream, p: Packet) -> None:
        self.frozen_until = self.now + 1.0
        self.stalled = stream
        stream.waiting = p

    def thaw(self) -> None:
        stream, self.stalled, self.frozen_until = self.stalled, None, 0.0
        if stream is not None:
            stream.retry()
        self.work()


class StockStream:
    """One connection: whole-segment reorder buffer, NewReno with one repair per ACK, no window updates, FIN once."""

    def __init__(self, node: StockNode, local_port: int, remote_port: int) -> None:
        self.node = node
        self.key = (local_port, remote_port)
        self.state = CLOSED
        self.timers: dict[str, float] = {}
        # receiving
        self.rcv = 0
        self.queue: deque[bytes] = deque()
        self.reorder: dict[int, bytes] = {}
        self.waiting: Packet | None = None
        self.quick = QUICK
        self.unacknowledged = 0
        self.held_fin: int | None = None
        self.ended = False
        self.reset = False
        self.received = bytearray()
        # sending: ISN 0, so that the first byte is 1
        self.una = self.nxt = 1
        self.pending = bytearray()
        self.segments: list[dict[str, Any]] = []
        self.slots = 0
        self.cwnd = 40960
        self.ssthresh = 512 * 1024
        self.duplicates = 0
        self.recovery: int | None = None
        self.srtt = self.rttvar = 0.0
        self.rto = 1.0
        self.timed_out_at = 0.0
        self.probes = 0
        self.closing = False
        self.fin_sent = False
        self.syns = 0
        self.keepalives = 0
        self.active_at = node.now
        self.reading = True

    @property
    def deadline(self) -> float:
        return min(self.timers.values(), default=math.inf)

    @property
    def window(self) -> int:
        return SLOTS - len(self.queue)

    def emit(self, flags: int, *, seq: int, ack: int, window: int | None = None, payload: bytes = b"") -> None:
        self.node.send(
            Packet(
                Overlay(0, self.node.node),
                Overlay(0, self.node.target.node),
                STREAM,
                flags,
                self.key[0],
                self.key[1],
                seq % SEQ,
                ack % SEQ,
                self.window if window is None else window,
                payload,
            )
        )

    # ---- opening --------------------------------------------------------------------------------------------------

    def dial(self) -> None:
        self.state = OPENING
        self.on_syn_timer()

    def on_syn_timer(self) -> None:
        if self.syns == 8:
            self.remove(reset=True)
            return
        self.syns += 1
        self.emit(SYN, seq=0, ack=0)
        self.timers["syn"] = self.node.now + min(8.0, 0.25 * 2 ** (self.syns - 1))

    def accept(self, syn: Packet) -> None:
        self.rcv = (syn.seq + 1) % SEQ
        self.slots = syn.window
        self.establish()
        self.emit(SYN | ACK, seq=0, ack=self.rcv)

    def establish(self) -> None:
        self.state = ESTABLISHED
        self.active_at = self.node.now
        self.timers = {"sweep": self.node.now + 15.0}

    # ---- packets ----------------------------------------------------------------------------------------------------

    def on_packet(self, p: Packet) -> None:
        if p.flags & SYN:
            if self.state == OPENING:  # whatever it acknowledges
                self.rcv = (p.seq + 1) % SEQ
                self.slots = p.window
                self.establish()
                self.emit(ACK, seq=0, ack=self.rcv)
                self.transmit()
        elif p.flags & FIN:
            self.on_fin(p)
        elif p.flags & RST:
            self.remove(reset=True)
        elif p.flags & ACK and self.state in (ESTABLISHED, FIN_WAIT):
            self.on_ack(p)

    def on_fin(self, p: Packet) -> None:
        if self.state == FIN_WAIT:
            self.emit(FIN | ACK, seq=self.nxt, ack=p.seq + 1, window=0)
            self.end()
        elif self.state == ESTABLISHED:
            if signed(p.seq - self.rcv) > 0:
                self.held_fin = p.seq
                self.timers["held"] = self.node.now + 15.0
                self.acknowledge()
            else:
                self.take_fin(p.seq)

    def take_fin(self, seq: int) -> None:
        self.emit(FIN | ACK, seq=self.nxt, ack=seq + 1, window=0)
        self.end()

    def end(self) -> None:
        """There is no half close: whatever was still to be sent is gone."""
        self.state = TIME_WAIT
        self.ended = True
        self.segments.clear()
        self.pending.clear()
        self.timers = {"gone": self.node.now + 10.0}

    def remove(self, *, reset: bool = False) -> None:
        self.state = CLOSED
        self.reset = reset
        self.ended = True
        self.timers = {}
        if self.node.streams.get(self.key) is self:
            del self.node.streams[self.key]

    def on_ack(self, p: Packet) -> None:
        self.active_at = self.node.now
        self.keepalives = 0
        if self.held_fin is not None:
            self.timers["held"] = self.node.now + 15.0
        wider = p.window > self.slots
        if p.window:
            self.timers.pop("probe", None)
            self.probes = 0
        changed, self.slots = p.window != self.slots, p.window
        blocks = sack.decode_untrusted(p.payload)
        self.on_acknowledgment(p, blocks, changed)
        if p.payload and blocks is None and self.state == ESTABLISHED:
            self.on_data(p)
        if wider or not p.payload or blocks is not None:
            self.transmit()

    # ---- receiving --------------------------------------------------------------------------------------------------

    def on_data(self, p: Packet) -> None:
        ahead = signed(p.seq - self.rcv)
        if ahead == 0:
            if len(self.queue) >= SLOTS:
                self.node.freeze(self, p)
                return
            self.push(p.payload)
        elif ahead > 0 and p.seq not in self.reorder and len(self.reorder) < REORDER:
            self.reorder[p.seq] = p.payload
        self.after_data()

    def push(self, payload: bytes) -> None:
        self.queue.append(payload)
        self.rcv = (self.rcv + len(payload)) % SEQ
        while self.rcv in self.reorder and len(self.queue) < SLOTS:
            piece = self.reorder.pop(self.rcv)
            self.queue.append(piece)
            self.rcv = (self.rcv + len(piece)) % SEQ
        for start in [start for start in self.reorder if signed(start - self.rcv) < 0]:
            del self.reorder[start]
        if self.reading:
            self.read()

    def retry(self) -> None:
        """The second in which the packet loop waited is over: room by now, or the segment is dropped."""
        p, self.waiting = self.waiting, None
        if p is None or self.state != ESTABLISHED:
            return
        if len(self.queue) < SLOTS and p.seq == self.rcv:
            self.push(p.payload)
        self.acknowledge()

    def after_data(self) -> None:
        self.unacknowledged += 1
        if self.held_fin is not None and signed(self.held_fin - self.rcv) <= 0:
            self.take_fin(self.held_fin)
        elif self.reorder or self.unacknowledged >= 2 or self.quick > 0:
            if not self.reorder and self.unacknowledged == 1:
                self.quick -= 1
            self.acknowledge()
        elif "ack" not in self.timers:
            self.timers["ack"] = self.node.now + 0.005

    def acknowledge(self) -> None:
        self.unacknowledged = 0
        self.timers.pop("ack", None)
        self.emit(ACK, seq=self.nxt, ack=self.rcv, payload=self.sack())

    def sack(self) -> bytes:
        """The four highest ranges, ascending."""
        ranges: list[list[int]] = []
        for start in sorted(self.reorder, key=lambda at: signed(at - self.rcv)):
            end = (start + len(self.reorder[start])) % SEQ
            if ranges and signed(start - ranges[-1][1]) <= 0:
                if signed(end - ranges[-1][1]) > 0:
                    ranges[-1][1] = end
            else:
                ranges.append([start, end])
        return sack.encode([(a, b) for a, b in ranges[-4:]]) if ranges else b""

    def read(self, most: int = 1 << 30) -> None:
        """The application takes up to `most` segments. Nothing is told to the peer."""
        while self.queue and most:
            self.received += self.queue.popleft()
            most -= 1
        if self.node.stalled is self:
            self.node.thaw()

    # ---- sending ----------------------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        self.pending += data
        self.transmit()

    def transmit(self) -> None:
        if self.state != ESTABLISHED or self.fin_sent:
            return
        while self.pending and self.may_send():
            size = min(SEGMENT, len(self.pending))
            short = any(len(s["data"]) < SEGMENT and not s["held"] for s in self.segments)
            if size < SEGMENT and short and not self.closing and self.node.now < self.timers.get("nagle", math.inf):
                self.timers.setdefault("nagle", self.node.now + 0.04)
                break
            data = bytes(self.pending[:size])
            del self.pending[:size]
            segment = {"seq": self.nxt, "data": data, "held": False, "sent": self.node.now, "times": 0, "first": True}
            self.segments.append(segment)
            self.nxt = (self.nxt + size) % SEQ
            self.transmit_segment(segment)
        if self.pending and self.slots == 0 and "probe" not in self.timers:
            self.timers["probe"] = self.node.now + 0.5
        if self.closing and not self.pending and not self.segments:
            self.send_fin()

    def may_send(self) -> bool:
        flight = sum(len(s["data"]) for s in self.segments if not s["held"])
        return len(self.segments) < min(OUTSTANDING, self.slots) and flight < min(self.cwnd, self.slots * SEGMENT)

    def transmit_segment(self, segment: dict[str, Any]) -> bool:
        """False when it was the eighth time in vain: the connection is reset."""
        if segment["times"] == 8:
            self.emit(RST, seq=0, ack=0, window=0)
            self.remove(reset=True)
            return False
        segment["times"] += 1
        segment["sent"] = self.node.now
        self.unacknowledged = 0
        self.timers.pop("ack", None)
        self.emit(ACK, seq=segment["seq"], ack=self.rcv, payload=segment["data"])
        self.arm()
        return True

    def arm(self) -> None:
        """The retransmission check runs on a tick of 100 ms."""
        self.timers.pop("rto", None)
        waiting = [s["sent"] for s in self.segments if not s["held"]]
        if waiting or self.segments:
            due = max(min(waiting or [self.segments[0]["sent"]]), self.timed_out_at) + self.rto
            self.timers["rto"] = max(self.node.now + 0.001, math.ceil(due * 10) / 10)

    def on_acknowledgment(self, p: Packet, blocks: list[tuple[int, int]] | None, window_changed: bool) -> None:
        for left, right in blocks or ():
            for s in self.segments:
                if signed(s["seq"] - right) < 0 and signed(s["seq"] + len(s["data"]) - left) > 0:
                    s["held"] = True
        advance = signed(p.ack - self.una)
        if advance > 0:
            self.on_new_ack(p.ack, advance)
        elif advance == 0 and self.segments and (blocks is not None or (not p.payload and not window_changed)):
            self.duplicates += 1
            if self.recovery is not None:
                self.cwnd += OLD_SEGMENT
            elif self.duplicates == 3:
                self.recovery = self.nxt
                flight = sum(len(s["data"]) for s in self.segments)
                self.ssthresh = max(flight // 2, 8192)
                self.cwnd = self.ssthresh + 3 * OLD_SEGMENT
                self.repair()

    def on_new_ack(self, ack: int, advance: int) -> None:
        self.una = ack
        self.duplicates = 0
        sampled = False
        while self.segments and signed(self.segments[0]["seq"] + len(self.segments[0]["data"]) - ack) <= 0:
            s = self.segments.pop(0)
            if s["times"] == 1 and not sampled:
                sampled = True
                self.sample(self.node.now - s["sent"])
        for s in self.segments:
            s["sent"] = max(s["sent"], self.node.now) if not s["held"] else s["sent"]
        if self.recovery is not None:
            if signed(self.recovery - ack) <= 0:
                self.recovery = None
                self.cwnd = max(self.ssthresh, 2 * SEGMENT)
            else:
                self.cwnd = max(OLD_SEGMENT, self.cwnd - advance + OLD_SEGMENT)
                self.repair()
        elif self.cwnd < self.ssthresh:
            self.cwnd = min(1 << 20, self.cwnd + min(advance, 8192))
        else:
            self.cwnd = min(1 << 20, self.cwnd + max(1, 4096 * min(advance, 4096) // self.cwnd))
        self.arm()

    def sample(self, rtt: float) -> None:
        if self.srtt == 0.0:
            self.srtt, self.rttvar = rtt, rtt / 2
        else:
            self.rttvar += (abs(self.srtt - rtt) - self.rttvar) / 4
            self.srtt += (rtt - self.srtt) / 8
        self.rto = min(10.0, max(0.2, self.srtt + max(0.01, 4 * self.rttvar)))

    def repair(self) -> None:
        """One segment: the first that is not held."""
        for s in self.segments:
            if not s["held"]:
                self.transmit_segment(s)
                return

    def on_rto(self) -> None:
        """One segment per timeout."""
        if not self.segments:
            return
        self.timed_out_at = self.node.now
        if self.segments[0]["held"]:
            for s in self.segments:
                s["held"] = False
        self.ssthresh = max(sum(len(s["data"]) for s in self.segments) // 2, 8192)
        self.cwnd = OLD_SEGMENT
        self.recovery = self.nxt
        self.rto = min(10.0, self.rto * 2)
        self.repair()

    # ---- closing and timers -------------------------------------------------------------------------------------

    def close(self) -> None:
        self.closing = True
        self.timers.setdefault("linger", self.node.now + 5.0)
        self.transmit()

    def send_fin(self) -> None:
        if self.fin_sent or self.state != ESTABLISHED:
            return
        self.fin_sent = True
        self.emit(FIN, seq=self.nxt, ack=0, window=0)
        self.state = FIN_WAIT
        for name in ("linger", "sweep", "probe", "ack"):
            self.timers.pop(name, None)
        self.timers["gone"] = self.node.now + 10.0

    def on_timer(self) -> None:
        for name in [name for name, at in self.timers.items() if at <= self.node.now]:
            if self.state == CLOSED:
                return
            self.timers.pop(name, None)
            getattr(self, f"on_{name}_timer")()

    def on_ack_timer(self) -> None:
        self.quick = QUICK
        self.acknowledge()

    def on_rto_timer(self) -> None:
        self.on_rto()
        if self.state != CLOSED:
            self.arm()

    def on_nagle_timer(self) -> None:
        self.timers["nagle"] = self.node.now
        self.transmit()
        self.timers.pop("nagle", None)

    def on_probe_timer(self) -> None:
        if self.slots or not self.pending:
            return
        self.probes += 1
        self.emit(ACK, seq=self.nxt, ack=self.rcv)
        if self.probes == 30:
            self.emit(RST, seq=0, ack=0, window=0)
            self.remove(reset=True)
            return
        self.timers["probe"] = self.node.now + min(30.0, 0.5 * 2**self.probes)

    def on_linger_timer(self) -> None:
        self.send_fin()

    def on_held_timer(self) -> None:
        if self.held_fin is not None and self.state == ESTABLISHED:
            self.take_fin(self.held_fin)

    def on_gone_timer(self) -> None:
        self.remove()

    def on_sweep_timer(self) -> None:
        self.timers["sweep"] = self.node.now + 15.0
        if self.node.now - self.active_at > 60.0:
            if self.keepalives == 3:
                self.send_fin()
                return
            self.keepalives += 1
            self.emit(ACK, seq=self.nxt, ack=self.rcv)
