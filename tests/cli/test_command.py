"""Every command as a process of its own, over loopback: results, JSON, exit codes, signals."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from pilot._fast.errors import PilotError
from pilot.cli.output import Exit, progress_bars, table
from pilot.node import Node
from pilot.plugins.dataexchange import DataExchangeService
from pilot.plugins.dataexchange import Limits as DataExchangeLimits
from pilot.rendezvous import BeaconLimits, Limits, Rendezvous, RendezvousConfig

Start = Callable[..., Awaitable[Process]]


@pytest.fixture
async def where() -> AsyncIterator[dict[str, str]]:
    config = RendezvousConfig(
        registry_port=0, beacon_port=0, limits=Limits.relaxed(), beacon_limits=BeaconLimits.relaxed()
    )
    async with Rendezvous(config) as server:
        yield {
            "registry": "{}:{}".format(*server.registry_address),
            "beacon": "{}:{}".format(*server.beacon_address),
        }


@pytest.fixture
async def start(where: dict[str, str], tmp_path: Path) -> AsyncIterator[Start]:
    """`await start("ping", "bob")`: a running command with its own home; killed after the test if need be."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PILOT_")}
    environment |= {
        "PILOT_REGISTRY": where["registry"],
        "PILOT_BEACON": where["beacon"],
        "PILOT_LISTEN": "127.0.0.1:0",
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
        "XDG_STATE_HOME": str(tmp_path / "state"),
    }
    async with AsyncExitStack() as processes:

        async def start(*arguments: str, **changes: str) -> Process:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "pilot.cli", *arguments),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=environment | changes,
            )
            processes.push_async_callback(end, process)
            return process

        yield start


async def end(process: Process) -> None:
    if process.returncode is None:
        process.kill()
    await process.communicate()


async def finish(process: Process) -> tuple[int, Any]:
    """The exit code and the one JSON object on stdout."""
    output, errors = await process.communicate()
    lines = output.decode().splitlines()
    assert len(lines) == 1, (output, errors)
    assert process.returncode is not None
    return process.returncode, json.loads(lines[0])


async def first_line(process: Process) -> Any:
    assert process.stdout is not None
    return json.loads(await process.stdout.readline())


async def test_demo_prints_one_object_with_exactly_these_keys(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(os.urandom(1_000_000))
    code, result = await finish(await start("demo", str(file), "--json", PILOT_RELAY_ONLY="nonsense"))
    assert code == Exit.OK
    assert list(result) == [
        *("bytes", "seconds", "throughput_MBps", "rtt_us_p50", "rtt_us_p99"),
        *("sha256_ok", "segment_bytes", "versions"),
    ]
    assert result["bytes"] == 1_000_000
    assert result["sha256_ok"] is True
    assert 0 < result["rtt_us_p50"] <= result["rtt_us_p99"]
    assert result["segment_bytes"] >= 1152
    assert {"pilot", "python", "cryptography"} <= set(result["versions"])


async def test_demo_runs_its_own_package_wherever_it_is_started(tmp_path: Path) -> None:
    for room in ("pilot", "pilot/cli"):
        (tmp_path / room).mkdir()
        (tmp_path / room / "__init__.py").write_text("raise SystemExit('the wrong package')")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "pilot.cli", "demo", "--bytes", "1000", "--json"),
        stdout=asyncio.subprocess.PIPE,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert (await finish(process))[0] == Exit.OK


