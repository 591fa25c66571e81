"""Counted budgets of a stream between two nodes: per MiB and both nodes together, so for any machine (L2-L9).

A packet of 1152 bytes comes 911 times per MiB. One more object, system call or wake-up per packet, at one end only, is
over the budget by far, whereas the margins cover how two loops happen to meet.
"""

from __future__ import annotations

import asyncio
import random
import sys
from dataclasses import replace

import pytest

from pilot.node import Node, Stream
from tests.budgets.counting import CHUNK, MIB, Calls, Cost, cost
from tests.node.conftest import StartNode

OBJECTS_PER_PACKET = 4
"""Each end gets one number from `cryptography` and one from the CRC; the core itself makes none."""
LEAST_WINDOW_BYTES = 512 * 4096
"""What any receiver takes, for what older builds may send (DESIGN 4), however small `stream_bytes` is."""
SWITCHES: dict[str, dict[str, bool]] = {
    "all on": {},
    "no offloads": {"gso": False, "gro": False},
    "all off": {"gso": False, "gro": False, "recvmmsg": False},
}
BUDGETS = {
    (1152, "all on"): Cost(
        packets=930, send_calls=28, receive_calls=10, turns=4, wakes=4, arms=2, timers=1, objects=160
    ),
    (1152, "no offloads"): Cost(
        packets=940, send_calls=32, receive_calls=260, turns=12, wakes=12, arms=3, timers=2, objects=260
    ),
    (1152, "all off"): Cost(
        packets=940, send_calls=40, receive_calls=980, turns=26, wakes=26, arms=3, timers=2, objects=560
    ),
    (65428, "all on"): Cost(
        packets=20, send_calls=20, receive_calls=8, turns=3, wakes=3, arms=2, timers=1, objects=100
    ),
    (65428, "no offloads"): Cost(
        packets=20, send_calls=20, receive_calls=8, turns=3, wakes=3, arms=2, timers=1, objects=100
    ),
    (65428, "all off"): Cost(
        packets=20, send_calls=20, receive_calls=24, turns=3, wakes=3, arms=2, timers=1, objects=100
    ),
}


async def connect(source: Node, target: Node, port: int = 1000) -> tuple[Stream, Stream]:
    async with await target.listen(port) as listener:
        stream = await source.dial(target.address, port)
        return stream, await listener.accept()


@pytest.mark.skipif(sys.platform != "linux", reason="the budgets are those of sendmmsg, recvmmsg and loopback on Linux")
@pytest.mark.parametrize(("segment", "switches"), BUDGETS)
async def test_a_mebibyte_stays_within_its_budget(
    start_node: StartNode, monkeypatch: pytest.MonkeyPatch, segment: int, switches: str
) -> None:
    calls = Calls(monkeypatch)
    settings = {"max_segment_bytes": segment, **SWITCHES[switches]}
    alice, bob = await start_node("alice", **settings), await start_node("bob", **settings)
    found = await cost(calls, (alice, bob), *await connect(alice, bob), 32)
    budget = BUDGETS[segment, switches]
    budget = replace(budget, objects=budget.objects + OBJECTS_PER_PACKET * found.packets)
    over = {name: (value, limit) for name, value, limit in found.beside(budget) if value > limit}
    assert not over, f"{found} is over {over}"


async def test_a_hundred_streams_share_alike(start_node: StartNode) -> None:
    alice, bob = await start_node("alice"), await start_node("bob")
    counts = [0] * 100
    enough = asyncio.Event()

    async def send(stream: Stream) -> None:
        while True:
            await stream.write(bytes(CHUNK))

    async def receive(number: int, stream: Stream) -> None:
        buffer = bytearray(CHUNK)
        while True:
            counts[number] += await stream.read_into(buffer)
            if sum(counts) >= 200 * MIB:
                enough.set()

    ends = [await connect(alice, bob, 1000 + number) for number in range(len(counts))]
    tasks = [asyncio.ensure_future(receive(number, end)) for number, (_, end) in enumerate(ends)]
    tasks += [asyncio.ensure_future(send(end)) for end, _ in ends]
    await enough.wait()
    shares = sorted(counts)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert shares[0] >= 0.5 * shares[-1], shares


async def test_a_reader_that_stops_holds_back_its_sender(start_node: StartNode) -> None:
    """What the sender gets rid of is bounded by one send ring and one receive window, and none of it is lost."""
    ring = MIB
    alice, bob = await start_node("alice", stream_bytes=ring), await start_node("bob", stream_bytes=ring)
    data = random.Random(2).randbytes(16 * MIB)
    source, target = await connect(alice, bob)
    sending = asyncio.ensure_future(source.write(data))
    before = -1
    while source.written != before:
        before = source.written
        await asyncio.sleep(0.1)
    assert ring <= source.written <= ring + LEAST_WINDOW_BYTES
    assert not sending.done()
    same = await target.readexactly(len(data)) == data  # a comparison in the assert would print the difference
    assert same
    await sending


@pytest.mark.parametrize("switches", ["all on", "all off"])
@pytest.mark.parametrize("segment", [1152, 65428])
async def test_both_directions_arrive_exactly(start_node: StartNode, segment: int, switches: str) -> None:
    settings = {"max_segment_bytes": segment, **SWITCHES[switches]}
    alice, bob = await start_node("alice", **settings), await start_node("bob", **settings)
    for node in (alice, bob):
        assert node._runtime is not None
        offloads = node._runtime.port.offloads  # type: ignore[attr-defined]
        assert not any(getattr(offloads, name) for name in SWITCHES[switches])
    one, other = (random.Random(seed).randbytes(8 * MIB + 13) for seed in (3, 4))
    ours, theirs = await connect(alice, bob)
    _, _, there, back = await asyncio.gather(
        ours.write(one), theirs.write(other), theirs.readexactly(len(one)), ours.readexactly(len(other))
    )
    same = there == one, back == other  # a comparison in the assert would print the difference
    assert same == (True, True)
