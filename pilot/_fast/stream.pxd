# The stream state machine (_fast, L7): see stream.pyx.
from libc.stdint cimport uint32_t, uint64_t

from pilot._fast.packet cimport packet
from pilot._fast.peer cimport Peer
from pilot._fast.stream_packets cimport StreamPackets

cdef enum state:
    SYN_SENT = 0
    ESTABLISHED = 1
    CLOSING = 2             # closed here, data still to be acknowledged before the FIN
    FIN_WAIT = 3            # FIN sent
    TIME_WAIT = 4
    CLOSED = 5

cdef enum:
    WAKE_OPEN = 1
    WAKE_READ = 2
    WAKE_WRITE = 4
    WAKE_ACKED = 8
    WAKE_CLOSED = 16


cdef class StreamCore(StreamPackets):
    cdef state phase
    cdef public object owner
    cdef public int interest
    cdef int events
    cdef bint ended_by_peer         # FIN: end of stream after the buffered bytes
    cdef uint64_t fin_at            # offset of the peer's FIN, held until the gap before it is filled
    cdef bint fin_held
    cdef bint fin_answered
    cdef int fin_acks
    cdef int attempts               # SYN, FIN or window-probe transmissions; keepalive probes are `probes`
    cdef int probes
    cdef bint tail_probed
    cdef bint via_relay             # the SYN has moved to the relay
    cdef uint64_t generation        # of the peer's session when the stream opened
    cdef readonly int redials
    cdef double opened_at
    cdef double last_syn
    cdef double key_seen_at         # when a dial that had to wait found its session; 0.0 = not yet
    cdef double last_received
    cdef double last_progress
    cdef double last_answer         # of an empty ACK
    cdef double rto_base
    cdef readonly uint64_t segments_received
    cdef void open_active(self, double now) noexcept
    cdef void open_passive(self, const packet *syn, double now) noexcept
    cdef bint repeats_syn(self, const packet *p, double now) noexcept
    cdef void on_syn_again(self, double now) noexcept
    cdef void on_packet(self, const packet *p, double now) noexcept
    cdef void on_timer(self, double now) noexcept
    cdef void end_of_batch(self, double now) noexcept
    cdef bint transmit(self, int quantum, double now) noexcept
    cdef void fail(self, object error, bint reset, double now) noexcept
    cdef int deliver(self) except -1
    # internal
    cdef void want_session(self, double now) noexcept
    cdef void after_read(self) noexcept
    cdef object at_end(self, max_bytes)
    cdef void send_syn(self, double now) noexcept
    cdef void send_fin(self, double now) noexcept
    cdef void on_syn_ack(self, const packet *p, double now) noexcept
    cdef void on_reset(self, double now) noexcept
    cdef void on_fin(self, const packet *p, double now) noexcept
    cdef void on_ack(self, const packet *p, double now) noexcept
    cdef void on_acknowledgment(self, const packet *p, bint sack, uint64_t acked, double now) noexcept
    cdef void on_data(self, const packet *p, double now) noexcept
    cdef void established(self, double now) noexcept
    cdef void take_fin(self, double now) noexcept
    cdef void enter_time_wait(self, double now) noexcept
    cdef void finish_close(self, double now) noexcept
    cdef void vanish(self) noexcept
    cdef void rearm(self, double now) noexcept
    cdef void on_new_path(self, double now) noexcept
    cdef void on_retransmit_timer(self, double now) noexcept
    cdef void on_syn_timer(self, double now) noexcept
    cdef void on_ack_timer(self, double now) noexcept
    cdef void on_persist_timer(self, double now) noexcept
    cdef void on_idle_timer(self, double now) noexcept
    cdef void linger(self, double now) noexcept
    cdef void on_close_timer(self, double now) noexcept
    cdef void raise_if_ended(self) except *
