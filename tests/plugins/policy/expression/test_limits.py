"""What hostile expressions may cost: time, memory, depth; no clock of the machine decides a test."""

from __future__ import annotations

import itertools
import sys

import pytest

from pilot.plugins.policy.expression import CompileError, ExpressionError, compile_expression
from pilot.plugins.policy.expression.layouts import parse_time_untrusted
from pilot.plugins.policy.expression.limits import (
    MAX_DEPTH,
    MAX_NODES,
    MAX_PATTERN_LENGTH,
    MAX_PATTERNS_CACHED,
    MAX_SOURCE_LENGTH,
    MEMORY_BUDGET,
    STEPS_BETWEEN_CLOCK_READINGS,
)
from pilot.plugins.policy.expression.regexes import pattern_untrusted
from tests.plugins.policy.expression.common import CONNECT, VALUES, outcome

TIMED_OUT = "expression evaluation timed out"


def ticking(text: str, seconds_a_reading: float) -> object:
    """The outcome where every look at the clock finds so much time passed."""
    moments = itertools.count()
    program = compile_expression(text, CONNECT, monotonic=lambda: next(moments) * seconds_a_reading)
    try:
        return program(VALUES)
    except ExpressionError as error:
        return str(error)


LOOPS = [
    "all(1..99999, # > 0)",
    "any(1..9999, any(1..9, # > 10))",
    "len(filter(1..9999, false)) == 1",
    "count(1..9999, # > 0) == 1",
    "sum(1..9999) == 1",
    "reduce(1..9999, #acc + #) == 1",
    "len(sortBy(1..9999, -# + 0.5 * (# % 2))) == 1",
    "len(groupBy(1..9999, #)) == 1",
    "len(map(1..9999, #)) == 1",
    "findIndex(1..9999, # > 99999) == nil",
    "findLast(1..9999, # > 99999) == nil",
    "len(uniq(1..999)) == 1",
    "len(flatten([1..9999])) == 1",
    "len(sort(concat(1..9999, [0.5]))) == 1",
    "max(1..9999) == 0 || max(map(1..999, [#])) == 0",
    "median(map(1..9999, [#])) == 1",
    "(1..9999) == (1..9999)",
    "9999 in 1..port * 9999",
    "string(1..9999) == toJSON(1..9999)",
    'all(1..999, "a" not matches string(#))',
    'all(1..999, date("2024-01-01") != nil)',
]


@pytest.mark.parametrize("text", LOOPS)
def test_every_loop_looks_at_the_clock(text: str) -> None:
    assert ticking(text, 0.2) == TIMED_OUT
    assert ticking(text, 0.0) in (True, False)


def test_an_expression_without_loops_never_looks() -> None:
    def forbidden() -> float:
        raise AssertionError("the clock was read")

    program = compile_expression('port == 2 && "x" in peer_tags && peer_tags[0] != "z"', CONNECT, monotonic=forbidden)
    assert program(VALUES) is True
    assert STEPS_BETWEEN_CLOCK_READINGS >= 16


@pytest.mark.parametrize(
    "text",
    [
        "len(1..1000000) == 1",
        "len(1..500000) + len(1..500000) == 1",
        "len(1..9223372036854775807) == 1",
        "len(map(1..600000, #)) == 1",
        'repeat("a", 1000000) == ""',
        'repeat("abc", 400000) == ""',
        'repeat("", 9223372036854775807) == ""',
        'let a = repeat("x", 400000); let b = a + a; b + b == ""',
        'reduce(1..100, #acc + #acc, "aaaa") == ""',
        'replace(repeat("a", 900000), "", "bbbb") == ""',
        'join(split(repeat("a", 400000), ""), "bbb") == ""',
        "len(concat(1..400000, 1..400000)) == 1",
        "len(string(1..999999)) == 1",
        'fromJSON(repeat("[", 900000)) == nil',
    ],
)
def test_memory_is_bounded(text: str) -> None:
    program = compile_expression(text, CONNECT, monotonic=lambda: 0.0)
    with pytest.raises(ExpressionError, match="memory budget exceeded"):
        program(VALUES)
    assert MEMORY_BUDGET == 1_000_000


