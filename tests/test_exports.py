"""The public surface: at most 25 names, each documented, each with documented methods, and nothing loaded too early."""

from __future__ import annotations

import inspect
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import pilot

ROOT = Path(__file__).parent.parent


def test_at_most_25_names() -> None:
    assert len(pilot.__all__) <= 25
    assert len(set(pilot.__all__)) == len(pilot.__all__)
    assert set(pilot.__all__) <= set(dir(pilot))


@pytest.mark.parametrize("name", [name for name in pilot.__all__ if name != "__version__"])
def test_every_name_is_documented_with_all_its_public_parts(name: str) -> None:
    thing: Any = getattr(pilot, name)
    assert inspect.getdoc(thing), name
    if inspect.isclass(thing) and thing.__module__.startswith("pilot.node"):
        for part, value in vars(thing).items():
            if not part.startswith("_") and (inspect.isfunction(value) or isinstance(value, property)):
                assert inspect.getdoc(value), f"{name}.{part}"


def test_unknown_names_are_errors() -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        pilot.nonsense  # noqa: B018


def test_version_is_the_packages() -> None:
    assert pilot.__version__ == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def test_importing_pilot_loads_no_room() -> None:
    script = "import sys, pilot; print([name for name in sys.modules if name.startswith('pilot.')])"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "[]\n"
