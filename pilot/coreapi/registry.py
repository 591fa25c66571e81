"""`ServiceRegistry`: the plugins of one node, started in order, stopped in reverse, each within a bound (L10)."""

from __future__ import annotations

import asyncio
import logging
import re
from typing import TYPE_CHECKING, Final

from pilot._fast.errors import BusyError, InvalidValueError, PilotError, RegistryStartedError, ServiceNotReadyError
from pilot.coreapi.recovery import reset_plugin_health
from pilot.coreapi.scope import PluginScope
from pilot.coreapi.service import Service

if TYPE_CHECKING:
    from pilot.coreapi.service import Deps

__all__ = ["STOP_SECONDS", "ServiceRegistry"]

STOP_SECONDS: Final = 5.0
"""After this a service that has not stopped is abandoned."""
CANCEL_SECONDS: Final = 4.5
"""After this its stop is cancelled; the rest is for what it does then."""
NAME: Final = re.compile(r"[a-z0-9_-]{1,64}")

_log = logging.getLogger("pilot.coreapi")


class _Entry:
    """One service and, while it runs, its scope."""

    __slots__ = ("busy", "ready", "scope", "service")

    def __init__(self, service: Service) -> None:
        self.service = service
        self.scope: PluginScope | None = None
        self.ready = False
        self.busy = False  # being restarted


