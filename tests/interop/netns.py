"""A network namespace with nothing but loopback, entered by the test process itself (below all layers).

The official programs run through `ip netns exec`, so they cannot reach anything else whatever they try. The test
process enters the same namespace with setns(2): a namespace belongs to a thread, so sockets the test's loop opens are
inside, sockets opened before keep working, and nothing has to be re-executed or forwarded. Threads that exist already
(an executor of an older loop) stay outside.

Addresses: `new_host` puts another address of the benchmark range 198.18.0.0/15 on the loopback device. 127.0.0.x would
not do: the daemon discards it as its own public address, with a warning, and a registry replaces it by the TCP source;
these count as public, so every node has an address of its own, and the daemon's start needs no `-endpoint` and logs
nothing unusual.

Cutting a path: `cut` and `lose` use nftables on the input hook, so packets vanish after the send succeeded, as on a
real network; found to work on Linux 6.18 in a namespace (package nftables). Blackhole routes and rules work as well
but act on the sender, which gets EINVAL instead of a loss; netem and prio queues do not exist there.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_network
from pathlib import Path

CLONE_NEWNET = 0x40000000
HOSTS = "198.18.0.0/15"

_PREFIX = "pilot-interop-"
_RULES = """
table inet pilot {
    chain input {
        type filter hook input priority 0; policy accept;
    }
}
"""
_libc = ctypes.CDLL(None, use_errno=True)
_serial = itertools.count()


@functools.cache
def missing() -> str | None:
    """Return why no namespace can be made here, or None."""
    if os.name != "posix" or not Path("/proc/self/ns/net").exists():
        return "network namespaces need Linux"
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "no `ip` program (package iproute2)"
    name = f"{_PREFIX}{os.getpid()}-probe"
    try:
        for words in (["add", name], ["exec", name, "true"]):
            probe = subprocess.run(["ip", "netns", *words], capture_output=True, text=True)
            if probe.returncode:
                return f"`ip netns {words[0]}` failed: {probe.stderr.strip()}"
    finally:
        _delete(name)
    return None


class Namespace:
    """A namespace that exists until `close`; those that a killed process left behind go when the next one is made."""

    def __init__(self) -> None:
        _delete_abandoned()
        self.name = f"{_PREFIX}{os.getpid()}-{next(_serial)}"
        _ip("netns", "add", self.name)
        self._hosts = (str(host) for host in ip_network(HOSTS).hosts())
        self._filtering = False
        self.run("ip", "link", "set", "lo", "up")

    def close(self) -> None:
        """Remove the name; the namespace itself ends with the last process or socket in it."""
        _delete(self.name)

    def command(self, *argv: str) -> list[str]:
        """Return the command line that runs `argv` inside."""
        return ["ip", "netns", "exec", self.name, *argv]

    def run(self, *argv: str, stdin: str = "") -> str:
        """Run a short program inside and return what it printed; RuntimeError with its complaint when it fails."""
        done = subprocess.run(self.command(*argv), capture_output=True, text=True, input=stdin)
        if done.returncode:
            raise RuntimeError(f"{' '.join(argv)}: {done.stderr.strip()}")
        return done.stdout

    def new_host(self) -> str:
        """Put an address nobody used yet on the loopback device and return it."""
        host = next(self._hosts)
        self.run("ip", "addr", "add", f"{host}/32", "dev", "lo")
        return host

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Move the calling thread, and threads and processes it starts, into the namespace for the `with` block."""
        before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            inside = os.open(f"/run/netns/{self.name}", os.O_RDONLY | os.O_CLOEXEC)
            try:
                _setns(inside)
            finally:
                os.close(inside)
            yield
        finally:
            _setns(before)
            os.close(before)

    @contextmanager
    def cut(self, one: str, other: str, *, one_way: bool = False) -> Iterator[None]:
        """Lose every UDP packet between two hosts, or only those from `one` to `other`; TCP passes."""
        with self.lose(one, other, 100, one_way=one_way):
            yield

    @contextmanager
    def lose(self, one: str, other: str, percent: int, *, one_way: bool = False) -> Iterator[None]:
        """Lose `percent` of the UDP packets between two hosts, each independently of the others."""
        self._start_filter()
        pairs = [(one, other)] if one_way else [(one, other), (other, one)]
        handles = [self._add_rule(source, destination, percent) for source, destination in pairs]
        try:
            yield
        finally:
            for handle in handles:
                self.run("nft", "delete", "rule", "inet", "pilot", "input", "handle", handle)

    def _start_filter(self) -> None:
        if not self._filtering:
            self.run("nft", "-f", "-", stdin=_RULES)
            self._filtering = True

    def _add_rule(self, source: str, destination: str, percent: int) -> str:
        chance = [] if percent >= 100 else ["numgen", "random", "mod", "100", "<", str(percent)]
        match = ["ip", "saddr", source, "ip", "daddr", destination, "meta", "l4proto", "udp", *chance]
        printed = self.run("nft", "--echo", "--handle", "add", "rule", "inet", "pilot", "input", *match, "drop")
        return printed.rsplit("# handle ", 1)[1].split()[0]


def can_filter() -> bool:
    """Return whether `cut` and `lose` can work here."""
    return shutil.which("nft") is not None


def _ip(*argv: str) -> None:
    subprocess.run(["ip", *argv], check=True, capture_output=True)


def _delete(name: str) -> None:
    subprocess.run(["ip", "netns", "del", name], capture_output=True)


def _delete_abandoned() -> None:
    for path in Path("/run/netns").glob(f"{_PREFIX}*"):
        owner = path.name.removeprefix(_PREFIX).split("-")[0]
        if not Path("/proc", owner).exists():
            _delete(path.name)


def _setns(descriptor: int) -> None:
    if _libc.setns(descriptor, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")
