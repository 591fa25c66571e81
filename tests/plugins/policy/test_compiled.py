"""Evaluation: every captured document, absent variables, and the plain reference on generated policies."""

from __future__ import annotations

import contextlib
import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pilot.coreapi import InvalidValueError
from pilot.plugins.policy import EvaluationError, load_policy_untrusted
from pilot.plugins.policy import compiled as module
from pilot.plugins.policy.compiled import VARIABLES
from pilot.plugins.policy.expression import CompileError, compile_expression
from pilot.plugins.policy.quick import CANNOT, quick_test
from tests.plugins.policy.documents import compiled, rule
from tests.plugins.policy.expression.common import CONNECT, VALUES
from tests.plugins.policy.expression.generator import Generator
from tests.plugins.policy.expression.typed import TypedGenerator
from tests.reference.policy import FLOATS, Condition, ConditionError, evaluate

VECTORS: dict[str, Any] = json.loads((Path(__file__).parents[2] / "vectors" / "services.json").read_text())


@pytest.mark.parametrize("case", VECTORS["policy_documents"], ids=lambda case: case["name"])
def test_captured_documents(case: dict[str, Any]) -> None:
    policy = load_policy_untrusted(json.dumps(case["doc"]).encode(), "parse", "compile")
    variables = dict(case["event"])
    event = variables.pop("type")
    if case["rc"]:
        with pytest.raises(EvaluationError) as caught:
            policy.evaluate(event, variables)
        assert f"evaluation: {caught.value}" == case["result"]["error"]
        return
    shown = [
        {"params": each.action.params, "rule": each.rule, "type": each.action.type}
        for each in policy.evaluate(event, variables).directives
    ]
    assert shown == case["result"]["directives"]


@pytest.mark.parametrize("case", VECTORS["policy_absent_variables"]["results"], ids=lambda case: case["expr"])
def test_absent_variables(case: dict[str, str]) -> None:
    variables = dict(VECTORS["policy_absent_variables"]["event"])
    event = variables.pop("type")
    policy = compiled(rule("r", event, case["expr"], "evict"))
    if case["result"].startswith("error"):
        with pytest.raises(EvaluationError, match=r'^policy: rule "r" eval: ') as caught:
            policy.evaluate(event, variables)
        assert case["result"].removeprefix("error").removeprefix(": ") in str(caught.value)
    else:
        assert bool(policy.evaluate(event, variables).directives) is (case["result"] == "true")


def test_the_first_of_allow_and_deny_is_the_verdict() -> None:
    both = compiled(rule("r", "connect", "true", "allow", ("log", {"message": "m"}), "deny"))
    outcome = both.evaluate("connect", {})
    assert (outcome.allow, len(outcome.directives), outcome.acts) == (True, 3, True)
    assert compiled(rule("r", "dial", "true", "deny", "allow")).evaluate("dial", {}).allow is False
    assert compiled(rule("r", "join", "true", "deny")).evaluate("join", {}).allow is None


def test_what_an_event_may_name() -> None:
    for event, variables in VARIABLES.items():
        for name in set().union(*VARIABLES.values()):
            document = rule("r", event, f"{name} == nil", "allow")
            if name in variables:
                compiled(document)
            else:
                with pytest.raises(InvalidValueError, match=rf'^compile: policy: rule "r" match: unknown name {name} '):
                    compiled(document)


def test_an_unreached_rule_cannot_fail() -> None:
    policy = compiled(
        rule("a", "connect", "port == 1", "allow"),
        rule("b", "connect", "port == 2 || sender_rating < 0.5", "deny"),
    )
    assert policy.evaluate("connect", {"port": 1}).allow is True
    assert policy.evaluate("connect", {"port": 2}).allow is False
    with pytest.raises(EvaluationError, match="<nil> < float64"):
        policy.evaluate("connect", {"port": 3})


# ---- generated ------------------------------------------------------------------------------------------------------

NUMBERS = ("port", "peer_id", "network_id", "members", "size")
LISTS = ("peer_tags", "local_tags")
SIGNS = ("==", "!=", "<", "<=", ">", ">=")
TAGS = ("service", "worker", "x")
small = st.integers(0, 5)


