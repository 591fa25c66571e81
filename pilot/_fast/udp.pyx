"""The datagram socket: batched receive, segmented send, error queue, bounded send queue (_fast, L2).

Nothing else touches it. `loop.add_reader(port.fileno(), port.on_readable)` is the whole wiring on Linux: `fileno()` is
there an epoll descriptor around the socket, for two reasons. A socket with a report in its error queue (whoever refuses
a datagram causes one, and they can be forged) polls as POLLERR, upon which libuv drops the watcher for good: a node on
uvloop would never receive again. And so the port itself can ask to be woken for writing while it holds bursts back.
Sources: PERFORMANCE sections 4, 5 and 8.
"""
import errno
import logging
import select
import socket
from collections import deque
from types import MappingProxyType
from typing import NamedTuple

cimport cython
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from libc.errno cimport EAFNOSUPPORT, EAGAIN, EBADF, EDESTADDRREQ, EINVAL, EIO, EMSGSIZE, ENOBUFS
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from pilot._fast.netaddr cimport netaddr, netaddr_from_python, netaddr_to_python
from pilot._fast.port cimport DatagramPort, FrameSink

from pilot._fast.errors import InvalidValueError
from pilot._fast.netaddr import normalise

__all__ = ["Offloads", "UdpPort", "UdpStats"]

logger = logging.getLogger("pilot.udp")

cdef enum:
    TURN_BATCHES = 64               # receive calls in one readable callback
    REPORTS_PER_TURN = 64           # error queue entries read in one go
    MTU_REPORTS = 32                # "too big" reports kept until `take_mtu_reports`
    PENDING_LIMIT_BYTES = 1 << 20   # bursts held back while the socket takes no more, their bookkeeping included

cdef double TURN_SECONDS = 0.0008   # one callback, either direction: what an asyncio loop can spare
cdef double LOG_SECONDS = 60.0      # at most one log line in so many seconds


class Offloads(NamedTuple):
    """What the kernel is used for: `gso` cuts bursts on sending, `gro` merges datagrams on receipt, `recvmmsg` hands
    over several buffers per call."""

    gso: bool
    gro: bool
    recvmmsg: bool


class UdpStats(NamedTuple):
    """Counters of a `UdpPort` since it was opened."""

    datagrams_in: int       # handed to the sink
    bytes_in: int           # their payload
    batches_in: int         # buffers the kernel filled: with GRO many datagrams each
    turns: int              # readable callbacks that delivered something
    datagrams_out: int      # taken by the kernel
    bytes_out: int
    batches_out: int        # send calls that took something
    receive_calls: int      # system calls to receive, error queue included
    send_calls: int         # system calls to send, failed ones included
    truncated: int          # buffers dropped because data or its control message was cut short
    unanswerable: int       # datagrams dropped because they came from port 0
    overflow: int           # datagrams the kernel dropped because the receive buffer was full
    would_block: int        # sends refused because the send buffer or the device queue was full
    queued: int             # bursts held back for that reason
    dropped: int            # datagrams given up because too many were held back
    gso_fallbacks: int      # bursts that went out only after GSO was switched off
    too_big: int            # error-queue reports of a datagram larger than the path carries
    send_errors: MappingProxyType    # name of the error -> sends that failed with it
    reports: MappingProxyType        # name of the error -> error-queue reports of it (ICMP): advisory, can be forged

    @property
    def segments_per_batch_in(self) -> float:
        """Datagrams per buffer received; 0.0 before the first."""
        return self.datagrams_in / self.batches_in if self.batches_in else 0.0

    @property
    def segments_per_batch_out(self) -> float:
        """Datagrams per successful send call; 0.0 before the first."""
        return self.datagrams_out / self.batches_out if self.batches_out else 0.0


cdef bint set_option(object sock, int level, int option, int value):
    """Whether the system has the option and took the value."""
    if option < 0:
        return False
    try:
        sock.setsockopt(level, option, value)
    except OSError:
        return False
    return True


