"""The endurance run of `bench/soak.py`, short: every byte arrives as it was sent, every node is reached again."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.soak import PATTERN_BYTES, pattern, piece, slope

ROOT = Path(__file__).parent.parent


def test_pieces_are_parts_of_one_endless_whole() -> None:
    block = pattern(5)
    whole = block * 4
    for at in (0, 1, PATTERN_BYTES - 1, PATTERN_BYTES, 2 * PATTERN_BYTES - 7):
        for size in (0, 1, 10, PATTERN_BYTES, PATTERN_BYTES + 9):
            assert piece(block, at, size) == whole[at : at + size]
    assert pattern(6) != block


def test_slope() -> None:
    assert slope([(0.0, 5), (1.0, 7), (2.0, 9)]) == pytest.approx(2.0)
    assert slope([(0.0, 5)]) == 0.0


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_quick() -> None:
    command = [sys.executable, "-m", "bench.soak", "--quick", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=220, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["corrupted"] == found["never_reached_again"] == 0
    assert found["verified_bytes"] > 1_000_000
    assert all(count > 0 for count in found["faults"].values()), found["faults"]
    assert found["reconnects"] >= 1
    assert found["open_files"]["last"] <= found["open_files"]["first"] + 30
