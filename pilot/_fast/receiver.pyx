"""The receiving half of a stream: bytes put at their final place in a ring, RCV.NXT, the
advertised window, SACK blocks (_fast, L7)."""
cimport cython
from cpython.buffer cimport PyBuffer_FillInfo
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcpy

from pilot._fast._endian cimport store32
from pilot._fast.reassembly cimport Reassembly, range64
from pilot._fast.ring cimport ring_index, ring_read, ring_release, ring_resize, ring_restart, ring_write

cdef enum:
    SMALL_RING = 16384              # freed as soon as it is empty; larger ones wait for an idle tick
    SMALLEST_RING = 4096            # ring.pxd allocates no less; holds a segment of the oldest builds
    FAIR_RING = 65536               # rings up to this size may use the whole budget, larger ones three quarters


cdef class Budget:
    """Memory of all receive rings of one node, in bytes. A ring that cannot grow drops; the peer sends again.

    A quarter is left to small rings, and the smallest ring is every stream's right, beyond the limit if need be:
    readers that stopped, or a peer that leaves a hole in each of its streams, may fill the rest as long as they like.
    """

    def __cinit__(self, limit: int = 1 << 30) -> None:
        self.limit = limit


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

    def __cinit__(self, limit: int, Budget budget not None) -> None:
        self.limit = limit if limit > MIN_LIMIT else MIN_LIMIT
        self.budget = budget
        self.bytes_.data = NULL
        self.bytes_.capacity = 0

    def __dealloc__(self):
        self.release()

    cdef void release(self) noexcept:
        if not self.bytes_.capacity:
            return
        self.budget.used -= self.bytes_.capacity
        if self.lent:
            self.orphan = self.bytes_.data          # in use until it is given back
            self.bytes_.data = NULL
            self.bytes_.capacity = 0
        else:
            ring_release(&self.bytes_)

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
        cdef uint64_t most = self.bytes_.capacity
        cdef uint64_t others = self.budget.used - most
        cdef uint64_t limit = self.budget.limit
        if most == 0:
            most = SMALLEST_RING
        while most < self.limit:
            if most * 2 > FAIR_RING:
                limit = self.budget.limit - self.budget.limit // 4
            if others + most * 2 > limit:
                break
            most *= 2
        return most

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
        self.budget.used += self.bytes_.capacity - before
        return True

    cdef arrival take(self, uint32_t seq, const uint8_t *payload, uint32_t length) noexcept:
        """One data segment. Duplicate parts are trimmed; segments of any size and any cut are understood."""
        cdef uint64_t start = self.offset_of(seq)
        cdef uint64_t end = start + length
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
            self.next = self.advance(end) if self.count else end
            return IN_ORDER
        if not self.add(start, end):
            return DROPPED
        ring_write(&self.bytes_, start, payload, end - start)
        return HELD

    cdef uint32_t slots(self) noexcept:
        """Free bytes in slots of 1152, as the window field says it."""
        cdef uint64_t buffered = self.next - self.read_at
        cdef uint64_t free_bytes = self.limit - buffered if buffered < self.limit else 0
        cdef uint64_t left = self.reachable()
        left = left - buffered if left > buffered else 0
        if left < free_bytes:
            free_bytes = left
        free_bytes //= SLOT_WORTH
        return <uint32_t> (free_bytes if free_bytes < MAX_SLOTS else MAX_SLOTS)

    cdef bint window_worth_telling(self) noexcept:
        """The reader made so much room that the sender should hear of it now."""
        cdef uint64_t edge = self.next + <uint64_t> self.slots() * SLOT_WORTH
        cdef uint64_t step = self.limit // 16 if self.advertised == 0 else self.limit // 4
        return <int64_t> (edge - self.edge) >= <int64_t> step

    cdef int build_sack(self, uint8_t *out) noexcept:
        """The SACK payload for the ranges held, 0 when there are none."""
        cdef range64 blocks[4]
        cdef int n = self.choose(blocks), i
        if n == 0:
            return 0
        memcpy(out, b"SACK", 4)
        out[4] = <uint8_t> n
        for i in range(n):
            store32(out + 5 + 8 * i, <uint32_t> (self.irs + 1 + blocks[i].left))
            store32(out + 9 + 8 * i, <uint32_t> (self.irs + 1 + blocks[i].right))
        return 5 + 8 * n

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
            self.discard = True
            self.read_at = self.next
            self.clear()
            return False
        self.lent = False
        self.loan.data = NULL
        free(self.orphan)
        self.orphan = NULL
        if not self.discard:
            self.taken(count if count < self.next - self.read_at else self.next - self.read_at)
        return True
