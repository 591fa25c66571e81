"""Keeps each measurement short and prints the peers of one operation side by side (bench)."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent

SECONDS_EACH = 0.2
SECONDS_A_ROUND = 0.0002


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Group by operation and by every parameter but `peer`."""
    for item in items:
        if HERE not in item.path.parents or not isinstance(item, pytest.Function):
            continue
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        others = [f"{name}={value}" for name, value in sorted(parameters.items()) if name != "peer"]
        group = " ".join([item.originalname.removeprefix("test_").replace("_", " "), *others])
        item.add_marker(pytest.mark.benchmark(group=group, max_time=SECONDS_EACH, min_time=SECONDS_A_ROUND))
