# Congestion control of one peer path (_fast, L7): see congestion.pyx.
from libc.stdint cimport uint64_t

from pilot._fast.bursts cimport BurstCheck


# What the path looked like when a segment left: its acknowledgment then tells how fast bytes are delivered
# (draft-cheng-iccrg-delivery-rate-estimation).
cdef struct delivery_stamp:
    uint64_t delivered
    double delivered_at
    double first_sent_at
    bint app_limited


cdef class Congestion:
    # What every controller answers to. All sizes are bytes of stream payload, times are seconds.
    cdef readonly uint64_t cwnd
    cdef readonly uint64_t in_flight    # over all streams of the path
    cdef readonly double pacing_rate    # bytes a second; 0.0 = not paced
    cdef readonly double srtt           # 0.0 before the first sample
    cdef readonly double min_rtt
    cdef readonly BurstCheck bursts
    cdef uint64_t segment               # current segment size
    cdef uint64_t delivered             # bytes acknowledged or SACKed over the life of the path
    cdef double delivered_at
    cdef double first_sent_at
    cdef uint64_t app_limited           # `delivered` at which the last idle spell has left the path; 0 = none
    cdef double paced_until             # when the bytes sent so far are due to have left
    cdef void on_send(self, uint64_t size, delivery_stamp *stamp, double now) noexcept
    # acknowledged, SACKed, lost or forgotten: no longer in flight
    cdef void on_removed(self, uint64_t size) noexcept
    cdef void on_delivered(self, uint64_t size, const delivery_stamp *stamp, double sent_at, double now) noexcept
    cdef void on_rtt(self, double rtt, double now) noexcept
    cdef void on_ack(self, uint64_t acked, double now) noexcept         # after all on_delivered of one acknowledgment
    cdef void on_loss(self, uint64_t lost, double sent_at, double now) noexcept
    cdef void on_spurious(self, double now) noexcept         # what was taken for lost had only been late
    cdef void on_timeout(self, double now) noexcept
    cdef void on_idle(self) noexcept                         # nothing to send though the window has room
    cdef void set_segment(self, uint64_t segment) noexcept
    cdef void reset(self) noexcept                           # the path changed
    cdef bint has_room(self, uint64_t size, double now) noexcept
    cdef double next_send(self) noexcept


cdef class Unlimited(Congestion):
    pass


cdef class Cubic(Congestion):
    cdef readonly uint64_t ssthresh
    cdef double w_max
    cdef double epoch_start
    cdef double k
    cdef double w_est
    cdef double last_reduction
    cdef double last_limited
    cdef uint64_t round_end             # `delivered` at which the current round trip is over
    cdef double round_rtt               # shortest sample of this round trip and of the one before
    cdef double last_round_rtt
    cdef int round_samples
    cdef uint64_t undo_cwnd
    cdef uint64_t undo_ssthresh
    cdef double reduce(self, double now) noexcept
    cdef bint queue_grows(self) noexcept
