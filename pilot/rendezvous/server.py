"""The rendezvous server: registry over TCP, beacon over UDP, one lifecycle (rendezvous room, L8 server side)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import Callable
from types import TracebackType
from typing import Self

from pilot._fast.errors import BusyError, RegistryError
from pilot.protocol.beacon import Endpoint
from pilot.rendezvous.beacon import Beacon, BeaconPort
from pilot.rendezvous.config import RendezvousConfig
from pilot.rendezvous.journal import Journal
from pilot.rendezvous.registry import Registry
from pilot.rendezvous.registry_port import RegistryPort
from pilot.rendezvous.sqlite_store import SqliteStore
from pilot.rendezvous.state import State
from pilot.rendezvous.store import Store
from pilot.rendezvous.tls import server_context

logger = logging.getLogger("pilot.rendezvous")


class Rendezvous:
    """A rendezvous server: ``async with Rendezvous(RendezvousConfig(...)) as server``, or `start` and `stop`.

    Cheap to make; sockets and store open in `start`, and after `stop` nothing of it is left. `store` replaces the
    SQLite store that `config.store` names. One use only: make a new one to start again. Raises `InvalidValueError` when
    an exemption in the limits is malformed.
    """

    def __init__(self, config: RendezvousConfig | None = None, *, store: Store | None = None) -> None:
        self._config = config or RendezvousConfig()
        self._store: Store = store or SqliteStore(self._config.store)
        self._journal = Journal(self._store)
        self._registry = Registry(self._config, State(self._journal))
        self._registry_port = RegistryPort(self._registry, self._journal)
        self._beacon_port: BeaconPort | None = None
        self._timers: list[asyncio.Task[None]] = []
        self._started = False
        self._registry_address: Endpoint = ("", 0)
        self._beacon_address: Endpoint = ("", 0)
        self._fingerprint: str | None = None

    @property
    def registry_address(self) -> Endpoint:
        """(host, port) of the registry, TCP; known once started."""
        return self._registry_address

    @property
    def beacon_address(self) -> Endpoint:
        """(host, port) of the beacon, UDP; known once started."""
        return self._beacon_address

    @property
    def tls_fingerprint(self) -> str | None:
        """Lower-case hex SHA-256 of the certificate, for clients that pin it; None without TLS."""
        return self._fingerprint

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Open the store, bind both ports and serve; returns when both answer.

        Raises `OSError` when a port cannot be had, `BusyError` when the store is another process's or this server was
        started before, `InvalidValueError` when store, TLS files or host cannot be used. On failure or cancellation
        everything is closed again.
        """
        if self._started:
            raise BusyError("this Rendezvous was started before; make a new one")
        self._started = True
        try:
            await self._open()
        except BaseException:
            await self.stop()
            raise

    async def _open(self) -> None:
        config, registry = self._config, self._registry
        registry.state.load(await self._store.load(), registry.now(), registry.unix_time())
        context: ssl.SSLContext | None = None
        if config.tls is not None:
            context, self._fingerprint = server_context(config.tls, config.store)
        self._beacon_port = port = BeaconPort(config.host, config.beacon_port, config.clock)
        self._beacon_address = port.address
        registry.beacon_port = port.address[1]
        beacon = Beacon(
            config.beacon_limits,
            port.send,
            is_known=lambda node_id: registry.state.live_node(node_id) is not None,
            may_punch=self._may_punch,
        )
        self._registry_address = await self._registry_port.start(config.host, config.registry_port, context)
        port.start(beacon)
        self._every(config.reap_interval, self._reap)
        self._every(config.beacon_limits.sweep_interval, lambda: beacon.sweep(config.clock()))

    async def stop(self) -> None:
        """Close everything and store what is not stored yet. Safe to call twice.

        If cancelled, both ports are closed already and the store is closed before the cancellation goes on.
        """
        if self._beacon_port is not None:
            self._beacon_port.close()
        for timer in self._timers:
            timer.cancel()
        try:
            await self._registry_port.stop()
            if self._timers:
                await asyncio.wait(self._timers)
            with contextlib.suppress(RegistryError):
                await self._journal.durable()
        finally:
            await self._store.close()

    def _every(self, interval: float, work: Callable[[], None]) -> None:
        async def repeat() -> None:
            while True:
                await asyncio.sleep(interval)
                work()

        self._timers.append(asyncio.get_running_loop().create_task(repeat()))

    def _reap(self) -> None:
        reaped = self._registry.reap()
        if reaped:
            logger.info("%d registrations ended: not heard of for %.0f s", reaped, self._config.stale_after)

    def _may_punch(self, requester_id: int, target_id: int) -> bool:
        """Nobody is introduced to or by a relay-only node: the command would show its address (rendezvous.md 7.2)."""
        nodes = (self._registry.state.live_node(node_id) for node_id in (requester_id, target_id))
        return not any(node is not None and node.relay_only for node in nodes)
