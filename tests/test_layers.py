"""The `cimport` lines of pilot/_fast keep the order of the ground floor; import-linter sees `.py` files only."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

FAST = Path(__file__).parent.parent / "pilot" / "_fast"

FLOORS: tuple[frozenset[str], ...] = (
    frozenset({"_endian", "errors", "stream_types", "budget"}),
    frozenset({"addr", "netaddr", "packet", "table", "timers", "window", "ring", "bursts", "eventbus"}),
    frozenset({"port", "interfaces"}),
    frozenset({"udp", "recorder"}),
    frozenset({"seal"}),
    frozenset({"congestion", "reassembly"}),
    frozenset({"bbr", "recovery"}),
    frozenset({"receiver", "sender", "peer"}),
    frozenset({"egress"}),
    frozenset({"stream_packets"}),
    frozenset({"stream"}),
    frozenset({"mux"}),
    frozenset({"datapath"}),
)
"""From the ground up. A module may use its own floor and every floor below it."""

IMPORT = re.compile(r"^\s*from pilot\._fast\.(\w+) c?import|^\s*c?import pilot\._fast\.(\w+)", re.MULTILINE)
ELSEWHERE = re.compile(r"^\s*(?:from|import|cimport) pilot\.(?!_fast\b)(\w+)", re.MULTILINE)
SOURCES = sorted(
    source for kind in ("pyx", "pxd", "py") for source in FAST.glob(f"*.{kind}") if source.stem != "__init__"
)


def floor(module: str) -> int:
    for number, modules in enumerate(FLOORS):
        if module in modules:
            return number
    pytest.fail(f"pilot._fast.{module} has no floor: enter it in FLOORS of {__file__}")


def used(source: Path) -> set[str]:
    return {first or second for first, second in IMPORT.findall(source.read_text())}


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_modules_use_only_their_own_floor_and_those_below(source: Path) -> None:
    own = floor(source.stem)
    above = {module for module in used(source) if floor(module) > own}
    assert not above, f"{source.name} reaches up to {above}"


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_the_ground_floor_uses_nothing_above_it(source: Path) -> None:
    assert not ELSEWHERE.findall(source.read_text())


def test_no_module_uses_itself_in_a_circle() -> None:
    graph: dict[str, set[str]] = {}
    for source in SOURCES:
        graph.setdefault(source.stem, set()).update(used(source) - {source.stem})
    done: set[str] = set()

    def walk(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"circle: {' -> '.join((*path, module))}"
        if module not in done:
            for below in graph.get(module, ()):
                walk(below, (*path, module))
            done.add(module)

    for module in graph:
        walk(module, ())


def test_the_test_sees_the_imports() -> None:
    assert "mux" in used(FAST / "datapath.pyx")
    assert len(SOURCES) > 20
