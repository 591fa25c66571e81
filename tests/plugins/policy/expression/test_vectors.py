"""Every expression whose outcome was captured from the official tool: the same value, or the same words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.plugins.policy.expression.common import CONNECT, CYCLE, VALUES, outcome

HERE = Path(__file__).parents[3] / "vectors"
SERVICES: dict[str, Any] = json.loads((HERE / "services.json").read_text())
OBSERVED: dict[str, Any] = json.loads((HERE / "policy_expressions_observed.json").read_text())

# The tool cut the fraction off the captured event, and took its tags as an untyped list (note of the vector).
CUT = {**VALUES, "peer_age_s": 10}
ONLY_IN_THE_TOOL = 'type(peer_age_s) == "float"'

KNOWN_TO_DIFFER = {
    'fromPairs({"a":{"b":1}}.a) == nil': "the message shows a map by Go's %s",
    'type(b"a"[0]) == "int"': "a byte is an int here",
    '-b"a"[0] == -97': "a byte is an int here",
    'since(b"a"[0]) > 0': "a byte is an int here",
}


@pytest.mark.parametrize("case", SERVICES["policy_expressions"]["results"], ids=lambda case: case["expr"])
def test_captured_expressions(case: dict[str, Any]) -> None:
    if case["expr"] == ONLY_IN_THE_TOOL:
        assert outcome(case["expr"], CUT) is False
        assert outcome(case["expr"]) is True
        return
    found = outcome(case["expr"], CUT if "event_peer_age_s" in case else VALUES)
    if isinstance(found, bool):
        assert ("true" if found else "false") == case["result"]
        return
    # The vectors leave out the line and its caret.
    prefix = {"C": 'policy: policy: rule "e" match: ', "R": 'evaluation: policy: rule "e" eval: '}[found[0]]
    assert prefix + found[3:].partition("\n")[0] == case["result"]


@pytest.mark.parametrize("case", SERVICES["policy_absent_variables"]["results"], ids=lambda case: case["expr"])
def test_absent_variables(case: dict[str, Any]) -> None:
    found = outcome(case["expr"], SERVICES["policy_absent_variables"]["event"], CYCLE)
    if not case["result"].startswith("error"):
        assert found is (case["result"] == "true")
        return
    assert str(found).startswith("R: " + case["result"].removeprefix("error").removeprefix(": "))


def test_captured_validation_texts() -> None:
    checked = 0
    for case in SERVICES["policy_validation"]["cases"]:
        if "compilation failed" not in str(case["result"]) or "rules" not in case["document"]:
            continue
        rule = case["document"]["rules"][0]
        if "evict_where" in case["result"]:
            text, variables = rule["actions"][0]["params"]["match"], {**CYCLE, "last_seen": CONNECT["peer_age_s"]}
        else:
            variables = {
                "join": {name: CYCLE[name] for name in ("peer_id", "network_id", "members", "local_tags")}
            }.get(rule["on"], CONNECT)
            text = rule["match"]
        found = outcome(text, {}, variables)
        assert isinstance(found, str)
        assert case["result"].endswith("match: " + found.removeprefix("C: "))
        checked += 1
    assert checked >= 4


@pytest.mark.parametrize("event", ["connect", "cycle", "absent"])
def test_observed_expressions(event: str) -> None:
    variables = CYCLE if event == "cycle" else CONNECT
    wrong = {}
    for text, result in OBSERVED[event]:
        found = outcome(text, OBSERVED[f"{event}_event"], variables)
        if found != result:
            wrong[text] = (found, result)
    assert not wrong
    assert len(OBSERVED["connect"]) > 1500
    assert len(OBSERVED["absent"]) > 100


def test_what_differs_is_known() -> None:
    assert {text for text, _ in OBSERVED["deviations"]} == set(KNOWN_TO_DIFFER)
    for text, result in OBSERVED["deviations"]:
        assert outcome(text, OBSERVED["connect_event"]) != result
