"""What a transfer between two nodes of this process costs, counted: system calls, wake-ups, timers, objects."""

from __future__ import annotations

import asyncio
import ctypes
import functools
import subprocess
import sysconfig
import tempfile
from collections import Counter
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest

from pilot._fast.udp import UdpPort, UdpStats
from pilot.node import Node, Stream
from pilot.node.home import call_at
from pilot.node.scheduler import Scheduler
from pilot.node.waiting import Waiter

MIB = 1 << 20
CHUNK = 256 << 10


@functools.cache
def allocations() -> ctypes.PyDLL:
    """The allocation counter, compiled for this interpreter by the compiler that built the package."""
    compiler = (sysconfig.get_config_var("CC") or "cc").split()
    library = Path(tempfile.mkdtemp(prefix="pilot-budgets-")) / "allocations.so"
    source, headers = Path(__file__).with_name("allocations.c"), sysconfig.get_paths()["include"]
    suppressed = ["-undefined", "dynamic_lookup"] if sysconfig.get_platform().startswith("macosx") else []
    subprocess.run(
        [*compiler, "-O2", "-shared", "-fPIC", *suppressed, f"-I{headers}", "-o", str(library), str(source)], check=True
    )
    counter = ctypes.PyDLL(str(library))
    counter.counting_stop.restype = ctypes.c_longlong
    return counter


@dataclass(frozen=True)
class Cost:
    """Counts per MiB moved, of both nodes together."""

    packets: float
    send_calls: float
    receive_calls: float
    turns: float  # readable callbacks
    wakes: float  # tasks resumed, or already awake
    arms: float  # calls of the scheduler
    timers: float  # timer handles made
    objects: float

    def beside(self, other: Cost) -> list[tuple[str, float, float]]:
        """Each count by name with that of `other`."""
        return [(field.name, getattr(self, field.name), getattr(other, field.name)) for field in fields(self)]


class Calls:
    """Counts the calls of the node's clockwork from here on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count: Counter[str] = Counter()
        monkeypatch.setattr(Scheduler, "arm", self._counted("arms", Scheduler.arm))
        monkeypatch.setattr(Waiter, "wake", self._counted("wakes", Waiter.wake))
        monkeypatch.setattr("pilot.node.scheduler.call_at", self._counted("timers", call_at))

    def _counted(self, name: str, function: Any) -> Any:
        def call(*args: Any) -> Any:
            self.count[name] += 1
            return function(*args)

        return call


def udp_stats(*nodes: Node) -> list[UdpStats]:
    ports = [node._runtime.port for node in nodes if node._runtime is not None]
    assert all(isinstance(port, UdpPort) for port in ports)
    return [port.stats() for port in ports if isinstance(port, UdpPort)]


def total(name: str, before: list[UdpStats], after: list[UdpStats]) -> int:
    return sum(getattr(b, name) - getattr(a, name) for a, b in zip(before, after, strict=True))


async def move(source: Stream, target: Stream, size: int) -> None:
    """`size` bytes in writes of 256 KiB, read without a copy."""
    data, buffer = bytes(CHUNK), bytearray(CHUNK)

    async def send() -> None:
        for _ in range(size // CHUNK):
            await source.write(data)

    sending = asyncio.ensure_future(send())
    left = size
    while left:
        left -= await target.read_into(buffer)
    await sending


async def cost(calls: Calls, nodes: tuple[Node, Node], source: Stream, target: Stream, mib: int) -> Cost:
    """What `mib` MiB cost once the stream runs at its pace."""
    await move(source, target, 8 * MIB)
    await source.drain()
    before = udp_stats(*nodes)
    calls.count.clear()
    allocations().counting_start()
    try:
        await move(source, target, mib * MIB)
    finally:
        objects = allocations().counting_stop()
    after = udp_stats(*nodes)
    return Cost(
        packets=total("datagrams_out", before, after) / mib,
        send_calls=total("send_calls", before, after) / mib,
        receive_calls=total("receive_calls", before, after) / mib,
        turns=total("turns", before, after) / mib,
        wakes=calls.count["wakes"] / mib,
        arms=calls.count["arms"] / mib,
        timers=calls.count["timers"] / mib,
        objects=objects / mib,
    )
