"""The conformance suites of the contract, on this plugin."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pilot.coreapi import PolicyManager, PolicyRunner
from pilot.testing.coreapi import POLICY_MANAGER_CHECKS, SERVICE_CHECKS
from tests.plugins.policy.hosts import World, in_world
from tests.testing.checks import by_name


@by_name(POLICY_MANAGER_CHECKS)
def test_policy_manager(check: Any) -> None:
    async def scenario(world: World) -> None:
        for network in range(1, 20):
            world.members(1, 3, network=network)
        await check(world.manager)

    in_world(scenario)


class Careless:
    """A manager that breaks one promise."""

    def __init__(self, manager: PolicyManager) -> None:
        self._manager = manager

    def __getattr__(self, name: str) -> Any:
        return getattr(self._manager, name)


class ForgetsTheOld(Careless):
    """A refused document costs the running one."""

    def start(self, network_id: int, text: bytes) -> PolicyRunner:
        self._manager.stop(network_id)
        return self._manager.start(network_id, text)


class AllowsWhatFails(Careless):
    """Every policy is made to fail open."""

    def start(self, network_id: int, text: bytes) -> PolicyRunner:
        document = json.loads(text)
        return self._manager.start(network_id, json.dumps({**document, "fail_closed": False}).encode())


class KeepsOne(Careless):
    """`stop_all` does nothing."""

    def stop_all(self) -> None:
        return


@pytest.mark.parametrize(
    ("kind", "check"),
    [
        (ForgetsTheOld, "a_bad_document_is_refused_and_the_old_one_stays"),
        (AllowsWhatFails, "an_evaluation_that_fails_denies_unless_told_otherwise"),
        (KeepsOne, "a_new_policy_replaces_the_old"),
    ],
)
def test_a_bad_policy_manager_is_found_out(kind: type[Careless], check: str) -> None:
    [chosen] = [each for each in POLICY_MANAGER_CHECKS if each.__name__ == check]

    async def scenario(world: World) -> None:
        with pytest.raises(AssertionError):
            await chosen(kind(world.manager))  # type: ignore[arg-type]

    in_world(scenario)


@by_name(SERVICE_CHECKS)
async def test_service(check: Any) -> None:
    world = World()
    await check(world.new_service, world.deps)
