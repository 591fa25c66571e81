"""`pilot send` and `pilot recv`: files through the data exchange, with progress, resume and a verified hash (L12)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from pilot.cli.options import JSON_OPTION, with_node
from pilot.cli.output import Result, execute, forever, progress_bar, progress_bars, stderr, table
from pilot.node import Node, NodeConfig
from pilot.plugins.dataexchange import PORT, DataExchangeClient, DataExchangeService, Limits, SentFile

if TYPE_CHECKING:
    from pilot.cli.output import Bars
    from pilot.plugins.dataexchange import FileProgress, Progress, ReceivedFile

__all__ = ["FileReceiver", "recv", "send", "send_file"]

NO_LIMIT: Final = 1 << 62
MAX_BYTES: Final = 1 << 40

PORT_OPTION = Annotated[int, typer.Option(min=1, max=65535, help="Virtual port of the data exchange.")]


@with_node(client=True)
def send(
    config: NodeConfig,
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, readable=True, help="The file to send.")],
    peer: Annotated[str, typer.Argument(help="Hostname or address of a node where `pilot recv` or a daemon runs.")],
    port: PORT_OPTION = PORT,
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds to reach the peer.")] = 30.0,
    as_json: JSON_OPTION = False,
) -> None:
    """Send a file; one that was cut off goes on where it stopped."""
    execute(_send(config, file, peer, port, timeout, as_json), as_json=as_json, show=table)


async def _send(config: NodeConfig, file: Path, peer: str, port: int, timeout: float, as_json: bool) -> Result:
    async with Node(config) as node:
        with progress_bar(file.name, as_json) as progress:
            sent = await send_file(node, peer, file, progress, port=port, timeout=timeout)
    return {
        "ok": True,
        "file": str(file),
        "peer": str(sent.receiver),
        "bytes": sent.size,
        "resumed_at": sent.resumed_at,
        "sha256": sent.sha256.hex(),
        "seconds": sent.seconds,
        "throughput_MBps": sent.throughput,
    }


async def send_file(
    node: Node, peer: str, file: Path, progress: Progress, *, port: int = PORT, timeout: float | None = None
) -> SentFile:
    """Sends `file` to the data exchange of `peer`. Raises what `DataExchangeClient.send_file` raises."""
    client = DataExchangeClient(node.streams, node.resolver, events=node.events, port=port)
    return await client.send_file(peer, file, progress=progress, timeout=timeout)


@with_node()
def recv(
    config: NodeConfig,
    directory: Annotated[
        Path, typer.Argument(exists=True, file_okay=False, writable=True, help="Where the files go.")
    ] = Path(),
    count: Annotated[int, typer.Option(min=0, help="Files to wait for; 0 means until it is interrupted.")] = 1,
    max_bytes: Annotated[int, typer.Option(min=1, help="Largest file taken.")] = MAX_BYTES,
    port: PORT_OPTION = PORT,
    as_json: JSON_OPTION = False,
) -> None:
    """Wait for files that peers send; no file is ever replaced."""
    execute(_recv(config, directory, count, max_bytes, port, as_json), as_json=as_json, show=_show_received)


async def _recv(config: NodeConfig, directory: Path, count: int, max_bytes: int, port: int, as_json: bool) -> Result:
    with progress_bars(as_json) as bars:
        receiver = FileReceiver(directory, max_bytes=max_bytes, port=port, bars=bars, as_json=as_json)
        async with receiver.node(config) as node:
            if not as_json:
                stderr.print(f"ready: pilot send FILE {config.hostname or node.address}", markup=False, highlight=False)
            await (receiver.until(count) if count else forever(node.closed()))
    return {"ok": True, "files": receiver.files}


def _show_received(result: Result) -> None:
    for file in result["files"]:
        typer.echo(file["path"])


class FileReceiver:
    """A node that takes files into a directory, under their own names, and nothing else."""

    def __init__(
        self,
        directory: Path,
        *,
        max_bytes: int = MAX_BYTES,
        port: int = PORT,
        bars: Bars | None = None,
        as_json: bool = True,
    ) -> None:
        self.files: list[dict[str, Any]] = []
        self._arrived = asyncio.Event()
        self._bars = bars
        self._as_json = as_json
        limits = Limits(file_bytes=max_bytes, received_bytes=NO_LIMIT, received_files=NO_LIMIT)
        self._service = DataExchangeService(
            received=directory, keep_names=True, limits=limits, on_progress=self._on_progress, port=port
        )

    @asynccontextmanager
    async def node(self, config: NodeConfig) -> AsyncIterator[Node]:
        """The running node, for the block."""
        async with Node(config, services=[self._service]) as node:
            taking = asyncio.create_task(self._take(), name="pilot recv")
            try:
                yield node
            finally:
                taking.cancel()
                await asyncio.wait([taking])

    async def until(self, count: int) -> None:
        """Returns when so many files have come."""
        while len(self.files) < count:
            self._arrived.clear()
            await self._arrived.wait()

    async def _take(self) -> None:
        with self._service.files() as files:
            async for file in files:
                self._keep(file)

    def _keep(self, file: ReceivedFile) -> None:
        peer = str(file.sender)
        self.files.append(
            {
                "path": str(file.path),
                "peer": peer,
                "bytes": file.size,
                "sha256": file.sha256.hex(),
                "resumed_at": file.resumed_at,
            }
        )
        self._tell(f"{file.path} from {peer}, {file.size:,} bytes")
        self._arrived.set()

    def _on_progress(self, at: FileProgress) -> None:
        if self._bars is not None:
            self._bars.show(f"{at.name} from {at.sender}", at.done, at.total, ended=bool(at.error))
        if at.error:
            self._tell(f"{at.name} from {at.sender} did not arrive: {at.error}")

    def _tell(self, text: str) -> None:
        if not self._as_json:
            stderr.print(text, markup=False, highlight=False, soft_wrap=True)
