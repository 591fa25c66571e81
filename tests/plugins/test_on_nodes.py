"""Name server, secure channel and webhook on whole nodes, in virtual time on a simulated network."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import pytest

from pilot.coreapi import PeerNotFoundError, PilotError, RegistryError, ResetError
from pilot.plugins.nameserver import NameClient, NameServerService
from pilot.plugins.secure import Authentication, SecureChannel, SecureService, resolved_keys
from pilot.plugins.webhook import WebhookService
from pilot.testing import World, simulate

DATA = bytes(range(256)) * 16000


def test_names_are_registered_and_asked_for() -> None:
    async def scenario(world: World) -> None:
        server = await world.machine("server", services=[NameServerService.for_node]).start()
        web, user = [await world.machine(name).start() for name in ("web", "user")]
        await NameClient(web.streams, server.address).register_a("web", web.address)
        await NameClient(web.streams, server.address).register_s("web", web.address, 0, 80)
        names = NameClient(user.streams, server.address)
        assert await names.query_a("WEB") == web.address
        assert [record.address for record in await names.query_s(0, 80)] == [web.address]
        with pytest.raises(RegistryError, match="for another node"):
            await names.register_a("mine", web.address)
        await asyncio.sleep(301)
        with pytest.raises(PeerNotFoundError):
            await names.query_a("web")

    simulate("names", scenario)


def test_a_secure_channel_between_nodes() -> None:
    async def echo(channel: SecureChannel) -> None:
        async for chunk in channel:
            await channel.write(chunk)

    def service(facilities: Any) -> SecureService:
        return SecureService(echo, wall=facilities.wall, clock=facilities.clock)

    async def scenario(world: World) -> None:
        server = await world.machine("server", services=[service]).start()
        machine = world.machine("client")
        client, wall = await machine.start(), machine.host.wall

        async def call(**options: Any) -> SecureChannel:
            proof = Authentication(client.identity, **{"wall": wall, **options})
            return await SecureChannel.connect(await client.dial(server.address, 443), auth=proof)

        async with await call(lookup=resolved_keys(client.resolver)) as channel:
            assert channel.peer_node_id == server.node_id
            writing = asyncio.create_task(channel.write(DATA))
            await asyncio.sleep(0.001)
            writing.cancel()
            await asyncio.wait([writing])
            assert 0 < channel.written < len(DATA)
            size = channel.written
            reading = asyncio.create_task(channel.readexactly(size + 3))
            await channel.write(b"end")
            assert await reading == DATA[:size] + b"end"
        key = server.identity.public_key
        with pytest.raises(PilotError, match="auth signature verification failed"):
            await call(peer_key=client.identity.public_key)
        with pytest.raises(PilotError, match="60 s ahead"):
            await call(peer_key=key, wall=lambda: wall() - 60)
        plain = await SecureChannel.connect(await client.dial(server.address, 443))
        assert len(await plain.readexactly(92)) == 92, "the proof nobody asked for"
        with pytest.raises((ResetError, TimeoutError)):
            await plain.readexactly(1000)

    simulate("secure", scenario)


def test_a_webhook_sees_the_life_of_a_node_from_its_registration_on() -> None:
    class Receiver:
        def __init__(self) -> None:
            self.events: list[dict[str, Any]] = []

        async def post(self, body: bytes, headers: Mapping[str, str]) -> int:
            self.events.append(json.loads(body))
            await asyncio.sleep(0.01)
            return 200

        async def close(self) -> None:
            pass

    async def scenario(world: World) -> None:
        receiver = Receiver()

        def service(facilities: Any) -> WebhookService:
            return WebhookService(url="http://192.0.2.1/", clock=facilities.clock, open_poster=lambda url: receiver)

        machine, other = world.machine("watched", services=[service]), world.machine("other")
        node, peer = await machine.start(), await other.start()
        async with await peer.dial(node.address, 7) as stream:
            await stream.write(b"x")
            await stream.readexactly(1)
        await machine.stop()
        topics = [event["event"] for event in receiver.events]
        assert topics[0] == "node.registered"
        assert {"tunnel.established", "conn.syn_received", "conn.established", "conn.fin"} <= set(topics)
        assert [event["event_id"] for event in receiver.events] == list(range(1, len(topics) + 1))
        assert {event["node_id"] for event in receiver.events} == {1}

    simulate("webhook", scenario)
