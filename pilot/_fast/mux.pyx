"""Virtual ports: the stream table, listeners, SYN gates and buckets, datagrams, and the flush
that serves streams in turn (_fast, L7).

Source: streams.md sections 2, 5, 6, 12, 13; DESIGN section 4 (the trust gate stands before everything that answers).
"""
import logging
from typing import NamedTuple

from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.ref cimport PyObject
from libc.math cimport INFINITY
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from pilot._fast.addr cimport Addr, new_addr
from pilot._fast.budget cimport Budget, Share
from pilot._fast.egress cimport WAY_CURRENT, Egress
from pilot._fast.packet cimport FLAG_ACK, FLAG_FIN, FLAG_RST, FLAG_SYN, PROTOCOL_DATAGRAM, PROTOCOL_STREAM, packet
from pilot._fast.peer cimport BASE_SEGMENT, Peer
from pilot._fast.receiver cimport Receiver
from pilot._fast.sender cimport Sender
from pilot._fast.stream cimport ESTABLISHED, SYN_SENT, TIME_WAIT, StreamCore
from pilot._fast.stream_packets cimport StreamHost, StreamPackets
from pilot._fast.table cimport Table
from pilot._fast.timers cimport TimerHeap

from pilot._fast.errors import BusyError, ClosedError, InvalidValueError, PathError

log = logging.getLogger("pilot.streams")

FIRST_EPHEMERAL = 49152
MAX_DATAGRAM_PAYLOAD = 65437            # one UDP datagram, encrypted; 9 less when relayed

cdef enum:
    EPHEMERAL_PORTS = 16384
    FLUSH_QUANTUM = 65536               # bytes a stream may send before the next one has its turn
    MAX_SYN_SOURCES = 4096
    SYN_SOURCE_IDLE = 10

cdef uint32_t BROADCAST = 0xFFFFFFFF


class MuxSettings(NamedTuple):
    """Limits of the stream layer; the defaults are those of stock nodes."""

    syn_rate: float = 100.0             # SYNs a second, whole node; also the bucket's size
    source_syn_rate: float = 10.0       # ... of one source node
    source_syn_burst: float = 64.0
    max_streams_per_port: int = 1024
    max_streams: int = 65536
    receive_limit: int = 4 << 20        # bytes buffered for one stream's reader at first ...
    max_receive_limit: int = 32 << 20   # ... and as long as it keeps up
    send_limit: int = 1 << 20           # bytes written and not yet acknowledged, one stream, at first ...
    max_send_limit: int = 32 << 20      # ... and where the path holds more
    congestion: str = "bbr"             # or "cubic"
    memory_budget: int = 1 << 30        # bytes of all receive buffers of the node, and as much of all send buffers
    resets_per_second: float = 10.0     # answers to data for unknown streams


cdef class Bucket:
    """A token bucket on the caller's clock."""

    def __cinit__(self, rate: float, burst: float, now: float) -> None:
        self.rate = rate
        self.burst = self.tokens = burst
        self.refilled_at = now

    cdef bint take(self, double now) noexcept:
        self.tokens += (now - self.refilled_at) * self.rate
        if self.tokens > self.burst:
            self.tokens = self.burst
        self.refilled_at = now
        if self.tokens < 1.0:
            return False
        self.tokens -= 1.0
        return True


cdef class ListenerCore:
    """One bound port. `owner._on_stream(core)` is called for each accepted stream;
    `queued` is the owner's to count down."""

    def __cinit__(self, port: int, backlog: int, owner: object) -> None:
        self.port = port
        self.backlog = backlog
        self.owner = owner

    def taken(self) -> None:
        """The owner has handed one accepted stream on: the accept queue has a place again."""
        if self.queued > 0:
            self.queued -= 1


