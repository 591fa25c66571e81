"""The receiving half of a stream: bytes put at their final place in a ring, RCV.NXT, the
advertised window, SACK blocks (_fast, L7)."""
cimport cython
from cpython.buffer cimport PyBuffer_FillInfo
from libc.math cimport INFINITY
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcpy

from pilot._fast._endian cimport store32
from pilot._fast.budget cimport Share
from pilot._fast.reassembly cimport Reassembly, range64
from pilot._fast.ring cimport ring_index, ring_read, ring_release, ring_resize, ring_restart, ring_write

cdef double REPAIR_GRACE = 0.005
cdef double LONGEST_WAIT = 0.15         # a stock sender's timeout comes 200 ms after the last progress, or later

cdef enum:
    BURST = 4 * SLOT_WORTH          # one gap in 1000 at 10 % random loss; one in four where a short queue overflows
    FIRST_DOUBT = 8                 # gaps until the losses of a new stream are taken to be random
    BURST_DOUBT = 32                # ... and after a burst
    SMALL_RING = 16384              # freed as soon as it is empty; larger ones wait for an idle tick


@cython.no_gc
cdef class Loan:
    """Lends bytes of a ring for the time of a call, and learns whether somebody keeps them longer."""

    def __dealloc__(self):
        free(self.owned)

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        if self.data == NULL:
            raise BufferError("the bytes were lent for the time of a call, which is over")
        PyBuffer_FillInfo(buffer, self, self.data, self.size, 1, flags)
        self.exports += 1

    def __releasebuffer__(self, Py_buffer *buffer):
        self.exports -= 1


