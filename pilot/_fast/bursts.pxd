# Whether segmented sends survive the way to a peer (_fast, L2): see bursts.pyx.
from libc.stdint cimport uint32_t


cdef class BurstCheck:
    cdef readonly bint single       # each datagram is to be sent by itself
    cdef readonly bint off          # ... for as long as this path lasts
    cdef readonly bint proven       # datagrams of one burst have arrived since all was lost the last time
    cdef int strikes
    cdef uint32_t lost
    cdef uint32_t arrived
    cdef uint32_t together          # arrivals in a row that had been sent at the same time
    cdef double sent_together
    cdef double since               # packets sent later than this are counted
    cdef double not_before
    cpdef void judge(self, double sent_at, bint has_arrived) noexcept
    cpdef void doubt(self) noexcept
    cpdef bint decide(self, double now) noexcept
    cpdef void reset(self) noexcept
    cdef void restart(self, double now) noexcept
