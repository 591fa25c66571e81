"""`Supervisor`: restarts plugins that keep crashing, and gives up on those that do not get well (L10).

Source: the seed leaves it as a TODO of `RecoverPlugin`; the events are our own.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from pilot._fast.errors import BusyError, InvalidValueError, PilotError, ServiceNotReadyError
from pilot.coreapi.recovery import UNHEALTHY_PANICS

if TYPE_CHECKING:
    from pilot._fast.eventbus import Event
    from pilot.coreapi.events import EventBus
    from pilot.coreapi.registry import ServiceRegistry

__all__ = ["RestartPolicy", "Supervisor"]

_log = logging.getLogger("pilot.coreapi")

PANIC_TOPICS: Final = "plugin.*.panic"
BUSY_SECONDS: Final = 1.0
"""Between two looks at a plugin that somebody else is restarting."""


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """When a supervisor restarts a plugin, and when it gives up."""

    panics: int = UNHEALTHY_PANICS
    """Crashes since its last start that make a plugin unhealthy."""
    restarts: int = 5
    """Restarts within `window_seconds` before it is given up: stopped, and left so. 0: stopped at once."""
    window_seconds: float = 3600.0
    first_pause_seconds: float = 1.0
    """Between stop and start; doubles with every restart in the window."""
    longest_pause_seconds: float = 60.0

    def __post_init__(self) -> None:
        if self.panics < 1 or self.restarts < 0:
            raise InvalidValueError("a restart policy needs panics of 1 or more and restarts of 0 or more")
        if not 0 <= self.first_pause_seconds <= self.longest_pause_seconds or not self.window_seconds > 0:
            raise InvalidValueError("a restart policy needs 0 <= first_pause_seconds <= longest_pause_seconds")


@dataclass(slots=True)
class _Record:
    panics: int = 0
    restarts: deque[float] = field(default_factory=deque)
    task: asyncio.Task[None] | None = None
    given_up: bool = False


class Supervisor:
    """Watches the bus of one node for crashes of its plugins and restarts the unhealthy ones through their registry.

    Steps are published: `plugin.<name>.restarting` {plugin, attempt, pause_seconds}, `plugin.<name>.restarted`
    {plugin, attempt}, `plugin.<name>.restart_failed` {plugin, attempt, error}, `plugin.<name>.gave_up` {plugin,
    attempts}. While it is being restarted a plugin has nothing open and `registry.service(name)` refuses it; the node
    and the other plugins go on. A restart whose start fails counts as one, and is tried again after a longer pause.

    It counts the crashes on its own node's bus; the counters of `recover_plugin` belong to the process.
    """

    def __init__(
        self,
        registry: ServiceRegistry,
        events: EventBus,
        policy: RestartPolicy | None = None,
        *,
        clock: Callable[[], float],
    ) -> None:
        self._registry = registry
        self._events = events
        self._policy = policy or RestartPolicy()
        self._clock = clock
        self._records: dict[str, _Record] = {}
        self._watching: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begins to watch. Does not wait."""
        subscription = self._events.subscribe(PANIC_TOPICS)

        async def watch() -> None:
            with subscription:
                async for event in subscription:
                    self._on_panic(event)

        self._watching = asyncio.create_task(watch(), name="pilot supervisor")

    async def stop(self) -> None:
        """Ends the watch and restarts under way: a plugin that was being restarted stays stopped. May be repeated."""
        tasks = [record.task for record in self._records.values() if record.task is not None]
        if self._watching is not None:
            tasks.append(self._watching)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._watching = None
        self._records.clear()

    def _on_panic(self, event: Event) -> None:
        name = event.payload.get("plugin")
        if name not in [service.name for service in self._registry.all()]:
            return  # an event some plugin made up
        record = self._records.setdefault(str(name), _Record())
        record.panics += 1
        if record.panics >= self._policy.panics and record.task is None and not record.given_up:
            record.task = asyncio.create_task(self._recover(str(name), record), name=f"pilot supervisor {name}")

    async def _recover(self, name: str, record: _Record) -> None:
        """Restarts until a start succeeds or the policy gives up."""
        try:
            while True:
                try:
                    if await self._restart(name, record):
                        return
                except BusyError:
                    await asyncio.sleep(BUSY_SECONDS)
        except ServiceNotReadyError as error:  # the node stops
            _log.debug("%s", error)
        finally:
            record.task = None

    async def _restart(self, name: str, record: _Record) -> bool:
        """One restart, or the end of all; True when the plugin runs, or is given up."""
        now, policy = self._clock(), self._policy
        while record.restarts and now - record.restarts[0] >= policy.window_seconds:
            record.restarts.popleft()
        attempt = len(record.restarts) + 1
        if attempt > policy.restarts:
            record.given_up = True
            await self._registry.halt(name)
            _log.error("plugin %s is given up after %d restarts", name, policy.restarts)
            self._events.publish(f"plugin.{name}.gave_up", {"plugin": name, "attempts": policy.restarts})
            return True
        record.restarts.append(now)
        pause = min(policy.first_pause_seconds * 2 ** (attempt - 1), policy.longest_pause_seconds)
        _log.warning("plugin %s is unhealthy: restart %d in %g s", name, attempt, pause)
        payload = {"plugin": name, "attempt": attempt}
        self._events.publish(f"plugin.{name}.restarting", {**payload, "pause_seconds": pause})
        try:
            await self._registry.restart(name, pause=pause)
        except (ServiceNotReadyError, BusyError):
            raise
        except PilotError as error:
            _log.error("%s", error, exc_info=error.__cause__)
            self._events.publish(f"plugin.{name}.restart_failed", {**payload, "error": str(error)})
            return False
        record.panics = 0
        self._events.publish(f"plugin.{name}.restarted", payload)
        return True
