# The 34-byte packet header and its CRC-32 in C (_fast, L2): see packet.pyx.
from libc.stdint cimport uint8_t, uint16_t, uint32_t

from pilot._fast._endian cimport load16, load32, store16, store32

cdef enum:
    VERSION = 1
    FLAG_SYN = 1
    FLAG_ACK = 2
    FLAG_FIN = 4
    FLAG_RST = 8
    PROTOCOL_STREAM = 1
    PROTOCOL_DATAGRAM = 2
    PROTOCOL_CONTROL = 3
    HEADER_BYTES = 34
    MAX_PAYLOAD = 65535

cdef enum:
    PACKET_OK = 0
    PACKET_SHORT = 1        # fewer than 34 bytes
    PACKET_TRUNCATED = 2    # fewer than 34 + payload length
    PACKET_BAD_CRC = 3
    PACKET_BAD_VERSION = 4


cdef struct packet:
    uint8_t flags
    uint8_t protocol
    uint16_t length         # payload bytes
    uint16_t src_network
    uint32_t src_node
    uint16_t dst_network
    uint32_t dst_node
    uint16_t src_port
    uint16_t dst_port
    uint32_t seq
    uint32_t ack
    uint16_t window
    uint8_t *payload        # into the decoded buffer


cdef uint32_t crc32(uint8_t *data, Py_ssize_t size) noexcept
# Both change only the CRC field of the buffer, and put it back.
cdef int decode_packet(uint8_t *data, size_t length, packet *out) noexcept
# Writes the header in front of `p.length` payload bytes that are already at data + 34, CRC included.
cdef void encode_header(uint8_t *data, const packet *p) noexcept
