"""The documentation says what the code does: exit codes, settings, paths."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from pilot.cli.output import Exit
from pilot.node import NodeConfig

ROOT = Path(__file__).parent.parent
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


@pytest.mark.parametrize(
    "document",
    ["README.md", *(path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").rglob("*.md")))],
)
def test_links_and_named_paths_exist(document: str) -> None:
    text = (ROOT / document).read_text()
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        assert ((ROOT / document).parent / target).exists(), target
    for path in re.findall(r"`((?:pilot|tests|docs|bench)/[\w./-]*)`", text):
        assert (ROOT / path).exists(), path


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
