"""Every asynchronous test here runs on plain asyncio and on uvloop; whole nodes meet at a real rendezvous."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from typing import Any

import pytest
import uvloop

from pilot.node import Node
from pilot.rendezvous import BeaconLimits, Limits, Rendezvous, RendezvousConfig

StartNode = Callable[..., Awaitable[Node]]


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


def addresses(server: Rendezvous) -> dict[str, str]:
    """The settings of a node at this rendezvous."""
    return {
        "registry": "{}:{}".format(*server.registry_address),
        "beacon": "{}:{}".format(*server.beacon_address),
    }


@pytest.fixture
async def rendezvous() -> AsyncIterator[Rendezvous]:
    config = RendezvousConfig(
        registry_port=0, beacon_port=0, limits=Limits.relaxed(), beacon_limits=BeaconLimits.relaxed()
    )
    async with Rendezvous(config) as server:
        yield server


@pytest.fixture
async def start_node(rendezvous: Rendezvous) -> AsyncIterator[StartNode]:
    """`await start_node("alice", ...)`: a running public node of that name, stopped after the test."""
    async with AsyncExitStack() as nodes:

        async def start(name: str = "", **settings: Any) -> Node:
            settings = {"hostname": name, "public": True, "listen": "127.0.0.1:0", **addresses(rendezvous), **settings}
            return await nodes.enter_async_context(Node(**settings))

        yield start


@pytest.fixture
async def pair(start_node: StartNode) -> tuple[Node, Node]:
    """Two public nodes, alice and bob."""
    return await start_node("alice"), await start_node("bob")


async def eventually(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Returns when `condition()` holds; fails the test when it does not in time."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - there is nothing to wait for
            await asyncio.sleep(0.005)
