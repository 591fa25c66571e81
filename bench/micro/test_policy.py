"""Gates of policies with ten rules of which the last decides, asked for each SYN and datagram; budget 5 us (bench)."""

from __future__ import annotations

import json
import logging
import random
import time
from types import SimpleNamespace
from typing import Any

import pytest

from pilot._fast.eventbus import EventBus
from pilot.plugins.policy import load_policy_untrusted
from pilot.plugins.policy.peers import PeerTable
from pilot.plugins.policy.runner import Runner
from pilot.plugins.policy.watch import Surroundings

USUAL = (
    "port == 1",
    "port >= 100 && port < 200",
    'has_tag(peer_tags, "blocked")',
    "port == 22 || port == 23",
    '"suspect" in peer_tags',
    "peer_age_s < 0.0",
    "members > 100000",
    'has_tag(local_tags, "closed") && port == 5',
    "port in [1, 2, 3]",
    'has_tag(peer_tags, "service")',
)
ELABORATE = (
    "port % 2 == 0 && port > 100",
    "len(peer_tags) > 5",
    'any(peer_tags, # startsWith "bad")',
    "port in 8000..9000",
    "let p = port; p == 1 || p == 2",
    'direction matches "^x"',
    "peer_age_s / 60 > 1e9",
    "(sender_rating ?? 1.0) < 0.5",
    "port == 5 ? true : false",
    'count(peer_tags, # == "service") == 1',
)
PEERS = 1000


def runner(conditions: tuple[str, ...], event: str) -> Runner:
    """A runner that tracks `PEERS` peers, without a node around it."""
    rules = [
        {"name": f"r{n}", "on": event, "match": condition, "actions": [{"type": "deny"}]}
        for n, condition in enumerate(conditions)
    ]
    policy = load_policy_untrusted(json.dumps({"version": 1, "rules": rules}).encode(), "parse", "compile")
    deps = SimpleNamespace(events=EventBus(), logger=logging.getLogger("bench"), identity=SimpleNamespace(node_id=1))
    host = SimpleNamespace(clock=time.monotonic, wall=time.time, random=random.Random(1))
    around: Any = Surroundings(deps, host, None, lambda: None, None)  # type: ignore[arg-type]
    table = PeerTable(5, 0)
    for node_id in range(2, 2 + PEERS):
        peer = table.add(node_id, time.monotonic(), time.time())
        assert peer is not None
        peer.set_member_tags(("service", "eu"))
    return Runner(policy, table, around)


@pytest.mark.parametrize("rules", ["usual", "elaborate"])
@pytest.mark.parametrize("event", ["connect", "datagram"])
def test_gate_of_ten_rules(benchmark: Any, event: str, rules: str) -> None:
    conditions = USUAL if rules == "usual" else ELABORATE
    if event == "connect":
        conditions = tuple("port == 4" if "direction" in each else each for each in conditions)
    gate = runner(conditions, event).evaluate_port_gate
    tags = ("public", "python")
    assert not benchmark(gate, event, 7, 77, 1200, "in", ("member",), tags)


def test_gate_without_rules_for_the_event(benchmark: Any) -> None:
    gate = runner(USUAL, "dial").evaluate_port_gate
    assert benchmark(gate, "connect", 7, 77, 0, "in", (), ())
