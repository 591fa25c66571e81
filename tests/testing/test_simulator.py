"""The simulator: NAT types, reproducibility, crash and restart, cut ways, and that broken invariants are seen."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys

import pytest

from pilot import PilotError
from pilot.testing import InvariantError, NatType, StuckError, VirtualLoop, World, run, simulate

KINDS = [None, *NatType]


async def echo(stream) -> None:
    async for chunk in stream:
        await stream.write(chunk)


async def exchange(world: World, *, size: int = 20_000, **options: NatType | None) -> World:
    a = world.machine("a", nat=options.get("first"))
    b = world.machine("b", nat=options.get("second"))
    await a.start()
    await b.start()
    async with b.node.serve(1000, echo), await a.node.dial(b.node.address, 1000) as stream:
        data = world.random.randbytes(size)
        await stream.write(data)
        assert await stream.readexactly(size) == data
    return world


@pytest.mark.parametrize("first", KINDS)
@pytest.mark.parametrize("second", KINDS)
def test_who_reaches_whom_directly(first: NatType | None, second: NatType | None) -> None:
    """As hole punching goes: all pairs get a direct path but two symmetric ones and symmetric with port-restricted."""

    strict = {NatType.PORT_RESTRICTED, NatType.SYMMETRIC}
    relayed = NatType.SYMMETRIC in (first, second) and {first, second} <= strict
    assert paths(first, second) == (("relay", "relay") if relayed else ("direct", "direct"))


@pytest.mark.parametrize("first", [NatType.FULL_CONE, NatType.ADDRESS_RESTRICTED, NatType.PORT_RESTRICTED])
@pytest.mark.parametrize("second", [NatType.FULL_CONE, NatType.ADDRESS_RESTRICTED, NatType.PORT_RESTRICTED])
def test_boxes_that_choose_ports_are_punched_too(first: NatType, second: NatType) -> None:
    """The registry then knows a wrong port, and only the beacon the right one."""
    assert paths(first, second, preserve_ports=False) == ("direct", "direct")


def paths(first: NatType | None, second: NatType | None, *, preserve_ports: bool = True) -> tuple[str, str]:
    async def scenario(world: World) -> tuple[str, str]:
        a, b = (
            world.machine(nat=world.network.nat(kind, preserve_ports=preserve_ports) if kind else None)
            for kind in (first, second)
        )
        await a.start()
        await b.start()
        await asyncio.sleep(3)
        async with b.node.serve(1000, echo), await a.node.dial(b.node.address, 1000) as stream:
            for _ in range(3):
                await stream.write(b"hello")
                await stream.readexactly(5)
                await asyncio.sleep(20)
            return a.node.stats().peers[0].path, b.node.stats().peers[0].path

    return simulate(1, scenario)


SCRIPT = """
from pilot.testing import simulate
from tests.testing.test_simulator import exchange
world = simulate({seed}, exchange, loss=0.05, jitter=0.01, reorder=0.1, duplicate=0.1, burst_loss=0.01)
print(world.network.digest(), world.network.sent)
"""


def run_apart(seed: int, hash_seed: str) -> str:
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    script = [sys.executable, "-c", SCRIPT.format(seed=seed)]
    return subprocess.run(script, env=environment, capture_output=True, text=True, check=True).stdout


def test_a_seed_gives_the_same_bytes_in_another_process() -> None:
    first = run_apart(3, "1")
    assert first == run_apart(3, "2")
    assert first != run_apart(4, "1")


def test_a_failure_names_its_seed() -> None:
    async def scenario(world: World) -> None:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken") as caught:
        simulate(77, scenario)
    assert caught.value.__notes__ == ["simulation seed: 77"]


@pytest.mark.parametrize("keep_key", [True, False])
def test_crash_and_restart(keep_key: bool) -> None:
    async def scenario(world: World) -> None:
        a, b = world.machine("a"), world.machine("b")
        await a.start()
        before = await b.start()
        id_before = before.node_id
        stream = await a.node.dial(before.address, 7)
        await stream.write(b"x" * 100_000)
        after = await b.restart(keep_key=keep_key)
        assert (after.node_id == id_before) is keep_key
        if keep_key:
            with pytest.raises(PilotError):
                await stream.readexactly(100_000)
        async with await a.node.dial(after.address, 7) as again:
            await again.write(b"hello")
            assert await again.readexactly(5) == b"hello"

    simulate(5, scenario)


def test_nothing_leaves_a_crashed_machine() -> None:
    async def scenario(world: World) -> None:
        a, b = world.machine("a"), world.machine("b")
        await a.start()
        await b.start()
        stream = await a.node.dial(b.node.address, 7)
        await stream.write(b"x" * 1_000_000)
        b.crash()
        died = world.loop.time()
        late: list[float] = []
        world.network.taps.append(lambda now, source, target, data: late.append(now) if source[0] == b_host else None)
        b_host = b.host.address
        await asyncio.sleep(60)
        assert not [now for now in late if now >= died]

    simulate(6, scenario)


def test_a_partition_stalls_and_heals() -> None:
    async def scenario(world: World) -> None:
        a, b = world.machine("a"), world.machine("b")
        await a.start()
        await b.start()
        async with b.node.serve(1000, echo), await a.node.dial(b.node.address, 1000) as stream:
            world.network.partition([a.host], [b.host, world.rendezvous.host])  # else they go on by relay
            await stream.write(b"hello")
            stream.set_read_deadline(world.loop.time() + 10)
            with pytest.raises(TimeoutError):
                await stream.read()
            world.network.heal()
            stream.set_read_deadline(None)
            assert await stream.readexactly(5) == b"hello"

    simulate(8, scenario)


def test_an_outage_of_the_rendezvous_and_clocks_that_jump() -> None:
    async def scenario(world: World) -> None:
        a, b = world.machine("a"), world.machine("b")
        await a.start()
        await b.start()
        async with b.node.serve(1000, echo), await a.node.dial(b.node.address, 1000) as stream:
            world.rendezvous.down()
            a.host.jump(20.0)
            b.host.set_wall(7200.0)
            await asyncio.sleep(120)
            world.rendezvous.up()
            await asyncio.sleep(120)
            await stream.write(b"hello")
            assert await stream.readexactly(5) == b"hello"

    simulate(9, scenario)


def test_a_repeated_nonce_is_seen() -> None:
    async def scenario(world: World) -> None:
        host, other = world.network.host(), world.network.host()
        frame = b"PILS" + bytes(16)
        host.send(frame + b"1" * 20, 1, (other.address, 1))
        host.send(frame + b"2" * 20, 1, (other.address, 1))

    with pytest.raises(InvariantError, match="used twice"):
        simulate(10, scenario)


def test_a_full_table_is_seen() -> None:
    async def scenario(world: World) -> None:
        node = await world.machine("a").start()
        core = node._runtime.tunnel._core
        for number in range(core.settings.max_strangers + 1):
            core._strangers[number] = core.stranger(1, 0.0)

    with pytest.raises(InvariantError, match="tunnel strangers"):
        simulate(11, scenario)


def test_a_task_left_behind_is_seen() -> None:
    async def scenario(world: World) -> asyncio.Task[bool]:
        return asyncio.create_task(asyncio.Event().wait())

    with pytest.raises(InvariantError, match="tasks are left"):
        simulate(12, scenario)


def test_waiting_for_ever_is_an_error() -> None:
    async def never() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(StuckError, match="every task waits"):
        run(never())


def test_spinning_is_an_error() -> None:
    async def spin() -> None:
        while True:  # noqa: ASYNC110 - this is what it is about
            await asyncio.sleep(0)

    with pytest.raises(StuckError, match="without the clock moving"):
        run(spin())


def test_virtual_time_costs_no_real_time() -> None:
    async def sleep() -> float:
        await asyncio.sleep(1e6)
        return asyncio.get_running_loop().time()

    assert run(sleep(), loop=VirtualLoop(0.0)) == 1e6
