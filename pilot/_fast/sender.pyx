"""The sending half of a stream: the send ring (= retransmission buffer), windows, RTT and
RTO, what may leave next (_fast, L7)."""
cimport cython
from libc.math cimport fabs
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp

from pilot._fast._endian cimport load32
from pilot._fast.budget cimport Share
from pilot._fast.congestion cimport Congestion
from pilot._fast.packet cimport packet
from pilot._fast.peer cimport Peer
from pilot._fast.receiver cimport SLOT_WORTH
from pilot._fast.recovery cimport Scoreboard, segment
from pilot._fast.ring cimport ring_index, ring_read, ring_release, ring_resize, ring_restart, ring_write

cdef double MIN_RTO = 0.2
cdef double MAX_RTO = 10.0
cdef double FIRST_RTO = 1.0
cdef double BACKOFF_PLATEAU = 2.0
cdef double SHORT_RTT = 0.001

cdef enum:
    STOCK_SEGMENT = 32000           # larger ones overran a stock node's socket buffer at the slots it offers
    OLDEST_SACK = 65535 * 1152          # how far behind SND.UNA a reordered SACK may lie: the widest window there is
    STOCK_FLIGHT = 2097152          # ... and so did more bytes than this in flight
    SMALL_RING = 16384
    SHORT_PATH_RING = 2097152       # a millisecond of 2 GB/s
    PLATEAU_REPEATS = 8


