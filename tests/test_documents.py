"""The documentation says what the code does: exit codes, settings, paths."""

from __future__ import annotations

import dataclasses
import importlib
import re
from pathlib import Path

import pytest

from pilot.cli.output import Exit
from pilot.node import NodeConfig

ROOT = Path(__file__).parent.parent
DOCUMENTS = ["README.md", *(path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").rglob("*.md")))]
COMMAND = (ROOT / "docs" / "COMMAND.md").read_text()


def settings_table() -> str:
    rows = ["| setting | default | meaning |", "|---|---|---|"]
    for setting in dataclasses.fields(NodeConfig):
        default = "" if setting.default in ("", None) else f"`{setting.default}`"
        rows.append(f"| `{setting.name}` | {default} | {setting.metadata['doc']} |")
    return "\n".join(rows)


def test_settings() -> None:
    documented = COMMAND.split("when it differs -->\n")[1].split("\n<!-- end -->")[0]
    assert documented == settings_table()


def test_exit_codes() -> None:
    table = COMMAND.split("## Exit codes")[1].split("## Settings")[0]
    assert [int(code) for code in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)] == [int(code) for code in Exit]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_and_named_paths_exist(document: str) -> None:
    text = (ROOT / document).read_text()
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        assert ((ROOT / document).parent / target).exists(), target
    for path in re.findall(r"`((?:pilot|tests|docs|bench)/[\w./-]*)`", text):
        assert (ROOT / path).exists(), path


def python_blocks(document: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / document).read_text(), re.MULTILINE | re.DOTALL)


def imported(block: str) -> set[tuple[str, str]]:
    """Module and name of what a block of code imports from the library."""
    lines = re.findall(r"^from (pilot[\w.]*) import (.+)$", block, re.MULTILINE)
    return {(module, name) for module, names in lines for name in names.split(", ")}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_what_code_in_documents_imports_exists(document: str) -> None:
    for module, name in {pair for block in python_blocks(document) for pair in imported(block)}:
        assert hasattr(importlib.import_module(module), name), f"{module} has no {name}"


@pytest.mark.parametrize("plugin", sorted(path.stem for path in (ROOT / "docs" / "plugins").glob("*.md")))
def test_what_the_page_of_a_plugin_uses_of_it_is_imported_there(plugin: str) -> None:
    """A reader copies the block."""
    offered = set(importlib.import_module(f"pilot.plugins.{plugin}").__all__)
    for block in python_blocks(f"docs/plugins/{plugin}.md"):
        named = set(re.findall(r"\b[A-Za-z_]+\b", re.sub(r"#.*", "", block)))
        assert named & offered <= {name for _, name in imported(block)}


def test_every_room_is_in_the_table() -> None:
    text = (ROOT / "docs" / "ARCHITECTURE.md").read_text()
    rooms = {path.parent.relative_to(ROOT).as_posix() for path in (ROOT / "pilot").rglob("__init__.py")}
    for room in rooms - {"pilot"}:
        assert f"`{room}/`" in text, room


def test_every_name_of_the_contract_is_mapped() -> None:
    table = (ROOT / "docs" / "COREAPI.md").read_text()
    from pilot import coreapi

    own = {"Subscription", "PilotError", "BusyError", "ClosedError", "InvalidValueError", "PathError", "RefusedError"}
    own |= {"RegistryError", "ResetError"}
    for name in set(coreapi.__all__) - own:
        assert re.search(rf"\b{name}\b", table), name
