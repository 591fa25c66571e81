"""Generated expressions: the compiled evaluator and the plain reference give the same values and the same failures."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from pilot.plugins.policy.expression import ANY, CompileError, ExpressionError, compile_expression
from pilot.plugins.policy.expression.lexer import quoted
from pilot.plugins.policy.expression.parser import parse_untrusted
from tests.plugins.policy.expression.common import CONNECT, VALUES
from tests.plugins.policy.expression.generator import Generator
from tests.plugins.policy.expression.typed import TypedGenerator
from tests.reference.expression import EvaluationFailedError, UnsupportedError, evaluate, same

NUMBERS = st.one_of(
    st.integers(-(1 << 63) + 1, (1 << 63) - 1).map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(lambda value: repr(value).replace("inf", "1e308")),
    st.sampled_from(["port", "members", "peer_age_s", "peer_id", "0", "1", "2"]),
)
TEXTS = st.one_of(
    st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=4).map(quoted),
    st.sampled_from(["peer_tags[0]", '"x"']),
)
BOOLS = st.sampled_from(["true", "false", "(port == 2)", '("x" in peer_tags)'])


def infix(operands: Any, operators: list[str]) -> Any:
    return st.tuples(operands, st.sampled_from(operators), operands).map(lambda t: f"({t[0]} {t[1]} {t[2]})")


ARITHMETIC = st.recursive(
    NUMBERS, lambda inner: infix(inner, ["+", "-", "*", "/", "%", "**"]) | inner.map("-{}".format), max_leaves=8
)
LISTS = st.one_of(
    st.lists(ARITHMETIC | TEXTS | st.just("nil"), max_size=4).map(lambda t: f"[{', '.join(t)}]"),
    st.sampled_from(["peer_tags", "1..5", "[[1], [2.0]]"]),
)
BODIES = st.sampled_from(
    ["# == 1", "# != nil", '# == "x"', "# in [1, 2]", "[#] == [1.0]", "# == port", "true", "#.a == nil"]
)
PREDICATES = st.tuples(
    st.sampled_from(["all", "any", "none", "one", "filter", "count", "find", "findIndex"]), LISTS, BODIES
).map("{0[0]}({0[1]}, {0[2]})".format)
WHOLE = st.one_of(
    ARITHMETIC,
    infix(ARITHMETIC, ["==", "!=", "<", ">", "<=", ">="]),
    infix(TEXTS, ["+", "==", "<", "contains", "startsWith", "endsWith"]),
    infix(LISTS, ["==", "!="]),
    PREDICATES,
    st.tuples(ARITHMETIC | TEXTS, LISTS).map("{0[0]} in {0[1]}".format),
    st.tuples(LISTS, st.integers(-6, 6), st.integers(-6, 6)).map("{0[0]}[{0[1]}:{0[2]}]".format),
    st.tuples(LISTS, st.integers(-6, 6)).map("{0[0]}[{0[1]}]".format),
    st.tuples(LISTS, st.sampled_from(["# + 1", "[#]", "#index"])).map("map({0[0]}, {0[1]})".format),
    st.tuples(LISTS, st.sampled_from(["asc", "desc"])).map('sortBy({0[0]}, #, "{0[1]}")[:0]'.format),
    st.tuples(LISTS, st.sampled_from(["#acc + #", "[#acc, #]", "#"])).map("reduce({0[0]}, {0[1]})".format),
    st.tuples(LISTS).map("sum({0[0]})".format),
    st.tuples(BOOLS, ARITHMETIC, ARITHMETIC).map("{0[0]} ? {0[1]} : {0[2]}".format),
    infix(BOOLS, ["&&", "||", "and", "or", "=="]),
    st.tuples(LISTS, LISTS).map("uniq(concat({0[0]}, reverse({0[1]})))".format),
)


def compare(text: str) -> bool:
    """Both evaluations of a text; whether there was a value to compare."""
    try:
        program = compile_expression(text, CONNECT, want=ANY, monotonic=lambda: 0.0)
    except CompileError:
        return False
    try:
        expected = evaluate(parse_untrusted(text), dict(VALUES))
    except UnsupportedError:
        return False
    except EvaluationFailedError:
        with pytest.raises(ExpressionError):
            program(VALUES)
        return True
    found = program(VALUES)
    assert same(found, expected), (text, found, expected)
    return True


@given(WHOLE)
@settings(max_examples=400, deadline=None)
def test_generated_expressions(text: str) -> None:
    event("compared" if compare(text) else "refused")


def test_seeded_expressions() -> None:
    """The grammar of the comparison with the official tool, too."""
    rng = random.Random(4)
    wild, typed = Generator(rng), TypedGenerator(rng)
    assert sum(compare(wild.expression()) for _ in range(2000)) > 50
    assert sum(compare(typed.expression()) for _ in range(1500)) > 500
