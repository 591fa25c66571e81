"""The default congestion controller: a model of the path (delivery rate, shortest round trip) after BBR (_fast, L7).

Source: draft-cardwell-iccrg-bbr-congestion-control (versions 00 and 02) and draft-cheng-iccrg-delivery-rate-estimation;
DESIGN section 4 for what a loss means: congestion only where the round-trip time shows a queue, or above a fifth.
"""
from libc.math cimport INFINITY, sqrt
from libc.stdint cimport uint64_t

cdef enum:
    INITIAL_WINDOW = 40960
    MAX_WINDOW = 1 << 26
    CYCLE = 8
    FULL_ROUNDS = 3
    MIN_SEGMENTS = 4
    MAX_QUANTUM = 65536
    EXTRA_ROUNDS = 5

cdef double HIGH_GAIN = 2.885           # 2 / ln 2: the rate doubles each round trip
cdef double GROWTH = 1.25
cdef double GROWN = 1.1
cdef double PROBE_GAIN = 1.25
cdef double YIELD_GAIN = 0.75
cdef double CRUISE_WINDOW_GAIN = 2.0
cdef double MARGIN = 0.99               # paced a little under the estimate, so that no queue stands
cdef double MIN_RTT_SECONDS = 10.0
cdef double PROBE_RTT_SECONDS = 0.2
cdef double PROBE_RTT_GAIN = 0.5
cdef double SHORT_RTT = 0.001           # below it timers are too coarse to pace; the window alone holds back
cdef double TOLERATED_LOSS = 0.003      # of a round, once a queue shows
cdef double LOSS_ROUNDS = 32.0           # over which the usual rate of loss is averaged
cdef double MUCH_LOSS = 0.2             # of a round, whatever the queue
cdef double LOSS_BETA = 0.7
cdef double BOUND_SECONDS = 2.0         # before more is tried again: a neighbour's CUBIC has its turn
cdef double QUEUE_RATIO = 1.1
cdef double QUEUE_SECONDS = 0.001
cdef double MOST_AGGREGATION = 0.1      # seconds of delivery rate


cdef bint beyond_chance(double lost, double expected) noexcept:
    """Few segments prove little: twice the standard deviation above what is expected of as many."""
    return lost > expected + 2.0 * sqrt(expected) + 1.0


