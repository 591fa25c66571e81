"""A NAT box of each of the four classic types, with mappings that expire (testing, L2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

__all__ = ["Nat", "NatType"]

Address = tuple[str, int]

MAPPING_SECONDS: Final = 120.0
"""The least idle time RFC 4787 wants a mapping to survive."""
FIRST_PORT: Final = 20_000
MAX_MAPPINGS: Final = 16_384


class NatType(Enum):
    """What a box maps and whom it lets in (RFC 3489, section 5)."""

    FULL_CONE = "full cone"
    ADDRESS_RESTRICTED = "address-restricted cone"
    PORT_RESTRICTED = "port-restricted cone"
    SYMMETRIC = "symmetric"


@dataclass(slots=True)
class _Mapping:
    inside: Address
    port: int
    used: float
    sent_to: set[Address] = field(default_factory=set)
    sent_to_hosts: set[str] = field(default_factory=set)


class Nat:
    """One box: `outbound` gives the public source address, `inbound` the private target or None.

    Only what comes from inside keeps a mapping alive. `clock` gives virtual seconds. With `preserve_ports`, as most
    boxes do, the first mapping of an inside port gets the same number outside. `inside` begins the addresses behind it:
    `100.64` makes it a carrier's.
    """

    def __init__(
        self,
        host: str,
        kind: NatType,
        clock: Callable[[], float],
        *,
        lifetime: float = MAPPING_SECONDS,
        preserve_ports: bool = True,
        inside: str = "10.0",
    ) -> None:
        self.host = host
        self.kind = kind
        self.lifetime = lifetime
        self.preserve_ports = preserve_ports
        self.inside = inside
        self._clock = clock
        self._outside: dict[object, _Mapping] = {}
        self._ports: dict[int, _Mapping] = {}
        self._next_port = FIRST_PORT

    def __len__(self) -> int:
        return len(self._ports)

    def outbound(self, source: Address, target: Address) -> Address:
        """Where `target` sees a datagram of `source` come from."""
        key: object = (source, target) if self.kind is NatType.SYMMETRIC else source
        now = self._clock()
        mapping = self._outside.get(key)
        if mapping is not None and now - mapping.used > self.lifetime:
            self._drop(key, mapping)
            mapping = None
        if mapping is None:
            if len(self._outside) >= MAX_MAPPINGS:
                oldest = next(iter(self._outside))
                self._drop(oldest, self._outside[oldest])
            port = self._free_port(source[1])
            mapping = self._outside[key] = self._ports[port] = _Mapping(source, port, now)
        mapping.used = now
        mapping.sent_to.add(target)
        mapping.sent_to_hosts.add(target[0])
        return self.host, mapping.port

    def inbound(self, port: int, source: Address) -> Address | None:
        """Who gets a datagram from `source` to `port` of this box; None when it is filtered."""
        mapping = self._ports.get(port)
        if mapping is None or self._clock() - mapping.used > self.lifetime:
            return None
        if self.kind is NatType.ADDRESS_RESTRICTED and source[0] not in mapping.sent_to_hosts:
            return None
        if self.kind in (NatType.PORT_RESTRICTED, NatType.SYMMETRIC) and source not in mapping.sent_to:
            return None
        return mapping.inside

    def reboot(self) -> None:
        """Forgets every mapping; new ones get other ports."""
        self._outside.clear()
        self._ports.clear()

    def _free_port(self, wanted: int) -> int:
        if self.preserve_ports and wanted not in self._ports:
            return wanted
        while self._next_port in self._ports:
            self._next_port += 1
        port = self._next_port
        self._next_port = port + 1 if port < 60_000 else FIRST_PORT
        return port

    def _drop(self, key: object, mapping: _Mapping) -> None:
        del self._outside[key]
        self._ports.pop(mapping.port, None)
