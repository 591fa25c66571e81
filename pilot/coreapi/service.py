"""`Service` and `Deps`: what a plugin is, and everything it gets (L10)."""

from __future__ import annotations

import logging
from abc import abstractmethod
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from pilot.coreapi.events import EventBus
from pilot.coreapi.identity import Identity
from pilot.coreapi.resolver import PeerResolver
from pilot.coreapi.streams import Streams
from pilot.coreapi.trust import TrustChecker

__all__ = ["Deps", "Service"]


@dataclass(frozen=True, slots=True)
class Deps:
    """The capabilities of one plugin. Source: seed `coreapi.Deps`.

    Every plugin gets a copy of its own. What it opens through it, listeners, streams and subscriptions, is closed when
    the plugin has stopped; from then on calls through it raise `ClosedError`, and a plugin that is restarted gets a new
    one.
    """

    streams: Streams
    identity: Identity
    resolver: PeerResolver
    events: EventBus
    logger: logging.Logger
    """`pilot.plugin.<name>`."""
    trust: TrustChecker | None = None
    """The auto-approve list, None where no plugin brings one."""


@runtime_checkable
class Service(Protocol):
    """The life cycle every plugin implements; derive from it, or bring the same members.

    A supervised plugin that keeps crashing is stopped and started again: `start` begins anew each time.
    Source: seed `coreapi.Service`.
    """

    name: str
    """Unique within a node; part of logger name and event topics: 1 to 64 of `a-z 0-9 _ -`."""
    order: int
    """Lower starts earlier and stops later; equal ones keep the order of registration. 10-49 foundation, 50-79 trust,
    80-99 observability, 100-199 applications, 200-249 sidecars, 250 and above tooling."""

    @abstractmethod
    async def start(self, deps: Deps) -> None:
        """Opens what the plugin serves and starts its tasks; returns when it is ready. What it raises ends the start.

        A node starts its services before it registers: nobody can reach them sooner, `deps.identity.node_id` may still
        be 0, and a dial waits for nothing and fails. Work that needs the network belongs in a task that waits for the
        event `node.registered`. Failed or cancelled, it must leave no task running: `stop` is not called then.
        """
        ...

    @abstractmethod
    async def stop(self) -> None:
        """Ends listeners and tasks, drains what is under way. After 4.5 s it is cancelled, after 5 s abandoned."""
        ...
