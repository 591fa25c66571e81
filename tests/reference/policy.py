"""Policies as plainly as they can be said: conditions as trees, rules one after the other (services.md 9.6)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

GATE_EVENTS = ("connect", "dial", "datagram")
FLOATS = ("peer_age_s", "sender_rating")


class ConditionError(Exception):
    """A condition that compares what is not there."""


@dataclass(frozen=True)
class Condition:
    """`kind` with its parts.

    `constant` (value; only by itself, for compilers see through it), `compare` (variable, sign, value), `has_tag`
    (variable, text), `in` (text, variable), `one_of` (variable, values), `not` (one condition), `and`/`or` (two).
    """

    kind: str
    parts: tuple[Any, ...]

    def text(self) -> str:
        """The condition in the language of policies."""
        match self.kind, self.parts:
            case "constant", (value,):
                return literal(value)
            case "compare", (variable, sign, value):
                return f"{variable} {sign} {literal(value)}"
            case "has_tag", (variable, tag):
                return f"has_tag({variable}, {literal(tag)})"
            case "in", (tag, variable):
                return f"{literal(tag)} in {variable}"
            case "one_of", (variable, values):
                return f"{variable} in [{', '.join(map(literal, values))}]"
            case "not", (inner,):
                return f"!({inner.text()})"
            case sign, (left, right):
                return f"({left.text()}) {'&&' if sign == 'and' else '||'} ({right.text()})"
        raise AssertionError(self)

    def holds(self, variables: Mapping[str, Any]) -> bool:
        """Whether it holds; ConditionError where a part that counts is about an absent variable."""
        match self.kind, self.parts:
            case "constant", (value,):
                return bool(value)
            case "compare", (variable, sign, value):
                return compare(variables.get(variable), sign, value, is_float=variable in FLOATS)
            case "has_tag", (variable, tag):
                if variable not in variables:
                    raise ConditionError(variable)
                return tag in variables[variable]
            case "in", (tag, variable):
                return tag in variables.get(variable, ())
            case "one_of", (variable, values):
                return variables.get(variable) in values
            case "not", (inner,):
                return not inner.holds(variables)
            case "and", (left, right):
                return left.holds(variables) and right.holds(variables)
            case "or", (left, right):
                return left.holds(variables) or right.holds(variables)
        raise AssertionError(self)


def literal(value: Any) -> str:
    """A constant of the language."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return f'"{value}"' if isinstance(value, str) else repr(value)


def compare(value: Any, sign: str, constant: Any, *, is_float: bool) -> bool:
    """A comparison; what is absent can be compared with nothing, but a float is at least unequal to everything."""
    if value is None and is_float and sign in ("==", "!="):
        return sign == "!="
    if value is None:
        raise ConditionError(sign)
    return {
        "==": value == constant,
        "!=": value != constant,
        "<": value < constant,
        "<=": value <= constant,
        ">": value > constant,
        ">=": value >= constant,
    }[sign]


def evaluate(
    rules: Sequence[tuple[str, str, Condition, Sequence[str]]], default: str, event: str, variables: Mapping[str, Any]
) -> tuple[str | None, list[tuple[str, str]]]:
    """The verdict and every (rule, action type) that counts.

    A rule is (name, event, condition, action types). ConditionError names the rule whose condition failed.
    """
    done: list[tuple[str, str]] = []
    for name, on, condition, actions in rules:
        if on != event:
            continue
        try:
            holds = condition.holds(variables)
        except ConditionError:
            raise ConditionError(name) from None
        if not holds:
            continue
        done += [(name, action) for action in actions]
        verdicts = [action for action in actions if action in ("allow", "deny")]
        if event in GATE_EVENTS and verdicts:
            return verdicts[0], done
    if event not in GATE_EVENTS:
        return None, done
    return default, [*done, ("_default", default)]