def conditions() -> st.SearchStrategy[Condition]:
    leaves = st.one_of(
        st.tuples(st.just("compare"), st.tuples(st.sampled_from(NUMBERS), st.sampled_from(SIGNS), small)),
        st.tuples(
            st.just("compare"),
            st.tuples(st.sampled_from(FLOATS), st.sampled_from(SIGNS), st.sampled_from((0.0, 0.5, 2, 3))),
        ),
        st.tuples(
            st.just("compare"),
            st.tuples(st.just("direction"), st.sampled_from(("==", "!=")), st.sampled_from(("in", "out"))),
        ),
        st.tuples(st.just("has_tag"), st.tuples(st.sampled_from(LISTS), st.sampled_from(TAGS))),
        st.tuples(st.just("in"), st.tuples(st.sampled_from(TAGS), st.sampled_from(LISTS))),
        st.tuples(
            st.just("one_of"),
            st.tuples(st.sampled_from(NUMBERS), st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple)),
        ),
    )
    composed = st.recursive(
        leaves.map(lambda parts: Condition(*parts)),
        lambda inner: st.one_of(
            st.builds(lambda one: Condition("not", (one,)), inner),
            st.builds(lambda sign, a, b: Condition(sign, (a, b)), st.sampled_from(("and", "or")), inner, inner),
        ),
        max_leaves=5,
    )
    return st.one_of(composed, composed, st.booleans().map(lambda value: Condition("constant", (value,))))


DATAGRAM = {
    "port": small,
    "peer_id": small,
    "network_id": small,
    "members": small,
    "size": small,
    "peer_age_s": st.sampled_from((0.0, 0.5, 2.0)),
    "sender_rating": st.sampled_from((0.0, 0.5, 1.0)),
    "peer_tags": st.lists(st.sampled_from(TAGS), unique=True).map(tuple),
    "local_tags": st.lists(st.sampled_from(TAGS), unique=True).map(tuple),
    "direction": st.sampled_from(("in", "out")),
}
variables = st.fixed_dictionaries({}, optional=DATAGRAM)
actions = st.lists(st.sampled_from(("allow", "deny", "evict")), min_size=1, max_size=3)
rules = st.lists(st.tuples(st.sampled_from(("datagram", "connect")), conditions(), actions), min_size=1, max_size=6)


@settings(max_examples=150, deadline=None)
@given(rules, st.sampled_from(("allow", "deny")), variables)
def test_evaluation_agrees_with_the_reference(
    given_rules: list[tuple[str, Condition, list[str]]], default: str, values: dict[str, Any]
) -> None:
    named = [(f"r{n}", on, condition, kinds) for n, (on, condition, kinds) in enumerate(given_rules)]
    # Only datagrams may name everything; a rule for another event is skipped whatever it says.
    policy = compiled(
        *(
            rule(name, on, condition.text() if on == "datagram" else "true", *kinds)
            for name, on, condition, kinds in named
        ),
        default_verdict=default,
    )
    try:
        verdict, done = evaluate(named, default, "datagram", values)
    except ConditionError as error:
        with pytest.raises(EvaluationError, match=f'^policy: rule "{error}" eval: '):
            policy.evaluate("datagram", values)
        return
    outcome = policy.evaluate("datagram", values)
    assert outcome.allow is (verdict == "allow")
    assert [(each.rule, each.action.type) for each in outcome.directives] == done
    assert outcome.acts is any(kind == "evict" for _, kind in done)


@settings(max_examples=150, deadline=None)
@given(conditions(), st.fixed_dictionaries(DATAGRAM))
def test_the_quick_way_says_what_the_program_says(condition: Condition, values: dict[str, Any]) -> None:
    quick = quick_test(condition.text(), VARIABLES["datagram"])  # type: ignore[index]
    assert quick is not None
    assert quick(values) is condition.holds(values)


