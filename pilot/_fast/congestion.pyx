"""Congestion control of one peer path, shared by its streams: the small interface, and CUBIC (RFC 9438) behind it.

(_fast, L7.) The default controller is in bbr.pyx.
"""
from libc.math cimport INFINITY, cbrt
from libc.stdint cimport uint64_t

from pilot._fast.bursts cimport BurstCheck

cdef enum:
    DEFAULT_SEGMENT = 1152
    INITIAL_WINDOW = 40960              # what stock nodes start with: 36 segments of 1152 bytes
    MAX_WINDOW = 1 << 26                # no path of ours has a larger bandwidth-delay product worth filling
    HYSTART_SAMPLES = 8

# Timers have a grain of a millisecond: that much may leave early, and an overslept timer gets so much back.
cdef double PACING_AHEAD = 0.001
cdef double PACING_CREDIT = 0.002
cdef double HYSTART_LEAST = 0.004
cdef double HYSTART_MOST = 0.016
cdef double CUBIC_C = 0.4
cdef double BETA = 0.7
cdef double RENO_ALPHA = 3.0 * (1.0 - 0.7) / (1.0 + 0.7)


cdef class Congestion:
    """Base of the controllers: bytes in flight, delivery counts, round-trip time, pacing; no limit of its own."""

    def __cinit__(self) -> None:
        self.segment = DEFAULT_SEGMENT
        self.cwnd = INITIAL_WINDOW
        self.min_rtt = INFINITY
        self.bursts = BurstCheck()

    cdef void on_send(self, uint64_t size, delivery_stamp *stamp, double now) noexcept:
        if self.in_flight == 0:
            self.first_sent_at = self.delivered_at = now
        stamp.delivered = self.delivered
        stamp.delivered_at = self.delivered_at
        stamp.first_sent_at = self.first_sent_at
        stamp.app_limited = self.app_limited != 0
        self.in_flight += size
        if self.pacing_rate > 0.0:
            if self.paced_until < now - PACING_CREDIT:
                self.paced_until = now - PACING_CREDIT
            self.paced_until += <double> size / self.pacing_rate

    cdef void on_removed(self, uint64_t size) noexcept:
        self.in_flight -= size if size < self.in_flight else self.in_flight

    cdef void on_delivered(self, uint64_t size, const delivery_stamp *stamp, double sent_at, double now) noexcept:
        self.delivered += size
        self.delivered_at = now

    cdef void on_rtt(self, double rtt, double now) noexcept:
        self.srtt = rtt if self.srtt == 0.0 else self.srtt + (rtt - self.srtt) / 8
        if rtt < self.min_rtt:
            self.min_rtt = rtt

    cdef void on_ack(self, uint64_t acked, double now) noexcept:
        pass

    cdef void on_loss(self, uint64_t lost, double sent_at, double now) noexcept:
        pass

    cdef void on_spurious(self, double now) noexcept:
        pass

    cdef void on_timeout(self, double now) noexcept:
        pass

    cdef void on_idle(self) noexcept:
        pass

    cdef void set_segment(self, uint64_t segment) noexcept:
        self.segment = segment

    cdef void reset(self) noexcept:
        self.srtt = self.pacing_rate = self.paced_until = 0.0
        self.min_rtt = INFINITY
        self.bursts.reset()

    cdef bint has_room(self, uint64_t size, double now) noexcept:
        """Whether `size` more bytes may leave now. A lone segment always may."""
        if self.in_flight and self.in_flight + size > self.cwnd:
            return False
        return self.next_send() <= now

    cdef double next_send(self) noexcept:
        """When pacing lets the next segment go; in the past where it does not hold anything back."""
        return self.paced_until - PACING_AHEAD if self.pacing_rate > 0.0 else -INFINITY


cdef class Unlimited(Congestion):
    """The path of a node to itself: nothing is ever in the way."""

    cdef bint has_room(self, uint64_t size, double now) noexcept:
        return True


