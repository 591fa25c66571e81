"""Memory that stream buffers may take: one budget for all of a kind, and each peer's share of it (_fast, ground floor).
"""
cimport cython
from libc.stdint cimport uint64_t

cdef enum:
    SMALLEST_RING = 4096            # ring.pxd allocates no less; holds a segment of the oldest builds
    FAIR_RING = 65536
    TIMES_FREE = 3                  # a peer's rings may grow to three times what stays free: alone, to three quarters
    TIMES_FREE_FAIR = 7             # ... and by rings up to the fair size to seven times


@cython.no_gc
cdef class Budget:
    """Memory of all receive rings, or of all send rings, of one node, in bytes."""

    def __cinit__(self, limit: int = 1 << 30) -> None:
        self.limit = limit


@cython.no_gc
cdef class Share:
    """What the rings of one peer own of a budget.

    A peer may hold a multiple of what is free, so something is left for the next one, however many came before it; a
    reader that stopped, or a peer that leaves a hole in each of its streams, may keep the rest as long as it likes. The
    smallest ring is every stream's right, beyond the limit if need be.
    """

    def __cinit__(self, Budget budget not None) -> None:
        self.budget = budget

    cdef uint64_t reachable(self, uint64_t held, uint64_t wanted) noexcept:
        """The size to which a ring of `held` bytes may grow now, where `wanted` would do; `held` at least."""
        cdef uint64_t most = held if held else SMALLEST_RING
        cdef uint64_t all_others = self.budget.used - held
        cdef uint64_t others = self.used - held
        cdef uint64_t larger
        while most < wanted:
            larger = most * 2
            if all_others + larger > self.budget.limit:
                break
            if others + larger > (self.budget.limit - all_others - larger) * (
                    TIMES_FREE_FAIR if larger <= FAIR_RING else TIMES_FREE):
                break
            most = larger
        return most

    cdef void resized(self, uint64_t before, uint64_t after) noexcept:
        """A ring has another size now."""
        self.used += after - before
        self.budget.used += after - before