async def test_demo_shows_a_table_and_leaves_nothing(start: Start, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    process = await start("demo", "--bytes", "100000", TMPDIR=str(scratch))
    output, _ = await process.communicate()
    assert process.returncode == Exit.OK
    assert "sha256 ok" in output.decode()
    assert not list(scratch.iterdir())
    assert str(scratch) not in command_lines()


def command_lines() -> str:
    """The command lines of all processes of this machine; the demo's nodes are told the scratch directory in theirs."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(path.read_bytes().decode(errors="replace"))
    return "\n".join(found)


async def test_ping(start: Start, where: dict[str, str]) -> None:
    async with Node(**where, hostname="bob", public=True):
        code, result = await finish(await start("ping", "bob", "--json", "--count", "2", "--interval", "0"))
    assert code == Exit.OK
    assert (result["sent"], result["received"], result["ok"]) == (2, 2, True)
    assert 0 < result["rtt_ms_min"] <= result["rtt_ms_median"] <= result["rtt_ms_max"]


async def test_bench(start: Start, where: dict[str, str]) -> None:
    async with Node(**where, hostname="bob", public=True):
        code, result = await finish(await start("bench", "bob", "--json", "--bytes", "2000000", "--rounds", "50"))
    assert code == Exit.OK
    assert result["bytes"] == 2_000_000
    assert result["throughput_MBps"] > 0


async def test_send_and_recv_with_a_resumed_file(start: Start, tmp_path: Path) -> None:
    source, inbox = tmp_path / "report.pdf", tmp_path / "inbox"
    inbox.mkdir()
    source.write_bytes(os.urandom(3_000_000))
    digest = hash_file(source)
    once = await start("up", "--json", "--without", "policy")
    sender_id = (await first_line(once))["node_id"]  # kept with the sender's identity
    once.send_signal(signal.SIGTERM)
    await once.communicate()
    (inbox / ".partial").mkdir()
    (inbox / ".partial" / f"{digest[:32]}-{sender_id:08x}").write_bytes(source.read_bytes()[:1_000_000])
    state = {"XDG_STATE_HOME": str(tmp_path / "other")}
    receiver = await start("recv", str(inbox), "--json", "--hostname", "bob", "--public", **state)
    sender = await retried(start, "send", str(source), "bob", "--json")
    assert sender == {**sender, "ok": True, "bytes": 3_000_000, "resumed_at": 1_000_000, "sha256": digest}
    code, result = await finish(receiver)
    assert code == Exit.OK
    [file] = result["files"]
    assert file == {**file, "path": str(inbox / "report.pdf"), "bytes": 3_000_000, "resumed_at": 1_000_000}
    assert hash_file(inbox / "report.pdf") == digest
    assert [path.name for path in inbox.iterdir()] == ["report.pdf"]


def hash_file(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


async def retried(start: Start, *arguments: str) -> Any:
    """The result of a command whose peer may not be up yet."""
    for _ in range(20):
        code, result = await finish(await start(*arguments))
        if code != Exit.NOT_FOUND:
            assert code == Exit.OK, result
            return result
        await asyncio.sleep(0.3)
    pytest.fail("the peer did not come up")


async def test_refused_file_is_a_failure_with_a_reason(start: Start, where: dict[str, str], tmp_path: Path) -> None:
    source = tmp_path / "file"
    source.write_bytes(b"x" * 100)
    service = DataExchangeService(received=tmp_path / "in", limits=DataExchangeLimits(file_bytes=99))
    async with Node(**where, hostname="bob", public=True, services=[service]):
        code, result = await finish(await start("send", str(source), "bob", "--json"))
    assert code == Exit.FAILED
    assert result["error"] == {**result["error"], "kind": "PilotError", "exit_code": 1}
    assert "file of 100 bytes is larger than the 99 allowed here" in result["error"]["message"]


async def test_received_files_are_told_and_too_large_ones_too(
    start: Start, where: dict[str, str], tmp_path: Path
) -> None:
    receiver = await start("recv", str(tmp_path), "--max-bytes", "10", "--hostname", "bob", "--public")
    assert receiver.stderr is not None
    assert await receiver.stderr.readline() == b"ready: pilot send FILE bob\n"
    sending = DataExchangeService()
    async with Node(**where, services=[sending]) as node:
        with pytest.raises(PilotError, match="larger than the 10"):
            await sending.client.send_file("bob", b"x" * 11, name="big")
        refusal = (await receiver.stderr.readline()).decode()
        assert refusal.startswith(f"big from {node.address} did not arrive: ")
        assert refusal.endswith("larger than the 10 allowed here\n")
        assert not await sending.client.send_message("bob", "hello")
        await sending.client.send_file("bob", b"small", name=".env")
        output, errors = await receiver.communicate()
        assert errors.decode() == f"{tmp_path}/_.env from {node.address}, 5 bytes\n"
    assert receiver.returncode == Exit.OK
    assert output.decode() == f"{tmp_path}/_.env\n"


@pytest.mark.parametrize(
    ("arguments", "code", "kind"),
    [
        (["ping", "nobody"], Exit.NOT_FOUND, "PeerNotFoundError"),
        (["ping", "NOBODY:X"], Exit.INVALID, "InvalidValueError"),
        (["ping", "nobody", "--registry", "nonsense"], Exit.INVALID, "InvalidValueError"),
        (["ping", "nobody", "--config", "/nonexistent.toml"], Exit.INVALID, "InvalidValueError"),
        (["ping", "nobody", "--listen", "127.0.0.1:99999"], Exit.INVALID, "InvalidValueError"),
        (["bench", "0:0000.0000.00FF"], Exit.NOT_FOUND, "PeerNotFoundError"),
    ],
)
async def test_errors_are_one_object_and_a_code(start: Start, arguments: list[str], code: Exit, kind: str) -> None:
    returned, result = await finish(await start(*arguments, "--json"))
    assert returned == code
    assert result["error"]["kind"] == kind
    assert result["error"]["exit_code"] == code
    assert result["error"]["message"]


async def test_refused_and_unanswered_and_unreachable(start: Start, where: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x")
    async with Node(**where, hostname="bob", public=True):
        code, _ = await finish(await start("send", str(file), "bob", "--json"))
        assert code == Exit.REFUSED
    code, result = await finish(await start("ping", "bob", "--json", PILOT_REGISTRY="127.0.0.1:1"))
    assert code == Exit.REGISTRY
    assert "cannot be reached" in result["error"]["message"]


async def test_errors_without_json_are_one_line_on_stderr(start: Start) -> None:
    process = await start("ping", "nobody")
    output, errors = await process.communicate()
    assert process.returncode == Exit.NOT_FOUND
    assert output == b""
    assert errors.decode().startswith("pilot: no node named 'nobody' at registry 127.0.0.1")
    assert errors.count(b"\n") == 1


async def test_usage_errors(start: Start) -> None:
    process = await start("ping")
    output, errors = await process.communicate()
    assert (process.returncode, output) == (Exit.USAGE, b"")
    assert b"Usage: pilot ping" in errors
    for arguments in (["nonsense"], ["demo", "missing"], ["demo", "--bytes", "0"], ["ping"]):
        code, result = await finish(await start(*arguments, "--json"))
        assert (code, result["error"]["exit_code"]) == (Exit.USAGE, Exit.USAGE)
        assert result["error"]["kind"] == "UsageError"


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
async def test_up_is_stopped_in_order_by_signals(start: Start, where: dict[str, str], signum: int) -> None:
    process = await start("up", "--hostname", "carol", "--public", "--json")
    ready = await first_line(process)
    assert (ready["hostname"], ready["unconfirmed"]) == ("carol", [])
    async with Node(**where) as node:
        stream = await node.dial("carol", 7)
        await stream.write(b"x")
        assert await stream.read() == b"x"
        process.send_signal(signum)
        assert await stream.read() == b""
    await process.communicate()
    assert process.returncode == Exit.OK


async def test_one_state_directory_one_node(start: Start) -> None:
    first = await start("up", "--json")
    address = (await first_line(first))["address"]
    code, result = await finish(await start("recv", "--json"))
    assert code == Exit.BUSY
    assert "in use" in result["error"]["message"]
    first.send_signal(signal.SIGTERM)
    await first.communicate()
    again = await start("up", "--json")
    assert (await first_line(again))["address"] == address


async def test_client_commands_work_beside_a_running_node(start: Start) -> None:
    process = await start("up", "--json", "--hostname", "dora", "--public")
    await first_line(process)
    code, result = await finish(await start("ping", "dora", "--json", "--count", "1"))
    assert (code, result["received"]) == (Exit.OK, 1)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, Exit.INTERRUPTED), (signal.SIGTERM, Exit.TERMINATED)])
async def test_interrupted_before_it_was_done(start: Start, where: dict[str, str], signum: int, code: Exit) -> None:
    async with Node(**where, hostname="bob", public=True):
        process = await start("ping", "bob", "--count", "1000", "--ephemeral")
        assert process.stderr is not None
        await process.stderr.readline()
        process.send_signal(signum)
        await process.communicate()
    assert process.returncode == code


async def test_rendezvous_serves_nodes_until_it_is_stopped(start: Start, tmp_path: Path) -> None:
    process = await start(
        "rendezvous", "--port", "0", "--beacon-port", "0", "--store", str(tmp_path / "r.db"), "--json"
    )
    ready = await first_line(process)
    async with Node(registry=ready["registry"], beacon=ready["beacon"], hostname="alice", public=True) as node:
        assert await node.find("alice") == node.address
    process.send_signal(signal.SIGTERM)
    await process.communicate()
    assert process.returncode == Exit.OK


async def test_interrupted_before_the_files_came(start: Start) -> None:
    process = await start("recv", "--ephemeral")
    assert process.stderr is not None
    assert (await process.stderr.readline()).startswith(b"ready: pilot send FILE")
    process.send_signal(signal.SIGINT)
    await process.communicate()
    assert process.returncode == Exit.INTERRUPTED


async def test_interrupted_while_it_is_still_loading(start: Start) -> None:
    script = (
        "import os, signal, sys, threading; from pilot.cli import main; sys.argv = ['pilot', 'up'];"
        "signal.signal(signal.SIGINT, signal.default_int_handler);"
        "sys.addaudithook(lambda name, args: name == 'import' and args[0] == 'pilot.cli.app'"
        " and os.kill(os.getpid(), signal.SIGINT)); main()"
    )
    done = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", script], capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (Exit.INTERRUPTED, b"", b"")


async def test_taken_port_is_busy(start: Start, where: dict[str, str]) -> None:
    port = where["registry"].rpartition(":")[2]
    code, result = await finish(await start("rendezvous", "--port", port, "--beacon-port", "0", "--json"))
    assert code == Exit.BUSY
    assert "in use" in result["error"]["message"]


async def test_help_names_every_command(start: Start) -> None:
    output, _ = await (await start("--help", COLUMNS="200")).communicate()
    for command in ("demo", "up", "rendezvous", "ping", "send", "recv", "bench"):
        assert command in output.decode()
    assert "demo-sender" not in output.decode()


def test_missing_extras_are_one_line() -> None:
    script = "import sys; sys.modules['typer'] = None; from pilot.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 1
    assert "pip install 'pilot-asyncio[cli]'" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_table_shortens_and_interprets_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    table({"sha256": "a" * 64, "file": "/long" * 40 + "/[b]report[/b].pdf", "throughput_MBps": 1234.56, "ok": True})
    assert capsys.readouterr().out.splitlines() == [
        f"sha256           {'a' * 64}",
        f"file             {'/long' * 40}/[b]report[/b].pdf",
        "throughput MBps  1,234.6",
        "ok               yes",
    ]


def test_a_bar_takes_any_name_of_a_file() -> None:
    with progress_bars(as_json=True) as bars:
        bars.show("[b]a[/i].txt from 0:0000.0000.0001", 1, 2)
        [task] = bars._progress.tasks
        [cell, *_] = bars._progress.make_tasks_table([task]).columns[0].cells
        assert str(cell) == "[b]a[/i].txt from 0:0000.0000.0001"


@pytest.mark.parametrize("module", ["pilot", "pilot.cli"])
def test_the_command_as_a_module(module: str) -> None:
    done = subprocess.run([sys.executable, "-m", module, "nonsense"], capture_output=True, text=True, check=False)
    assert done.returncode == Exit.USAGE
    assert "No such command 'nonsense'" in done.stderr
