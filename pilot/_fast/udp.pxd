# The datagram socket in C (_fast, L2): see udp.pyx; the system calls are in _udp_compat.h.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from pilot._fast.netaddr cimport netaddr
from pilot._fast.port cimport DatagramPort, FrameSink


cdef extern from "_udp_compat.h" nogil:
    enum:
        PILOT_UDP_LINUX
        PILOT_SLOTS
        PILOT_SLOT_BYTES
        PILOT_MAX_SEGMENTS
        PILOT_MAX_PAYLOAD
        PILOT_IP_MTU_DISCOVER
        PILOT_IPV6_MTU_DISCOVER
        PILOT_PMTUDISC_PROBE
        PILOT_IP_RECVERR
        PILOT_IPV6_RECVERR
        PILOT_IP_DONTFRAG
        PILOT_IPV6_DONTFRAG
        PILOT_SOL_UDP
        PILOT_UDP_SEGMENT
        PILOT_UDP_GRO
        PILOT_SO_RXQ_OVFL
        PILOT_SO_SNDBUFFORCE
        PILOT_SO_RCVBUFFORCE

    ctypedef struct pilot_address:
        uint8_t ip[16]
        uint16_t port
        uint32_t scope

    ctypedef struct pilot_name:
        pass

    ctypedef unsigned int socklen_t

    ctypedef struct pilot_slot:
        uint8_t *data
        size_t length
        size_t stride
        int truncated
        pilot_address source

    ctypedef struct pilot_receiver:
        pilot_slot slot[4]
        uint32_t overflow

    ctypedef struct pilot_report:
        int code
        uint32_t mtu
        pilot_address peer

    double pilot_monotonic()
    socklen_t pilot_name_of(int family, const uint8_t *ip, uint16_t port, uint32_t scope, pilot_name *name)
    int pilot_receive(int fd, pilot_receiver *receiver, bint batched, uint64_t *calls)
    int pilot_next_report(int fd, pilot_report *report, uint64_t *calls)
    int pilot_send_one(int fd, const pilot_name *to, socklen_t to_length, const uint8_t *data, size_t length,
                       uint64_t *calls)
    int pilot_send_segmented(int fd, const pilot_name *to, socklen_t to_length, const uint8_t *data, size_t length,
                             size_t segment, uint64_t *calls)
    int pilot_send_split(int fd, const pilot_name *to, socklen_t to_length, const uint8_t *data, size_t length,
                         size_t segment, uint64_t *calls)


cdef enum:
    ERRNO_LIMIT = 136       # error numbers from here on are counted together, under 0


cdef struct counters:
    uint64_t datagrams_in, bytes_in, batches_in, turns
    uint64_t datagrams_out, bytes_out, batches_out
    uint64_t receive_calls, send_calls
    uint64_t truncated, unanswerable, overflow
    uint64_t would_block, queued, dropped, gso_fallbacks, too_big
    uint64_t send_errors[ERRNO_LIMIT]
    uint64_t reports[ERRNO_LIMIT]


# A burst the socket had no room for; its bytes follow the struct.
cdef struct burst:
    burst *next
    netaddr to
    size_t length
    size_t segment
    size_t sent


cdef class UdpPort(DatagramPort):
    cdef:
        object __weakref__
        readonly tuple address              # (host, port) as bound
        readonly int receive_buffer_bytes   # what the system reports as granted
        public object on_congested
        public object on_drained
        object _socket
        object _poller
        object _clock
        object _mtu_reports
        int _fd
        int _family
        bint _gso
        bint _gro
        bint _recvmmsg
        bint _receiving
        int _gso_errno                      # why GSO was switched off; 0 once it is logged
        uint64_t _dropped_logged
        double _log_after
        pilot_receiver *_receiver
        uint32_t _overflow_seen
        burst *_head
        burst *_tail
        size_t _pending_bytes
        counters _count

    cdef double _now(self) except? -1.0
    cdef size_t _receive(self, FrameSink sink, double now) except? 0
    cdef bint _deliver(self, const pilot_slot *slot, FrameSink sink, double now) noexcept
    cdef void _read_reports(self) except *
    cdef int _send(self, const uint8_t *data, size_t length, size_t segment, const netaddr *to,
                   size_t *sent) noexcept
    cdef int _send_some(self, const uint8_t *data, size_t length, size_t segment, const pilot_name *name,
                        socklen_t name_length, size_t *sent) noexcept
    cdef int _attempt(self, const uint8_t *data, size_t length, size_t segment, const pilot_name *name,
                      socklen_t name_length, bint gso, size_t *sent) noexcept
    cdef void _count_out(self, size_t length, size_t datagrams) noexcept
    cdef void _queue(self, const uint8_t *data, size_t length, size_t segment, const netaddr *to) noexcept
    cdef void _pop(self) noexcept
    cdef void _flush(self) noexcept
    cdef void _watch_writable(self, bint wanted) noexcept
    cdef void _log(self, double now) noexcept
