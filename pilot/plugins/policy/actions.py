"""What the actions of rules do, and which of them an occasion honours (plugin policy, L11).

Source: services.md 9.6, both tables.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any, Final

from pilot.coreapi import EventBus, PilotError
from pilot.plugins.policy.compiled import Directive
from pilot.plugins.policy.document import ActionType
from pilot.plugins.policy.expression import ExpressionError, Program
from pilot.plugins.policy.host import Handshakes
from pilot.plugins.policy.peers import PeerTable, TrackedPeer

__all__ = [
    "AT_BOOTSTRAP",
    "AT_CALL",
    "AT_FLEET",
    "AT_GATE",
    "AT_JOIN",
    "AT_LEAVE",
    "AT_PEER",
    "Actor",
    "Budget",
    "Tally",
]

_ALWAYS: Final = frozenset({ActionType.LOG, ActionType.WEBHOOK})
_FLEET: Final = frozenset(
    {
        ActionType.EVICT_WHERE,
        ActionType.PRUNE,
        ActionType.FILL,
        ActionType.PRUNE_TRUST,
        ActionType.FILL_TRUST,
    }
)
AT_GATE: Final = _ALWAYS | {ActionType.TAG}
AT_PEER: Final = frozenset({ActionType.TAG})
AT_FLEET: Final = _ALWAYS | _FLEET
AT_BOOTSTRAP: Final = _ALWAYS | {ActionType.TAG, ActionType.DENY}
AT_JOIN: Final = AT_BOOTSTRAP | {ActionType.EVICT}
AT_LEAVE: Final = _ALWAYS | {ActionType.TAG}
AT_CALL: Final = _ALWAYS | _FLEET | {ActionType.TAG, ActionType.EVICT}
"""What `evaluate_actions` honours."""

COOLDOWN_SECONDS: Final = 60.0
"""An evicted or denied peer is not taken up again before."""
MAX_TRUST_CALLS: Final = 256
"""Handshakes or revocations that one action starts at most."""
NOTICES_PER_SECOND: Final = 100
"""Events and log lines of one runner: strangers can cause them. More are only counted."""
PASS_SECONDS: Final = 1.0
"""A pass over all peers ends after this, finished or not: the loop has other things to do."""
MAX_LOG_CHARS: Final = 1024
JUSTIFICATION: Final = "trust-decay policy"


@dataclass(slots=True)
class Tally:
    """What a list of actions came to."""

    denied: bool = False
    evicted: int = 0
    pruned: int = 0
    filled: int = 0
    pruned_trust: int = 0
    filled_trust: int = 0
    budget: Budget | None = None
    """The time that all of them may spend on looking at every peer."""


class Budget:
    """The time that one pass over all peers may take."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._end = clock() + PASS_SECONDS

    def spent(self) -> bool:
        """Whether it is used up."""
        return self._clock() >= self._end