cdef int set_buffer(object sock, int forced, int plain, int wanted) except -1:
    """Asks for a buffer of `wanted` bytes, past the system's limit where allowed; returns what was granted."""
    # Linux caps the plain option silently; others refuse too large a value.
    while not set_option(sock, socket.SOL_SOCKET, forced, wanted) \
            and not set_option(sock, socket.SOL_SOCKET, plain, wanted) and wanted > 1:
        wanted //= 2
    return sock.getsockopt(socket.SOL_SOCKET, plain)


cdef bint enable_gso(object sock):
    """Whether the kernel can cut bursts. The size goes with each burst, so the socket-wide one is set back to 0."""
    return set_option(sock, PILOT_SOL_UDP, PILOT_UDP_SEGMENT, 1200) \
        and set_option(sock, PILOT_SOL_UDP, PILOT_UDP_SEGMENT, 0)


cdef object bind_socket(object family, object host, object port, object scope, bint dual):
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not dual)
            sock.bind((host, port, 0, scope))
        else:
            sock.bind((host, port))
    except BaseException:
        sock.close()
        raise
    return sock


cdef object open_socket(object host, object port):
    """A bound non-blocking socket; `host` as in `UdpPort`."""
    cdef netaddr local
    netaddr_from_python(&local, (host or "0.0.0.0", port))
    try:
        if host == "":
            try:
                return bind_socket(socket.AF_INET6, "::", port, 0, True)
            except OSError as error:
                if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                    raise
            return bind_socket(socket.AF_INET, "0.0.0.0", port, 0, False)
        local.port = local.port or 1    # 0 would mean "no address"; only the host is taken from here
        text = netaddr_to_python(&local)[0].partition("%")[0]
        return bind_socket(socket.AF_INET6 if ":" in text else socket.AF_INET, text, port, local.scope, False)
    except OSError as error:
        raise bind_failure(error, host, port) from error


cdef object bind_failure(object error, object host, object port):
    """The exception to raise, in words, when binding failed with `error`."""
    where = f"UDP port {port} of {host or 'this machine'}"
    if error.errno == errno.EADDRINUSE:
        return OSError(error.errno, f"{where} is in use, by another program or node: stop that one or choose "
                                    "another port (0 takes any that is free)")
    if error.errno == errno.EADDRNOTAVAIL:
        return InvalidValueError(f"{host!r} is not an address of this machine: bind one of its own, or '' for all")
    if error.errno in (errno.EACCES, errno.EPERM):
        return OSError(error.errno, f"{where} may not be bound: ports below 1024 need privilege, choose a higher one")
    return OSError(error.errno, f"{where} could not be bound: {error.strerror}")


cdef void configure(object sock):
    """No fragmentation, error queue, overflow counter: on a dual-stack socket for both families."""
    set_option(sock, socket.IPPROTO_IP, PILOT_IP_MTU_DISCOVER, PILOT_PMTUDISC_PROBE)
    set_option(sock, socket.IPPROTO_IP, PILOT_IP_RECVERR, 1)
    set_option(sock, socket.IPPROTO_IP, PILOT_IP_DONTFRAG, 1)
    if sock.family == socket.AF_INET6:
        set_option(sock, socket.IPPROTO_IPV6, PILOT_IPV6_MTU_DISCOVER, PILOT_PMTUDISC_PROBE)
        set_option(sock, socket.IPPROTO_IPV6, PILOT_IPV6_RECVERR, 1)
        set_option(sock, socket.IPPROTO_IPV6, PILOT_IPV6_DONTFRAG, 1)
    set_option(sock, socket.SOL_SOCKET, PILOT_SO_RXQ_OVFL, 1)


cdef inline void copy_address(netaddr *out, const pilot_address *source) noexcept nogil:
    memcpy(out.ip, source.ip, 16)
    out.port = source.port
    out.reserved = 0
    out.scope = source.scope


cdef inline int error_slot(int code) noexcept nogil:
    return code if 0 < code < ERRNO_LIMIT else 0


@cython.cdivision(True)
cdef inline size_t datagrams_in(size_t length, size_t segment) noexcept nogil:
    return (length + segment - 1) // segment if length > segment else 1


cdef object errors_by_name(const uint64_t *table):
    return MappingProxyType({
        errno.errorcode.get(code, "other"): table[code] for code in range(ERRNO_LIMIT) if table[code]
    })


cdef void call_back(object callback) noexcept:
    if callback is not None:
        callback()


