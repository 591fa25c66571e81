# The packets of a stream and what it needs of its table (_fast, L7): see stream_packets.pyx.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from pilot._fast.budget cimport Budget
from pilot._fast.egress cimport Egress
from pilot._fast.packet cimport packet
from pilot._fast.peer cimport Peer
from pilot._fast.receiver cimport Receiver, arrival
from pilot._fast.recovery cimport segment
from pilot._fast.sender cimport Sender
from pilot._fast.timers cimport TimerEntry, TimerHeap

cdef enum:
    TIMER_RETRANSMIT = 0    # SYN, data (RTO, tail probe, reordering), FIN
    TIMER_ACK = 1
    TIMER_PERSIST = 2       # the peer's window is closed
    TIMER_IDLE = 3
    TIMER_CLOSE = 4         # linger before the FIN, patience after it, TIME_WAIT, a FIN that overtook data
    TIMER_REPAIR = 5        # a stock sender should have filled the first hole by now
    TIMER_COUNT = 6

cdef enum:
    ACK_EVERY = 2


# What a stream needs from the table it lives in. Mux implements it.
cdef class StreamHost:
    cdef Egress egress
    cdef TimerHeap timers
    cdef readonly Budget budget         # of receive rings
    cdef readonly Budget send_budget
    cdef double now(self) noexcept
    cdef void touch(self, StreamPackets stream) noexcept               # deliver its wake-ups at the end of the batch
    cdef void want_flush(self, StreamPackets stream) noexcept          # it has something to send
    cdef void want_flush_soon(self, StreamPackets stream) noexcept     # ... at the end of the loop iteration will do
    cdef void wait_for_window(self, StreamPackets stream) noexcept     # ... when the path has room again
    cdef void ended(self, StreamPackets stream) noexcept               # no longer live: TIME_WAIT or CLOSED
    cdef void remove(self, StreamPackets stream) noexcept              # forget it
    cdef bint redial(self, StreamPackets stream) noexcept              # give it another local port
    cdef bint dial_needs_relay(self, Peer peer, double now) noexcept
    cdef void full_segments_lost(self, Peer peer, double now) noexcept
    cdef void event(self, str topic, StreamPackets stream) noexcept


cdef class StreamPackets(TimerEntry):
    cdef StreamHost host
    cdef Peer peer
    cdef readonly uint32_t conn_id  # names it in events; counted from 1 in each life of the node
    cdef uint16_t local_network
    cdef uint32_t local_node
    cdef readonly uint16_t local_port
    cdef uint16_t remote_network
    cdef uint32_t remote_node
    cdef readonly uint16_t remote_port
    cdef Sender out
    cdef Receiver into
    cdef double timers[6]
    cdef int window_updates
    cdef readonly bint inbound
    cdef bint touched, flushing, waiting    # in the host's lists
    cdef readonly uint64_t segments_sent
    cdef readonly uint64_t retransmissions
    cdef object failure             # why it ended, raised by every later call
    cdef void stop_timers(self) noexcept
    cdef void set_timer(self, int which, double at) noexcept
    cdef void address(self, packet *p) noexcept
    cdef void acknowledging(self, packet *p, double now) noexcept
    cdef void emit(self, int flags, uint32_t seq, uint32_t ack, uint32_t window, double now) noexcept
    cdef void send_ack(self, double now) noexcept
    cdef void announce(self, double now) noexcept
    cdef void announce_again(self, double now) noexcept
    cdef void acknowledge_stock(self, arrival result, bint held, double now) noexcept
    cdef void on_repair_timer(self, double now) noexcept
    cdef void send_old_byte(self, double now) noexcept
    cdef void send_reset(self, double now) noexcept
    cdef bint send_segment(self, uint64_t offset, uint32_t length, double now) noexcept
    cdef object fresh_failure(self)
    cdef uint32_t send_repair(self, double now) noexcept
    cdef uint32_t send_again(self, segment *s, double now) noexcept
    cdef void send_tail_probe(self, double now) noexcept
