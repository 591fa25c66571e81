"""The policy of one network at work: gates, members coming and going, cycles (plugin policy, L11).

Source: services.md 9.4, 9.6 and 9.8.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from pilot.coreapi import PolicyEventType
from pilot.plugins.policy import actions
from pilot.plugins.policy.actions import Actor, Budget, Tally
from pilot.plugins.policy.compiled import CompiledPolicy, Directive, EvaluationError
from pilot.plugins.policy.document import ActionType
from pilot.plugins.policy.host import Member
from pilot.plugins.policy.peers import PeerTable
from pilot.plugins.policy.watch import RunnerTasks, Surroundings

__all__ = ["Runner"]

CHANGES_PEERS: Final = frozenset({ActionType.TAG})
"""Actions at a gate after which the state is saved."""


class Runner:
    """Implements `pilot.coreapi.PolicyRunner`. Made and started by the manager; everything belongs to its loop."""

    def __init__(self, policy: CompiledPolicy, table: PeerTable, around: Surroundings) -> None:
        document = policy.document
        self.network_id = table.network_id
        self.table = table
        self._policy = policy
        self._document = document
        self._around = around
        self._bootstrapped = False
        self._tasks = RunnerTasks(self.network_id, around, self._take_members, self.force_cycle, document.cycle_seconds)
        self._actor = Actor(
            table,
            around.deps.events,
            around.deps.logger,
            around.clock,
            around.wall,
            around.random,
            around.handshakes,
            self._tasks.spawn,
            document.max_peers,
        )
        # Variables of gates, one mapping for all calls: an evaluation neither keeps nor changes it.
        self._stream: dict[str, object] = {"network_id": self.network_id}
        self._datagram: dict[str, object] = {"network_id": self.network_id}

    @property
    def suppressed(self) -> int:
        """Events and log lines left out because there were too many."""
        return self._actor.suppressed

    def start(self) -> None:
        """Starts looking after the members, and the cycles if the document has some."""
        self._tasks.start()

    def stop(self) -> None:
        """Ends the runner's tasks. May be repeated."""
        self._tasks.stop()

    # -- gates

    def has_member(self, peer_node_id: int) -> bool:
        """Whether the peer is tracked."""
        return peer_node_id in self.table.peers

    def evaluate_port_gate(
        self,
        event_type: PolicyEventType | str,
        port: int,
        peer_node_id: int,
        payload_size: int,
        direction: str,
        local_tags: Sequence[str],
        node_info_tags: Sequence[str],
    ) -> bool:
        """The verdict of the rules, their actions done. See `pilot.coreapi.PolicyRunner`."""
        policy = self._policy
        if not policy.has_rules(event_type):
            return self._document.default_allow
        if event_type == "datagram":
            variables = self._datagram
            variables["size"] = payload_size
            variables["direction"] = direction
        else:
            variables = self._stream
        peers = self.table.peers
        peer = peers.get(peer_node_id)
        if peer is None:
            tags: tuple[str, ...] = self._actor.candidates.get(peer_node_id, ())
            variables["peer_tags"] = tuple(dict.fromkeys((*node_info_tags, *tags)))
            variables["peer_age_s"] = 0.0
        else:
            variables["peer_tags"] = peer.tags(tuple(node_info_tags))
            variables["peer_age_s"] = peer.age(self._around.clock())
        variables["peer_id"] = peer_node_id
        variables["port"] = port
        variables["members"] = len(peers)
        variables["local_tags"] = tuple(local_tags)
        try:
            outcome = policy.evaluate(event_type, variables)
        except EvaluationError as error:
            self._report(event_type, error)
            return not self._document.fail_closed
        if outcome.acts:
            self._act_at_gate(outcome.directives, peer_node_id)
        return self._document.default_allow if outcome.allow is None else outcome.allow

    def _act_at_gate(self, directives: Sequence[Directive], node_id: int) -> None:
        self._actor.carry_out(directives, actions.AT_GATE, node_id)
        if any(directive.action.type in CHANGES_PEERS for directive in directives):
            self._save()

    def evaluate_actions(self, event_type: PolicyEventType | str, ctx: Mapping[str, Any]) -> None:
        """Runs the actions of the rules for `event_type` over the variables in `ctx`; verdicts are ignored."""
        node_id = ctx.get("peer_id")
        self._run(event_type, ctx, actions.AT_CALL, node_id if isinstance(node_id, int) else None)
        self._save()

    # -- members

    def reconcile_now(self) -> None:
        """Compares the tracked peers with the network's members soon."""
        self._tasks.reconcile_now()

    def _take_members(self, members: Iterable[Member]) -> None:
        own = self._around.deps.identity.node_id
        listed = {member.node_id: tuple(member.member_tags) for member in members}
        count = len(listed)
        listed.pop(own, None)
        self._actor.candidates = listed
        self._actor.forget_departed()
        retagged = [peer.set_member_tags(listed[node]) for node, peer in self.table.peers.items() if node in listed]
        if not self._bootstrapped:
            self._bootstrapped = True
            self._bootstrap(listed, count)
        elif not self._reconcile(listed, count) and not any(retagged):
            return
        self._save()

    def _bootstrap(self, listed: Mapping[int, tuple[str, ...]], count: int) -> None:
        chosen = list(listed)
        self._around.random.shuffle(chosen)
        budget = self._budget()
        for node_id in chosen[: self._document.max_peers]:
            if budget.spent():
                return
            self._join(node_id, count, actions.AT_BOOTSTRAP)

    def _reconcile(self, listed: Mapping[int, tuple[str, ...]], count: int) -> bool:
        """Whether anybody came or went. Whom there is no time for is left for the next time."""
        gone = [node_id for node_id in self.table.peers if node_id not in listed]
        new = [node_id for node_id in listed if self._may_join(node_id)]
        budget = self._budget()
        for node_id in gone:
            if budget.spent():
                break
            self._leave(node_id)
        for node_id in new:
            if budget.spent():
                break
            if self._join(node_id, count, actions.AT_JOIN).denied:
                self._actor.publish("policy.join_denied", {"network_id": self.network_id, "peer_id": node_id})
        return bool(gone or new)

    def _budget(self) -> Budget:
        return Budget(self._around.clock)

    def _may_join(self, node_id: int) -> bool:
        """Whether a member is not tracked, and not in its minute after an eviction."""
        return node_id not in self.table.peers and not self._actor.is_cooling(node_id)

    def _join(self, node_id: int, count: int, honoured: frozenset[ActionType]) -> Tally:
        """Takes a member up, if it may join."""
        if not self._may_join(node_id) or self._actor.add(node_id) is None:
            return Tally()
        variables = {"peer_id": node_id, "network_id": self.network_id, "members": count}
        return self._run(PolicyEventType.JOIN, variables, honoured, node_id)

    def _leave(self, node_id: int) -> None:
        variables = {"peer_id": node_id, "network_id": self.network_id}
        self._run(PolicyEventType.LEAVE, variables, actions.AT_LEAVE, node_id)
        self.table.peers.pop(node_id, None)

    # -- cycles

    def force_cycle(self) -> dict[str, Any]:
        """Runs a cycle now: the rules once for every peer, then once for all of them. Returns what it did."""
        self.table.cycle_num += 1
        shared = {
            "network_id": self.network_id,
            "members": len(self.table.peers),
            "peer_count": len(self.table.peers),
            "cycle_num": self.table.cycle_num,
            "trusted_count": self._actor.trusted_count(),
        }
        failed = self._cycle_peers(shared)
        tally = self._run(PolicyEventType.CYCLE, shared, actions.AT_FLEET, None, quiet=failed)
        result = {
            "network_id": self.network_id,
            "cycle_num": self.table.cycle_num,
            "peers": len(self.table.peers),
            "evicted": tally.evicted,
            "pruned": tally.pruned,
            "filled": tally.filled,
            "pruned_trust": tally.pruned_trust,
            "filled_trust": tally.filled_trust,
        }
        self._save()
        self._around.deps.events.publish("policy.cycle", dict(result))
        return result

    def _cycle_peers(self, shared: Mapping[str, object]) -> bool:
        """The pass over every peer; True when an evaluation failed, which is reported once."""
        if not self._policy.has_rules(PolicyEventType.CYCLE):
            return False
        failed, now, budget = False, self._around.clock(), self._budget()
        for peer in list(self.table.peers.values()):
            variables = {
                **shared,
                "peer_id": peer.node_id,
                "peer_tags": peer.tags(()),
                "peer_age_s": peer.age(now),
            }
            try:
                outcome = self._policy.evaluate(PolicyEventType.CYCLE, variables)
            except EvaluationError as error:
                if not failed:
                    self._report(PolicyEventType.CYCLE, error)
                failed = True
            else:
                self._actor.carry_out(outcome.directives, actions.AT_PEER, peer.node_id)
            if budget.spent():
                self._around.deps.logger.warning("a cycle of network %d takes too long", self.network_id)
                break
        return failed

    # -- evaluation

    def _run(
        self,
        event: str,
        variables: Mapping[str, Any],
        honoured: frozenset[ActionType],
        node_id: int | None,
        *,
        quiet: bool = False,
    ) -> Tally:
        """Evaluates an action event and does what is honoured of it; nothing at all when an expression fails."""
        try:
            outcome = self._policy.evaluate(event, variables)
        except EvaluationError as error:
            if not quiet:
                self._report(event, error)
            return Tally()
        return self._actor.carry_out(outcome.directives, honoured, node_id)

    def _report(self, event: str, error: EvaluationError) -> None:
        if self._document.fail_closed:
            payload = {"network_id": self.network_id, "event": str(event), "error": str(error)}
            self._actor.publish("policy.eval_error", payload)

    def _save(self) -> None:
        self._around.store.save(f"policy_{self.network_id}.json", self.table)

    # -- what is shown

    def status(self) -> dict[str, Any]:
        """Network, peer count, cycle number and settings."""
        shown: dict[str, Any] = {
            "network_id": self.network_id,
            "peers": len(self.table.peers),
            "cycle_num": self.table.cycle_num,
            "joined_at": self.table.joined_at,
            "engine": "policy",
        }
        if self._document.cycle:
            shown["cycle"] = self._document.cycle
        if self._document.max_peers is not None:
            shown["max_peers"] = self._document.max_peers
        return shown

    def peer_list(self) -> list[dict[str, Any]]:
        """The tracked peers, oldest first."""
        return self.table.listed()

    def policy_json(self) -> bytes:
        """The document as held in memory, in Go's order of keys."""
        return self._document.encoded()
