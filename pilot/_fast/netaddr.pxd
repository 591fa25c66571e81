# Underlay addresses in C (_fast, L2): an IP and port in one comparable form; see netaddr.pyx.
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcmp, memset


# IPv4 is kept in IPv4-mapped form (::ffff:a.b.c.d), so equal peers compare equal whatever socket they came through.
# `scope` is the IPv6 zone of a link-local address, else 0. A port of 0 means "no address".
cdef struct netaddr:
    uint8_t ip[16]
    uint16_t port
    uint16_t reserved
    uint32_t scope


cdef inline bint netaddr_equal(const netaddr *a, const netaddr *b) noexcept nogil:
    return memcmp(a, b, sizeof(netaddr)) == 0


cdef inline bint netaddr_known(const netaddr *a) noexcept nogil:
    return a.port != 0


cdef inline bint netaddr_is_ipv4(const netaddr *a) noexcept nogil:
    cdef int i
    for i in range(10):
        if a.ip[i] != 0:
            return False
    return a.ip[10] == 0xFF and a.ip[11] == 0xFF


cdef inline void netaddr_clear(netaddr *a) noexcept nogil:
    memset(a, 0, sizeof(netaddr))


cdef bint netaddr_from_python(netaddr *out, object address) except -1   # (host, port) or None; host a literal IP
cdef object netaddr_to_python(const netaddr *a)                        # (host, port) or None
