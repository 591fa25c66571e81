"""`pilot ping`: round trips of control packets, which need no stream and no listener (L12)."""

from __future__ import annotations

import asyncio
import statistics
from typing import Annotated

import typer

from pilot.cli.options import JSON_OPTION, with_node
from pilot.cli.output import Result, execute, stderr, table
from pilot.node import Node, NodeConfig

__all__ = ["ping"]


@with_node(client=True)
def ping(
    config: NodeConfig,
    peer: Annotated[str, typer.Argument(help="Hostname or address.")],
    count: Annotated[int, typer.Option(min=1, help="How many pings.")] = 4,
    interval: Annotated[float, typer.Option(min=0, help="Seconds between pings.")] = 1.0,
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds to wait for each answer.")] = 5.0,
    as_json: JSON_OPTION = False,
) -> None:
    """Measure the round trip to a peer; exit code 1 when no ping is answered."""
    execute(_ping(config, peer, count, interval, timeout, as_json), as_json=as_json, show=table)


async def _ping(config: NodeConfig, peer: str, count: int, interval: float, timeout: float, quiet: bool) -> Result:
    times: list[float] = []
    async with Node(config) as node:
        address = await node.find(peer)
        for number in range(count):
            if number:
                await asyncio.sleep(interval)
            try:
                times.append(1e3 * await node.ping(address, timeout=timeout))
                line = f"{address}: {times[-1]:.3f} ms"
            except TimeoutError as error:
                line = str(error)
            if not quiet:
                stderr.print(line, highlight=False)
    return {
        "ok": bool(times),
        "peer": peer,
        "address": str(address),
        "sent": count,
        "received": len(times),
        "rtt_ms_min": min(times, default=None),
        "rtt_ms_median": statistics.median(times) if times else None,
        "rtt_ms_max": max(times, default=None),
    }
