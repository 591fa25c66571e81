"""`loopback_nodes`: real nodes on loopback sockets with a rendezvous of their own, for tests (testing)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from pilot.node import Node
from pilot.protocol.endpoints import join_endpoint
from pilot.rendezvous import BeaconLimits, Limits, Rendezvous, RendezvousConfig

__all__ = ["loopback_nodes"]


@asynccontextmanager
async def loopback_nodes(*names: str, **settings: Any) -> AsyncIterator[list[Node]]:
    """`async with loopback_nodes("alice", "bob", services=[...]) as (alice, bob):` nothing leaves loopback.

    The names are hostnames; further parameters are those of `Node`, for each of them. A rendezvous without rate limits
    runs beside them on free ports. All nodes are public, and forgotten afterwards. Raises what `Node.start` raises.
    """
    config = RendezvousConfig(
        registry_port=0, beacon_port=0, limits=Limits.relaxed(), beacon_limits=BeaconLimits.relaxed()
    )
    async with AsyncExitStack() as stack:
        rendezvous = await stack.enter_async_context(Rendezvous(config))
        common = {
            "public": True,
            "listen": "127.0.0.1:0",
            "registry": join_endpoint(*rendezvous.registry_address),
            "beacon": join_endpoint(*rendezvous.beacon_address),
            **settings,
        }
        yield [await stack.enter_async_context(Node(**{"hostname": name, **common})) for name in names]
