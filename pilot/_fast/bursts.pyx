"""The self-check of segmentation offload: some drivers and boxes on the way lose or spoil every burst (_fast, L2).

Nothing tells the sender, so it looks at losses. A path where datagrams of one burst arrive is in order. One where much
is lost and none do is tried with single datagrams: if those arrive, twice in a row, bursts are not used there any more.
Sans-IO; PERFORMANCE section 5.
"""
cimport cython
from libc.math cimport INFINITY

cdef enum:
    SUSPECT_LOST = 8            # packets lost, no fewer than arrived, before bursts are suspected
    FORGET_AFTER = 64           # packets after which half of what was counted is forgotten
    PROOF = 3                   # arrivals that left at one time: no two streams' lone packets
    TRIAL_PACKETS = 32
    STRIKES = 2                 # a path that was dark for a while looks like a broken one once

cdef double AGAIN = 60.0        # seconds to the next trial after one that was in vain


@cython.final
cdef class BurstCheck:
    """What became of the packets to one peer, and whether they may leave in bursts. Times are the caller's seconds."""

    def __cinit__(self) -> None:
        self.reset()

    cpdef void reset(self) noexcept:
        """Another path: nothing is known of it."""
        self.single = self.off = self.proven = False
        self.strikes = 0
        self.not_before = -INFINITY
        self.restart(-INFINITY)

    cdef void restart(self, double now) noexcept:
        self.since = now
        self.lost = self.arrived = self.together = 0

    cpdef void judge(self, double sent_at, bint has_arrived) noexcept:
        """A packet that left at `sent_at` was acknowledged, or is taken for lost."""
        if sent_at <= self.since or self.off:
            return
        if not has_arrived:
            self.lost += 1
        else:
            self.arrived += 1
            self.together = self.together + 1 if sent_at == self.sent_together else 1
            self.sent_together = sent_at
            if self.together >= PROOF and not self.single:
                self.proven = True
                self.strikes = 0
        if not self.single and self.lost + self.arrived >= FORGET_AFTER:
            self.lost >>= 1
            self.arrived >>= 1

    cpdef void doubt(self) noexcept:
        """Everything in flight is taken for lost: whatever worked before need not work now."""
        self.proven = False

    cpdef bint decide(self, double now) noexcept:
        """Called before a burst is begun at `now`; True once, when bursts are given up on this path."""
        if self.off:
            return False
        if not self.single:
            if self.lost >= SUSPECT_LOST and self.lost >= self.arrived and not self.proven and now >= self.not_before:
                self.single = True
                self.restart(now)
            return False
        if self.lost + self.arrived < TRIAL_PACKETS:
            return False
        if self.lost * 8 <= self.arrived:
            self.strikes += 1
            self.off = self.single = self.strikes >= STRIKES
        else:
            self.strikes = 0
            self.single = False
            self.not_before = now + AGAIN
        self.restart(now)
        return self.off