class ServiceRegistry:
    """Coordinates the life of plugins. Whoever makes one registers services, starts all, and in the end stops all.

    Source: seed `coreapi.ServiceRegistry`, services.md 10.1. Unlike its Go original it bounds a stop also when that
    ignores its cancellation. Code that blocks the event loop cannot be bounded.
    """

    def __init__(self) -> None:
        self._entries: list[_Entry] = []
        self._started: list[_Entry] = []
        self._deps: Deps | None = None
        self._stopping: asyncio.Task[None] | None = None

    def register(self, service: Service) -> None:
        """Adds a service, before anything has started.

        Raises:
            RegistryStartedError: services run already.
            InvalidValueError: it is no service, or its name cannot be used or is taken.
        """
        if self._started:
            raise RegistryStartedError(f"the service registry has started: register {_name(service)} before")
        if not isinstance(service, Service):
            raise InvalidValueError(f"{service!r} is no service: it needs name, order, start and stop")
        if not isinstance(service.name, str) or not NAME.fullmatch(service.name):
            raise InvalidValueError(f"service name {service.name!r} cannot be used: write 1 to 64 of a-z 0-9 _ -")
        if any(entry.service.name == service.name for entry in self._entries):
            raise InvalidValueError(f"two services have the name {service.name!r}: register one of them")
        self._entries.append(_Entry(service))
        self._entries.sort(key=lambda entry: entry.service.order)

    def all(self) -> list[Service]:
        """The registered services in the order of start: by `order`, equal ones as they were registered."""
        return [entry.service for entry in self._entries]

    def service(self, name: str) -> Service:
        """The service of that name, running.

        Raises:
            ServiceNotReadyError: it has not completed its start, or has stopped or is being restarted.
            InvalidValueError: no service of that name is registered.
        """
        entry = self._entry(name)
        if not entry.ready:
            raise ServiceNotReadyError(f"service {name!r} is not ready: it has not completed its start, or has stopped")
        return entry.service

    async def start_all(self, deps: Deps) -> None:
        """Starts every service, one after the other, each with its own copy of `deps`.

        The first that fails ends it: what that one opened is closed, those started before go on running until
        `stop_all`. Cancelled, the same.

        Raises:
            RegistryStartedError: services run already.
            PilotError: a start failed; the message names the plugin, the cause is what it raised.
        """
        if self._started:
            raise RegistryStartedError("the service registry has started: stop it first")
        self._deps = deps
        for entry in list(self._entries):
            await self._start(entry)
            self._started.append(entry)

    async def stop_all(self) -> None:
        """Stops what runs, last started first, each within 5 s whatever it does; then its scope is closed.

        Several callers wait for the same stop. Cancelled, it goes on in the background. Afterwards services may be
        registered and started again.

        Raises:
            PilotError: a stop crashed or did not end; the message names the plugin. Every service has been stopped, or
                abandoned, all the same; further failures are notes of the error.
        """
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._stop_all(), name="pilot services stop")
        await asyncio.shield(self._stopping)

    async def restart(self, name: str, *, pause: float = 0.0) -> None:
        """Stops one service, waits `pause` seconds, starts it with new dependencies and its health reset.

        Meanwhile, and when the start fails, it is not ready and has nothing open. A stop that crashes or hangs is
        reported in the log only. Cancelled, the service stays stopped.

        Raises:
            ServiceNotReadyError: the services do not run, or are being stopped.
            BusyError: it is being restarted already.
            InvalidValueError: no service of that name is registered.
            PilotError: the start failed; the message names the plugin, the cause is what it raised.
        """
        entry = self._entry(name)
        if self._stopping is not None or entry not in self._started:
            raise ServiceNotReadyError(f"service {name!r} cannot be restarted: its registry does not run")
        if entry.busy:
            raise BusyError(f"service {name!r} is being restarted already")
        entry.busy = True
        try:
            await self._stop_logged(entry)
            await asyncio.sleep(pause)
            if self._stopping is not None or entry not in self._started:
                raise ServiceNotReadyError(f"service {name!r} cannot be restarted: its registry has been stopped")
            reset_plugin_health(name)
            await self._start(entry)
        finally:
            entry.busy = False

    async def halt(self, name: str) -> None:
        """Stops one service, which `restart` may bring back; the others go on. A stop that fails is only logged.

        Raises:
            InvalidValueError: no service of that name is registered.
            BusyError: it is being restarted.
        """
        entry = self._entry(name)
        if entry.busy:
            raise BusyError(f"service {name!r} is being restarted")
        await self._stop_logged(entry)

    def _entry(self, name: str) -> _Entry:
        for entry in self._entries:
            if entry.service.name == name:
                return entry
        known = ", ".join(service.name for service in self.all()) or "none"
        raise InvalidValueError(f"no service {name!r} is registered; there are: {known}")

    async def _start(self, entry: _Entry) -> None:
        assert self._deps is not None
        service = entry.service
        entry.scope = scope = PluginScope(service.name, self._deps)
        starting = scope.run(lambda: service.start(scope.deps))
        try:
            await _joined(starting)
        except BaseException as error:
            if _succeeded(starting):  # the caller was cancelled when the service had just become ready
                await self._stop_logged(entry)
                raise
            entry.scope = None
            await scope.close()
            if not isinstance(error, Exception):
                raise
            raise PilotError(f"plugin {service.name!r} failed to start: {_text(error)}") from error
        entry.ready = True

    async def _stop(self, entry: _Entry) -> PilotError | None:
        """Stops one service within the bound, whatever it does; what went wrong, if anything did."""
        scope, entry.scope, entry.ready = entry.scope, None, False
        if scope is None:
            return None
        name = entry.service.name
        stopping = scope.run(entry.service.stop)
        await asyncio.wait([stopping], timeout=CANCEL_SECONDS)
        late = not stopping.done()
        if late:
            stopping.cancel()
            await asyncio.wait([stopping], timeout=STOP_SECONDS - CANCEL_SECONDS)
        await scope.close()
        if not stopping.done():
            stopping.add_done_callback(_retrieve)
            return PilotError(f"plugin {name!r} did not stop within {STOP_SECONDS:g} s and ignores that: abandoned")
        cause = None if stopping.cancelled() else stopping.exception()
        if cause is None and not late:
            return None
        problem = f"crashed in stop: {_text(cause)}" if cause else f"did not stop within {CANCEL_SECONDS:g} s"
        error = PilotError(f"plugin {name!r} {problem}")
        error.__cause__ = cause
        return error

    async def _stop_logged(self, entry: _Entry) -> PilotError | None:
        error = await self._stop(entry)
        if error is not None:
            _log.error("%s", error, exc_info=error.__cause__)
        return error

    async def _stop_all(self) -> None:
        try:
            started, self._started = self._started, []
            errors = [error for entry in reversed(started) if (error := await self._stop_logged(entry)) is not None]
        finally:
            self._stopping = None
        if errors:
            for further in errors[1:]:
                errors[0].add_note(str(further))
            raise errors[0]


async def _joined(task: asyncio.Task[None]) -> None:
    """Waits for `task` and raises what it raised; cancelled, it cancels the task and waits for its end first.

    A task that cancels itself is one that failed: only this task's own cancellation ends a start of all services.
    """
    try:
        await asyncio.wait([task])
    except asyncio.CancelledError:
        task.cancel()
        await asyncio.wait([task], timeout=STOP_SECONDS)
        task.add_done_callback(_retrieve)
        raise
    if task.cancelled():
        raise PilotError("its start was cancelled by itself")
    task.result()


def _succeeded(task: asyncio.Task[None]) -> bool:
    return task.done() and not task.cancelled() and task.exception() is None


def _retrieve(task: asyncio.Task[None]) -> None:
    """Takes the exception of an abandoned task, which would otherwise be reported as never retrieved."""
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.error("%s failed after it had been abandoned", task.get_name(), exc_info=error)


def _name(service: object) -> str:
    return repr(getattr(service, "name", service))


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
