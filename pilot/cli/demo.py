"""`pilot demo`: a rendezvous and two nodes in three processes, an encrypted and verified transfer, figures (L12).

Everything stays on the loopback interface. The nodes are the hidden commands `demo-receiver` and `demo-sender`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import platform
import sys
import tempfile
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import cryptography
import typer

import pilot
from pilot._fast.errors import PilotError
from pilot.cli.bench import percentile, round_trips
from pilot.cli.files import FileReceiver, send_file
from pilot.cli.options import JSON_OPTION, with_node
from pilot.cli.output import Result, execute, progress_bar, stderr, table
from pilot.node import ECHO_PORT, Node, NodeConfig
from pilot.rendezvous import Rendezvous, RendezvousConfig

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import AsyncIterator


__all__ = ["demo", "demo_receiver", "demo_sender"]

DEFAULT_BYTES: Final = 64 << 20
ROUND_TRIPS: Final = 2000
STOP_SECONDS: Final = 10.0
"""How long a node has to stop in order before it is killed."""
GENERATED_BLOCK: Final = 1 << 20


def demo(
    file: Annotated[
        Path | None,
        typer.Argument(exists=True, dir_okay=False, readable=True, help="What to send.", show_default=False),
    ] = None,
    size: Annotated[int, typer.Option("--bytes", min=1, help="Random bytes to send when no file is given.")] = (
        DEFAULT_BYTES
    ),
    as_json: JSON_OPTION = False,
) -> None:
    """See it work: a rendezvous, two nodes, a verified transfer, and what it measured. Exit code 0 if it is intact."""
    execute(_demo(file, size, as_json), as_json=as_json, show=table, verdict="sha256_ok")


async def _demo(file: Path | None, size: int, as_json: bool) -> Result:
    config = RendezvousConfig(registry_port=0, beacon_port=0)
    async with AsyncExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pilot-demo-")))
        inbox = scratch / "inbox"
        inbox.mkdir()
        if file is None:
            file = await asyncio.to_thread(_generate, scratch / "random.bin", size)
        server = await stack.enter_async_context(Rendezvous(config))
        if not as_json:
            stderr.print("a rendezvous and two nodes, each in a process of its own, all on 127.0.0.1")
        children = _Children(server, scratch)
        receiver = await stack.enter_async_context(children.run("demo-receiver", str(inbox)))
        ready = await _read_result(receiver)
        sender = await stack.enter_async_context(children.run("demo-sender", str(file), ready["address"]))
        sent = await _read_result(sender)
        wanted, got = await asyncio.to_thread(
            lambda: (_hash(file), [_hash(path) for path in inbox.iterdir() if path.is_file()])
        )
        segment_bytes = sent.pop("segment_bytes")
        return {**sent, "sha256_ok": got == [wanted], "segment_bytes": segment_bytes, "versions": _versions()}


class _Children:
    """Starts the demo's nodes, with none of the user's settings and with the rendezvous of the demo."""

    def __init__(self, server: Rendezvous, scratch: Path) -> None:
        self._options = [
            *("--registry", "{}:{}".format(*server.registry_address)),
            *("--beacon", "{}:{}".format(*server.beacon_address)),
            *("--listen", "127.0.0.1:0", "--public", "--ephemeral"),
        ]
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith("PILOT_")}
        self._environment["XDG_CONFIG_HOME"] = str(scratch)
        # The package this process runs from, and not one that happens to lie in the working directory (-P below).
        here = str(Path(pilot.__file__).parent.parent)
        self._environment["PYTHONPATH"] = os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))

    @asynccontextmanager
    async def run(self, *arguments: str) -> AsyncIterator[Process]:
        """A process of `pilot`; ended when the block ends."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "pilot.cli", *arguments, *self._options),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=self._environment,
        )
        try:
            yield process
        finally:
            await _end(process)


async def _end(process: Process) -> None:
    """Tells a node to stop by the end of its input; one that does not is killed."""
    assert process.stdin is not None
    process.stdin.close()
    try:
        async with asyncio.timeout(STOP_SECONDS):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


async def _read_result(process: Process) -> dict[str, Any]:
    assert process.stdout is not None
    line = await process.stdout.readline()
    if not line:
        raise PilotError(f"a node of the demo ended with exit code {await process.wait()}")
    result: dict[str, Any] = json.loads(line)
    if "error" in result:
        raise PilotError(f"a node of the demo failed: {result['error']['message']}")
    return result


@with_node()
def demo_receiver(
    config: NodeConfig, directory: Annotated[Path, typer.Argument()], as_json: JSON_OPTION = True
) -> None:
    """The receiving node of `pilot demo`."""
    execute(_demo_receiver(config, directory), as_json=as_json)


async def _demo_receiver(config: NodeConfig, directory: Path) -> None:
    async with FileReceiver(directory).node(config) as node:
        typer.echo(json.dumps({"address": str(node.address)}))
        await asyncio.to_thread(sys.stdin.buffer.read)  # until the demo is over, or gone


@with_node()
def demo_sender(
    config: NodeConfig,
    file: Annotated[Path, typer.Argument()],
    peer: Annotated[str, typer.Argument()],
    as_json: JSON_OPTION = True,
) -> None:
    """The sending node of `pilot demo`."""
    execute(_demo_sender(config, file, peer), as_json=as_json)


async def _demo_sender(config: NodeConfig, file: Path, peer: str) -> Result:
    async with Node(config) as node:
        async with await node.dial(peer, ECHO_PORT) as stream:
            times = await round_trips(stream, ROUND_TRIPS)
        with progress_bar("encrypted stream", as_json=False) as progress:
            sent = await send_file(node, peer, file, progress)
        [path] = [path for path in node.stats().peers if path.node_id == sent.receiver.node]
        return {
            "bytes": sent.size,
            "seconds": sent.seconds,
            "throughput_MBps": sent.throughput,
            "rtt_us_p50": percentile(times, 0.50),
            "rtt_us_p99": percentile(times, 0.99),
            "segment_bytes": path.segment_bytes,
        }


def _hash(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _generate(path: Path, size: int) -> Path:
    with open(path, "wb") as file:
        for start in range(0, size, GENERATED_BLOCK):
            file.write(os.urandom(min(GENERATED_BLOCK, size - start)))
    return path


def _versions() -> dict[str, str]:
    found = {"pilot": pilot.__version__, "python": platform.python_version(), "cryptography": cryptography.__version__}
    with contextlib.suppress(PackageNotFoundError):
        found["uvloop"] = version("uvloop")
    return found
