"""Overlay addresses: 48-bit `Addr` and `SocketAddr` (an address and a port); parse,
format, pack, hash, order (_fast, L2)."""
cimport cython
from cpython.object cimport Py_EQ, Py_GT, Py_LE, Py_LT, Py_NE
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from pilot._fast._endian cimport load16, load32, store16, store32

from pilot._fast.errors import InvalidValueError

cdef const char *HEX_DIGITS = b"0123456789ABCDEF"


cdef inline int hex_value(Py_UCS4 c) noexcept:
    if c'0' <= c <= c'9':
        return <int> c - c'0'
    if c'A' <= c <= c'F':
        return <int> c - c'A' + 10
    if c'a' <= c <= c'f':
        return <int> c - c'a' + 10
    return -1


cdef inline int parse_group(str text, Py_ssize_t at) noexcept:
    """Four hex digits at `at`, or -1."""
    cdef int i, digit, value = 0
    for i in range(4):
        digit = hex_value(text[at + i])
        if digit < 0:
            return -1
        value = value * 16 + digit
    return value


cdef inline long parse_decimal(str text, Py_ssize_t start, Py_ssize_t end) noexcept:
    """ASCII decimal digits in 0..65535, or -1."""
    cdef long value = 0
    cdef Py_ssize_t i
    cdef Py_UCS4 c
    if end <= start:
        return -1
    for i in range(start, end):
        c = text[i]
        if not c'0' <= c <= c'9':
            return -1
        value = value * 10 + (<long> c - c'0')
        if value > 65535:
            return -1
    return value


cdef inline void format_group(char *out, uint32_t value) noexcept:
    out[0] = HEX_DIGITS[(value >> 12) & 15]
    out[1] = HEX_DIGITS[(value >> 8) & 15]
    out[2] = HEX_DIGITS[(value >> 4) & 15]
    out[3] = HEX_DIGITS[value & 15]


cdef Addr new_addr(uint16_t network, uint32_t node):
    cdef Addr addr = Addr.__new__(Addr)
    addr.network = network
    addr.node = node
    return addr


cdef Addr load_addr(const uint8_t *p):
    return new_addr(load16(p), load32(p + 2))