cdef class UdpPort(DatagramPort):
    """A bound UDP socket as datagram port.

    `host`: "" binds every address, on one dual-stack IPv6 socket where IPv6 exists, else on IPv4; a literal binds that
    address alone ("::" all of IPv6 and nothing else, "0.0.0.0" all of IPv4). `port`: 0 takes any. `gso`, `gro`,
    `recvmmsg`: use these of the kernel where they work. `buffer_bytes`: asked for in each direction. `clock`: gives the
    sink's `now`, in seconds; default CLOCK_MONOTONIC. Raises `InvalidValueError` for a host or port that cannot be,
    `OSError` otherwise.

    `on_congested` and `on_drained`, None or callables without arguments, run when the port starts holding bursts back
    and when it has sent the last of them. A loop where `fileno()` is the socket itself (all but Linux) needs
    `add_writer(port.fileno(), port.on_writable)` in the first and `remove_writer` in the second; on Linux that is
    harmless. Belongs to one thread. A sink may send and close from inside its callbacks; one attached from there gets
    what arrives after the present callback.
    """

    def __cinit__(self) -> None:
        self._fd = -1
        self._receiver = <pilot_receiver *> PyMem_RawMalloc(sizeof(pilot_receiver))
        if self._receiver == NULL:
            raise MemoryError
        self._receiver.overflow = 0
        memset(&self._count, 0, sizeof(self._count))

    def __init__(self, *, host: str = "", port: int = 0, gso: bool = True, gro: bool = True,
                 recvmmsg: bool = True, buffer_bytes: int = 7 << 20, clock=None) -> None:
        if not 0 < buffer_bytes < 1 << 30:
            raise InvalidValueError(f"buffer_bytes {buffer_bytes!r} is not in 1..{(1 << 30) - 1}")
        self._clock = clock
        self._mtu_reports = deque(maxlen=MTU_REPORTS)
        sock = open_socket(host, port)
        try:
            configure(sock)
            self.receive_buffer_bytes = set_buffer(sock, PILOT_SO_RCVBUFFORCE, socket.SO_RCVBUF, buffer_bytes)
            set_buffer(sock, PILOT_SO_SNDBUFFORCE, socket.SO_SNDBUF, buffer_bytes)
            self._gso = gso and enable_gso(sock)
            self.segmenting = self._gso
            self._gro = gro and set_option(sock, PILOT_SOL_UDP, PILOT_UDP_GRO, 1)
            self._recvmmsg = recvmmsg and PILOT_UDP_LINUX
            self.address = normalise(sock.getsockname())
            if PILOT_UDP_LINUX:
                self._poller = select.epoll()
                self._poller.register(sock, select.EPOLLIN)
        except BaseException:
            sock.close()
            raise
        self._socket = sock
        self._family = sock.family
        self._fd = sock.fileno()

    def __dealloc__(self) -> None:
        while self._head != NULL:
            self._pop()
        PyMem_RawFree(self._receiver)

    def __repr__(self) -> str:
        return f"<UdpPort {self.address}{' closed' if self._fd < 0 else ''}>"

    def fileno(self) -> int:
        """What to watch for reading; -1 once closed. On Linux not the socket itself: see the module."""
        return self._fd if self._poller is None else self._poller.fileno()

    def socket_fileno(self) -> int:
        """The socket itself, for its options and never for a loop; -1 once closed."""
        return self._fd

    @property
    def offloads(self):
        """Offloads in use at present; GSO ends for good when the kernel refuses a burst that goes out uncut."""
        return Offloads(self._gso, self._gro, self._recvmmsg)

    @property
    def traffic_bytes(self) -> int:
        """Payload received and sent so far, cheaper to ask for than `stats()`."""
        return self._count.bytes_in + self._count.bytes_out

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._fd < 0

    def close(self) -> None:
        """Close the socket and drop what is held back. Idempotent. Take `fileno()` out of the loop first."""
        if self._fd < 0:
            return
        self._fd = -1
        while self._head != NULL:
            self._pop()
        if self._poller is not None:
            self._poller.close()
            self._poller = None
        self._socket.close()

    def stats(self):
        """The counters as they are now: a `UdpStats`. Works on a closed port too."""
        cdef counters *c = &self._count
        return UdpStats(
            datagrams_in=c.datagrams_in, bytes_in=c.bytes_in, batches_in=c.batches_in, turns=c.turns,
            datagrams_out=c.datagrams_out, bytes_out=c.bytes_out, batches_out=c.batches_out,
            receive_calls=c.receive_calls, send_calls=c.send_calls,
            truncated=c.truncated, unanswerable=c.unanswerable, overflow=c.overflow,
            would_block=c.would_block, queued=c.queued, dropped=c.dropped,
            gso_fallbacks=c.gso_fallbacks, too_big=c.too_big,
            send_errors=errors_by_name(c.send_errors), reports=errors_by_name(c.reports),
        )

    def take_mtu_reports(self) -> list:
        """`((host, port), mtu)` of the latest "too big" reports, oldest first, each told once. The IP header counts.

        At most 32. Routers send them, and so can anybody who guesses the port: hints to probe again, not facts.
        """
        reports = list(self._mtu_reports)
        self._mtu_reports.clear()
        return reports

    # --- receiving ---

    def on_readable(self) -> None:
        """One turn: deliver what waits (bounded), then the end of the batch; read the error queue; send what was held.

        What is left over comes in the next callback. Does nothing when closed or called from inside itself.
        """
        cdef FrameSink sink = self.sink
        cdef double now
        if self._fd < 0 or self._receiving:
            return
        now = self._now()
        self._receiving = True
        try:
            if self._receive(sink, now):
                self._count.turns += 1
                if sink is not None:
                    sink.on_batch_end(now)
        finally:
            self._receiving = False
        if self._head != NULL:
            self._flush()
        self._log(pilot_monotonic())

    cdef double _now(self) except? -1.0:
        return pilot_monotonic() if self._clock is None else <double> self._clock()

    cdef size_t _receive(self, FrameSink sink, double now) except? 0:
        """Delivers up to a turn's worth of datagrams; returns how many."""
        cdef double stop = pilot_monotonic() + TURN_SECONDS
        cdef uint64_t before = self._count.datagrams_in
        cdef int full = 1 if PILOT_UDP_LINUX and not self._recvmmsg else PILOT_SLOTS
        cdef int i, n, _
        for _ in range(TURN_BATCHES):
            with nogil:
                n = pilot_receive(self._fd, self._receiver, self._recvmmsg, &self._count.receive_calls)
            if n < 0:
                # Nothing waits, so it may be the error queue that woke us; or an error was told, which clears it.
                self._read_reports()
                if not PILOT_UDP_LINUX and n != -EAGAIN:
                    self._count.reports[error_slot(-n)] += 1
                if n == -EAGAIN or pilot_monotonic() >= stop:
                    break
                continue
            # The kernel's counter has 32 bits.
            self._count.overflow += <uint32_t> (self._receiver.overflow - self._overflow_seen)
            self._overflow_seen = self._receiver.overflow
            for i in range(n):
                if not self._deliver(&self._receiver.slot[i], sink, now):
                    break
            if self._fd < 0 or n < full or pilot_monotonic() >= stop:
                break
        return self._count.datagrams_in - before

    cdef bint _deliver(self, const pilot_slot *slot, FrameSink sink, double now) noexcept:
        """Hands the datagrams of one slot to the sink; False when the port was closed meanwhile."""
        cdef netaddr source
        cdef size_t at = 0
        cdef size_t n
        if slot.truncated:
            self._count.truncated += 1
            return True
        if slot.source.port == 0:
            self._count.unanswerable += datagrams_in(slot.length, slot.stride)
            return True
        copy_address(&source, &slot.source)
        self._count.batches_in += 1
        while True:
            n = slot.length - at if slot.length - at < slot.stride else slot.stride
            self._count.datagrams_in += 1
            self._count.bytes_in += n
            if sink is not None:
                sink.on_datagram(slot.data + at, n, &source, now)
                if self._fd < 0:
                    return False
            at += n
            if at >= slot.length:
                return True

    cdef void _read_reports(self) except *:
        """Empties the error queue, or takes a turn's worth from it: the rest wakes us again."""
        cdef pilot_report report
        cdef netaddr peer
        cdef int _
        for _ in range(REPORTS_PER_TURN):
            if pilot_next_report(self._fd, &report, &self._count.receive_calls) == 0:
                return
            self._count.reports[error_slot(report.code)] += 1
            if report.mtu:
                self._count.too_big += 1
                copy_address(&peer, &report.peer)
                self._mtu_reports.append((netaddr_to_python(&peer), report.mtu))

    # --- sending ---

    cdef int transmit(self, uint8_t *data, size_t length, size_t segment, const netaddr *to) noexcept:
        cdef size_t sent = 0
        cdef int result
        if self._fd < 0:
            return -EBADF
        if to.port == 0:
            return -EDESTADDRREQ
        if segment == 0 and length > 0:
            return -EINVAL
        if self._head == NULL:
            result = self._send(data, length, segment, to, &sent)
            if result == 0:
                return 0
            if result != -EAGAIN and result != -ENOBUFS:
                self._count.send_errors[error_slot(-result)] += 1
                return result
            self._count.would_block += 1
        self._queue(data + sent, length - sent, segment, to)
        return 1

    cdef bint congested(self) noexcept:
        return self._head != NULL

    def send_datagram(self, data: bytes, address: tuple) -> None:
        """Send (or hold back) one datagram. Raises `OSError` with the errno of the system, `InvalidValueError`."""
        cdef netaddr to
        cdef const uint8_t[::1] view = data
        cdef size_t length = view.shape[0]
        cdef int result
        netaddr_from_python(&to, address)
        result = self.transmit(<uint8_t *> &view[0] if length else NULL, length, length, &to)
        if result < 0:
            reason = errno.errorcode.get(-result, -result)
            raise OSError(-result, f"sending {length} bytes to {address} failed: {reason}")

    cdef int _send(self, const uint8_t *data, size_t length, size_t segment, const netaddr *to,
                   size_t *sent) noexcept:
        """Sends all of it: 0, or a negative errno with the bytes taken before that in `sent`."""
        cdef pilot_name name
        cdef socklen_t name_length = pilot_name_of(self._family, to.ip, to.port, to.scope, &name)
        cdef size_t taken = 0
        cdef int result
        sent[0] = 0
        if name_length == 0:
            return -EAFNOSUPPORT
        while True:
            result = self._send_some(data + sent[0], length - sent[0], segment, &name, name_length, &taken)
            if result < 0:
                return result
            sent[0] += taken
            if sent[0] >= length:
                return 0

    cdef int _send_some(self, const uint8_t *data, size_t length, size_t segment, const pilot_name *name,
                        socklen_t name_length, size_t *sent) noexcept:
        """As much as one call takes, by the best way that works: 0 with the bytes in `sent`, or a negative errno."""
        cdef bint gso = self._gso and length > segment and 2 * segment <= PILOT_MAX_PAYLOAD
        cdef int result = self._attempt(data, length, segment, name, name_length, gso, sent)
        cdef int first
        if result == 0 or result == -EAGAIN or result == -ENOBUFS:
            return result
        # With the error queue on, a report about any peer fails the next send to whomever, once. So ask again.
        result = self._attempt(data, length, segment, name, name_length, gso, sent)
        if not gso or (result != -EIO and result != -EINVAL and result != -EMSGSIZE):
            return result
        # EIO: no checksum offload on the way; EINVAL, EMSGSIZE: a segment over the MTU, or no GSO. Uncut tells which.
        first = result
        result = self._attempt(data, length, segment, name, name_length, False, sent)
        if result == 0:
            self._gso = self.segmenting = False
            self._gso_errno = -first
            self._count.gso_fallbacks += 1
        return result

    @cython.cdivision(True)
    cdef int _attempt(self, const uint8_t *data, size_t length, size_t segment, const pilot_name *name,
                      socklen_t name_length, bint gso, size_t *sent) noexcept:
        """One send call. The GIL is kept for a single datagram: that is sooner done than releasing it pays."""
        cdef uint64_t *calls = &self._count.send_calls
        cdef size_t n = length
        cdef size_t most
        cdef int result
        if length <= segment:
            result = pilot_send_one(self._fd, name, name_length, data, n, calls)
        elif gso:
            most = PILOT_MAX_PAYLOAD // segment
            if most > PILOT_MAX_SEGMENTS:
                most = PILOT_MAX_SEGMENTS
            if n > most * segment:
                n = most * segment
            with nogil:
                result = pilot_send_segmented(self._fd, name, name_length, data, n, segment, calls)
        else:
            with nogil:
                result = pilot_send_split(self._fd, name, name_length, data, n, segment, calls)
            if result > 0:
                if n > <size_t> result * segment:
                    n = <size_t> result * segment
                result = 0
        if result == 0:
            self._count_out(n, datagrams_in(n, segment))
            sent[0] = n
        return result

    cdef void _count_out(self, size_t length, size_t datagrams) noexcept:
        self._count.batches_out += 1
        self._count.datagrams_out += datagrams
        self._count.bytes_out += length

    # --- bursts held back ---

    def on_writable(self) -> None:
        """Send what was held back, a turn's worth. For `loop.add_writer`; on Linux `on_readable` does it too."""
        if self._fd >= 0 and self._head != NULL:
            self._flush()
            self._log(pilot_monotonic())

    cdef void _queue(self, const uint8_t *data, size_t length, size_t segment, const netaddr *to) noexcept:
        """Holds a copy back until the socket takes more; beyond the limit it is lost, as in any full queue."""
        cdef size_t size = sizeof(burst) + length
        cdef burst *item = NULL
        if size <= PENDING_LIMIT_BYTES - self._pending_bytes:
            item = <burst *> PyMem_RawMalloc(size)
        if item == NULL:
            self._count.dropped += datagrams_in(length, segment)
            return
        item.next = NULL
        item.to = to[0]
        item.length = length
        item.segment = segment
        item.sent = 0
        memcpy(item + 1, data, length)
        self._pending_bytes += size
        self._count.queued += 1
        if self._head == NULL:
            self._head = self._tail = item
            self._watch_writable(True)
            call_back(self.on_congested)
        else:
            self._tail.next = item
            self._tail = item

    cdef void _pop(self) noexcept:
        cdef burst *item = self._head
        self._head = item.next
        self._pending_bytes -= sizeof(burst) + item.length
        PyMem_RawFree(item)

    cdef void _flush(self) noexcept:
        """Sends held bursts in order, a turn's worth."""
        cdef double stop = pilot_monotonic() + TURN_SECONDS
        cdef size_t sent = 0
        cdef burst *item
        cdef const uint8_t *data
        cdef int result = 0
        while self._head != NULL and result != -ENOBUFS and pilot_monotonic() < stop:
            item = self._head
            data = <const uint8_t *> (item + 1) + item.sent
            result = self._send(data, item.length - item.sent, item.segment, &item.to, &sent)
            item.sent += sent
            if result == -EAGAIN:
                self._count.would_block += 1
                return
            if result == -ENOBUFS:
                # The device queue is full, yet the socket says "writable": to keep it for later is to spin.
                self._count.would_block += 1
                self._count.dropped += datagrams_in(item.length - item.sent, item.segment)
            elif result < 0:
                self._count.send_errors[error_slot(-result)] += 1
            self._pop()
        if self._head == NULL:
            self._watch_writable(False)
            call_back(self.on_drained)

    cdef void _watch_writable(self, bint wanted) noexcept:
        if self._poller is not None:
            self._poller.modify(self._fd, select.EPOLLIN | select.EPOLLOUT if wanted else select.EPOLLIN)

    # --- log ---

    cdef void _log(self, double now) noexcept:
        """Says what happened on the hot path since the last line, from outside of it and not too often."""
        if (self._gso_errno == 0 and self._count.dropped == self._dropped_logged) or now < self._log_after:
            return
        self._log_after = now + LOG_SECONDS
        if self._gso_errno:
            logger.warning("UDP segmentation offload is off on %s: the kernel refused a burst (%s) that went out uncut",
                           self.address, errno.errorcode.get(self._gso_errno, self._gso_errno))
            self._gso_errno = 0
        if self._count.dropped != self._dropped_logged:
            logger.warning("%d datagrams dropped on %s: the network takes them slower than they are sent",
                           self._count.dropped - self._dropped_logged, self.address)
            self._dropped_logged = self._count.dropped
