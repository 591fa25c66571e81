"""Gates: variables, side effects, failures, floods; ten rules cost microseconds (bench/micro has the figures)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from pilot.coreapi import PolicyEventType
from pilot.plugins.policy.runner import Runner
from tests.plugins.policy.documents import document, rule
from tests.plugins.policy.hosts import World, in_world


def ask(runner: Runner, event: str = "connect", port: int = 7, peer: int = 1, **more: Any) -> bool:
    given = {"size": 0, "direction": "in", "local_tags": (), "node_tags": ()} | more
    return runner.evaluate_port_gate(
        event, port, peer, given["size"], given["direction"], given["local_tags"], given["node_tags"]
    )


def test_captured_run_of_a_datagram_tag_and_a_connect() -> None:
    """vectors:policy_live, the first four cases."""

    async def scenario(world: World) -> None:
        world.members(1, 3, 5, n1=["service"])
        runner = await world.started(
            document(rule("deny-1001", "connect", "port == 1001", ("webhook", {"event": "blocked"}), "deny"))
        )
        assert not ask(runner, port=1001)
        assert ask(runner, port=1002)
        assert world.events.take() == [("policy.blocked", {"network_id": 5, "rule": "deny-1001"})]

        runner = await world.started(document(rule("rate", "dial", "sender_rating < 0.5", "deny")))
        assert not ask(runner, "dial", direction="out")
        text = 'policy: rule "rate" eval: invalid operation: <nil> < float64 (1:15)\n | sender_rating < 0.5\n | '
        text += "..............^"
        assert world.events.take() == [("policy.eval_error", {"error": text, "event": "dial", "network_id": 5})]

        big = 'direction == "in" && has_tag(peer_tags, "service") && size > 5'
        runner = await world.started(document(rule("a", "datagram", big, ("tag", {"add": ["big"]}), "deny")))
        assert ask(runner, PolicyEventType.DATAGRAM, 5000, size=5)
        assert ask(runner, PolicyEventType.DATAGRAM, 5000, size=11, direction="out")
        assert not ask(runner, PolicyEventType.DATAGRAM, 5000, size=11)

        everything = (
            'has_tag(peer_tags, "big") && has_tag(local_tags, "worker") && port == 1002 && peer_age_s >= 0.0'
            " && members == 3"
        )
        runner = await world.started(document(rule("b", "connect", everything, "deny")))
        assert not ask(runner, port=1002, local_tags=["worker"])
        assert ask(runner, port=1002)
        assert ask(runner, port=1002, peer=3, local_tags=["worker"])

    in_world(scenario)


def test_tags_in_order_each_once() -> None:
    async def scenario(world: World) -> None:
        world.members(1, n1=["b", "c"])
        runner = await world.started(
            document(
                rule("t", "connect", "port == 1", ("tag", {"add": ["d", "a", "d", 5, None]})),
                rule("u", "connect", "port == 2", ("tag", {"add": ["e"], "remove": ["d", "e"]})),
                rule(
                    "v",
                    "connect",
                    "port == 3",
                    ("tag", {"add": "no list"}),
                    ("evict_where", {"match": "true"}),
                    "evict",
                ),
                rule("w", "connect", 'port == 9 && join(peer_tags, ",") == "a,b,c,d"', "deny"),
                rule("x", "connect", 'port == 8 && join(peer_tags, ",") == "a,b,c"', "deny"),
                rule("y", "connect", 'port == 7 && join(peer_tags, ",") == "a,b"', "deny"),
            )
        )
        node_tags = ("a", "b")
        assert ask(runner, port=1, node_tags=node_tags)
        assert not ask(runner, port=9, node_tags=node_tags)
        assert ask(runner, port=9, node_tags=())
        assert ask(runner, port=2, node_tags=node_tags)
        assert not ask(runner, port=8, node_tags=node_tags)
        assert ask(runner, port=3, node_tags=node_tags)
        assert runner.has_member(1)
        assert not ask(runner, port=7, peer=77, node_tags=node_tags), "an untracked peer has the tags of its node"
        assert ask(runner, port=1, peer=77)
        assert not runner.has_member(77)

    in_world(scenario)


def test_age_and_the_untracked() -> None:
    async def scenario(world: World) -> None:
        world.members(1)
        runner = await world.started(document(rule("old", "connect", "peer_age_s >= 60", "deny")))
        assert ask(runner)
        await asyncio.sleep(61)
        assert not ask(runner)
        assert ask(runner, peer=9)

    in_world(scenario)


@pytest.mark.parametrize(
    ("fail_closed", "admitted", "events"), [(True, False, ["policy.eval_error"]), (False, True, [])]
)
def test_a_failing_rule(fail_closed: bool, admitted: bool, events: list[str]) -> None:
    async def scenario(world: World) -> None:
        world.members(1)
        runner = await world.started(
            document(rule("r", "connect", "port % (port - 7) == 0", "allow"), fail_closed=fail_closed)
        )
        assert ask(runner) is admitted
        assert world.topics() == events
        assert ask(runner, port=8)

    in_world(scenario)


def test_default_verdicts_and_events_without_rules() -> None:
    async def scenario(world: World) -> None:
        world.members(1)
        runner = await world.started(document(rule("r", "connect", "port == 1", "allow"), default_verdict="deny"))
        assert ask(runner, port=1)
        assert not ask(runner, port=2)
        assert not ask(runner, "dial", port=1)
        assert not ask(runner, "nonsense", port=1)

    in_world(scenario)


def test_strangers_flood_neither_bus_nor_log(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(world: World) -> None:
        world.members(1)
        runner = await world.started(
            document(
                rule(
                    "r", "connect", "true", ("webhook", {"event": "e"}), ("log", {"message": "knock", "level": "warn"})
                )
            )
        )
        for _ in range(1000):
            assert ask(runner)
        knocks = sum("knock" in record.message for record in caplog.records)
        assert knocks + len(world.topics()) == 100
        assert world.counters["policy_notices_suppressed"]() == 1900
        await asyncio.sleep(1)
        assert ask(runner)
        assert world.topics() == ["policy.e"]

    in_world(scenario)


def test_log_levels_and_odd_parameters(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(world: World) -> None:
        caplog.set_level("INFO", "pilot.plugin.policy")
        world.members(1)
        data = {"rule": "mine", "network_id": "x", "n": {"b": [1, 2.5]}}
        runner = await world.started(
            document(
                rule(
                    "r",
                    "connect",
                    "true",
                    ("log", {"message": "loud", "level": "warn"}),
                    ("log", {"message": "quiet", "level": 5}),
                    ("log", {"message": 5}),
                    ("log", {"message": "two\nlines"}),
                    ("webhook", {"event": 5}),
                    ("webhook", {"event": "e", "data": [1]}),
                    ("webhook", {"event": "e", "data": data}),
                )
            )
        )
        before = runner.policy_json()
        assert ask(runner)
        lines = [(each.levelname, each.message) for each in caplog.records if each.message.startswith("policy:")]
        assert lines == [
            ("WARNING", "policy: loud (network 5, rule r)"),
            ("INFO", "policy: quiet (network 5, rule r)"),
            ("INFO", "policy:  (network 5, rule r)"),
            ("INFO", "policy: 'two\\nlines' (network 5, rule r)"),
        ]
        own = {"network_id": 5, "rule": "r"}
        assert world.events.take() == [("policy.", own), ("policy.e", own), ("policy.e", {"n": data["n"], **own})]
        assert runner.policy_json() == before, "the document is not changed by what it does"

    in_world(scenario)
