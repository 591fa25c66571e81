"""Where a webhook may not go: link-local addresses and the metadata services of clouds (plugin policy, L11).

Those answer whoever can have a host send requests, with its credentials. A URL is checked when it is set, and every
address its host resolves to before each request, which then goes to exactly that address: a name cannot point elsewhere
in between. Source: services.md 8.1; the addresses of clouds that are not link-local are our addition.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import Awaitable, Callable
from typing import Final

from pilot.coreapi import InvalidValueError

__all__ = ["FORBIDDEN_NAMES", "Resolve", "allowed_addresses", "check_host", "resolve"]

Resolve = Callable[[str, int], Awaitable[list[str]]]
"""Host and port to IP addresses, best first; raises OSError."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

FORBIDDEN_NAMES: Final = frozenset(
    {
        "ec2.internal",
        "instance-data-service.ec2.internal",
        "metadata.azure.com",
        "metadata.google.com",
        "metadata.google.internal",
    }
)
FORBIDDEN_ADDRESSES: Final = frozenset(
    ipaddress.ip_address(text)
    for text in (
        "100.100.100.200",  # Alibaba Cloud
        "168.63.129.16",  # Azure
        "192.0.0.192",  # Oracle Cloud
        "fd00:ec2::254",  # AWS
        "fd20:ce::254",  # Google Cloud
    )
)
LINK_LOCAL_MULTICAST: Final = (ipaddress.ip_network("224.0.0.0/24"), ipaddress.ip_network("ff02::/16"))
TRANSLATED: Final = tuple(
    ipaddress.ip_network(text)
    for text in (
        "64:ff9b::/96",  # NAT64
        "64:ff9b:1::/48",  # NAT64 within a site
        "::ffff:0:0:0/96",  # SIIT
        "::/96",  # IPv4-compatible
    )
)
"""Whose last 32 bits are an IPv4 address that is reached through them."""
MAX_LABEL_CHARS: Final = 63
MAX_ADDRESSES: Final = 4
"""Of one name; more are not tried."""


def check_host(host: str) -> None:
    """Passes a host name or an address in text that may be sent to, as far as the text tells.

    Raises:
        InvalidValueError: it is a link-local address, names a metadata service, or is nothing that could be resolved.
    """
    name = host.lower().rstrip(".").replace("%25", "%")
    if name in FORBIDDEN_NAMES:
        raise InvalidValueError(f"URL cannot target the metadata service {name}")
    address = _as_address(name)
    if address is not None:
        _check(address)
    elif not all(0 < len(label) <= MAX_LABEL_CHARS for label in name.split(".")):
        raise InvalidValueError(f"URL has the host {name[:80]!r}, no possible name: its parts have 1 to 63 letters")


async def allowed_addresses(host: str, port: int, lookup: Resolve) -> list[str]:
    """The addresses `host` has now, `MAX_ADDRESSES` at most, none of them forbidden. Cancelling it has no effect.

    Raises:
        InvalidValueError: one of them is link-local or a metadata service: then the whole name is refused.
        OSError: it does not resolve.
    """
    found = await lookup(host, port)
    if not found:
        raise OSError(f"{host} has no address")
    for text in found:
        _check(ipaddress.ip_address(text))
    return found[:MAX_ADDRESSES]


async def resolve(host: str, port: int) -> list[str]:
    """What the system's resolver says, in its order."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))


def _as_address(name: str) -> Address | None:
    """What the system takes `name` for without asking anybody: `2852039166` and `0xa9.254.43518` are addresses too."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(name)
    with contextlib.suppress(OSError):
        return ipaddress.IPv4Address(socket.inet_aton(name))
    return None


def _check(given: Address) -> None:
    address = ipaddress.ip_address(given.packed)  # without a zone
    for inner in (address, *_embedded(address)):
        if inner.is_link_local or any(inner in network for network in LINK_LOCAL_MULTICAST):
            raise InvalidValueError(f"URL cannot target link-local address {given}")
        if inner in FORBIDDEN_ADDRESSES:
            raise InvalidValueError(f"URL cannot target the metadata service {given}")


def _embedded(address: Address) -> list[Address]:
    """The IPv4 addresses that routers or the system take an IPv6 address for."""
    if isinstance(address, ipaddress.IPv4Address):
        return []
    found: list[Address | None] = [address.ipv4_mapped, address.sixtofour]
    if any(address in network for network in TRANSLATED):
        found.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return [inner for inner in found if inner is not None]
