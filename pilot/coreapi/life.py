"""`ServiceLife`: one service from start to stop, again and again, each within its bound whatever it does (L10)."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from pilot._fast.errors import PilotError, ServiceNotReadyError
from pilot.coreapi.scope import PluginScope

if TYPE_CHECKING:
    from pilot.coreapi.service import Deps, Service

__all__ = ["CANCEL_SECONDS", "STOP_SECONDS", "ServiceLife"]

STOP_SECONDS: Final = 5.0
"""After this a service that has not stopped is abandoned."""
CANCEL_SECONDS: Final = 4.5
"""After this its stop is cancelled; the rest is for what it does then."""

_log = logging.getLogger("pilot.coreapi")


class ServiceLife:
    """Starts and stops one service. Calls that meet each other wait for each other; nothing happens twice at a time."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._scope: PluginScope | None = None  # of a service that is ready
        self._starting: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None
        self._failure: PilotError | None = None  # of the last stop

    @property
    def ready(self) -> bool:
        """Whether it has completed its start and nobody has begun to stop it."""
        return self._scope is not None

    async def start(self, deps: Deps) -> None:
        """Starts the service, which must not run, in a new scope. Failed or cancelled, nothing of it is left open.

        Raises:
            ServiceNotReadyError: it was stopped while it started.
            PilotError: the start failed; the message names the plugin, the cause is what it raised.
        """
        if self._ending is not None:
            await asyncio.shield(self._ending)
        scope = PluginScope(self.service.name, deps)
        starting = self._starting = scope.run(lambda: self.service.start(scope.deps))
        try:
            await _joined(starting)
        except BaseException as error:
            if _succeeded(starting):  # the caller was cancelled when the service had just become ready
                await self._end(scope)
                raise
            await scope.close()
            if not isinstance(error, Exception):
                raise
            raise PilotError(f"plugin {self.service.name!r} failed to start: {_text(error)}") from error
        else:
            if self._starting is starting:
                self._scope = scope
                return
            await self._end(scope)
            raise ServiceNotReadyError(f"plugin {self.service.name!r} was stopped while it started")
        finally:
            if self._starting is starting:
                self._starting = None

    async def stop(self) -> PilotError | None:
        """Stops the service within 5 s, whatever it does, and closes its scope; a start under way is cancelled.

        Returns what went wrong, which has been logged, or None; also None where there is nothing to stop. Cancelled, it
        goes on in the background.
        """
        starting, self._starting = self._starting, None
        if starting is not None:
            starting.cancel()
            await asyncio.wait([starting], timeout=STOP_SECONDS)
        scope, self._scope = self._scope, None
        if scope is not None:
            self._ending = asyncio.create_task(self._end(scope), name=f"pilot stop of plugin {scope.plugin}")
        if self._ending is None:
            return None
        await asyncio.shield(self._ending)
        return self._failure

    async def _end(self, scope: PluginScope) -> None:
        self._failure = await _stopped(self.service, scope)
        if self._failure is not None:
            _log.error("%s", self._failure, exc_info=self._failure.__cause__)
        self._ending = None


async def _stopped(service: Service, scope: PluginScope) -> PilotError | None:
    """Runs the stop of `service` within its bounds, then closes `scope`; what went wrong, if anything did."""
    stopping = scope.run(service.stop)
    await asyncio.wait([stopping], timeout=CANCEL_SECONDS)
    late = not stopping.done()
    if late:
        stopping.cancel()
        await asyncio.wait([stopping], timeout=STOP_SECONDS - CANCEL_SECONDS)
    await scope.close()
    if not stopping.done():
        stopping.add_done_callback(_retrieve)
        return PilotError(f"plugin {service.name!r} did not stop within {STOP_SECONDS:g} s and ignores that: abandoned")
    cause = None if stopping.cancelled() else stopping.exception()
    if cause is None and not late:
        return None
    problem = f"crashed in stop: {_text(cause)}" if cause else f"did not stop within {CANCEL_SECONDS:g} s"
    error = PilotError(f"plugin {service.name!r} {problem}")
    error.__cause__ = cause
    return error


async def _joined(task: asyncio.Task[None]) -> None:
    """Waits for `task` and raises what it raised; cancelled, it cancels the task and waits for its end, within a bound.

    A task that was cancelled by others than this one's canceller has failed: that ends no caller.
    """
    try:
        await asyncio.wait([task])
    except asyncio.CancelledError:
        task.cancel()
        await asyncio.wait([task], timeout=STOP_SECONDS)
        task.add_done_callback(_retrieve)
        raise
    if task.cancelled():
        raise PilotError("its start was cancelled")
    task.result()


def _succeeded(task: asyncio.Task[None]) -> bool:
    return task.done() and not task.cancelled() and task.exception() is None


def _retrieve(task: asyncio.Task[None]) -> None:
    """Takes the exception of an abandoned task, which would otherwise be reported as never retrieved."""
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.error("%s failed after it had been abandoned", task.get_name(), exc_info=error)


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
