"""The policy document: parsed, validated in the official order with the official texts, written (plugin policy, L11).

Source: services.md 9.2 and 9.3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from pilot.coreapi import InvalidValueError, PolicyEventType
from pilot.plugins.policy.decoder import RawAction, RawDocument, RawRule, decode_document_untrusted
from pilot.plugins.policy.expression.durations import parse_duration_untrusted
from pilot.plugins.policy.expression.lexer import quoted
from pilot.plugins.policy.gojson import encode
from pilot.plugins.policy.timestamps import SECOND_NS

__all__ = [
    "GATE_EVENTS",
    "MAX_DOCUMENT_BYTES",
    "Action",
    "ActionType",
    "PolicyDocument",
    "Rule",
    "parse_document_untrusted",
]

MAX_DOCUMENT_BYTES: Final = 256 * 1024
"""The registry keeps 64 KiB; a document set by hand may be a little longer."""
VERSION: Final = 1
GATE_EVENTS: Final = frozenset({PolicyEventType.CONNECT, PolicyEventType.DIAL, PolicyEventType.DATAGRAM})
"""Events whose rules decide; of the others only the actions count."""


class ActionType(StrEnum):
    """What a rule can do."""

    ALLOW = "allow"
    DENY = "deny"
    TAG = "tag"
    EVICT = "evict"
    EVICT_WHERE = "evict_where"
    PRUNE = "prune"
    FILL = "fill"
    PRUNE_TRUST = "prune_trust"
    FILL_TRUST = "fill_trust"
    WEBHOOK = "webhook"
    LOG = "log"


_NEEDED: Final[Mapping[ActionType, tuple[str, ...]]] = {
    ActionType.EVICT_WHERE: ("match",),
    ActionType.PRUNE: ("count",),
    ActionType.FILL: ("count",),
    ActionType.PRUNE_TRUST: ("percent", "min"),
    ActionType.FILL_TRUST: ("target",),
    ActionType.WEBHOOK: ("event",),
    ActionType.LOG: ("message",),
}


@dataclass(frozen=True, slots=True)
class Action:
    """One action of a rule. `params` is None where the document has none; values are as JSON has them."""

    type: ActionType
    params: Mapping[str, Any] | None = None

    def text(self, name: str, default: str = "") -> str:
        """The parameter as text, `default` where it is missing or something else."""
        value = self.params.get(name) if self.params else None
        return value if isinstance(value, str) else default

    def number(self, name: str) -> float:
        """The parameter as a number, 0 where it is missing or something else."""
        value = self.params.get(name) if self.params else None
        return value if isinstance(value, int | float) and not isinstance(value, bool) else 0

    def texts(self, name: str) -> tuple[str, ...]:
        """The texts in the list that is the parameter; whatever else is in it is left out."""
        value = self.params.get(name) if self.params else None
        return tuple(item for item in value if isinstance(item, str)) if isinstance(value, list) else ()


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule: an event, a condition, actions."""

    name: str
    on: PolicyEventType
    match: str
    actions: tuple[Action, ...]


@dataclass(frozen=True, slots=True)
class PolicyDocument:
    """A valid document. Its expressions are not compiled yet."""

    rules: tuple[Rule, ...]
    default_allow: bool = True
    fail_closed: bool = True
    config: Mapping[str, Any] = field(default_factory=dict)
    _raw: RawDocument = field(default_factory=RawDocument, repr=False, compare=False)

    @property
    def cycle(self) -> str:
        """Time between two cycles as the document writes it, empty for none."""
        value: str = self.config.get("cycle", "")
        return value

    @property
    def cycle_seconds(self) -> float | None:
        """Time between two cycles, None where cycles only run when somebody asks for one."""
        return parse_duration_untrusted(self.cycle) / SECOND_NS if self.cycle else None

    @property
    def max_peers(self) -> int | None:
        """Peers that a bootstrap picks and a fill goes up to at most; None: all."""
        value = self.config.get("max_peers")
        if not isinstance(value, int | float) or isinstance(value, bool) or value < 1:
            return None
        return int(value)

    @property
    def events(self) -> frozenset[PolicyEventType]:
        """The events that rules are for."""
        return frozenset(rule.on for rule in self.rules)

    def encoded(self) -> bytes:
        """The document as Go writes it: its order of keys, parameters sorted, unknown keys gone."""
        raw = self._raw
        shown: dict[str, Any] = {"version": raw.version}
        if raw.default_verdict:
            shown["default_verdict"] = raw.default_verdict
        if raw.fail_closed is not None:
            shown["fail_closed"] = raw.fail_closed
        if raw.config:
            shown["config"] = _sorted(raw.config)
        shown["rules"] = [
            {"name": rule.name, "on": rule.on, "match": rule.match, "actions": [_shown(a) for a in rule.actions]}
            for rule in self.rules
        ]
        return encode(shown).encode()