@cython.no_gc
cdef class Receiver(Reassembly):
    """What has arrived. Never blocks: beyond its byte limit it drops unacknowledged, and
    the sender's loss recovery repairs it."""

    def __cinit__(self, limit: int, Share share not None) -> None:
        self.limit = limit if limit > MIN_LIMIT else MIN_LIMIT
        self.share = share
        self.doubt = FIRST_DOUBT
        self.bytes_.data = NULL
        self.bytes_.capacity = 0

    def __dealloc__(self):
        self.release()

    cdef void release(self) noexcept:
        if not self.bytes_.capacity:
            return
        self.share.resized(self.bytes_.capacity, 0)
        if self.lent:
            self.orphan = self.bytes_.data          # in use until it is given back
            self.bytes_.data = NULL
            self.bytes_.capacity = 0
        else:
            ring_release(&self.bytes_)

    cdef void abandon(self) noexcept:
        """Nobody will read any more."""
        self.discard = True
        self.read_at = self.next
        self.clear()
        self.release()

    cdef void trim(self) noexcept:
        """Give an empty ring back."""
        if self.read_at == self.next and self.count == 0:
            self.release()

    cdef uint64_t offset_of(self, uint32_t seq) noexcept:
        """The stream offset nearest to RCV.NXT with this sequence number; wraps far
        above any real one when it is older."""
        return self.next + <uint64_t> <int64_t> <int32_t> (seq - self.seq())

    cdef uint64_t reachable(self) noexcept:
        """The largest ring the node's budget allows this stream now: what is promised to the peer must be kept."""
        return self.share.reachable(self.bytes_.capacity, self.limit)

    cdef uint64_t widest(self) noexcept:
        """The window of an empty buffer, in bytes."""
        cdef uint64_t reachable = self.reachable()
        return reachable if reachable < self.limit else self.limit

    cdef bint make_room(self, uint64_t end) noexcept:
        cdef size_t before = self.bytes_.capacity
        cdef uint64_t needed = end - self.read_at
        cdef uint64_t kept = self.highest()
        if needed <= before:
            return True
        if self.lent:
            return False
        if needed > self.reachable():
            return False
        if kept < self.next:
            kept = self.next
        if not ring_resize(&self.bytes_, needed, self.read_at, kept):
            return False
        self.share.resized(before, self.bytes_.capacity)
        return True

    cdef arrival take(self, uint32_t seq, const uint8_t *payload, uint32_t length) noexcept:
        """One data segment. Duplicate parts are trimmed; segments of any size and any cut are understood."""
        cdef uint64_t start = self.offset_of(seq)
        cdef uint64_t end = start + length
        cdef uint64_t known
        if <int64_t> (end - self.next) <= 0:
            return DUPLICATE
        if <int64_t> (start - self.next) < 0:
            payload += self.next - start
            start = self.next
        if self.discard:
            if start != self.next:
                return DROPPED
            self.next = self.read_at = end
            return IN_ORDER
        if end - self.read_at > self.limit or not self.make_room(end):
            return DROPPED
        if start == self.next:
            if start == self.read_at and self.count == 0:
                ring_restart(&self.bytes_, start)
            ring_write(&self.bytes_, start, payload, end - start)
            self.last = start
            self.next = self.advance(end) if self.count else end
            return IN_ORDER
        known = self.highest() if self.count else self.next
        if not self.add(start, end):
            return DROPPED
        if start > known:
            self.judge_gap(start - known)
        ring_write(&self.bytes_, start, payload, end - start)
        return HELD

    cdef uint32_t slots(self) noexcept:
        """Free bytes in slots of 1152, as the window field says it."""
        return self.slots_of(self.widest())

    cdef uint32_t slots_of(self, uint64_t widest) noexcept:
        cdef uint64_t buffered = self.next - self.read_at
        cdef uint64_t slots = (widest - buffered) // SLOT_WORTH if buffered < widest else 0
        return <uint32_t> (slots if slots < MAX_SLOTS else MAX_SLOTS)

    cdef bint window_worth_telling(self) noexcept:
        """The reader made so much room, measured by what there can be, that the sender should hear of it now."""
        cdef uint64_t widest = self.widest()
        cdef uint64_t edge = self.next + <uint64_t> self.slots_of(widest) * SLOT_WORTH
        cdef uint64_t step = widest // 16 if self.advertised == 0 else widest // 4
        return <int64_t> (edge - self.edge) >= <int64_t> step

    cdef int build_sack(self, uint8_t *out) noexcept:
        """The SACK payload for the ranges held, 0 when there are none."""
        cdef range64 blocks[4]
        cdef int n, i
        if self.count == 0:
            return 0
        if self.withheld:
            blocks[0].left, blocks[0].right = self.next - self.withheld, self.next
            n = 1 + self.choose(blocks + 1, SACK_BLOCKS - 1)
        else:
            n = self.choose(blocks, SACK_BLOCKS)
        memcpy(out, b"SACK", 4)
        out[4] = <uint8_t> n
        for i in range(n):
            store32(out + 5 + 8 * i, <uint32_t> (self.irs + 1 + blocks[i].left))
            store32(out + 9 + 8 * i, <uint32_t> (self.irs + 1 + blocks[i].right))
        return 5 + 8 * n

    cdef uint32_t acknowledge(self) noexcept:
        """The sequence number to acknowledge, remembered."""
        cdef uint64_t offset = self.acknowledged()
        if offset != self.told:
            self.told = offset
            self.duplicates = 0
        return <uint32_t> (self.irs + 1 + offset)

    cdef double patience(self) noexcept:
        """How long a repair may take; INFINITY when that is not known, or when the sender's own timeout comes first."""
        cdef double wait = 1.5 * self.repair_time + REPAIR_GRACE
        return wait if self.repair_time > 0.0 and wait < LONGEST_WAIT else INFINITY

    cdef void judge_gap(self, uint64_t length) noexcept:
        """A new hole: several segments in a row are rarely lost by chance, and often by a full queue."""
        if length >= BURST:
            self.doubt = BURST_DOUBT
        elif self.doubt > 0:
            self.doubt -= 1

    cdef void withhold(self) noexcept:
        """Keep the last segment in order out of the acknowledgment, as something to acknowledge later."""
        if self.patience() < INFINITY:
            self.withheld = self.next - self.last

    cdef double ask_repair(self, arrival result, double now) noexcept:
        """What the acknowledgment of this segment, with a hole open before or behind it, will make a stock sender do.

        It repairs one hole at the third duplicate, and then one for each acknowledgment that advances; a repair that is
        lost waits for its timeout, 200 ms at least (streams.md 9.5). So one segment is left for a second such
        acknowledgment, and SACKed meanwhile. Returns when that is due, 0.0 for when it was before.
        """
        if result == IN_ORDER:
            if self.asked_at > 0.0 and not self.asked_again and now - self.asked_at < LONGEST_WAIT:
                self.repair_time += (now - self.asked_at - self.repair_time) / (4 if self.repair_time > 0.0 else 1)
            self.withheld = 0
            self.asked_at = 0.0
            self.asked_again = False
            if self.count == 0:
                return INFINITY
            if self.last > self.told:
                self.withhold()                     # the rest still advances
            self.asked_at = now
            return now + self.patience()
        if result != HELD:
            self.withheld = 0                       # the sender repeats what it was told of: it may have forgotten
            return 0.0
        if self.duplicates == 0 and self.asked_at == 0.0 and self.last >= self.told:
            self.withhold()
        if self.duplicates == DUPLICATES_NEEDED - 1 and self.asked_at == 0.0:
            self.asked_at = now
        return now + self.patience() if self.duplicates == 0 or self.duplicates == DUPLICATES_NEEDED - 1 else 0.0

    cdef uint64_t consume(self, uint8_t *out, uint64_t count) noexcept:
        """Up to `count` in-order bytes, moved to `out`."""
        if count > self.next - self.read_at:
            count = self.next - self.read_at
        ring_read(&self.bytes_, self.read_at, out, count)
        self.taken(count)
        return count

    cdef void taken(self, uint64_t count) noexcept:
        """The reader has done with `count` bytes; one that keeps up is given a wider window."""
        self.read_at += count
        if self.limit < self.most and self.read_at - self.grown_at >= self.limit and (
                self.next - self.read_at <= self.limit // 4):
            # A window's worth was read and the reader keeps up: the path may be longer than the window is wide.
            self.limit = self.limit * 2 if self.limit * 2 < self.most else self.most
            self.grown_at = self.read_at
        if self.bytes_.capacity <= SMALL_RING:
            self.trim()

    cdef object lend(self):
        """A read-only view of the first in-order bytes, up to where the ring wraps; None when there are none.

        Nothing moves or frees them before `give_back`.
        """
        cdef size_t index, count
        if self.next == self.read_at or self.lent:
            return None
        if self.loan is None:
            self.loan = Loan()
        index = ring_index(&self.bytes_, self.read_at)
        count = self.bytes_.capacity - index
        if count > self.next - self.read_at:
            count = self.next - self.read_at
        self.loan.data = self.bytes_.data + index
        self.loan.size = count
        view = memoryview(self.loan)
        self.lent = True
        return view

    cdef bint give_back(self, uint64_t count) noexcept:
        """Ends the loan, if there is one, with `count` bytes read. False when a view is still in use: it has got the
        memory for good, and this stream can receive no more."""
        if not self.lent:
            return True
        if self.loan.exports:
            self.release()
            self.loan.owned = self.orphan
            self.loan = None
            self.lent = False
            self.orphan = NULL
            self.abandon()
            return False
        self.lent = False
        self.loan.data = NULL
        free(self.orphan)
        self.orphan = NULL
        if not self.discard:
            self.taken(count if count < self.next - self.read_at else self.next - self.read_at)
        return True
