"""Publish and subscribe inside a node: glob patterns, a topic cache, a bounded ring for each subscription; publishing
never waits (_fast, ground floor)."""
cimport cython
from cpython.dict cimport PyDict_CheckExact, PyDict_Copy, PyDict_GetItemWithError, PyDict_Next
from cpython.object cimport Py_EQ, Py_NE, PyObject
from cpython.pythread cimport PyThread_get_thread_ident
from cpython.unicode cimport PyUnicode_CheckExact, PyUnicode_FromObject
from libc.math cimport INFINITY
from libc.stdint cimport uint64_t
from libc.string cimport memcmp
from posix.time cimport CLOCK_MONOTONIC, CLOCK_REALTIME, clock_gettime, timespec

from asyncio import get_running_loop
from datetime import datetime, timezone

from pilot._fast.errors import BusyError, ClosedError, InvalidValueError

cdef extern from "string.h" nogil:
    void *memmem(const void *haystack, size_t haystack_size, const void *needle, size_t needle_size)

cdef extern from "Python.h":
    bint PyUnicode_IS_ASCII(str text)
    const char *PyUnicode_1BYTE_DATA "(const char *) PyUnicode_1BYTE_DATA"(str text)
    object PyDictProxy_New(object mapping)

CAPACITY = RING_EVENTS
CACHED_TOPICS = 2 * GENERATION_TOPICS
STRANGERS_PER_SECOND = LIMIT_PER_SECOND

cdef uint64_t HASH_SEED = 0xCBF29CE484222325
cdef uint64_t HASH_STEP = 0x100000001B3


cdef inline double read_clock(int clock) noexcept:
    cdef timespec now
    clock_gettime(clock, &now)
    return <double> now.tv_sec + <double> now.tv_nsec * 1e-9


cdef inline bytes encoded(str text):
    """UTF-8, in which a run of characters is a run of bytes; a lone surrogate is no reason to refuse a topic."""
    return text.encode("utf-8", "surrogatepass")


cdef inline uint64_t pairs_of(const char *text, Py_ssize_t length) noexcept:
    """A set of 64 bits of the pairs of adjacent bytes in `text`: what lacks a pair of `text` cannot contain it."""
    cdef uint64_t pairs = 0
    cdef Py_ssize_t i
    for i in range(1, length):
        pairs |= <uint64_t> 1 << ((31 * <unsigned char> text[i - 1] + <unsigned char> text[i]) & 63)
    return pairs


@cython.final
@cython.freelist(256)
cdef class Event:
    """One event: `topic`, `node_id` (of the node it happened on), `time` (an aware UTC `datetime`), `payload` (a
    read-only mapping; its values are shared with the publisher and the other subscribers).

    Immutable; equal when all four are equal. Raises `InvalidValueError` for a naive time. Source: coreapi, type Event.
    """

    __match_args__ = ("topic", "node_id", "time", "payload")

    def __init__(self, topic: str, node_id: int, time: datetime, payload: Mapping[str, object]) -> None:
        # Events are shared, so a second __init__ must not change one; __cinit__ has set the fields.
        pass

    def __cinit__(self, *args, **kwargs) -> None:
        if not args and not kwargs:
            return  # the C factory new_event fills the fields
        topic, node_id, time, payload = _four_fields(*args, **kwargs)
        if time.tzinfo is None:
            raise InvalidValueError(f"the time of an event is aware, {time!r} is naive: give it tzinfo=UTC")
        self.topic = exact_text(topic)
        self.node_id = node_id
        self.moment = time.astimezone(timezone.utc)
        self.content = dict(payload)

    @property
    def time(self) -> datetime:
        """When it was published, by the publishing node's wall clock; aware, UTC."""
        if self.moment is None:
            self.moment = datetime.fromtimestamp(self.stamp, timezone.utc)
        return self.moment

    @property
    def payload(self) -> Mapping[str, object]:
        """What the publisher said about it: a read-only view of a copy of its mapping."""
        if PyDict_CheckExact(self.content):
            self.content = PyDictProxy_New(self.content)
        return self.content

    def __repr__(self) -> str:
        return (f"Event(topic={self.topic!r}, node_id={self.node_id}, time={self.time.isoformat()!r}, "
                f"payload={dict(self.content)!r})")

    def __hash__(self) -> int:
        return hash((self.topic, self.node_id, self.time))

    def __richcmp__(self, other, int op):
        cdef Event that
        if not isinstance(other, Event) or op not in (Py_EQ, Py_NE):
            return NotImplemented
        that = <Event> other
        same = (self.topic == that.topic and self.node_id == that.node_id and self.time == that.time
                and self.payload == that.payload)
        return same if op == Py_EQ else not same

    def __reduce__(self):
        return Event, (self.topic, self.node_id, self.time, dict(self.content))


