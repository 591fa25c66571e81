# Model-based congestion control (_fast, L7): see bbr.pyx.
from libc.stdint cimport uint64_t

from pilot._fast.congestion cimport Congestion, delivery_stamp

cdef enum:
    BANDWIDTH_ROUNDS = 10           # round trips a delivery rate is remembered

cdef enum bbr_mode:
    STARTUP = 0                     # doubling until the delivery rate stops growing
    DRAIN = 1                       # empty the queue that made
    PROBE_BW = 2                    # cruise, and look for more one round trip in eight
    PROBE_RTT = 3                   # half a window for a moment, to see the path without a queue


cdef class Bbr(Congestion):
    cdef readonly bbr_mode mode
    cdef double rates[BANDWIDTH_ROUNDS]     # best delivery rate of each recent round
    cdef readonly double bandwidth                   # the best of those, bytes a second
    cdef readonly uint64_t rounds
    cdef uint64_t round_end                 # `delivered` at which the current round trip is over
    cdef double pacing_gain
    cdef double cwnd_gain
    cdef double full_bandwidth              # rate at which STARTUP last saw growth
    cdef int full_rounds                    # rounds without growth since
    cdef readonly bint filled                        # the pipe has been full once
    cdef int phase                          # of the gain cycle
    cdef double phase_at
    cdef double probed_bandwidth            # when the last probe for more began
    cdef double min_rtt_at
    cdef double probe_rtt_until
    cdef readonly uint64_t most_in_flight            # what the path has held without a standing queue and its losses
    cdef double bounded_until               # the bound is not raised before
    cdef uint64_t undo_most_in_flight
    cdef uint64_t round_lost                # bytes of this round trip
    cdef uint64_t round_delivered
    cdef uint64_t round_flight              # most in flight during it
    cdef double usual_loss                  # share of the bytes, averaged over rounds
    cdef double round_rtt                   # its shortest sample
    cdef double aggregation_at              # acknowledgments in lumps: when the lump began, and what came with it
    cdef uint64_t aggregated
    cdef uint64_t extra[2]                  # the largest lump beyond the rate, this period and the last
    cdef uint64_t extra_round
    cdef delivery_stamp sample              # newest segment of the acknowledgment at hand
    cdef double sample_sent_at
    cdef bint has_sample
    cdef bint limited                       # the last sample was not limited by the path
    cdef bint recovering                    # from a timeout: the window is smaller than the path
    cdef void restart(self) noexcept
    cdef uint64_t bdp(self, double gain) noexcept
    cdef void take_rate(self, double now) noexcept
    cdef bint queue_shown(self) noexcept
    cdef void end_round(self, double now) noexcept
    cdef bint congested(self) noexcept
    cdef void judge_losses(self, double now) noexcept
    cdef void check_full(self) noexcept
    cdef void note_aggregation(self, uint64_t acked, double now) noexcept
    cdef void advance(self, double now) noexcept
    cdef void enter_probe_bw(self, double now) noexcept
    cdef void next_phase(self, double now) noexcept
    cdef void update_min_rtt(self, double now) noexcept
    cdef void set_pacing(self) noexcept
    cdef void set_window(self, uint64_t acked) noexcept
    cdef uint64_t quantum(self) noexcept
