# One heap of deadlines for a whole node (_fast, ground floor): see timers.pyx.
from cpython.ref cimport PyObject


cdef class TimerEntry:
    cdef double deadline        # when it is really due; INFINITY = not armed
    cdef double key             # its place in the heap: never later than `deadline`
    cdef Py_ssize_t slot        # index in the heap, -1 = not in it


cdef class TimerHeap:
    cdef PyObject **entries     # strong references
    cdef Py_ssize_t count
    cdef Py_ssize_t capacity
    cdef int schedule(self, TimerEntry entry, double deadline) except -1
    cdef void cancel(self, TimerEntry entry) noexcept
    cdef double earliest(self) noexcept
    cdef TimerEntry pop_due(self, double now)
    cdef void sift_up(self, Py_ssize_t at) noexcept
    cdef void sift_down(self, Py_ssize_t at) noexcept
    cdef void take(self, Py_ssize_t at) noexcept
