# The sending half of a stream (_fast, L7): see sender.pyx.
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from pilot._fast.budget cimport Share
from pilot._fast.congestion cimport Congestion
from pilot._fast.packet cimport packet
from pilot._fast.peer cimport Peer
from pilot._fast.recovery cimport Scoreboard, segment
from pilot._fast.ring cimport ring

cdef enum:
    STOCK_WINDOW = 512              # what a stock node advertises; more marks one of ours
    STOCK_BEHIND_HOLE = 128         # its reorder buffer

cdef enum sendable:
    NOTHING = 0                     # no data, or the peer's window is full
    WAIT_CONGESTION = 1
    NEW_SEGMENT = 2
    REPAIR = 3


cdef class Sender(Scoreboard):
    cdef uint32_t iss
    cdef uint64_t una               # oldest unacknowledged stream offset
    cdef uint64_t nxt               # next offset to send
    cdef uint64_t end               # one past the last byte written
    cdef ring bytes_
    cdef Share share                # the peer's, of the memory for send rings
    cdef uint64_t limit             # most bytes kept in the ring now
    cdef uint64_t most              # ... and ever
    cdef uint8_t last_byte          # the byte at una - 1, for probes
    cdef uint32_t peer_slots
    cdef bint ours                  # the peer advertised more than 512 slots
    cdef uint32_t window_seq        # sequence number and acknowledgment that set the window last
    cdef uint32_t window_ack
    cdef double srtt
    cdef double rttvar
    cdef double rto
    cdef int backoff
    cdef inline uint32_t seq(self, uint64_t offset) noexcept:
        return <uint32_t> (self.iss + 1 + offset)
    cdef void give_back(self) noexcept
    cdef uint64_t put(self, const uint8_t *data, uint64_t count) noexcept
    cdef uint64_t room(self) noexcept
    cdef void widen(self, Congestion path) noexcept
    cdef void on_rtt(self, double rtt) noexcept
    cdef bint is_sack(self, const uint8_t *payload, uint32_t length) noexcept
    cdef void on_sack(self, const uint8_t *payload, Congestion path, double now) noexcept
    cdef void on_ack(self, uint64_t offset, Congestion path, double now) noexcept
    cdef void update_window(self, const packet *p) noexcept
    cdef uint32_t next_length(self, Peer peer) noexcept
    cdef bint looks_like_sack(self, uint64_t at) noexcept
    cdef uint32_t narrower(self, segment *s, uint32_t most) noexcept
    cdef bint seems_stock(self) noexcept
    cdef sendable what_next(self, Peer peer, double now) noexcept
    cdef double timeout(self) noexcept
    cdef void release(self, Congestion path) noexcept
    cdef void trim(self) noexcept
