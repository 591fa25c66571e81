"""A policy compiled: which variables each event has, and what its rules say about one event (plugin policy, L11).

Nothing here acts: an evaluation yields a verdict and the actions to carry out, in order. Source: services.md 9.4, 9.6.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from pilot.coreapi import InvalidValueError, PolicyEventType
from pilot.plugins.policy.document import (
    GATE_EVENTS,
    Action,
    ActionType,
    PolicyDocument,
    Rule,
    parse_document_untrusted,
)
from pilot.plugins.policy.expression import (
    BOOL,
    FLOAT,
    INT,
    LIST_OF_STRING,
    STRING,
    CompileError,
    ExpressionError,
    Program,
    Type,
    compile_expression,
)
from pilot.plugins.policy.expression.lexer import quoted
from pilot.plugins.policy.expression.limits import SECONDS_PER_EVALUATION, TIMED_OUT
from pilot.plugins.policy.quick import CANNOT, Test, quick_test

__all__ = [
    "VARIABLES",
    "CompiledPolicy",
    "Directive",
    "EvaluationError",
    "Outcome",
    "compile_policy",
    "load_policy_in_thread_untrusted",
    "load_policy_untrusted",
]

_PEER: Final = {"peer_id": INT, "network_id": INT}
_GATE: Final = _PEER | {
    "port": INT,
    "peer_tags": LIST_OF_STRING,
    "peer_age_s": FLOAT,
    "members": INT,
    "sender_rating": FLOAT,
    "local_tags": LIST_OF_STRING,
}
VARIABLES: Final[Mapping[PolicyEventType, Mapping[str, Type]]] = {
    PolicyEventType.CONNECT: _GATE,
    PolicyEventType.DIAL: _GATE,
    PolicyEventType.DATAGRAM: _GATE | {"size": INT, "direction": STRING},
    PolicyEventType.CYCLE: _PEER
    | {
        "peer_tags": LIST_OF_STRING,
        "peer_age_s": FLOAT,
        "members": INT,
        "local_tags": LIST_OF_STRING,
        "peer_count": INT,
        "cycle_num": INT,
        "trusted_count": INT,
    },
    PolicyEventType.JOIN: _PEER | {"members": INT, "local_tags": LIST_OF_STRING},
    PolicyEventType.LEAVE: _PEER | {"local_tags": LIST_OF_STRING},
}
"""What expressions may name, by event. Not all of it is there at run time: services.md 9.4 has both tables."""
EVICT_WHERE_VARIABLES: Final[Mapping[str, Type]] = {
    "peer_id": INT,
    "peer_tags": LIST_OF_STRING,
    "peer_age_s": FLOAT,
    "last_seen": FLOAT,
}

DEFAULT_RULE: Final = "_default"
"""The rule named for a verdict that no rule gave."""


class EvaluationError(Exception):
    """An expression failed, and the evaluation with it; the text is the official engine's, from `policy: ` on."""


class Directive(NamedTuple):
    """An action to carry out, and the rule it comes from. `program` is the condition of an `evict_where`."""

    action: Action
    rule: str
    program: Program | None = None


class Outcome(NamedTuple):
    """What the rules say: the verdict, None for events that have none, and the actions in order."""

    allow: bool | None
    directives: tuple[Directive, ...]
    acts: bool = False
    """Whether there is anything to do beyond the verdict."""


class _CompiledRule:
    """One rule ready to run; `outcome` is all it contributes when it matches."""

    __slots__ = ("name", "outcome", "program", "quick")

    def __init__(self, name: str, program: Program, quick: Test | None, outcome: Outcome) -> None:
        self.name = name
        self.program = program
        self.quick = quick
        self.outcome = outcome

    def matches(self, variables: Mapping[str, object]) -> bool:
        """Whether the condition holds. Raises `EvaluationError` when its evaluation fails."""
        try:
            return self.program(variables) is True
        except ExpressionError as error:
            raise self.failed(str(error)) from None

    def failed(self, why: str) -> EvaluationError:
        """The error for a condition that was not evaluated to its end."""
        return EvaluationError(f"policy: rule {quoted(self.name)} eval: {why}")


_VERDICTS: Final = frozenset({ActionType.ALLOW, ActionType.DENY})
_NOTHING: Final = Outcome(None, ())


