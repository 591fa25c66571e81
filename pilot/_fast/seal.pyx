"""AES-256-GCM sessions: sealing and opening PILS frames in place, nonce counters, and a
replay window per nonce prefix (_fast, L6)."""
from enum import IntEnum

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from pilot._fast._endian cimport load32, load64, store32, store64
from pilot._fast.window cimport MemoryWindow

from pilot._fast.errors import InvalidValueError

# Shared by all sessions: the callee takes its buffers before it could let another thread run.
cdef MemoryWindow nonce_window = MemoryWindow()
cdef MemoryWindow aad_window = MemoryWindow()
cdef MemoryWindow plain_window = MemoryWindow()
cdef MemoryWindow sealed_window = MemoryWindow()

DEFAULT_WINDOW = 8192


class Verdict(IntEnum):
    """What became of a received PILS frame."""

    ACCEPT = 0
    REPLAY = 1
    OUTSIDE_WINDOW = 2
    AUTH_FAILURE = 3
    TOO_MANY_PREFIXES = 4
    MALFORMED = 5


cdef class ReplayWindow:
    """Which (prefix, counter) pairs a session has accepted: one sliding window of `width` counters per nonce prefix.

    At most 4 prefixes are taken, and none is ever forgotten: a forgotten prefix would look new, and its recorded
    frames would be accepted again. `check` decides and marks; call it only for authenticated frames.
    """

    def __cinit__(self, width: int = DEFAULT_WINDOW) -> None:
        if width < 64 or width & (width - 1):
            raise InvalidValueError(f"replay window {width!r} is not a power of two of at least 64")
        self.width = width
        self.prefixes = 0
        memset(self.epochs, 0, sizeof(self.epochs))

    def __dealloc__(self):
        cdef int i
        for i in range(self.prefixes):
            free(self.epochs[i].seen)

    cdef epoch *find(self, uint32_t prefix) noexcept:
        cdef int i
        cdef epoch *fresh
        for i in range(self.prefixes - 1, -1, -1):
            if self.epochs[i].prefix == prefix:
                return &self.epochs[i]
        if self.prefixes == MAX_PREFIXES:
            return NULL
        fresh = &self.epochs[self.prefixes]
        fresh.seen = <uint64_t *> calloc(self.width // 64, 8)
        if fresh.seen == NULL:
            return NULL
        fresh.prefix = prefix
        fresh.highest = 0
        self.prefixes += 1
        return fresh

    cdef verdict check(self, uint32_t prefix, uint64_t counter) noexcept:
        cdef epoch *e = self.find(prefix)
        cdef uint64_t mask = self.width - 1
        cdef uint64_t bit, at
        if e == NULL:
            return TOO_MANY_PREFIXES
        bit = <uint64_t> 1 << (counter & 63)
        if counter > e.highest:
            if counter - e.highest >= self.width:
                memset(e.seen, 0, self.width // 8)
            else:
                at = e.highest + 1
                while at != counter:
                    # Whole words first: a jump must not cost one step a counter.
                    if at & 63 == 0 and counter - at >= 64:
                        e.seen[(at & mask) >> 6] = 0
                        at += 64
                    else:
                        e.seen[(at & mask) >> 6] &= ~(<uint64_t> 1 << (at & 63))
                        at += 1
            e.seen[(counter & mask) >> 6] |= bit
            e.highest = counter
            return ACCEPT
        if e.highest - counter >= self.width:
            return OUTSIDE_WINDOW
        if e.seen[(counter & mask) >> 6] & bit:
            return REPLAY
        e.seen[(counter & mask) >> 6] |= bit
        return ACCEPT

    def accept(self, prefix: bytes, counter: int) -> Verdict:
        """Decide about one authenticated frame and remember it. `prefix` is 4 bytes."""
        if len(prefix) != 4:
            raise InvalidValueError("a nonce prefix has 4 bytes")
        return Verdict(self.check(load32(<const uint8_t *> (<bytes> prefix)), counter))


cdef class Session:
    """The AES-256-GCM state shared with one peer: key, own nonce prefix and counter, and the receive window.

    `key` is 32 bytes, `prefix` the 4 random bytes this end puts in front of its counter; the first frame carries
    counter 1. Both directions use the same key, so a prefix must never be used twice under a key: the caller draws
    it. The receive window is judged after authentication. Source: wire.md sections 5 and 7, DESIGN section 4.
    """

    def __init__(self, key: bytes, own_node: int, peer_node: int, prefix: bytes, now: float, *,
                 authenticated: bool, peer_x25519: bytes, window: int = DEFAULT_WINDOW) -> None:
        if len(key) != 32 or len(prefix) != 4:
            raise InvalidValueError("a session needs a key of 32 bytes and a nonce prefix of 4")
        self.cipher = AESGCM(key)
        self.encrypt_into = self.cipher.encrypt_into
        self.decrypt_into = self.cipher.decrypt_into
        self.own_node = own_node
        self.peer_node = peer_node
        self.own_prefix = load32(<const uint8_t *> (<bytes> prefix))
        self.established_at = now
        self.authenticated = authenticated
        self.peer_x25519 = peer_x25519
        self.window = ReplayWindow(window)

    @property
    def prefix(self) -> bytes:
        """The 4 bytes in front of this end's counters."""
        cdef uint8_t out[4]
        store32(out, self.own_prefix)
        return (<char *> out)[:4]

    @property
    def peer_prefixes(self) -> list[bytes]:
        """The nonce prefixes accepted from the peer so far, oldest first."""
        return [int(self.window.epochs[i].prefix).to_bytes(4, "big") for i in range(self.window.prefixes)]

    cdef size_t seal_frame(self, uint8_t *frame, size_t inner) except 0:
        if self.cipher is None:
            raise InvalidValueError("the session's key has been wiped")
        self.sent += 1
        self.bytes_under_key += inner
        memcpy(frame, b"PILS", 4)
        store32(frame + 4, self.own_node)
        store32(frame + 8, self.own_prefix)
        store64(frame + 12, self.sent)
        # Same start for input and output: an output that starts inside the input is
        # silently wrong (cryptography 50.0.2).
        self.encrypt_into(nonce_window.show(frame + 8, 12), plain_window.show(frame + FRAME_HEADER, inner),
                          aad_window.show(frame + 4, 4), sealed_window.show(frame + FRAME_HEADER, inner + TAG_BYTES))
        return inner + SEAL_OVERHEAD

    cdef verdict open_frame(self, uint8_t *frame, size_t length) noexcept:
        cdef verdict result
        cdef size_t inner
        if length < SEAL_OVERHEAD or self.cipher is None:
            return MALFORMED
        inner = length - SEAL_OVERHEAD
        try:
            self.decrypt_into(nonce_window.show(frame + 8, 12),
                              sealed_window.show(frame + FRAME_HEADER, inner + TAG_BYTES),
                              aad_window.show(frame + 4, 4), plain_window.show(frame + FRAME_HEADER, inner))
        except InvalidTag:
            return AUTH_FAILURE
        result = self.window.check(load32(frame + 8), load64(frame + 12))
        if result == ACCEPT:
            self.received += 1
            self.bytes_under_key += inner
        return result

    def seal(self, packet: bytes) -> bytes:
        """The PILS frame around `packet`; consumes one counter. Raises `InvalidValueError` after `wipe`."""
        cdef bytearray out = bytearray(len(packet) + SEAL_OVERHEAD)
        cdef uint8_t *frame = out
        memcpy(frame + FRAME_HEADER, <const uint8_t *> (<bytes> packet), len(packet))
        self.seal_frame(frame, len(packet))
        return bytes(out)

    def open_untrusted(self, frame: bytes) -> tuple[Verdict, bytes]:
        """The verdict on a received PILS frame and, when it is ACCEPT, the inner packet (else empty). Never raises."""
        cdef bytearray copy = bytearray(frame)
        cdef verdict result = self.open_frame(copy, len(copy))
        return Verdict(result), bytes(copy[FRAME_HEADER:-TAG_BYTES]) if result == ACCEPT else b""

    def wipe(self) -> None:
        """Drop the key; every later seal raises and every open answers MALFORMED."""
        self.cipher = self.encrypt_into = self.decrypt_into = None

    def __repr__(self) -> str:
        return f"<Session {self.own_node}->{self.peer_node} sent={self.sent} received={self.received}>"
