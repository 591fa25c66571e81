# Building, sealing and sending packets (_fast, L4-6): see egress.pyx.
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from pilot._fast.netaddr cimport netaddr
from pilot._fast.packet cimport packet
from pilot._fast.peer cimport Peer
from pilot._fast.port cimport DatagramPort

cdef enum:
    RELAY_HEADER = 9
    WAY_CURRENT = 0         # the peer's current path
    WAY_DIRECT = 1          # straight to its address, whatever the flag says


cdef class Egress:
    cdef DatagramPort port
    cdef public object control
    cdef public uint32_t own_node
    cdef netaddr beacon
    cdef public bint relay_only
    cdef uint8_t *slot
    cdef size_t used                # bytes of the burst being built
    cdef size_t segment             # its datagram size
    cdef int frames
    cdef int most_frames            # of this burst: 1 on a path that loses bursts
    cdef double given_up_logged
    cdef netaddr target
    cdef Peer current               # whom the burst (or the frame being built) is for
    cdef bint relayed               # the frame being built
    cdef size_t begun               # payload bytes of the frame being built
    cdef bint sealed                # it goes into the burst (else: into `scratch`)
    cdef uint8_t *scratch
    cdef list looped                # inner packets to ourselves
    cdef object sent_lately         # (peer, packet, sent at) of the last datagrams: `resend_datagrams`
    cdef list moved                 # peers whose path was replaced: their streams repair at once
    cdef readonly int waiting_peers  # peers with pending packets
    cdef readonly uint64_t frames_sent
    cdef readonly uint64_t bytes_sent
    cdef readonly uint64_t refused
    cdef readonly uint64_t bursts_given_up   # paths where single datagrams arrived and bursts did not
    cdef int route(self, Peer peer, double now) noexcept
    cdef uint8_t *begin(self, Peer peer, size_t payload, double now, int way) noexcept
    cdef void commit(self, packet *p, double now) noexcept
    cdef void seal(self, Peer peer, uint8_t *frame, double now) noexcept
    cdef void flush(self, double now) noexcept
    cdef int burst_limit(self, Peer peer, double now) noexcept
    cdef bint send_sealed(self, Peer peer, bytes inner, double now) noexcept
    cdef int resend_datagrams(self, Peer peer, double since, double now) except -1
    cdef int forget_sent(self, Peer peer, double now) except -1
    cdef void queue_pending(self, Peer peer, bytes inner, double now) noexcept
    cdef void ask(self, Peer peer, double now) noexcept
    cdef void set_relay(self, Peer peer, str reason, double now) noexcept
    cdef void forget(self) noexcept
    cdef void send_raw(self, bytes frame, const netaddr *to, double now) noexcept