cdef class Cubic(Congestion):
    """CUBIC with slow start. One reduction per round trip: a loss counts only if it
    was sent after the last reduction."""

    def __cinit__(self) -> None:
        self.ssthresh = MAX_WINDOW
        self.last_reduction = -INFINITY
        self.last_limited = -INFINITY
        self.round_rtt = self.last_round_rtt = INFINITY

    cdef void set_segment(self, uint64_t segment) noexcept:
        self.segment = segment
        # A few segments must always fit: windows counted in bytes would otherwise stop a path with large segments.
        if self.cwnd < 4 * segment and self.last_reduction == -INFINITY:
            self.cwnd = 4 * segment

    cdef void reset(self) noexcept:
        Congestion.reset(self)
        self.ssthresh = MAX_WINDOW
        self.cwnd = INITIAL_WINDOW if 4 * self.segment < INITIAL_WINDOW else 4 * self.segment
        self.w_max = self.epoch_start = self.k = self.w_est = 0.0
        self.last_reduction = -INFINITY
        self.round_rtt = self.last_round_rtt = INFINITY
        self.undo_cwnd = 0

    cdef void on_send(self, uint64_t size, delivery_stamp *stamp, double now) noexcept:
        Congestion.on_send(self, size, stamp, now)
        if self.in_flight + 2 * self.segment >= self.cwnd:
            self.last_limited = now

    cdef void on_rtt(self, double rtt, double now) noexcept:
        Congestion.on_rtt(self, rtt, now)
        self.round_samples += 1
        if rtt < self.round_rtt:
            self.round_rtt = rtt

    cdef bint queue_grows(self) noexcept:
        """HyStart++ (RFC 9406): the shortest round-trip time of this round is clearly above that of the last."""
        cdef double margin = self.last_round_rtt / 8
        if margin < HYSTART_LEAST:
            margin = HYSTART_LEAST
        elif margin > HYSTART_MOST:
            margin = HYSTART_MOST
        return self.round_samples >= HYSTART_SAMPLES and self.round_rtt >= self.last_round_rtt + margin

    cdef void on_ack(self, uint64_t acked, double now) noexcept:
        cdef double t, target, window, rtt
        if self.delivered >= self.round_end:
            self.round_end = self.delivered + self.in_flight
            self.last_round_rtt = self.round_rtt
            self.round_rtt = INFINITY
            self.round_samples = 0
        elif self.cwnd < self.ssthresh and self.last_round_rtt < INFINITY and self.queue_grows():
            self.ssthresh = self.cwnd
        rtt = self.srtt if self.srtt > 0.0 else 0.1
        # A window that is not used says nothing about the path: grow only while it
        # was the limit within a round trip or so.
        if now - self.last_limited > 2.0 * rtt + 0.01:
            return
        if self.cwnd < self.ssthresh:
            self.cwnd += acked
        else:
            if self.epoch_start == 0.0:
                self.epoch_start = now
                window = <double> self.cwnd / self.segment
                if self.w_max < window:
                    self.w_max = window
                self.k = cbrt((self.w_max - window) / CUBIC_C)
                self.w_est = window
            window = <double> self.cwnd / self.segment
            t = now - self.epoch_start + rtt - self.k
            target = CUBIC_C * t * t * t + self.w_max
            self.w_est += RENO_ALPHA * (<double> acked / self.segment) / window
            if target < self.w_est:
                target = self.w_est
            if target > window * 1.5:
                target = window * 1.5
            if target > window:
                self.cwnd += <uint64_t> ((target - window) / window * acked)
        if self.cwnd > MAX_WINDOW:
            self.cwnd = MAX_WINDOW

    cdef double reduce(self, double now) noexcept:
        cdef double window = <double> self.cwnd / self.segment
        self.w_max = window * (1.0 + BETA) / 2.0 if window < self.w_max else window
        self.epoch_start = 0.0
        self.last_reduction = now
        self.undo_cwnd, self.undo_ssthresh = self.cwnd, self.ssthresh
        self.ssthresh = <uint64_t> (self.cwnd * BETA)
        if self.ssthresh < 2 * self.segment:
            self.ssthresh = 2 * self.segment
        return window

    cdef void on_spurious(self, double now) noexcept:
        """The loss behind the last reduction was none: take the reduction back (RFC 4015)."""
        if self.undo_cwnd > self.cwnd:
            self.cwnd, self.ssthresh = self.undo_cwnd, self.undo_ssthresh
            self.epoch_start = 0.0
        self.undo_cwnd = 0

    cdef void on_loss(self, uint64_t lost, double sent_at, double now) noexcept:
        if sent_at <= self.last_reduction:
            return
        self.reduce(now)
        self.cwnd = self.ssthresh

    cdef void on_timeout(self, double now) noexcept:
        self.reduce(now)
        self.cwnd = 2 * self.segment
