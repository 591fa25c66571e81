"""The simulated underlay: hosts, and links that lose, delay, repeat and reorder as a seed decides (testing, L2)."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import heapq
import os
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

from pilot._fast.errors import BusyError
from pilot._fast.port import DatagramPort
from pilot.testing.connections import Connection, connect
from pilot.testing.loop import VirtualLoop
from pilot.testing.nat import Nat, NatType

__all__ = ["Host", "Link", "Network", "VirtualPort"]

Address = tuple[str, int]
Tap = Callable[[float, Address, Address, bytes], None]
Answer = Callable[[Address], asyncio.Protocol]

MAX_DATAGRAM: Final = 65_507
DEFAULT_PORT: Final = 4000
UNIX_TIME: Final = 1_800_000_000.0
"""What wall clocks show when virtual time begins."""


@dataclass(slots=True)
class Link:
    """One direction between two hosts. Seconds, bytes, bytes per second and shares of 1.

    Besides single `loss`, bursts: with `burst_loss` per datagram the link goes bad, and then loses everything for
    `burst_seconds` on average (Gilbert's model, in time: counted in datagrams, a burst would last for ever on a link
    that repeats one datagram more and more slowly).
    """

    delay: float = 0.01
    jitter: float = 0.0
    rate: float = 0.0
    """0 is infinite."""
    queue: int = 256 * 1024
    loss: float = 0.0
    burst_loss: float = 0.0
    burst_seconds: float = 0.05
    duplicate: float = 0.0
    reorder: float = 0.0
    """Share of datagrams that are held back by up to three delays more."""
    mtu: int = MAX_DATAGRAM
    """Longer datagrams are refused at the sender (`EMSGSIZE`)."""
    swallows: int = MAX_DATAGRAM
    """Longer datagrams vanish on the way, as in a path-MTU black hole."""
    _busy_until: float = field(default=0.0, repr=False)
    _bad_until: float = field(default=0.0, repr=False)

    def arrivals(self, size: int, now: float, random: Random) -> list[float]:
        """When copies of a datagram of `size` bytes sent `now` arrive; none when it is lost."""
        if now < self._bad_until:
            return []
        if self.burst_loss and random.random() < self.burst_loss:
            self._bad_until = now + random.expovariate(1.0 / self.burst_seconds)
            return []
        if size > self.swallows or (self.loss and random.random() < self.loss):
            return []
        at = now
        if self.rate:
            at = max(now, self._busy_until)
            if (at - now) * self.rate > self.queue:
                return []
            self._busy_until = at = at + size / self.rate
        at += self.delay
        if self.jitter:
            at += random.random() * self.jitter
        if self.reorder and random.random() < self.reorder:
            at += random.random() * 3.0 * self.delay
        if self.duplicate and random.random() < self.duplicate:
            return [at, at + random.random() * 2.0 * self.delay]
        return [at]


class VirtualPort(DatagramPort):
    """A datagram port on the virtual network: what `Node(open_port=...)` and a sans-IO datapath take."""

    def __init__(self, host: Host, port: int) -> None:
        self.host = host
        self._port = port
        self.closed = False
        host.bind(port, self._received, self._batch_end)

    @property
    def address(self) -> Address:
        """The address on the host itself, before any NAT. Like a socket bound to no address, it moves with the host."""
        return self.host.address, self._port

    def send_datagram(self, data: bytes, address: Address) -> None:
        """Sends one datagram. Raises `OSError` (`EMSGSIZE`) when the link does not take one so long."""
        if not self.closed:
            self.host.send(data, self._port, address)

    def close(self) -> None:
        """Frees the address; what is under way to it is lost. May be repeated."""
        if not self.closed:
            self.closed = True
            self.host.release(self._port)

    def _received(self, data: bytes, source: Address) -> None:
        self.deliver(data, source, self.host.clock(), last=False)

    def _batch_end(self) -> None:
        self.end_batch(self.host.clock())


class Host:
    """One machine: an underlay address, a monotonic and a wall clock, perhaps behind a NAT. Comes from `Network`."""

    def __init__(self, network: Network, address: str, nat: Nat | None) -> None:
        self.network = network
        self.address = address
        self.nat = nat
        self.offset = 0.0
        self.wall_offset = 0.0
        self._ports: dict[int, tuple[Callable[[bytes, Address], None], Callable[[], None]]] = {}

    @property
    def public(self) -> str:
        """The address the others see."""
        return self.nat.host if self.nat is not None else self.address

    def clock(self) -> float:
        """This machine's monotonic clock, for `Node(clock=...)`."""
        return self.network.loop.time() + self.offset

    def wall(self) -> float:
        """This machine's wall clock, for `Node(wall=...)`."""
        return UNIX_TIME + self.network.loop.time() + self.wall_offset

    def jump(self, seconds: float) -> None:
        """The monotonic clock leaps ahead, as when a virtual machine was held up. It never goes back."""
        if seconds < 0:
            raise ValueError("a monotonic clock never goes back")
        self.offset += seconds
        self.wall_offset += seconds

    def set_wall(self, seconds: float) -> None:
        """Somebody sets the wall clock by so many seconds, either way; or the machine slept (ahead)."""
        self.wall_offset += seconds

    def open_port(self, port: int = DEFAULT_PORT) -> VirtualPort:
        """A datagram port here. Raises `BusyError` when it is taken."""
        return VirtualPort(self, port)

    def bind(self, port: int, receive: Callable[[bytes, Address], None], batch_end: Callable[[], None]) -> None:
        """Has what arrives at `port` handed to `receive`, and `batch_end` called after each batch."""
        if port in self._ports:
            raise BusyError(f"port {port} of {self.address} is taken: close the one who has it")
        self._ports[port] = receive, batch_end

    def release(self, port: int) -> None:
        """Undoes `bind`."""
        self._ports.pop(port, None)

    def receivers(self, port: int) -> tuple[Callable[[bytes, Address], None], Callable[[], None]] | None:
        """Who was bound to `port`."""
        return self._ports.get(port)

    def send(self, data: bytes, port: int, target: Address) -> None:
        """Sends one datagram from `port`. Raises `OSError` (`EMSGSIZE`)."""
        self.network._send(self, data, port, target)


