"""The 34-byte packet header and its CRC-32: encode, decode, and a Python form for cold paths and tests (_fast, L2)."""
cimport cython
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy
from cpython.bytes cimport PyBytes_FromStringAndSize

from pilot._fast._endian cimport load16, load32, store16, store32
from pilot._fast.addr cimport Addr, new_addr
from pilot._fast.window cimport MemoryWindow

try:
    from isal.isal_zlib import crc32 as _crc32
except ImportError:  # isal has no wheel here: zlib computes the same value, ten times slower
    from zlib import crc32 as _crc32

from pilot._fast.errors import InvalidValueError

cdef object crc32_function = _crc32
cdef MemoryWindow crc_window = MemoryWindow()


class PacketError(ValueError):
    """Bytes that are no valid packet. The only exception `Packet.decode_untrusted` raises."""


cdef uint32_t crc32(uint8_t *data, Py_ssize_t size) noexcept:
    return <uint32_t> crc32_function(crc_window.show(data, size))


cdef int decode_packet(uint8_t *data, size_t length, packet *out) noexcept:
    cdef uint32_t claimed, computed
    if length < HEADER_BYTES:
        return PACKET_SHORT
    out.length = load16(data + 2)
    if length < <size_t> HEADER_BYTES + out.length:
        return PACKET_TRUNCATED
    claimed = load32(data + 30)
    store32(data + 30, 0)
    computed = crc32(data, HEADER_BYTES + out.length)
    store32(data + 30, claimed)
    if computed != claimed:
        return PACKET_BAD_CRC
    if data[0] >> 4 != VERSION:
        return PACKET_BAD_VERSION
    out.flags = data[0] & 15
    out.protocol = data[1]
    out.src_network = load16(data + 4)
    out.src_node = load32(data + 6)
    out.dst_network = load16(data + 10)
    out.dst_node = load32(data + 12)
    out.src_port = load16(data + 16)
    out.dst_port = load16(data + 18)
    out.seq = load32(data + 20)
    out.ack = load32(data + 24)
    out.window = load16(data + 28)
    out.payload = data + HEADER_BYTES
    return PACKET_OK


cdef void encode_header(uint8_t *data, const packet *p) noexcept:
    data[0] = <uint8_t> (VERSION << 4 | (p.flags & 15))
    data[1] = p.protocol
    store16(data + 2, p.length)
    store16(data + 4, p.src_network)
    store32(data + 6, p.src_node)
    store16(data + 10, p.dst_network)
    store32(data + 12, p.dst_node)
    store16(data + 16, p.src_port)
    store16(data + 18, p.dst_port)
    store32(data + 20, p.seq)
    store32(data + 24, p.ack)
    store16(data + 28, p.window)
    store32(data + 30, 0)
    store32(data + 30, crc32(data, HEADER_BYTES + p.length))


@cython.freelist(8)
cdef class Packet:
    """One packet as a Python object: what tests, probes and cold paths use. The datapath never makes one.

    Fields: `flags` (SYN 1, ACK 2, FIN 4, RST 8), `protocol` (1 stream, 2 datagram, 3 control), `source` and
    `destination` (`Addr`), `source_port`, `destination_port`, `seq`, `ack`, `window` (segments), `payload`.
    """
    cdef readonly int flags
    cdef readonly int protocol
    cdef readonly Addr source
    cdef readonly Addr destination
    cdef readonly int source_port
    cdef readonly int destination_port
    cdef readonly object seq
    cdef readonly object ack
    cdef readonly int window
    cdef readonly bytes payload

    def __init__(self, flags: int, protocol: int, Addr source not None, Addr destination not None, source_port: int,
                 destination_port: int, seq: int = 0, ack: int = 0, window: int = 0, payload: bytes = b"") -> None:
        if len(payload) > MAX_PAYLOAD:
            raise InvalidValueError(f"a packet carries at most {MAX_PAYLOAD} bytes, not {len(payload)}")
        self.flags = flags
        self.protocol = protocol
        self.source = source
        self.destination = destination
        self.source_port = source_port
        self.destination_port = destination_port
        self.seq = seq & 0xFFFFFFFF
        self.ack = ack & 0xFFFFFFFF
        self.window = window
        self.payload = bytes(payload)

    def encode(self) -> bytes:
        """Header and payload, CRC computed."""
        cdef packet p
        # Filled before anybody else sees it.
        cdef bytes out = PyBytes_FromStringAndSize(NULL, HEADER_BYTES + len(self.payload))
        cdef uint8_t *data = <uint8_t *> <char *> out
        p.flags = self.flags
        p.protocol = self.protocol
        p.length = <uint16_t> len(self.payload)
        p.src_network = self.source.network
        p.src_node = self.source.node
        p.dst_network = self.destination.network
        p.dst_node = self.destination.node
        p.src_port = self.source_port
        p.dst_port = self.destination_port
        p.seq = self.seq
        p.ack = self.ack
        p.window = self.window
        memcpy(data + HEADER_BYTES, <const uint8_t *> self.payload, len(self.payload))
        encode_header(data, &p)
        return out

    @staticmethod
    def decode_untrusted(data) -> Packet:
        """The packet at the start of `data`; bytes behind it are ignored. Raises `PacketError` and nothing else."""
        cdef bytes copy
        cdef packet p
        cdef Packet out
        cdef int status
        if type(data) is bytes:
            copy = PyBytes_FromStringAndSize(<char *> <bytes> data, len(<bytes> data))
        else:
            copy = bytes(memoryview(data))
        status = decode_packet(<uint8_t *> <char *> copy, len(copy), &p)
        if status != PACKET_OK:
            raise PacketError(("", "fewer than 34 bytes", "shorter than its payload length says", "CRC does not match",
                               "version is not 1")[status])
        out = Packet.__new__(Packet)
        out.flags = p.flags
        out.protocol = p.protocol
        out.source = new_addr(p.src_network, p.src_node)
        out.destination = new_addr(p.dst_network, p.dst_node)
        out.source_port = p.src_port
        out.destination_port = p.dst_port
        out.seq = p.seq
        out.ack = p.ack
        out.window = p.window
        out.payload = PyBytes_FromStringAndSize(<char *> p.payload, p.length)
        return out

    def __repr__(self) -> str:
        names = "+".join(name for bit, name in ((1, "SYN"), (2, "ACK"), (4, "FIN"), (8, "RST")) if self.flags & bit)
        return (f"<Packet {names or 'no flags'} protocol={self.protocol} {self.source}:{self.source_port} -> "
                f"{self.destination}:{self.destination_port} seq={self.seq} ack={self.ack} window={self.window} "
                f"payload={len(self.payload)}>")

    def __eq__(self, other) -> bool:
        return isinstance(other, Packet) and self.encode() == (<Packet> other).encode()

    def __hash__(self) -> int:
        return hash(self.encode())


def checksum(data) -> int:
    """CRC-32 (IEEE) of `data`, as the header carries it."""
    return crc32_function(data)
