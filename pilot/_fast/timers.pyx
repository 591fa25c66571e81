"""Deadlines of all streams of a node in one indexed heap, so that a node needs a
single loop timer (_fast, ground floor)."""
from cpython.mem cimport PyMem_Free, PyMem_Realloc
from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject
from libc.math cimport INFINITY


cdef class TimerEntry:
    """Anything with a deadline. Not armed until scheduled."""

    def __cinit__(self) -> None:
        self.deadline = self.key = INFINITY
        self.slot = -1


cdef class TimerHeap:
    """A binary heap of entries that know their place. Moving a deadline back costs
    nothing: it is sorted in when it surfaces."""

    def __dealloc__(self):
        cdef Py_ssize_t i
        for i in range(self.count):
            Py_DECREF(<object> self.entries[i])
        PyMem_Free(self.entries)

    cdef int schedule(self, TimerEntry entry, double deadline) except -1:
        cdef PyObject **grown
        cdef Py_ssize_t capacity
        entry.deadline = deadline
        if entry.slot >= 0:
            if deadline < entry.key:
                entry.key = deadline
                self.sift_up(entry.slot)
            return 0
        if deadline == INFINITY:
            return 0
        if self.count == self.capacity:
            capacity = self.capacity * 2 if self.capacity else 16
            grown = <PyObject **> PyMem_Realloc(self.entries, capacity * sizeof(PyObject *))
            if grown == NULL:
                raise MemoryError
            self.entries = grown
            self.capacity = capacity
        Py_INCREF(entry)
        entry.key = deadline
        entry.slot = self.count
        self.entries[self.count] = <PyObject *> entry
        self.count += 1
        self.sift_up(entry.slot)
        return 0

    cdef void cancel(self, TimerEntry entry) noexcept:
        entry.deadline = INFINITY
        if entry.slot >= 0:
            self.take(entry.slot)

    cdef double earliest(self) noexcept:
        return (<TimerEntry> self.entries[0]).key if self.count else INFINITY

    cdef TimerEntry pop_due(self, double now):
        """The next entry whose deadline has come, taken out of the heap and disarmed; None when there is none."""
        cdef TimerEntry entry
        while self.count:
            entry = <TimerEntry> self.entries[0]
            if entry.key > now:
                return None
            if entry.deadline > now:
                if entry.deadline == INFINITY:
                    self.take(0)
                else:
                    entry.key = entry.deadline
                    self.sift_down(0)
                continue
            self.take(0)
            entry.deadline = INFINITY
            return entry
        return None

    cdef void take(self, Py_ssize_t at) noexcept:
        cdef TimerEntry gone = <TimerEntry> self.entries[at]
        cdef TimerEntry moved
        self.count -= 1
        gone.slot = -1
        if at != self.count:
            self.entries[at] = self.entries[self.count]
            moved = <TimerEntry> self.entries[at]
            moved.slot = at
            self.sift_down(at)
            self.sift_up(moved.slot)
        Py_DECREF(gone)

    cdef void sift_up(self, Py_ssize_t at) noexcept:
        cdef PyObject *item = self.entries[at]
        cdef double key = (<TimerEntry> item).key
        cdef Py_ssize_t parent
        while at > 0:
            parent = (at - 1) >> 1
            if (<TimerEntry> self.entries[parent]).key <= key:
                break
            self.entries[at] = self.entries[parent]
            (<TimerEntry> self.entries[at]).slot = at
            at = parent
        self.entries[at] = item
        (<TimerEntry> item).slot = at

    cdef void sift_down(self, Py_ssize_t at) noexcept:
        cdef PyObject *item = self.entries[at]
        cdef double key = (<TimerEntry> item).key
        cdef Py_ssize_t child
        while True:
            child = 2 * at + 1
            if child >= self.count:
                break
            if (child + 1 < self.count
                    and (<TimerEntry> self.entries[child + 1]).key < (<TimerEntry> self.entries[child]).key):
                child += 1
            if (<TimerEntry> self.entries[child]).key >= key:
                break
            self.entries[at] = self.entries[child]
            (<TimerEntry> self.entries[at]).slot = at
            at = child
        self.entries[at] = item
        (<TimerEntry> item).slot = at

    def __len__(self) -> int:
        return self.count
