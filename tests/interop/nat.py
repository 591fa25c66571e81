"""Hosts of ours behind NATs of every kind, in namespaces around a hub that stands for the internet (below all layers).

The hub has a bridge, 203.0.113.0/24. A host without NAT is on it; every other one has a network 192.168.N.0/24 of its
own and a router whose outer device is on the bridge. nftables makes the kinds of NAT, by their names in RFC 3489:

- full cone: one public port for a local one, whoever sends to it (SNAT, and DNAT back for all).
- address-restricted: the same for senders whose address was written to within a minute.
- port-restricted: plain masquerading. The port stays as it is while nobody else has it.
- symmetric: masquerading with a random port for every destination.
- remapped: port-restricted, with a public port that differs from the local one, as behind most carrier NATs.

An unexpected packet is dropped without an answer and without a trace in the connection table.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any, Self

from tests.interop.netns import Namespace, missing

ROOT = Path(__file__).parent.parent.parent
HUB = "203.0.113.254"
KINDS = ("none", "full-cone", "address-restricted", "port-restricted", "symmetric", "remapped")
FORWARDED = 4000
"""The only local port the routers know: a cone needs its way back by name."""

_TABLE = """
add table ip pilot
delete table ip pilot
table ip pilot {
    SETS
    chain pre { type nat hook prerouting priority -100; PRE; }
    chain post { type nat hook postrouting priority 100; POST; }
    chain input { type filter hook input priority 0; iifname out meta l4proto udp drop; }
    chain forward { type filter hook forward priority 0; policy accept; CONTACTED; }
}
"""


def unavailable_reason() -> str | None:
    """Why this cannot run here, or None."""
    if reason := missing():
        return reason
    for program, package in (("nft", "nftables"), ("conntrack", "conntrack")):
        if shutil.which(program) is None:
            return f"no `{program}` program (package {package})"
    return None


def rules(kind: str, public: str, local: str, port: int = 0) -> str:
    """The router's rules; `port`: the public port of its only host, 0 for the local one."""
    # The neighbours go on delivering to an address the router had a moment ago.
    back = f"ip daddr {public} udp dport {port or FORWARDED} dnat to {local}:{FORWARDED}"
    found = {"SETS": "", "PRE": "", "POST": "oifname out masquerade", "CONTACTED": ""}
    if kind == "symmetric":
        found["POST"] += " fully-random"
    elif port:
        found["POST"] = f"oifname out meta l4proto udp snat to {public}:{port}; {found['POST']}"
    if kind == "full-cone":
        found["PRE"] = f"iifname out {back}"
    elif kind == "address-restricted":
        found["SETS"] = "set contacted { type ipv4_addr; flags dynamic, timeout; timeout 60s; }"
        found["CONTACTED"] = "oifname out meta l4proto udp update @contacted { ip daddr }"
        found["PRE"] = f"iifname out ip saddr @contacted {back}"
    return functools.reduce(lambda text, name: text.replace(name, found[name]), found, _TABLE)


class Internet:
    """The hub and everything on it; `close` ends it all."""

    def __init__(self) -> None:
        self.hub = Namespace()
        self._namespaces = [self.hub]
        self._numbers = iter(range(1, 100))
        self.hub.run("ip", "link", "add", "bridge", "type", "bridge")
        self.hub.run("ip", "addr", "add", f"{HUB}/24", "dev", "bridge")
        self.hub.run("ip", "link", "set", "bridge", "up")

    def host(self, kind: str) -> Host:
        """A new host behind a NAT of that kind."""
        return Host(self, kind, next(self._numbers))

    def namespace(self) -> Namespace:
        """A new one."""
        self._namespaces.append(Namespace())
        return self._namespaces[-1]

    def join(self, inner: Namespace, device: str, outer: Namespace, peer: str) -> None:
        """A cable between two namespaces."""
        words = ["ip", "link", "add", device, "type", "veth", "peer", "name", peer, "netns", outer.name]
        inner.run(*words)
        inner.run("ip", "link", "set", device, "up")
        outer.run("ip", "link", "set", peer, "up")

    def close(self) -> None:
        """Removes all namespaces; what runs in them has to be gone before."""
        for namespace in self._namespaces:
            namespace.close()