@dataclass
class Actor:
    """Carries out actions for one network: on its peers, its log, its node's events and trust."""

    table: PeerTable
    events: EventBus
    log: logging.Logger
    clock: Callable[[], float]
    wall: Callable[[], float]
    random: Random
    handshakes: Callable[[], Handshakes | None]
    spawn: Callable[[str, Callable[[], Coroutine[Any, Any, None]]], object]
    max_peers: int | None = None
    candidates: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    """The members that are not this node, with their member tags, as of the last list."""
    suppressed: int = 0
    """Events and log lines left out because there were too many."""
    _cooling: dict[int, float] = field(default_factory=dict)
    _notices: float = NOTICES_PER_SECOND
    _noticed: float = 0.0

    # -- peers

    def is_cooling(self, node_id: int) -> bool:
        """Whether the peer was evicted or denied in the last 60 s."""
        until = self._cooling.get(node_id)
        if until is None:
            return False
        if self.clock() < until:
            return True
        del self._cooling[node_id]
        return False

    def evict(self, node_id: int) -> bool:
        """Takes the peer off the list for 60 s at least; False when it was not on it."""
        if self.table.peers.pop(node_id, None) is None:
            return False
        self._cooling[node_id] = self.clock() + COOLDOWN_SECONDS
        return True

    def add(self, node_id: int) -> TrackedPeer | None:
        """Takes a member up; None when there is no room."""
        peer = self.table.add(node_id, self.clock(), self.wall())
        if peer is not None:
            peer.set_member_tags(self.candidates.get(node_id, ()))
        return peer

    def forget_departed(self) -> None:
        """Forgets the cooldowns of nodes that are no members any more."""
        self._cooling = {node_id: until for node_id, until in self._cooling.items() if node_id in self.candidates}

    def trusted_count(self) -> int:
        """How many nodes this one trusts."""
        handshakes = self.handshakes()
        return 0 if handshakes is None else len(handshakes.trusted())

    # -- actions

    def carry_out(
        self, directives: Iterable[Directive], honoured: Collection[ActionType], node_id: int | None
    ) -> Tally:
        """Does what `directives` say, in order, as far as the occasion honours it, for the peer if it is about one."""
        tally = Tally()
        for directive in directives:
            kind = directive.action.type
            if kind in honoured:
                _DO[kind](self, directive, node_id, tally)
        return tally

    def publish(self, topic: str, payload: Mapping[str, Any]) -> None:
        """Publishes an event, if there were not too many of late."""
        if self._may_notice():
            self.events.publish(topic, payload)

    def _may_notice(self) -> bool:
        now = self.clock()
        self._notices = min(NOTICES_PER_SECOND, self._notices + (now - self._noticed) * NOTICES_PER_SECOND)
        self._noticed = now
        if self._notices < 1:
            self.suppressed += 1
            return False
        self._notices -= 1
        return True

    def _deny(self, directive: Directive, node_id: int | None, tally: Tally) -> None:
        if node_id is not None:
            tally.denied = True
            self.evict(node_id)

    def _tag(self, directive: Directive, node_id: int | None, tally: Tally) -> None:
        peer = None if node_id is None else self.table.peers.get(node_id)
        if peer is not None:
            peer.change_rule_tags(directive.action.texts("add"), directive.action.texts("remove"))

    def _evict(self, directive: Directive, node_id: int | None, tally: Tally) -> None:
        if node_id is not None:
            self.evict(node_id)

    def _evict_where(self, directive: Directive, node_id: int | None, tally: Tally) -> None:
        assert directive.program is not None  # the compiler made one
        tally.budget = tally.budget or Budget(self.clock)
        chosen = self._matching(directive.program, directive.rule, tally.budget)
        tally.evicted += sum(self.evict(node) for node in chosen)

    def _matching(self, condition: Program, rule: str, budget: Budget) -> list[int]:
        """The peers it holds for. Those it fails for are left alone, with one warning for all."""
        now = self.clock()
        chosen, failure = [], ""
        for peer in self.table.peers.values():
            variables = {
                "peer_id": peer.node_id,
                "peer_tags": peer.tags(()),
                "peer_age_s": peer.age(now),
                "last_seen": peer.last_seen,
            }
            try:
                if condition(variables):
                    chosen.append(peer.node_id)
            except ExpressionError as error:
                failure = failure or str(error)
            if budget.spent():
                failure = failure or f"it takes more than {PASS_SECONDS:g} s"
                break
        if failure:
            self.log.warning(
                "policy: evict_where (network %d, rule %s): %s", self.table.network_id, _line(rule), _line(failure)
            )
        return chosen

    def _prune(self, directive: Directive, node_id: int | None, tally: Tally) -> None:
        count = _count(directive.action.number("count"))
        order = self.table.oldest_first()
        if directive.action.text("by") == "activity":
            order.sort(key=lambda peer: peer.last_seen)
        for peer in order[:count]:
            del self.table.peers[peer.node_id]
            tally.pruned += 1

    def _fill(self, directive: Directive, node_id: int | None, tally: Tally) -> None:
        count = _count(directive.action.number("count"))
        if self.max_peers is not None:
            count = min(count, self.max_peers - len(self.table.peers))
        free = [n for n in self.candidates if n not in self.table.peers and not self.is_cooling(n)]
        for chosen in self.random.sample(free, max(0, min(count, len(free)))):
            tally.filled += self.add(chosen) is not None

    def _prune_trust(self, directive: Directive, node_id: int | None, tally: Tally) -> None:
        handshakes = self.handshakes()
        if handshakes is None:
            return
        trusted = sorted(handshakes.trusted(), key=lambda record: (record.approved_at, record.node_id))
        least = _count(directive.action.number("min"))
        percent = directive.action.number("percent")
        if len(trusted) <= least or percent <= 0:
            return
        count = min(max(1, int(len(trusted) * min(percent, 100) / 100)), len(trusted) - least, MAX_TRUST_CALLS)
        if directive.action.text("by") == "random":
            self.random.shuffle(trusted)
        chosen = [record.node_id for record in trusted[:count]]
        revoke = partial(handshakes.revoke, automatic=True)
        self.spawn("prune_trust", partial(self._each, chosen, revoke, "end the trust in"))
        tally.pruned_trust += count
        payload = {"network_id": self.table.network_id, "rule": directive.rule, "pruned": count}
        self.publish("policy.prune_trust", payload)

    def _fill_trust(self, directive: Directive, node_id: int | None, tally: Tally) -> None:
        handshakes = self.handshakes()
        if handshakes is None:
            return
        trusted = {record.node_id for record in handshakes.trusted()}
        missing = min(_count(directive.action.number("target")) - len(trusted), MAX_TRUST_CALLS)
        passed_over = trusted | frozenset(handshakes.distrusted())
        free = [n for n in self.candidates if n not in passed_over]
        chosen = self.random.sample(free, max(0, min(missing, len(free))))
        if not chosen:
            return

        async def request(node: int) -> None:
            if node not in handshakes.distrusted():  # the user may have revoked it while others were asked
                await handshakes.request(node, JUSTIFICATION)

        self.spawn("fill_trust", partial(self._each, chosen, request, "ask for the trust of"))
        tally.filled_trust += len(chosen)
        payload = {"network_id": self.table.network_id, "rule": directive.rule, "sent": len(chosen)}
        self.publish("policy.fill_trust", payload)

    async def _each(self, nodes: Sequence[int], call: Callable[[int], Coroutine[Any, Any, object]], what: str) -> None:
        for node in nodes:
            try:
                await call(node)
            except (PilotError, TimeoutError) as error:
                self.log.warning("network %d: cannot %s node %d: %s", self.table.network_id, what, node, error)

    def _webhook(self, directive: Directive, node_id: int | None, tally: Tally) -> None:
        data = directive.action.params.get("data") if directive.action.params else None
        own = {"network_id": self.table.network_id, "rule": directive.rule}
        payload = {**data, **own} if isinstance(data, dict) else own
        self.publish(f"policy.{directive.action.text('event')}", payload)

    def _log(self, directive: Directive, node_id: int | None, tally: Tally) -> None:
        if self._may_notice():
            level = logging.WARNING if directive.action.text("level") == "warn" else logging.INFO
            message, rule = _line(directive.action.text("message")), _line(directive.rule)
            self.log.log(level, "policy: %s (network %d, rule %s)", message, self.table.network_id, rule)


_DO: Final[Mapping[ActionType, Callable[[Actor, Directive, int | None, Tally], None]]] = {
    ActionType.DENY: Actor._deny,
    ActionType.TAG: Actor._tag,
    ActionType.EVICT: Actor._evict,
    ActionType.EVICT_WHERE: Actor._evict_where,
    ActionType.PRUNE: Actor._prune,
    ActionType.FILL: Actor._fill,
    ActionType.PRUNE_TRUST: Actor._prune_trust,
    ActionType.FILL_TRUST: Actor._fill_trust,
    ActionType.WEBHOOK: Actor._webhook,
    ActionType.LOG: Actor._log,
}


def _count(number: float) -> int:
    """A number of a document as a count: rounded down, not negative, and never more than there can be."""
    return int(min(max(number, 0), 1 << 31)) if math.isfinite(number) else 0


def _line(text: str) -> str:
    """A text of a document on one line of the log, and not too long."""
    short = text[:MAX_LOG_CHARS]
    return short if short.isprintable() else repr(short)
