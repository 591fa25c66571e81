"""Policies: the official tool and ours judge the same documents alike; state files pass from one to the other."""

from __future__ import annotations

import asyncio
import copy
import json
import random
from pathlib import Path
from typing import Any

from pilot.coreapi import InvalidValueError
from pilot.plugins.policy import EvaluationError, load_policy_untrusted
from pilot.plugins.policy.peers import read_table_untrusted
from tests.interop.ipc import eventually
from tests.interop.netns import Namespace
from tests.interop.official import Programs
from tests.interop.probe import registry_call
from tests.interop.rendezvous import ADMIN_TOKEN

VECTORS: dict[str, Any] = json.loads((Path(__file__).parents[1] / "vectors" / "services.json").read_text())
GENERATED = 1000
SEED = 20_260
# A process per document, two at a time; the shell costs less than a subprocess call of ours each.
LOOP = """
    judge() { for file in "$@"; do "$ctl" --json extras policy validate --file "$file" > "$file.out" 2>&1; done; }
    judge *[02468].json & judge *[13579].json & wait
"""


def official_verdicts(documents: list[bytes], programs: Programs, namespace: Namespace, directory: Path) -> list[Any]:
    """What the official tool prints for each: its summary, or the text of its complaint."""
    for number, document in enumerate(documents):
        (directory / f"{number}.json").write_bytes(document)
    environment = (f"HOME={directory}", f"ctl={programs.ctl}")
    namespace.run("env", *environment, "sh", "-c", f"cd {directory}\n{LOOP}")
    answers = [json.loads((directory / f"{number}.json.out").read_bytes()) for number in range(len(documents))]
    return [answer["data"] if answer["status"] == "ok" else answer["message"] for answer in answers]


def our_verdict(document: bytes) -> Any:
    """The same by ours."""
    try:
        loaded = load_policy_untrusted(document, "validation failed", "compilation failed").document
    except InvalidValueError as error:
        return str(error)
    return {"valid": True, "version": 1, "rules": len(loaded.rules), "events": dict.fromkeys(loaded.events, True)}


def compare(documents: list[bytes], programs: Programs, namespace: Namespace, directory: Path) -> int:
    """Fails with every difference; returns how many are valid."""
    theirs = official_verdicts(documents, programs, namespace, directory)
    ours = [our_verdict(document) for document in documents]
    differences = [(d, t, o) for d, t, o in zip(documents, theirs, ours, strict=True) if t != o]
    assert not differences, "\n".join(f"{d!r}\n  official: {t!r}\n  ours: {o!r}" for d, t, o in differences[:20])
    return sum(isinstance(each, dict) for each in theirs)


# ---- generated documents --------------------------------------------------------------------------------------------

EVENTS = ("connect", "dial", "datagram", "join", "leave", "cycle")
CONDITIONS = (
    "true", "port == 7", "port == 7 && has_tag(peer_tags, 'x')", "peer_id > 0", "network_id in [1, 2]",
    "cycle_num % 2 == 0", "members > 3", "size > 5 && direction == 'in'", "peer_age_s > duration('1h')", "prt == 1",
    "port ==", "port == 'x'", "1", "", " ", "last_seen > 0", "local_tags == nil", "len(peer_tags)", "nil", "\u00e9",
)  # fmt: skip
JUNK = (None, True, False, 0, -1, 1.5, 1e400, 10**20, "", "x", "allow", [], {}, [1], {"a": 1}, ["x", None], [[]])
CYCLES = (
    "10s",
    "24h",
    "1h30m",
    "1m",
    "999ms",
    "1d",
    "",
    "5",
    "-5s",
    "+1.5h",
    "x",
    "1\u00b5s",
    ".s",
    "0",
    " 1s",
    "\u00e9\n",
)
PARAMETERS: dict[str, dict[str, Any]] = {
    "allow": {},
    "deny": {},
    "evict": {},
    "tag": {"add": ["x"], "remove": ["y"]},
    "evict_where": {"match": "peer_id == 1"},
    "prune": {"count": 1, "by": "age"},
    "fill": {"count": 2},
    "prune_trust": {"percent": 10, "min": 5, "by": "random"},
    "fill_trust": {"target": 10},
    "webhook": {"event": "e", "data": {"k": [1, "v"]}},
    "log": {"message": "m", "level": "warn"},
}


