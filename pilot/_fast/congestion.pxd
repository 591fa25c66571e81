# Congestion control of one peer path (_fast, L7): see congestion.pyx.
from libc.stdint cimport uint64_t


cdef class Congestion:
    # What every controller answers to. All sizes are bytes of stream payload.
    cdef readonly uint64_t cwnd
    cdef readonly uint64_t in_flight    # over all streams of the path
    cdef readonly double srtt           # seconds; 0.0 before the first sample
    cdef readonly double min_rtt
    cdef uint64_t segment               # current segment size
    cdef void on_send(self, uint64_t size, double now) noexcept
    # acknowledged, SACKed, lost or forgotten: no longer in flight
    cdef void on_removed(self, uint64_t size) noexcept
    cdef void on_rtt(self, double rtt) noexcept
    cdef void on_ack(self, uint64_t acked, double now) noexcept
    cdef void on_loss(self, double sent_at, double now) noexcept
    cdef void on_timeout(self, double now) noexcept
    cdef void set_segment(self, uint64_t segment) noexcept
    cdef void reset(self) noexcept                           # the path changed


cdef class Cubic(Congestion):
    cdef readonly uint64_t ssthresh
    cdef double w_max
    cdef double epoch_start
    cdef double k
    cdef double w_est
    cdef double last_reduction
    cdef double last_limited
    cdef double reduce(self, double now) noexcept
