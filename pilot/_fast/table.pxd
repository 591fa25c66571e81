# A hash table from a 128-bit key to an object (_fast, ground floor): see table.pyx.
from cpython.ref cimport PyObject
from libc.stdint cimport uint64_t


cdef struct entry:
    uint64_t high
    uint64_t low
    PyObject *value         # strong reference; NULL = never used


cdef class Table:
    cdef entry *entries
    cdef size_t mask        # capacity - 1; 0 = nothing allocated
    cdef readonly Py_ssize_t count
    cdef PyObject *get(self, uint64_t high, uint64_t low) noexcept      # borrowed, or NULL
    cdef int put(self, uint64_t high, uint64_t low, object value) except -1
    cdef bint remove(self, uint64_t high, uint64_t low) noexcept
    cdef int resize(self, size_t capacity) except -1
    cpdef list values(self)
