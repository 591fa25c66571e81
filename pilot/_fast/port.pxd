# The seam between the datapath and whatever carries its datagrams (_fast, L2): see port.pyx.
from libc.stdint cimport uint8_t

from pilot._fast.netaddr cimport netaddr


cdef class FrameSink:
    # One datagram. `data` is writable and dies on return; opening in place is allowed. Must not raise.
    cdef void on_datagram(self, uint8_t *data, size_t length, const netaddr *source, double now) noexcept
    # After the last datagram of one readable callback: wake readers, acknowledge, flush.
    cdef void on_batch_end(self, double now) noexcept


cdef class DatagramPort:
    cdef FrameSink sink
    cdef public bint segmenting     # bursts are cut into datagrams outside of this process, where that may go wrong
    # `length` bytes at `data` to one address, cut into datagrams of `segment` bytes (the last may be shorter;
    # segment >= length means one datagram). The bytes are free for reuse on return.
    # Returns 0 (sent or queued in order inside the port), 1 (sent or queued, but the port is congested: stop until
    # writable), or a negative errno (-EMSGSIZE: a datagram is larger than the path allows; others: unreachable ...).
    cdef int transmit(self, uint8_t *data, size_t length, size_t segment, const netaddr *to) noexcept
    cdef bint congested(self) noexcept
