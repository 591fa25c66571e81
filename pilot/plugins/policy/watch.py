"""Looking at a network's members again and again, and a timer beside it: the tasks of a runner (plugin policy, L11)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any, Final, TypeAlias

from pilot.coreapi import Deps, PilotError, recover_plugin
from pilot.plugins.policy.host import Handshakes, Member, PolicyHost
from pilot.plugins.policy.store import StateStore

__all__ = ["NAME", "RunnerTasks", "Surroundings", "Work"]

Work: TypeAlias = Callable[[], Coroutine[Any, Any, None]]
"""What a task does; called when the task first runs, so that a task cancelled before leaves nothing behind."""

NAME: Final = "policy"
RECONCILE_SECONDS: Final = 5.0
FIRST_BACKOFF_SECONDS: Final = 10.0
LONGEST_BACKOFF_SECONDS: Final = 300.0


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What every runner of a started plugin shares."""

    deps: Deps
    host: PolicyHost
    store: StateStore
    handshakes: Callable[[], Handshakes | None]
    spawn: Callable[[str, Work], asyncio.Task[None]]
    """Runs a task of the plugin, by the name of the operation; a crash of it is recovered."""

    @property
    def clock(self) -> Callable[[], float]:
        """Monotonic seconds."""
        return self.host.clock

    @property
    def wall(self) -> Callable[[], float]:
        """Unix seconds."""
        return self.host.wall

    @property
    def random(self) -> Random:
        """Whom to pick."""
        return self.host.random


class RunnerTasks:
    """Asks for the members every 5 s and hands them to `take`; when the registry fails, ever more rarely.

    `cycle` is called every `cycle_seconds`, if given. What crashes in either is counted against the plugin, and the
    next round comes all the same.
    """

    def __init__(
        self,
        network_id: int,
        around: Surroundings,
        take: Callable[[Sequence[Member]], None],
        cycle: Callable[[], object],
        cycle_seconds: float | None,
    ) -> None:
        self._network_id = network_id
        self._around = around
        self._take = take
        self._cycle = cycle
        self._cycle_seconds = cycle_seconds
        self._soon = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Starts both."""
        self.spawn("reconcile", self._watch)
        if self._cycle_seconds is not None:
            self.spawn("cycle", partial(self._run_cycles, self._cycle_seconds))

    def spawn(self, op: str, work: Work) -> None:
        """Runs `work` as a task that ends with the runner."""
        task = self._around.spawn(op, work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def reconcile_now(self) -> None:
        """Has the members asked for without waiting."""
        self._soon.set()

    def stop(self) -> None:
        """Ends all tasks. May be repeated, also from inside one of them."""
        for task in list(self._tasks):
            task.cancel()

    async def _watch(self) -> None:
        failures = 0
        while True:
            pause = RECONCILE_SECONDS
            with recover_plugin(NAME, "reconcile", self._around.deps.events):
                try:
                    members = await self._around.host.networks.members(self._network_id)
                except (PilotError, TimeoutError) as error:
                    pause = min(FIRST_BACKOFF_SECONDS * 2**failures, LONGEST_BACKOFF_SECONDS)
                    failures = min(failures + 1, 16)
                    self._around.deps.logger.warning(
                        "the members of network %d cannot be listed, next try in %g s: %s",
                        *(self._network_id, pause, error),
                    )
                else:
                    failures = 0
                    self._take(members)
            await self._pause(pause)

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._soon.wait()
        except TimeoutError:
            pass
        self._soon.clear()

    async def _run_cycles(self, seconds: float) -> None:
        while True:
            await asyncio.sleep(seconds)
            with recover_plugin(NAME, "cycle", self._around.deps.events):
                self._cycle()
