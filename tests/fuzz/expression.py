"""Fuzz target of policy expressions: whatever is written is refused or runs, within its limits (plugin policy)."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path

from pilot.plugins.policy.expression import ANY, CompileError, ExpressionError, compile_expression
from pilot.plugins.policy.expression.durations import parse_duration_untrusted
from pilot.plugins.policy.expression.layouts import parse_time_untrusted
from pilot.plugins.policy.expression.times import zone_untrusted
from tests.fuzz.driver import Target
from tests.plugins.policy.expression.common import CONNECT, VALUES

OBSERVED = Path(__file__).parents[1] / "vectors" / "policy_expressions_observed.json"


def run_expression(data: bytes) -> None:
    """Compiled twice alike; run twice alike; nothing but the two errors; the clock ends every loop."""
    text = data.decode("utf-8", "surrogateescape")
    with contextlib.suppress(ValueError):
        parse_duration_untrusted(text)
    with contextlib.suppress(ValueError):
        parse_time_untrusted(text, "2006-01-02 15:04:05")
    with contextlib.suppress(ValueError):
        parse_time_untrusted("2024-01-02", text)
    with contextlib.suppress(ValueError):
        zone_untrusted(text)
    outcomes = []
    for _ in range(2):
        try:
            program = compile_expression(text, CONNECT, want=ANY, monotonic=clock(), now=lambda: 1_700_000_000.0)
            outcomes.append(re.sub(" at 0x[0-9a-f]+", "", repr(program(VALUES))))
        except (CompileError, ExpressionError) as error:
            outcomes.append(str(error))
    assert outcomes[0] == outcomes[1]


def clock() -> Callable[[], float]:
    """A clock that goes on by half a millisecond with every look."""
    moments = itertools.count()
    return lambda: next(moments) / 2000


def expression_seeds() -> list[bytes]:
    observed = json.loads(OBSERVED.read_text())
    return [text.encode() for text, _ in observed["connect"][::3]] + [b"1h30m", b"2024-01-02 03:04:05", b"UTC"]


TARGETS = (Target("policy-expression", "expressions of policy rules", run_expression, expression_seeds),)