def _four_fields(topic, node_id, time, payload):
    return topic, node_id, time, payload


cdef inline Event new_event(str topic, uint32_t node_id, double stamp, dict content):
    cdef Event event = Event.__new__(Event)
    event.topic = topic
    event.node_id = node_id
    event.stamp = stamp
    event.content = content
    return event


cdef str exact_text(topic):
    """`topic` as a plain `str`: members of a `StrEnum` are welcome too."""
    if PyUnicode_CheckExact(topic):
        return <str> topic
    if isinstance(topic, str):
        return <str> PyUnicode_FromObject(topic)
    raise TypeError(f"a topic or pattern is text such as 'tunnel.established', not {type(topic).__name__}")


@cython.final
cdef class _Ring:
    """The events one subscription has not read yet. The bus knows rings, never subscriptions: so a subscription nobody
    holds any more can end."""

    def __cinit__(self, Py_ssize_t capacity) -> None:
        self.capacity = capacity
        self.slots = []

    @cython.boundscheck(False)
    @cython.wraparound(False)
    cdef int push(self, Event event) except -1:
        cdef Py_ssize_t tail
        if self.count == self.size:
            if self.size == self.capacity:
                self.dropped += 1
                return 0
            self.grow()
        tail = self.head + self.count
        if tail >= self.size:
            tail -= self.size
        self.slots[tail] = event
        self.count += 1
        if self.waiter is not None:
            self.wake()
        return 0

    cdef int grow(self) except -1:
        """Make room in a full ring."""
        cdef Py_ssize_t size = min(self.capacity, max(8, 2 * self.size))
        self.slots = self.slots[self.head:] + self.slots[:self.head] + [None] * (size - self.size)
        self.head = 0
        self.size = size
        return 0

    @cython.boundscheck(False)
    @cython.wraparound(False)
    cdef Event pop(self):
        """The oldest event, or None."""
        cdef Event event
        if self.count == 0:
            return None
        event = <Event> self.slots[self.head]
        self.slots[self.head] = None
        self.head += 1
        if self.head == self.size:
            self.head = 0
        self.count -= 1
        return event

    cdef object wait(self):
        """A future that is done at the next event or at the end."""
        if self.waiter is not None and not self.waiter.done():
            raise BusyError("two tasks wait for one subscription: give each its own")
        self.waiter = get_running_loop().create_future()
        self.thread = PyThread_get_thread_ident()
        return self.waiter

    cdef int wake(self) except -1:
        """Wake the waiter, once for all events until it waits again. Another thread's loop is told the thread-safe way;
        a loop that has been closed has no waiter any more."""
        waiter, self.waiter = self.waiter, None
        try:
            if self.thread == PyThread_get_thread_ident():
                _finish(waiter)
            else:
                waiter.get_loop().call_soon_threadsafe(_finish, waiter)
        except RuntimeError:
            if not waiter.get_loop().is_closed():
                raise
        return 0


def _finish(waiter):
    if not waiter.done():
        waiter.set_result(None)


@cython.final
cdef class _Pattern:
    """A compiled pattern and the rings of its subscriptions."""

    def __cinit__(self, str text not None) -> None:
        cdef bytes literal
        literals = encoded(text or "*").split(b"*")
        self.text = text
        self.exact = len(literals) == 1
        self.prefix, self.suffix = literals[0], literals[-1]
        self.middle = tuple([literal for literal in literals[1:-1] if literal])
        for literal in literals:
            self.shortest += len(literal)
            self.pairs |= pairs_of(literal, len(literal))
        self.rings = {}

    cdef int append_rings(self, list rings) except -1:
        cdef Py_ssize_t at = 0
        cdef PyObject *ring
        while PyDict_Next(self.rings, &at, &ring, NULL):
            rings.append(<_Ring> ring)
        return 0

    cdef bint matches(self, const char *topic, Py_ssize_t length, uint64_t pairs) noexcept:
        """Whether a topic that begins with the prefix and has these pairs matches. Taking each middle text where it
        first occurs leaves the most for those behind it, so nothing is tried twice."""
        cdef Py_ssize_t tail = len(self.suffix)
        cdef const char *at
        cdef const char *end
        cdef bytes literal
        if length < self.shortest or self.pairs & ~pairs:
            return False
        at = topic + len(self.prefix)
        end = topic + length - tail
        if memcmp(end, <const char *> self.suffix, tail) != 0:
            return False
        for literal in self.middle:
            at = <const char *> memmem(at, end - at, <const char *> literal, len(literal))
            if at == NULL:
                return False
            at += len(literal)
        return True


