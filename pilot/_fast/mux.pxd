# Virtual ports, the stream table, SYN gates, datagrams (_fast, L7): see mux.pyx.
from libc.stdint cimport uint16_t, uint32_t, uint64_t

from pilot._fast.packet cimport packet
from pilot._fast.peer cimport Peer
from pilot._fast.stream cimport StreamCore
from pilot._fast.stream_packets cimport StreamHost, StreamPackets
from pilot._fast.table cimport Table


cdef class Bucket:
    cdef double rate
    cdef double burst
    cdef double tokens
    cdef double refilled_at
    cdef bint take(self, double now) noexcept


cdef class ListenerCore:
    cdef readonly int port
    cdef readonly int backlog
    cdef public object owner
    cdef public int queued          # accepted by the core, not yet by the owner
    cdef public int streams         # live ones
    cdef public int dropped


cdef class Mux(StreamHost):
    cdef object clock
    cdef public object scheduler
    cdef public object gate
    cdef public object policy       # None, or what the networks' policies say of ports
    cdef public object on_datagram
    cdef public object publish
    cdef public object wanted       # None, or whether a topic has a subscriber
    cdef readonly Table streams
    cdef dict listeners
    cdef list touched
    cdef list flushing
    cdef list blocked               # peers with streams that wait for room in the congestion window
    cdef bint in_batch
    cdef bint soon_scheduled
    cdef bint flushed_this_turn
    cdef double armed
    cdef readonly int live
    cdef uint32_t next_port
    cdef uint32_t last_id
    cdef public object random_isn
    cdef object settings
    cdef Bucket syn_bucket
    cdef dict syn_sources
    cdef double syn_sources_swept
    cdef Bucket reset_bucket
    cdef readonly dict counters
    cdef uint64_t reads_limit
    cdef uint64_t writes_limit
    cdef void on_stream_packet(self, const packet *p, Peer peer, double now) noexcept
    cdef void on_syn(self, const packet *p, Peer peer, double now) noexcept
    cdef void on_datagram_packet(self, const packet *p, Peer peer, double now) noexcept
    cdef StreamCore find(self, uint16_t local_port, uint32_t network, uint32_t node, uint16_t remote_port)
    cdef void reply_reset(self, const packet *p, Peer peer, double now) noexcept
    cdef void batch_begin(self) noexcept
    cdef void batch_end(self, double now) noexcept
    cdef void flush(self, double now) noexcept
    cdef void deliver(self, double now) noexcept
    cdef void arm(self) noexcept
    cdef void schedule_soon(self) noexcept
    cdef int free_port(self) except -2
    cdef void count(self, str name) noexcept
    cdef void accept(self, ListenerCore listener, const packet *p, Peer peer, double now) noexcept
    cdef bint admits(self, Peer peer, int port) noexcept
    cdef bint permits(self, Peer peer, const packet *p) noexcept
    cdef void repair_moved(self, double now) noexcept
    cdef void queue_peer(self, Peer peer) noexcept
    cdef void serve_blocked(self, double now) noexcept
    cdef void await_pacing(self, double now) noexcept
    cdef bint wants(self, str topic) noexcept
    cdef void event_about(self, str topic, dict payload) noexcept
    cdef void report_rejected(self, str topic, const packet *p) noexcept
    cdef StreamCore new_stream(self, Peer peer, uint16_t network, uint32_t node, uint16_t local_port,
                               uint16_t remote_network, uint32_t remote_node, uint16_t remote_port)
    cdef bint source_allows(self, Peer peer, double now) noexcept
