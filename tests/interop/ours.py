"""Our own node inside the interop namespace: one call, one host of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from pilot.node import Node
from tests.interop.netns import Namespace
from tests.interop.rendezvous import Running


@asynccontextmanager
async def our_node(
    namespace: Namespace, rendezvous: Running, name: str = "ours", **options: Any
) -> AsyncIterator[Node]:
    """A public node of ours on a new host, registered with the rendezvous of the test."""
    settings = {
        "registry": rendezvous.registry,
        "beacon": rendezvous.beacon,
        "hostname": name,
        "listen": f"{namespace.new_host()}:0",
        "public": True,
        **options,
    }
    async with Node(**settings) as node:
        yield node
