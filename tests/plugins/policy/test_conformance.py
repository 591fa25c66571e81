"""The conformance suites of the contract, on this plugin."""

from __future__ import annotations

from typing import Any

import pytest

from pilot.testing.coreapi import POLICY_MANAGER_CHECKS, SERVICE_CHECKS
from tests.plugins.policy.hosts import World, in_world


@pytest.mark.parametrize("check", POLICY_MANAGER_CHECKS, ids=lambda check: check.__name__)
def test_policy_manager(check: Any) -> None:
    async def scenario(world: World) -> None:
        for network in range(1, 20):
            world.members(1, 3, network=network)
        await check(world.manager)

    in_world(scenario)


@pytest.mark.parametrize("check", SERVICE_CHECKS, ids=lambda check: check.__name__)
async def test_service(check: Any) -> None:
    world = World()
    await check(world.new_service, world.deps)
