"""The datagram port: what the datapath needs from a socket, real (`udp`) or virtual (Python) (_fast, L2)."""
from libc.errno cimport EIO
from libc.stdint cimport uint8_t

from pilot._fast.netaddr cimport netaddr, netaddr_from_python, netaddr_to_python


cdef class FrameSink:
    """Receives datagrams from a port. The datapath is one; the base class ignores everything."""

    cdef void on_datagram(self, uint8_t *data, size_t length, const netaddr *source, double now) noexcept:
        pass

    cdef void on_batch_end(self, double now) noexcept:
        pass


cdef class DatagramPort:
    """Base of every port. A Python subclass overrides `send_datagram`; `udp.UdpPort` overrides the C methods."""

    cdef int transmit(self, uint8_t *data, size_t length, size_t segment, const netaddr *to) noexcept:
        try:
            self.send_burst((<char *> data)[:length], segment, netaddr_to_python(to))
            return 0
        except OSError as error:
            return -(error.errno or EIO)

    cdef bint congested(self) noexcept:
        return False

    def attach(self, FrameSink sink) -> None:
        """Deliver what arrives to `sink` from now on."""
        self.sink = sink

    def send_burst(self, data: bytes, segment: int, address: tuple[str, int]) -> None:
        """Send `data` as datagrams of `segment` bytes, the last may be shorter. Raises what `send_datagram` raises."""
        if len(data) <= segment:
            self.send_datagram(data, address)
            return
        for at in range(0, len(data), segment):
            self.send_datagram(data[at:at + segment], address)

    def send_datagram(self, data: bytes, address: tuple[str, int]) -> None:
        """Send one datagram. Overridden by virtual ports; may raise `OSError` (`EMSGSIZE`, unreachable)."""
        raise OSError(EIO, "this port cannot send")

    def deliver(self, data: bytes, source: tuple[str, int], now: float, *, last: bool = True) -> None:
        """Hand one received datagram to the sink; with `last` also the end of the batch."""
        cdef netaddr from_
        cdef bytearray writable = bytearray(data)
        netaddr_from_python(&from_, source)
        if self.sink is not None:
            self.sink.on_datagram(writable, len(writable), &from_, now)
            if last:
                self.sink.on_batch_end(now)

    def close(self) -> None:
        """Give the underlay address back; nothing is sent or delivered any more. Overridden by ports that hold one."""

    def end_batch(self, now: float) -> None:
        """Tell the sink that a batch of `deliver(..., last=False)` calls is complete."""
        if self.sink is not None:
            self.sink.on_batch_end(now)
