# Memory that stream buffers may take (_fast, ground floor): see budget.pyx.
from libc.stdint cimport uint64_t


cdef class Budget:
    cdef readonly uint64_t limit    # bytes all rings of a kind may own together
    cdef readonly uint64_t used


cdef class Share:
    cdef Budget budget
    cdef readonly uint64_t used     # bytes of the rings of one peer
    cdef uint64_t reachable(self, uint64_t held, uint64_t wanted) noexcept
    cdef void resized(self, uint64_t before, uint64_t after) noexcept
