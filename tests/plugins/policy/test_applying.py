"""Documents that arrive: compiled off the event loop, in effect in the order of the calls."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pilot.coreapi import InvalidValueError, ServiceNotReadyError
from pilot.plugins.policy import compiled, load_policy_in_thread_untrusted, load_policy_untrusted, manager
from tests.plugins.fakes import eventually
from tests.plugins.policy.documents import document, rule
from tests.plugins.policy.hosts import World, in_world
from tests.plugins.policy.test_gates import ask

DENY = document(rule("d", "connect", "true", "deny"))
ALLOW = document(rule("a", "connect", "true", "allow"))
OTHER = document(rule("o", "connect", "port == 1", "deny"))
BAD = b"{}"
RULES = {"links": 2, "cycle": "1m", "prune": 1, "fill": 1}


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> dict[bytes, float]:
    """Compiling takes 1 s, or as many seconds as the test says of a document."""
    seconds: dict[bytes, float] = {}

    async def load(data: bytes, *args: Any, **options: Any) -> Any:
        await asyncio.sleep(seconds.get(data, 1.0))
        return load_policy_untrusted(data, *args, **options)

    monkeypatch.setattr(manager, "load_policy_in_thread_untrusted", load)
    return seconds


def shown(world: World, network: int = 5) -> Any:
    runner = world.manager.get(network)
    return None if runner is None else json.loads(runner.policy_json())


# ---- off the loop ---------------------------------------------------------------------------------------------------


async def test_the_loop_goes_on_while_a_rule_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread is held up until the loop says so, which it could not if it were itself held up."""
    compile_rule = compiled._compile_rule
    begun, go_on, threads = threading.Semaphore(0), threading.Semaphore(0), set()

    def held_up(*args: Any) -> Any:
        threads.add(threading.get_ident())
        begun.release()
        assert go_on.acquire(timeout=20), "the loop did not go on"
        return compile_rule(*args)

    monkeypatch.setattr(compiled, "_compile_rule", held_up)
    rules = [rule(f"r{number}", "connect", f"port == {number}", "deny") for number in range(3)]
    loading = asyncio.ensure_future(load_policy_in_thread_untrusted(document(*rules), "parse", "compile"))
    for _ in rules:
        await eventually(lambda: begun.acquire(blocking=False))
        assert not loading.done()
        go_on.release()
    policy = await loading
    assert [each.name for each in policy.rules("connect")] == ["r0", "r1", "r2"]
    assert threading.get_ident() not in threads


async def test_it_refuses_as_the_other_one() -> None:
    for data in (b"", document(), document(rule("r", "connect", "port", "deny"))):
        with pytest.raises(InvalidValueError) as caught:
            load_policy_untrusted(data, "parse", "compile")
        with pytest.raises(InvalidValueError) as threaded:
            await load_policy_in_thread_untrusted(data, "parse", "compile")
        assert str(threaded.value) == str(caught.value)


async def test_cancelled_it_compiles_no_further_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, begun = threading.Event(), []

    def held_up(*args: Any) -> None:
        begun.append(args)
        assert go_on.wait(20)

    monkeypatch.setattr(compiled, "_compile_rule", held_up)
    rules = [rule(f"r{number}", "connect", "true", "deny") for number in range(3)]
    loading = asyncio.ensure_future(load_policy_in_thread_untrusted(document(*rules), "parse", "compile"))
    await eventually(lambda: begun)
    loading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loading
    go_on.set()
    await asyncio.get_running_loop().shutdown_default_executor()
    assert len(begun) == 1


async def test_a_long_state_file_is_read_in_a_thread_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = json.loads((Path(__file__).parents[2] / "vectors" / "services.json").read_text())["policy_live"]
    (tmp_path / "policy_5.json").write_text(json.dumps(state["state_file_policy_5_json"]))
    threads = []
    read = manager.read_table_untrusted

    def noted(*args: Any) -> Any:
        threads.append(threading.get_ident())
        return read(*args)

    monkeypatch.setattr(manager, "read_table_untrusted", noted)
    world = World(tmp_path)
    world.members(1, 3)
    await world.service.start(world.deps)
    try:
        runner = await world.manager.apply(5, DENY)
        assert runner is not None
        assert runner.status()["cycle_num"] == state["state_file_policy_5_json"]["cycle_num"]
        assert await world.manager.apply(5, ALLOW) is not None
    finally:
        await world.service.stop()
    assert len(threads) == 1, "once, though another document came"
    assert threads[0] != threading.get_ident()


# ---- in order -------------------------------------------------------------------------------------------------------


def test_a_slow_document_is_not_overtaken_and_does_not_overtake(slow: dict[bytes, float]) -> None:
    slow.update({DENY: 5.0, OTHER: 0.1})

    async def scenario(world: World) -> None:
        world.members(1)
        buffer = bytearray(DENY)
        first = asyncio.ensure_future(world.manager.apply(5, buffer))
        await asyncio.sleep(0)
        buffer[:] = b"x" * len(buffer)
        second = asyncio.ensure_future(world.manager.apply(5, OTHER))
        elsewhere = asyncio.ensure_future(world.manager.apply(6, ALLOW))
        world.members(1, network=6)
        await asyncio.sleep(4.9)
        assert world.manager.all() == []
        assert await first is world.manager.get(5)
        assert shown(world) == json.loads(DENY)
        assert await second is world.manager.get(5)
        assert shown(world) == json.loads(OTHER)
        assert await elsewhere is world.manager.get(6)

    in_world(scenario)


