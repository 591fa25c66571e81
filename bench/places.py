"""Where benchmarks run: loopback, a namespace with nothing but loopback, or two namespaces joined by a veth (bench)."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from bench.harness import Side, SubjectError

__all__ = ["Place", "forget", "inside", "ip", "lone_namespace", "loopback", "need_namespaces", "veth"]

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
    need_namespaces()
    try:
        ip("netns", "add", name)
        ip("-n", name, "link", "set", "lo", "up")
        for host in LONE_HOSTS:
            ip("-n", name, "addr", "add", f"{host}/32", "dev", "lo")
        prefix = inside(name)
        yield Place((Side(LONE_HOSTS[0], prefix), Side(LONE_HOSTS[1], prefix)), LONE_HOSTS[2])
    finally:
        forget(name)


@asynccontextmanager
async def veth(mtu: int) -> AsyncIterator[Place]:
    """Two namespaces joined by a veth pair of that MTU."""
    names = [f"pilot-bench-{os.getpid()}-{end}" for end in ("client", "server")]
    devices = [f"pb{os.getpid() % 10**6}{end}" for end in ("c", "s")]
    need_namespaces()
    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", devices[0], "netns", names[0], "type", "veth", "peer", "name", devices[1], "netns", names[1])
        for name, device, host in zip(names, devices, VETH_HOSTS, strict=True):
            ip("-n", name, "addr", "add", f"{host}/24", "dev", device)
            ip("-n", name, "link", "set", device, "mtu", str(mtu), "up")
            ip("-n", name, "link", "set", "lo", "up")
        sides = [Side(host, inside(name)) for name, host in zip(names, VETH_HOSTS, strict=True)]
        yield Place((sides[0], sides[1]), VETH_HOSTS[1])
    finally:
        for name in names:
            forget(name)


def need_namespaces() -> None:
    """Raises SubjectError where no namespace can be made and entered: in most containers not even root may."""
    if os.name != "posix" or os.geteuid() != 0:
        raise SubjectError("network namespaces need root")
    if shutil.which("ip") is None:
        raise SubjectError("there is no `ip` program (package iproute2)")
    name = f"pilot-bench-{os.getpid()}-probe"
    try:
        ip("netns", "add", name)
        ip("netns", "exec", name, "true")
    except SubjectError as error:
        raise SubjectError(f"network namespaces need root's right to mount: {error}") from None
    finally:
        forget(name)


def inside(name: str) -> tuple[str, ...]:
    """The words before a command that run it in the namespace."""
    return ("ip", "netns", "exec", name)


def ip(*words: str) -> None:
    """Runs `ip`; raises SubjectError with its complaint."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode:
        raise SubjectError(f"ip {' '.join(words)}: {done.stderr.strip()}")


def forget(name: str) -> None:
    """Removes the name of a namespace; namespace and devices go with their last process."""
    subprocess.run(["ip", "netns", "del", name], capture_output=True)
