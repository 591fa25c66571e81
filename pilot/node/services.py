"""`NodeServices`: finds the plugins a node was given, wires them, starts, supervises and stops them (L9)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from importlib.metadata import EntryPoints, entry_points
from typing import TYPE_CHECKING, Any, Final, TypeVar

from pilot._fast.errors import InvalidValueError, PilotError
from pilot.coreapi import Deps, PolicyManager, PolicyProvider, Service, ServiceRegistry, Supervisor, TrustChecker

if TYPE_CHECKING:
    from pilot.coreapi import RestartPolicy
    from pilot.node.facilities import Facilities

__all__ = ["NodeServices", "ServiceSource"]

ServiceSource = str | Service | Callable[..., Service]
"""The name of an entry point in `pilot.plugins`, a service, a class of services (made without arguments), or a function
that makes one of the node's `Facilities`."""

ENTRY_POINTS: Final = "pilot.plugins"

T = TypeVar("T")

_log = logging.getLogger("pilot.node")


class NodeServices:
    """The plugins of one run of a node. Nothing starts that was not named."""

    def __init__(self, sources: Sequence[ServiceSource], facilities: Facilities) -> None:
        """Makes and registers the services; none is started.

        Raises:
            InvalidValueError: a source cannot be used, or what it makes is no service.
            PilotError: a factory failed; the message names it.
        """
        self.registry = ServiceRegistry()
        for source in _named(sources):
            self.registry.register(_make(source, facilities))
        self._supervisor: Supervisor | None = None

    @property
    def trust(self) -> TrustChecker | None:
        """The service that brings the auto-approve list, None without one."""
        return self._only(TrustChecker)  # type: ignore[type-abstract]

    @property
    def policies(self) -> PolicyManager | None:
        """The policy manager a service brings, None without one."""
        provider = self._only(PolicyProvider)  # type: ignore[type-abstract]
        return None if provider is None else provider.policy_manager

    def _only(self, kind: type[T]) -> T | None:
        found = [service for service in self.registry.all() if isinstance(service, kind)]
        if len(found) > 1:
            names = ", ".join(repr(service.name) for service in found if isinstance(service, Service))
            raise InvalidValueError(f"the services {names} are each a {kind.__name__}: a node takes one")
        return found[0] if found else None

    def name_of(self, kind: type[object]) -> str:
        """The name of the one service that is a `kind`. Raises `InvalidValueError`: there is none, or are several."""
        found = [service.name for service in self.registry.all() if isinstance(service, kind)]
        if len(found) != 1:
            problem = f"several services are a {kind.__name__}: {', '.join(found)}" if found else "no service is one"
            raise InvalidValueError(f"{kind.__name__} names no single service of this node: {problem}")
        return found[0]

    async def start(self, deps: Deps, policy: RestartPolicy, clock: Callable[[], float]) -> None:
        """Starts the services in their order, and the supervisor first, so that no crash is missed.

        Failed or cancelled, what had started runs until `stop`. Raises what `ServiceRegistry.start_all` raises.
        """
        if not self.registry.all():
            return
        self._supervisor = Supervisor(self.registry, deps.events, policy, clock=clock)
        await self._supervisor.start()
        await self.registry.start_all(deps)

    async def stop(self) -> None:
        """Stops all in reverse order, each within 5 seconds; what goes wrong is logged: the node stops all the same."""
        if self._supervisor is None:
            return
        await self._supervisor.stop()
        try:
            await self.registry.stop_all()
        except PilotError:  # logged by the registry, one line for each service
            return


def _named(sources: Sequence[ServiceSource]) -> list[Any]:
    """The sources with what the names stand for; what is installed is looked through once, if at all."""
    if not any(isinstance(source, str) for source in sources):
        return list(sources)
    installed = entry_points(group=ENTRY_POINTS)
    return [_load(source, installed) if isinstance(source, str) else source for source in sources]


def _make(source: Any, facilities: Facilities) -> Service:
    try:
        if isinstance(source, Service) and not isinstance(source, type):
            return source
        if callable(source):
            made: Service = source() if isinstance(source, type) else source(facilities)
            return made
    except PilotError:
        raise
    except Exception as error:
        raise PilotError(f"the service {source!r} could not be made: {type(error).__name__}: {error}") from error
    raise InvalidValueError(
        f"{source!r} is no service: give a name, a Service, its class, or a function that makes one"
    )


def _load(name: str, installed: EntryPoints) -> Any:
    try:
        entry = installed[name]
    except KeyError:
        known = ", ".join(sorted(installed.names)) or "none"
        raise InvalidValueError(
            f"no plugin {name!r} is installed (entry points {ENTRY_POINTS}); there are: {known}"
        ) from None
    try:
        return entry.load()
    except ModuleNotFoundError as error:
        raise PilotError(
            f"plugin {name!r} needs the package {error.name!r}, which is not installed; "
            "pip install 'pilot-asyncio[plugins]' brings what the stock plugins need"
        ) from error
    except Exception as error:
        raise PilotError(
            f"plugin {name!r} ({entry.value}) cannot be loaded: {type(error).__name__}: {error}"
        ) from error