class CompiledPolicy:
    """A document whose expressions are programs. Immutable; made by `compile_policy`."""

    __slots__ = ("_default", "_rules", "document")

    def __init__(self, document: PolicyDocument, rules: Sequence[_CompiledRule]) -> None:
        """`rules` are those of the document, in its order."""
        self.document = document
        events = [rule.on for rule in document.rules]
        self._rules: dict[str, tuple[_CompiledRule, ...]] = {
            event: tuple(rule for rule, on in zip(rules, events, strict=True) if on is event)
            for event in PolicyEventType
        }
        verdict = ActionType.ALLOW if document.default_allow else ActionType.DENY
        self._default = Outcome(document.default_allow, (Directive(Action(verdict), DEFAULT_RULE),))

    def has_rules(self, event: str) -> bool:
        """Whether any rule is for the event."""
        return bool(self._rules.get(event))

    def rules(self, event: str) -> tuple[_CompiledRule, ...]:
        """The rules for the event, in order."""
        return self._rules.get(event, ())

    def evaluate(self, event: str, variables: Mapping[str, object]) -> Outcome:
        """What the rules for `event` say; an event nobody knows has no rules and no verdict.

        For a gate event the first matching rule with `allow` or `deny` ends it, and of these two its first one is the
        verdict; without such a rule it is the default. For other events every matching rule contributes. A gate starts
        no further expression after the time that one may take.

        Raises:
            EvaluationError: an expression that had to be evaluated failed.
        """
        directives: tuple[Directive, ...] = ()
        decides = event in GATE_EVENTS
        end = math.inf
        for rule in self.rules(event):
            try:
                matches = rule.quick(variables) if rule.quick is not None else None
            except CANNOT:  # a variable is absent
                matches = None
            if matches is None:
                now = time.monotonic()
                if decides and now > end:
                    raise rule.failed(TIMED_OUT)
                end = min(end, now + SECONDS_PER_EVALUATION)
                matches = rule.matches(variables)
            if not matches:
                continue
            outcome = rule.outcome
            if decides and outcome.allow is not None:
                return _joined(directives, outcome) if directives else outcome
            directives += outcome.directives
        if not decides:
            return Outcome(None, directives, True) if directives else _NOTHING
        return _joined(directives, self._default) if directives else self._default


def _joined(before: tuple[Directive, ...], decision: Outcome) -> Outcome:
    return Outcome(decision.allow, before + decision.directives, True)


def compile_policy(document: PolicyDocument, *, wall: Callable[[], float] = time.time) -> CompiledPolicy:
    """The document with its expressions compiled, rule by rule; `wall` is the clock of `now()` and `since()`.

    Raises:
        InvalidValueError: an expression is refused; the message is the official engine's, beginning with `policy: `.
    """
    return CompiledPolicy(document, [_compile_rule(rule, wall) for rule in document.rules])


def load_policy_untrusted(
    data: bytes, parsing: str, compiling: str, *, wall: Callable[[], float] = time.time
) -> CompiledPolicy:
    """The document in `data`, parsed and compiled as `compile_policy` does. Takes 1 ms for a usual rule.

    Raises:
        InvalidValueError: it is refused; the message begins with `parsing` or `compiling`, whichever failed.
    """
    with _named(parsing):
        document = parse_document_untrusted(data)
    with _named(compiling):
        return compile_policy(document, wall=wall)


async def load_policy_in_thread_untrusted(
    data: bytes, parsing: str, compiling: str, *, wall: Callable[[], float] = time.time
) -> CompiledPolicy:
    """The same off the event loop, which goes on meanwhile. Raises what `load_policy_untrusted` raises.

    Each rule is a call of its own to the thread, so that after each the loop has its turn; while a long one is compiled
    the interpreter gives the loop its turn every 5 ms. Cancelled, at most one rule is still compiled, for nothing.
    """
    with _named(parsing):
        document = await asyncio.to_thread(parse_document_untrusted, data)
    with _named(compiling):
        rules = [await asyncio.to_thread(_compile_rule, rule, wall) for rule in document.rules]
    return CompiledPolicy(document, rules)


@contextlib.contextmanager
def _named(step: str) -> Iterator[None]:
    """Puts the step in front of what is said about a refused document."""
    try:
        yield
    except InvalidValueError as error:
        raise InvalidValueError(f"{step}: {error}") from None


def _compile_rule(rule: Rule, wall: Callable[[], float]) -> _CompiledRule:
    place = f"rule {quoted(rule.name)}"
    program = _compile(f"{place} match", rule.match, VARIABLES[rule.on], wall)
    directives = tuple(
        Directive(action, rule.name, _condition(action, f"{place} action[{index}]", wall))
        for index, action in enumerate(rule.actions)
    )
    verdicts = [action.type is ActionType.ALLOW for action in rule.actions if action.type in _VERDICTS]
    outcome = Outcome(verdicts[0] if verdicts else None, directives, len(verdicts) < len(directives))
    quick = quick_test(rule.match, VARIABLES[rule.on]) if rule.on in GATE_EVENTS else None
    return _CompiledRule(rule.name, program, quick, outcome)


def _condition(action: Action, place: str, wall: Callable[[], float]) -> Program | None:
    """The condition of an `evict_where`, None for other actions."""
    if action.type is not ActionType.EVICT_WHERE:
        return None
    text = action.text("match")
    if not text:
        raise InvalidValueError(f"policy: {place}: evict_where match must be a string")
    return _compile(f"{place} evict_where match", text, EVICT_WHERE_VARIABLES, wall)


def _compile(place: str, text: str, variables: Mapping[str, Type], wall: Callable[[], float]) -> Program:
    try:
        return compile_expression(text, variables, want=BOOL, now=wall)
    except CompileError as error:
        raise InvalidValueError(f"policy: {place}: {error}") from None
