# The receiving half of a stream (_fast, L7): see receiver.pyx.
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from pilot._fast.budget cimport Share
from pilot._fast.reassembly cimport Reassembly
from pilot._fast.ring cimport ring

cdef enum:
    SLOT_WORTH = 1152               # bytes a window slot stands for between our nodes
    MIN_LIMIT = 512 * 4096          # what builds up to 1.14.1 may send into 512 slots
    MAX_SLOTS = 65535
    SACK_BLOCKS = 4
    SACK_MAX_BYTES = 37
    DUPLICATES_NEEDED = 3           # a stock sender repairs at the third duplicate acknowledgment

cdef enum arrival:
    IN_ORDER = 0
    HELD = 1                        # behind a hole
    DUPLICATE = 2                   # nothing new in it
    DROPPED = 3                     # no room, or too far ahead: as if it had been lost


cdef class Loan:
    cdef uint8_t *data
    cdef Py_ssize_t size
    cdef int exports                # buffers handed out and not released yet
    cdef uint8_t *owned             # what it has to free


cdef class Receiver(Reassembly):
    cdef uint32_t irs               # the peer's initial sequence number
    cdef uint64_t next              # RCV.NXT as a stream offset
    cdef uint64_t read_at           # first byte the reader has not taken
    cdef ring bytes_
    cdef uint64_t most              # what `limit` may grow to
    cdef uint64_t grown_at          # `read_at` when it grew last
    cdef uint64_t limit             # most bytes kept between read_at and the highest byte received
    cdef Share share                # the peer's, of the memory for receive rings
    cdef Loan loan
    cdef bint lent                  # the ring's memory is being looked at: it may be neither moved nor freed
    cdef uint8_t *orphan            # memory of a ring that was given up meanwhile
    cdef uint64_t edge              # right edge of the window last advertised
    cdef uint32_t advertised        # slots last advertised
    cdef bint discard               # nobody will read any more
    cdef int pending                # segments received since the last acknowledgment sent
    cdef bint ack_now
    cdef uint64_t told              # the acknowledgment last sent, as a stream offset
    cdef uint64_t withheld          # in-order bytes left out of it while a hole is open (stock senders only)
    cdef int duplicates             # acknowledgments without data that repeated `told`
    cdef double asked_at            # when the sender was made to repair the first hole, 0.0 = not yet
    cdef bint asked_again
    cdef int doubt                  # 0: losses look random; they come in bursts where a queue overflows
    cdef double repair_time         # smoothed time from asking to the repair, seconds; 0.0 = not known
    cdef bint reopened              # a closed window was opened, and nothing has come since
    cdef inline uint32_t seq(self) noexcept:
        return <uint32_t> (self.irs + 1 + self.next)
    cdef inline uint64_t acknowledged(self) noexcept:
        return self.next - self.withheld if self.count else self.next
    cdef uint64_t offset_of(self, uint32_t seq) noexcept
    cdef arrival take(self, uint32_t seq, const uint8_t *payload, uint32_t length) noexcept
    cdef uint64_t reachable(self) noexcept
    cdef uint64_t widest(self) noexcept
    cdef bint make_room(self, uint64_t end) noexcept
    cdef uint32_t slots(self) noexcept
    cdef uint32_t slots_of(self, uint64_t widest) noexcept
    cdef bint window_worth_telling(self) noexcept
    cdef int build_sack(self, uint8_t *out) noexcept
    cdef uint32_t acknowledge(self) noexcept
    cdef double patience(self) noexcept
    cdef double ask_repair(self, arrival result, double now) noexcept
    cdef void withhold(self) noexcept
    cdef void judge_gap(self, uint64_t length) noexcept
    cdef inline bint answers_twice(self) noexcept:
        # Once the sender repairs, each duplicate widens its window: a second copy makes up for what losses narrow.
        return self.doubt == 0 and self.duplicates >= DUPLICATES_NEEDED
    cdef uint64_t consume(self, uint8_t *out, uint64_t count) noexcept
    cdef void taken(self, uint64_t count) noexcept
    cdef object lend(self)
    cdef bint give_back(self, uint64_t count) noexcept
    cdef void release(self) noexcept
    cdef void abandon(self) noexcept
    cdef void trim(self) noexcept
