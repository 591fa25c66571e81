"""The rendezvous server on the virtual network: the real registry and beacon behind virtual ports (testing, L8)."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, Final

from pilot._fast.errors import InvalidValueError, RegistryError
from pilot.protocol.registry import HEADER_BYTES, decode_body_untrusted, encode_frame, frame_length_untrusted
from pilot.rendezvous.beacon import Beacon
from pilot.rendezvous.config import BeaconLimits, Limits, RendezvousConfig
from pilot.rendezvous.dispatch import handle
from pilot.rendezvous.journal import Journal
from pilot.rendezvous.registry import Caller, Registry
from pilot.rendezvous.sqlite_store import SqliteStore
from pilot.rendezvous.state import State
from pilot.testing.network import Host, Network

__all__ = ["VirtualRendezvous"]

Address = tuple[str, int]

BEACON_PORT: Final = 9001
FIRST_DOOR: Final = 10_000
SWEEP_SECONDS: Final = 10.0
ADMIN_TOKEN: Final = "admin"


class VirtualRendezvous:
    """Registry and beacon on a host of their own. Every node gets a registry port of its own (`Network.listen`).

    It keeps its records in memory, so an outage (`down`, `up`) loses connections and beacon table, not registrations.
    """

    def __init__(self, network: Network) -> None:
        self.network = network
        self.host = network.host()
        self.is_down = False
        config = RendezvousConfig(
            admin_token=ADMIN_TOKEN,
            limits=Limits.relaxed(),
            beacon_limits=BeaconLimits.relaxed(),
            clock=self.host.clock,
            wall_clock=self.host.wall,
        )
        self.config = config
        # The journal is never flushed: the store only has to be of the right type.
        state = State(Journal(SqliteStore(config.store)))
        state.load((), self.host.clock(), int(self.host.wall()))
        self.registry = Registry(config, state)
        self.registry.beacon_port = BEACON_PORT
        self._doors = 0
        self._callers: dict[int, Host] = {}
        self._make_beacon()
        self.host.bind(BEACON_PORT, self._datagram, lambda: None)
        self._sweeps = asyncio.get_running_loop().call_later(SWEEP_SECONDS, self._sweep)

    @property
    def beacon_address(self) -> str:
        """`host:port` of the beacon."""
        return f"{self.host.address}:{BEACON_PORT}"

    def administer(self, kind: str, **fields: Any) -> dict[str, Any]:
        """An administrator's request, `create_network` say, answered at once.

        Raises:
            RegistryError: the registry refuses.
        """
        request = {"type": kind, "admin_token": ADMIN_TOKEN, **fields}
        answer = handle(self.registry, request, Caller(self.host.address, 0, self.host.address))
        if "error" in answer:
            raise RegistryError(answer["error"])
        return answer

    def open_door(self, caller: Host) -> int:
        """A new registry port for the nodes of `caller`."""
        self._doors += 1
        port = FIRST_DOOR + self._doors
        self._callers[port] = caller
        if not self.is_down:
            self._listen(port)
        return port

    def close_door(self, port: int) -> None:
        """Nobody calls there any more; open connections break."""
        del self._callers[port]
        self.network.unlisten(self.host, port)

    def down(self) -> None:
        """An outage: connections break, new ones are refused, the beacon is silent."""
        self.is_down = True
        for port in self._callers:
            self.network.unlisten(self.host, port)

    def up(self) -> None:
        """The end of an outage."""
        if self.is_down:
            self.is_down = False
            self._make_beacon()
            for port in self._callers:
                self._listen(port)

    def close(self) -> None:
        """Stops the sweeps."""
        self._sweeps.cancel()
        self.host.release(BEACON_PORT)

    def _listen(self, port: int) -> None:
        self.network.listen(
            self.host, port, self._callers[port], lambda source: _Conversation(self.registry, source, self.host.address)
        )

    def _make_beacon(self) -> None:
        self.beacon = Beacon(
            self.config.beacon_limits,
            self._send,
            is_known=lambda node_id: self.registry.state.live_node(node_id) is not None,
            may_punch=self._may_punch,
        )

    def _may_punch(self, requester_id: int, target_id: int) -> bool:
        nodes = (self.registry.state.live_node(node_id) for node_id in (requester_id, target_id))
        return not any(node is not None and node.relay_only for node in nodes)

    def _datagram(self, data: bytes, source: Address) -> None:
        if not self.is_down:
            self.beacon.receive_untrusted(bytearray(data), len(data), source, self.host.clock())

    def _send(self, data: bytes | memoryview, address: tuple[Any, ...]) -> None:
        with contextlib.suppress(OSError):  # too long for the link
            self.host.send(bytes(data), BEACON_PORT, (address[0], address[1]))

    def _sweep(self) -> None:
        self.registry.reap()
        self.beacon.sweep(self.host.clock())
        self._sweeps = asyncio.get_running_loop().call_later(SWEEP_SECONDS, self._sweep)


class _Conversation(asyncio.Protocol):
    """One connection to the registry: frame in, frame out."""

    def __init__(self, registry: Registry, source: Address, local_host: str) -> None:
        self._registry = registry
        self._caller = Caller(source[0], source[1], local_host)
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        try:
            while self._transport is not None and len(self._buffer) >= HEADER_BYTES:
                end = HEADER_BYTES + frame_length_untrusted(bytes(self._buffer[:HEADER_BYTES]))
                if len(self._buffer) < end:
                    return
                fields = decode_body_untrusted(bytes(self._buffer[HEADER_BYTES:end]))
                del self._buffer[:end]
                self._transport.write(encode_frame(handle(self._registry, fields, self._caller)))
        except InvalidValueError:
            if self._transport is not None:
                self._transport.abort()
