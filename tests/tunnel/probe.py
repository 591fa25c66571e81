"""A peer under the test's hand: it sends exactly what it is told and records what comes back.

Its frames are made by the plain-Python reference, not by the code under test.
"""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from pilot.protocol import beacon
from pilot.tunnel import Resolved
from tests.reference import frames
from tests.reference.addr import Address as NodeAddress
from tests.reference.packet import CONTROL, DATAGRAM, Packet
from tests.tunnel.fakes import BEACON, Address, Host, Network, Record, kind


class Probe:
    """Node `node` at 198.51.100.<node>, registered with the key of a fixed seed unless told otherwise."""

    def __init__(self, network: Network, node: int = 9, *, registered: bool = True) -> None:
        self.network = network
        self.node = node
        self.address: Address = (f"198.51.100.{node}", 4000)
        self.identity = Ed25519PrivateKey.from_private_bytes(bytes([node]) * 32)
        self.x25519 = X25519PrivateKey.from_private_bytes(bytes([node, 1]) * 16)
        self.got: list[tuple[float, Address, bytes]] = []
        self.counter = 0
        self.prefix = b"\xa1\xb2\xc3\xd4"
        self.datapath = self
        network.hosts[self.address] = self  # type: ignore[assignment]
        network._known[node] = self.address
        if registered:
            network.registry[node] = Record(frames.public_bytes(self.identity), Resolved(self.address))

    def receive(self, data: bytes, source: Address, now: float) -> None:
        self.got.append((now, source, data))

    def move(self, address: Address) -> None:
        """Be somewhere else from now on."""
        self.network.hosts.pop(self.address)
        self.address = address
        self.network.hosts[address] = self  # type: ignore[assignment]

    def new_key(self, seed: int) -> None:
        """Use another X25519 pair from now on, as after a restart."""
        self.x25519 = X25519PrivateKey.from_private_bytes(bytes([self.node, seed]) * 16)
        self.counter = 0

    def pila(self) -> bytes:
        return frames.encode_pila(self.node, frames.public_bytes(self.x25519), self.identity)

    def pilk(self) -> bytes:
        return frames.encode_pilk(self.node, frames.public_bytes(self.x25519))

    def send(self, frame: bytes, host: Host, *, source: Address | None = None, settle: float = 0.1) -> None:
        """Send a frame straight to the host and let it arrive and be answered."""
        self.network.send(frame, source or self.address, host.address)
        self.network.run(settle)

    def relay(self, frame: bytes, host: Host, *, sender: int | None = None, settle: float = 0.1) -> None:
        """Have the beacon deliver a frame to the host."""
        message = beacon.wrap_deliver(self.node if sender is None else sender, frame)
        self.network.send(message, BEACON, host.address)
        self.network.run(settle)

    def take(self) -> list[str]:
        """The kinds of datagrams received since the last call."""
        got, self.got = self.got, []
        self.seen = [data for _, _, data in got]
        return [kind(data) for data in self.seen]

    def key(self, host: Host) -> bytes:
        """The AES key of the last PILA the host has sent to anybody as far as the log says."""
        for _, source, _, data in reversed(self.network.log):
            frame = data[9:] if data[:1] == b"\x05" else data
            if source == host.address and frame[:4] == b"PILA":
                return frames.session_key(
                    self.x25519, frames.decode_pila_untrusted(frame, host.identity.public_key).x25519
                )
        raise AssertionError("the host has sent no PILA")

    def sealed(
        self, host: Host, payload: bytes = b"data", *, counter: int | None = None, protocol: int = DATAGRAM
    ) -> bytes:
        """A PILS around a datagram (or an empty keepalive) with the next counter."""
        self.counter = self.counter + 1 if counter is None else counter
        port = 0 if protocol == CONTROL else 7
        packet = Packet(
            NodeAddress(0, self.node), NodeAddress(0, host.node), protocol, 0, port, port, payload=payload
        ).encode()
        return frames.seal(self.key(host), self.node, self.prefix, self.counter, packet)

    def opened(self, host: Host, data: bytes) -> frames.Opened:
        """What a PILS of the host says."""
        return frames.open_untrusted(self.key(host), data)


def node_and_probe(**options: object) -> tuple[Network, Host, Probe]:
    """A started node, registered with the beacon, and a registered probe it has not met."""
    network = Network(**options)  # type: ignore[arg-type]
    host = network.host(1)
    probe = Probe(network)
    network.run(5.0)
    return network, host, probe


def met(**options: object) -> tuple[Network, Host, Probe]:
    """The same after a first exchange that the probe began, and one frame from it."""
    network, host, probe = node_and_probe(**options)
    probe.send(probe.pila(), host)
    probe.send(probe.sealed(host), host)
    probe.take()
    host.events.clear()
    network.log[:] = [entry for entry in network.log if b"PILA" in entry[3]]
    return network, host, probe
