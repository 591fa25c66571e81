# Sent segments of one stream and what is known about each (_fast, L7): see recovery.pyx.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from pilot._fast.congestion cimport Congestion, delivery_stamp

cdef enum:
    SEGMENT_SACKED = 1
    SEGMENT_LOST = 2            # to be sent again; not in flight
    SEGMENT_RETRANSMITTED = 4   # its acknowledgment is ambiguous (Karn)


cdef struct segment:
    uint64_t start              # stream offset of its first byte
    uint32_t length
    uint16_t transmissions
    uint8_t state
    double sent_at              # of the last transmission
    delivery_stamp stamp        # taken then


cdef struct retransmission:
    uint64_t start
    double sent_at


cdef class Scoreboard:
    cdef segment *segments      # a ring indexed by segment number
    cdef uint64_t mask
    cdef uint64_t first         # number of the oldest unacknowledged segment
    cdef uint64_t last          # one past the newest
    cdef uint64_t judged        # originals below this number have been SACKed, lost or acknowledged already
    cdef uint64_t lost_from     # no segment below this number is marked lost
    cdef uint64_t outstanding   # bytes sent and not acknowledged
    cdef uint64_t sacked_bytes
    cdef uint64_t lost_bytes
    cdef uint64_t sacked        # segments
    cdef uint64_t lost
    cdef uint64_t highest_sacked        # stream offset, end of the highest SACKed segment
    cdef retransmission *repairs        # retransmissions in the order sent, a ring
    cdef size_t repairs_mask
    cdef size_t repairs_first
    cdef size_t repairs_last
    cdef double newest_sent             # RACK: when the newest segment known to be delivered was sent ...
    cdef uint64_t newest_end            # ... and where it ends
    cdef double newest_rtt
    cdef int reorder_steps              # width of the reordering window in quarters of the shortest RTT; 0 = none seen
    cdef double sample                  # RTT sample of the acknowledgment being processed, or -1
    cdef uint64_t delivered             # bytes newly acknowledged or SACKed by it
    cdef uint64_t count(self) noexcept
    cdef bint push(self, uint64_t start, uint32_t length, Congestion path, double now) noexcept
    cdef segment *at(self, uint64_t number) noexcept
    cdef uint64_t find(self, uint64_t offset) noexcept
    cdef void begin_ack(self) noexcept
    cdef void acknowledge(self, uint64_t offset, Congestion path, double now) noexcept
    cdef void mark_sacked(self, uint64_t left, uint64_t right, Congestion path, double now) noexcept
    cdef void note_delivery(self, segment *s, Congestion path, double now) noexcept
    cdef void mark_lost(self, uint64_t number, Congestion path) noexcept
    cdef double detect_losses(self, Congestion path, double now) noexcept
    cdef segment *next_lost(self) noexcept
    cdef bint resent(self, segment *s, Congestion path, double now) noexcept
    cdef bint split(self, segment *s, uint32_t length) noexcept
    cdef void mark_all_lost(self, Congestion path) noexcept
    cdef void forget_sacks(self) noexcept
    cdef void clear(self, Congestion path) noexcept
    cdef bint grow(self) noexcept
