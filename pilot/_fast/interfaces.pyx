"""This machine's own underlay addresses: which one faces a peer, which ones a LAN neighbour can use (_fast, L2)."""
import socket

from libc.stdint cimport uint32_t

from pilot._fast.netaddr import normalise

__all__ = ["lan_addresses", "local_address_towards"]

cdef enum:
    ANY_PORT = 9    # connecting a datagram socket sends nothing, but some systems refuse port 0


cdef extern from "<sys/types.h>" nogil:
    """
    #include <sys/socket.h>
    #include <netinet/in.h>
    #include <net/if.h>
    #include <ifaddrs.h>
    #include <string.h>

    /* The IPv4 address of an entry in host order; 0 if it has none, or its interface is down or loopback. */
    static uint32_t pilot_up_ipv4(const struct ifaddrs *entry)
    {
        struct sockaddr_in address;
        if (entry->ifa_addr == NULL || entry->ifa_addr->sa_family != AF_INET
            || !(entry->ifa_flags & IFF_UP) || (entry->ifa_flags & IFF_LOOPBACK))
            return 0;
        memcpy(&address, entry->ifa_addr, sizeof address);
        return ntohl(address.sin_addr.s_addr);
    }
    """
    struct ifaddrs:
        ifaddrs *ifa_next
    int getifaddrs(ifaddrs **first)
    void freeifaddrs(ifaddrs *first)
    uint32_t pilot_up_ipv4(const ifaddrs *entry)


cdef inline bint is_lan(uint32_t ip) noexcept nogil:
    """RFC 1918 and link-local (RFC 3927)."""
    return ip >> 24 == 10 or ip >> 20 == 0xAC1 or ip >> 16 == 0xC0A8 or ip >> 16 == 0xA9FE


def lan_addresses() -> list:
    """Private and link-local IPv4 addresses of interfaces that are up and not loopback, as text, each once.

    Raises `OSError` when the system does not tell.
    """
    cdef ifaddrs *first = NULL
    cdef ifaddrs *entry
    cdef uint32_t ip
    cdef list found = []
    if getifaddrs(&first) != 0:
        raise OSError("the system does not list its network interfaces (getifaddrs failed)")
    try:
        entry = first
        while entry != NULL:
            ip = pilot_up_ipv4(entry)
            if ip and is_lan(ip):
                text = f"{ip >> 24}.{ip >> 16 & 255}.{ip >> 8 & 255}.{ip & 255}"
                if text not in found:
                    found.append(text)
            entry = entry.ifa_next
    finally:
        freeifaddrs(first)
    return found


def local_address_towards(host: str, port: int) -> str:
    """The source address the system would use towards `host`, a literal IP address. Sends nothing.

    Raises `InvalidValueError` for anything but a literal address and a port in 0..65535, `OSError` when there is no
    route there.
    """
    peer = normalise((host, port or ANY_PORT))
    with socket.socket(socket.AF_INET6 if ":" in peer[0] else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(peer)
        return normalise(probe.getsockname())[0]