@cython.final
cdef class _Bucket:
    """The patterns with one prefix."""

    def __cinit__(self, bytes prefix not None) -> None:
        cdef unsigned char byte
        self.prefix = prefix
        self.patterns = []
        self.hash = HASH_SEED
        for byte in prefix:
            self.hash = (self.hash ^ byte) * HASH_STEP


@cython.final
cdef class _PrefixIndex:
    """Patterns by prefix: one pass over a topic hashes its prefixes, and looks up those as long as some pattern's."""

    def __cinit__(self) -> None:
        self.buckets = {}
        self.stale = True

    cdef int add(self, _Pattern pattern) except -1:
        if pattern.prefix not in self.buckets:
            self.buckets[pattern.prefix] = _Bucket(pattern.prefix)
            self.stale = True
        (<_Bucket> self.buckets[pattern.prefix]).patterns.append(pattern)
        return 0

    cdef int discard(self, _Pattern pattern) except -1:
        cdef _Bucket bucket = self.buckets[pattern.prefix]
        bucket.patterns.remove(pattern)
        if not bucket.patterns:
            del self.buckets[pattern.prefix]
            self.stale = True
        return 0

    cdef int rebuild(self) except -1:
        cdef _Bucket bucket
        cdef size_t slot
        cdef Py_ssize_t size = 8
        while size < 2 * len(self.buckets):
            size *= 2
        self.mask = size - 1
        self.slots = [None] * size
        self.lengths = bytearray(1 + max(map(len, self.buckets), default=0))
        for bucket in self.buckets.values():
            slot = bucket.hash & self.mask
            while self.slots[slot] is not None:
                slot = (slot + 1) & self.mask
            self.slots[slot] = bucket
            self.lengths[len(bucket.prefix)] = 1
        self.stale = False
        return 0

    @cython.boundscheck(False)
    @cython.wraparound(False)
    cdef _Bucket find(self, uint64_t hash, const char *topic, Py_ssize_t length):
        """The bucket of the first `length` bytes of `topic`, or None."""
        cdef size_t slot = hash & self.mask
        cdef _Bucket bucket = <_Bucket> self.slots[slot]
        while bucket is not None:
            if (bucket.hash == hash and len(bucket.prefix) == length
                    and memcmp(<const char *> bucket.prefix, topic, length) == 0):
                return bucket
            slot = (slot + 1) & self.mask
            bucket = <_Bucket> self.slots[slot]
        return None

    @cython.boundscheck(False)
    @cython.wraparound(False)
    cdef int collect(self, const char *topic, Py_ssize_t length, list rings) except -1:
        """Append the rings of every pattern that matches."""
        cdef _Bucket bucket
        cdef _Pattern pattern
        cdef uint64_t hash = HASH_SEED
        cdef uint64_t pairs = pairs_of(topic, length)
        cdef Py_ssize_t i
        if self.stale:
            self.rebuild()
        for i in range(min(length + 1, len(self.lengths))):
            if self.lengths[i]:
                bucket = self.find(hash, topic, i)
                if bucket is not None:
                    for pattern in bucket.patterns:
                        if pattern.matches(topic, length, pairs):
                            pattern.append_rings(rings)
            if i < length:
                hash = (hash ^ <unsigned char> topic[i]) * HASH_STEP
        return 0


@cython.final
cdef class _Limit:
    """How often a topic was published lately."""

    def __cinit__(self) -> None:
        cdef Py_ssize_t i
        for i in range(LIMIT_PER_SECOND):
            self.times[i] = -INFINITY

    cdef bint admits(self, double now) noexcept:
        if now - self.times[self.oldest] < 1.0:
            self.suppressed += 1
            return False
        self.times[self.oldest] = now
        self.oldest = (self.oldest + 1) % LIMIT_PER_SECOND
        return True


@cython.final
@cython.freelist(64)
cdef class _Route:
    """Where the events of one topic go. Never changed once made: a publish may be under way through it."""


cdef _Route NOWHERE = _Route.__new__(_Route)
NOWHERE.rings = []


