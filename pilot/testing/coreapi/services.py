"""What every `Service` has to do (testing). A check takes a function that makes the service, and `Deps` to run it with.

Each runs it through a `ServiceRegistry`, as a node does, and looks at what is left afterwards.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

from pilot._fast.errors import PilotError
from pilot.coreapi import Addr, Deps, Listener, Service, ServiceRegistry, Stream, Streams
from pilot.testing.coreapi.expecting import eventually

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from pilot.node import Node

__all__ = ["SERVICE_CHECKS", "node_deps"]

Make = Callable[[], Service]
Check = Callable[[Make, Deps], Awaitable[None]]

BLOCKING_SECONDS: Final = 1.0
"""Real time that a start or stop may keep the loop from everything else; generous, for busy machines."""


def node_deps(node: Node) -> Deps:
    """The `Deps` of a running node, as it would give them to a plugin."""
    return Deps(
        streams=node.streams,
        identity=node.identity,
        resolver=node.resolver,
        events=node.events,
        logger=logging.getLogger("pilot.plugin.test"),
    )


class _CountingStreams:
    """Passes everything on and remembers the listeners."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self.ports: list[int] = []

    async def dial(self, dst: Addr, port: int, *, timeout: float | None = None) -> Stream:
        return await self._streams.dial(dst, port, timeout=timeout)

    async def listen(self, port: int) -> Listener:
        listener = await self._streams.listen(port)
        self.ports.append(listener.port)
        return listener

    async def send_datagram(self, dst: Addr, port: int, data: Buffer) -> None:
        await self._streams.send_datagram(dst, port, data)


@contextlib.asynccontextmanager
async def _nothing_left() -> AsyncIterator[None]:
    """Fails when tasks that were made in the body still run a moment after it."""
    before = asyncio.all_tasks()

    def left() -> set[asyncio.Task[Any]]:
        return {task for task in asyncio.all_tasks() - before if task is not asyncio.current_task()}

    yield
    await eventually(lambda: not left(), f"the service's tasks have ended ({left()})", 1.0)


async def _run(service: Service, deps: Deps) -> list[int]:
    """Starts and stops it; returns the ports it listened on. Fails when either raises or hangs."""
    registry = ServiceRegistry()
    registry.register(service)
    streams = _CountingStreams(deps.streams)
    await registry.start_all(Deps(streams, deps.identity, deps.resolver, deps.events, deps.logger, deps.trust))
    assert registry.service(service.name) is service, "the registry gives another service"
    await asyncio.sleep(0.05)
    try:
        await registry.stop_all()
    except PilotError as error:
        raise AssertionError(f"the stop failed: {error}") from error
    return streams.ports


async def is_a_service(make: Make, deps: Deps) -> None:
    service = make()
    assert isinstance(service, Service), f"{service!r} lacks a member of Service"
    assert isinstance(service.order, int), f"order {service.order!r} is no whole number"
    ServiceRegistry().register(service)  # judges the name


async def starts_and_stops_and_leaves_nothing(make: Make, deps: Deps) -> None:
    async with _nothing_left():
        ports = await _run(make(), deps)
    for port in ports:
        await (await deps.streams.listen(port)).close()  # raises where the port is still taken


async def can_be_started_again(make: Make, deps: Deps) -> None:
    service = make()
    async with _nothing_left():
        assert sorted(await _run(service, deps)) == sorted(await _run(service, deps)), (
            "the second start opens other ports"
        )


async def a_cancelled_start_leaves_nothing(make: Make, deps: Deps) -> None:
    async with _nothing_left():
        for turns in range(4):
            registry = ServiceRegistry()
            registry.register(make())
            starting = asyncio.ensure_future(registry.start_all(deps))
            for _ in range(turns):
                await asyncio.sleep(0)
            starting.cancel()
            await asyncio.wait([starting])
            await registry.stop_all()


async def does_not_block_the_loop(make: Make, deps: Deps) -> None:
    longest, last = 0.0, time.monotonic()

    async def watch() -> None:
        nonlocal longest, last
        while True:
            await asyncio.sleep(0.001)
            now = time.monotonic()
            longest, last = max(longest, now - last), now

    watching = asyncio.ensure_future(watch())
    try:
        await _run(make(), deps)
    finally:
        watching.cancel()
        await asyncio.wait([watching])
    assert longest < BLOCKING_SECONDS, f"the loop was blocked for {longest:.2f} s"


SERVICE_CHECKS: Final[tuple[Check, ...]] = (
    is_a_service,
    starts_and_stops_and_leaves_nothing,
    can_be_started_again,
    a_cancelled_start_leaves_nothing,
    does_not_block_the_loop,
)
"""Run each with a function that makes the service, and `Deps` (`node_deps(node)`)."""
