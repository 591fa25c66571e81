"""A UDP probe in plain Python: registers, exchanges keys with a node, sends and receives packets (L4-L6)."""

from __future__ import annotations

import asyncio
import base64
import json
import os
from typing import Any, Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from tests.reference import frames, packet
from tests.reference.addr import Address

Endpoint = tuple[str, int]


async def registry_call(registry: str, **request: Any) -> dict[str, Any]:
    """Return a registry's answer to one request on a connection of its own, errors included."""
    host, _, port = registry.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        body = json.dumps(request).encode()
        writer.write(len(body).to_bytes(4, "big") + body)
        answer: dict[str, Any] = json.loads(
            await reader.readexactly(int.from_bytes(await reader.readexactly(4), "big"))
        )
        return answer
    finally:
        writer.close()
        await writer.wait_closed()


class Probe(asyncio.DatagramProtocol):
    """A public node of its own that speaks to one peer. Every frame that arrives waits in `arrived`, in order."""

    def __init__(self, registry: str, host: str, port: int = 4000) -> None:
        self.registry = registry
        self.endpoint: Endpoint = (host, port)
        self.identity = Ed25519PrivateKey.generate()
        self.x25519 = X25519PrivateKey.generate()
        self.prefix = os.urandom(4)
        self.counter = 0
        self.key = b""
        self.peer: Endpoint = ("", 0)
        self.arrived: asyncio.Queue[tuple[bytes, Endpoint]] = asyncio.Queue()

    async def __aenter__(self) -> Self:
        """Bind the socket and register, publicly."""
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=self.endpoint)
        listen = f"{self.endpoint[0]}:{self.endpoint[1]}"
        key = base64.b64encode(frames.public_bytes(self.identity)).decode()
        registered = await self.call(f"register:{listen}:{key}", type="register", listen_addr=listen, public_key=key)
        self.node_id: int = registered["node_id"]
        self.address = Address(0, self.node_id)
        await self.call(f"set_visibility:{self.node_id}", type="set_visibility", node_id=self.node_id, public=True)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._transport.close()

    async def call(self, challenge: str, **request: Any) -> dict[str, Any]:
        """Return the registry's answer to a signed request; AssertionError when it is an error."""
        signature = base64.b64encode(self.identity.sign(challenge.encode())).decode()
        answer = await registry_call(self.registry, signature=signature, **request)
        assert "error" not in answer, answer
        return answer

    def datagram_received(self, data: bytes, addr: Endpoint) -> None:
        self.arrived.put_nowait((data, addr[:2]))

    def send_frame(self, frame: bytes, to: Endpoint | None = None) -> None:
        """Send raw bytes to the peer or elsewhere."""
        self._transport.sendto(frame, to or self.peer)

    async def receive_frame(self, magic: bytes, timeout: float = 5.0) -> bytes:
        """Return the next frame from the peer that has this magic, dropping what comes before; TimeoutError if none."""
        async with asyncio.timeout(timeout):
            while True:
                frame, source = await self.arrived.get()
                if frame[:4] == magic and source == self.peer:
                    return frame

    async def exchange_keys(self, peer: Endpoint, node: int, public_key: bytes | None = None) -> None:
        """Do a PILA exchange with the node at `peer` and keep its session; its identity key is looked up by default."""
        self.peer, self.peer_address = peer, Address(0, node)
        if public_key is None:
            answer = await registry_call(self.registry, type="lookup", node_id=node)
            public_key = base64.b64decode(answer["public_key"])
        self.send_frame(frames.encode_pila(self.node_id, frames.public_bytes(self.x25519), self.identity))
        answered = frames.decode_pila_untrusted(await self.receive_frame(frames.PILA), public_key)
        assert answered.node == node
        self.key = frames.session_key(self.x25519, answered.x25519)

    def send_packet(self, **fields: Any) -> None:
        """Send one encrypted packet to the peer; `fields` are those of `Packet` that differ from an empty one."""
        self.counter += 1
        inner = packet.Packet(**{"source": self.address, "destination": self.peer_address, **fields})
        self.send_frame(frames.seal(self.key, self.node_id, self.prefix, self.counter, inner.encode()))

    async def receive_packet(self, timeout: float = 5.0) -> packet.Packet:
        """Return the next encrypted packet from the peer."""
        opened = frames.open_untrusted(self.key, await self.receive_frame(frames.PILS, timeout))
        inner = packet.decode_untrusted(opened.plaintext)
        assert inner.source.node == opened.sender == self.peer_address.node
        return inner

    async def ping(self, payload: bytes, port: int = 1234, seq: int = 77) -> packet.Packet:
        """Return the peer's answer to a control ping."""
        self.send_packet(protocol=packet.CONTROL, source_port=port, seq=seq, payload=payload)
        return await self.receive_packet()
