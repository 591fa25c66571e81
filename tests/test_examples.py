"""Every program of docs/examples runs as written, and the code in README.md is taken from them."""

from __future__ import annotations

import asyncio
import re
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pilot.node import Node
from pilot.rendezvous import BeaconLimits, Limits, Rendezvous, RendezvousConfig

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "docs" / "examples"
WRITTEN = "127.0.0.1:9000"


@pytest.fixture
async def registry() -> AsyncIterator[str]:
    """A rendezvous with the beacon on the port after the registry's, where nodes look for it."""
    for port in range(20_000, 30_000, 2):
        server = Rendezvous(
            RendezvousConfig(
                registry_port=port,
                beacon_port=port + 1,
                limits=Limits.relaxed(),
                beacon_limits=BeaconLimits.relaxed(),
            )
        )
        try:
            await server.start()
        except OSError:
            continue
        yield f"127.0.0.1:{port}"
        await server.stop()
        return
    pytest.fail("no two neighbouring ports are free")


async def start(name: str, registry: str, directory: Path, *, warnings: str = "error") -> asyncio.subprocess.Process:
    """The example as written, but for the address of the registry."""
    for source in EXAMPLES.glob("*.py"):  # one may import another
        (directory / source.name).write_text(source.read_text().replace(WRITTEN, registry))
    program = directory / name
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", warnings, str(program)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=directory,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        preexec_fn=heed_interrupts,
    )


def heed_interrupts() -> None:
    """A suite that runs in the background of a shell hands on an ignored SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


async def output(process: asyncio.subprocess.Process) -> list[str]:
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    assert err == b""
    return out.decode().splitlines()


async def test_embed(registry: str, tmp_path: Path) -> None:
    async with Node(registry=registry, hostname="bob", public=True):
        lines = await output(await start("embed.py", registry, tmp_path))
    assert lines == ["0:0000.0000.0002", "b'hello'"]
    assert (tmp_path / "alice" / "identity.json").exists()


async def test_serve(registry: str, tmp_path: Path) -> None:
    process = await start("serve.py", registry, tmp_path)
    assert process.stdout is not None
    assert (await process.stdout.readline()).startswith(b"ready")
    async with Node(registry=registry, public=True) as node, await node.dial("bob", 1000) as stream:
        await stream.write(b"echo")
        assert await stream.readexactly(4) == b"echo"
    process.send_signal(signal.SIGINT)
    try:
        _, err = await asyncio.wait_for(process.communicate(), 30)
    except TimeoutError:
        process.kill()
        raise
    assert b"KeyboardInterrupt" in err
    assert b"Task was destroyed" not in err


async def test_accept(registry: str, tmp_path: Path) -> None:
    process = await start("accept.py", registry, tmp_path)
    assert process.stdout is not None
    assert (await process.stdout.readline()).endswith(b" 1000\n")
    async with Node(registry=registry, public=True) as node, await node.dial("bob", 1000) as stream:
        assert await stream.readexactly(3 + 16) == b"hi " + str(node.address).encode()
        assert await stream.read() == b""
    assert await output(process) == []


async def test_deadlines(registry: str, tmp_path: Path) -> None:
    async with Node(registry=registry, hostname="bob", public=True) as bob:
        lines = await output(await start("deadlines.py", registry, tmp_path))
    assert lines[0].startswith("the read deadline of <Stream ")
    assert lines[1] == "b'late'"
    assert lines[2] == f"no node named 'carol' at registry {registry}"
    assert str(bob.config.hostname) == "bob"
    assert "port 80" in lines[3]


async def test_datagrams(registry: str, tmp_path: Path) -> None:
    lines = await output(await start("datagrams.py", registry, tmp_path))
    assert lines[:2] == ["0:0000.0000.0001 b'ping'", "bob 0:0000.0000.0002 True"]
    assert re.fullmatch(r"\d+ us", lines[2])


async def test_events(registry: str, tmp_path: Path) -> None:
    assert await output(await start("events.py", registry, tmp_path)) == ["tunnel.established 1 True"]


async def test_callbacks(registry: str, tmp_path: Path) -> None:
    process = await start("callbacks.py", registry, tmp_path)
    assert process.stdout is not None
    assert (await process.stdout.readline()).startswith(b"ready")
    async with Node(registry=registry, public=True) as node:
        async with await node.dial("bob", 1000) as stream:
            await stream.write(b"echo")
            assert await stream.readexactly(4) == b"echo"
            async with await node.dial("bob", 1001) as other:
                await other.write(bytes(100_000))
        assert await output(process) == ["100000 bytes, in order"]


async def test_whole_network(registry: str, tmp_path: Path) -> None:
    assert await output(await start("whole_network.py", registry, tmp_path)) == ["b'across the tunnel'"]


async def test_plugin(registry: str, tmp_path: Path) -> None:
    assert await output(await start("plugin.py", registry, tmp_path)) == ["b'hi\\n'", "greeter"]


async def test_trust(registry: str, tmp_path: Path) -> None:
    assert await output(await start("trust.py", registry, tmp_path)) == [
        "b'out of reach'",
        "['it is alice']",
        "b'hello'",
        "[('trust.changed', 'approved'), ('trust.revoked', None), ('trust.changed', 'local')]",
        "b'out of reach' [] []",
    ]


async def test_messages(registry: str, tmp_path: Path) -> None:
    assert await output(await start("messages.py", registry, tmp_path)) == [
        "ACK TEXT 5 bytes True",
        "0:0000.0000.0001 TEXT hello",
        "0 of 50,000 bytes",
        "50,000 of 50,000 bytes",
        "zeros.bin 50000 True",
        "weather rain",
    ]
    [stored] = (tmp_path / "bob" / "received").iterdir()
    assert stored.read_bytes() == bytes(50_000)


async def test_without_a_network(tmp_path: Path) -> None:
    # pytest-asyncio warns of settings that only a project has
    lines = await output(await start("without_a_network.py", WRITTEN, tmp_path, warnings="ignore"))
    assert re.match(r"\d+ passed", lines[-1]), lines


def test_every_example_has_a_test() -> None:
    tests = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert {path.stem for path in EXAMPLES.glob("*.py")} <= tests | {"greeter"}  # which the last two import


@pytest.mark.parametrize("document", ["README.md", "docs/PLUGINS.md"])
def test_code_in_documents_is_from_the_examples(document: str) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)
    examples = [squeezed(path.read_text()) for path in EXAMPLES.glob("*.py")]
    assert blocks
    for block in blocks:
        assert any(squeezed(block) in example for example in examples), block


def squeezed(text: str) -> str:
    """Without indentation and blank lines: a document may show the inside of a function."""
    return "\n".join(line.strip() for line in text.splitlines() if line.strip())
