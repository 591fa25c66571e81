"""What a stream is called and the packets it can send: SYN, ACK, SACK, data, probes, RST; and
what it needs of its table (_fast, L7)."""
from libc.math cimport INFINITY
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from pilot._fast.addr cimport new_addr
from pilot._fast.egress cimport WAY_CURRENT
from pilot._fast.packet cimport FLAG_ACK, FLAG_RST, PROTOCOL_STREAM, packet
from pilot._fast.peer cimport Peer
from pilot._fast.receiver cimport DUPLICATES_NEEDED, HELD, SLOT_WORTH, Receiver, arrival
from pilot._fast.recovery cimport SEGMENT_SACKED, segment
from pilot._fast.ring cimport ring_read
from pilot._fast.sender cimport Sender
from pilot._fast.timers cimport TimerEntry

cdef double WINDOW_UPDATE_AGAIN = 0.5   # a reopened window is told again after this, doubled each time, while unused

cdef enum:
    MAX_WINDOW_UPDATES = 5


cdef class StreamHost:
    """What a stream needs from the table it lives in. `Mux` implements it."""

    cdef double now(self) noexcept:
        return 0.0

    cdef void touch(self, StreamPackets stream) noexcept:
        pass

    cdef void want_flush(self, StreamPackets stream) noexcept:
        pass

    cdef void want_flush_soon(self, StreamPackets stream) noexcept:
        pass

    cdef void wait_for_window(self, StreamPackets stream) noexcept:
        pass

    cdef void ended(self, StreamPackets stream) noexcept:
        pass

    cdef void remove(self, StreamPackets stream) noexcept:
        pass

    cdef bint redial(self, StreamPackets stream) noexcept:
        return False

    cdef bint dial_needs_relay(self, Peer peer, double now) noexcept:
        return False

    cdef void full_segments_lost(self, Peer peer, double now) noexcept:
        pass

    cdef void event(self, str topic, StreamPackets stream) noexcept:
        pass


