"""Test support: a sink that keeps what a port delivers, and Python's way to the C methods of a port (_fast, L2)."""
from libc.stdint cimport uint8_t

from pilot._fast.netaddr cimport netaddr, netaddr_from_python, netaddr_to_python
from pilot._fast.port cimport DatagramPort, FrameSink


cdef class Recorder(FrameSink):
    """Keeps every datagram and the end of every batch.

    `datagrams` is a list of `(data, (host, port), now)`, `batches` of the `now` of each batch end. `hook`, if given, is
    called as `hook(data, source, now)` after each datagram is kept, from inside the port's callback.
    """

    cdef readonly list datagrams
    cdef readonly list batches
    cdef public object hook

    def __init__(self, hook=None) -> None:
        self.datagrams = []
        self.batches = []
        self.hook = hook

    cdef void on_datagram(self, uint8_t *data, size_t length, const netaddr *source, double now) noexcept:
        entry = ((<char *> data)[:length], netaddr_to_python(source), now)
        self.datagrams.append(entry)
        if self.hook is not None:
            self.hook(*entry)

    cdef void on_batch_end(self, double now) noexcept:
        self.batches.append(now)


def transmit(DatagramPort port not None, data: bytes, segment: int, address: tuple | None) -> int:
    """`port.transmit` as the datapath calls it: 0, 1 (congested) or a negative errno."""
    cdef netaddr to
    cdef bytearray writable = bytearray(data)
    netaddr_from_python(&to, address)
    return port.transmit(writable, len(writable), segment, &to)


def congested(DatagramPort port not None) -> bool:
    """`port.congested` as the datapath calls it."""
    return port.congested()
