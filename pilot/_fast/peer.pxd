# What the hot path knows about one remote node (_fast, L4-6): see peer.pyx.
from libc.stdint cimport uint32_t, uint64_t

from pilot._fast.budget cimport Share
from pilot._fast.congestion cimport Congestion
from pilot._fast.netaddr cimport netaddr
from pilot._fast.seal cimport Session
from pilot._fast.timers cimport TimerEntry

cdef enum:
    BASE_SEGMENT = 1152             # stream payload any path carries (stock nodes send no more)
    MAX_PENDING_PACKETS = 64
    MAX_STASHED_FRAMES = 4


cdef class Peer(TimerEntry):      # its deadline: when pacing lets the next segment go
    cdef readonly uint32_t node
    cdef readonly bint is_self
    cdef public Session session
    cdef readonly Session previous
    cdef double previous_until
    cdef uint64_t generation        # sessions installed so far
    cdef netaddr direct
    cdef bint relayed               # frames go through the beacon
    cdef public bint watched
    cdef public int misses
    cdef double last_miss
    cdef public double first_sent
    cdef public double last_sent
    cdef public double last_heard
    cdef public double last_heard_direct
    cdef public double last_used
    cdef readonly int open_streams
    cdef public int auth_failures
    cdef public int replays
    cdef public int outside
    cdef double reject_reported
    cdef uint32_t segment
    cdef readonly Congestion path
    cdef readonly Share reading     # memory of its streams' receive rings; None before the first stream
    cdef readonly Share writing
    cdef list pending               # (bytes, queued at)
    cdef list stash                 # (bytearray, arrived at, came by relay)
    cdef object blocked             # a deque of streams that wait for room in the congestion window
    cdef bint queued                # in the list of peers with such streams
    cdef bint gone
    cdef void path_replaced(self) noexcept
