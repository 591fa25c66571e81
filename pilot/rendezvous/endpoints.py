"""Which address of a node is stored, given what it says and where it called from (rendezvous room, L8)."""

from __future__ import annotations

from pilot._fast.errors import InvalidValueError
from pilot.protocol.endpoints import ip_of, is_public, join_endpoint, split_endpoint_untrusted
from pilot.rendezvous.config import MAX_LAN_ADDRS


def stored_endpoint_untrusted(listen_addr: str, source_host: str, source_port: int) -> str:
    """Where a node is reached that says `listen_addr` over TCP from the source (rendezvous.md 4.1).

    A public IP or a name is believed; an empty, unspecified, private, carrier-grade, loopback or link-local host
    becomes the source's; the port is kept. Nothing at all becomes the source itself. Raises `InvalidValueError` when it
    is no address.
    """
    if not listen_addr:
        return join_endpoint(source_host, source_port)
    try:
        host, port = split_endpoint_untrusted(listen_addr, listening=True)
    except InvalidValueError as error:
        raise InvalidValueError(f"invalid address: {error}") from None
    address = ip_of(host)
    if not host or (address is not None and not is_public(address)):
        host = source_host
    return join_endpoint(host, port)


def lan_addrs_untrusted(value: object) -> tuple[str, ...]:
    """The usable ``ip:port`` texts of `value`, at most `MAX_LAN_ADDRS`; others are left out."""
    if not isinstance(value, list):
        return ()
    usable = []
    for text in value[:MAX_LAN_ADDRS]:
        try:
            host, port = split_endpoint_untrusted(text if isinstance(text, str) else "", listening=True)
        except InvalidValueError:
            continue
        if ip_of(host) is not None:
            usable.append(join_endpoint(host, port))
    return tuple(dict.fromkeys(usable))