@cython.final
cdef class Subscription:
    """The events that match a pattern, from the subscription on, oldest first: ``async for event in subscription``.

    `EventBus.subscribe` makes it. It holds `capacity` unread events; what is published while it is full is lost to it
    and counted in `dropped`. It ends by `close`, at the end of a ``with`` block, with its bus, or when nobody holds it
    any more; what it held by then can still be read. One task at a time may wait for it, on any loop.
    """
    cdef _Ring ring
    cdef _Pattern compiled
    cdef EventBus bus
    cdef object __weakref__

    def __cinit__(self, EventBus bus not None, _Pattern compiled not None, _Ring ring not None) -> None:
        self.bus = bus
        self.compiled = compiled
        self.ring = ring

    @property
    def pattern(self) -> str:
        """The pattern it was made with."""
        return self.compiled.text

    @property
    def capacity(self) -> int:
        """Unread events it can hold."""
        return self.ring.capacity

    @property
    def waiting(self) -> int:
        """Unread events it holds."""
        return self.ring.count

    @property
    def dropped(self) -> int:
        """Events lost because it was full."""
        return self.ring.dropped

    @property
    def closed(self) -> bool:
        """Whether it takes no more events."""
        return self.ring.closed

    def get_nowait(self) -> Event | None:
        """The oldest unread event, or None when there is none."""
        return self.ring.pop()

    def get_all(self) -> list[Event]:
        """All unread events, oldest first; an empty list when there are none."""
        cdef _Ring ring = self.ring
        return [ring.pop() for _ in range(ring.count)]

    def close(self) -> None:
        """Take no more events; a loop over the subscription ends behind those it holds. Closing twice does nothing."""
        if not self.ring.closed:
            self.bus.remove(self.compiled, self.ring)

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> Event:
        """The oldest unread event, waiting for one if need be; ends the loop when the subscription is closed and empty.

        Raises `BusyError` when another task waits already. A cancellation loses no event.
        """
        cdef _Ring ring = self.ring
        while ring.count == 0:
            if ring.closed:
                raise StopAsyncIteration
            waiter = ring.wait()
            try:
                await waiter
            finally:
                if ring.waiter is waiter:
                    ring.waiter = None
        return ring.pop()

    def __enter__(self) -> Subscription:
        return self

    def __exit__(self, *exc_info) -> None:
        self.close()

    def __del__(self) -> None:
        if self.ring is not None:
            self.close()

    def __repr__(self) -> str:
        state = " closed" if self.ring.closed else ""
        return f"<Subscription {self.compiled.text!r}{state} waiting={self.ring.count} dropped={self.ring.dropped}>"


