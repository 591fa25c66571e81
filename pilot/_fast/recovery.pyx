"""The scoreboard of one stream: sent segments, SACK marks, time-based loss detection after RFC 8985 (_fast, L7)."""
from libc.math cimport INFINITY
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free, malloc

from pilot._fast.congestion cimport Congestion

cdef enum:
    MAX_REORDER_STEPS = 16
    DUPLICATE_THRESHOLD = 3     # SACKed segments above a hole that prove a loss while no reordering has been seen


cdef class Scoreboard:
    """Segments between SND.UNA and SND.NXT. Internal to `stream`; offsets are
    64-bit, so sequence wrap does not reach here.

    Invariants: segments are contiguous and in order; SACKED and LOST exclude each other; the bytes neither SACKed nor
    lost are exactly this stream's share of `Congestion.in_flight`.
    """

    def __dealloc__(self):
        free(self.segments)
        free(self.repairs)

    cdef uint64_t count(self) noexcept:
        return self.last - self.first

    cdef segment *at(self, uint64_t number) noexcept:
        return &self.segments[number & self.mask]

    cdef bint grow(self) noexcept:
        cdef uint64_t capacity = (self.mask + 1) * 2 if self.segments != NULL else 8
        cdef uint64_t n
        cdef segment *grown = <segment *> malloc(capacity * sizeof(segment))
        if grown == NULL:
            return False
        for n in range(self.first, self.last):
            grown[n & (capacity - 1)] = self.segments[n & self.mask]
        free(self.segments)
        self.segments = grown
        self.mask = capacity - 1
        return True

    cdef bint push(self, uint64_t start, uint32_t length, Congestion path, double now) noexcept:
        """Record a segment sent for the first time; False when there is no memory (send it later)."""
        cdef segment *s
        if self.segments == NULL or self.last - self.first == self.mask + 1:
            if not self.grow():
                return False
        s = self.at(self.last)
        s.start, s.length, s.state, s.transmissions, s.sent_at = start, length, 0, 1, now
        path.on_send(length, &s.stamp, now)
        self.last += 1
        self.outstanding += length
        return True

    cdef uint64_t find(self, uint64_t offset) noexcept:
        """Number of the first segment that ends behind `offset`; `last` when there is none."""
        cdef uint64_t low = self.first, high = self.last, middle
        cdef segment *s
        while low < high:
            middle = low + ((high - low) >> 1)
            s = self.at(middle)
            if s.start + s.length > offset:
                high = middle
            else:
                low = middle + 1
        return low

    cdef void begin_ack(self) noexcept:
        self.sample = -1.0
        self.delivered = 0

    cdef void note_delivery(self, segment *s, Congestion path, double now) noexcept:
        """A segment reached the peer: RTT sample, RACK clock, reordering."""
        cdef uint64_t end = s.start + s.length
        cdef double rtt = now - s.sent_at
        path.bursts.judge(s.sent_at, True)
        if s.state & SEGMENT_RETRANSMITTED:
            # Sooner than any round trip: the answer is to the original, the retransmission was needless.
            # That proves reordering, and each time a window too narrow for it (RFC 8985, without D-SACK).
            if rtt < path.min_rtt:
                if self.reorder_steps < MAX_REORDER_STEPS:
                    self.reorder_steps += 1
                path.on_delivered(s.length, NULL, s.sent_at, now)
                path.on_spurious(now)
                return
        else:
            if self.sample < 0.0 or rtt < self.sample:
                self.sample = rtt
            if end < self.highest_sacked and self.reorder_steps == 0:
                self.reorder_steps = 1
        path.on_delivered(s.length, &s.stamp, s.sent_at, now)
        if s.sent_at > self.newest_sent or (s.sent_at == self.newest_sent and end > self.newest_end):
            self.newest_sent, self.newest_end, self.newest_rtt = s.sent_at, end, rtt

    cdef void acknowledge(self, uint64_t offset, Congestion path, double now) noexcept:
        """Everything below `offset` has arrived."""
        cdef segment *s
        cdef uint32_t covered
        while self.first < self.last:
            s = self.at(self.first)
            if s.start >= offset:
                break
            covered = s.length if s.start + s.length <= offset else <uint32_t> (offset - s.start)
            self.outstanding -= covered
            if s.state & SEGMENT_SACKED:
                self.sacked_bytes -= covered
            else:
                self.delivered += covered
                if s.state & SEGMENT_LOST:
                    self.lost_bytes -= covered
                else:
                    path.on_removed(covered)
                if covered == s.length:
                    self.note_delivery(s, path, now)
                else:
                    path.on_delivered(covered, NULL, s.sent_at, now)
            if covered < s.length:
                s.start = offset
                s.length -= covered
                break
            if s.state & SEGMENT_SACKED:
                self.sacked -= 1
            elif s.state & SEGMENT_LOST:
                self.lost -= 1
            self.first += 1
        if self.judged < self.first:
            self.judged = self.first
        if self.lost_from < self.first:
            self.lost_from = self.first

    cdef void mark_sacked(self, uint64_t left, uint64_t right, Congestion path, double now) noexcept:
        """The peer holds [left, right): only segments wholly inside count."""
        cdef uint64_t n = self.find(left)
        cdef segment *s
        if n < self.last and self.at(n).start < left:
            n += 1
        while n < self.last:
            s = self.at(n)
            if s.start + s.length > right:
                break
            if not s.state & SEGMENT_SACKED:
                if s.state & SEGMENT_LOST:
                    self.lost -= 1
                    self.lost_bytes -= s.length
                else:
                    path.on_removed(s.length)
                self.note_delivery(s, path, now)
                s.state = (s.state & ~SEGMENT_LOST) | SEGMENT_SACKED
                self.sacked += 1
                self.sacked_bytes += s.length
                self.delivered += s.length
                if s.start + s.length > self.highest_sacked:
                    self.highest_sacked = s.start + s.length
            n += 1

    cdef void mark_lost(self, uint64_t number, Congestion path) noexcept:
        cdef segment *s = self.at(number)
        s.state |= SEGMENT_LOST
        self.lost += 1
        self.lost_bytes += s.length
        path.on_removed(s.length)
        path.bursts.judge(s.sent_at, False)
        if number < self.lost_from:
            self.lost_from = number

    cdef double detect_losses(self, Congestion path, double now) noexcept:
        """Mark what must be lost by now; returns when to look again (INFINITY: after the next acknowledgment)."""
        cdef double window, horizon, due = INFINITY
        cdef double oldest = -1.0
        cdef uint64_t lost_before = self.lost_bytes
        cdef uint64_t n, end
        cdef segment *s
        cdef retransmission *r
        if self.newest_sent == 0.0 or self.first == self.last:
            return INFINITY
        window = path.min_rtt / 4 if path.min_rtt < INFINITY else 0.001
        if self.reorder_steps > 1:
            window *= self.reorder_steps
            if window > path.srtt:
                window = path.srtt
        elif self.reorder_steps == 0 and self.sacked >= DUPLICATE_THRESHOLD:
            window = 0.0
        horizon = self.newest_rtt + window
        while self.judged < self.last:
            s = self.at(self.judged)
            if not s.state & (SEGMENT_SACKED | SEGMENT_LOST | SEGMENT_RETRANSMITTED):
                end = s.start + s.length
                if s.sent_at > self.newest_sent or (s.sent_at == self.newest_sent and end >= self.newest_end):
                    break
                if s.sent_at + horizon > now:
                    due = s.sent_at + horizon
                    break
                if s.sent_at > oldest:
                    oldest = s.sent_at
                self.mark_lost(self.judged, path)
            self.judged += 1
        while self.repairs_first != self.repairs_last:
            r = &self.repairs[self.repairs_first & self.repairs_mask]
            n = self.find(r.start)
            if n < self.last:
                s = self.at(n)
                if s.start == r.start and s.sent_at == r.sent_at and not s.state & (SEGMENT_SACKED | SEGMENT_LOST):
                    if r.sent_at >= self.newest_sent:
                        break
                    if r.sent_at + horizon > now:
                        if r.sent_at + horizon < due:
                            due = r.sent_at + horizon
                        break
                    if r.sent_at > oldest:
                        oldest = r.sent_at
                    self.mark_lost(n, path)
            self.repairs_first += 1
        if oldest >= 0.0:
            path.on_loss(self.lost_bytes - lost_before, oldest, now)
        return due

    cdef segment *next_lost(self) noexcept:
        cdef segment *s
        if self.lost == 0:
            return NULL
        while self.lost_from < self.last:
            s = self.at(self.lost_from)
            if s.state & SEGMENT_LOST:
                return s
            self.lost_from += 1
        return NULL

    cdef bint resent(self, segment *s, Congestion path, double now) noexcept:
        """A segment was sent again: back in flight, and watched for being lost once
        more. False: no memory to watch it."""
        cdef retransmission *grown
        cdef size_t capacity, i
        if s.state & SEGMENT_LOST:
            s.state &= ~SEGMENT_LOST
            self.lost -= 1
            self.lost_bytes -= s.length
            path.on_send(s.length, &s.stamp, now)
        else:
            path.on_send(0, &s.stamp, now)      # a probe: it is in flight already
        s.state |= SEGMENT_RETRANSMITTED
        s.sent_at = now
        if s.transmissions < 65535:
            s.transmissions += 1
        if self.repairs == NULL or self.repairs_last - self.repairs_first == self.repairs_mask + 1:
            capacity = (self.repairs_mask + 1) * 2 if self.repairs != NULL else 8
            grown = <retransmission *> malloc(capacity * sizeof(retransmission))
            if grown == NULL:
                return False
            for i in range(self.repairs_first, self.repairs_last):
                grown[i & (capacity - 1)] = self.repairs[i & self.repairs_mask]
            free(self.repairs)
            self.repairs = grown
            self.repairs_mask = capacity - 1
        self.repairs[self.repairs_last & self.repairs_mask].start = s.start
        self.repairs[self.repairs_last & self.repairs_mask].sent_at = now
        self.repairs_last += 1
        return True

    cdef bint split(self, segment *s, uint32_t length) noexcept:
        """Cut a segment that has never arrived into `length` bytes and the rest:
        its path has become too narrow for it."""
        cdef uint64_t number = self.find(s.start)
        cdef uint64_t n
        cdef segment *rest
        if self.last - self.first == self.mask + 1 and not self.grow():
            return False
        n = self.last
        while n > number + 1:
            self.segments[n & self.mask] = self.segments[(n - 1) & self.mask]
            n -= 1
        self.last += 1
        s = self.at(number)
        rest = self.at(number + 1)
        rest[0] = s[0]
        rest.start += length
        rest.length -= length
        s.length = length
        if s.state & SEGMENT_LOST:
            self.lost += 1
        elif s.state & SEGMENT_SACKED:
            self.sacked += 1
        if self.judged > number:
            self.judged += 1
        if self.lost_from > number:
            self.lost_from += 1
        return True

    cdef void forget_sacks(self) noexcept:
        """The peer may have thrown away what it once held: everything SACKed is wanted again."""
        cdef uint64_t n
        cdef segment *s
        for n in range(self.first, self.last):
            s = self.at(n)
            if s.state & SEGMENT_SACKED:
                s.state = (s.state & ~SEGMENT_SACKED) | SEGMENT_LOST
                self.lost += 1
                self.lost_bytes += s.length
        self.sacked = 0
        self.sacked_bytes = 0
        self.highest_sacked = 0
        self.lost_from = self.first

    cdef void mark_all_lost(self, Congestion path) noexcept:
        """Retransmission timeout: whatever is not SACKed is sent again."""
        cdef uint64_t n
        path.bursts.doubt()
        for n in range(self.first, self.last):
            if not self.at(n).state & (SEGMENT_SACKED | SEGMENT_LOST):
                self.mark_lost(n, path)
        self.judged = self.last
        self.repairs_first = self.repairs_last

    cdef void clear(self, Congestion path) noexcept:
        """Forget everything: the stream has ended."""
        if path is not None:
            path.on_removed(self.outstanding - self.sacked_bytes - self.lost_bytes)
        self.outstanding = self.sacked_bytes = self.lost_bytes = self.sacked = self.lost = 0
        self.first = self.judged = self.lost_from = self.last
        self.repairs_first = self.repairs_last
        free(self.segments)
        free(self.repairs)
        self.segments = NULL
        self.repairs = NULL
        self.mask = 0
        self.repairs_mask = 0