class Generator:
    """Documents that are mostly well-formed, each with a few things wrong, decided by one number."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def document(self) -> bytes:
        value: Any = {
            "version": 1,
            "rules": [self.rule(n) for n in range(self.random.choice((0, 1, 1, 1, 1, 2, 2, 2, 3)))],
        }
        if self.chance(0.3):
            value["default_verdict"] = self.random.choice(("allow", "deny", "allow", "deny", "", "maybe", 'q"\u200b'))
        if self.chance(0.2):
            value["fail_closed"] = self.random.choice((True, False, None))
        if self.chance(0.4):
            value["config"] = {"max_peers": 5 if self.chance(0.5) else self.junk()}
            if self.chance(0.5):
                value["config"]["cycle"] = self.random.choice(CYCLES)
        if self.chance(0.2):
            self.damage(value)
        text = json.dumps(value, ensure_ascii=self.chance(0.5))
        if self.chance(0.2):
            text = self.repeat_key(text)
        data = text.replace("Infinity", "1e400").encode("utf-8", "surrogatepass")
        return self.scratch(data) if self.chance(0.15) else data

    def chance(self, share: float) -> bool:
        return self.random.random() < share

    def junk(self) -> Any:
        return copy.deepcopy(self.random.choice(JUNK))

    def rule(self, number: int) -> dict[str, Any]:
        rule: dict[str, Any] = {
            "name": self.random.choice(("r1", "", "n\u00e9\u2028\t")) if self.chance(0.1) else f"r{number}",
            "on": self.random.choice(EVENTS),
            "match": self.random.choice(CONDITIONS) if self.chance(0.3) else "true",
            "actions": [self.action() for _ in range(self.random.choice((1, 1, 1, 1, 1, 1, 2, 2, 3, 0)))],
        }
        if self.chance(0.05):
            rule["on"] = self.random.choice(("Connect", "syn", "", "cycle "))
        if self.chance(0.05):
            del rule[self.random.choice(list(rule))]
        return rule

    def action(self) -> dict[str, Any]:
        kind = "score" if self.chance(0.03) else self.random.choice(tuple(PARAMETERS))
        action: dict[str, Any] = {"type": kind, "params": copy.deepcopy(PARAMETERS.get(kind, {}))}
        if self.chance(0.1) and action["params"]:
            del action["params"][self.random.choice(list(action["params"]))]
        if self.chance(0.1) and action["params"]:
            action["params"][self.random.choice(list(action["params"]))] = self.junk()
        if self.chance(0.05):
            action["params"] = self.junk()
        if self.chance(0.05):
            action["type"] = self.junk()
        return action

    def damage(self, value: Any) -> None:
        """Puts something of the wrong type somewhere."""
        while True:
            places = list(value) if isinstance(value, dict) else list(range(len(value)))
            if not places:
                return
            place = self.random.choice(places)
            if not isinstance(value[place], dict | list) or self.chance(0.4):
                value[place] = self.junk()
                return
            value = value[place]

    def repeat_key(self, text: str) -> str:
        key = self.random.choice(("version", "rules", "config", "NAME", "Rules", "default_verdict", "fail_closed"))
        choices = (*JUNK, 1, [self.rule(0)], [{"match": "false"}], [{}], {"cycle": "5s"}, [None, {"name": "z"}])
        added = f',"{key}":{json.dumps(self.random.choice(choices))}}}'
        return text[:-1] + added

    def scratch(self, data: bytes) -> bytes:
        """Damages the text itself."""
        at = self.random.randrange(len(data))
        byte = self.random.choice(
            (b"", b"\x00", b"\xff", b'"', b"}", b"[", b"\\", b",", b"1", b"e", b"\n", b"\xe2\x82")
        )
        return data[:at] + byte + data[at + self.random.choice((0, 1, 5)) :]


def test_captured_documents_are_judged_alike(programs: Programs, namespace: Namespace, tmp_path: Path) -> None:
    given = [case["document"] for case in VECTORS["policy_validation"]["cases"]]
    given += [case["doc"] for case in VECTORS["policy_documents"]]
    given += [case["expr_policy"] for case in VECTORS["policy_samples_in_circulation"]["documents"]]
    documents = [(each if isinstance(each, str) else json.dumps(each)).encode() for each in given]
    assert compare(documents, programs, namespace, tmp_path) > 10


def test_generated_documents_are_judged_alike(programs: Programs, namespace: Namespace, tmp_path: Path) -> None:
    generator = Generator(SEED)
    documents = [generator.document() for _ in range(GENERATED)]
    valid = compare(documents, programs, namespace, tmp_path)
    assert GENERATED // 20 < valid < GENERATED // 2, "the generator makes too few or too many valid ones"


# ---- evaluation -----------------------------------------------------------------------------------------------------

EVALUATED = 200
SIGNS = ("==", "!=", "<", "<=", ">", ">=")
# The tool gives every variable of the event as JSON has it, so `has_tag` fails there: live tests are about that.
TEST_LOOP = """
    judge() { for n in "$@"; do
        "$ctl" --json extras policy test --file "$n.json" --event "$(cat "$n.event")" > "$n.out" 2>&1
    done; }
    judge $(seq 0 2 $((count - 1))) & judge $(seq 1 2 $((count - 1))) & wait
