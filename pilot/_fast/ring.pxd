# A byte ring addressed by absolute stream offsets (_fast, ground floor). Empty rings own no memory.
from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy


cdef struct ring:
    uint8_t *data
    size_t capacity         # a power of two, or 0
    uint64_t base           # the offset that lies at `data`


cdef inline size_t ring_index(const ring *r, uint64_t at) noexcept nogil:
    return (at - r.base) & (r.capacity - 1)


cdef inline void ring_restart(ring *r, uint64_t at) noexcept nogil:
    # The ring is empty and goes on at `at`: at its beginning, for that is in the processor's cache and its end is not.
    r.base = at


cdef inline void ring_release(ring *r) noexcept nogil:
    free(r.data)
    r.data = NULL
    r.capacity = 0


cdef inline void ring_write(ring *r, uint64_t at, const uint8_t *source, size_t count) noexcept nogil:
    # The caller made room: [at, at + count) lies within one capacity of the oldest byte kept.
    cdef size_t index = ring_index(r, at)
    cdef size_t first = r.capacity - index
    if first > count:
        first = count
    memcpy(r.data + index, source, first)
    memcpy(r.data, source + first, count - first)


cdef inline void ring_read(const ring *r, uint64_t at, uint8_t *out, size_t count) noexcept nogil:
    cdef size_t index = ring_index(r, at)
    cdef size_t first = r.capacity - index
    if first > count:
        first = count
    memcpy(out, r.data + index, first)
    memcpy(out + first, r.data, count - first)


cdef inline bint ring_resize(ring *r, size_t needed, uint64_t start, uint64_t end) noexcept nogil:
    # Grows to hold `needed` bytes, keeping [start, end). False when there is no memory; the ring is then unchanged.
    cdef ring grown
    cdef uint64_t at
    cdef size_t piece, index
    if needed <= r.capacity:
        return True
    grown.capacity = 4096
    while grown.capacity < needed:
        grown.capacity *= 2
    grown.base = start
    grown.data = <uint8_t *> malloc(grown.capacity)
    if grown.data == NULL:
        return False
    at = start
    while at < end:
        index = ring_index(r, at)
        piece = r.capacity - index
        if piece > end - at:
            piece = end - at
        ring_write(&grown, at, r.data + index, piece)
        at += piece
    free(r.data)
    r[0] = grown
    return True
