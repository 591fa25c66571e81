"""Where benchmarks run: loopback, a namespace with nothing but loopback, or two namespaces joined by a veth (bench)."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from bench.harness import Side, SubjectError

__all__ = ["Place", "lone_namespace", "loopback", "veth"]

VETH_HOSTS = ("198.18.0.1", "198.18.0.2")
LONE_HOSTS = ("198.18.1.1", "198.18.1.2", "198.18.1.3")
"""Of the range for benchmarks; the official daemon discards 127.x as its own address."""


@dataclass(frozen=True, slots=True)
class Place:
    """The two sides, client first, and the address of the rendezvous, which runs beside the server."""

    sides: tuple[Side, Side]
    rendezvous_host: str


@asynccontextmanager
async def loopback() -> AsyncIterator[Place]:
    """127.0.0.1, as it is."""
    side = Side("127.0.0.1")
    yield Place((side, side), side.host)


@asynccontextmanager
async def lone_namespace() -> AsyncIterator[Place]:
    """A namespace with only loopback in it: the official programs run nowhere else."""
    name = f"pilot-bench-{os.getpid()}"
    _need_root()
    try:
        _ip("netns", "add", name)
        _ip("-n", name, "link", "set", "lo", "up")
        for host in LONE_HOSTS:
            _ip("-n", name, "addr", "add", f"{host}/32", "dev", "lo")
        inside = _inside(name)
        yield Place((Side(LONE_HOSTS[0], inside), Side(LONE_HOSTS[1], inside)), LONE_HOSTS[2])
    finally:
        _forget(name)


@asynccontextmanager
async def veth(mtu: int) -> AsyncIterator[Place]:
    """Two namespaces joined by a veth pair of that MTU."""
    names = [f"pilot-bench-{os.getpid()}-{end}" for end in ("client", "server")]
    devices = [f"pb{os.getpid() % 10**6}{end}" for end in ("c", "s")]
    _need_root()
    try:
        for name in names:
            _ip("netns", "add", name)
        _ip("link", "add", devices[0], "netns", names[0], "type", "veth", "peer", "name", devices[1], "netns", names[1])
        for name, device, host in zip(names, devices, VETH_HOSTS, strict=True):
            _ip("-n", name, "addr", "add", f"{host}/24", "dev", device)
            _ip("-n", name, "link", "set", device, "mtu", str(mtu), "up")
            _ip("-n", name, "link", "set", "lo", "up")
        sides = [Side(host, _inside(name)) for name, host in zip(names, VETH_HOSTS, strict=True)]
        yield Place((sides[0], sides[1]), VETH_HOSTS[1])
    finally:
        for name in names:
            _forget(name)


def _need_root() -> None:
    if os.name != "posix" or os.geteuid() != 0:
        raise SubjectError("network namespaces need root")
    if shutil.which("ip") is None:
        raise SubjectError("there is no `ip` program (package iproute2)")


def _inside(name: str) -> tuple[str, ...]:
    return ("ip", "netns", "exec", name)


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode:
        raise SubjectError(f"ip {' '.join(words)}: {done.stderr.strip()}")


def _forget(name: str) -> None:
    """Removes the name; namespace and devices go with their last process."""
    subprocess.run(["ip", "netns", "del", name], capture_output=True)
