"""Conversion of underlay addresses between the C form and Python's `(host, port)` pairs (_fast, L2)."""
import socket

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy

from pilot._fast.errors import InvalidValueError


cdef bint netaddr_from_python(netaddr *out, object address) except -1:
    """Fills `out` from `(host, port[, flowinfo, scope])`; None clears it. The host must be a literal IP."""
    cdef bytes packed
    netaddr_clear(out)
    if address is None:
        return False
    host, port = address[0], address[1]
    if not isinstance(port, int) or not 0 <= port <= 0xFFFF:
        raise InvalidValueError(f"port {port!r} is not in 0..65535")
    scope = address[3] if len(address) > 3 else 0
    try:
        if ":" in host:
            if "%" in host:
                host, _, zone = host.partition("%")
                scope = int(zone) if zone.isdigit() else socket.if_nametoindex(zone)
            packed = socket.inet_pton(socket.AF_INET6, host)
        else:
            packed = b"\x00" * 10 + b"\xff\xff" + socket.inet_pton(socket.AF_INET, host)
    except (OSError, ValueError) as error:
        raise InvalidValueError(f"{host!r} is not an IP address (resolve names first)") from error
    memcpy(out.ip, <const uint8_t *> packed, 16)
    out.port = <uint16_t> port
    out.scope = <uint32_t> scope
    return True


cdef object netaddr_to_python(const netaddr *a):
    """`(host, port)`, or None when no address is known. A link-local scope is written into the host (`fe80::1%2`)."""
    if a.port == 0:
        return None
    if netaddr_is_ipv4(a):
        return f"{a.ip[12]}.{a.ip[13]}.{a.ip[14]}.{a.ip[15]}", a.port
    host = socket.inet_ntop(socket.AF_INET6, (<const char *> a.ip)[:16])
    return (f"{host}%{a.scope}" if a.scope else host), a.port


def normalise(address):
    """`address` as every other module sees it: IPv4-mapped IPv6 becomes IPv4; None stays None."""
    cdef netaddr a
    netaddr_from_python(&a, address)
    return netaddr_to_python(&a)