@cython.final
@cython.freelist(64)
cdef class Addr:
    """A permanent 48-bit overlay address: a 16-bit network and a 32-bit node.

    Immutable, hashable and ordered by (network, node). The canonical text is ``N:NNNN.HHHH.LLLL``: the network in
    decimal, then network and node in upper-case hex (``0:0000.0000.0001``). Raises `InvalidValueError` (a `ValueError`)
    when network or node are out of range. Source: draft-teodor-pilot-protocol-01, addressing.
    """

    def __init__(self, network: int, node: int) -> None:
        # Instances are shared and hashed, so a second __init__ must not change one; __cinit__ has set the fields.
        pass

    def __cinit__(self, *args, **kwargs) -> None:
        if not args and not kwargs:
            return  # the C factory new_addr fills the fields
        network, node = _two_fields(*args, **kwargs)
        if not 0 <= network <= 0xFFFF:
            raise InvalidValueError(f"network {network!r} is not in 0..65535")
        if not 0 <= node <= 0xFFFFFFFF:
            raise InvalidValueError(f"node {node!r} is not in 0..4294967295")
        self.network = network
        self.node = node

    @staticmethod
    def parse(text: str) -> Addr:
        """The address written as ``N:NNNN.HHHH.LLLL`` (hex in either case); `InvalidValueError` for anything else."""
        cdef Py_ssize_t colon, rest
        cdef long network
        cdef int group, high, low
        if not isinstance(text, str):
            raise InvalidValueError(f"an address is text such as '0:0000.0000.0001', not {type(text).__name__}")
        colon = (<str> text).find(":")
        rest = len(<str> text) - colon - 1
        if colon > 0 and rest == 14 and text[colon + 5] == "." and text[colon + 10] == ".":
            network = parse_decimal(text, 0, colon)
            group = parse_group(text, colon + 1)
            high = parse_group(text, colon + 6)
            low = parse_group(text, colon + 11)
            if network >= 0 and network == group and high >= 0 and low >= 0:
                return new_addr(<uint16_t> network, (<uint32_t> high << 16) | <uint32_t> low)
            if network >= 0 and group >= 0 and network != group:
                raise InvalidValueError(
                    f"{text!r}: the decimal network {network} and the hex network {group:04X} must agree")
        raise InvalidValueError(
            f"{_quote(text)} is not an address; the form is N:NNNN.HHHH.LLLL, such as '0:0000.0000.0001'")

    @staticmethod
    def from_bytes(data) -> Addr:
        """The address in the first 6 bytes of `data`; fewer than 6 give the zero
        address, as the wire reference says."""
        cdef const unsigned char[::1] view = data
        if view.shape[0] < 6:
            return new_addr(0, 0)
        return load_addr(&view[0])

    def pack(self) -> bytes:
        """The 6 bytes on the wire: network, then node, big-endian."""
        cdef uint8_t out[6]
        store16(out, self.network)
        store32(out + 2, self.node)
        return (<char *> out)[:6]

    @property
    def is_zero(self) -> bool:
        """True for ``0:0000.0000.0000``, the unspecified address."""
        return self.network == 0 and self.node == 0

    @property
    def is_broadcast(self) -> bool:
        """True when the node part is 0xFFFFFFFF, on any network."""
        return self.node == <uint32_t> 0xFFFFFFFF

    def on_network(self, network: int) -> Addr:
        """The same node with another network number."""
        return Addr(network, self.node)

    def __str__(self) -> str:
        cdef char out[14]
        format_group(out, self.network)
        out[4] = c'.'
        format_group(out + 5, self.node >> 16)
        out[9] = c'.'
        format_group(out + 10, self.node & 0xFFFF)
        return f"{self.network}:{out[:14].decode('ascii')}"

    def __repr__(self) -> str:
        return f"Addr('{self}')"

    def __hash__(self) -> int:
        cdef uint64_t mixed = self.key() * <uint64_t> 0x9E3779B97F4A7C15
        return <Py_hash_t> (mixed ^ (mixed >> 32))

    def __richcmp__(self, other, int op):
        if not isinstance(other, Addr):
            return NotImplemented
        cdef uint64_t a = self.key()
        cdef uint64_t b = (<Addr> other).key()
        if op == Py_EQ:
            return a == b
        if op == Py_NE:
            return a != b
        if op == Py_LT:
            return a < b
        if op == Py_LE:
            return a <= b
        if op == Py_GT:
            return a > b
        return a >= b

    def __reduce__(self):
        return Addr, (self.network, self.node)


def _two_fields(network, node):
    return network, node


cdef str _quote(str text):
    return repr(text if len(text) <= 64 else text[:61] + "...")


@cython.final
cdef class SocketAddr:
    """An overlay address and a virtual port, written ``<address>:<port>``. Immutable, hashable, ordered."""
    cdef readonly Addr addr
    cdef readonly uint16_t port

    def __init__(self, addr: Addr, port: int) -> None:
        pass

    def __cinit__(self, Addr addr not None, port) -> None:
        if not 0 <= port <= 0xFFFF:
            raise InvalidValueError(f"port {port!r} is not in 0..65535")
        self.addr = addr
        self.port = port

    @staticmethod
    def parse(text: str) -> SocketAddr:
        """`text` split at its last colon into address and decimal port;
        `InvalidValueError` when either is malformed."""
        head, colon, tail = text.rpartition(":")
        cdef long port = parse_decimal(tail, 0, len(tail))
        if not colon or port < 0:
            raise InvalidValueError(
                f"{_quote(text)} is not a socket address; the form is <address>:<port>, such as '0:0000.0000.0001:7'")
        return SocketAddr(Addr.parse(head), port)

    def __str__(self) -> str:
        return f"{self.addr}:{self.port}"

    def __repr__(self) -> str:
        return f"SocketAddr('{self}')"

    def __hash__(self) -> int:
        return hash((self.addr, self.port))

    def __richcmp__(self, other, int op):
        if not isinstance(other, SocketAddr):
            return NotImplemented
        a = (self.addr, self.port)
        b = ((<SocketAddr> other).addr, (<SocketAddr> other).port)
        if op == Py_EQ:
            return a == b
        if op == Py_NE:
            return a != b
        if op == Py_LT:
            return a < b
        if op == Py_LE:
            return a <= b
        if op == Py_GT:
            return a > b
        return a >= b

    def __reduce__(self):
        return SocketAddr, (self.addr, self.port)
