"""The rendezvous that nodes of the benchmarks meet at: no subject, and idle while anything is measured (bench)."""

from __future__ import annotations

from typing import Any

from bench.subjects import End
from pilot.rendezvous import BeaconLimits, Limits, Rendezvous, RendezvousConfig

__all__ = ["Server"]


class Server(End):
    """`open(host)` answers with the settings a node needs."""

    async def open(self, *, host: str) -> dict[str, Any]:
        """Listens on two free ports of `host`, without rate limits."""
        config = RendezvousConfig(
            host=host, registry_port=0, beacon_port=0, limits=Limits.relaxed(), beacon_limits=BeaconLimits.relaxed()
        )
        self._server = Rendezvous(config)
        await self._server.__aenter__()
        addresses = {"registry": self._server.registry_address, "beacon": self._server.beacon_address}
        return {name: "{}:{}".format(*address) for name, address in addresses.items()}

    async def close(self) -> None:
        """Stops it."""
        await self._server.__aexit__(None, None, None)
