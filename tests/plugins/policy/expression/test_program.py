"""The programs: what is wanted of them, clocks, values given, messages, and each call by itself."""

from __future__ import annotations

import pytest

from pilot.plugins.policy.expression import (
    ANY,
    FLOAT,
    INT,
    LIST_OF_STRING,
    STRING,
    CompileError,
    ExpressionError,
    array,
    compile_expression,
)
from tests.plugins.policy.expression.common import CONNECT, VALUES, outcome


def test_a_program_is_called_with_its_variables() -> None:
    program = compile_expression('port == 80 && has_tag(peer_tags, "web")', CONNECT)
    assert program({"port": 80, "peer_tags": ("web",)}) is True
    assert program({"port": 80, "peer_tags": ["web"]}) is True
    assert program({"port": 81, "peer_tags": ()}) is False
    with pytest.raises(ExpressionError, match=r"interface \{\} is nil, not int \(1:6\)"):
        program({})
    assert repr(program) == "<Program 'port == 80 && has_tag(peer_tags, \"web\")'>"


def test_another_type_can_be_wanted() -> None:
    assert compile_expression("port + 1", {"port": INT}, want=INT)({"port": 1}) == 2
    assert compile_expression('"a" + "b"', {}, want=STRING)({}) == "ab"
    assert compile_expression("[port, 1.5]", {"port": INT}, want=ANY)({"port": 1}) == [1, 1.5]
    assert compile_expression("tags", {"tags": LIST_OF_STRING}, want=array())({"tags": ("a",)}) == ("a",)
    with pytest.raises(CompileError, match="expected string, but got int"):
        compile_expression("1", {}, want=STRING)


def test_what_is_no_bool_at_run_time_is_refused_but_nil_is_false() -> None:
    assert outcome('{"a": 1}.a') == 'R: invalid operation: bool(int) (1:1)\n | {"a": 1}.a\n | ^'
    assert outcome("{}.a") is False


def test_the_wall_clock_can_be_replaced() -> None:
    now = 1_700_000_000.25
    assert compile_expression("since(at)", {"at": FLOAT}, want=FLOAT, now=lambda: now)({"at": now - 90.5}) == 90.5
    assert compile_expression("since(at)", {"at": FLOAT}, want=FLOAT, now=lambda: now)({"at": -5.0}) == 0.0
    assert compile_expression("now().Unix() == 1700000000", {}, now=lambda: now)({}) is True


def test_a_call_leaves_nothing_behind() -> None:
    program = compile_expression("let x = port; any(1..3, # == x)", CONNECT)
    assert [program({"port": port}) for port in (1, 5, 3)] == [True, False, True]
    given = {"port": 2, "peer_tags": ["b", "a"]}
    assert compile_expression('sort(peer_tags) == ["a", "b"] && reverse(peer_tags)[0] == "a"', CONNECT)(given)
    assert given == {"port": 2, "peer_tags": ["b", "a"]}


def test_a_program_within_a_program() -> None:
    """Predicates inside predicates keep their elements apart."""
    assert outcome("map(1..2, map(1..2, # + #index)) == [[1, 3], [1, 3]]") is True
    assert outcome("map([1, 2], sum(map(1..2, #)) + #) == [4, 5]") is True
    assert outcome("reduce([1, 2, 3], #acc + sum([#, #]), 0) == 12") is True


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("port ==\n  foo", "unknown name foo (2:3)\n |   foo\n | ..^"),
        ("port\t== foo", "unknown name foo (1:9)\n | port == foo\n | ........^"),
        ('"é" == foo', 'unknown name foo (1:8)\n | "é" == foo\n | .......^'),
        ("", "unexpected token EOF"),
    ],
)
def test_places_in_messages(text: str, message: str) -> None:
    assert outcome(text) == f"C: {message}"


def test_values_quoted_in_messages_are_cut() -> None:
    found = outcome('duration(repeat("é", 90000)) == 1')
    assert isinstance(found, str)
    assert len(found) < 3000
    assert found.startswith('R: time: invalid duration "\\xc3\\xa9')
    assert len(str(outcome('int(repeat("9", 90000)) == 1'))) < 3000


def test_half_of_a_surrogate_pair_does_no_harm() -> None:
    assert outcome('"\ud800" == "\\ufffd"') is True
    values = {**VALUES, "peer_tags": ("\ud800x",)}
    assert (
        outcome('peer_tags[0] matches "x$" && peer_tags[0][1:] != "" && len(toBase64(peer_tags[0])) > 0', values)
        is True
    )
    assert outcome('"a" matches peer_tags[0]', values) is False
    assert outcome("peer_tags[0][0] == 1", values) == outcome("peer_tags[0][0] == 1", VALUES)
