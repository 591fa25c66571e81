# Out-of-order ranges of one stream (_fast, L7): see reassembly.pyx.
from libc.stdint cimport uint64_t

cdef enum:
    MAX_RANGES = 4096           # a stranger may send every other byte; a hole more than this is not remembered


cdef struct range64:
    uint64_t left
    uint64_t right


cdef class Reassembly:
    cdef range64 *ranges        # ascending, disjoint, not adjacent; all above RCV.NXT
    cdef int count
    cdef int capacity
    cdef int changed            # index of the range the last insert touched
    cdef int rotation           # where the next SACK goes on reporting
    cdef bint add(self, uint64_t left, uint64_t right) noexcept
    cdef uint64_t advance(self, uint64_t next) noexcept
    cdef uint64_t highest(self) noexcept
    cdef int choose(self, range64 *out) noexcept
    cdef void clear(self) noexcept
