"""The table of README.md: every test it names exists, and every test of this room is in it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

HERE = Path(__file__).parent
TESTS = HERE.parent
NAMED = re.findall(r"`([\w/]+\.py)::([\w.]+)`", (HERE / "README.md").read_text())


def names_in(path: Path) -> set[str]:
    """`test_name` and `Class.test_name` of a file."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        inner = node.body if isinstance(node, ast.ClassDef) else [node]
        for function in inner:
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef) and function.name.startswith("test_"):
                found.add(f"{node.name}.{function.name}" if isinstance(node, ast.ClassDef) else function.name)
    return found


def test_every_test_it_names_exists() -> None:
    assert len(NAMED) > 50
    missing = [f"{file}::{name}" for file, name in NAMED if name not in names_in(TESTS / file)]
    assert missing == []


def test_every_test_of_this_room_is_named() -> None:
    named = {(file, name) for file, name in NAMED}
    own = {
        (f"hostile/{path.name}", name)
        for path in HERE.glob("test_*.py")
        if path.name != "test_readme.py"
        for name in names_in(path)
        if name not in ("test_the_search_finds_every_form", "TestMemory.test_many_streams_of_one_peer_share_the_budget")
    }
    assert own - named == set()
