"""`pilot policy validate`: what it prints and how it ends, as text and as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pilot.cli.app import run_app
from pilot.cli.output import Exit
from pilot.plugins.policy import MAX_DOCUMENT_BYTES

RULES = [
    {"name": "a", "on": "connect", "match": "port == 7", "actions": [{"type": "allow"}]},
    {"name": "b", "on": "cycle", "match": "true", "actions": [{"type": "evict_where", "params": {"match": "true"}}]},
]
UNKNOWN = 'compilation failed: policy: rule "a" match: unknown name prt (1:1)\n | prt == 7\n | ^'


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = run_app(["policy", "validate", *arguments])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_a_valid_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "policy.json"
    file.write_text(json.dumps({"version": 1, "rules": RULES}))
    assert run(capsys, str(file)) == (Exit.OK, "valid policy: 2 rules\n", "")
    code, out, err = run(capsys, str(file), "--json")
    result = {"valid": True, "version": 1, "rules": 2, "events": {"connect": True, "cycle": True}}
    assert (code, json.loads(out), err) == (Exit.OK, result, "")


def test_a_refused_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "policy.json"
    file.write_text("[]")
    message = (
        "validation failed: policy: invalid JSON: "
        "json: cannot unmarshal array into Go value of type policylang.PolicyDocument"
    )
    assert run(capsys, str(file)) == (Exit.INVALID, "", f"pilot: {message}\n")
    file.write_text(json.dumps({"version": 1, "rules": [RULES[0] | {"match": "prt == 7"}]}))
    code, out, err = run(capsys, str(file), "--json")
    error = {"kind": "InvalidValueError", "message": UNKNOWN, "exit_code": Exit.INVALID}
    assert (code, json.loads(out), err) == (Exit.INVALID, {"error": error}, "")
    file.write_text(" " * (MAX_DOCUMENT_BYTES + 1))
    assert "document too long" in run(capsys, str(file))[2]


def test_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, str(tmp_path / "none"))[0] == Exit.USAGE
    assert run(capsys)[0] == Exit.USAGE
