"""Messages, files and events between whole nodes on the simulated network: loss, relays, crashes and resuming."""

from __future__ import annotations

import asyncio
import random
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pilot.coreapi import PilotError
from pilot.plugins.dataexchange import DataExchangeService
from pilot.plugins.eventstream import EventStreamService
from pilot.testing import NatType, simulate

CONTENT = random.Random(5).randbytes(2_000_000)


def machine(world: Any, name: str, directory: Path | None = None, **settings: Any) -> Any:
    places = {"received": directory, "keep_names": True} if directory else {}
    services = [partial(DataExchangeService.for_node, **places), EventStreamService.for_node]
    return world.machine(name, services=services, hostname=name, **settings)


def exchange(host: Any) -> DataExchangeService:
    service: DataExchangeService = host.node.service("dataexchange")
    return service


def test_file_over_a_lossy_path_and_behind_nats(tmp_path: Path) -> None:
    async def scenario(world: Any) -> None:
        alice = machine(world, "alice", nat=NatType.SYMMETRIC)
        bob = machine(world, "bob", tmp_path, nat=NatType.SYMMETRIC)
        await alice.start()
        await bob.start()
        with exchange(bob).files() as files:
            sent = await exchange(alice).client.send_file("bob", CONTENT, name="a.bin", timeout=60)
            file = await anext(files)
        assert (sent.receiver, sent.resumed_at) == (bob.node.address, 0)
        assert file.path == tmp_path / "a.bin"
        assert file.path.read_bytes() == CONTENT
        assert bob.node.stats().counters["dataexchange.stored_files"] == 1

    simulate(11, scenario, delay=0.02, loss=0.02)


def test_a_receiver_that_crashes_goes_on_where_it_was(tmp_path: Path) -> None:
    async def scenario(world: Any) -> None:
        alice, bob = machine(world, "alice"), machine(world, "bob", tmp_path)
        await alice.start()
        await bob.start()
        crossed = asyncio.Event()

        def watch(done: int, total: int) -> None:
            if 600_000 < done < total:
                crossed.set()

        sending = asyncio.ensure_future(exchange(alice).client.send_file("bob", CONTENT, name="a.bin", progress=watch))
        await asyncio.wait([asyncio.ensure_future(crossed.wait()), sending], return_when=asyncio.FIRST_COMPLETED)
        await bob.restart()
        with pytest.raises((PilotError, TimeoutError, EOFError)):
            await sending
        await asyncio.sleep(40.0)  # in this process the crashed node's files are closed a while later
        sent = await exchange(alice).client.send_file("bob", CONTENT, name="a.bin", timeout=60)
        assert 600_000 < sent.resumed_at < len(CONTENT)
        assert (tmp_path / "a.bin").read_bytes() == CONTENT
        assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["a.bin"]

    simulate(12, scenario, delay=0.05, rate=2e6)


def test_messages_and_events_without_a_state_directory() -> None:
    async def scenario(world: Any) -> None:
        alice, bob = machine(world, "alice"), machine(world, "bob")
        await alice.start()
        await bob.start()
        with exchange(bob).messages() as messages:
            assert await exchange(alice).client.send_message("bob", "hello")
            assert (await anext(messages)).sender == alice.node.address
        assert not await exchange(alice).client.send_message("bob", "nobody reads this")
        with pytest.raises(PilotError, match="no files are taken here"):
            await exchange(alice).client.send_file("bob", b"x", name="x")

        client = alice.node.service("eventstream").client
        async with await client.subscribe("bob", "t") as events:
            await asyncio.sleep(1.0)
            own = bob.node.service("eventstream").client
            await own.publish(bob.node.address, "t", "by the broker's own node")
            assert (await anext(events)).text == "by the broker's own node"
        counters = bob.node.stats().counters
        assert (counters["eventstream.published"], counters["dataexchange.refused"]) == (1, 2)

    simulate(13, scenario, delay=0.01, loss=0.01)
