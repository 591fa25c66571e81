"""The limit of the machine for our packets: a loop without protocol, both ends in C (bench, peer `c-limit`).

The sender seals segments in place and sends them in GSO bursts; the receiver takes them with recvmmsg and GRO and opens
them in place. Socket, system calls and AEAD are those of the datapath (`pilot._fast`), nothing is copied, framed,
checked or delivered. So that nothing is lost either, the receiver tells the total now and then, and the sender stays
within a window of that.
"""
import select
import time

from libc.errno cimport EAGAIN
from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from pilot._fast.netaddr cimport netaddr, netaddr_from_python
from pilot._fast.seal cimport ACCEPT, SEAL_OVERHEAD, Session
from pilot._fast.udp cimport (
    PILOT_MAX_PAYLOAD, PILOT_MAX_SEGMENTS, pilot_name, pilot_name_of, pilot_receive, pilot_receiver, pilot_send_one,
    pilot_send_segmented, pilot_slot, socklen_t,
)

from pilot._fast.udp import UdpPort

cdef enum:
    HEADER_BYTES = 34               # of a packet, sealed with its payload
    CREDIT_BYTES = 1 << 18          # the receiver tells its total every so many


cdef class Loop:
    """A socket and a session. `window`: bytes the sender may be ahead of what it was told."""

    cdef object port
    cdef object poll
    cdef Session session
    cdef int fd
    cdef int family
    cdef pilot_receiver *receiver
    cdef uint8_t *slot
    cdef uint64_t calls
    cdef pilot_name peer
    cdef socklen_t peer_length

    def __cinit__(self) -> None:
        self.receiver = <pilot_receiver *> malloc(sizeof(pilot_receiver))
        self.slot = <uint8_t *> malloc(1 << 16)
        if self.receiver == NULL or self.slot == NULL:
            raise MemoryError
        memset(self.slot, 0, 1 << 16)
        self.receiver.overflow = 0

    def __init__(self, host: str, key: bytes, prefix: bytes) -> None:
        self.port = UdpPort(host=host)
        self.fd = self.port.socket_fileno()
        self.family = 10 if ":" in host else 2
        self.poll = select.poll()
        self.session = Session(key, 1, 2, prefix, 0.0, authenticated=True, peer_x25519=bytes(32))

    def __dealloc__(self):
        free(self.receiver)
        free(self.slot)

    @property
    def address(self) -> tuple[str, int]:
        """Where it is bound."""
        return self.port.address

    @property
    def offloads(self):
        """Which kernel offloads are in use."""
        return self.port.offloads

    def close(self) -> None:
        """Closes the socket."""
        self.port.close()

    def connect(self, address: tuple[str, int]) -> None:
        """Where to send."""
        cdef netaddr to
        netaddr_from_python(&to, address)
        self.peer_length = pilot_name_of(self.family, to.ip, to.port, to.scope, &self.peer)

    cdef int wait(self, int events, int milliseconds) except -1:
        self.poll.register(self.fd, events)
        if not self.poll.poll(milliseconds):
            raise TimeoutError("the other end of c-limit has gone quiet: a datagram was lost")
        return 0

    cdef uint64_t credits(self, uint64_t known) except? 0:
        """The largest total told so far."""
        cdef int count, i
        cdef uint64_t told
        count = pilot_receive(self.fd, self.receiver, True, &self.calls)
        for i in range(count):
            memcpy(&told, self.receiver.slot[i].data + self.receiver.slot[i].length - 8, 8)
            if told > known:
                known = told
        return known

    cdef int transmit(self, size_t length, size_t segment) except -1:
        cdef int result
        while True:
            if length <= segment:
                result = pilot_send_one(self.fd, &self.peer, self.peer_length, self.slot, length, &self.calls)
            else:
                result = pilot_send_segmented(self.fd, &self.peer, self.peer_length, self.slot, length, segment,
                                              &self.calls)
            if result == 0:
                return 0
            if result != -EAGAIN:
                raise OSError(-result, "c-limit could not send")
            self.wait(select.POLLOUT, 2000)

    def send(self, total: int, segment: int, window: int) -> int:
        """Sends `total` segments of `segment` payload bytes; returns the time before the first, in ns."""
        cdef size_t frame = SEAL_OVERHEAD + HEADER_BYTES + <size_t> segment
        cdef uint64_t burst = PILOT_MAX_PAYLOAD // frame
        cdef uint64_t left = total
        cdef uint64_t sent = 0, known = 0, limit = window, payload = segment, n, i
        if burst > PILOT_MAX_SEGMENTS:
            burst = PILOT_MAX_SEGMENTS
        started = time.monotonic_ns()
        while left:
            n = burst if left > burst else left
            for i in range(n):
                self.session.seal_frame(self.slot + i * frame, frame - SEAL_OVERHEAD)
            self.transmit(n * frame, frame)
            left -= n
            sent += n * payload
            if sent - known > limit // 2:
                known = self.credits(known)
            while sent - known > limit:
                self.wait(select.POLLIN, 2000)
                known = self.credits(known)
        while known < sent:
            self.wait(select.POLLIN, 2000)
            known = self.credits(known)
        return started

    def receive(self, total: int) -> int:
        """Takes `total` segments; returns the time after the last, in ns."""
        cdef uint64_t left = total
        cdef uint64_t received = 0, told = 0
        cdef size_t at, length
        cdef pilot_slot *slot
        cdef int count, i
        while left:
            count = pilot_receive(self.fd, self.receiver, True, &self.calls)
            if count == -EAGAIN:
                self.wait(select.POLLIN, 20000)
                continue
            for i in range(count):
                slot = &self.receiver.slot[i]
                at = 0
                while at < slot.length:
                    length = slot.stride if slot.length - at > slot.stride else slot.length - at
                    if self.session.open_frame(slot.data + at, length) != ACCEPT:
                        raise ValueError("c-limit received what it could not open")
                    received += length - SEAL_OVERHEAD - HEADER_BYTES
                    left -= 1
                    at += length
            if received - told >= CREDIT_BYTES or left == 0:
                told = received
                memcpy(self.slot, &told, 8)
                pilot_send_one(self.fd, &self.peer, self.peer_length, self.slot, 8, &self.calls)
        return time.monotonic_ns()
