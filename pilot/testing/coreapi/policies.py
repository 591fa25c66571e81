"""What every `PolicyManager` and `PolicyRunner` has to do (testing). A check takes a manager without runners."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any, Final

from pilot._fast.errors import InvalidValueError
from pilot.coreapi import PolicyActivity, PolicyEventType, PolicyManager, PolicyRunner
from pilot.testing.coreapi.expecting import expecting

__all__ = ["POLICY_MANAGER_CHECKS"]

Check = Callable[[PolicyManager], Awaitable[None]]

NETWORK: Final = 7
STRANGER: Final = 0x00FF_FFFE
"""A node that no network has."""


def document(*rules: dict[str, Any], **more: Any) -> bytes:
    return json.dumps({"version": 1, "rules": list(rules), **more}).encode()


DENY_PORT_23: Final = document(
    {"name": "no telnet", "on": "connect", "match": "port == 23", "actions": [{"type": "deny"}]}
)
ALLOW_80_ONLY: Final = document(
    {"name": "web", "on": "dial", "match": "port == 80", "actions": [{"type": "allow"}]}, default_verdict="deny"
)


def allows(runner: PolicyRunner, event: PolicyEventType | str, port: int, size: int = 0, direction: str = "in") -> bool:
    return runner.evaluate_port_gate(event, port, STRANGER, size, direction, [], [])


async def starts_gets_lists_and_stops(manager: PolicyManager) -> None:
    assert isinstance(manager, PolicyManager), f"{manager!r} lacks a member of PolicyManager"
    assert (manager.get(NETWORK), manager.all()) == (None, []), "the manager has runners already"
    runner = manager.start(NETWORK, DENY_PORT_23)
    assert isinstance(runner, PolicyRunner), f"{runner!r} lacks a member of PolicyRunner"
    assert runner.network_id == NETWORK, f"started for network {NETWORK}, it says {runner.network_id}"
    assert manager.get(NETWORK) is runner, "get gives another runner"
    assert manager.all() == [runner], "all does not list it"
    manager.all().clear()
    assert manager.all() == [runner], "all gives the manager's own list away"
    manager.stop(NETWORK)
    manager.stop(NETWORK)
    runner.stop()
    assert (manager.get(NETWORK), manager.all()) == (None, []), "a stopped runner is still there"


async def a_new_policy_replaces_the_old(manager: PolicyManager) -> None:
    first = manager.start(NETWORK, DENY_PORT_23)
    second = manager.start(NETWORK, ALLOW_80_ONLY)
    assert first is not second, "the old runner came back"
    assert manager.all() == [second], "two runners for one network"
    other = manager.start(NETWORK + 1, DENY_PORT_23)
    assert {runner.network_id for runner in manager.all()} == {NETWORK, NETWORK + 1}, "a network is missing"
    manager.stop_all()
    manager.stop_all()
    assert manager.all() == [], "stop_all left runners"
    assert other.network_id == NETWORK + 1, "a stopped runner forgot its network"


async def a_bad_document_is_refused_and_the_old_one_stays(manager: PolicyManager) -> None:
    runner = manager.start(NETWORK, DENY_PORT_23)
    bad = {
        b"{": "no JSON",
        document(): "no rules",
        document(
            {"name": "a", "on": "connect", "match": "port ==", "actions": [{"type": "deny"}]}
        ): "a broken expression",
        document({"name": "a", "on": "connect", "match": "port", "actions": [{"type": "deny"}]}): "no bool",
        document({"name": "a", "on": "knock", "match": "true", "actions": [{"type": "deny"}]}): "an unknown event",
        DENY_PORT_23.replace(b'"version": 1', b'"version": 2'): "another version",
    }
    for text, what in bad.items():
        with expecting(InvalidValueError, what=f"starting a policy with {what}"):
            manager.start(NETWORK, text)
        assert manager.get(NETWORK) is runner, f"{what}: the old runner is gone"
    manager.stop_all()


async def gates_follow_the_rules(manager: PolicyManager) -> None:
    runner = manager.start(NETWORK, DENY_PORT_23)
    assert not allows(runner, PolicyEventType.CONNECT, 23), "port 23 is denied by a rule"
    assert not allows(runner, "connect", 23), "a plain string is no event type"
    assert allows(runner, PolicyEventType.CONNECT, 24), "no rule is about port 24"
    assert allows(runner, PolicyEventType.DIAL, 23), "the rule is about another event"
    assert allows(runner, PolicyEventType.DATAGRAM, 23, 100, "out"), "the rule is about another event"
    strict = manager.start(NETWORK, ALLOW_80_ONLY)
    assert allows(strict, PolicyEventType.DIAL, 80), "port 80 is allowed by a rule"
    assert not allows(strict, PolicyEventType.DIAL, 81), "the default verdict is deny"
    manager.stop_all()


async def an_evaluation_that_fails_denies_unless_told_otherwise(manager: PolicyManager) -> None:
    rule = {"name": "a", "on": "connect", "match": "sender_rating > 1.0", "actions": [{"type": "allow"}]}
    assert not allows(manager.start(NETWORK, document(rule)), "connect", 1), "an absent variable did not deny"
    open_runner = manager.start(NETWORK, document(rule, fail_closed=False))
    assert allows(open_runner, "connect", 1), "fail_closed false did not allow"
    manager.stop_all()


async def actions_status_and_document(manager: PolicyManager) -> None:
    tag = {"name": "t", "on": "join", "match": "true", "actions": [{"type": "tag", "params": {"add": ["new"]}}]}
    runner = manager.start(NETWORK, document(tag))
    runner.evaluate_actions(PolicyEventType.JOIN, {"peer_id": STRANGER, "network_id": NETWORK, "members": 1})
    assert not runner.has_member(STRANGER), "an action added a peer"
    assert runner.peer_list() == [], f"a network without members lists {runner.peer_list()}"
    status = runner.status()
    assert (status["network_id"], status["peers"]) == (NETWORK, 0), f"status says {status}"
    cycle = runner.force_cycle()
    assert cycle["network_id"] == NETWORK, f"the cycle says {cycle}"
    json.dumps([status, cycle, runner.peer_list()])  # all of it is JSON
    runner.reconcile_now()
    held = json.loads(runner.policy_json())
    assert (held["version"], held["rules"][0]["name"]) == (1, "t"), f"the document reads {held}"
    manager.load_persisted()
    manager.stop_all()


async def tells_when_it_has_runners(manager: PolicyManager) -> None:
    """Of a manager that offers `PolicyActivity`; others need not."""
    if not isinstance(manager, PolicyActivity):
        return
    told: list[int] = []
    manager.on_activity(lambda: told.append(len(manager.all())))
    manager.start(NETWORK, DENY_PORT_23)
    assert told == [1], f"a first runner came, and the numbers told are {told}"
    manager.start(NETWORK, ALLOW_80_ONLY)
    manager.start(NETWORK + 1, ALLOW_80_ONLY)
    manager.stop(NETWORK)
    assert 0 not in told, "runners were left, and none was told"
    told.clear()
    manager.stop(NETWORK + 1)
    assert told == [0], f"the last runner went, and the numbers told are {told}"
    manager.start(NETWORK, DENY_PORT_23)
    manager.stop_all()
    assert told == [0, 1, 0], f"the numbers told are {told}"


POLICY_MANAGER_CHECKS: Final[tuple[Check, ...]] = (
    starts_gets_lists_and_stops,
    a_new_policy_replaces_the_old,
    a_bad_document_is_refused_and_the_old_one_stays,
    gates_follow_the_rules,
    an_evaluation_that_fails_denies_unless_told_otherwise,
    actions_status_and_document,
    tells_when_it_has_runners,
)
"""Run each with a manager that has no runner; networks 7 and 8 are used and have no members."""