def _shown(action: Action) -> dict[str, Any]:
    return {"type": action.type} | ({"params": _sorted(action.params)} if action.params else {})


def _sorted(value: Any) -> Any:
    """`value` with the keys of all its mappings in the order of their bytes, as Go writes maps."""
    if isinstance(value, Mapping):
        return {key: _sorted(value[key]) for key in sorted(value, key=str.encode)}
    return [_sorted(item) for item in value] if isinstance(value, Sequence) and not isinstance(value, str) else value


# ---- validation -----------------------------------------------------------------------------------------------------


def parse_document_untrusted(data: bytes) -> PolicyDocument:
    """The document in `data`, validated. Unknown keys are ignored at every level. Source: services.md 9.2, 9.3.

    Raises:
        InvalidValueError: no document that the official engine would take; its own words, beginning with `policy: `.
    """
    if len(data) > MAX_DOCUMENT_BYTES:
        raise _invalid(f"document too long (max {MAX_DOCUMENT_BYTES} bytes)")
    try:
        raw = decode_document_untrusted(data)
    except InvalidValueError as error:
        raise _invalid(f"invalid JSON: {error}") from None
    if raw.version != VERSION:
        raise _invalid(f"unsupported version {raw.version} (want {VERSION})")
    if raw.default_verdict not in ("", "allow", "deny"):
        raise _invalid(f'default_verdict must be "allow" or "deny" (got {quoted(raw.default_verdict)})')
    rules = _rules(list(raw.rules))
    config = raw.config or {}
    _check_cycle(config)
    return PolicyDocument(rules, raw.default_verdict != "deny", raw.fail_closed is not False, config, raw)


def _invalid(text: str) -> InvalidValueError:
    return InvalidValueError(f"policy: {text}")


def _rules(raws: list[RawRule]) -> tuple[Rule, ...]:
    if not raws:
        raise _invalid("at least one rule is required")
    rules: dict[str, Rule] = {}
    for index, raw in enumerate(raws):
        if not raw.name:
            raise _invalid(f"rule[{index}]: name is required")
        if raw.name in rules:
            raise _invalid(f"duplicate rule name {quoted(raw.name)}")
        rules[raw.name] = _rule(raw)
    return tuple(rules.values())


def _rule(raw: RawRule) -> Rule:
    name = quoted(raw.name)
    if raw.on not in PolicyEventType.__members__.values():
        raise _invalid(f"rule {name}: unknown event type {quoted(raw.on)}")
    if not raw.match:
        raise _invalid(f"rule {name}: match expression is required")
    actions = tuple(_action(action, f"rule {name} action[{index}]") for index, action in enumerate(raw.actions))
    if not actions:
        raise _invalid(f"rule {name}: at least one action is required")
    return Rule(raw.name, PolicyEventType(raw.on), raw.match, actions)


def _action(raw: RawAction, place: str) -> Action:
    if raw.type not in ActionType.__members__.values():
        raise _invalid(f"{place}: unknown action type {quoted(raw.type)}")
    kind, params = ActionType(raw.type), raw.params or {}
    if kind is ActionType.TAG and "add" not in params and "remove" not in params:
        raise _invalid(f"{place}: tag requires 'add' or 'remove' param")
    for name in _NEEDED.get(kind, ()):
        if name not in params:
            raise _invalid(f"{place}: {kind} requires '{name}' param")
    return Action(kind, raw.params)


def _check_cycle(config: Mapping[str, Any]) -> None:
    if "cycle" not in config:
        return
    if not isinstance(config["cycle"], str):
        raise _invalid("config.cycle must be a string")
    try:
        duration = parse_duration_untrusted(config["cycle"])
    except ValueError as error:
        raise _invalid(f"config.cycle: {error}") from None
    if duration < SECOND_NS:
        raise _invalid("config.cycle must be >= 1s")
