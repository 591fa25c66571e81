"""The stream state machine: opening, data, acknowledgments, closing, timers; no I/O, no clock of its own (_fast, L7).

Source: streams.md (sections 3-11, 20), DESIGN section 4. Packets come through `Mux` and leave through `Egress`.
"""
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.math cimport INFINITY
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

from pilot._fast.congestion cimport Congestion
from pilot._fast.packet cimport FLAG_ACK, FLAG_FIN, FLAG_RST, FLAG_SYN, packet
from pilot._fast.peer cimport BASE_SEGMENT, Peer
from pilot._fast.receiver cimport IN_ORDER, SLOT_WORTH, arrival
from pilot._fast.recovery cimport SEGMENT_SACKED
from pilot._fast.sender cimport NOTHING, REPAIR, STOCK_WINDOW, WAIT_CONGESTION, Sender, sendable
from pilot._fast.stream_packets cimport (
    ACK_EVERY,
    TIMER_ACK,
    TIMER_CLOSE,
    TIMER_COUNT,
    TIMER_IDLE,
    TIMER_PERSIST,
    TIMER_REPAIR,
    TIMER_RETRANSMIT,
    StreamPackets,
)

from pilot._fast.errors import ClosedError, InvalidValueError, PathError, RefusedError, ResetError
from pilot._fast.stream_types import StreamState, StreamStats, Wake  # no-cython-lint: Wake is re-exported

cdef double SYN_RETRY = 0.25
cdef double SYN_RETRY_MAX = 8.0
cdef double KEY_WAIT = 10.0             # a SYN waits this long for a session before the dial fails
cdef double KEY_POLL = 0.25
cdef double ACK_DELAY = 0.005
cdef double PERSIST_FIRST = 0.5
cdef double PERSIST_MAX = 10.0
cdef double KEEPALIVE = 30.0            # silence after which a probe is sent; stock nodes close after 113 s
cdef double KEEPALIVE_AGAIN = 15.0
cdef double DEAD_AFTER = 120.0
cdef double NO_PROGRESS = 60.0          # give up on time without progress, never on a retransmission count
cdef double LINGER = 5.0                # data may be unacknowledged this long after close; then the FIN goes out
cdef double FIN_PATIENCE = 10.0
cdef double FIN_AGAIN = 1.5
cdef double TIME_WAIT_SECONDS = 10.0
cdef double HELD_FIN_SILENCE = 15.0
cdef double SYN_REPEAT_SPAN = 3.0       # a SYN this much later on a stream with data is a restarted peer
cdef double QUIET_AFTER_REPAIR = 0.8
cdef double TIMER_GRAIN = 0.001
cdef double EMPTY_ACK_INTERVAL = 0.25

cdef enum:
    DIRECT_SYNS = 3                     # then the dial moves to the relay
    SYN_TRANSMISSIONS = 8
    MAX_SACKS_AT_ONCE = 4
    MAX_TIME_WAIT_ANSWERS = 8
    MAX_REDIALS = 3
    MAX_BACKOFF = 16
    WAKE_ROOM = 524288                  # a waiting writer is woken at half the ring, or at this much room


