# Overlay addresses (_fast, L2): see addr.pyx.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t


cdef class Addr:
    cdef readonly uint16_t network
    cdef readonly uint32_t node

    cdef inline uint64_t key(self) noexcept:
        return (<uint64_t> self.network << 32) | self.node


cdef Addr new_addr(uint16_t network, uint32_t node)
cdef Addr load_addr(const uint8_t *p)
