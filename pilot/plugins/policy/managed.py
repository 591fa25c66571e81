"""Managed networks, the older engine: a bounded set of random peers, partly renewed each cycle (plugin policy, L11).

Source: services.md 9.9.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pilot.coreapi import InvalidValueError
from pilot.plugins.policy.expression.durations import parse_duration_untrusted
from pilot.plugins.policy.host import Member
from pilot.plugins.policy.peers import MAX_TRACKED_PEERS, PeerTable
from pilot.plugins.policy.timestamps import SECOND_NS
from pilot.plugins.policy.watch import RunnerTasks, Surroundings

__all__ = ["ManagedRules", "ManagedRunner", "parse_rules_untrusted"]

SHORTEST_CYCLE_SECONDS: Final = 60.0
PRUNE_ORDERS: Final = ("score", "age", "activity")


@dataclass(frozen=True, slots=True)
class ManagedRules:
    """The rules of a managed network."""

    links: int
    """Peers kept at most."""
    cycle: str
    """Time between two cycles, as written."""
    prune: int = 0
    """Peers dropped in each cycle."""
    prune_by: str = "score"
    """Which: there are no scores any more, and nobody's activity is recorded, so it is always the oldest."""
    fill: int = 0
    """Peers added in each cycle."""
    fill_how: str = "random"
    grace: str = ""
    """Shown, and without effect."""


def parse_rules_untrusted(rules: object) -> ManagedRules:
    """The rules in a registry's document, JSON text or object.

    Raises:
        InvalidValueError: they cannot be used; the message says which of them.
    """
    if isinstance(rules, str):
        try:
            rules = json.loads(rules)
        except (ValueError, RecursionError) as error:
            raise InvalidValueError(f"managed rules: {error}") from None
    if not isinstance(rules, Mapping):
        raise InvalidValueError("managed rules: a JSON object is required")
    links = _count_untrusted(rules, "links")
    if links < 1:
        raise InvalidValueError("managed rules: links must be at least 1")
    prune_by, fill_how = _text_untrusted(rules, "prune_by", "score"), _text_untrusted(rules, "fill_how", "random")
    if prune_by not in PRUNE_ORDERS or fill_how != "random":
        raise InvalidValueError("managed rules: prune_by must be score, age or activity, and fill_how random")
    cycle = _text_untrusted(rules, "cycle", "")
    try:
        seconds = parse_duration_untrusted(cycle) / SECOND_NS
    except ValueError as error:
        raise InvalidValueError(f"managed rules: cycle: {error}") from None
    if seconds < SHORTEST_CYCLE_SECONDS:
        raise InvalidValueError("managed rules: cycle must be >= 1m")
    prune, fill = _count_untrusted(rules, "prune"), _count_untrusted(rules, "fill")
    return ManagedRules(links, cycle, prune, prune_by, fill, fill_how, _text_untrusted(rules, "grace", ""))


def _count_untrusted(rules: Mapping[str, object], name: str) -> int:
    value = rules.get(name, 0)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MAX_TRACKED_PEERS:
        raise InvalidValueError(f"managed rules: {name} must be a number in 0..{MAX_TRACKED_PEERS}")
    return int(value)


def _text_untrusted(rules: Mapping[str, object], name: str, default: str) -> str:
    value = rules.get(name, default)
    if not isinstance(value, str):
        raise InvalidValueError(f"managed rules: {name} must be a text")
    return value or default


class ManagedRunner:
    """Keeps the peers of one managed network. It decides nothing at gates."""

    def __init__(self, rules: ManagedRules, table: PeerTable, around: Surroundings) -> None:
        self.network_id = table.network_id
        self.rules = rules
        self._table = table
        self._around = around
        self._candidates: list[int] = []
        seconds = parse_duration_untrusted(rules.cycle) / SECOND_NS
        self._tasks = RunnerTasks(self.network_id, around, self._take_members, self.force_cycle, seconds)

    def start(self) -> None:
        """Fills the list as soon as the members are known, and starts the cycles."""
        self._tasks.start()

    def stop(self) -> None:
        """Ends the tasks. May be repeated."""
        self._tasks.stop()

    def _take_members(self, members: Sequence[Member]) -> None:
        own = self._around.deps.identity.node_id
        self._candidates = sorted({member.node_id for member in members} - {own})
        known = frozenset(self._candidates)
        departed = [peer for peer in self._table.peers if peer not in known]
        for node_id in departed:
            del self._table.peers[node_id]
        filled = 0 if self._table.peers else self._fill(self.rules.links)
        if departed or filled:
            self._save()

    def force_cycle(self) -> dict[str, Any]:
        """Drops and adds as the rules say, now. Returns what it did, which `managed.cycle` tells too."""
        oldest = self._table.oldest_first()[: self.rules.prune]
        for peer in oldest:
            del self._table.peers[peer.node_id]
        filled = self._fill(self.rules.fill)
        self._save()
        result = {
            "network_id": self.network_id,
            "pruned": len(oldest),
            "filled": filled,
            "peers": len(self._table.peers),
        }
        self._around.deps.events.publish("managed.cycle", dict(result))
        return result

    def _fill(self, count: int) -> int:
        free = [node_id for node_id in self._candidates if node_id not in self._table.peers]
        count = max(0, min(count, self.rules.links - len(self._table.peers), len(free)))
        now, wall = self._around.clock(), self._around.wall()
        for node_id in self._around.random.sample(free, count):
            self._table.add(node_id, now, wall)
        return count

    def _save(self) -> None:
        self._around.store.save(f"managed_{self.network_id}.json", self._table)

    def status(self) -> dict[str, Any]:
        """Network, peers and rules, in the official shape."""
        rules = self.rules
        return {
            "network_id": self.network_id,
            "peers": len(self._table.peers),
            "max_links": rules.links,
            "cycle": rules.cycle,
            "prune": rules.prune,
            "prune_by": rules.prune_by,
            "fill": rules.fill,
            "fill_how": rules.fill_how,
            "grace": rules.grace,
            "joined_at": self._table.joined_at,
        }

    def peer_list(self) -> list[dict[str, Any]]:
        """The peers, oldest first."""
        return self._table.listed()
