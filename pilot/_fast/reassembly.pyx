"""Which bytes beyond RCV.NXT have arrived: merged ranges, and the choice of SACK blocks (_fast, L7)."""
from libc.stdint cimport uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memmove

cdef class Reassembly:
    """Ranges of stream offsets held behind a hole. The bytes themselves are in the
    receive ring, at their final place."""

    def __dealloc__(self):
        free(self.ranges)

    cdef bint add(self, uint64_t left, uint64_t right) noexcept:
        """Remember [left, right), merged with what it touches. False: table full or no memory, drop the segment."""
        cdef int low = 0, high = self.count, middle, end
        cdef uint64_t tail = left
        cdef range64 *grown
        # First range that ends at or behind `left`: the only candidate to merge with from below.
        while low < high:
            middle = (low + high) >> 1
            if self.ranges[middle].right >= left:
                high = middle
            else:
                low = middle + 1
        end = low
        while end < self.count and self.ranges[end].left <= right:
            end += 1
        if end > low:
            if self.ranges[low].left < left:
                left = self.ranges[low].left
            if self.ranges[end - 1].right > right:
                right = self.ranges[end - 1].right
                tail = self.ranges[end - 1].tail
            memmove(&self.ranges[low + 1], &self.ranges[end], (self.count - end) * sizeof(range64))
            self.count -= end - low - 1
        else:
            if self.count == MAX_RANGES:
                return False
            if self.count == self.capacity:
                grown = <range64 *> realloc(self.ranges, (self.capacity * 2 + 4) * sizeof(range64))
                if grown == NULL:
                    return False
                self.ranges = grown
                self.capacity = self.capacity * 2 + 4
            memmove(&self.ranges[low + 1], &self.ranges[low], (self.count - low) * sizeof(range64))
            self.count += 1
        self.ranges[low].left = left
        self.ranges[low].right = right
        self.ranges[low].tail = tail
        self.changed = low
        return True

    cdef uint64_t advance(self, uint64_t next) noexcept:
        """RCV.NXT has come to `next`: drop what it overtook and return where it can go on to."""
        cdef int gone = 0
        while gone < self.count and self.ranges[gone].left <= next:
            if self.ranges[gone].right > next:
                next = self.ranges[gone].right
                self.last = self.ranges[gone].tail
            gone += 1
        if gone:
            self.count -= gone
            memmove(self.ranges, &self.ranges[gone], self.count * sizeof(range64))
            self.changed = self.changed - gone if self.changed >= gone else 0
            if self.count == 0:
                self.clear()
        return next

    cdef uint64_t highest(self) noexcept:
        return self.ranges[self.count - 1].right if self.count else 0

    cdef int choose(self, range64 *out, int most) noexcept:
        """At most `most` blocks: the one that just changed, then the others in turn,
        so that every hole is reported soon."""
        cdef int n = 0, i, tried
        if self.count == 0:
            return 0
        if self.changed >= self.count:
            self.changed = self.count - 1
        out[0] = self.ranges[self.changed]
        n = 1
        for tried in range(self.count):
            if n == most:
                break
            i = (self.rotation + tried) % self.count
            if i != self.changed:
                out[n] = self.ranges[i]
                n += 1
                if n == most:
                    self.rotation = (i + 1) % self.count
        return n

    cdef void clear(self) noexcept:
        free(self.ranges)
        self.ranges = NULL
        self.count = self.capacity = self.changed = self.rotation = 0