cdef class StreamCore(StreamPackets):
    """One stream, sans-IO. Made by `Mux`; a shell in `pilot.node` makes it awaitable through `owner` and `interest`."""

    # ---- opening -------------------------------------------------------------------------------------------------

    cdef void open_active(self, double now) noexcept:
        """CLOSED -> SYN_SENT."""
        self.phase = SYN_SENT
        self.opened_at = self.last_received = self.last_progress = now
        self.generation = self.peer.generation
        self.attempts = 0
        self.send_syn(now)
        cdef bint reachable = self.peer.session is not None or self.peer.is_self
        self.set_timer(TIMER_RETRANSMIT, now + (SYN_RETRY if reachable else KEY_POLL))

    cdef void send_syn(self, double now) noexcept:
        self.attempts += 1
        self.last_syn = now
        self.into.advertised = self.into.slots()
        self.emit(FLAG_SYN, self.out.iss, 0, self.into.advertised, now)

    cdef void open_passive(self, const packet *syn, double now) noexcept:
        """LISTEN -> ESTABLISHED: the third ACK is not awaited."""
        self.inbound = True
        self.into.irs = syn.seq
        self.out.peer_slots = syn.window
        self.out.ours = syn.window > STOCK_WINDOW
        self.out.window_seq = syn.seq
        self.opened_at = self.last_syn = now
        self.established(now)
        self.on_syn_again(now)

    cdef void on_syn_again(self, double now) noexcept:
        """SYN+ACK with the original sequence number; the stream may have moved on."""
        self.last_syn = now
        self.into.advertised = self.into.slots()
        self.into.edge = self.into.next + <uint64_t> self.into.advertised * SLOT_WORTH
        self.emit(FLAG_SYN | FLAG_ACK, self.out.iss, self.into.seq(), self.into.advertised, now)

    cdef bint repeats_syn(self, const packet *p, double now) noexcept:
        """A SYN for a known stream: a copy of the one that opened it, or the first of a new life on the same ports?

        A random ISN tells by itself. Stock nodes always use 0: for them a new session key since the stream opened
        means a restart, and so does time, for a dialer that has seen the SYN-ACK repeats no SYN.
        """
        if not self.inbound or p.seq != self.into.irs:
            return False
        if p.seq != 0:
            return True
        if self.phase != ESTABLISHED or self.generation != self.peer.generation:
            return False
        return self.into.next == 0 or now - self.last_syn <= SYN_REPEAT_SPAN

    cdef void established(self, double now) noexcept:
        self.phase = ESTABLISHED
        self.generation = self.peer.generation
        self.last_received = self.last_progress = now
        self.attempts = 0
        if self.out.srtt == 0.0 and self.peer.path.srtt > 0.0:
            self.out.on_rtt(self.peer.path.srtt)        # what other streams on this path have learnt
        self.set_timer(TIMER_RETRANSMIT, INFINITY)
        self.set_timer(TIMER_IDLE, now + KEEPALIVE)
        self.events |= WAKE_OPEN | WAKE_WRITE
        self.host.touch(self)
        if self.out.end:
            self.host.want_flush(self)          # written before the answer came

    cdef void on_syn_ack(self, const packet *p, double now) noexcept:
        if self.phase != SYN_SENT:
            return
        if p.ack != self.out.iss + 1:
            # The peer answers for a stream of our previous life: its bytes would be taken for duplicates and lost.
            self.send_reset(now)
            if self.redials < MAX_REDIALS and self.host.redial(self):
                self.redials += 1
                self.attempts = 0
                self.send_syn(now)
                self.set_timer(TIMER_RETRANSMIT, now + SYN_RETRY)
            else:
                self.fail(RefusedError(
                    f"{self.remote_addr} keeps answering for an older stream; try again in a minute"), False, now)
            return
        self.into.irs = p.seq
        self.out.peer_slots = p.window
        self.out.ours = p.window > STOCK_WINDOW
        self.out.window_seq = p.seq
        self.out.window_ack = p.ack
        if self.attempts == 1 and self.generation == self.peer.generation:
            self.out.on_rtt(now - self.last_syn)
            self.peer.path.on_rtt(now - self.last_syn, now)
        self.into.edge = <uint64_t> self.into.advertised * SLOT_WORTH
        self.into.pending = 1       # acknowledges the SYN-ACK, with the first data if that comes soon
        self.established(now)
        self.set_timer(TIMER_ACK, now + ACK_DELAY)

    # ---- receiving -----------------------------------------------------------------------------------------------

    cdef void on_packet(self, const packet *p, double now) noexcept:
        """Anything but a bare SYN, in the order 1.18.0 evaluates flags."""
        self.segments_received += 1
        if p.flags & FLAG_SYN:
            self.on_syn_ack(p, now)
        elif p.flags & FLAG_FIN:
            self.on_fin(p, now)
        elif p.flags & FLAG_RST:
            self.on_reset(now)
        elif p.flags & FLAG_ACK:
            self.on_ack(p, now)

    cdef void on_reset(self, double now) noexcept:
        if self.phase == SYN_SENT:
            self.fail(RefusedError(f"{self.remote_addr} has nobody listening on port {self.remote_port}"), False, now)
        elif self.phase == TIME_WAIT:
            self.vanish()
        else:
            self.host.event("conn.rst", self)
            self.fail(ResetError(f"{self.remote_addr}:{self.remote_port} reset the stream"), False, now)

    cdef void on_ack(self, const packet *p, double now) noexcept:
        cdef uint64_t acked
        cdef bint sack
        if self.phase == SYN_SENT or self.phase >= TIME_WAIT:
            return
        acked = self.out.una + <uint64_t> <int64_t> <int32_t> (p.ack - self.out.seq(self.out.una))
        if self.phase == FIN_WAIT and acked == self.out.end + 1:
            self.enter_time_wait(now)           # a plain ACK of the FIN is enough
            return
        if <int64_t> acked > <int64_t> self.out.nxt:
            return                              # acknowledges what was never sent
        self.last_received = now
        self.probes = 0
        sack = p.length >= 13 and self.out.is_sack(p.payload, p.length)
        self.on_acknowledgment(p, sack, acked, now)
        if p.length and not sack:
            self.on_data(p, now)
        elif p.length == 0 and acked == self.out.una and (self.into.reopened or self.into.window_worth_telling()):
            # A stock node probes a closed window so; answer, but never so that two of us go on for ever.
            if now - self.last_answer >= EMPTY_ACK_INTERVAL:
                self.last_answer = now
                self.into.ack_now = True
                self.host.touch(self)

    cdef void on_acknowledgment(self, const packet *p, bint sack, uint64_t acked, double now) noexcept:
        cdef Sender out = self.out
        cdef Congestion path = self.peer.path
        cdef uint32_t slots_before = out.peer_slots
        cdef bint advanced
        if <int64_t> (acked - out.una) < 0:
            return
        out.update_window(p)
        advanced = acked > out.una
        if advanced or sack:
            out.begin_ack()
            if advanced:
                out.on_ack(acked, path, now)
            if sack:
                out.on_sack(p.payload, path, now)
            if out.sample >= 0.0:
                out.on_rtt(out.sample)
                path.on_rtt(out.sample, now)
            if out.delivered:
                path.on_ack(out.delivered, now)
                self.last_progress = self.rto_base = now
                self.tail_probed = False
                out.backoff = 0
            out.detect_losses(path, now)
            if sack and out.ours and out.seems_stock():
                out.ours = False
            if advanced:
                if self.interest & WAKE_WRITE:
                    out.widen(path)
                if self.interest & WAKE_WRITE and (out.una == out.end or out.room() >= (
                        out.limit // 2 if out.limit < WAKE_ROOM * 2 else WAKE_ROOM)):
                    self.events |= WAKE_WRITE
                    self.host.touch(self)
                if self.interest & WAKE_ACKED:
                    self.events |= WAKE_ACKED
                    self.host.touch(self)
                if self.phase == CLOSING and out.una == out.end:
                    self.send_fin(now)
                    return
        if out.peer_slots and self.timers[TIMER_PERSIST] != INFINITY:
            self.set_timer(TIMER_PERSIST, INFINITY)
            self.attempts = 0
        self.rearm(now)
        if out.lost or out.end != out.nxt or (slots_before == 0) != (out.peer_slots == 0):
            self.host.want_flush(self)

    cdef void on_data(self, const packet *p, double now) noexcept:
        cdef int held = self.into.count
        cdef arrival result = self.into.take(p.seq, p.payload, p.length)
        self.host.touch(self)
        self.into.reopened = False
        if result != IN_ORDER:
            self.into.ack_now = True            # held, a duplicate, or dropped: the sender should know at once
        else:
            self.into.pending += 1
            if held:
                self.into.ack_now = True        # it filled a hole or a part of one
            if not self.into.discard:
                self.events |= WAKE_READ
            if self.fin_held and self.into.next >= self.fin_at:
                self.take_fin(now)
                return
        if not self.out.ours:
            self.acknowledge_stock(result, held > 0, now)

    cdef void on_fin(self, const packet *p, double now) noexcept:
        cdef uint64_t at
        self.last_received = now
        if self.phase == SYN_SENT or self.phase == CLOSED:
            return
        if self.phase == TIME_WAIT:
            # Never FIN-flagged again: two nodes answering each other's FIN-ACK would not stop. An ACK ends a FIN.
            if not p.flags & FLAG_ACK and self.fin_acks < MAX_TIME_WAIT_ANSWERS:
                self.fin_acks += 1
                self.emit(FLAG_ACK, self.out.seq(self.out.end + 1), p.seq + 1, 0, now)
            return
        if self.phase == FIN_WAIT:
            if not p.flags & FLAG_ACK:
                self.emit(FLAG_FIN | FLAG_ACK, self.out.seq(self.out.end), p.seq + 1, 0, now)
            self.enter_time_wait(now)
            return
        at = self.into.offset_of(p.seq)
        if <int64_t> (at - self.into.next) <= 0:
            self.fin_at = self.into.next if <int64_t> (at - self.into.next) < 0 else at
            self.take_fin(now)
            return
        if at - self.into.next > self.into.limit:
            return
        self.fin_held = True
        self.fin_at = at
        if self.phase == ESTABLISHED:
            self.set_timer(TIMER_CLOSE, now + HELD_FIN_SILENCE)
        self.into.ack_now = True
        self.host.touch(self)

    cdef void take_fin(self, double now) noexcept:
        """The peer's FIN has its turn: it ends both directions (there is no half close on this wire)."""
        self.fin_held = False
        self.ended_by_peer = True
        cdef uint32_t ack = <uint32_t> (self.into.irs + 1 + self.fin_at + 1)
        self.emit(FLAG_FIN | FLAG_ACK, self.out.seq(self.out.nxt), ack, 0, now)
        self.enter_time_wait(now)

    # ---- sending -------------------------------------------------------------------------------------------------

    cdef bint transmit(self, int quantum, double now) noexcept:
        """Send what may leave, about `quantum` bytes; True when there is more to send at once."""
        cdef Sender out = self.out
        cdef Peer peer = self.peer
        cdef sendable what
        cdef uint32_t length
        cdef bint sent = False
        if self.phase != ESTABLISHED and self.phase != CLOSING:
            return False
        if peer.session is None and not peer.is_self:
            self.want_session(now)
            return False
        while quantum > 0:
            what = out.what_next(peer, now)
            if what == NOTHING:
                if not peer.blocked and out.lost == 0:
                    peer.path.on_idle()
                break
            if what == WAIT_CONGESTION:
                self.host.wait_for_window(self)
                break
            if what == REPAIR:
                length = self.send_repair(now)
            else:
                length = out.next_length(peer)
                if not out.push(out.nxt, length, peer.path, now):
                    break
                if out.first + 1 == out.last:
                    self.rto_base = self.last_progress = now
                out.nxt += length
                self.send_segment(out.nxt - length, length, now)
            sent = True
            quantum -= <int> length
        if sent:
            peer.last_used = now
            self.rearm(now)
        elif out.end != out.nxt or out.lost:
            self.rearm(now)
        return quantum <= 0

    cdef void want_session(self, double now) noexcept:
        """Data to send and no session (the peer was dropped or forgotten): ask for one; the timer tries again."""
        try:
            self.host.egress.control.session_wanted(self.peer, now)
        except Exception as error:
            self.fail(PathError(f"no session with {self.remote_addr}: {error}"), False, now)
            return
        self.set_timer(TIMER_RETRANSMIT, now + KEY_POLL)

    cdef void end_of_batch(self, double now) noexcept:
        """One acknowledgment decision for everything the batch brought."""
        cdef int n
        if self.phase >= FIN_WAIT or self.phase == SYN_SENT:
            return
        if self.into.ack_now or self.into.pending >= ACK_EVERY:
            self.announce(now)
            n = 1
            while self.out.ours and self.into.count > 1 + 3 * n and n < MAX_SACKS_AT_ONCE:
                self.send_ack(now)
                n += 1
        elif self.into.pending and self.timers[TIMER_ACK] == INFINITY:
            self.set_timer(TIMER_ACK, now + ACK_DELAY)

    # ---- closing -------------------------------------------------------------------------------------------------

    cdef void send_fin(self, double now) noexcept:
        """CLOSING -> FIN_WAIT, and again on the timer: the peer does not ask for a lost FIN."""
        if self.phase != FIN_WAIT:
            if self.into.pending or self.into.ack_now:
                self.send_ack(now)          # a FIN acknowledges nothing: the peer would take its last bytes for lost
            self.phase = FIN_WAIT
            self.attempts = 0
            self.out.clear(self.peer.path)
            self.set_timer(TIMER_CLOSE, now + FIN_PATIENCE)
            self.set_timer(TIMER_PERSIST, INFINITY)
            self.set_timer(TIMER_ACK, INFINITY)
        self.attempts += 1
        self.emit(FLAG_FIN, self.out.seq(self.out.end), 0, 0, now)
        # Hardly backed off: a FIN lost for good would end the peer's stream with a reset instead of its end.
        cdef double again = self.out.rto if self.attempts < 3 or self.out.rto > FIN_AGAIN else FIN_AGAIN
        self.set_timer(TIMER_RETRANSMIT, now + again)

    cdef void enter_time_wait(self, double now) noexcept:
        """Both directions are over; the entry stays a while so that late packets are recognised."""
        self.stop_timers()
        self.phase = TIME_WAIT
        self.host.event("conn.fin", self)
        self.set_timer(TIMER_CLOSE, now + TIME_WAIT_SECONDS)
        self.finish_close(now)

    cdef void finish_close(self, double now) noexcept:
        self.out.release(self.peer.path)
        self.into.clear()
        self.into.trim()
        self.events |= WAKE_CLOSED | WAKE_READ | WAKE_WRITE | WAKE_ACKED
        self.interest |= WAKE_CLOSED
        self.host.touch(self)
        self.host.ended(self)

    cdef void vanish(self) noexcept:
        """Leave the table and the heap."""
        self.phase = CLOSED
        self.host.timers.cancel(self)
        self.host.remove(self)

    cdef void fail(self, object error, bint reset, double now) noexcept:
        """End at once with `error`, telling the peer when `reset`."""
        if self.phase == CLOSED:
            return
        if reset:
            self.send_reset(now)
        if self.failure is None and not (self.phase == TIME_WAIT):
            self.failure = error
        self.stop_timers()
        if self.phase != TIME_WAIT:
            self.finish_close(now)
        self.events |= WAKE_OPEN
        self.interest |= WAKE_OPEN
        self.vanish()

    # ---- timers --------------------------------------------------------------------------------------------------

    cdef void rearm(self, double now) noexcept:
        """The retransmission timer after anything was sent or acknowledged: reordering, tail probe or RTO."""
        cdef Sender out = self.out
        cdef double at, probe
        if self.phase != ESTABLISHED and self.phase != CLOSING:
            return
        if out.peer_slots == 0 and (out.end != out.una) and self.timers[TIMER_PERSIST] == INFINITY:
            self.attempts = 0
            self.set_timer(TIMER_PERSIST, now + PERSIST_FIRST)
        if out.first == out.last:
            self.set_timer(TIMER_RETRANSMIT, INFINITY)
            return
        at = self.rto_base + out.timeout()
        if not self.tail_probed and out.lost == 0 and out.srtt > 0.0:
            probe = 2.0 * out.srtt + ACK_DELAY
            if probe < 0.01:
                probe = 0.01
            if self.rto_base + probe < at:
                at = self.rto_base + probe
        probe = out.detect_losses(self.peer.path, now)
        if probe < at:
            at = probe
        if out.lost and out.peer_slots:         # a closed window lets nothing leave: the flush would never end
            self.host.want_flush_soon(self)
        self.set_timer(TIMER_RETRANSMIT, at if at > now else now)

    cdef void on_timer(self, double now) noexcept:
        cdef int i
        cdef double due
        for i in range(TIMER_COUNT):
            due = self.timers[i]
            if due > now or self.phase == CLOSED:
                continue
            self.timers[i] = INFINITY
            if i == TIMER_RETRANSMIT:
                self.on_retransmit_timer(now)
            elif i == TIMER_ACK:
                self.on_ack_timer(now)
            elif i == TIMER_PERSIST:
                self.on_persist_timer(now)
            elif i == TIMER_IDLE:
                self.on_idle_timer(now)
            elif i == TIMER_REPAIR:
                self.on_repair_timer(now)
            else:
                self.on_close_timer(now)
        if self.phase != CLOSED:
            # What has just been served is not due again at the same instant: the heap would hand it out for ever.
            for i in range(TIMER_COUNT):
                if self.timers[i] <= now:
                    self.timers[i] = now + TIMER_GRAIN
            self.set_timer(TIMER_RETRANSMIT, self.timers[TIMER_RETRANSMIT])

    cdef void on_syn_timer(self, double now) noexcept:
        """SYN again: three waits on the current path, then the relay; while there is no session nothing is counted."""
        if self.peer.session is None and not self.peer.is_self:
            if now - self.opened_at >= KEY_WAIT:
                self.fail(TimeoutError(
                    f"dial {self.remote_addr}:{self.remote_port}: "
                    f"key exchange with the peer did not complete in {KEY_WAIT:.0f} s"), False, now)
                return
            self.set_timer(TIMER_RETRANSMIT, now + KEY_POLL)
            return
        if self.generation != self.peer.generation:
            # The session came after the SYN was queued and has carried it: time its answer from here.
            if self.key_seen_at == 0.0:
                self.key_seen_at = now
                self.attempts = 1
                self.set_timer(TIMER_RETRANSMIT, now + SYN_RETRY)
                return
        if self.attempts >= SYN_TRANSMISSIONS:
            way = "relay" if self.peer.relayed else "direct"
            self.fail(TimeoutError(
                f"dial {self.remote_addr}:{self.remote_port}: no answer to {self.attempts} SYNs ({way})"), False, now)
            return
        if self.attempts == DIRECT_SYNS and not self.via_relay and not self.peer.relayed:
            self.via_relay = self.host.dial_needs_relay(self.peer, now)
        self.send_syn(now)
        due = SYN_RETRY * (1 << (self.attempts - 1))
        if self.via_relay:
            due = SYN_RETRY * (1 << (self.attempts - DIRECT_SYNS))
        self.set_timer(TIMER_RETRANSMIT, now + (due if due < SYN_RETRY_MAX else SYN_RETRY_MAX))

    cdef void on_new_path(self, double now) noexcept:
        """The path to the peer was replaced."""
        self.out.backoff = 0
        if self.phase == FIN_WAIT:
            self.send_fin(now)
        elif (self.phase == ESTABLISHED or self.phase == CLOSING) and self.out.first != self.out.last:
            self.out.mark_all_lost(self.peer.path)
            # One repair, then a second of quiet: a stock peer whose answers still take the old path counts its sends
            # since the last frame it heard, and changes over at the third.
            self.rto_base = now + QUIET_AFTER_REPAIR
            self.tail_probed = True
            self.rearm(now)
            self.host.want_flush_soon(self)

    cdef void on_retransmit_timer(self, double now) noexcept:
        cdef Sender out = self.out
        if self.phase == SYN_SENT:
            self.on_syn_timer(now)
            return
        if self.phase == FIN_WAIT:
            self.send_fin(now)
            return
        if out.first == out.last:
            self.host.want_flush(self)
            return
        if out.peer_slots == 0 and self.last_received > self.last_progress:
            self.last_progress = self.last_received     # it answers: its reader is slow, that is all
        if now - self.last_progress > NO_PROGRESS and now - self.rto_base > out.timeout():
            silent = f"{self.remote_addr}:{self.remote_port} has acknowledged nothing for {NO_PROGRESS:.0f} s"
            self.fail(PathError(silent), True, now)
            return
        if now >= self.rto_base + out.timeout():
            self.rto_base = now
            self.tail_probed = True         # no tail probe while a timeout is being recovered
            if out.backoff < MAX_BACKOFF:
                out.backoff += 1
            if out.peer_slots == 0:
                self.send_old_byte(now)
            else:
                self.peer.path.on_timeout(now)
                if out.backoff > 1 and out.at(out.first).length > BASE_SEGMENT:
                    # Twice in vain: the path may have become too narrow. Repairs are cut to what any path carries.
                    self.host.full_segments_lost(self.peer, now)
                if out.at(out.first).state & SEGMENT_SACKED:
                    out.forget_sacks()
                out.mark_all_lost(self.peer.path)
            self.rearm(now)
            self.host.want_flush(self)
            return
        out.detect_losses(self.peer.path, now)
        if out.lost:
            self.rearm(now)
            self.host.want_flush(self)
            return
        if not self.tail_probed and out.srtt > 0.0 and now >= self.rto_base + (2.0 * out.srtt + ACK_DELAY):
            self.tail_probed = True
            self.send_tail_probe(now)
        self.rearm(now)

    cdef void on_ack_timer(self, double now) noexcept:
        """A delayed acknowledgment; or a reopened window that was not used: the update may have been lost."""
        if self.phase != ESTABLISHED and self.phase != CLOSING:
            return
        if self.into.pending:
            self.send_ack(now)
        else:
            self.announce_again(now)

    cdef void on_persist_timer(self, double now) noexcept:
        """The peer's window is closed and there is data: probe with an old byte, which costs a stock reader nothing."""
        cdef double delay
        if self.out.peer_slots or self.out.end == self.out.una or (self.phase != ESTABLISHED and self.phase != CLOSING):
            return
        if now - self.last_received > NO_PROGRESS:
            self.fail(PathError(f"{self.remote_addr}:{self.remote_port} closed its window and fell silent"), True, now)
            return
        if self.phase == ESTABLISHED and self.last_received > self.last_progress:
            self.last_progress = now
        self.send_old_byte(now)
        self.attempts += 1
        delay = PERSIST_FIRST * (1 << (self.attempts if self.attempts < 5 else 5))
        if self.phase == CLOSING and delay > LINGER / 2:
            delay = LINGER / 2              # the close waits only while the peer is heard
        self.set_timer(TIMER_PERSIST, now + (delay if delay < PERSIST_MAX else PERSIST_MAX))

    cdef void on_idle_timer(self, double now) noexcept:
        """Keepalive: something the peer answers, so that both ends hear each other."""
        cdef double silence = now - self.last_received
        if self.phase != ESTABLISHED:
            return
        self.into.trim()
        self.out.trim()
        if now < self.last_received + KEEPALIVE:
            self.set_timer(TIMER_IDLE, self.last_received + KEEPALIVE)
        elif silence >= DEAD_AFTER:
            # With fewer than three probes unanswered it was this node that slept.
            self.host.event("conn.dead_peer" if self.probes >= 3 else "conn.idle_timeout", self)
            self.emit(FLAG_FIN, self.out.seq(self.out.nxt), 0, 0, now)  # stock nodes refuse dials after a RST
            self.fail(TimeoutError(
                f"{self.remote_addr}:{self.remote_port} was silent for {silence:.0f} s (idle timeout)"), False, now)
        else:
            self.probes += 1
            self.send_old_byte(now)
            self.set_timer(TIMER_IDLE, now + KEEPALIVE_AGAIN)

    cdef void on_close_timer(self, double now) noexcept:
        if self.phase == CLOSING:
            self.linger(now)
        elif self.phase == FIN_WAIT:
            self.finish_close(now)
            self.vanish()
        elif self.phase == TIME_WAIT:
            self.vanish()
        elif self.fin_held:
            if now < self.last_received + HELD_FIN_SILENCE:
                self.set_timer(TIMER_CLOSE, self.last_received + HELD_FIN_SILENCE)
                return
            self.failure = PathError(
                f"{self.remote_addr}:{self.remote_port} ended the stream, and bytes before its end never arrived")
            self.take_fin(now)

    cdef void linger(self, double now) noexcept:
        """Closed here, data unacknowledged: wait while it goes on, or while the peer's reader merely pauses."""
        cdef double until = self.last_progress + LINGER
        if self.out.peer_slots == 0 and self.last_received > self.last_progress:
            until = self.last_received + LINGER
            if until > self.last_progress + NO_PROGRESS:
                until = self.last_progress + NO_PROGRESS
        if now < until:
            self.set_timer(TIMER_CLOSE, until)
            return
        self.failure = PathError(f"{self.remote_addr}:{self.remote_port} had not acknowledged the last "
                                 f"{self.out.end - self.out.una} bytes when the stream was closed")
        self.send_fin(now)

    # ---- wake-ups ------------------------------------------------------------------------------------------------

    cdef int deliver(self) except -1:
        """Tell the owner what it waits for; called once per batch."""
        cdef int due = self.events & self.interest
        self.events = 0
        if due and self.owner is not None:
            self.interest &= ~due
            self.owner._on_wake(due)
        return 0

    # ---- the Python face -----------------------------------------------------------------------------------------

    cdef void raise_if_ended(self) except *:
        if self.failure is not None:
            raise self.fresh_failure()
        if self.phase >= TIME_WAIT and self.ended_by_peer:
            raise ClosedError(f"{self.remote_addr}:{self.remote_port} has closed the stream; nothing more can be sent")
        if self.phase != ESTABLISHED and self.phase != SYN_SENT:
            raise ClosedError("this end has closed the stream")

    cdef void after_read(self) noexcept:
        if self.phase >= TIME_WAIT:
            self.into.trim()
        elif self.phase == ESTABLISHED and self.into.window_worth_telling():
            self.into.ack_now = True
            self.host.want_flush_soon(self)

    def read(self, max_bytes: int) -> bytes | None:
        """Up to `max_bytes` in-order bytes; None when there are none yet; b"" at the end of the stream. Raises the
        final error (`ResetError`, `PathError`, `TimeoutError`) each time once empty, `ClosedError` after own close."""
        cdef uint64_t count = self.into.next - self.into.read_at
        cdef bytes out
        if self.into.lent:
            return None                     # whoever looks at them now may take them
        if count == 0 or max_bytes <= 0:
            return self.at_end(max_bytes)
        if count > <uint64_t> max_bytes:
            count = max_bytes
        out = PyBytes_FromStringAndSize(NULL, count)
        self.into.consume(<uint8_t *> PyBytes_AS_STRING(out), count)
        self.after_read()
        return out

    def read_into(self, buffer) -> int:
        """As `read`, into a writable buffer: the bytes put there, -1 when there are none yet, 0 at the end."""
        cdef Py_buffer view
        cdef uint64_t count
        if self.into.lent or self.into.next == self.into.read_at:
            return -1 if self.into.lent or self.at_end(1) is None else 0
        PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE | PyBUF_WRITABLE)
        count = self.into.consume(<uint8_t *> view.buf, view.len)
        PyBuffer_Release(&view)
        self.after_read()
        return count

    def lend(self) -> memoryview | None:
        """The first in-order bytes as they lie in the ring, read-only; None without any. `give_back` follows."""
        return self.into.lend()

    def give_back(self, count: int) -> None:
        """Ends the loan, `count` bytes read. Raises `InvalidValueError` when a part of the view is still in use."""
        if not self.into.give_back(count):
            raise InvalidValueError(f"a view of the bytes of {self!r} was kept beyond its call: copy what is to stay")
        self.after_read()
        if self.interest & WAKE_READ and (self.into.next != self.into.read_at or self.phase >= CLOSING):
            self.events |= WAKE_READ        # somebody has asked meanwhile
            self.host.touch(self)

    cdef object at_end(self, max_bytes):
        if max_bytes <= 0 or (self.ended_by_peer and self.failure is None):
            return b""
        if self.failure is not None:
            raise self.fresh_failure()
        if self.into.discard or self.phase >= CLOSING:
            raise ClosedError("this end has closed the stream")
        return None

    def write(self, data, offset: int = 0) -> int:
        """Copy `data[offset:]` into the send ring as far as it fits; returns the bytes taken, 0 when the ring is full.
        Raises the stream's final error, or `ClosedError` after a close by either end."""
        cdef Py_buffer view
        cdef uint64_t taken = 0
        self.raise_if_ended()
        if offset < 0:
            raise InvalidValueError(f"offset {offset} is negative")
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        if offset < view.len:
            taken = self.out.put(<const uint8_t *> view.buf + <Py_ssize_t> offset, view.len - <Py_ssize_t> offset)
        PyBuffer_Release(&view)
        if taken and self.phase == ESTABLISHED:
            self.host.want_flush(self)
        return taken

    def close(self) -> None:
        """Orderly end of both directions, a FIN after what is written. Wake.CLOSED says when it is done. Idempotent."""
        cdef double now = self.host.now()
        if self.phase == SYN_SENT:
            self.fail(ClosedError("this end has closed the stream"), True, now)
            self.host.want_flush_soon(self)
            return
        self.into.abandon()
        if self.phase != ESTABLISHED:
            return
        self.phase = CLOSING
        self.events |= WAKE_READ
        self.host.touch(self)
        if self.out.una == self.out.end:
            self.send_fin(now)
        else:
            self.set_timer(TIMER_CLOSE, now + LINGER)
        self.host.want_flush(self)

    def abort(self) -> None:
        """End at once with a reset; unacknowledged bytes are lost. Idempotent."""
        self.into.abandon()
        if self.phase == TIME_WAIT or self.phase == CLOSED:
            return
        self.fail(ClosedError("this end has aborted the stream"), True, self.host.now())
        self.host.want_flush_soon(self)

    @property
    def state(self) -> StreamState:
        """Where the stream is in its life."""
        return StreamState(<int> self.phase)

    @property
    def at_eof(self) -> bool:
        """True when the peer has ended the stream and every byte has been read."""
        return self.ended_by_peer and self.into.next == self.into.read_at

    @property
    def writable(self) -> int:
        """Bytes that `write` would take at once."""
        return self.out.room() if self.phase == ESTABLISHED or self.phase == SYN_SENT else 0

    def stats(self) -> StreamStats:
        """A snapshot of counters and estimates."""
        return StreamStats(
            self.state, self.out.end, self.out.una, self.into.next, self.into.next - self.into.read_at,
            self.out.outstanding - self.out.sacked_bytes - self.out.lost_bytes, self.segments_sent,
            self.segments_received, self.retransmissions, self.out.srtt, self.peer.path.cwnd, self.peer.segment,
            self.out.peer_slots)

    def __repr__(self) -> str:
        ends = f"{self.local_addr}:{self.local_port} {self.remote_addr}:{self.remote_port}"
        return f"<StreamCore {ends} {self.state.name}>"
