"""A registry without sockets, on a clock that tests turn, and a bare client for one with sockets (rendezvous room)."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pilot.protocol import registry as wire
from pilot.rendezvous import Limits, RendezvousConfig, SqliteStore
from pilot.rendezvous.dispatch import answer, handle
from pilot.rendezvous.journal import Journal
from pilot.rendezvous.registry import Caller, Registry
from pilot.rendezvous.state import State

LOCAL = Caller("127.0.0.1", 50_000, "127.0.0.1")
ADMIN_TOKEN = "adm"
WALL = 1_795_340_000.0


class Clock:
    """Monotonic seconds that move only when told."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now

    def wall(self) -> float:
        return WALL + self.now - 1_000.0


class Identity:
    """A key and what a node would do with it."""

    def __init__(self) -> None:
        self.key = Ed25519PrivateKey.generate()
        self.text = wire.public_key_text(self.key.public_key().public_bytes_raw())
        self.node_id = 0

    def request(self, kind: str, **fields: Any) -> wire.Message:
        """A signed request; the signer's id is filled in."""
        message: wire.Message = {"type": kind, **fields}
        signer = wire.CHALLENGES[kind].signer
        message.setdefault(signer, self.text if signer == "public_key" else self.node_id)
        return wire.sign_request(message, self.key)

    def registration(self, **fields: Any) -> wire.Message:
        return self.request("register", **{"listen_addr": "203.0.113.9:4000", **fields})

    def admin_request(self, kind: str, timestamp: float, **fields: Any) -> wire.Message:
        """An administrative request proven by this member's signature."""
        message = {"type": kind, "node_id": self.node_id, "timestamp": int(timestamp), **fields}
        return {**message, "signature": wire.sign(self.key, wire.admin_challenge_text(message))}


class World:
    """A sans-IO registry in memory."""

    def __init__(self, **settings: Any) -> None:
        self.clock = Clock()
        settings = {"admin_token": ADMIN_TOKEN, "limits": Limits.relaxed(), **settings}
        self.config = RendezvousConfig(clock=self.clock, wall_clock=self.clock.wall, **settings)
        self.store = SqliteStore()
        self.journal = Journal(self.store)
        self.registry = Registry(self.config, State(self.journal))
        self.registry.beacon_port = 9201
        self.registry.state.load([], self.clock(), int(self.clock.wall()))

    def send(self, message: wire.Message, caller: Caller = LOCAL) -> wire.Message:
        """The answer to `message`, as it would arrive."""
        request = wire.decode_body_untrusted(wire.encode_frame(message)[4:])
        return wire.decode_body_untrusted(wire.encode_frame(handle(self.registry, request, caller))[4:])

    def ok(self, message: wire.Message, caller: Caller = LOCAL) -> wire.Message:
        reply = self.send(message, caller)
        assert reply["type"] == f"{message['type']}_ok", reply
        return reply

    def error(self, message: wire.Message, caller: Caller = LOCAL) -> str:
        reply = self.send(message, caller)
        assert reply["type"] == "error", reply
        return str(reply["error"])

    def admin(self, kind: str, **fields: Any) -> wire.Message:
        return self.ok({"type": kind, "admin_token": ADMIN_TOKEN, **fields})

    def join(self, *, public: bool = False, hostname: str = "", **fields: Any) -> Identity:
        """A registered node."""
        node = Identity()
        node.node_id = self.ok(node.registration(**fields))["node_id"]
        if public:
            self.ok(node.request("set_visibility", public=True))
        if hostname:
            self.ok(node.request("set_hostname", hostname=hostname))
        return node

    async def durable(self, message: wire.Message) -> wire.Message:
        return await answer(self.registry, self.journal, message, LOCAL)


class Client:
    """One TCP connection to a server."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *error: object) -> None:
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()

    async def call(self, message: wire.Message) -> wire.Message:
        self.writer.write(wire.encode_frame(message))
        return await self.answer()

    async def answer(self) -> wire.Message:
        header = await self.reader.readexactly(wire.HEADER_BYTES)
        return wire.decode_body_untrusted(await self.reader.readexactly(wire.frame_length_untrusted(header)))

    async def is_closed(self) -> bool:
        """Whether the server closes the connection without a further byte."""
        try:
            return await asyncio.wait_for(self.reader.read(1), 10) == b""
        except ConnectionError:
            return True


async def connect(address: tuple[str, int], **options: Any) -> Client:
    return Client(*await asyncio.open_connection(*address, **options))
