"""`pilot bench`: latency and throughput to a peer, through its echo service (L12)."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Annotated

import typer

from pilot.cli.options import JSON_OPTION, with_node
from pilot.cli.output import Result, execute, progress_bar, table
from pilot.node import ECHO_PORT, Node, NodeConfig

if TYPE_CHECKING:
    from collections.abc import Callable

    from pilot.node import Stream

__all__ = ["bench", "percentile", "round_trips"]

WARM_UP: int = 50
"""Round trips before any is counted: the path and the caches settle."""
MESSAGE_BYTES: int = 64
WRITE_BYTES: int = 256 * 1024


@with_node(client=True)
def bench(
    config: NodeConfig,
    peer: Annotated[str, typer.Argument(help="Hostname or address of a node with the echo service.")],
    size: Annotated[int, typer.Option("--bytes", min=1, help="Bytes to send and get back.")] = 64 << 20,
    rounds: Annotated[int, typer.Option(min=1, help="Round trips of 64 bytes.")] = 1000,
    as_json: JSON_OPTION = False,
) -> None:
    """Measure round trips of 64 bytes, then bytes through the echo of a peer; both directions carry all of them."""
    execute(_bench(config, peer, size, rounds, as_json), as_json=as_json, show=table)


async def _bench(config: NodeConfig, peer: str, size: int, rounds: int, as_json: bool) -> Result:
    async with Node(config) as node, await node.dial(peer, ECHO_PORT) as stream:
        times = await round_trips(stream, rounds)
        with progress_bar(f"echo of {peer}", as_json) as progress:
            seconds = await _echo(stream, size, progress)
        return {
            "ok": True,
            "peer": str(stream.remote_addr),
            "bytes": size,
            "seconds": seconds,
            "throughput_MBps": size / seconds / 1e6,
            "rtt_us_p50": percentile(times, 0.50),
            "rtt_us_p99": percentile(times, 0.99),
            "segment_bytes": stream.stats().segment_bytes,
        }


async def round_trips(stream: Stream, rounds: int) -> list[float]:
    """Microseconds of each of `rounds` echoes of 64 bytes."""
    message = bytes(range(MESSAGE_BYTES))
    times: list[float] = []
    for number in range(WARM_UP + rounds):
        started = time.perf_counter_ns()
        await stream.write(message)
        await stream.readexactly(MESSAGE_BYTES)
        if number >= WARM_UP:
            times.append((time.perf_counter_ns() - started) / 1e3)
    return times


def percentile(values: list[float], fraction: float) -> float:
    """The smallest value that at least `fraction` of `values` do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -int(-fraction * len(ordered) // 1) - 1)]


async def _echo(stream: Stream, size: int, progress: Callable[[int, int], None]) -> float:
    block = memoryview(bytes(WRITE_BYTES))

    async def fill() -> None:
        for start in range(0, size, WRITE_BYTES):
            await stream.write(block[: min(WRITE_BYTES, size - start)])

    async def drink() -> None:
        buffer = bytearray(WRITE_BYTES)
        done = 0
        while done < size:
            count = await stream.read_into(buffer)
            if not count:
                raise EOFError(f"the peer ended the echo after {done} of {size} bytes")
            done += count
            progress(done, size)

    started = time.monotonic()
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(fill())
            tasks.create_task(drink())
    except* (OSError, EOFError) as errors:
        raise errors.exceptions[0] from None
    return time.monotonic() - started
