"""`PolicyService`: runs the policies of the networks this node is in (plugin policy, L11).

Source: services.md 9.1.
"""

from __future__ import annotations

import asyncio
import json
from functools import partial
from typing import TYPE_CHECKING, Final, Self, cast

from pilot.coreapi import (
    InvalidValueError,
    PilotError,
    PolicyManager,
    Service,
    ServiceNotReadyError,
    recover_plugin,
)
from pilot.plugins.policy.commands import PolicyCommands
from pilot.plugins.policy.manager import Manager
from pilot.plugins.policy.store import StateStore
from pilot.plugins.policy.watch import FIRST_BACKOFF_SECONDS, LONGEST_BACKOFF_SECONDS, NAME, Surroundings, Work

if TYPE_CHECKING:
    from pilot.coreapi import Deps, Subscription
    from pilot.plugins.policy.host import Handshakes, PolicyHost

__all__ = ["PolicyService"]

COUNTER: Final = "policy_notices_suppressed"


class PolicyService(Service):
    """Brings the node a policy manager, and starts a runner for each network that has a policy.

    At its start for the networks the node is in, later when one is joined; `policy_manager.start` replaces a document
    at run time. What the registry stores from then on is not looked at again, as in the official daemon.
    """

    name = NAME
    order = 140

    def __init__(self, host: PolicyHost) -> None:
        self._host = host
        self._manager = Manager()
        self._store: StateStore | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._events: Subscription | None = None
        self._deps: Deps | None = None
        host.add_counter(COUNTER, lambda: self._manager.suppressed)

    @classmethod
    def for_node(cls, facilities: PolicyHost) -> Self:
        """The service with what a node offers."""
        return cls(facilities)

    @property
    def policy_manager(self) -> PolicyManager:
        """The manager of this node's policies."""
        return self._manager

    @property
    def manager(self) -> Manager:
        """The same, with the managed networks."""
        return self._manager

    @property
    def commands(self) -> PolicyCommands:
        """What an operator can ask."""
        return PolicyCommands(self._manager)

    async def start(self, deps: Deps) -> None:
        """Reads what runners remember and begins to follow the node's networks; waits for nobody."""
        store = StateStore(self._host.state_dir, deps.logger)
        files = await asyncio.to_thread(store.read_all)
        self._deps, self._store = deps, store
        self._manager.open(Surroundings(deps, self._host, store, self._handshakes, self._spawn))
        self._manager.restore(files)
        self._events = deps.events.subscribe("network.*")
        self._spawn("follow", partial(self._follow, self._events))
        self._spawn("start", partial(self._start_all, deps))

    async def stop(self) -> None:
        """Stops the runners and writes what they know."""
        self._manager.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._events is not None:
            self._events.close()
        if self._store is not None:
            await self._store.close()

    def _spawn(self, op: str, work: Work) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(self._guarded(op, work), name=f"policy {op}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _guarded(self, op: str, work: Work) -> None:
        with recover_plugin(NAME, op, self._deps.events if self._deps else None):
            await work()

    def _handshakes(self) -> Handshakes | None:
        try:
            return cast("Handshakes", self._host.service("handshake"))
        except ServiceNotReadyError:
            return None

    # -- where policies come from

    async def _start_all(self, deps: Deps) -> None:
        """The networks the node is in already; the registry is asked until it has told about each of them."""
        await self._host.networks.synced()
        waiting = list(self._host.networks.ids())
        pause = FIRST_BACKOFF_SECONDS
        while waiting:
            try:
                rules = {entry.network_id: entry.rules for entry in await self._host.registry.list_networks()}
                while waiting:
                    network_id = waiting[0]
                    text = await self._host.networks.policy_text(network_id)
                    waiting.pop(0)
                    with recover_plugin(NAME, "start", deps.events):  # of one network: the others start all the same
                        if network_id in self._host.networks.ids():  # it may have been left meanwhile
                            await self._start(deps, network_id, text, rules.get(network_id))
            except (PilotError, TimeoutError) as error:
                deps.logger.warning(
                    "the policies of networks %s are not known, next try in %g s: %s", waiting, pause, error
                )
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_BACKOFF_SECONDS)

    async def _follow(self, events: Subscription) -> None:
        async for event in events:
            assert self._deps is not None  # set before the task starts
            payload, network_id = event.payload, event.payload.get("network_id")
            if not isinstance(network_id, int):
                continue
            with recover_plugin(NAME, "follow", self._deps.events):  # of one network: the others are followed on
                if event.topic == "network.joined":
                    await self._start(self._deps, network_id, payload.get("expr_policy"), payload.get("rules"))
                elif event.topic == "network.left":
                    self._manager.stop(network_id)
                    self._manager.stop_managed(network_id)

    async def _start(self, deps: Deps, network_id: int, policy: object, rules: object) -> None:
        """Runs what a network has, unless something runs for it already. What cannot be used is logged."""
        if network_id == 0 or not self._manager.is_free(network_id):
            return
        try:
            if policy:
                await self._manager.apply(network_id, _document(policy), replace=False)
            elif rules:
                self._manager.start_managed(network_id, rules)
        except InvalidValueError as error:
            deps.logger.error("network %d has a policy that cannot be used, so it has none: %s", network_id, error)


def _document(policy: object) -> bytes:
    """A policy as an event has it, text or object, as JSON text."""
    return (policy if isinstance(policy, str) else json.dumps(policy)).encode("utf-8", "replace")