QUICK = (
    "port == peer_id",
    "len(peer_tags) == 1",
    "let p = port; let q = p; p == 1 || q == 2",
    "any(peer_tags, let t = #; t == 'x' || t == 'y')",
    "let t = 'x'; any(peer_tags, # == t)",
    "direction matches 'i.'",
    "direction startsWith 'i' || direction endsWith 't' || direction contains 'u'",
    "any(peer_tags, # == 'x') && none(peer_tags, # == 'y')",
    "all(peer_tags, # startsWith 'x') || one(peer_tags, # in ['x', ''])",
    "count(peer_tags, # != 'x') > 1",
    "port == 1 ? true : size > 2",
    "port % 3 == 1",
    "port / 2 > 0.5",
    "(sender_rating ?? 1.0) < 0.5",
    "(port ?? 2) in [0, 1]",
    "port in 1..3",
    "(port == 1) == (size == 1)",
    "port in [0] || true && port > 0",
)
BEYOND = (
    "port + 1 == 2",
    "peer_age_s == 9007199254740993",
    "sender_rating == nil",
    "sender_rating > port",
    "$env.port == 1",
    "'%s' matches '(a+)+b'" % ("a" * 1000),
    "any(peer_tags, any(local_tags, # == 'x'))",
    " || ".join(["any(peer_tags, # == 'x')"] * 5),
    "map(peer_tags, #)[0] == 'x'",
    "direction startsWith 'ä'",
    "port % -2 == 0",
    "(" * 45 + "!" * 45 + "(port == 1)" + ")" * 45,
    "port == 1 == true == true" + " == true" * 3000,
)


@pytest.mark.parametrize("text", QUICK)
def test_the_quick_way_is_taken_and_right(text: str) -> None:
    quick, program = quick_test(text, VARIABLES["datagram"]), compile_expression(text, VARIABLES["datagram"])  # type: ignore[index]
    assert quick is not None
    told = 0
    for number in range(-1, 4):
        for tags in (), ("x",), ("xy", "x", "y"):
            direction = ("in", "out")[number % 2]
            values = {"port": number, "peer_id": 1, "size": 1 - number, "peer_tags": tags, "direction": direction}
            with contextlib.suppress(*CANNOT):
                assert quick(values) is program(values)
                told += 1
    assert told >= 12


@pytest.mark.parametrize("text", BEYOND, ids=lambda text: text[:30])
def test_what_is_left_to_the_program(text: str) -> None:
    assert quick_test(text, VARIABLES["datagram"]) is None  # type: ignore[index]
    compiled(rule("r", "datagram", text, "deny"))


def test_the_quick_way_never_says_anything_else() -> None:
    """Expressions of every kind, with variables absent now and then: where it tells, the program tells the same."""
    rng = random.Random(11)
    generators = (Generator(rng), TypedGenerator(rng))
    told = 0
    for number in range(2000):
        text = generators[number % 2].expression()
        try:
            program = compile_expression(text, CONNECT)
        except CompileError:
            continue
        quick = quick_test(text, CONNECT)
        if quick is None:
            continue
        for values in (VALUES, {name: value for name, value in VALUES.items() if rng.random() < 0.5}):
            with contextlib.suppress(*CANNOT):
                assert quick(values) is program(values), (text, values)
                told += 1
    assert told > 40


def test_long_rows_of_conditions_are_quick_too() -> None:
    for sign in "||", "&&":
        text = f" {sign} ".join(f"port == {port}" for port in range(2400))
        quick = quick_test(text, CONNECT)
        assert quick is not None
        assert quick({"port": 2399}) is (sign == "||")


def test_nothing_in_a_rule_becomes_code() -> None:
    text = r"""direction == "'] or __import__('os').abort() #" || direction in ["\\", "${x}", "{0}"]"""
    quick = quick_test(text, VARIABLES["datagram"])  # type: ignore[index]
    assert quick is not None
    assert quick({"direction": "{0}"}) is True


def test_the_rules_of_a_gate_share_the_time_that_one_may_take(monkeypatch: pytest.MonkeyPatch) -> None:
    loops = [rule(f"r{n}", "connect", f"all(1..9, # > {n})", "evict" if n < 2 else "allow") for n in range(3)]
    policy = compiled(*loops, rule("last", "connect", "true", "allow"))
    assert policy.evaluate("connect", {}).allow is True
    ticks = iter([5.0, 5.05, 5.11])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(ticks))
    with pytest.raises(EvaluationError, match=r'^policy: rule "r2" eval: expression evaluation timed out$'):
        policy.evaluate("connect", {})
