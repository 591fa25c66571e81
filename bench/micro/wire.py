"""Two datapaths joined by a lossless wire in memory; time moves only when nothing else can (bench)."""

from __future__ import annotations

import math
import random
from collections import deque
from typing import Any

from pilot._fast.addr import Addr
from pilot._fast.datapath import Datapath
from pilot._fast.port import DatagramPort
from pilot._fast.seal import Session

BATCH = 64
"""Datagrams handed over at once, as one recvmmsg would."""


class WirePort(DatagramPort):
    """Keeps what is sent until the other end takes it."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.address = address
        self.outgoing: deque[bytes] = deque()

    def send_datagram(self, data: bytes, address: tuple[str, int]) -> None:
        self.outgoing.append(data)


class Control:
    """A control plane that lets everything be."""

    def __getattr__(self, name: str) -> Any:
        return lambda *args: False


class End:
    """One node of the wire: its datapath, port and timer."""

    def __init__(self, wire: Wire, node: int) -> None:
        self.node = node
        self.deadline = math.inf
        self.iteration_wanted = False
        self.port = WirePort((f"10.0.0.{node}", 4000))
        self.datapath = Datapath(
            self.port, Control(), clock=lambda: wire.now, scheduler=self, random=random.Random(node)
        )
        self.datapath.own_node = node
        self.owner: Any = None
        self.streams: list[Any] = []

    def arm(self, deadline: float) -> None:
        self.deadline = deadline

    def soon(self) -> None:
        self.iteration_wanted = True

    def _on_wake(self, events: int) -> None:
        """Streams are polled."""

    def _on_stream(self, stream: Any) -> None:
        stream.owner = self
        self.streams.append(stream)


class Wire:
    """Ends 1 and 2 with a session between them, and one open stream: `source` at end 1, `target` at end 2."""

    def __init__(self, segment: int) -> None:
        self.now = 1000.0
        one, two = self.ends = (End(self, 1), End(self, 2))
        for own, other in ((one, two), (two, one)):
            peer = own.datapath.add_peer(other.node)
            peer.address = other.port.address
            peer.segment_bytes = segment
            prefix = bytes([own.node] * 4)
            session = Session(
                bytes(32), own.node, other.node, prefix, self.now, authenticated=True, peer_x25519=bytes(32)
            )
            own.datapath.install_session(peer, session, self.now)
        two.datapath.mux.listen(7, 8, two)
        self.source = one.datapath.mux.dial(one.datapath.peer(2), Addr(0, 2), 7)
        self.source.owner = one
        while not two.streams:
            self.step()
        self.target = two.streams[0]

    def step(self) -> None:
        """End both iterations, carry what was sent; when nothing moved, let time pass until the next timer is due."""
        moved = False
        for end, other in (self.ends, self.ends[::-1]):
            if end.iteration_wanted:
                end.iteration_wanted = False
                end.datapath.end_of_iteration()
            moved = self.carry(end, other) or moved
        if not moved:
            self.pass_time()

    def carry(self, end: End, other: End) -> bool:
        """Hand one batch from `end` to `other`; whether there was any."""
        outgoing = end.port.outgoing
        size = min(BATCH, len(outgoing))
        for left in range(size - 1, -1, -1):
            other.port.deliver(outgoing.popleft(), end.port.address, self.now, last=left == 0)
        return size > 0

    def pass_time(self) -> None:
        self.now = max(self.now, min(end.deadline for end in self.ends))
        for end in self.ends:
            if end.deadline <= self.now:
                end.deadline = math.inf
                end.datapath.handle_timer(self.now)

    def transfer(self, data: bytes) -> int:
        """Write all of `data` at one end, read it at the other; bytes read."""
        written = read = 0
        while read < len(data):
            if written < len(data):
                written += self.source.write(data, written)
            self.step()
            while chunk := self.target.read(1 << 20):
                read += len(chunk)
        return read
