# Sealing and opening of PILS frames in place (_fast, L6): see seal.pyx.
from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef enum:
    FRAME_HEADER = 20       # magic 4, sender 4, nonce 12
    TAG_BYTES = 16
    SEAL_OVERHEAD = 36
    MAX_PREFIXES = 4        # a session takes this many nonce prefixes in its life and forgets none

cdef enum verdict:
    ACCEPT = 0
    REPLAY = 1
    OUTSIDE_WINDOW = 2
    AUTH_FAILURE = 3
    TOO_MANY_PREFIXES = 4
    MALFORMED = 5


cdef struct epoch:
    uint32_t prefix
    uint64_t highest
    uint64_t *seen


cdef class ReplayWindow:
    cdef readonly uint64_t width
    cdef epoch epochs[4]
    cdef readonly int prefixes
    cdef epoch *find(self, uint32_t prefix) noexcept
    cdef verdict check(self, uint32_t prefix, uint64_t counter) noexcept


cdef class Session:
    cdef readonly uint32_t own_node
    cdef readonly uint32_t peer_node
    cdef readonly bytes peer_x25519
    cdef readonly bint authenticated
    cdef readonly double established_at
    cdef readonly uint64_t sent
    cdef readonly uint64_t received
    cdef readonly uint64_t bytes_under_key
    cdef uint32_t own_prefix
    cdef readonly ReplayWindow window
    cdef object cipher
    cdef object encrypt_into
    cdef object decrypt_into
    # Seals `inner` bytes that are at frame + FRAME_HEADER; writes the whole frame around them. Returns its length.
    cdef size_t seal_frame(self, uint8_t *frame, size_t inner) except 0
    # Opens in place: on ACCEPT the inner packet is at frame + FRAME_HEADER, length - SEAL_OVERHEAD bytes.
    # On AUTH_FAILURE the bytes are poison.
    cdef verdict open_frame(self, uint8_t *frame, size_t length) noexcept
