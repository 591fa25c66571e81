"""`pilot up`: a node in the foreground: what it is, who is connected, live rates (L12)."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable  # evaluated: a command's signature is its options
from typing import TYPE_CHECKING, Final

import typer
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pilot._fast.errors import ClosedError
from pilot.cli.options import JSON_OPTION, with_node
from pilot.cli.output import Exit, Result, execute, forever, stderr
from pilot.cli.services import with_services
from pilot.node import Node, NodeConfig
from pilot.node.services import ServiceSource
from pilot.protocol.endpoints import join_endpoint

if TYPE_CHECKING:
    from rich.console import RenderableType

    from pilot.node import NodeStats

__all__ = ["up"]

REFRESH_SECONDS: Final = 1.0


@with_node()
@with_services
def up(config: NodeConfig, services: Callable[[], list[ServiceSource]], as_json: JSON_OPTION = False) -> None:
    """Run a node with its plugins until it is interrupted. With --json the object is printed when it is ready."""
    execute(_up(config, services, as_json), as_json=as_json)


async def _up(config: NodeConfig, services: Callable[[], list[ServiceSource]], as_json: bool) -> None:
    async with Node(config, services=services()) as node:
        ready = _ready(node)
        if as_json:
            typer.echo(json.dumps(ready))
            await forever(node.closed())
        elif stderr.is_terminal:
            await forever(_show(node))
        else:
            stderr.print(_headline(node), highlight=False)
            await forever(node.closed())
        if node.deaf:
            raise typer.Exit(Exit.DEAF)


def _ready(node: Node) -> Result:
    return {
        "node_id": node.node_id,
        "address": str(node.address),
        "hostname": None if "hostname" in node.resolver.unconfirmed else node.resolver.hostname or None,
        "public": node.resolver.public,
        "public_key": node.identity.public_key.hex(),
        "endpoint": join_endpoint(*node.endpoint),
        "registry": node.resolver.address,
        "services": [service.name for service in node.services],
        "unconfirmed": sorted(node.resolver.unconfirmed),
    }


async def _show(node: Node) -> None:
    last = node.stats()
    with contextlib.suppress(ClosedError), Live(console=stderr, refresh_per_second=2, transient=True) as live:
        while True:  # until the node has stopped
            now = node.stats()
            live.update(_page(node, last, now))
            last = now
            await asyncio.sleep(REFRESH_SECONDS)


def _headline(node: Node) -> Text:
    name = node.resolver.hostname or "without a name"
    kind = "public" if node.resolver.public else "private"
    return Text(f"{node.address} ({name}, {kind}) at {node.resolver.address}")


def _page(node: Node, last: NodeStats, now: NodeStats) -> RenderableType:
    seconds = max(now.uptime - last.uptime, 1e-3)
    rates = f"in {_rate(now.bytes_in - last.bytes_in, seconds)}, out {_rate(now.bytes_out - last.bytes_out, seconds)}"
    peers = Table("peer", "path", "round trip", "segment", "streams", "silent", box=None, padding=(0, 2, 0, 0))
    for peer in now.peers:
        peers.add_row(
            str(peer.node_id),
            f"{peer.path} {join_endpoint(*peer.endpoint)}" if peer.endpoint else peer.path,
            f"{peer.rtt * 1e3:.2f} ms" if peer.rtt else "-",
            f"{peer.segment_bytes:,}",
            str(peer.open_streams),
            f"{peer.silence:.0f} s" if peer.silence is not None else "-",
        )
    summary = Text(f"{now.streams} streams, {len(now.peers)} peers, {rates}, up {now.uptime:.0f} s")
    return Group(_headline(node), summary, peers) if now.peers else Group(_headline(node), summary)


def _rate(count: int, seconds: float) -> str:
    return f"{count / seconds / 1e6:,.1f} MB/s"