class Network:
    """All hosts and links. Time is the loop's, every decision comes from `seed`: two runs are the same byte for byte.

    `link_options` describe links nobody named. `digest()` sums up every datagram sent, with its time and addresses.
    """

    def __init__(self, loop: VirtualLoop, seed: int | str = 0, **link_options: Any) -> None:
        self.loop = loop
        self.random = Random(f"network {seed}")
        self.link_options = link_options
        self.hosts: dict[str, Host] = {}
        self.nats: dict[str, Nat] = {}
        self.taps: list[Tap] = []
        self.sent = self.lost = self.delivered = 0
        self._links: dict[tuple[str, str], Link] = {}
        self._side: dict[str, int] = {}
        self._dark: set[str] = set()
        self._heap: list[tuple[float, int, Address, bytes, Address]] = []
        self._order = 0
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._sum = hashlib.blake2b(digest_size=16)
        self._answers: dict[Address, tuple[Host, Answer]] = {}
        self._connections: list[Connection] = []
        self._hosts_numbered = self._nats_numbered = 0
        loop.connect = self._connect

    # ---------------------------------------------------------------------------------------- who there is

    def nat(self, kind: NatType, **options: Any) -> Nat:
        """A new NAT box with a public address of its own."""
        box = Nat(self._nat_address(), kind, self.loop.time, **options)
        self.nats[box.host] = box
        return box

    def host(self, *, nat: Nat | None = None) -> Host:
        """A new machine: with a public address, or with a private one behind `nat`."""
        host = Host(self, self._host_address(nat), nat)
        self.hosts[host.address] = host
        return host

    def move(self, what: Host | Nat) -> None:
        """A host, or a NAT box on its outer side, has another address from one moment to the next.

        Datagram ports go on there, and links stay as they are. What is under way to the old address is lost; a
        connection made from it stalls and later breaks. A box forgets its mappings.
        """
        if isinstance(what, Nat):
            before, after = what.host, self._nat_address()
            self.nats[after] = self.nats.pop(before)
            what.host = after
            what.reboot()
        else:
            before, after = what.address, self._host_address(what.nat)
            self.hosts[after] = self.hosts.pop(before)
            what.address = after
        for old in [ends for ends in self._links if before in ends]:
            source, target = (after if end == before else end for end in old)
            self._links[source, target] = self._links.pop(old)
        if before in self._side:
            self._side[after] = self._side.pop(before)
        if before in self._dark:
            self._dark.remove(before)
            self._dark.add(after)

    def _host_address(self, nat: Nat | None) -> str:
        self._hosts_numbered += 1
        network = "198.18" if nat is None else nat.inside
        return f"{network}.{self._hosts_numbered >> 8}.{self._hosts_numbered & 255}"

    def _nat_address(self) -> str:
        self._nats_numbered += 1
        return f"203.0.113.{self._nats_numbered}"

    def link(self, source: Host, target: Host) -> Link:
        """The link in this direction; change its fields as you like, at any time."""
        return self._link(source.address, target.public)

    def _link(self, source: str, target: str) -> Link:
        link = self._links.get((source, target))
        if link is None:
            link = self._links[source, target] = Link(**self.link_options)
        return link

    # --------------------------------------------------------------------------------------------- trouble

    def partition(self, *groups: Iterable[Host]) -> None:
        """Cuts every way between hosts of different groups; hosts in none reach everybody. Replaces an earlier one."""
        self._side.clear()
        for number, group in enumerate(groups):
            for host in group:
                self._side[host.address] = self._side[host.public] = number

    def heal(self) -> None:
        """Ends the partition and lights every dark host."""
        self._side.clear()
        self._dark.clear()

    def darken(self, host: Host, dark: bool = True) -> None:
        """Cuts `host` off from everybody, or ends that."""
        (self._dark.add if dark else self._dark.discard)(host.address)

    def _cut(self, source: str, target: str) -> bool:
        if source in self._dark or target in self._dark:
            return True
        side = self._side.get(source)
        return side is not None and self._side.get(target, side) != side

    # ------------------------------------------------------------------------------------------- datagrams

    def _send(self, host: Host, data: bytes, port: int, target: Address) -> None:
        now = self.loop.time()
        link = self._link(host.address, target[0])
        if len(data) > link.mtu:
            raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
        source = (host.address, port)
        if (host.nat is not None and target[0] not in self.hosts) or (
            host.nat is not None and self.hosts[target[0]].nat is not host.nat
        ):
            source = host.nat.outbound(source, target)
        self.sent += 1
        self._record(now, source, target, data)
        for tap in self.taps:
            tap(now, source, target, data)
        if self._cut(host.address, target[0]):
            self.lost += 1
            return
        arrivals = link.arrivals(len(data), now, self.random)
        self.lost += not arrivals
        for at in arrivals:
            self._push(at, source, target, data)

    def inject(self, data: bytes, source: Address, target: Address, *, delay: float = 0.0) -> None:
        """A stranger's datagram, with whatever source address it claims; taps do not see it."""
        self._push(self.loop.time() + delay, source, target, data)

    def _push(self, at: float, source: Address, target: Address, data: bytes) -> None:
        self._order += 1
        heapq.heappush(self._heap, (at, self._order, target, data, source))
        if self._timer is None or at < self._due:
            if self._timer is not None:
                self._timer.cancel()
            self._due = at
            self._timer = self.loop.call_at(at, self._arrive)

    def _arrive(self) -> None:
        """Everything that is due, as one batch for each port that gets some of it."""
        now = self.loop.time()
        batches: dict[Callable[[], None], None] = {}
        while self._heap and self._heap[0][0] <= now:
            _, _, target, data, source = heapq.heappop(self._heap)
            nat = self.nats.get(target[0])
            inside = nat.inbound(target[1], source) if nat is not None else target
            host = self.hosts.get(inside[0]) if inside is not None else None
            if inside is None or host is None or self._unreachable(host, target, source):
                self.lost += 1
                continue
            receivers = host.receivers(inside[1])
            if receivers is None or host.address in self._dark:
                self.lost += 1
                continue
            self.delivered += 1
            receivers[0](data, source)
            batches[receivers[1]] = None
        for batch_end in batches:
            batch_end()
        self._timer = None
        if self._heap:
            self._due = self._heap[0][0]
            self._timer = self.loop.call_at(self._due, self._arrive)

    def _unreachable(self, host: Host, target: Address, source: Address) -> bool:
        """A private address is known inside its own NAT only."""
        if host.nat is None or target[0] != host.address:
            return False
        sender = self.hosts.get(source[0])
        return sender is None or sender.nat is not host.nat

    def _record(self, now: float, source: Address, target: Address, data: bytes) -> None:
        head = f"{source[0]}:{source[1]}>{target[0]}:{target[1]}".encode()
        self._sum.update(struct.pack("<dHI", now, len(head), len(data)) + head + data)

    def digest(self) -> str:
        """A hash over every datagram sent so far, with its time and addresses, in order."""
        return self._sum.hexdigest()

    # ----------------------------------------------------------------------------------------- connections

    def listen(self, server: Host, port: int, caller: Host, answer: Answer) -> None:
        """Accepts connections (TCP in the real world) of `caller` to `port`: `answer(address)` makes the protocol.

        One port serves one caller: an asyncio connection does not say from which virtual host it was made.
        """
        self._answers[server.address, port] = caller, answer

    def unlisten(self, server: Host, port: int) -> None:
        """Refuses connections to `port` from now on and breaks the open ones."""
        self._answers.pop((server.address, port), None)
        for connection in self._connections:
            if connection.key == (server.address, port):
                connection.fail()
        self._prune()

    def hang_up(self, server: Host) -> None:
        """Breaks every connection to `server`, as its restart would."""
        for connection in self._connections:
            if connection.key[0] == server.address:
                connection.fail()
        self._prune()

    def _connect(self, protocol: asyncio.BaseProtocol, host: str, port: int) -> asyncio.Transport:
        answer = self._answers.get((host, port))
        if answer is None:
            raise ConnectionRefusedError(errno.ECONNREFUSED, f"nobody listens at {host}:{port}")
        caller, make = answer
        inside, public = caller.address, caller.public
        if self._cut(inside, host):
            raise OSError(errno.EHOSTUNREACH, os.strerror(errno.EHOSTUNREACH))
        self._prune()
        source = (public, 30_000 + len(self._connections))
        assert isinstance(protocol, asyncio.Protocol)

        def cut() -> bool:
            return (caller.address, caller.public) != (inside, public) or self._cut(inside, host)

        delay = self._link(inside, host).delay
        connection = connect(self.loop, (host, port), protocol, make(source), source, delay, cut)
        self._connections.append(connection)
        return connection.caller

    def _prune(self) -> None:
        self._connections = [connection for connection in self._connections if not connection.closed]
