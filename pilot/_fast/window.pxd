# A movable view on raw memory (_fast, ground floor): see window.pyx.
from libc.stdint cimport uint8_t


cdef class MemoryWindow:
    cdef uint8_t *data
    cdef Py_ssize_t size

    cdef inline MemoryWindow show(self, uint8_t *data, Py_ssize_t size):
        self.data = data
        self.size = size
        return self
