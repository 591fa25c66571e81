"""Fixtures of the rendezvous tests."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from pilot.rendezvous import BeaconLimits, Limits, Rendezvous, RendezvousConfig
from tests.rendezvous.helpers import ADMIN_TOKEN, World


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
async def server() -> AsyncIterator[Rendezvous]:
    config = RendezvousConfig(
        registry_port=0,
        beacon_port=0,
        admin_token=ADMIN_TOKEN,
        limits=Limits.relaxed(),
        beacon_limits=BeaconLimits.relaxed(),
    )
    async with Rendezvous(config) as running:
        yield running