def test_what_ran_goes_on_until_then_and_a_refused_document_changes_nothing(slow: dict[bytes, float]) -> None:
    async def scenario(world: World) -> None:
        world.members(1)
        runner = await world.manager.apply(5, DENY)
        assert runner is not None
        refused = asyncio.ensure_future(world.manager.apply(5, BAD))
        applied = asyncio.ensure_future(world.manager.apply(5, ALLOW))
        await asyncio.sleep(0.5)
        assert not ask(runner)
        with pytest.raises(InvalidValueError, match=r"^parse policy: "):
            await refused
        assert world.manager.get(5) is runner
        assert await applied is not None
        assert shown(world) == json.loads(ALLOW)

    in_world(scenario)


@pytest.mark.parametrize(
    ("decide", "left"),
    [
        (lambda world: world.manager.start(5, ALLOW), ALLOW),
        (lambda world: world.manager.stop(5), None),
        (lambda world: world.manager.stop_all(), None),
    ],
    ids=["start", "stop", "stop_all"],
)
def test_what_is_decided_at_once_overtakes(
    slow: dict[bytes, float], decide: Callable[[World], object], left: bytes | None
) -> None:
    async def scenario(world: World) -> None:
        world.members(1)
        world.members(1, network=6)
        applied = asyncio.ensure_future(world.service.commands.set_policy(5, DENY))
        elsewhere = asyncio.ensure_future(world.manager.apply(6, DENY))
        await asyncio.sleep(0.5)
        decide(world)
        assert (await applied)["applied"] is False
        assert shown(world) == (None if left is None else json.loads(left))
        everything = decide.__code__.co_names[-1] == "stop_all"
        assert (await elsewhere is None) is everything, "another network is concerned only where all are"
        assert await world.manager.apply(5, OTHER) is world.manager.get(5), "later ones count"

    in_world(scenario)


def test_a_start_that_is_refused_decides_nothing(slow: dict[bytes, float]) -> None:
    async def scenario(world: World) -> None:
        world.members(1)
        applied = asyncio.ensure_future(world.manager.apply(5, DENY))
        await asyncio.sleep(0.5)
        with pytest.raises(InvalidValueError):
            world.manager.start(5, BAD)
        assert await applied is world.manager.get(5)
        assert shown(world) == json.loads(DENY)

    in_world(scenario)


def test_cancelled_nothing_has_changed_and_the_next_has_its_turn(slow: dict[bytes, float]) -> None:
    async def scenario(world: World) -> None:
        world.members(1)
        cancelled = asyncio.ensure_future(world.manager.apply(5, DENY))
        waiting = asyncio.ensure_future(world.manager.apply(5, OTHER))
        applied = asyncio.ensure_future(world.manager.apply(5, ALLOW))
        await asyncio.sleep(0.5)
        for task in (cancelled, waiting):
            task.cancel()
        assert await applied is world.manager.get(5)
        assert cancelled.cancelled()
        assert waiting.cancelled()
        assert shown(world) == json.loads(ALLOW)
        assert not world.manager._applications

    in_world(scenario)


def test_the_plugin_stops_meanwhile(slow: dict[bytes, float]) -> None:
    async def scenario(world: World) -> None:
        world.members(1)
        applied = asyncio.ensure_future(world.manager.apply(5, DENY))
        await asyncio.sleep(0.5)
        await world.service.stop()
        await world.service.start(world.deps)
        with pytest.raises(ServiceNotReadyError, match="stopped while the document was compiled"):
            await applied
        assert world.manager.all() == []
        with pytest.raises(InvalidValueError, match=r"must be in 1\.\.65535"):
            await world.manager.apply(0, DENY)

    in_world(scenario)


# ---- documents of the registry --------------------------------------------------------------------------------------


def test_a_document_of_the_registry_does_not_replace_an_operators(slow: dict[bytes, float]) -> None:
    """Neither one applied before the registry's nor one applied while that is compiled."""

    async def scenario(world: World) -> None:
        for network in (5, 6):
            world.members(1, network=network)
        applied = asyncio.ensure_future(world.manager.apply(5, ALLOW))
        await asyncio.sleep(0)
        for network in (5, 6):
            world.deps.events.publish("network.joined", {"network_id": network, "expr_policy": DENY.decode()})
        await asyncio.sleep(2.5)
        world.manager.start(6, ALLOW)
        runners = [await applied, world.manager.get(6)]
        await asyncio.sleep(10)
        assert world.manager.all() == runners
        assert shown(world) == shown(world, 6) == json.loads(ALLOW)

    in_world(scenario)


def test_a_network_left_while_its_policy_is_compiled(slow: dict[bytes, float]) -> None:
    """By the task that looks after the networks of the start; and by the one that follows, in the order of events."""
    world = World()
    world.members(1)
    world.networks.policies[5] = DENY.decode()

    async def scenario(world: World) -> None:
        publish = world.deps.events.publish
        await asyncio.sleep(0.5)
        publish("network.left", {"network_id": 5})
        await asyncio.sleep(5)
        assert world.manager.all() == []
        publish("network.joined", {"network_id": 5, "expr_policy": DENY.decode()})
        publish("network.left", {"network_id": 5})
        publish("network.joined", {"network_id": 5, "rules": RULES})
        await asyncio.sleep(5)
        assert world.manager.all() == []
        assert world.manager.managed(5) is not None

    in_world(scenario, world)
