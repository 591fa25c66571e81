"""Nodes with a carrier's address (100.64.0.0/10): what the registry stores, and whether peers reach them (L5)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from pilot.protocol.endpoints import join_endpoint, split_endpoint_untrusted
from pilot.rendezvous import directory
from pilot.testing import NatType, World, simulate


def keep_what_is_sent(listen_addr: str, source_host: str, source_port: int) -> str:
    """What a registry stores that takes carrier-grade addresses for public, as 1.18.0's may (rendezvous.md 4.1)."""
    return join_endpoint(*split_endpoint_untrusted(listen_addr, listening=True))


@pytest.mark.parametrize("believing", [False, True], ids=["our registry", "a registry that believes"])
def test_the_reflexive_address_is_registered(believing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if believing:
        monkeypatch.setattr(directory, "stored_endpoint_untrusted", keep_what_is_sent)

    async def scenario(world: World) -> None:
        box = world.network.nat(NatType.FULL_CONE, inside="100.64")
        behind, outside = world.machine(nat=box), world.machine()
        changes: list[Any] = []
        node = await behind.start()
        await outside.start()

        async def listen() -> None:
            with node.events.subscribe("tunnel.addr_changed") as events:
                async for event in events:
                    changes.append((event.payload["previous"], event.payload["current"]))

        listening = asyncio.create_task(listen())
        assert behind.host.address.startswith("100.64.")
        await asyncio.sleep(3.0)
        registry = world.rendezvous.registry.state
        assert registry.live_node(node.node_id).endpoint == f"{box.host}:4000"
        assert changes == [(behind.host.address, box.host)]
        async with node.serve(1000, _echo), await outside.node.dial(node.address, 1000) as stream:
            await stream.write(b"hello")
            assert await stream.readexactly(5) == b"hello"
            assert outside.node.stats().peers[0].path == "direct"
        world.network.move(behind.host)
        await asyncio.sleep(60.0)
        assert registry.live_node(node.node_id).endpoint == f"{box.host}:4000"
        world.network.move(box)
        await asyncio.sleep(90.0)
        assert registry.live_node(node.node_id).endpoint == f"{box.host}:4000"
        assert len(changes) == 4  # the two moves made three
        listening.cancel()

    simulate(1, scenario)


async def _echo(stream: Any) -> None:
    async for chunk in stream:
        await stream.write(chunk)
