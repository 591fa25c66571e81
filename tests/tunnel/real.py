"""The same simulated network with the compiled datapath in place of the fake one."""

from __future__ import annotations

import math
from random import Random
from typing import Any

from pilot._fast.addr import Addr
from pilot._fast.datapath import Datapath
from pilot._fast.port import DatagramPort
from pilot.tunnel import TunnelSettings
from tests.tunnel.fakes import Address, Host, Network

PORT = 7


class OpenGate:
    """Everybody may do everything, pings as the host says."""

    def __init__(self, host: Host) -> None:
        self.host = host

    def admit_syn(self, node: int, port: int) -> bool:
        return True

    def admit_datagram(self, node: int) -> bool:
        return True

    def admit_ping(self, node: int) -> bool:
        return self.host.answers_pings


class Port(DatagramPort):
    """A datagram port on the simulated network."""

    def __init__(self, host: Host) -> None:
        self.host = host

    def send_datagram(self, data: bytes, address: Address) -> None:
        error = self.host.transmit(data, address)
        if error:
            raise OSError(error, "refused by the simulated system")


class Compiled:
    """What the tests expect of a datapath, around the compiled one."""

    def __init__(self, host: RealHost) -> None:
        self.host = host
        self.inbox: list[tuple[int, bytes]] = []
        self.port = Port(host)
        self.core = Datapath(
            self.port, host.tunnel, clock=lambda: host.network.now, scheduler=self, random=Random(host.node)
        )
        self.core.mux.gate = OpenGate(host)
        self.core.mux.on_datagram = lambda addr, source, target, data: self.inbox.append((addr.node, bytes(data)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.core, name)

    def arm(self, deadline: float) -> None:
        if deadline < math.inf:
            self.host.network.call(max(deadline, self.host.network.now), self._due)

    def soon(self) -> None:
        self.host.network.call(self.host.network.now, lambda now: self.core.end_of_iteration())

    def _due(self, now: float) -> None:
        if self.core.next_deadline() <= now:
            self.core.handle_timer(now)
        self.arm(self.core.next_deadline())

    def receive(self, data: bytes, source: Address, now: float) -> None:
        self.port.deliver(data, source, now)

    def send_datagram(self, node: int, payload: bytes, now: float) -> None:
        peer = self.core.add_peer(node)
        self.core.mux.send_datagram(peer, Addr(0, node), PORT, payload)


class RealHost(Host):
    """A node with the compiled datapath."""

    def __init__(self, network: Network, node: int, address: Address, settings: TunnelSettings, seed: int) -> None:
        super().__init__(network, node, address, settings, seed)
        self.datapath = Compiled(self)  # type: ignore[assignment]
        self.tunnel.attach(self.datapath.core)  # type: ignore[attr-defined]


class RealNetwork(Network):
    """The simulated network, nodes with the compiled datapath."""

    host_type = RealHost
