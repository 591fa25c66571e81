"""`pilot send` and `pilot recv`: files over a stream, with progress, resume and a verified hash (L12)."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from pilot.cli.options import JSON_OPTION, with_node
from pilot.cli.output import Result, execute, forever, progress_bar, stderr, table
from pilot.cli.transfer import TRANSFER_PORT, TransferError, hash_file, receive_file, send_file
from pilot.node import Node, NodeConfig

if TYPE_CHECKING:
    from pilot.node import Stream

__all__ = ["Inbox", "recv", "send"]

MAX_BYTES: Final = 1 << 40

PORT_OPTION = Annotated[int, typer.Option(min=1, max=65535, help="Virtual port of `pilot recv`.")]


@with_node(client=True)
def send(
    config: NodeConfig,
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, readable=True, help="The file to send.")],
    peer: Annotated[str, typer.Argument(help="Hostname or address of a node where `pilot recv` runs.")],
    port: PORT_OPTION = TRANSFER_PORT,
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds to reach the peer.")] = 30.0,
    as_json: JSON_OPTION = False,
) -> None:
    """Send a file; one that was cut off goes on where it stopped."""
    execute(_send(config, file, peer, port, timeout, as_json), as_json=as_json, show=table)


async def _send(config: NodeConfig, file: Path, peer: str, port: int, timeout: float, as_json: bool) -> Result:
    sha256 = await asyncio.to_thread(hash_file, file)
    async with Node(config) as node, await node.dial(peer, port, timeout=timeout) as stream:
        with progress_bar(file.name, as_json) as progress:
            sent = await send_file(stream, file, sha256, progress)
        return {
            "ok": True,
            "file": str(file),
            "peer": str(stream.remote_addr),
            "bytes": sent.offset + sent.bytes,
            "resumed_at": sent.offset,
            "sha256": sha256,
            "seconds": sent.seconds,
            "throughput_MBps": sent.throughput,
        }


@with_node()
def recv(
    config: NodeConfig,
    directory: Annotated[
        Path, typer.Argument(exists=True, file_okay=False, writable=True, help="Where the files go.")
    ] = Path(),
    count: Annotated[int, typer.Option(min=0, help="Files to wait for; 0 means until it is interrupted.")] = 1,
    max_bytes: Annotated[int, typer.Option(min=0, help="Largest file taken.")] = MAX_BYTES,
    port: PORT_OPTION = TRANSFER_PORT,
    as_json: JSON_OPTION = False,
) -> None:
    """Wait for files that peers send; no file is ever replaced."""
    inbox = Inbox(directory, count=count, max_bytes=max_bytes, as_json=as_json)
    execute(_recv(config, inbox, port, as_json), as_json=as_json, show=_show_received)


async def _recv(config: NodeConfig, inbox: Inbox, port: int, as_json: bool) -> Result:
    async with Node(config) as node, node.serve(port, inbox.take):
        if not as_json:
            stderr.print(f"ready: pilot send FILE {config.hostname or node.address}", markup=False, highlight=False)
        await (inbox.full.wait() if inbox.count else forever(node.closed()))
    return {"ok": True, "files": inbox.files}


def _show_received(result: Result) -> None:
    for file in result["files"]:
        typer.echo(file["path"])


class Inbox:
    """Takes files into a directory. `full` is set when `count` of them have come; with 0 it never is."""

    def __init__(self, directory: Path, *, count: int = 0, max_bytes: int = MAX_BYTES, as_json: bool) -> None:
        self.files: list[dict[str, Any]] = []
        self.full = asyncio.Event()
        self._directory = directory
        self.count = count
        self._max_bytes = max_bytes
        self._as_json = as_json

    async def take(self, stream: Stream) -> None:
        """Receives one file; what goes wrong is told on stderr and ends this stream only."""
        peer = str(stream.remote_addr)
        try:
            with progress_bar(f"from {peer}", self._as_json) as progress:
                got = await receive_file(stream, self._directory, progress, max_bytes=self._max_bytes)
            await stream.close()
        except (TransferError, EOFError, OSError) as error:
            self._tell(f"a file from {peer} did not arrive: {error}")
            raise
        self.files.append(
            {"path": str(got.path), "peer": peer, "bytes": got.size, "sha256": got.sha256, "resumed_at": got.offset}
        )
        self._tell(f"{got.path} from {peer}, {got.size:,} bytes")
        if len(self.files) == self.count:
            self.full.set()

    def _tell(self, text: str) -> None:
        if not self._as_json:
            stderr.print(text, markup=False, highlight=False)