cdef class Mux(StreamHost):
    """All streams of one node. Owned by `Datapath`, which feeds it packets and drives its timers."""

    def __cinit__(self, Egress egress, TimerHeap timers, clock: object, scheduler: object, settings: object,
                  random: object, now: float) -> None:
        self.egress = egress
        self.timers = timers
        self.clock = clock
        self.scheduler = scheduler
        self.settings = settings
        self.budget = Budget(settings.memory_budget)
        self.send_budget = Budget(settings.memory_budget)
        self.streams = Table()
        self.listeners = {}
        self.touched = []
        self.flushing = []
        self.blocked = []
        self.armed = INFINITY
        self.random_isn = random
        # A restarted node must not walk the ports of its previous life: peers may still hold those streams.
        self.next_port = random.randrange(EPHEMERAL_PORTS)
        self.syn_bucket = Bucket(settings.syn_rate, settings.syn_rate, now)
        self.reset_bucket = Bucket(settings.resets_per_second, settings.resets_per_second, now)
        self.syn_sources = {}
        self.counters = {}
        self.reads_limit = settings.receive_limit
        self.writes_limit = settings.send_limit

    cdef double now(self) noexcept:
        try:
            return self.clock()
        except Exception:
            log.exception("the clock failed")
            return self.armed if self.armed < INFINITY else 0.0

    cdef void count(self, str name) noexcept:
        self.counters[name] = self.counters.get(name, 0) + 1

    # ---- the table -----------------------------------------------------------------------------------------------

    cdef StreamCore find(self, uint16_t local_port, uint32_t network, uint32_t node, uint16_t remote_port):
        cdef PyObject *found = self.streams.get(
            (<uint64_t> network << 32) | node, (<uint64_t> local_port << 16) | remote_port)
        return <StreamCore> found if found != NULL else None

    cdef StreamCore new_stream(self, Peer peer, uint16_t network, uint32_t node, uint16_t local_port,
                               uint16_t remote_network, uint32_t remote_node, uint16_t remote_port):
        cdef StreamCore stream
        if peer.reading is None:
            peer.reading, peer.writing = Share(self.budget), Share(self.send_budget)
        stream = StreamCore(
            self, peer, Sender(self.writes_limit, self.random_isn.getrandbits(32), peer.writing),
            Receiver(self.reads_limit, peer.reading))
        stream.out.most = self.settings.max_send_limit
        stream.into.most = self.settings.max_receive_limit
        stream.local_network, stream.local_node, stream.local_port = network, node, local_port
        stream.remote_network, stream.remote_node, stream.remote_port = remote_network, remote_node, remote_port
        self.streams.put(
            (<uint64_t> remote_network << 32) | remote_node, (<uint64_t> local_port << 16) | remote_port, stream)
        self.last_id += 1
        stream.conn_id = self.last_id
        self.live += 1
        peer.open_streams += 1
        return stream

    cdef void ended(self, StreamPackets stream) noexcept:
        cdef ListenerCore listener
        self.live -= 1
        stream.peer.open_streams -= 1
        if stream.inbound:
            listener = self.listeners.get(stream.local_port)
            if listener is not None and listener.streams > 0:
                listener.streams -= 1

    cdef void remove(self, StreamPackets stream) noexcept:
        cdef uint64_t high = (<uint64_t> stream.remote_network << 32) | stream.remote_node
        cdef uint64_t low = (<uint64_t> stream.local_port << 16) | stream.remote_port
        if self.streams.get(high, low) == <PyObject *> stream:
            self.streams.remove(high, low)

    cdef int free_port(self) except -2:
        """The next ephemeral port no listener holds, or -1. Ports are taken in
        turn, so one is reused as late as possible."""
        cdef int _tried
        cdef uint16_t port
        for _tried in range(EPHEMERAL_PORTS):
            self.next_port = (self.next_port + 1) % EPHEMERAL_PORTS
            port = <uint16_t> (49152 + self.next_port)
            if port not in self.listeners:
                return port
        return -1

    # ---- opening -------------------------------------------------------------------------------------------------

    def dial(self, Peer peer not None, Addr remote not None, port: int) -> StreamCore:
        """A stream in SYN_SENT towards `remote`:`port`; its SYN is on the way (or waits for the session).

        Raises `BusyError` when no local port is free for this destination or the stream table is full.
        """
        cdef StreamCore stream
        cdef int _tried, local = -1
        cdef double now = self.now()
        if self.live >= self.settings.max_streams:
            raise BusyError(f"{self.live} streams are open, the configured limit; close some or raise max_streams")
        for _tried in range(EPHEMERAL_PORTS):
            local = self.free_port()
            if local < 0 or self.find(local, remote.network, remote.node, port) is None:
                break
            local = -1
        if local < 0:
            raise BusyError(f"no ephemeral port is free for {remote}:{port}; close streams to it first")
        stream = self.new_stream(peer, remote.network, self.egress.own_node, local, remote.network, remote.node, port)
        stream.open_active(now)
        peer.last_used = now
        self.egress.flush(now)
        self.finish_turn(now)
        return stream

    cdef bint redial(self, StreamPackets stream) noexcept:
        """Give a stream in SYN_SENT another local port and a new sequence number."""
        cdef int local
        try:
            local = self.free_port()
            if local < 0 or self.find(local, stream.remote_network, stream.remote_node, stream.remote_port) is not None:
                return False
            self.remove(stream)
            stream.local_port = local
            stream.out.iss = self.random_isn.getrandbits(32)
            self.streams.put((<uint64_t> stream.remote_network << 32) | stream.remote_node,
                             (<uint64_t> stream.local_port << 16) | stream.remote_port, stream)
        except Exception:
            log.exception("redial failed")
            return False
        self.count("stale_dials")
        return True

    cdef bint dial_needs_relay(self, Peer peer, double now) noexcept:
        try:
            return self.egress.control.dial_needs_relay(peer, now)
        except Exception:
            log.exception("dial_needs_relay failed")
            return False

    cdef void full_segments_lost(self, Peer peer, double now) noexcept:
        if not peer.is_self and peer.segment > BASE_SEGMENT:
            peer.segment_bytes = BASE_SEGMENT
        try:
            self.egress.control.full_segments_lost(peer, now)
        except Exception:
            log.exception("full_segments_lost failed")

    def listen(self, port: int, backlog: int, owner: object) -> ListenerCore:
        """Bind `port` (0 = an ephemeral one). Raises `BusyError` when it is taken,
        `InvalidValueError` when out of range."""
        if not 0 <= port <= 0xFFFF:
            raise InvalidValueError(f"port {port!r} is not in 0..65535")
        if backlog < 1:
            raise InvalidValueError(f"backlog {backlog!r} must be at least 1")
        if port == 0:
            port = self.free_port()
            if port < 0:
                raise BusyError("no ephemeral port is free; close a listener first")
        if port in self.listeners:
            raise BusyError(f"port {port} is already bound on this node; close that listener first")
        listener = ListenerCore(port, backlog, owner)
        self.listeners[port] = listener
        return listener

    def unlisten(self, ListenerCore listener not None) -> None:
        """Release the port; accepted streams live on. Idempotent."""
        if self.listeners.get(listener.port) is listener:
            del self.listeners[listener.port]

    # ---- packets in ----------------------------------------------------------------------------------------------

    cdef void on_stream_packet(self, const packet *p, Peer peer, double now) noexcept:
        cdef StreamCore stream
        if p.flags & FLAG_SYN and not p.flags & FLAG_ACK:
            self.on_syn(p, peer, now)
            return
        stream = self.find(p.dst_port, p.src_network, p.src_node, p.src_port)
        if stream is not None:
            peer.last_used = now
            stream.on_packet(p, now)
            return
        self.count("unknown_stream")
        # Data for a stream nobody here knows: a restarted node ends it at once instead of letting the
        # peer retransmit for a minute. Never for a bare ACK, FIN or RST; a recently closed stream is
        # still in the table and answers itself.
        if p.length and p.flags & FLAG_ACK and not p.flags & (FLAG_FIN | FLAG_RST | FLAG_SYN):
            if self.admits(peer, p.dst_port) and self.reset_bucket.take(now):
                self.reply_reset(p, peer, now)

    cdef void on_syn(self, const packet *p, Peer peer, double now) noexcept:
        """The gates of streams.md section 6, trust first (DESIGN section 4: a
        stranger learns nothing of a private node)."""
        cdef StreamCore stream = self.find(p.dst_port, p.src_network, p.src_node, p.src_port)
        cdef ListenerCore listener
        if stream is not None:
            if stream.repeats_syn(p, now):
                if stream.phase < TIME_WAIT:
                    stream.on_syn_again(now)
                return
            if stream.phase == SYN_SENT:
                self.reply_reset(p, peer, now)      # no simultaneous open; the dial goes on
                return
        if not self.admits(peer, p.dst_port):
            self.count("syn_rejected")
            self.report_rejected("syn.rejected", p)
            return
        listener = self.listeners.get(p.dst_port)
        if listener is None:
            self.count("syn_refused")
            self.reply_reset(p, peer, now)
            return
        if self.policy is not None and not peer.is_self and not self.permits(peer, p):
            self.count("syn_port_rejected")
            return
        if not peer.is_self and not self.source_allows(peer, now):
            self.count("syn_source_limited")
            return
        if not peer.is_self and not self.syn_bucket.take(now):
            self.count("syn_limited")
            if self.wants("security.syn_rate_limited"):
                self.event_about("security.syn_rate_limited", {
                    "src_addr": str(new_addr(p.src_network, p.src_node)), "src_port": p.src_port})
            return
        if (listener.streams >= self.settings.max_streams_per_port or self.live >= self.settings.max_streams
                or listener.queued >= listener.backlog):
            listener.dropped += 1
            self.count("syn_overflow")
            if listener.queued >= listener.backlog and self.wants("conn.accept_queue_full"):
                self.event_about("conn.accept_queue_full", {
                    "port": p.dst_port, "src_addr": str(new_addr(p.src_network, p.src_node)),
                    "src_port": p.src_port, "drops_total": listener.dropped})
            self.reply_reset(p, peer, now)
            return
        if stream is not None:
            stream.fail(PathError(
                f"{stream.remote_addr} has restarted; this stream belongs to its previous life"), False, now)
        self.accept(listener, p, peer, now)

    cdef void accept(self, ListenerCore listener, const packet *p, Peer peer, double now) noexcept:
        cdef StreamCore stream = None
        try:
            stream = self.new_stream(peer, p.dst_network, p.dst_node, p.dst_port, p.src_network, p.src_node, p.src_port)
            self.event("conn.syn_received", stream)
            stream.open_passive(p, now)
            peer.last_used = now
            listener.streams += 1
            listener.queued += 1
            self.event("conn.established", stream)
            listener.owner._on_stream(stream)
        except Exception as error:
            log.exception("accepting a stream on port %d failed", listener.port)
            if stream is not None:
                listener.taken()
                stream.fail(error, True, now)

    cdef bint admits(self, Peer peer, int port) noexcept:
        if peer.is_self or self.gate is None:
            return True
        try:
            return self.gate.admit_syn(peer.node, port)
        except Exception:
            log.exception("the trust gate failed")
            return False

    cdef bint permits(self, Peer peer, const packet *p) noexcept:
        """Whether the policies of the networks let the peer open a stream to the port (services.md 9.7)."""
        try:
            return self.policy.admit_syn(p.dst_network, peer.node, p.dst_port)
        except Exception:
            log.exception("the policy gate failed")
            return False

    cdef bint source_allows(self, Peer peer, double now) noexcept:
        cdef Bucket bucket
        try:
            bucket = self.syn_sources.get(peer.node)
            if bucket is None:
                if len(self.syn_sources) >= MAX_SYN_SOURCES:
                    if now - self.syn_sources_swept < 1.0:
                        return False
                    self.syn_sources_swept = now
                    self.syn_sources = {node: b for node, b in self.syn_sources.items()
                                        if now - (<Bucket> b).refilled_at < SYN_SOURCE_IDLE}
                    if len(self.syn_sources) >= MAX_SYN_SOURCES:
                        return False
                bucket = Bucket(self.settings.source_syn_rate, self.settings.source_syn_burst, now)
                self.syn_sources[peer.node] = bucket
            return bucket.take(now)
        except Exception:
            log.exception("the SYN limit failed")
            return False

    cdef void reply_reset(self, const packet *p, Peer peer, double now) noexcept:
        cdef packet reset
        if self.egress.begin(peer, 0, now, WAY_CURRENT) == NULL:
            return
        reset.protocol = PROTOCOL_STREAM
        reset.flags = FLAG_RST
        reset.src_network, reset.src_node, reset.src_port = p.dst_network, p.dst_node, p.dst_port
        reset.dst_network, reset.dst_node, reset.dst_port = p.src_network, p.src_node, p.src_port
        reset.seq = reset.ack = 0
        reset.window = 0
        self.egress.commit(&reset, now)

    # ---- datagrams -----------------------------------------------------------------------------------------------

    cdef void on_datagram_packet(self, const packet *p, Peer peer, double now) noexcept:
        if p.length == 0 or self.on_datagram is None:
            return
        try:
            if not peer.is_self and self.gate is not None and not self.gate.admit_datagram(peer.node):
                self.count("datagram_rejected")
                self.report_rejected("datagram.rejected", p)
                return
            if self.policy is not None and not peer.is_self and not self.policy.admit_datagram(
                    p.dst_network, peer.node, p.dst_port, p.length):
                self.count("datagram_port_rejected")
                return
            peer.last_used = now
            if self.wants("data.datagram"):
                self.event_about("data.datagram", {
                    "src_addr": str(new_addr(p.src_network, p.src_node)), "src_port": p.src_port,
                    "dst_port": p.dst_port, "size": p.length})
            self.on_datagram(new_addr(p.src_network, p.src_node), p.src_port, p.dst_port,
                             PyBytes_FromStringAndSize(<char *> p.payload, p.length))
        except Exception:
            log.exception("a datagram handler failed")

    def send_datagram(self, Peer peer not None, Addr remote not None, port: int, data) -> bool:
        """One datagram with its own ephemeral source port; True when it was handed on (or queued for the session).

        Raises `InvalidValueError` for an empty or too large payload, a bad port or the broadcast address.
        """
        cdef packet p
        cdef const unsigned char[::1] view = data
        cdef size_t length = view.shape[0]
        cdef uint8_t *at
        cdef double now = self.now()
        cdef size_t limit = MAX_DATAGRAM_PAYLOAD - (9 if peer.relayed else 0)
        if not 0 <= port <= 0xFFFF:
            raise InvalidValueError(f"port {port!r} is not in 0..65535")
        if remote.node == BROADCAST:
            raise InvalidValueError("the broadcast address takes no unicast datagrams")
        if length == 0:
            raise InvalidValueError("an empty datagram would be dropped on arrival; send at least one byte")
        if length > limit:
            raise InvalidValueError(f"a datagram to {remote} carries at most {limit} bytes, not {length}")
        at = self.egress.begin(peer, length, now, WAY_CURRENT)
        if at == NULL:
            self.count("datagram_unsendable")
            return False
        memcpy(at, &view[0], length)
        p.protocol = PROTOCOL_DATAGRAM
        p.flags = 0
        p.src_network, p.src_node = remote.network, self.egress.own_node
        p.dst_network, p.dst_node = remote.network, remote.node
        p.src_port, p.dst_port = <uint16_t> self.free_port(), port
        p.seq = p.ack = 0
        p.window = 0
        self.egress.commit(&p, now)
        peer.last_used = now
        if self.in_batch or self.flushed_this_turn:
            self.schedule_soon()
        else:
            self.egress.flush(now)
            self.flushed_this_turn = True
            self.schedule_soon()
        return True

    # ---- turns, flushes, wake-ups --------------------------------------------------------------------------------

    cdef void touch(self, StreamPackets stream) noexcept:
        if not stream.touched:
            stream.touched = True
            self.touched.append(stream)
            if not self.in_batch:
                self.schedule_soon()

    cdef void want_flush(self, StreamPackets stream) noexcept:
        """The first write of a loop iteration goes out at once; later ones wait for the iteration's end."""
        if stream.waiting and not stream.into.ack_now:
            return
        if not stream.flushing:
            stream.flushing = True
            self.flushing.append(stream)
        if self.in_batch:
            return
        if self.flushed_this_turn:
            self.schedule_soon()
        else:
            self.flushed_this_turn = True
            self.flush(self.now())
            self.arm()
            self.schedule_soon()

    cdef void want_flush_soon(self, StreamPackets stream) noexcept:
        if stream.waiting and not stream.into.ack_now:
            return                      # it has its place in the queue for the window
        if not stream.flushing:
            stream.flushing = True
            self.flushing.append(stream)
        if not self.in_batch:
            self.schedule_soon()

    cdef void wait_for_window(self, StreamPackets stream) noexcept:
        """Join the end of the queue of streams that share a full congestion window."""
        if not stream.waiting:
            stream.waiting = True
            stream.peer.blocked.append(stream)
            self.queue_peer(stream.peer)

    cdef void queue_peer(self, Peer peer) noexcept:
        if not peer.queued:
            peer.queued = True
            self.blocked.append(peer)

    cdef void schedule_soon(self) noexcept:
        if not self.soon_scheduled and self.scheduler is not None:
            self.soon_scheduled = True
            try:
                self.scheduler.soon()
            except Exception:
                self.soon_scheduled = False
                log.exception("the scheduler failed")

    cdef void flush(self, double now) noexcept:
        """Serve streams in turn, a burst each, until nothing may leave or the port is congested."""
        cdef list turn
        cdef StreamCore stream
        if self.egress.moved:
            self.repair_moved(now)
        while True:
            if self.blocked:
                self.serve_blocked(now)
            if not self.flushing or self.egress.port.congested():
                break
            turn = self.flushing
            self.flushing = []
            for stream in turn:
                stream.flushing = False
                if stream.into.ack_now and stream.phase == ESTABLISHED:
                    stream.announce(now)
                if stream.waiting:
                    continue
                if stream.peer.blocked:
                    self.wait_for_window(stream)        # others were first
                elif self.egress.port.congested() or stream.transmit(FLUSH_QUANTUM, now):
                    if not stream.flushing:
                        stream.flushing = True
                        self.flushing.append(stream)
        self.egress.flush(now)
        if self.blocked:
            self.await_pacing(now)

    cdef void await_pacing(self, double now) noexcept:
        """Peers whose window has room wait for their pacer alone: its time is a deadline of the node."""
        cdef Peer peer
        cdef double due
        for peer in self.blocked:
            due = peer.path.next_send()
            if due > now and peer.path.in_flight < peer.path.cwnd:
                try:
                    self.timers.schedule(peer, due)
                except MemoryError:
                    pass                    # the next acknowledgment serves it

    cdef void serve_blocked(self, double now) noexcept:
        """Streams queued at a full congestion window: whoever has waited longest takes the room there is."""
        cdef list peers = self.blocked
        cdef Peer peer
        cdef StreamCore stream
        cdef uint64_t before
        self.blocked = []
        for peer in peers:
            peer.queued = False
            while peer.blocked and not self.egress.port.congested():
                before = peer.path.in_flight
                if not peer.path.has_room(1, now):
                    break
                stream = peer.blocked.popleft()
                stream.waiting = False
                if stream.transmit(FLUSH_QUANTUM, now) and not stream.waiting:
                    stream.waiting = True
                    peer.blocked.append(stream)
                if peer.path.in_flight == before and stream.waiting:
                    break               # the room is too small for its next segment
            if peer.blocked:
                self.queue_peer(peer)

    cdef void repair_moved(self, double now) noexcept:
        """What a replaced path swallowed goes out again now, not when a backed-off timer says so."""
        cdef list moved = self.egress.moved
        cdef StreamCore stream
        self.egress.moved = []
        for stream in self.streams.values():
            if stream.peer in moved:
                stream.on_new_path(now)

    cdef void batch_begin(self) noexcept:
        self.in_batch = True

    cdef void batch_end(self, double now) noexcept:
        """Acknowledge, flush, then wake: readers find the wire already served."""
        cdef StreamCore stream
        for stream in self.touched:
            stream.end_of_batch(now)
        self.flush(now)
        self.in_batch = False
        self.deliver(now)
        self.arm()

    cdef void deliver(self, double now) noexcept:
        cdef list turn
        cdef StreamCore stream
        if not self.touched:
            return
        turn = self.touched
        self.touched = []
        for stream in turn:
            stream.touched = False
            try:
                stream.deliver()
            except Exception:
                log.exception("waking the owner of %r failed", stream)

    cdef void arm(self) noexcept:
        """One timer per node: the scheduler hears only of an earlier deadline than it knows."""
        cdef double first = self.timers.earliest()
        if first < self.armed and self.scheduler is not None:
            self.armed = first
            try:
                self.scheduler.arm(first)
            except Exception:
                log.exception("the scheduler failed")

    def finish_turn(self, now: float) -> None:
        """After a call from Python that was not a batch: send, and have wake-ups
        delivered at the end of the iteration."""
        if not self.in_batch:
            if self.touched or self.egress.looped:
                self.schedule_soon()
            self.arm()

    def close(self) -> None:
        """Drop every stream and listener without a word to the peers, and every reference to the outside. Idempotent.

        Tables and heap hold references that Python's collector cannot see, so a node that is done must be taken apart.
        """
        cdef StreamCore stream
        self.in_batch = True            # nothing may schedule a flush from here on
        self.scheduler = self.gate = self.policy = self.on_datagram = self.publish = self.wanted = None
        for stream in self.streams.values():
            stream.fail(ClosedError("this node has stopped"), False, self.armed)
            try:
                stream.deliver()
            except Exception:
                log.exception("waking the owner of %r failed", stream)
            stream.owner = None
        self.listeners.clear()
        self.touched, self.flushing, self.blocked = [], [], []

    # ---- events --------------------------------------------------------------------------------------------------

    cdef bint wants(self, str topic) noexcept:
        """Whether anybody gets events of `topic`: asked before a payload is built."""
        if self.publish is None or self.wanted is None:
            return self.publish is not None
        try:
            return self.wanted(topic)
        except Exception:
            log.exception("asking whether %s is wanted failed", topic)
            return False

    cdef void event(self, str topic, StreamPackets stream) noexcept:
        if not self.wants(topic):
            return
        remote = str(new_addr(stream.remote_network, stream.remote_node))
        if topic == "conn.syn_received" or topic == "conn.established":
            self.event_about(topic, {
                "conn_id": stream.conn_id, "src_addr": remote, "src_port": stream.remote_port,
                "dst_port": stream.local_port})
        else:
            self.event_about(topic, {
                "conn_id": stream.conn_id, "local_port": stream.local_port, "remote_addr": remote,
                "remote_port": stream.remote_port})

    cdef void report_rejected(self, str topic, const packet *p) noexcept:
        """The trust gate has kept a packet out."""
        if self.wants(topic):
            self.event_about(topic, {
                "src_node_id": p.src_node, "src_addr": str(new_addr(p.src_network, p.src_node)),
                "dst_port": p.dst_port})

    cdef void event_about(self, str topic, dict payload) noexcept:
        try:
            self.publish(topic, payload)
        except Exception:
            log.exception("publishing %s failed", topic)

    def fail_streams(self, Peer peer not None, error: BaseException) -> None:
        """End every stream to `peer` with `error`."""
        cdef StreamCore stream
        cdef double now = self.now()
        for stream in self.streams.values():
            if stream.peer is peer:
                stream.fail(error, False, now)

    def all_streams(self) -> list[StreamCore]:
        """A snapshot of every stream, those in TIME_WAIT included."""
        return self.streams.values()