class Host:
    """A host, the router before it (its own namespace where there is no NAT), and its public address."""

    def __init__(self, internet: Internet, kind: str, number: int) -> None:
        self.kind = kind
        self.name = f"{kind}-{number}"
        self.public = f"203.0.113.{number}"
        self._number = number
        self._internet = internet
        self.router = internet.namespace()
        internet.join(self.router, "out", internet.hub, f"port{number}")
        internet.hub.run("ip", "link", "set", f"port{number}", "master", "bridge")
        self._be(self.public)
        if kind == "none":
            self.inside, self.local = self.router, self.public
            self.router.run("nft", "add", "table", "ip", "pilot")
            return
        self.inside, self.local = internet.namespace(), f"192.168.{number}.2"
        internet.join(self.inside, "lan", self.router, "in")
        self.router.run("ip", "addr", "add", f"192.168.{number}.1/24", "dev", "in")
        self.inside.run("ip", "addr", "add", f"{self.local}/24", "dev", "lan")
        self.inside.run("ip", "route", "add", "default", "via", f"192.168.{number}.1")
        self.router.run("tee", "/proc/sys/net/ipv4/ip_forward", stdin="1")
        self._map(4100 + number if kind == "remapped" else 0)

    def rebind(self, port: int) -> None:
        """The router forgets its connections and gives its host another public port, as after a restart."""
        self._map(port)
        self.router.run("conntrack", "-F")

    def move(self) -> None:
        """Another public address, from one moment to the next."""
        before, self.public = self.public, f"203.0.113.{100 + self._number}"
        self.router.run("ip", "addr", "del", f"{before}/24", "dev", "out")
        self._be(self.public)
        if self.kind != "none":
            self.rebind(0)

    def cut(self, other: Host) -> None:
        """Loses every packet to and from another host until `heal`; the hub stays reachable."""
        hook = "input" if self.kind == "none" else "forward"
        chain = f"add chain ip pilot lost {{ type filter hook {hook} priority 20; policy accept; }}\n"
        lost = "".join(f"add rule ip pilot lost ip {end} {other.public} drop\n" for end in ("saddr", "daddr"))
        self.router.run("nft", "-f", "-", stdin=chain + lost)

    def heal(self) -> None:
        """Ends `cut`."""
        self.router.run("nft", "delete", "chain", "ip", "pilot", "lost")

    def _be(self, address: str) -> None:
        self.router.run("ip", "addr", "add", f"{address}/24", "dev", "out")

    def _map(self, port: int) -> None:
        self.router.run("nft", "-f", "-", stdin=rules(self.kind, self.public, self.local, port))


class Remote:
    """A node in a process of its own on a host; any number of calls may be under way (`tests/interop/nat_node.py`)."""

    def __init__(self, host: Host, process: asyncio.subprocess.Process) -> None:
        self.host = host
        self.node_id = 0
        self.address = ""
        self._process = process
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def start(cls, host: Host, **settings: Any) -> Self:
        """Starts one and waits until it is registered."""
        process = await asyncio.create_subprocess_exec(
            *host.inside.command(sys.executable, "-m", "tests.interop.nat_node"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        remote = cls(host, process)
        try:
            told = await remote.call("start", **settings)
        except BaseException:
            await remote.stop()
            raise
        remote.node_id, remote.address = told["node_id"], told["address"]
        return remote

    async def call(self, do: str, **params: Any) -> Any:
        """What that function of the process returned; RuntimeError with its complaint."""
        number = len(self._answers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"number": number, "do": do, **params}).encode() + b"\n")
        return await answer

    async def echo(self, peer: Remote, size: int, timeout: float = 40.0) -> float:
        """Sends `size` random bytes to `peer` on a stream that is dialed once; seconds until all were back.

        RuntimeError when they come back different, or not in time.
        """
        seconds: float = await self.call("echo", peer=peer.address, size=size, timeout=timeout)
        return seconds

    async def path(self, peer: Remote) -> str:
        """What this node says about its way to the peer: `direct`, `relay` or `none`."""
        found: str = await self.call("path", node_id=peer.node_id)
        return found

    async def stop(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            async with asyncio.timeout(5):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
        await self._reading

    async def _read(self) -> None:
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            told = json.loads(line)
            answer = self._answers[told["number"]]
            if "error" in told:
                answer.set_exception(RuntimeError(f"{self.host.name}: {told['error']}"))
            else:
                answer.set_result(told["result"])
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(RuntimeError(f"{self.host.name}: the process ended"))
