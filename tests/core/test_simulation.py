"""Thousands of random transfers on bad networks, each decided by its seed alone (see simulation.py) (L7)."""

from __future__ import annotations

import pytest

from tests.core.simulation import simulate_many

SEEDS = 4000
CHUNK = 500


@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_random_transfers(first: int) -> None:
    """Bytes exact and in order exactly once, no deadlock, nothing in flight and nothing in the tables afterwards."""
    simulate_many(first, CHUNK)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(SEEDS, SEEDS + 40_000, 4000))
def test_many_more_random_transfers(first: int) -> None:
    simulate_many(first, 4000)