"""


class Situations:
    """Documents of a few rules for datagrams, and events in which some variables are missing."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def condition(self, depth: int = 0) -> str:
        # Constants by themselves only: what a compiler makes of them inside is about expressions, not policies.
        kind = self.random.randrange(1 if depth else 0, 7 if depth < 2 else 4)
        number, variable = self.random.randrange(4), self.random.choice(("port", "peer_id", "members", "size"))
        if kind == 0:
            return self.random.choice(("true", "false"))
        if kind == 1:
            return f"{variable} {self.random.choice(SIGNS)} {number}"
        if kind == 2:
            return self.random.choice((f"{variable} in [1, {number + 1}]", '"x" in peer_tags', 'direction == "in"'))
        if kind == 3:
            return f"{number} {self.random.choice(SIGNS)} {variable}"
        if kind == 4:
            return f"!({self.condition(depth + 1)})"
        return f"({self.condition(depth + 1)}) {self.random.choice(('&&', '||'))} ({self.condition(depth + 1)})"

    def document(self) -> dict[str, Any]:
        rules = []
        for number in range(self.random.randrange(1, 5)):
            kinds = [
                self.random.choice(("allow", "deny", "evict", "evict")) for _ in range(self.random.randrange(1, 3))
            ]
            actions = [{"type": kind} for kind in kinds]
            rules.append({"name": f"r{number}", "on": "datagram", "match": self.condition(), "actions": actions})
        return {"version": 1, "default_verdict": self.random.choice(("allow", "deny")), "rules": rules}

    def event(self) -> dict[str, Any]:
        event: dict[str, Any] = {name: self.random.randrange(4) for name in ("port", "peer_id", "members", "size")}
        event |= {
            "direction": self.random.choice(("in", "out")),
            "peer_tags": self.random.choice(([], ["x"], ["y", "x"])),
        }
        return {name: value for name, value in event.items() if self.random.random() < 0.9}


def our_evaluation(document: dict[str, Any], event: dict[str, Any]) -> Any:
    policy = load_policy_untrusted(json.dumps(document).encode(), "validation failed", "compilation failed")
    try:
        directives = policy.evaluate("datagram", event).directives
    except EvaluationError as error:
        return f"evaluation: {error}"
    return [{"params": None, "rule": each.rule, "type": each.action.type} for each in directives]


def test_generated_policies_say_the_same(programs: Programs, namespace: Namespace, tmp_path: Path) -> None:
    situations = Situations(SEED)
    cases = [(situations.document(), situations.event()) for _ in range(EVALUATED)]
    for number, (document, event) in enumerate(cases):
        (tmp_path / f"{number}.json").write_text(json.dumps(document))
        (tmp_path / f"{number}.event").write_text(json.dumps(event | {"type": "datagram"}))
    environment = (f"HOME={tmp_path}", f"ctl={programs.ctl}", f"count={EVALUATED}")
    namespace.run("env", *environment, "sh", "-c", f"cd {tmp_path}\n{TEST_LOOP}")
    failed = 0
    for number, (document, event) in enumerate(cases):
        answer = json.loads((tmp_path / f"{number}.out").read_bytes())
        theirs = answer["data"]["directives"] if answer["status"] == "ok" else answer["message"]
        assert our_evaluation(document, event) == theirs, (document, event)
        failed += answer["status"] != "ok"
    assert EVALUATED // 20 < failed < EVALUATED // 2


# ---- the state file -------------------------------------------------------------------------------------------------


async def test_state_files_pass_both_ways(start_daemon: Any, start_probe: Any, rendezvous: Any) -> None:
    """The official daemon's file is read and written byte for byte; one that ours has changed, it goes on with."""
    probe = await start_probe()
    policy = {"version": 1, "rules": [{"name": "t", "on": "cycle", "match": "true", "actions": [{"type": "evict"}]}]}
    created = await registry_call(
        rendezvous.registry,
        type="create_network",
        node_id=probe.node_id,
        name="lab",
        join_rule="open",
        token="",
        expr_policy=json.dumps(policy),
        admin_token=ADMIN_TOKEN,
    )
    network = created["network_id"]
    daemon = await start_daemon("alice", public=True)
    await daemon.ctl("extras", "network", "join", str(network))
    path = daemon.directory / ".pilot" / f"policy_{network}.json"
    await eventually(lambda: path.exists() and str(probe.node_id).encode() in path.read_bytes())
    written = path.read_bytes()
    table = read_table_untrusted(written, network, 0.0, 0.0)
    assert table.encoded() == written
    assert list(table.peers) == [probe.node_id]

    await daemon.kill()
    table.cycle_num = 41
    table.peers[probe.node_id].change_rule_tags(["by-ours<"], [])
    path.write_bytes(table.encoded())
    await daemon.start()
    await asyncio.sleep(0.1)
    done = await daemon.ctl("extras", "managed", "cycle", "--force", "--net", str(network))
    assert (done["cycle_num"], done["peers"]) == (42, 1)
    kept = read_table_untrusted(path.read_bytes(), network, 0.0, 0.0)
    assert kept.peers[probe.node_id].rule_tags == ("by-ours<",)
    assert kept.peers[probe.node_id].added_ns == table.peers[probe.node_id].added_ns
