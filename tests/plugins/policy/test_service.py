"""The plugin: where policies come from, the manager, managed networks, files, stopping and starting again."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from pilot.coreapi import InvalidValueError, PolicyManager, PolicyProvider, Service, ServiceNotReadyError
from pilot.plugins.policy import ManagedRunner, PolicyService
from pilot.plugins.policy.managed import parse_rules_untrusted
from tests.plugins.policy.documents import document, rule
from tests.plugins.policy.hosts import World, in_world
from tests.plugins.policy.test_gates import ask

VECTORS: dict[str, Any] = json.loads((Path(__file__).parents[2] / "vectors" / "services.json").read_text())
DENY = document(rule("d", "connect", "true", "deny"))
ALLOW = document(rule("a", "connect", "true", "allow"))
RULES = {"links": 2, "cycle": "1m", "prune": 1, "prune_by": "age", "fill": 1, "fill_how": "random"}


def running(world: World) -> list[int]:
    return sorted(runner.network_id for runner in world.manager.all())


def test_the_contract() -> None:
    world = World()
    assert isinstance(world.service, Service)
    assert isinstance(world.service, PolicyProvider)
    assert isinstance(world.service.policy_manager, PolicyManager)
    assert (PolicyService.name, PolicyService.order) == ("policy", 140)
    with pytest.raises(ServiceNotReadyError):
        world.manager.start(5, DENY)
    world.manager.load_persisted()
    assert world.manager.all() == []


# ---- where policies come from ---------------------------------------------------------------------------------------


def test_networks_the_node_is_in_when_it_starts(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    for network in (5, 6, 7, 8):
        world.members(1, 3, 4, network=network)
    world.networks.policies = {5: DENY.decode(), 6: '{"version":2}'}
    world.networks.rules = {5: json.dumps(RULES), 7: json.dumps(RULES)}

    async def scenario(world: World) -> None:
        await asyncio.sleep(1)
        assert running(world) == [5]
        assert [each.network_id for each in world.manager.all_managed()] == [7]
        assert "network 6 has a policy that cannot be used" in caplog.text
        assert "parse policy: policy: unsupported version 2 (want 1)" in caplog.text

    in_world(scenario, world)


def test_a_registry_that_does_not_answer_is_asked_again() -> None:
    world = World()
    world.members(1)
    world.networks.policies[5] = DENY.decode()
    world.networks.down = True

    async def scenario(world: World) -> None:
        await asyncio.sleep(25)
        assert running(world) == []
        world.networks.down = False
        await asyncio.sleep(10)
        assert running(world) == [5]

    in_world(scenario, world)


@pytest.mark.parametrize("policy", [DENY.decode(), json.loads(DENY)])
def test_joining_and_leaving(policy: Any) -> None:
    async def scenario(world: World) -> None:
        world.members(1)
        publish = world.deps.events.publish
        publish("network.joined", {"network_id": 5, "member_tags": None, "expr_policy": policy})
        await asyncio.sleep(0.01)
        runner = world.manager.get(5)
        assert runner is not None
        assert not ask(runner)
        publish("network.joined", {"network_id": 5, "expr_policy": ALLOW.decode()})
        await asyncio.sleep(0.01)
        assert world.manager.get(5) is runner, "one that runs stays"
        publish("network.left", {"network_id": 5})
        await asyncio.sleep(0.01)
        assert world.manager.all() == []

        publish("network.joined", {"network_id": 5, "rules": RULES})
        await asyncio.sleep(0.01)
        assert isinstance(world.manager.managed(5), ManagedRunner)
        publish("network.left", {"network_id": 5})
        for odd in ({"network_id": 0, "expr_policy": policy}, {"network_id": "5", "expr_policy": policy}, {}):
            publish("network.joined", odd)
        publish("network.joined", {"network_id": 5, "expr_policy": 5})
        publish("network.joined", {"network_id": 5, "rules": "[1"})
        publish("network.joined", {"network_id": 5, "rules": [1]})
        publish("network.joined", {"network_id": 5, "member_tags": ["x"]})
        await asyncio.sleep(0.01)
        assert world.manager.all() == world.manager.all_managed() == []

    in_world(scenario)


def test_a_network_left_while_the_registry_was_asked_gets_no_runner() -> None:
    world = World()
    world.members(1)
    world.networks.policies[5] = DENY.decode()

    async def scenario(world: World) -> None:
        await asyncio.sleep(0.05)
        del world.networks.member_lists[5]
        await asyncio.sleep(1)
        assert running(world) == []

    in_world(scenario, world)


# ---- the manager ----------------------------------------------------------------------------------------------------


def test_starting_replacing_stopping() -> None:
    async def scenario(world: World) -> None:
        world.members(1)
        world.members(1, network=6)
        first = world.manager.start(5, DENY)
        other = world.manager.start(6, bytearray(ALLOW))
        assert not ask(first)
        assert json.loads(first.policy_json()) == json.loads(DENY)
        second = world.manager.start(5, memoryview(ALLOW))
        assert world.manager.all() == [second, other]
        assert (world.manager.get(5), world.manager.get(9)) == (second, None)
        assert ask(second)
        world.manager.stop(9)
        world.manager.stop(6)
        world.manager.stop(6)
        assert world.manager.all() == [second]
        world.manager.stop_all()
        assert world.manager.all() == []

    in_world(scenario)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "parse policy: policy: invalid JSON: unexpected end of JSON input"),
        (document(), "parse policy: policy: at least one rule is required"),
        (
            document(rule("r", "join", "port == 1", "allow")),
            'compile policy: policy: rule "r" match: unknown name port',
        ),
        (
            document(rule("r", "cycle", "true", "allow", ("evict_where", {"match": 5}))),
            'compile policy: policy: rule "r" action[1]: evict_where match must be a string',
        ),
        (
            document(rule("r", "cycle", "true", ("evict_where", {"match": "1"}))),
            'compile policy: policy: rule "r" action[0] evict_where match: expected bool, but got int',
        ),
    ],
)
def test_a_refused_document_changes_nothing(data: bytes, message: str) -> None:
    async def scenario(world: World) -> None:
        world.members(1)
        runner = world.manager.start(5, DENY)
        with pytest.raises(InvalidValueError) as caught:
            world.manager.start(5, data)
        assert str(caught.value).startswith(message)
        assert world.manager.get(5) is runner
        for impossible in (0, -1, 65536):
            with pytest.raises(InvalidValueError, match=r"must be in 1\.\.65535"):
                world.manager.start(impossible, DENY)

    in_world(scenario)


def test_stopping_and_starting_again_as_a_supervisor_does(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.members(1)
    world.networks.policies[5] = DENY.decode()

    async def scenario(world: World) -> None:
        await asyncio.sleep(1)
        manager, before = world.service.policy_manager, world.manager.get(5)
        added = before.peer_list()  # type: ignore[union-attr]
        await asyncio.sleep(1)
        await world.service.stop()
        assert world.manager.all() == []
        with pytest.raises(ServiceNotReadyError):
            world.manager.start(5, DENY)
        await world.service.start(world.deps)
        await asyncio.sleep(1)
        assert world.service.policy_manager is manager
        after = world.manager.get(5)
        assert after is not None
        assert after is not before
        assert after.peer_list() == added

    in_world(scenario, world)


def test_load_persisted_reads_the_files(tmp_path: Path) -> None:
    state = VECTORS["policy_live"]["state_file_policy_5_json"]
    (tmp_path / "unrelated.json").write_text("x")
    (tmp_path / "policy_99999999.json").write_text("x")

    async def scenario(world: World) -> None:
        (tmp_path / "policy_5.json").write_text(json.dumps(state))
        world.manager.load_persisted()
        world.members(1, 3)
        runner = await world.started(DENY)
        assert runner.status()["cycle_num"] == state["cycle_num"]
        assert [peer["tags"] for peer in runner.peer_list()] == [["fresh"], ["fresh"]]
        assert ask(runner, peer=4) is False

    in_world(scenario, World(tmp_path))


def test_many_changes_are_one_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writes: list[str] = []
    monkeypatch.setattr(
        "pilot.plugins.policy.store.write_atomically",
        lambda path, data: writes.append(path.name) or path.write_bytes(data),
    )

    async def scenario(world: World) -> None:
        world.members(1)
        tag = rule("t", "connect", "true", ("tag", {"add": ["x"]}))
        runner = await world.started(document(tag))
        for _ in range(1000):
            ask(runner)
        await asyncio.sleep(1)
        assert writes == ["policy_5.json"]
        ask(runner)

    in_world(scenario, World(tmp_path))
    assert writes == ["policy_5.json"] * 2, "what was not written yet is written when the plugin stops"


def test_a_busy_gate_does_not_keep_the_disk_busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writes: list[float] = []

    async def scenario(world: World) -> None:
        monkeypatch.setattr(
            "pilot.plugins.policy.store.write_atomically", lambda path, data: writes.append(world.clock())
        )
        world.members(1)
        tag = rule("t", "connect", "true", ("tag", {"add": ["x"]}))
        runner = await world.started(document(tag))
        for _ in range(1000):
            ask(runner)
            await asyncio.sleep(0.01)
        assert 15 <= len(writes) <= 21

    in_world(scenario, World(tmp_path))


def test_a_directory_that_is_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("x")

    async def scenario(world: World) -> None:
        world.members(1)
        assert (await world.started(DENY)).has_member(1)

    in_world(scenario, World(tmp_path / "file"))
    assert "cannot be read" in caplog.text
    assert "cannot be written" in caplog.text
    in_world(scenario, World(tmp_path / "new" / "deep"))
    assert (tmp_path / "new" / "deep" / "policy_5.json").exists()


def test_a_disk_that_refuses_is_no_reason_to_stop(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "policy_5.json").mkdir()

    async def scenario(world: World) -> None:
        world.members(1)
        runner = await world.started(DENY)
        await asyncio.sleep(20)
        assert runner.has_member(1)

    in_world(scenario, World(tmp_path))
    assert "policy_5.json cannot be written" in caplog.text
    assert "cannot be read" in caplog.text


def test_a_crash_while_reconciling_is_recovered_and_the_next_round_comes() -> None:
    async def scenario(world: World) -> None:
        world.members(1)
        runner = await world.started(DENY)
        world.networks.member_lists[5] = [None]  # type: ignore[list-item]
        await asyncio.sleep(5.5)
        assert world.topics() == ["plugin.policy.panic"]
        world.members(1, 3)
        await asyncio.sleep(5.5)
        assert runner.has_member(3)

    in_world(scenario)


def test_commands_in_the_official_shapes() -> None:
    shapes = VECTORS["policy_live"]["status_shapes"]

    async def scenario(world: World) -> None:
        commands = world.service.commands
        for ask_for in (commands.status, commands.peers, commands.cycle):
            with pytest.raises(InvalidValueError, match=r"^managed: no active managed networks$"):
                ask_for()
        with pytest.raises(InvalidValueError, match=r"^managed: no active policy runner for network$"):
            commands.reconcile(5)
        assert commands.get_policy(5) == shapes["policy_get_without_runner"]
        world.members(1, 3)
        world.members(1, 3, network=6)
        assert await commands.set_policy(5, DENY) == shapes["set"]
        world.manager.start_managed(6, RULES)
        await asyncio.sleep(0.1)
        expected = {"engine": "policy", "network_id": 5, "expr_policy": json.loads(DENY), "type": "managed_policy_ok"}
        assert commands.get_policy(5) == expected
        assert commands.get_policy(6) == shapes["managed_policy_get"]
        world.members(1)
        assert commands.reconcile(5) == shapes["reconcile"]
        await asyncio.sleep(0.1)
        assert (commands.status()["peers"], commands.status(6)["peers"]) == (1, 2)
        assert [peer["node_id"] for peer in commands.peers(5)] == [1]
        assert commands.cycle(5)["cycle_num"] == 1
        assert commands.cycle(6) == shapes["managed_cycle"] | {"filled": 1}
        with pytest.raises(InvalidValueError, match="no active managed networks"):
            commands.status(7)
        with pytest.raises(InvalidValueError, match=r"^parse policy: "):
            await commands.set_policy(5, b"")

    in_world(scenario)


# ---- managed networks -----------------------------------------------------------------------------------------------


def test_a_managed_network(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        world.members(1, 3, 4, 6)
        runner = world.manager.start_managed(5, RULES)
        await asyncio.sleep(1)
        shapes = VECTORS["policy_live"]["status_shapes"]
        assert runner.status() == shapes["managed_status"] | {"network_id": 5, "joined_at": "2025-11-24T16:00:00Z"}
        before = [peer["node_id"] for peer in runner.peer_list()]
        assert len(before) == 2
        assert runner.force_cycle() == shapes["managed_cycle"] | {"network_id": 5}
        assert world.events.take() == [("managed.cycle", shapes["managed_cycle"] | {"network_id": 5})]
        await asyncio.sleep(125)
        assert world.topics() == ["managed.cycle"] * 2
        world.members(before[0], 9)
        await asyncio.sleep(10)
        assert {peer["node_id"] for peer in runner.peer_list()} <= {before[0], 9}
        assert world.manager.all() == [], "it is asked nothing at gates"
        again = world.manager.start_managed(5, RULES | {"fill": 9})
        assert world.manager.managed(5) is again
        assert again.force_cycle()["peers"] <= 2

    in_world(scenario, World(tmp_path))
    stored = json.loads((tmp_path / "managed_5.json").read_bytes())
    assert (stored["network_id"], stored["cycle_num"]) == (5, 0)
    assert all(set(peer) == {"node_id", "added_at", "last_seen"} for peer in stored["peers"].values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"links": 0}, "links must be at least 1"),
        ({"links": "2"}, "links must be a number"),
        ({"links": True}, "links must be a number"),
        ({"cycle": "59s"}, "cycle must be >= 1m"),
        ({"cycle": "x"}, 'time: invalid duration "x"'),
        ({"cycle": 5}, "cycle must be a text"),
        ({"prune": -1}, "prune must be a number"),
        ({"prune_by": "x"}, "prune_by must be"),
        ({"fill_how": "best"}, "fill_how random"),
    ],
)
def test_managed_rules_that_cannot_be_used(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        parse_rules_untrusted(RULES | change)


@pytest.mark.parametrize("known", [True, False], ids=["member already", "joins later"])
def test_a_crash_over_one_network_leaves_the_others(monkeypatch: pytest.MonkeyPatch, known: bool) -> None:
    async def scenario(world: World) -> None:
        apply = world.manager.apply

        async def crash(network_id: int, policy: Any, **options: Any) -> Any:
            if network_id == 5:
                raise RuntimeError("a defect")
            return await apply(network_id, policy, **options)

        monkeypatch.setattr(world.manager, "apply", crash)
        world.members(1, network=5)
        world.members(1, network=6)
        world.networks.policies = dict.fromkeys((5, 6), DENY.decode()) if known else {}
        await asyncio.sleep(1)
        for network_id in () if known else (5, 6):
            world.deps.events.publish("network.joined", {"network_id": network_id, "expr_policy": DENY.decode()})
        await asyncio.sleep(1)
        assert running(world) == [6]
        assert "plugin.policy.panic" in world.topics()

    in_world(scenario)
