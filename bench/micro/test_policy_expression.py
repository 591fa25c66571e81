"""Rules as they are written, compiled and evaluated, beside the same condition as a function of Python (bench)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from pilot.plugins.policy.expression import INT, LIST_OF_STRING, STRING, compile_expression

VARIABLES = {"port": INT, "peer_tags": LIST_OF_STRING, "direction": STRING}
VALUES = {"port": 80, "peer_tags": ("worker", "web"), "direction": "in"}

RULES: dict[str, tuple[str, Callable[[Mapping[str, Any]], bool]]] = {
    "port": ("port == 80", lambda env: env["port"] == 80),
    "port and tag": (
        'port == 80 && has_tag(peer_tags, "web")',
        lambda env: env["port"] == 80 and "web" in env["peer_tags"],
    ),
    "ranges": (
        'direction == "in" && (port < 1024 || port in 8000..9000)',
        lambda env: env["direction"] == "in" and (env["port"] < 1024 or 8000 <= env["port"] <= 9000),
    ),
    "any tag": ('any(peer_tags, # == "web")', lambda env: any(tag == "web" for tag in env["peer_tags"])),
    "pattern": ('peer_tags[1] matches "^w.b$"', lambda env: env["peer_tags"][1] == "web"),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("peer", ["pilot", "python"])
def test_policy_expression_evaluate(benchmark: Any, peer: str, rule: str) -> None:
    text, plain = RULES[rule]
    condition = compile_expression(text, VARIABLES) if peer == "pilot" else plain
    assert benchmark(condition, VALUES) is True


def test_policy_expression_compile(benchmark: Any) -> None:
    program = benchmark(compile_expression, RULES["port and tag"][0], VARIABLES)
    assert program(VALUES) is True