cdef class StreamPackets(TimerEntry):
    """The base of `StreamCore`: its two ends, its halves, every packet it can make, and when which acknowledgment is
    sent again or twice."""

    def __cinit__(self, StreamHost host not None, Peer peer not None, Sender out not None,
                  Receiver into not None) -> None:
        self.host = host
        self.peer = peer
        self.out = out
        self.into = into
        self.stop_timers()

    cdef void stop_timers(self) noexcept:
        cdef int i
        for i in range(TIMER_COUNT):
            self.timers[i] = INFINITY

    cdef void set_timer(self, int which, double at) noexcept:
        cdef double first = INFINITY
        cdef int i
        self.timers[which] = at
        for i in range(TIMER_COUNT):
            if self.timers[i] < first:
                first = self.timers[i]
        try:
            self.host.timers.schedule(self, first)
        except MemoryError:
            pass                            # the heap could not grow; the next change of any timer tries again

    cdef void emit(self, int flags, uint32_t seq, uint32_t ack, uint32_t window, double now) noexcept:
        """A packet without payload."""
        cdef packet p
        if self.host.egress.begin(self.peer, 0, now, WAY_CURRENT) == NULL:
            return
        self.address(&p)
        p.flags = <uint8_t> flags
        p.seq, p.ack, p.window = seq, ack, <uint16_t> window
        self.segments_sent += 1
        self.host.egress.commit(&p, now)

    cdef void address(self, packet *p) noexcept:
        p.protocol = PROTOCOL_STREAM
        p.src_network, p.src_node, p.src_port = self.local_network, self.local_node, self.local_port
        p.dst_network, p.dst_node, p.dst_port = self.remote_network, self.remote_node, self.remote_port

    cdef void acknowledging(self, packet *p, double now) noexcept:
        """Put the current acknowledgment and window into a packet; nothing is owed afterwards."""
        cdef Receiver into = self.into
        if into.advertised == 0:
            into.reopened = True
        into.advertised = into.slots()
        if into.advertised == 0:
            into.reopened = False
        into.edge = into.next + <uint64_t> into.advertised * SLOT_WORTH
        into.pending = 0
        into.ack_now = False
        self.timers[TIMER_ACK] = INFINITY
        p.flags = FLAG_ACK
        p.ack = into.acknowledge()
        p.window = <uint16_t> into.advertised
        self.segments_sent += 1

    cdef void send_ack(self, double now) noexcept:
        cdef packet p
        cdef uint8_t sack[37]
        cdef int length = self.into.build_sack(sack)
        cdef uint64_t told
        cdef uint8_t *at = self.host.egress.begin(self.peer, length, now, WAY_CURRENT)
        if at == NULL:
            return
        memcpy(at, sack, length)
        self.address(&p)
        told = self.into.told
        self.acknowledging(&p, now)
        if self.into.told == told:
            self.into.duplicates += 1
        p.seq = self.out.seq(self.out.nxt)
        self.host.egress.commit(&p, now)

    cdef void announce(self, double now) noexcept:
        """Acknowledge, and see to it that a reopened window is heard of."""
        self.send_ack(now)
        if self.into.reopened and self.timers[TIMER_ACK] == INFINITY:
            self.window_updates = 0
            self.set_timer(TIMER_ACK, now + WINDOW_UPDATE_AGAIN)

    cdef void announce_again(self, double now) noexcept:
        """A reopened window was not used: the update may have been lost."""
        if self.into.reopened and self.window_updates < MAX_WINDOW_UPDATES:
            self.window_updates += 1
            self.send_ack(now)
            self.set_timer(TIMER_ACK, now + WINDOW_UPDATE_AGAIN * (1 << self.window_updates))

    cdef void acknowledge_stock(self, arrival result, bint held, double now) noexcept:
        """After each segment, `held`: with a hole open before it. A stock sender grows per acknowledgment and repairs
        one loss per acknowledgment."""
        cdef Receiver into = self.into
        cdef double due
        if held or into.count:
            if into.repair_time == 0.0:
                into.repair_time = self.peer.path.srtt
            due = into.ask_repair(result, now)
            if due != 0.0 and due != self.timers[TIMER_REPAIR]:
                self.set_timer(TIMER_REPAIR, due)
        if into.ack_now or into.pending >= ACK_EVERY:
            self.send_ack(now)
            if result == HELD and into.answers_twice():
                self.send_ack(now)

    cdef void on_repair_timer(self, double now) noexcept:
        """The first hole is still open: the duplicates were too few, or the repair is lost."""
        cdef Receiver into = self.into
        cdef int _n
        if into.count == 0 or self.out.ours:
            return
        into.asked_again = True
        if into.duplicates < DUPLICATES_NEEDED:
            for _n in range(DUPLICATES_NEEDED - into.duplicates):
                self.send_ack(now)
            self.set_timer(TIMER_REPAIR, now + into.patience())
        elif into.withheld:
            into.withheld = 0
            self.send_ack(now)

    cdef void send_old_byte(self, double now) noexcept:
        """A probe every peer answers: the byte before SND.UNA once more (before any data that is the ISN)."""
        cdef packet p
        cdef uint8_t *at = self.host.egress.begin(self.peer, 1, now, WAY_CURRENT)
        if at == NULL:
            return
        at[0] = self.out.last_byte
        self.address(&p)
        self.acknowledging(&p, now)
        p.seq = self.out.seq(self.out.una) - 1
        self.host.egress.commit(&p, now)

    cdef void send_reset(self, double now) noexcept:
        self.emit(FLAG_RST, 0, 0, 0, now)

    cdef bint send_segment(self, uint64_t offset, uint32_t length, double now) noexcept:
        cdef packet p
        cdef uint8_t *at = self.host.egress.begin(self.peer, length, now, WAY_CURRENT)
        if at == NULL:
            return False
        ring_read(&self.out.bytes_, offset, at, length)
        self.address(&p)
        self.acknowledging(&p, now)
        p.seq = self.out.seq(offset)
        self.host.egress.commit(&p, now)
        return True

    cdef uint32_t send_repair(self, double now) noexcept:
        """The first lost segment again, cut to what the path carries now; returns its bytes."""
        cdef Sender out = self.out
        cdef segment *s = out.next_lost()
        if s.length > self.peer.segment and out.split(s, out.narrower(s, self.peer.segment)):
            s = out.next_lost()
        return self.send_again(s, now)

    cdef uint32_t send_again(self, segment *s, double now) noexcept:
        cdef uint32_t length = s.length
        # Recorded before it is sent: a send that fails is a packet lost on the way, nothing more.
        self.out.resent(s, self.peer.path, now)
        self.retransmissions += 1
        self.send_segment(s.start, length, now)
        return length

    cdef void send_tail_probe(self, double now) noexcept:
        """The last segment again: not into a closed window, and not where the path has become too narrow for it."""
        cdef segment *s = self.out.at(self.out.last - 1)
        if self.out.peer_slots > 0 and s.length <= self.peer.segment and not s.state & SEGMENT_SACKED:
            self.send_again(s, now)

    @property
    def local_addr(self):
        """The own address the stream was opened to or from (the network number is the destination's)."""
        return new_addr(self.local_network, self.local_node)

    @property
    def remote_addr(self):
        """The peer's overlay address."""
        return new_addr(self.remote_network, self.remote_node)

    @property
    def readable(self) -> int:
        """Bytes that `read` can return at once."""
        return self.into.next - self.into.read_at

    @property
    def held(self) -> int:
        """Bytes that have arrived behind a hole."""
        cdef uint64_t total = 0
        cdef int i
        for i in range(self.into.count):
            total += self.into.ranges[i].right - self.into.ranges[i].left
        return total

    @property
    def written(self) -> int:
        """Bytes taken by `write` since the stream began."""
        return self.out.end

    @property
    def unacknowledged(self) -> int:
        """Bytes written that the peer's node has not acknowledged."""
        return self.out.end - self.out.una

    @property
    def peer_is_ours(self) -> bool:
        """True when the peer advertised a window no stock node does."""
        return self.out.ours

    def error(self) -> BaseException | None:
        """Why the stream ended (a new exception each time); None while it is open and after an orderly end."""
        return None if self.failure is None else self.fresh_failure()

    cdef object fresh_failure(self):
        """A new exception each time: raising one object again and again would grow its traceback."""
        return type(self.failure)(*self.failure.args)