cdef class Bbr(Congestion):
    """BBR: the window is a multiple of the bandwidth-delay product, sending is paced at the delivery rate."""

    def __cinit__(self) -> None:
        self.restart()

    cdef void restart(self) noexcept:
        cdef int i
        for i in range(BANDWIDTH_ROUNDS):
            self.rates[i] = 0.0
        self.mode = STARTUP
        self.pacing_gain = self.cwnd_gain = HIGH_GAIN
        self.bandwidth = self.full_bandwidth = 0.0
        self.full_rounds = 0
        self.filled = self.has_sample = self.recovering = self.limited = False
        self.most_in_flight = self.undo_most_in_flight = MAX_WINDOW
        self.round_lost = self.round_delivered = self.round_flight = 0
        self.round_rtt = INFINITY
        self.round_end = self.delivered
        self.bounded_until = self.usual_loss = 0.0
        self.aggregation_at = 0.0
        self.aggregated = self.extra[0] = self.extra[1] = 0
        self.extra_round = self.rounds

    cdef void reset(self) noexcept:
        Congestion.reset(self)
        self.restart()
        self.cwnd = INITIAL_WINDOW if MIN_SEGMENTS * self.segment < INITIAL_WINDOW else MIN_SEGMENTS * self.segment

    cdef void set_segment(self, uint64_t segment) noexcept:
        self.segment = segment
        if self.cwnd < MIN_SEGMENTS * segment:
            self.cwnd = MIN_SEGMENTS * segment

    # ---- samples -------------------------------------------------------------------------------------------------

    cdef void on_delivered(self, uint64_t size, const delivery_stamp *stamp, double sent_at, double now) noexcept:
        self.delivered += size
        self.delivered_at = now
        self.round_delivered += size
        if stamp != NULL and (not self.has_sample or stamp.delivered >= self.sample.delivered):
            self.sample = stamp[0]
            self.sample_sent_at = sent_at
            self.has_sample = True

    cdef void on_send(self, uint64_t size, delivery_stamp *stamp, double now) noexcept:
        Congestion.on_send(self, size, stamp, now)
        if self.in_flight > self.round_flight:
            self.round_flight = self.in_flight
        if self.recovering:
            stamp.app_limited = True

    cdef void on_rtt(self, double rtt, double now) noexcept:
        self.srtt = rtt if self.srtt == 0.0 else self.srtt + (rtt - self.srtt) / 8
        if rtt < self.round_rtt:
            self.round_rtt = rtt
        if rtt <= self.min_rtt:
            self.min_rtt = rtt
            self.min_rtt_at = now

    cdef void on_loss(self, uint64_t lost, double sent_at, double now) noexcept:
        self.round_lost += lost

    cdef void on_spurious(self, double now) noexcept:
        """The losses behind the last bound were none."""
        if self.undo_most_in_flight > self.most_in_flight:
            self.most_in_flight = self.undo_most_in_flight

    cdef void on_timeout(self, double now) noexcept:
        """Everything in flight is taken for lost: a few segments feel the way, acknowledgments bring the window back.

        Until then the delivery rate is that of the window, not of the path, and teaches nothing.
        """
        self.cwnd = MIN_SEGMENTS * self.segment
        self.recovering = True

    cdef void on_idle(self) noexcept:
        if self.in_flight + self.segment <= self.cwnd:
            self.app_limited = self.delivered + self.in_flight
            if self.app_limited == 0:
                self.app_limited = 1

    cdef void on_ack(self, uint64_t acked, double now) noexcept:
        if self.app_limited and self.delivered > self.app_limited:
            self.app_limited = 0
        if self.has_sample:
            self.take_rate(now)
            self.has_sample = False
        self.note_aggregation(acked, now)
        self.advance(now)
        self.update_min_rtt(now)
        self.set_pacing()
        self.set_window(acked)

    cdef void take_rate(self, double now) noexcept:
        cdef double interval = now - self.sample.delivered_at
        cdef double rate
        cdef int slot
        self.first_sent_at = self.sample_sent_at
        self.limited = self.sample.app_limited
        if self.sample_sent_at - self.sample.first_sent_at > interval:
            interval = self.sample_sent_at - self.sample.first_sent_at
        if self.sample.delivered >= self.round_end:
            self.end_round(now)
        if interval <= 0.0 or interval < self.min_rtt:
            return
        rate = <double> (self.delivered - self.sample.delivered) / interval
        if self.limited and rate < self.bandwidth:
            return
        slot = self.rounds % BANDWIDTH_ROUNDS
        if rate > self.rates[slot]:
            self.rates[slot] = rate
            if rate > self.bandwidth:
                self.bandwidth = rate

    cdef void end_round(self, double now) noexcept:
        cdef int i
        self.judge_losses(now)
        if not self.filled and not self.limited:
            self.check_full()
        self.round_end = self.delivered
        self.round_lost = self.round_delivered = 0
        self.round_flight = self.in_flight
        self.round_rtt = INFINITY
        if self.limited:
            return                      # a path that is not used keeps what was learnt about it
        self.rounds += 1
        self.rates[self.rounds % BANDWIDTH_ROUNDS] = 0.0
        self.bandwidth = 0.0
        for i in range(BANDWIDTH_ROUNDS):
            if self.rates[i] > self.bandwidth:
                self.bandwidth = self.rates[i]

    cdef bint queue_shown(self) noexcept:
        return self.round_rtt < INFINITY and self.round_rtt > QUEUE_RATIO * self.min_rtt + (
            QUEUE_SECONDS if self.min_rtt >= SHORT_RTT else 0.0)

    cdef bint congested(self) noexcept:
        """Whether the losses of the round that is over mean more in flight than the path holds, or are mere chance.

        Chance loses at an even rate, whatever is in flight; a full queue loses in bursts, and its delay shows.
        """
        cdef double total = <double> (self.round_lost + self.round_delivered) / self.segment
        cdef double lost = <double> self.round_lost / self.segment
        cdef double usual = self.usual_loss
        if total < 1.0:
            return False
        self.usual_loss += (lost / total - usual) / LOSS_ROUNDS
        if beyond_chance(lost, MUCH_LOSS * total):
            return True
        return self.filled and beyond_chance(lost, (TOLERATED_LOSS + 2.0 * usual) * total) and self.queue_shown()

    cdef void judge_losses(self, double now) noexcept:
        cdef uint64_t held
        if self.congested():
            held = self.bdp(1.0)
            if held < self.round_flight:
                held = self.round_flight
            self.undo_most_in_flight = self.most_in_flight
            self.most_in_flight = <uint64_t> (held * LOSS_BETA)
            self.bounded_until = now + BOUND_SECONDS
            self.filled = True              # STARTUP has found the end
        elif self.most_in_flight < MAX_WINDOW and self.mode == PROBE_BW and self.phase == 0 and (
                now > self.bounded_until):
            self.most_in_flight = <uint64_t> (self.most_in_flight * PROBE_GAIN)

    cdef void check_full(self) noexcept:
        if self.bandwidth >= self.full_bandwidth * GROWTH:
            self.full_bandwidth = self.bandwidth
            self.full_rounds = 0
            return
        self.full_rounds += 1
        self.filled = self.full_rounds >= FULL_ROUNDS

    cdef void note_aggregation(self, uint64_t acked, double now) noexcept:
        """Acknowledgments come in lumps (batches, offloads, a busy loop): the window must outlast the gaps."""
        cdef double expected = self.bandwidth * (now - self.aggregation_at)
        cdef uint64_t surplus
        if self.aggregated <= expected:
            self.aggregated = 0
            self.aggregation_at = now
            expected = 0.0
        self.aggregated += acked
        if self.aggregated <= expected:
            return
        surplus = <uint64_t> (self.aggregated - expected)
        if surplus > self.cwnd:
            surplus = self.cwnd
        if self.rounds - self.extra_round >= EXTRA_ROUNDS:
            self.extra_round = self.rounds
            self.extra[1] = self.extra[0]
            self.extra[0] = 0
        if surplus > self.extra[0]:
            self.extra[0] = surplus

    # ---- modes ---------------------------------------------------------------------------------------------------

    cdef uint64_t bdp(self, double gain) noexcept:
        if self.min_rtt == INFINITY or self.bandwidth == 0.0:
            return INITIAL_WINDOW
        return <uint64_t> (gain * self.bandwidth * self.min_rtt)

    cdef void advance(self, double now) noexcept:
        if self.mode == STARTUP and self.filled:
            if self.min_rtt < SHORT_RTT:
                self.enter_probe_bw(now)    # without pacing the smaller window drains by itself
            else:
                self.mode = DRAIN
                self.pacing_gain = 1.0 / HIGH_GAIN
        if self.mode == DRAIN and self.in_flight <= self.bdp(1.0):
            self.enter_probe_bw(now)
        if self.mode == PROBE_BW:
            self.next_phase(now)

    cdef void enter_probe_bw(self, double now) noexcept:
        self.mode = PROBE_BW
        self.cwnd_gain = CRUISE_WINDOW_GAIN
        # Any phase but the draining one; spread by what has been delivered, so that paths do not probe in step.
        self.phase = 2 + <int> (self.delivered // 4096 % (CYCLE - 2))
        self.phase_at = now
        self.probed_bandwidth = INFINITY
        self.pacing_gain = 1.0

    cdef void next_phase(self, double now) noexcept:
        cdef bint over = now - self.phase_at > self.min_rtt
        if self.phase == 0:
            over = over and (self.in_flight >= self.bdp(PROBE_GAIN) or self.round_lost > 0
                             or self.in_flight >= self.most_in_flight or self.app_limited != 0)
        elif self.phase == 1:
            over = over or self.in_flight <= self.bdp(1.0)
        if not over:
            return
        if self.phase == 1 and self.bandwidth >= GROWN * self.probed_bandwidth and not self.queue_shown():
            self.phase = 0                  # the probe has found more and there is no queue yet: go on
        else:
            self.phase = (self.phase + 1) % CYCLE
        if self.phase == 0:
            self.probed_bandwidth = self.bandwidth
        self.phase_at = now
        self.pacing_gain = PROBE_GAIN if self.phase == 0 else YIELD_GAIN if self.phase == 1 else 1.0

    cdef void update_min_rtt(self, double now) noexcept:
        """The shortest round trip is believed for ten seconds; then the queue is let run empty to see it again."""
        if self.mode == PROBE_RTT:
            if self.probe_rtt_until == 0.0 and self.in_flight <= self.bdp(PROBE_RTT_GAIN) + MIN_SEGMENTS * self.segment:
                self.probe_rtt_until = now + PROBE_RTT_SECONDS
                self.min_rtt = self.round_rtt if self.round_rtt < INFINITY else self.srtt
            elif self.probe_rtt_until > 0.0 and now >= self.probe_rtt_until:
                self.min_rtt_at = now
                if self.filled:
                    self.enter_probe_bw(now)
                else:
                    self.mode = STARTUP
                    self.pacing_gain = self.cwnd_gain = HIGH_GAIN
            return
        if now - self.min_rtt_at <= MIN_RTT_SECONDS or self.min_rtt == INFINITY:
            return
        if self.min_rtt < SHORT_RTT or self.limited:
            # Nothing to drain: the samples of this round trip are those of an idle path.
            self.min_rtt = self.round_rtt if self.round_rtt < INFINITY else self.srtt
            self.min_rtt_at = now
            return
        self.mode = PROBE_RTT
        self.pacing_gain = 1.0
        self.probe_rtt_until = 0.0

    # ---- what follows from the model -----------------------------------------------------------------------------

    cdef uint64_t quantum(self) noexcept:
        cdef uint64_t burst = <uint64_t> (self.pacing_rate * 0.001)
        if burst > MAX_QUANTUM or self.pacing_rate == 0.0:
            burst = MAX_QUANTUM
        return burst if burst > 2 * self.segment else 2 * self.segment

    cdef void set_pacing(self) noexcept:
        cdef double rate = self.bandwidth
        if self.min_rtt < SHORT_RTT or self.srtt == 0.0:
            self.pacing_rate = 0.0
            return
        if not self.filled and rate < self.cwnd / self.srtt:
            rate = self.cwnd / self.srtt        # a few bytes have been sent: no estimate yet
        rate *= self.pacing_gain * MARGIN
        if self.filled or rate > self.pacing_rate:
            self.pacing_rate = rate

    cdef void set_window(self, uint64_t acked) noexcept:
        cdef uint64_t extra = self.extra[0] if self.extra[0] > self.extra[1] else self.extra[1]
        cdef uint64_t target, most = <uint64_t> (self.bandwidth * MOST_AGGREGATION)
        if extra > most:
            extra = most
        target = self.bdp(self.cwnd_gain) + extra + 3 * self.quantum()
        if self.cwnd >= target:
            self.recovering = False
        if self.mode == PROBE_RTT:
            target = self.bdp(PROBE_RTT_GAIN)
            if self.cwnd > target:
                self.cwnd = target
        elif self.filled:
            self.cwnd += acked
            if self.cwnd > target:
                self.cwnd = target
        elif self.cwnd < target or self.delivered < INITIAL_WINDOW:
            self.cwnd += acked
        if self.filled and self.cwnd > self.most_in_flight:
            self.cwnd = self.most_in_flight
        if self.cwnd > MAX_WINDOW:
            self.cwnd = MAX_WINDOW
        if self.cwnd < MIN_SEGMENTS * self.segment:
            self.cwnd = MIN_SEGMENTS * self.segment
