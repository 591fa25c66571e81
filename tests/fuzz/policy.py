"""Fuzz targets of network policies: documents a registry serves, state files, rules of managed networks."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pilot.coreapi import InvalidValueError, PolicyEventType
from pilot.plugins.policy import (
    EvaluationError,
    load_policy_in_thread_untrusted,
    load_policy_untrusted,
    parse_document_untrusted,
)
from pilot.plugins.policy.gojson import encode, parse_untrusted
from pilot.plugins.policy.managed import parse_rules_untrusted
from pilot.plugins.policy.peers import MAX_TAGS, read_table_untrusted
from pilot.plugins.policy.quick import CANNOT
from pilot.testing import run
from tests.fuzz.driver import Target

VECTORS: dict[str, Any] = json.loads((Path(__file__).parents[1] / "vectors" / "services.json").read_text())
VARIABLES: dict[str, Any] = {"port": 7, "peer_tags": ("x",), "local_tags": (), "peer_age_s": 1.5}
RULES = {"links": 2, "cycle": "1m", "prune": 1, "prune_by": "age", "fill": 1, "fill_how": "random", "grace": ""}


def run_policy(data: bytes) -> None:
    """A document is refused in one way, or written and read again it is the same; its rules can be asked."""
    check_json(data)
    document = loaded(lambda: parse_document_untrusted(data))
    if document is None:
        return
    written = document.encoded()
    again = parse_document_untrusted(written)
    assert again.encoded() == written
    assert again.rules == document.rules
    policy = loaded(lambda: load_policy_untrusted(data, "policy: parse", "policy: compile"))
    threaded = loaded(lambda: run(load_policy_in_thread_untrusted(data, "policy: parse", "policy: compile")))
    assert (threaded is None) is (policy is None)
    for event in PolicyEventType if policy is not None else ():
        with contextlib.suppress(EvaluationError):
            outcome = policy.evaluate(event, VARIABLES)
            assert (outcome.allow is None) is (event in ("join", "leave", "cycle"))
        for rule in policy.rules(event):
            with contextlib.suppress(*CANNOT):
                assert rule.quick is None or rule.quick(VARIABLES) is rule.matches(VARIABLES)


def loaded(load: Callable[[], Any]) -> Any:
    """What `load` returns, None when it refuses as it should."""
    try:
        return load()
    except InvalidValueError as error:
        refusal = str(error)
    assert refusal.startswith("policy: "), refusal
    return None


def check_json(data: bytes) -> None:
    """The reader takes what Python's takes, but for what only Go refuses: depth, NaN, a lone surrogate in bytes."""
    try:
        parse_untrusted(data)
        taken = True
    except InvalidValueError:
        taken = False
    try:
        text = data.decode()
        json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return
    if text.count("[") + text.count("{") <= 100:
        assert taken, "JSON was refused"


def _refuse(name: str) -> float:
    raise ValueError(name)


def policy_seeds() -> list[bytes]:
    documents = [case["doc"] for case in VECTORS["policy_documents"]]
    documents += [case["document"] for case in VECTORS["policy_validation"]["cases"]]
    documents += [case["expr_policy"] for case in VECTORS["policy_samples_in_circulation"]["documents"]]
    return [json.dumps(document).encode() for document in documents]


def run_policy_state(data: bytes) -> None:
    """A state file, or the rules of a managed network: one kind of error, bounded tags, the same when written again."""
    try:
        table = read_table_untrusted(data, 5, 1000.0, 1_764_000_000.0)
    except InvalidValueError:
        pass
    else:
        written = table.encoded()
        assert read_table_untrusted(written, 5, 1000.0, 1_764_000_000.0).encoded() == written
        for peer in table.peers.values():
            assert len(peer.tags(())) <= 2 * MAX_TAGS
            assert peer.age(1000.0) >= 0.0
    with contextlib.suppress(InvalidValueError, UnicodeDecodeError):
        assert parse_rules_untrusted(data.decode()).links >= 1


def policy_state_seeds() -> list[bytes]:
    return [
        json.dumps(VECTORS["policy_live"]["state_file_policy_5_json"], indent=2).encode(),
        encode({"network_id": 5, "peers": {}, "joined_at": "2026-11-22T09:39:14+01:00", "cycle_num": 4}).encode(),
        json.dumps(RULES).encode(),
    ]


TARGETS = (
    Target("policy", "documents of network policies", run_policy, policy_seeds),
    Target("policy_state", "state files of policies, rules of managed networks", run_policy_state, policy_state_seeds),
)
