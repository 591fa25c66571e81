# Out-of-order ranges of one stream (_fast, L7): see reassembly.pyx.
from libc.stdint cimport uint64_t

cdef enum:
    MAX_RANGES = 4096           # a stranger may send every other byte; a hole more than this is not remembered


cdef struct range64:
    uint64_t left
    uint64_t right
    uint64_t tail               # where the segment begins that ends at `right`


cdef class Reassembly:
    cdef range64 *ranges        # ascending, disjoint, not adjacent; all above RCV.NXT
    cdef int count
    cdef int capacity
    cdef int changed            # index of the range the last insert touched
    cdef int rotation           # where the next SACK goes on reporting
    cdef uint64_t last          # where the segment begins that ends at RCV.NXT
    cdef bint add(self, uint64_t left, uint64_t right) noexcept
    cdef uint64_t advance(self, uint64_t next) noexcept
    cdef uint64_t highest(self) noexcept
    cdef int choose(self, range64 *out, int most) noexcept
    cdef void clear(self) noexcept
