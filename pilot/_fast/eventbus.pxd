# The event bus in C (_fast, ground floor): see eventbus.pyx.
from libc.stdint cimport uint32_t, uint64_t

cdef enum:
    RING_EVENTS = 1024          # events a subscription holds unless it was given another capacity
    GENERATION_TOPICS = 2048    # topics in each of the two generations of the topic cache
    CACHED_TOPIC_CHARS = 256    # longer topics are matched again each time
    LIMIT_PER_SECOND = 100      # events in any second of a topic that strangers can trigger


cdef class Event:
    cdef readonly str topic
    cdef readonly uint32_t node_id
    cdef double stamp           # seconds since the epoch; becomes `moment` when somebody asks
    cdef object moment
    cdef object content         # the bus's own dict; becomes a read-only view of itself when somebody asks


cdef class _Ring:
    cdef list slots             # grows by doubling up to `capacity`
    cdef Py_ssize_t head, count, size, capacity
    cdef uint64_t dropped
    cdef bint closed
    cdef object waiter          # the future of the task that waits, or None
    cdef unsigned long thread   # that task's

    cdef int push(self, Event event) except -1
    cdef int grow(self) except -1
    cdef Event pop(self)
    cdef object wait(self)
    cdef int wake(self) except -1


cdef class _Pattern:
    cdef str text
    cdef bint exact             # no `*`: found by its text, never scanned for
    cdef bytes prefix, suffix   # the literal text before the first `*` and behind the last
    cdef tuple middle           # the literal texts between two `*`, in order
    cdef Py_ssize_t shortest    # bytes of the shortest topic that can match
    cdef uint64_t pairs         # what a matching topic must have: see `pairs_of`
    cdef dict rings             # an ordered set of _Ring

    cdef int append_rings(self, list rings) except -1
    cdef bint matches(self, const char *topic, Py_ssize_t length, uint64_t pairs) noexcept


cdef class _Bucket:
    cdef bytes prefix
    cdef uint64_t hash
    cdef list patterns


cdef class _PrefixIndex:
    cdef dict buckets           # prefix -> _Bucket
    cdef list slots             # the same buckets, open-addressed by hash; None is free
    cdef size_t mask
    cdef bytearray lengths      # lengths[n] is 1 when some prefix has n bytes
    cdef bint stale             # `slots` and `lengths` are older than `buckets`

    cdef int add(self, _Pattern pattern) except -1
    cdef int discard(self, _Pattern pattern) except -1
    cdef int rebuild(self) except -1
    cdef _Bucket find(self, uint64_t hash, const char *topic, Py_ssize_t length)
    cdef int collect(self, const char *topic, Py_ssize_t length, list rings) except -1


cdef class _Limit:
    cdef double times[LIMIT_PER_SECOND]     # when the latest events passed, a ring
    cdef Py_ssize_t oldest
    cdef uint64_t suppressed

    cdef bint admits(self, double now) noexcept


cdef class _Route:
    cdef list rings
    cdef _Limit limit


cdef class EventBus:
    cdef public uint32_t node_id
    cdef object wall, clock
    cdef dict patterns          # text -> _Pattern
    cdef _PrefixIndex index
    cdef dict recent, older     # topic -> Route, the two generations of the cache
    cdef dict limits            # topic -> _Limit
    cdef uint64_t lost          # what subscriptions that have ended had dropped
    cdef bint ended
    cdef object __weakref__

    cpdef publish(self, topic, payload)
    cdef _Route route(self, str topic)
    cdef _Route find_route(self, str topic)
    cdef _Route build_route(self, str topic)
    cdef int forget_routes(self) except -1
    cdef int remove(self, _Pattern pattern, _Ring ring) except -1
