"""Runs subjects: two pinned processes each, rounds in turn, medians, CPU seconds, and where it was measured (bench)."""

from __future__ import annotations

import asyncio
import datetime
import json
import os
import platform
import ssl
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final, Self

__all__ = [
    "CORES",
    "Pair",
    "SubjectError",
    "Worker",
    "busy_seconds",
    "machine",
    "median",
    "percentile",
    "progress",
    "versions",
]

ROOT: Final = Path(__file__).resolve().parent.parent
LINE_LIMIT: Final = 1 << 26
ANSWER_SECONDS: Final = 600.0
STOP_SECONDS: Final = 10.0
PACKAGES: Final = ("uvloop", "cryptography", "isal", "pyzmq", "aioquic", "pyee")


class SubjectError(Exception):
    """A subject cannot run here, or failed; the argument is the reason."""


def _cores() -> tuple[int, int]:
    """The core of the client and that of the server; -1 where processes cannot be pinned."""
    if not hasattr(os, "sched_getaffinity"):
        return -1, -1
    usable = sorted(os.sched_getaffinity(0))
    return usable[0], usable[-1]


CORES: Final = _cores()


class Worker:
    """A process of `bench/worker.py`. One call at a time."""

    def __init__(self, process: asyncio.subprocess.Process, name: str) -> None:
        self._process = process
        self._name = name

    @classmethod
    async def start(cls, subject: str, role: str, core: int, prefix: Sequence[str] = ()) -> Self:
        """Starts one; `prefix` is a command that runs it elsewhere, in a namespace for instance."""
        process = await asyncio.create_subprocess_exec(
            *(*prefix, sys.executable, "-m", "bench.worker", subject, role, str(core)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            cwd=ROOT,
            limit=LINE_LIMIT,
            env={name: value for name, value in os.environ.items() if not name.startswith("PILOT_NO_")},
        )
        return cls(process, f"{subject} {role}")

    async def call(self, do: str, **params: Any) -> Any:
        """What the end's method returned.

        Raises:
            SubjectError: it raised, its process is gone, or it took longer than ten minutes.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                self._process.stdin.write(json.dumps({"do": do, **params}).encode() + b"\n")
                await self._process.stdin.drain()
                line = await self._process.stdout.readline()
        except TimeoutError:
            raise SubjectError(f"{self._name}: {do} took longer than {ANSWER_SECONDS:.0f} s") from None
        except ConnectionError:
            line = b""
        if not line:
            raise SubjectError(f"{self._name} ended with exit code {await self._process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise SubjectError(f"{self._name}: {do}: {answer['error']}")
        return answer["result"]

    async def stop(self) -> None:
        """Ends the process, in order if it can."""
        if self._process.returncode is not None:
            return
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()


@dataclass
class Pair:
    """A subject that runs: `client` on the first core, `server` on the last. `samples` is filled by rounds."""

    name: str
    client: Worker
    server: Worker
    samples: list[Any] = field(default_factory=list)
    cpu: list[tuple[float, float]] = field(default_factory=list)

    @classmethod
    async def start(cls, name: str, module: str, sides: Sequence[Side], params: dict[str, Any]) -> Self:
        """Starts both ends and opens them, the server first; raises SubjectError with nothing left running.

        `params` go to both; a `host` among them replaces that of the sides.
        """
        server = await Worker.start(module, "server", CORES[1], sides[1].prefix)
        client = await Worker.start(module, "client", CORES[0], sides[0].prefix)
        pair = cls(name, client, server)
        try:
            found = await server.call("open", **{"host": sides[1].host, **params})
            answer = await client.call("open", **{"host": sides[0].host, **params, **found})
            if "address" in answer:
                await server.call("meet", address=answer["address"])
        except BaseException:
            await pair.stop()
            raise
        return pair

    async def stop(self) -> None:
        """Ends both processes, the client first."""
        await self.client.stop()
        await self.server.stop()

    async def act(self, action: str, kind: str, *, count: int = 0, size: int = 0, **more: Any) -> tuple[Any, Any]:
        """One round: what the client answered and what the server saw; adds the CPU seconds of both ends to `cpu`."""
        before = [await end.call("usage") for end in (self.client, self.server)]
        await self.server.call("expect", kind=kind, count=count, size=size)
        wanted = {"count": count, "size": size, **more}
        told = await self.client.call(action, **{name: value for name, value in wanted.items() if value})
        seen = await self.server.call("collect")
        after = [await end.call("usage") for end in (self.client, self.server)]
        self.cpu.append((after[0] - before[0], after[1] - before[1]))
        return told, seen

    def cpu_seconds(self) -> float:
        """CPU seconds of both ends, median of the rounds."""
        return median([sum(ends) for ends in self.cpu])


@dataclass(frozen=True, slots=True)
class Side:
    """Where an end runs: the address it binds, and the command that takes it into a namespace."""

    host: str
    prefix: tuple[str, ...] = ()


def median(values: Sequence[float]) -> float:
    """The middle one."""
    return float(statistics.median(values))


def percentile(values: Sequence[float], fraction: float) -> float:
    """The smallest value that at least `fraction` of `values` do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -int(-fraction * len(ordered) // 1) - 1)]


def progress(text: str) -> None:
    """A line for who waits, on standard error."""
    print(text, file=sys.stderr, flush=True)


def busy_seconds() -> float:
    """CPU seconds all cores have spent on anything since the system started, stolen ones among them; 0.0 if unknown."""
    lines = _lines("/proc/stat")
    if not lines:
        return 0.0
    user, nice, system, _idle, _waiting, irq, softirq, stolen = map(int, lines[0].split()[1:9])
    return (user + nice + system + irq + softirq + stolen) / os.sysconf("SC_CLK_TCK")


def machine() -> dict[str, Any]:
    """Where and when, and how busy the machine was: the load of the last minute counts our own rounds too."""
    model = next(
        (line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), ""
    )
    mtu = "".join(_lines("/sys/class/net/lo/mtu"))
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": model or platform.processor(),
        "cores": os.cpu_count(),
        "pinned": {"client": CORES[0], "server": CORES[1]},
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "loopback_mtu": int(mtu) if mtu else None,
        "load": os.getloadavg()[0],
    }


def versions() -> dict[str, str]:
    """Of the interpreter, this checkout and everything that takes part."""
    import pilot

    found = {"pilot": pilot.__version__, "python": platform.python_version(), "openssl_of_ssl": ssl.OPENSSL_VERSION}
    if commit := _commit():
        found["pilot_commit"] = commit
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _commit() -> str:
    command = ["git", "-c", f"safe.directory={ROOT}", "-C", str(ROOT), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
