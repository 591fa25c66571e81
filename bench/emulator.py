"""Two namespaces joined by a link with delay, rate, queue and loss, emulated by a program of its own, wan.c (bench).

The kernel's own emulator (netem) is missing from many kernels. Packets of TCP and UDP go through the same two TUN
devices, so every subject meets the same link.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench.harness import Side, SubjectError
from bench.places import Place, forget, inside, ip, need_namespaces

__all__ = ["Link", "emulated"]

SOURCE: Final = Path(__file__).resolve().parent / "wan.c"
HOSTS: Final = ("198.18.77.1", "198.18.77.2")
DEVICE: Final = "wan0"
READY_SECONDS: Final = 10.0
KERNEL_BUFFERS: Final = "4096 1048576 67108864"
SETTINGS: Final = {
    "tcp_wmem": KERNEL_BUFFERS,
    "tcp_rmem": KERNEL_BUFFERS,
    "tcp_no_metrics_save": "1",
}
"""Kernel TCP is not held back by its buffers, nor does a connection learn from the one before."""


@dataclass(frozen=True, slots=True)
class Link:
    """A link, the same in both directions; `loss` is a fraction of the packets."""

    loss: float
    rtt_ms: float = 20.0
    rate_mbit: float = 1000.0
    queue_kb: float = 2500.0
    mtu: int = 1500

    def arguments(self) -> list[str]:
        """Those of the program."""
        named = {"rtt-ms": self.rtt_ms, "loss": self.loss, "rate-mbit": self.rate_mbit, "queue-kb": self.queue_kb}
        return [word for name, value in named.items() for word in (f"--{name}", str(value))]


@asynccontextmanager
async def emulated(link: Link, counters: list[dict[str, Any]]) -> AsyncIterator[Place]:
    """The place; when it is left, `counters` holds what each direction carried and lost."""
    need_namespaces()
    program = build()
    names = [f"pilot-bench-{os.getpid()}-{end}" for end in ("client", "server")]
    process = None
    try:
        for name in names:
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
            for setting, value in SETTINGS.items():
                ip("netns", "exec", name, "sh", "-c", f"echo '{value}' >/proc/sys/net/ipv4/{setting}")
        process = await _start(program, names, link)
        for name, host, peer in zip(names, HOSTS, reversed(HOSTS), strict=True):
            ip("-n", name, "addr", "add", host, "peer", peer, "dev", DEVICE)
            ip("-n", name, "link", "set", DEVICE, "mtu", str(link.mtu), "txqueuelen", "10000", "up")
        sides = [Side(host, inside(name)) for name, host in zip(names, HOSTS, strict=True)]
        yield Place((sides[0], sides[1]), HOSTS[1])
    finally:
        if process is not None:
            counters += await _stop(process)
        for name in names:
            forget(name)


def build() -> Path:
    """The compiled program, built where it is missing; raises SubjectError where it cannot be."""
    source = SOURCE.read_bytes()
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    target = base / "pilot-bench" / f"wan-{hashlib.sha256(source).hexdigest()[:16]}"
    if target.exists():
        return target
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise SubjectError("the emulated link needs a C compiler")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(f".{os.getpid()}")
    done = subprocess.run([compiler, "-O2", "-o", str(partial), str(SOURCE)], capture_output=True, text=True)
    if done.returncode:
        raise SubjectError(f"bench/wan.c could not be built: {done.stderr.strip()[-500:]}")
    partial.replace(target)
    return target


async def _start(program: Path, names: list[str], link: Link) -> asyncio.subprocess.Process:
    process = await asyncio.create_subprocess_exec(
        str(program),
        *names,
        *link.arguments(),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(READY_SECONDS):
            line = await process.stdout.readline()
    except TimeoutError:
        line = b"not ready in time"
    if line != b"ready\n":
        await _stop(process)
        raise SubjectError(f"the emulated link: {line.decode().strip()}")
    return process


async def _stop(process: asyncio.subprocess.Process) -> list[dict[str, Any]]:
    """Ends the program; what it printed of both directions."""
    if process.returncode is None:
        process.terminate()
    try:
        async with asyncio.timeout(READY_SECONDS):
            printed, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        return []
    return [json.loads(line) for line in printed.splitlines() if line.startswith(b"{")]