def test_lists_that_hold_one_list_twice_end() -> None:
    """Their elements are more than there is memory or time for, though they take little room themselves."""
    doubled = "reduce(1..100, [#acc, #acc], [])"
    for text in (f"{doubled} == {doubled}", f"len(string({doubled})) == 1", f"len(toJSON({doubled})) == 1"):
        assert ticking(text, 0.001) == TIMED_OUT
    assert ticking(f"len(flatten({doubled})) == 1", 0.001) == TIMED_OUT
    assert ticking(f"max({doubled}) == 1", 0.001) == TIMED_OUT


def test_deep_values_are_a_failure() -> None:
    deep = f"reduce(1..{sys.getrecursionlimit() * 3}, [#acc], [])"
    for text in (f"{deep} == {deep}", f"string({deep}) == ''", f"toJSON({deep}) == ''", f"len(flatten({deep})) == 1"):
        assert ticking(text, 0.0) == "expression panic: values nested too deeply"


DEEP = [
    "({})",
    "[{}]",
    "!{}",
    "not {}",
    "-{}",
    "{{a: {}}}",
    "any([1], {})",
    "len({})",
    "{}.a",
    "{}[0]",
    "{}?.a",
    "{}.a()",
    "{} | len()",
    "2 ** {}",
    "true ? 1 : {}",
    "{} ? 1 : 2",
    "1 + (2 * {})",
    "let a{n} = 1; {}",
    "if true {{1}} else {{{}}}",
    "{} not in [1]",
]


@pytest.mark.parametrize("shape", DEEP)
@pytest.mark.parametrize("levels", [50, 3000])
def test_depth_is_bounded(shape: str, levels: int) -> None:
    text = "a"
    for level in range(levels):
        text = shape.format(text, n=level) if "{n}" not in shape else shape.replace("{n}", str(level)).format(text)
    found = outcome(text, {}, CONNECT)
    assert isinstance(found, str)
    if levels > MAX_DEPTH and len(text) <= MAX_SOURCE_LENGTH:
        assert "nested too deeply" in found or "unexpected token" in found


def test_a_long_row_is_not_deep() -> None:
    ports = " || ".join(f"port == {port}" for port in range(2400, 0, -1))
    assert outcome(ports) is True
    assert outcome("1" + " + 1" * 4900 + " == 4901") is True
    assert outcome("true; " * 4000 + "true") is True


def test_nodes_and_length_are_bounded() -> None:
    with pytest.raises(CompileError, match="exceeds maximum allowed nodes"):
        compile_expression("1" + "+1" * MAX_NODES, {})
    with pytest.raises(CompileError, match="too long"):
        compile_expression(" " * (MAX_SOURCE_LENGTH + 1), {})


def test_patterns_take_linear_time_and_bounded_memory() -> None:
    assert outcome('repeat("a", 300000) + "!" matches "^(a|a)*(a+)+$"') is False
    for text, complaint in [
        ("(((a{100}){100}){100}){100}", "invalid repeat count"),
        ("\\pN{900}" * 9, "expression too large"),
        ("a" * (MAX_PATTERN_LENGTH + 1), "expression too large"),
        ("(?=a)", "invalid or unsupported Perl syntax"),
        ("(a)\\\\1", "invalid escape sequence"),
        ("\\\\C", "invalid escape sequence: `\\C`"),
    ]:
        found = outcome(f'"a" matches "{text}"' if "\\p" not in text else f'"a" matches `{text}`')
        assert isinstance(found, str)
        assert complaint in found, found
    for number in range(3 * MAX_PATTERNS_CACHED):
        pattern_untrusted(str(number))
    assert pattern_untrusted.cache_info().currsize == MAX_PATTERNS_CACHED
    assert pattern_untrusted("\\Qa\\C\\E").search("a\\C")


def test_layouts_take_linear_time() -> None:
    with pytest.raises(ValueError, match="cannot parse"):
        parse_time_untrusted("1" * 190 + "x", "2" * 128)
    with pytest.raises(ValueError, match="cannot parse"):
        parse_time_untrusted("1" * 300, "2" * 300)
