"""Endurance: many nodes on loopback, random traffic, kills and partitions, every byte verified (bench).

    python -m bench.soak --minutes 5 --json       # --quick: half a minute; --nodes, --seed

Three kinds of nodes meet at a rendezvous in this process. *Processes* are killed with SIGKILL and start again with the
same state directory. *Restarted* nodes live here on real ports, stop in order and start again. *Filtered* ones are
behind a port that loses one datagram in a hundred and, during a partition, all to and from some or all others.
Streams run between random pairs all the time. A failed operation is put down to a fault only if one of its two nodes
had a fault during it, or less than GRACE_SECONDS before it began; all other failures are listed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import hashlib
import json
import os
import random
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

from pilot._fast.errors import PilotError
from pilot._fast.port import DatagramPort
from pilot.node import Node, NodeConfig
from pilot.node.config import parse_listen
from pilot.node.stream import Stream
from pilot.rendezvous import BeaconLimits, Limits, Rendezvous, RendezvousConfig

CHECK_PORT: Final = 1001
HEADER_BYTES: Final = 16
PATTERN_BYTES: Final = 65_521
CHUNK_BYTES: Final = 50_000
GRACE_SECONDS: Final = 45.0
OPERATION_SECONDS: Final = 40.0
SAMPLE_SECONDS: Final = 2.0
LOSS: Final = 0.01
MAX_LISTED: Final = 20


class CorruptionError(Exception):
    """Bytes that are not those that were sent."""


def pattern(seed: int) -> bytes:
    return hashlib.shake_128(seed.to_bytes(8, "big")).digest(PATTERN_BYTES)


def piece(block: bytes, at: int, size: int) -> bytes:
    """`size` bytes of the endless repetition of `block`, from offset `at`."""
    start = at % PATTERN_BYTES
    return (block * (2 + size // PATTERN_BYTES))[start : start + size]


async def check(stream: Stream) -> None:
    """The far end of a transfer: the header says what must come; the answer is its SHA-256, or `corrupt`."""
    header = await stream.readexactly(HEADER_BYTES)
    seed, size = int.from_bytes(header[:8], "big"), int.from_bytes(header[8:], "big")
    block, at, digest = pattern(seed), 0, hashlib.sha256()
    while at < size:
        data = await stream.read(1 << 18)
        if not data:
            return
        if data != piece(block, at, len(data)):
            await stream.write(b"corrupt".ljust(32))
            await stream.drain()
            return
        at += len(data)
        digest.update(data)
    await stream.write(digest.digest())
    await stream.drain()
    await stream.read(1)


class FilterPort(DatagramPort):
    """A real socket that loses datagrams: one in a hundred always, all those of `blocked` addresses ("all": of any)."""

    def __init__(self, config: NodeConfig, rng: random.Random) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.bind(parse_listen(config.listen))
        self._random = rng
        self.blocked: set[tuple[str, int]] | str = set()
        asyncio.get_running_loop().add_reader(self._socket, self._readable)

    @property
    def address(self) -> tuple[str, int]:
        found: tuple[str, int] = self._socket.getsockname()
        return found

    def _lost(self, address: tuple[str, int]) -> bool:
        return self.blocked == "all" or address in self.blocked or self._random.random() < LOSS

    def send_datagram(self, data: bytes, address: tuple[str, int]) -> None:
        if not self._lost(address):
            with contextlib.suppress(BlockingIOError):
                self._socket.sendto(data, address)

    def _readable(self) -> None:
        for _ in range(64):
            try:
                data, address = self._socket.recvfrom(65_536)
            except BlockingIOError:
                break
            if not self._lost(address):
                self.deliver(data, address, time.monotonic(), last=False)
        self.end_batch(time.monotonic())

    def close(self) -> None:
        if self._socket.fileno() < 0:
            return  # the node closes its port too
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()


class Place:
    """One node of the network through all its lives. `node` is None while it is down or in another process."""

    def __init__(self, soak: Soak, number: int) -> None:
        self.soak = soak
        self.name = f"soak-{number}"
        self.settings: dict[str, Any] = {
            **soak.where,
            "hostname": self.name,
            "public": True,
            "listen": "127.0.0.1:0",
            "state_dir": soak.directory / self.name,
        }
        self.node: Node | None = None
        self.up = False
        self.faulty_until = 0.0
        """When the last fault ended; infinity during one."""

    async def start(self) -> None:
        raise NotImplementedError

    async def stop(self) -> None:
        raise NotImplementedError

    async def fault(self, seconds: float) -> None:
        """Go away for so long, and come back."""
        raise NotImplementedError

    def suspect(self, since: float) -> bool:
        """Whether an operation begun at `since` may have failed because of a fault here."""
        return self.faulty_until + GRACE_SECONDS > since


class Restarted(Place):
    """A node of this process on a port of its own."""

    kind = "restart"

    async def start(self) -> None:
        self.node = Node(NodeConfig(**self.settings))
        await self.node.start()
        self.serving = AsyncExitStack()
        await self.serving.enter_async_context(self.node.serve(CHECK_PORT, check))
        self.up = True

    async def stop(self) -> None:
        self.up = False
        if self.node is not None:
            await self.serving.aclose()
            await self.node.stop()
        self.node = None

    async def fault(self, seconds: float) -> None:
        await self.stop()
        await asyncio.sleep(seconds)
        await self.start()


class Filtered(Restarted):
    """A node of this process behind a lossy port that can be cut off."""

    kind = "partition"

    async def start(self) -> None:
        rng = random.Random(self.soak.random.random())
        self.port: FilterPort | None = None

        def open_port(config: NodeConfig) -> DatagramPort:
            self.port = FilterPort(config, rng)
            return self.port

        self.node = Node(NodeConfig(**self.settings), open_port=open_port)
        await self.node.start()
        self.serving = AsyncExitStack()
        await self.serving.enter_async_context(self.node.serve(CHECK_PORT, check))
        self.up = True

    async def stop(self) -> None:
        await super().stop()
        if self.port is not None:
            self.port.close()

    async def fault(self, seconds: float) -> None:
        assert self.port is not None
        others = [place.node.endpoint for place in self.soak.places if place.node is not None and place is not self]
        some = set(self.soak.random.sample(others, len(others) // 2))
        self.port.blocked = self.soak.random.choice(["all", some])
        await asyncio.sleep(seconds)
        self.port.blocked = set()


class Process(Place):
    """A node in a process of its own, killed without warning."""

    kind = "kill"

    async def start(self) -> None:
        settings = {**self.settings, "state_dir": str(self.settings["state_dir"])}
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "bench.soak", "--serve", json.dumps(settings), stdout=asyncio.subprocess.PIPE
        )
        assert self.process.stdout is not None
        line = await asyncio.wait_for(self.process.stdout.readline(), 60.0)
        if line != b"ready\n":
            raise RuntimeError(f"{self.name} did not start")
        self.up = True

    async def stop(self) -> None:
        self.up = False
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGKILL)
        await self.process.wait()

    async def fault(self, seconds: float) -> None:
        await self.stop()
        await asyncio.sleep(seconds)
        await self.start()


class Soak:
    """The network, what happens in it, and what is counted."""

    def __init__(self, where: dict[str, str], directory: Path, nodes: int, seed: int) -> None:
        self.where = where
        self.directory = directory
        self.random = random.Random(seed)
        kinds = (Restarted, Filtered, Process)
        self.places: list[Place] = [kinds[number % 3](self, number) for number in range(nodes)]
        self.counts: Counter[str] = Counter()
        self.unexplained: list[str] = []
        self.recoveries: list[float] = []
        self.awaited: dict[str, float] = {}
        self.samples: list[tuple[float, int, int, int]] = []
        self.calm = self.ending = False
        self.turn = 0

    # ---------------------------------------------------------------------------------------- traffic

    async def worker(self) -> None:
        while not self.ending:
            source = self.random.choice(
                [place for place in self.places if place.node is not None and place.up] or [None]
            )
            target = self.random.choice([place for place in self.places if place is not source and place.up] or [None])
            if source is None or target is None:
                await asyncio.sleep(0.1)
                continue
            began = time.monotonic()
            try:
                await asyncio.wait_for(self.operate(source.node, target), OPERATION_SECONDS)
            except CorruptionError as error:
                self.counts["corrupted"] += 1
                self.note(f"{source.name} -> {target.name}: {error}")
            except (PilotError, TimeoutError, EOFError, OSError) as error:
                if source.suspect(began) or target.suspect(began):
                    self.counts["interrupted"] += 1
                else:
                    self.counts["unexplained"] += 1
                    self.note(f"{source.name} ({source.kind}) -> {target.name} ({target.kind}): {error!r}")
            else:
                self.counts["operations"] += 1
                if (since := self.awaited.pop(target.name, None)) is not None and target.faulty_until < began:
                    self.counts["reconnects"] += 1
                    self.recoveries.append(time.monotonic() - since)
            await asyncio.sleep(self.random.random() * 0.2)

    def note(self, text: str) -> None:
        if len(self.unexplained) < MAX_LISTED:
            self.unexplained.append(text)

    async def operate(self, node: Node | None, target: Place) -> None:
        assert node is not None
        seed, size = self.random.getrandbits(63), int(2 ** self.random.uniform(0, 22))
        if self.random.random() < 0.5:
            await self.send(node, target, seed, size)
        else:
            await self.echo(node, target, seed, size)

    async def send(self, node: Node, target: Place, seed: int, size: int) -> None:
        """One way; the far end checks every byte as it comes."""
        block, digest = pattern(seed), hashlib.sha256()
        async with await node.dial(target.name, CHECK_PORT) as stream:
            await stream.write(seed.to_bytes(8, "big") + size.to_bytes(8, "big"))
            for at in range(0, size, CHUNK_BYTES):
                data = piece(block, at, min(CHUNK_BYTES, size - at))
                digest.update(data)
                await stream.write(data)
            answer = await stream.readexactly(32)
        if answer != digest.digest():
            raise CorruptionError(f"{size} bytes arrived as {answer[:8]!r}...")
        self.counts["verified_bytes"] += size

    async def echo(self, node: Node, target: Place, seed: int, size: int) -> None:
        """There and back; checked here as it comes, up to where it breaks."""
        block = pattern(seed)

        async def write(stream: Stream) -> None:
            for at in range(0, size, CHUNK_BYTES):
                await stream.write(piece(block, at, min(CHUNK_BYTES, size - at)))

        async with await node.dial(target.name, 7) as stream:
            writing = asyncio.ensure_future(write(stream))
            try:
                at = 0
                while at < size:
                    data = await stream.read(1 << 18)
                    if not data:
                        raise EOFError(f"the echo ended after {at} of {size} bytes")
                    if data != piece(block, at, len(data)):
                        raise CorruptionError(f"echo differs behind byte {at}")
                    at += len(data)
                    self.counts["verified_bytes"] += len(data)
                await writing
            finally:
                writing.cancel()
                with contextlib.suppress(asyncio.CancelledError, PilotError, TimeoutError):
                    await writing

    # ----------------------------------------------------------------------------------------- faults

    async def trouble(self, every: float) -> None:
        """One fault after the other, each on one node, the kinds in turn; not waiting for the last one's recovery."""
        while not self.calm:
            await asyncio.sleep(every * self.random.uniform(0.5, 1.5))
            self.turn += 1
            idle = [place for place in self.places[self.turn % 3 :: 3] if place.faulty_until < float("inf")]
            if not idle or self.calm:
                continue
            place = self.random.choice(idle)
            seconds = self.random.uniform(0.5, 1.5 * every)
            place.faulty_until = float("inf")
            try:
                await place.fault(seconds)
            finally:
                place.faulty_until = time.monotonic()
            self.awaited[place.name] = place.faulty_until
            self.counts[place.kind] += 1

    # ---------------------------------------------------------------------------------------- measure

    async def sample(self) -> None:
        while True:
            files = len(os.listdir("/proc/self/fd"))
            self.samples.append((time.monotonic(), resident_bytes(), files, len(asyncio.all_tasks())))
            await asyncio.sleep(SAMPLE_SECONDS)

    def result(self, seconds: float) -> dict[str, Any]:
        later = self.samples[len(self.samples) // 3 :]
        waits = sorted(self.recoveries)
        return {
            "name": "soak",
            "seconds": round(seconds, 1),
            "nodes": len(self.places),
            "operations": self.counts["operations"],
            "verified_bytes": self.counts["verified_bytes"],
            "corrupted": self.counts["corrupted"],
            "interrupted_by_faults": self.counts["interrupted"],
            "unexplained_failures": self.counts["unexplained"],
            "unexplained": self.unexplained,
            "faults": {kind: self.counts[kind] for kind in ("kill", "restart", "partition")},
            "reconnects": self.counts["reconnects"],
            "never_reached_again": len(self.awaited),
            "recovery_seconds": {"median": waits[len(waits) // 2], "worst": waits[-1]} if waits else None,
            "memory_bytes": {
                "first": self.samples[0][1],
                "last": self.samples[-1][1],
                "most": max(s[1] for s in later),
            },
            "memory_slope_bytes_per_minute": round(60 * slope([(s[0], s[1]) for s in later])),
            "open_files": {"first": self.samples[0][2], "last": self.samples[-1][2], "most": max(s[2] for s in later)},
            "tasks": {"first": self.samples[0][3], "last": self.samples[-1][3]},
        }


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def slope(points: list[tuple[float, int]]) -> float:
    """Least squares; 0 for fewer than three points."""
    if len(points) < 3:
        return 0.0
    middle = sum(x for x, _ in points) / len(points)
    height = sum(y for _, y in points) / len(points)
    spread = sum((x - middle) ** 2 for x, _ in points)
    return sum((x - middle) * (y - height) for x, y in points) / spread


@contextlib.asynccontextmanager
async def network(nodes: int, seed: int) -> AsyncIterator[Soak]:
    """A rendezvous and running nodes; all gone afterwards."""
    config = RendezvousConfig(
        registry_port=0, beacon_port=0, limits=Limits.relaxed(), beacon_limits=BeaconLimits.relaxed()
    )
    with tempfile.TemporaryDirectory(prefix="pilot-soak.") as directory:
        async with Rendezvous(config) as server:
            where = {
                "registry": "{}:{}".format(*server.registry_address),
                "beacon": "{}:{}".format(*server.beacon_address),
            }
            soak = Soak(where, Path(directory), nodes, seed)
            try:
                await asyncio.gather(*(place.start() for place in soak.places))
                yield soak
            finally:
                await asyncio.gather(*(place.stop() for place in soak.places))


async def run(seconds: float, nodes: int, seed: int, every: float) -> dict[str, Any]:
    """Traffic and trouble for so long, then traffic alone until every node was reached again, or for a minute."""
    start = time.monotonic()
    async with network(nodes, seed) as soak:
        gc.collect()
        workers = [asyncio.create_task(soak.worker()) for _ in range(2 * nodes)]
        sampler = asyncio.create_task(soak.sample())
        troubles = [asyncio.create_task(soak.trouble(every)) for _ in range(1 + nodes // 8)]
        try:
            await asyncio.sleep(seconds)
            soak.calm = True
            await asyncio.gather(*troubles)
            for _ in range(60):
                if not soak.awaited:
                    break
                await asyncio.sleep(1.0)
            soak.ending = True
            await asyncio.wait(workers, timeout=OPERATION_SECONDS + 5.0)
        finally:
            for task in (*workers, *troubles, sampler):
                task.cancel()
            outcomes = await asyncio.gather(*workers, *troubles, sampler, return_exceptions=True)
        broken = [o for o in outcomes if isinstance(o, Exception) and not isinstance(o, asyncio.CancelledError)]
        if broken:
            raise broken[0]
        return soak.result(time.monotonic() - start)


async def serve(settings: dict[str, Any]) -> None:
    """What a child process does: a node with the two services, until it is killed."""
    async with Node(NodeConfig(**settings)) as node, node.serve(CHECK_PORT, check):
        print("ready", flush=True)
        await node.closed()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=5.0, help="of traffic and trouble (default 5)")
    parser.add_argument("--nodes", type=int, default=12, help="a third of each kind (default 12)")
    parser.add_argument("--every", type=float, default=6.0, help="seconds between faults, on average (default 6)")
    parser.add_argument("--seed", type=int, default=1, help="of the traffic and the faults; not of the timing")
    parser.add_argument("--quick", action="store_true", help="25 seconds, six nodes, a fault every two seconds")
    parser.add_argument("--json", action="store_true", help="one object on one line")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    import pilot

    if arguments.serve:
        pilot.run(serve(json.loads(arguments.serve)))
        return
    if arguments.quick:
        arguments.minutes, arguments.nodes, arguments.every = 25 / 60, 6, 2.0
    found = pilot.run(run(arguments.minutes * 60, arguments.nodes, arguments.seed, arguments.every))
    print(json.dumps(found) if arguments.json else "\n".join(f"{key}: {value}" for key, value in found.items()))
    sys.exit(1 if found["corrupted"] or found["never_reached_again"] else 0)


if __name__ == "__main__":
    main()
