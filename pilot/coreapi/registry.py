"""`ServiceRegistry`: the plugins of one node, started in order, stopped in reverse, each within a bound (L10)."""

from __future__ import annotations

import asyncio
import re
from enum import Enum
from typing import TYPE_CHECKING, Final

from pilot._fast.errors import BusyError, InvalidValueError, RegistryStartedError, ServiceNotReadyError
from pilot.coreapi.life import ServiceLife
from pilot.coreapi.recovery import reset_plugin_health
from pilot.coreapi.service import Service

if TYPE_CHECKING:
    from pilot.coreapi.service import Deps

__all__ = ["ServiceRegistry"]

NAME: Final = re.compile(r"[a-z0-9_-]{1,64}")


class _Phase(Enum):
    IDLE = "has not started"
    STARTING = "is starting"
    RUNNING = "has started"
    STOPPING = "is stopping"


class ServiceRegistry:
    """Coordinates the life of plugins. Whoever makes one registers services, starts all, and in the end stops all.

    Source: seed `coreapi.ServiceRegistry`, services.md 10.1. Unlike its Go original it bounds a stop also when that
    ignores its cancellation. Code that blocks the event loop cannot be bounded.
    """

    def __init__(self) -> None:
        self._lives: list[ServiceLife] = []
        self._phase = _Phase.IDLE
        self._starts = 0
        self._deps: Deps | None = None
        self._stopping: asyncio.Task[None] | None = None
        self._restarting: set[str] = set()

    def register(self, service: Service) -> None:
        """Adds a service, before anything has started.

        Raises:
            RegistryStartedError: services run already.
            InvalidValueError: it is no service, or its name cannot be used or is taken.
        """
        name = getattr(service, "name", service)
        self._check_idle(f"register {name!r} before")
        if not isinstance(service, Service):
            raise InvalidValueError(f"{service!r} is no service: it needs name, order, start and stop")
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise InvalidValueError(f"service name {name!r} cannot be used: write 1 to 64 of a-z 0-9 _ -")
        if any(life.service.name == name for life in self._lives):
            raise InvalidValueError(f"two services have the name {name!r}: register one of them")
        self._lives.append(ServiceLife(service))
        self._lives.sort(key=lambda life: life.service.order)

    def all(self) -> list[Service]:
        """The registered services in the order of start: by `order`, equal ones as they were registered."""
        return [life.service for life in self._lives]

    def service(self, name: str) -> Service:
        """The service of that name, running.

        Raises:
            ServiceNotReadyError: it has not completed its start, or has stopped or is being restarted.
            InvalidValueError: no service of that name is registered.
        """
        life = self._life(name)
        if not life.ready:
            raise ServiceNotReadyError(f"service {name!r} is not ready: it has not completed its start, or has stopped")
        return life.service

    async def start_all(self, deps: Deps) -> None:
        """Starts every service, one after the other, each with its own copy of `deps`.

        The first that fails ends it: what that one opened is closed, those started before go on running until
        `stop_all`. Cancelled, the same.

        Raises:
            RegistryStartedError: services run already, or are being started or stopped.
            ServiceNotReadyError: `stop_all` was called meanwhile.
            PilotError: a start failed; the message names the plugin, the cause is what it raised.
        """
        self._check_idle("stop it first")
        self._phase, self._deps = _Phase.STARTING, deps
        self._starts += 1
        try:
            for life in self._lives:
                await life.start(deps)
                if self._phase is not _Phase.STARTING:
                    raise ServiceNotReadyError("the service registry was stopped while it started")
        finally:
            if self._phase is _Phase.STARTING:
                started = not self._lives or any(life.ready for life in self._lives)
                self._phase = _Phase.RUNNING if started else _Phase.IDLE

    async def stop_all(self) -> None:
        """Stops what runs, last started first, each within 5 s whatever it does; then its scope is closed.

        A start under way is cancelled. Several callers wait for the same stop. Cancelled, it goes on in the background.
        Afterwards services may be registered and started again.

        Raises:
            PilotError: a stop crashed or did not end; the message names the plugin. Every service has been stopped, or
                abandoned, all the same; further failures are notes of the error.
        """
        if self._stopping is None:
            self._phase = _Phase.STOPPING
            self._stopping = asyncio.create_task(self._stop_all(), name="pilot services stop")
        await asyncio.shield(self._stopping)

    async def restart(self, name: str, *, pause: float = 0.0) -> None:
        """Stops one service, waits `pause` seconds, starts it with new dependencies and its health reset.

        Meanwhile, and when the start fails, it is not ready and has nothing open. A stop that crashes or hangs is
        reported in the log only. Cancelled, the service stays stopped.

        Raises:
            ServiceNotReadyError: the services do not run, or are stopped meanwhile.
            BusyError: it is being restarted already.
            InvalidValueError: no service of that name is registered.
            PilotError: the start failed; the message names the plugin, the cause is what it raised.
        """
        life, starts = self._free(name), self._starts
        self._check_running(name, starts)
        assert self._deps is not None
        self._restarting.add(name)
        try:
            await life.stop()
            await asyncio.sleep(pause)
            self._check_running(name, starts)
            reset_plugin_health(name)
            await life.start(self._deps)
        finally:
            self._restarting.discard(name)

    async def halt(self, name: str) -> None:
        """Stops one service, which `restart` may bring back; the others go on. A stop that fails is only logged.

        Raises:
            InvalidValueError: no service of that name is registered.
            BusyError: it is being restarted.
        """
        await self._free(name).stop()

    def _life(self, name: str) -> ServiceLife:
        for life in self._lives:
            if life.service.name == name:
                return life
        known = ", ".join(service.name for service in self.all()) or "none"
        raise InvalidValueError(f"no service {name!r} is registered; there are: {known}")

    def _free(self, name: str) -> ServiceLife:
        life = self._life(name)
        if name in self._restarting:
            raise BusyError(f"service {name!r} is being restarted")
        return life

    def _check_idle(self, advice: str) -> None:
        if self._phase is not _Phase.IDLE:
            raise RegistryStartedError(f"the service registry {self._phase.value}: {advice}")

    def _check_running(self, name: str, starts: int) -> None:
        if self._phase is not _Phase.RUNNING or self._starts != starts:
            raise ServiceNotReadyError(f"service {name!r} cannot be restarted: its registry does not run (any more)")

    async def _stop_all(self) -> None:
        try:
            errors = [error for life in reversed(self._lives) if (error := await life.stop()) is not None]
        finally:
            self._phase, self._stopping = _Phase.IDLE, None
        if errors:
            for further in errors[1:]:
                errors[0].add_note(str(further))
            raise errors[0]
