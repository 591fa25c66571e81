"""Whom a client calls: an address, its text, or a hostname (plugins, L11)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pilot.coreapi import Addr, InvalidValueError

if TYPE_CHECKING:
    from pilot.coreapi import PeerResolver

__all__ = ["Target", "find"]

Target = Addr | str


async def find(target: Target, resolver: PeerResolver | None) -> Addr:
    """The address of `target`; hostnames are asked of `resolver`.

    Raises:
        InvalidValueError: it is neither an address nor a name, or a name and there is no resolver.
        PeerNotFoundError, RegistryError: as `PeerResolver.resolve_hostname`.
    """
    if isinstance(target, Addr):
        return target
    if not isinstance(target, str):
        raise InvalidValueError(f"{target!r} is no peer: give a hostname, an address like 0:0000.0000.0002 or Addr")
    if ":" in target:
        return Addr.parse(target)
    if resolver is None:
        raise InvalidValueError(f"the name {target!r} cannot be looked up without a resolver: give the address")
    return Addr(0, await resolver.resolve_hostname(target))