@cython.final
cdef class EventBus:
    """The event bus of one node.

    In a pattern ``*`` is any run of characters, dots included, and nothing else is special; ``""`` is every topic.
    `node_id` is put into every event and may be set later. `wall` gives the time of events (seconds since the epoch),
    `clock` the time for rate limits (monotonic seconds); the system's clocks unless given.
    Source: coreapi, type EventBus; services reference, section 10.3.
    """
    def __cinit__(self, *, node_id: int = 0, wall=None, clock=None) -> None:
        self.node_id = node_id
        self.wall = wall
        self.clock = clock
        self.patterns = {}
        self.index = _PrefixIndex()
        self.recent = {}
        self.older = {}
        self.limits = {}

    cpdef publish(self, topic, payload):
        """Give every subscription whose pattern matches `topic` an event with a copy of `payload`.

        Never waits and never runs a subscriber's code. A full subscription loses the event; so do all of them beyond
        100 events a second of a topic given to `limit`. Builds nothing where nobody subscribed.
        """
        cdef _Route route
        cdef Event event
        cdef Py_ssize_t i
        if not self.patterns:
            return
        route = self.route(exact_text(topic))
        if not route.rings:
            return
        if route.limit is not None:
            if not route.limit.admits(read_clock(CLOCK_MONOTONIC) if self.clock is None else self.clock()):
                return
        event = new_event(
            <str> topic if PyUnicode_CheckExact(topic) else exact_text(topic),
            self.node_id,
            read_clock(CLOCK_REALTIME) if self.wall is None else self.wall(),
            PyDict_Copy(payload) if PyDict_CheckExact(payload) else dict(payload),
        )
        for i in range(len(route.rings)):
            (<_Ring> route.rings[i]).push(event)

    @cython.annotation_typing(False)
    def wanted(self, topic: str) -> bool:
        """Whether a subscription matches `topic`: spares the publisher building a costly payload for nobody."""
        return bool(self.patterns) and bool(self.route(exact_text(topic)).rings)

    @cython.annotation_typing(False)
    def subscribe(self, pattern: str = "", *, capacity: int = RING_EVENTS) -> Subscription:
        """A new subscription to the topics that match `pattern`, with room for `capacity` unread events.

        Raises `InvalidValueError` for a capacity below 1 and `ClosedError` when the bus is closed.
        """
        cdef _Pattern compiled
        if capacity < 1:
            raise InvalidValueError(f"a subscription holds at least 1 event, not {capacity}")
        if self.ended:
            raise ClosedError(f"no subscription to {pattern!r}: the event bus is closed, its node has stopped")
        pattern = exact_text(pattern)
        compiled = self.patterns.get(pattern)
        if compiled is None:
            compiled = self.patterns[pattern] = _Pattern(pattern)
            if not compiled.exact:
                self.index.add(compiled)
        ring = _Ring(capacity)
        compiled.rings[ring] = None
        self.forget_routes()
        return Subscription(self, compiled, ring)

    def limit(self, *topics: str) -> None:
        """From now on publish each of `topics` at most 100 times in any second and count the rest: for those a stranger
        can trigger. Naming one twice changes nothing."""
        for topic in topics:
            self.limits.setdefault(exact_text(topic), _Limit())
        self.forget_routes()

    @property
    def suppressed(self) -> dict[str, int]:
        """For each topic given to `limit`: events not published because there were too many."""
        return {topic: (<_Limit> limit).suppressed for topic, limit in self.limits.items()}

    @property
    def dropped(self) -> int:
        """Events that subscriptions have lost because they were full, those that have ended included."""
        cdef uint64_t count = self.lost
        for pattern in self.patterns.values():
            for ring in (<_Pattern> pattern).rings:
                count += (<_Ring> ring).dropped
        return count

    @property
    def subscriptions(self) -> int:
        """Open subscriptions."""
        return sum([len((<_Pattern> pattern).rings) for pattern in self.patterns.values()])

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self.ended

    def close(self) -> None:
        """End every subscription; later events are discarded. Closing twice does nothing."""
        cdef _Pattern pattern
        self.ended = True
        for pattern in list(self.patterns.values()):
            for ring in list(pattern.rings):
                self.remove(pattern, <_Ring> ring)

    def __repr__(self) -> str:
        return f"<EventBus node_id={self.node_id} subscriptions={self.subscriptions}>"

    cdef inline _Route route(self, str topic):
        cdef PyObject *found = PyDict_GetItemWithError(self.recent, topic)
        return <_Route> found if found != NULL else self.find_route(topic)

    cdef _Route find_route(self, str topic):
        """A route that was not used lately. When a generation of the cache is full it becomes the older one, and the
        one before is forgotten: the topics in use stay."""
        cdef _Route route = self.older.get(topic)
        if route is None:
            route = self.build_route(topic)
        if len(topic) <= CACHED_TOPIC_CHARS:
            if len(self.recent) >= GENERATION_TOPICS:
                self.older = self.recent
                self.recent = {}
            self.recent[topic] = route
        return route

    cdef _Route build_route(self, str topic):
        cdef _Route route
        cdef _Pattern pattern = self.patterns.get(topic)
        cdef _Limit limit = self.limits.get(topic)
        cdef list rings = []
        cdef bytes text
        if pattern is not None and pattern.exact:
            pattern.append_rings(rings)
        if PyUnicode_IS_ASCII(topic):
            self.index.collect(PyUnicode_1BYTE_DATA(topic), len(topic), rings)
        else:
            text = encoded(topic)
            self.index.collect(text, len(text), rings)
        if not rings and limit is None:
            return NOWHERE
        route = _Route.__new__(_Route)
        route.rings = rings
        route.limit = limit
        return route

    cdef int forget_routes(self) except -1:
        if self.recent:
            self.recent = {}
        if self.older:
            self.older = {}
        return 0

    cdef int remove(self, _Pattern pattern, _Ring ring) except -1:
        """End one subscription: its ring is off the routes before its reader is woken."""
        ring.closed = True
        self.lost += ring.dropped
        del pattern.rings[ring]
        if not pattern.rings:
            del self.patterns[pattern.text]
            if not pattern.exact:
                self.index.discard(pattern)
        self.forget_routes()
        if ring.waiter is not None:
            ring.wake()
        return 0
