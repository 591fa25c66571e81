"""The pytest plugin of this package, the fixture `pilot_nodes`; every pytest loads it, so it is small (testing)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pilot.node import Node

    PilotNodes = Callable[..., AbstractAsyncContextManager[list[Node]]]

__all__ = ["pilot_nodes"]


@pytest.fixture
def pilot_nodes() -> PilotNodes:
    """`async with pilot_nodes("alice", "bob") as (alice, bob):` see `pilot.testing.loopback_nodes`, which it is."""
    from pilot.testing import loopback_nodes

    return loopback_nodes
