"""A file through the data exchange beside the same bytes through a stream alone, both ends in one process (bench).

`stream` writes and discards; `dataexchange` reads a file, hashes, writes and verifies it as well, with the sender's own
hash before the transfer left out. The file that is sent is in the system's cache after that; what is received is in
memory (/dev/shm) where there is that, so no disk is measured.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import pilot
from pilot.plugins.dataexchange import DataExchangeService, Limits
from pilot.rendezvous import BeaconLimits, Rendezvous, RendezvousConfig
from pilot.rendezvous import Limits as RegistryLimits

SIZE = 128 << 20
BLOCK = os.urandom(1 << 20)
SINK_PORT = 3000
MEMORY = Path("/dev/shm")
LOOPBACK = {"public": True, "listen": "127.0.0.1:0"}


class Pair:
    """Two nodes, the second with a sink and a data exchange."""

    def __init__(self, source: pilot.Node, target: pilot.Node, file: Path, received: Path) -> None:
        self.source = source
        self.target = target
        self.file = file
        self.received = received

    async def stream(self) -> float:
        """Seconds for the bytes through a stream alone, until all are acknowledged."""
        async with await self.source.dial(self.target.address, SINK_PORT) as stream:
            started = asyncio.get_running_loop().time()
            for _ in range(SIZE // len(BLOCK)):
                await stream.write(BLOCK)
            await stream.drain()
            return asyncio.get_running_loop().time() - started

    async def dataexchange(self) -> float:
        """Seconds for the bytes as a file, from the receiver's go-ahead until all are written and hashed."""
        service = self.source.service("dataexchange")
        assert isinstance(service, DataExchangeService)
        sent = await service.client.send_file(self.target.address, self.file)
        for path in self.received.iterdir():
            if path.is_file():
                path.unlink()
        return sent.seconds


@asynccontextmanager
async def running(segment: int, file: Path, received: Path) -> AsyncIterator[Pair]:
    config = RendezvousConfig(
        registry_port=0, beacon_port=0, limits=RegistryLimits.relaxed(), beacon_limits=BeaconLimits.relaxed()
    )
    async with Rendezvous(config) as server:
        where = {
            "registry": "{}:{}".format(*server.registry_address),
            "beacon": "{}:{}".format(*server.beacon_address),
            "max_segment_bytes": segment,
            **LOOPBACK,
        }
        target = DataExchangeService(received=received, limits=Limits(received_bytes=1 << 40))
        async with (
            pilot.Node(**where, services=[DataExchangeService()]) as one,
            pilot.Node(**where, services=[target]) as two,
            two.serve(SINK_PORT, swallow),
        ):
            yield Pair(one, two, file, received)


async def swallow(stream: pilot.Stream) -> None:
    buffer = memoryview(bytearray(1 << 20))
    while await stream.read_into(buffer):
        pass


class Running:
    """A pair on a loop of its own, and calls into it."""

    def __init__(self, segment: int, file: Path, received: Path) -> None:
        file.write_bytes(BLOCK * (SIZE // len(BLOCK)))
        self._runner = asyncio.Runner(loop_factory=_new_loop)
        self._pair = running(segment, file, received)
        self.pair = self.run(self._pair.__aenter__())

    def run(self, call: Coroutine[Any, Any, Any]) -> Any:
        return self._runner.run(call)

    def close(self) -> None:
        self.run(self._pair.__aexit__(None, None, None))
        self._runner.close()


def _new_loop() -> asyncio.AbstractEventLoop:
    import uvloop

    return uvloop.new_event_loop()


@pytest.fixture(params=[1402, 65428])
def place(request: pytest.FixtureRequest) -> Iterator[Running]:
    memory = MEMORY if MEMORY.exists() else None
    with tempfile.TemporaryDirectory() as disk, tempfile.TemporaryDirectory(dir=memory) as received:
        made = Running(request.param, Path(disk) / "file", Path(received) / "in")
        yield made
        made.close()


@pytest.mark.parametrize("peer", ["stream", "dataexchange"])
def test_file_transfer(benchmark: Any, peer: str, place: Running) -> None:
    """Prints MB per second of the transfer as `extra_info`; the benchmark's own time has the sender's hash in it."""
    transfer = getattr(place.pair, peer)
    seconds: list[float] = []
    benchmark.pedantic(lambda: seconds.append(place.run(transfer())), rounds=5, warmup_rounds=1)
    rate = SIZE / 1e6 / sorted(seconds)[len(seconds) // 2]
    benchmark.extra_info["MB/s"] = round(rate, 1)
    assert rate > 0
