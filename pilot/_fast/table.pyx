"""An open-addressing hash table from 128-bit keys to objects: finds a peer or a stream without
making a Python key (_fast, ground floor)."""
from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject
from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free


cdef inline size_t hash_key(uint64_t high, uint64_t low) noexcept nogil:
    cdef uint64_t h = (high ^ (low * <uint64_t> 0x9E3779B97F4A7C15)) * <uint64_t> 0xD6E8FEB86659FD93
    return <size_t> (h ^ (h >> 32))


cdef class Table:
    """Linear probing with backward-shift deletion; grows at three quarters full, never shrinks below what it held."""

    def __dealloc__(self):
        cdef size_t i
        if self.entries != NULL:
            for i in range(self.mask + 1):
                if self.entries[i].value != NULL:
                    Py_DECREF(<object> self.entries[i].value)
            free(self.entries)

    cdef PyObject *get(self, uint64_t high, uint64_t low) noexcept:
        cdef size_t i
        cdef entry *e
        if self.entries == NULL:
            return NULL
        i = hash_key(high, low) & self.mask
        while True:
            e = &self.entries[i]
            if e.value == NULL:
                return NULL
            if e.high == high and e.low == low:
                return e.value
            i = (i + 1) & self.mask

    cdef int put(self, uint64_t high, uint64_t low, object value) except -1:
        cdef size_t i
        cdef entry *e
        if self.entries == NULL:
            self.resize(8)
        elif (<size_t> self.count + 1) * 4 > (self.mask + 1) * 3:
            self.resize((self.mask + 1) * 2)
        i = hash_key(high, low) & self.mask
        while True:
            e = &self.entries[i]
            if e.value == NULL:
                Py_INCREF(value)
                e.high, e.low, e.value = high, low, <PyObject *> value
                self.count += 1
                return 0
            if e.high == high and e.low == low:
                Py_INCREF(value)
                Py_DECREF(<object> e.value)
                e.value = <PyObject *> value
                return 0
            i = (i + 1) & self.mask

    cdef bint remove(self, uint64_t high, uint64_t low) noexcept:
        cdef size_t i, j, home
        cdef PyObject *gone
        if self.entries == NULL:
            return False
        i = hash_key(high, low) & self.mask
        while True:
            if self.entries[i].value == NULL:
                return False
            if self.entries[i].high == high and self.entries[i].low == low:
                break
            i = (i + 1) & self.mask
        gone = self.entries[i].value
        j = i
        while True:
            j = (j + 1) & self.mask
            if self.entries[j].value == NULL:
                break
            home = hash_key(self.entries[j].high, self.entries[j].low) & self.mask
            # Move an entry back only if the hole lies between its home and its place.
            if ((j - home) & self.mask) >= ((j - i) & self.mask):
                self.entries[i] = self.entries[j]
                i = j
        self.entries[i].value = NULL
        self.count -= 1
        Py_DECREF(<object> gone)
        return True

    cdef int resize(self, size_t capacity) except -1:
        cdef entry *old = self.entries
        cdef size_t old_capacity = self.mask + 1 if old != NULL else 0
        cdef size_t i, j
        cdef entry *fresh = <entry *> calloc(capacity, sizeof(entry))
        if fresh == NULL:
            raise MemoryError
        for i in range(old_capacity):
            if old[i].value != NULL:
                j = hash_key(old[i].high, old[i].low) & (capacity - 1)
                while fresh[j].value != NULL:
                    j = (j + 1) & (capacity - 1)
                fresh[j] = old[i]
        self.entries = fresh
        self.mask = capacity - 1
        free(old)
        return 0

    cpdef list values(self):
        """A snapshot of all values."""
        cdef list out = []
        cdef size_t i
        if self.entries != NULL:
            for i in range(self.mask + 1):
                if self.entries[i].value != NULL:
                    out.append(<object> self.entries[i].value)
        return out

    def lookup(self, high: int, low: int) -> object:
        """The value stored under the key, or None (for tests)."""
        cdef PyObject *found = self.get(high, low)
        return <object> found if found != NULL else None

    def store(self, high: int, low: int, value: object) -> None:
        """Put `value` under the key (for tests)."""
        self.put(high, low, value)

    def discard(self, high: int, low: int) -> bool:
        """Remove the key; says whether it was there (for tests)."""
        return self.remove(high, low)

    def __len__(self) -> int:
        return self.count
