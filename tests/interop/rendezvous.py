"""Our rendezvous as the interoperation suite runs it: on the test's own loop, inside the namespace (L8 server side)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from pilot.rendezvous import BeaconLimits, Limits, Rendezvous, RendezvousConfig

ADMIN_TOKEN = "interop-admin"


@dataclass(frozen=True, slots=True)
class Running:
    """A running rendezvous and the two addresses, as text, that daemons are given."""

    server: Rendezvous
    registry: str
    beacon: str


@asynccontextmanager
async def our_rendezvous(host: str, store: str = ":memory:") -> AsyncIterator[Running]:
    """Run a rendezvous without rate limits on `host`; the same store again is a restart that lost nothing."""
    config = RendezvousConfig(
        host=host,
        store=store,
        admin_token=ADMIN_TOKEN,
        limits=Limits.relaxed(),
        beacon_limits=BeaconLimits.relaxed(),
    )
    async with Rendezvous(config) as server:
        yield Running(server, f"{host}:{config.registry_port}", f"{host}:{config.beacon_port}")