@cython.no_gc
cdef class Sender(Scoreboard):
    """What is to be sent and what became of it. Offsets are 64-bit from the first byte; `seq()` gives the wire's 32."""

    def __cinit__(self, limit: int, iss: int, Share share not None) -> None:
        self.share = share
        self.limit = limit
        self.iss = iss
        self.rto = FIRST_RTO
        self.bytes_.data = NULL
        self.bytes_.capacity = 0

    def __dealloc__(self):
        self.give_back()

    cdef void give_back(self) noexcept:
        if self.bytes_.capacity:
            self.share.resized(self.bytes_.capacity, 0)
            ring_release(&self.bytes_)

    cdef uint64_t room(self) noexcept:
        """What may be written now: within the limit of the stream and the memory of the node."""
        cdef uint64_t kept = self.end - self.una
        cdef uint64_t most = self.share.reachable(self.bytes_.capacity, self.limit)
        if most > self.limit:
            most = self.limit
        return most - kept if kept < most else 0

    cdef uint64_t put(self, const uint8_t *data, uint64_t count) noexcept:
        """Copy what fits into the ring; returns the bytes taken."""
        cdef uint64_t free_bytes = self.room()
        cdef size_t before = self.bytes_.capacity
        if count > free_bytes:
            count = free_bytes
        if count and not ring_resize(&self.bytes_, self.end - self.una + count, self.una, self.end):
            return 0
        self.share.resized(before, self.bytes_.capacity)
        if count:
            if self.una == self.end:
                ring_restart(&self.bytes_, self.end)
            ring_write(&self.bytes_, self.end, data, count)
            self.end += count
        return count

    cdef void widen(self, Congestion path) noexcept:
        """The writer waits for room: the ring should hold two windows, and what is SACKed behind a hole besides.

        Across a short path a window this wide is a queue in the peer's socket; more of it only spoils the caches.
        """
        cdef uint64_t wanted = 2 * path.cwnd
        if path.min_rtt < SHORT_RTT and wanted > SHORT_PATH_RING:
            wanted = SHORT_PATH_RING
        wanted += self.sacked_bytes
        if wanted > self.most:
            wanted = self.most
        if wanted > self.limit:
            self.limit = wanted

    cdef void on_rtt(self, double rtt) noexcept:
        """RFC 6298 with the clamp of stock nodes: 200 ms to 10 s."""
        if self.srtt == 0.0:
            self.srtt = rtt
            self.rttvar = rtt / 2
        else:
            self.rttvar += (fabs(self.srtt - rtt) - self.rttvar) / 4
            self.srtt += (rtt - self.srtt) / 8
        self.rto = self.srtt + (4 * self.rttvar if 4 * self.rttvar > 0.01 else 0.01)
        if self.rto < MIN_RTO:
            self.rto = MIN_RTO
        elif self.rto > MAX_RTO:
            self.rto = MAX_RTO
        self.backoff = 0

    cdef double timeout(self) noexcept:
        """The RTO with its back-off, which pauses at 2 s for the first repeats: so a dead path is noticed in time."""
        cdef double t = self.rto * <double> (1 << (self.backoff if self.backoff < 6 else 6))
        cdef double most = BACKOFF_PLATEAU if self.backoff <= PLATEAU_REPEATS else MAX_RTO
        if most < 4 * self.rto:
            most = 4 * self.rto if 4 * self.rto < MAX_RTO else MAX_RTO
        return t if t < most else most

    cdef bint is_sack(self, const uint8_t *payload, uint32_t length) noexcept:
        """A SACK is told from data by form and history (streams.md 20.11): exact length, left < right, all within what
        was ever sent here and at most a window behind SND.UNA."""
        cdef int n, i
        cdef uint64_t left, right
        if length < 13 or memcmp(payload, b"SACK", 4) != 0:
            return False
        n = payload[4]
        if n < 1 or n > 4 or length != <uint32_t> (5 + 8 * n):
            return False
        for i in range(n):
            left = self.una + <uint64_t> <int64_t> <int32_t> (load32(payload + 5 + 8 * i) - self.seq(self.una))
            right = self.una + <uint64_t> <int64_t> <int32_t> (load32(payload + 9 + 8 * i) - self.seq(self.una))
            if <int64_t> left < 0 or <int64_t> left >= <int64_t> right or right > self.nxt:
                return False
            if left + OLDEST_SACK < self.una:
                return False
        return True

    cdef void on_sack(self, const uint8_t *payload, Congestion path, double now) noexcept:
        cdef int i
        cdef uint64_t left, right
        for i in range(payload[4]):
            left = self.una + <uint64_t> <int64_t> <int32_t> (load32(payload + 5 + 8 * i) - self.seq(self.una))
            right = self.una + <uint64_t> <int64_t> <int32_t> (load32(payload + 9 + 8 * i) - self.seq(self.una))
            if right > self.una:
                self.mark_sacked(left if left > self.una else self.una, right, path, now)

    cdef void on_ack(self, uint64_t offset, Congestion path, double now) noexcept:
        """SND.UNA moves to `offset`; the ring gives the bytes up."""
        self.acknowledge(offset, path, now)
        ring_read(&self.bytes_, offset - 1, &self.last_byte, 1)
        self.una = offset
        if self.bytes_.capacity <= SMALL_RING:
            self.trim()

    cdef void update_window(self, const packet *p) noexcept:
        """Only a packet that is not older than the one that set the window may change it."""
        cdef bint older = p.seq == self.window_seq and <int32_t> (p.ack - self.window_ack) < 0
        if older or <int32_t> (p.seq - self.window_seq) < 0:
            return
        self.window_seq = p.seq
        self.window_ack = p.ack
        self.peer_slots = p.window

    cdef uint32_t next_length(self, Peer peer) noexcept:
        """How many of the unsent bytes the next segment takes. User bytes that would
        look like a SACK are cut after the first."""
        cdef uint64_t length = self.end - self.nxt
        cdef uint64_t most = peer.segment
        if not self.ours and most > STOCK_SEGMENT:
            most = STOCK_SEGMENT
        elif self.ours and most > <uint64_t> self.peer_slots * SLOT_WORTH:
            most = <uint64_t> self.peer_slots * SLOT_WORTH      # it would not fit into what is left of the window
        if length > most:
            length = most
        if length >= 5 and self.looks_like_sack(self.nxt):
            return 1
        return <uint32_t> length

    cdef bint looks_like_sack(self, uint64_t at) noexcept:
        """Whether a segment that begins at `at` would be swallowed by a stock peer as a SACK."""
        cdef uint8_t head[5]
        if self.end - at < 5 or self.bytes_.data[ring_index(&self.bytes_, at)] != c'S':
            return False
        ring_read(&self.bytes_, at, head, 5)
        return memcmp(head, b"SACK", 4) == 0 and 1 <= head[4] <= 4

    cdef uint32_t narrower(self, segment *s, uint32_t most) noexcept:
        """Where to cut a segment anew for a narrower path: at `most`, or a byte before what would look like a SACK."""
        return most - 1 if most > 1 and self.looks_like_sack(s.start + most) else most

    cdef bint seems_stock(self) noexcept:
        """A stock reorder buffer behind the first hole was SACKed, and what was sent beyond it is lost: the peer's
        wide window does not mean that it can hold one (DESIGN section 4)."""
        cdef uint64_t held
        if self.sacked < STOCK_BEHIND_HOLE - 8 or self.lost < 8:
            return False
        held = self.find(self.highest_sacked) - self.first
        return held <= STOCK_BEHIND_HOLE + 1 and self.sacked + 8 >= held and self.judged - self.first > held + 8

    cdef sendable what_next(self, Peer peer, double now) noexcept:
        """The next thing that may leave, under the peer's window and the path's congestion window."""
        cdef Congestion path = peer.path
        cdef uint64_t slots = self.peer_slots
        cdef uint64_t outstanding = self.last - self.first
        cdef uint64_t flight = self.nxt - self.una
        cdef uint32_t length
        cdef segment *s
        if slots == 0:
            return NOTHING
        if self.lost:
            s = self.next_lost()
            length = s.length if s.length < peer.segment else peer.segment
            if path.has_room(length, now) or self.outstanding == self.sacked_bytes + self.lost_bytes:
                return REPAIR           # with nothing of its own in flight no acknowledgment would give it another turn
            return WAIT_CONGESTION
        if self.end == self.nxt:
            return NOTHING
        length = self.next_length(peer)
        if outstanding >= slots:
            return NOTHING
        if self.ours:
            if flight + length > slots * SLOT_WORTH and flight > 0:
                return NOTHING
        elif flight + length > STOCK_FLIGHT and flight > 0:
            return NOTHING
        if not self.ours and self.sacked and outstanding >= STOCK_BEHIND_HOLE:
            return NOTHING
        return NEW_SEGMENT if path.has_room(length, now) else WAIT_CONGESTION

    cdef void release(self, Congestion path) noexcept:
        """The stream has ended: nothing of it is in flight or kept."""
        self.clear(path)
        self.give_back()

    cdef void trim(self) noexcept:
        """Give an empty ring back."""
        if self.una == self.end:
            self.give_back()
