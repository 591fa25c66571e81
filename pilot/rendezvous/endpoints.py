"""Which address of a node is stored, given what it says and where it called from (rendezvous room, L8)."""

from __future__ import annotations

import ipaddress
import re
from typing import Final

from pilot._fast.errors import InvalidValueError
from pilot.protocol.beacon import normal_host
from pilot.rendezvous.config import MAX_ENDPOINT_CHARS, MAX_LAN_ADDRS

_HOST_NAME: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?\.?", re.ASCII)

# RFC 1918 and fc00::/7 only: `is_private` also counts documentation, benchmark and carrier-grade ranges.
_REPLACED: Final = tuple(
    ipaddress.ip_network(text)
    for text in (
        "0.0.0.0/32",
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "::/128",
        "::1/128",
        "fc00::/7",
        "fe80::/10",
    )
)


def join_endpoint(host: str, port: int) -> str:
    """``host:port``, IPv6 in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split_endpoint_untrusted(text: str) -> tuple[str, int]:
    """(host, port) of ``host:port``; the host may be empty, an IP address or a name. `InvalidValueError` otherwise."""
    host, colon, digits = text.rpartition(":")
    if not colon or len(text) > MAX_ENDPOINT_CHARS or not (digits.isascii() and digits.isdigit() and len(digits) <= 5):
        raise InvalidValueError("invalid address: host:port is required")
    port = int(digits)
    if port > 0xFFFF:
        raise InvalidValueError(f"invalid address: port {port} is not in 0..65535")
    if host.startswith("[") and host.endswith("]"):
        host = normal_host(host[1:-1])
        if _ip(host) is None:
            raise InvalidValueError("invalid address: the brackets hold no IPv6 address")
    elif host and _ip(host) is None and not _HOST_NAME.fullmatch(host):
        raise InvalidValueError("invalid address: the host is neither an IP address nor a name")
    return host, port


def stored_endpoint_untrusted(listen_addr: str, source_host: str, source_port: int) -> str:
    """Where a node is reached that says `listen_addr` over TCP from the source (rendezvous.md 4.1).

    A public IP or a name is believed; an empty, unspecified, private, loopback or link-local host becomes the source's;
    the port is kept. Nothing at all becomes the source itself. Raises `InvalidValueError` when it is no address.
    """
    if not listen_addr:
        return join_endpoint(source_host, source_port)
    host, port = split_endpoint_untrusted(listen_addr)
    address = _ip(host)
    if not host or (address is not None and any(address in network for network in _REPLACED)):
        host = source_host
    return join_endpoint(host, port)


def lan_addrs_untrusted(value: object) -> tuple[str, ...]:
    """The usable ``ip:port`` texts of `value`, at most `MAX_LAN_ADDRS`; others are left out."""
    if not isinstance(value, list):
        return ()
    usable = []
    for text in value[:MAX_LAN_ADDRS]:
        try:
            host, port = split_endpoint_untrusted(text if isinstance(text, str) else "")
        except InvalidValueError:
            continue
        if _ip(host) is not None:
            usable.append(join_endpoint(host, port))
    return tuple(dict.fromkeys(usable))


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
