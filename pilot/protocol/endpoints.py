"""Endpoints as text, `host:port` and `[IPv6]:port`, on both sides of the registry and in settings (L8 wire formats)."""

from __future__ import annotations

import ipaddress
import re
from typing import Final

from pilot._fast.errors import InvalidValueError

__all__ = ["ip_of", "is_carrier_grade", "is_public", "join_endpoint", "split_endpoint_untrusted"]

MAX_ENDPOINT_CHARS: Final = 260
_NAME: Final = re.compile(r"(?=.{1,253}\Z)(?!-)[A-Za-z0-9_-]{1,63}(?:\.(?!-)[A-Za-z0-9_-]{1,63})*\.?", re.ASCII)

CARRIER_GRADE: Final = ipaddress.ip_network("100.64.0.0/10")
# Not `is_private`: it counts documentation and benchmark ranges too, which 1.18.0 takes for public (rendezvous.md 4.1).
_LOCAL: Final = (
    CARRIER_GRADE,
    *map(ipaddress.ip_network, ("0.0.0.0/32", "10.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12")),
    *map(ipaddress.ip_network, ("192.168.0.0/16", "::/128", "::1/128", "fc00::/7", "fe80::/10")),
)


def is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether `address` means the same machine everywhere: not private, carrier-grade, loopback or link-local."""
    return not any(address in network for network in _LOCAL)


def is_carrier_grade(host: str) -> bool:
    """Whether `host` is an address that carriers give out behind their NAT (RFC 6598)."""
    address = ip_of(host)
    return address is not None and address in CARRIER_GRADE


def join_endpoint(host: str, port: int) -> str:
    """`host:port`, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split_endpoint_untrusted(text: str, *, listening: bool = False) -> tuple[str, int]:
    """Host and port of `host:port` or `[IPv6]:port`, an IPv4-mapped IPv6 address as IPv4.

    `listening`: where somebody listens rather than where one sends to, so the host may be empty and the port 0.

    Raises:
        InvalidValueError: the text is something else; the message quotes it.
    """
    host, colon, digits = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if bracketed:
        host = host[1:-1]
    port = int(digits) if digits.isascii() and digits.isdigit() and len(digits) <= 5 else -1
    if (
        len(text) > MAX_ENDPOINT_CHARS
        or not colon
        or not (0 if listening else 1) <= port <= 0xFFFF
        or (not host and (bracketed or not listening))
        or (":" in host and not bracketed)
    ):
        raise InvalidValueError(
            f"{text[:MAX_ENDPOINT_CHARS]!r} is no endpoint: write host:port or [IPv6 address]:port, "
            f"port in {0 if listening else 1}..65535"
        )
    address = ip_of(host)
    if address is not None:
        return str(address), port
    if host and (bracketed or not _NAME.fullmatch(host)):
        raise InvalidValueError(f"{host!r} in {text!r} is neither an IP address nor a host name")
    return host, port


def ip_of(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address `host` is, an IPv4-mapped one as IPv4; None when it is a name or nothing."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    if address.version == 6:
        return address.ipv4_mapped or address
    return address
