"""`StreamServer` and `serving` when taking streams itself crashes: counted or logged, slow, and never the end of it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from pilot.coreapi import Addr, Stream, reset_plugin_recovered_panic_count_for_test
from pilot.node import listener as node_listener
from pilot.node.listener import serving
from pilot.plugins import _serving
from pilot.plugins._serving import AFTER_CRASH_SECONDS, StreamServer
from pilot.testing import run
from tests.plugins.fakes import Listener, Network, published


@pytest.fixture(autouse=True)
def fresh_counters() -> Iterator[None]:
    reset_plugin_recovered_panic_count_for_test()
    yield
    reset_plugin_recovered_panic_count_for_test()


class Failing:
    """Makes taking streams fail `times` times; `taken` are the times it was tried."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
        self.taken: list[float] = []
        accept = Listener.accept

        async def failing(listener: Listener) -> Any:
            self.taken.append(asyncio.get_running_loop().time())
            if len(self.taken) <= times:
                raise RuntimeError("a defect")
            return await accept(listener)

        monkeypatch.setattr(Listener, "accept", failing)

    def pauses(self) -> list[float]:
        return [later - sooner for sooner, later in itertools.pairwise(self.taken)]


async def greet(stream: Stream) -> None:
    await stream.write(b"hi")


def with_server(scenario: Callable[[Network, StreamServer, Any], Awaitable[None]]) -> None:
    async def main() -> None:
        network = Network()
        deps = network.deps(2)
        server = StreamServer("greeter", deps, greet, most=10, most_per_peer=10)
        network.deps(1)
        await scenario(network, server, published(deps))
        assert len(asyncio.all_tasks()) == 1, "a task is left"

    run(main())


def test_a_crash_is_counted_and_streams_are_taken_again(monkeypatch: pytest.MonkeyPatch) -> None:
    failing = Failing(monkeypatch, 2)

    async def scenario(network: Network, server: StreamServer, events: Any) -> None:
        await server.start(1500)
        early = await network.deps(1).streams.dial(Addr(0, 2), 1500)
        await asyncio.sleep(2.5 * AFTER_CRASH_SECONDS)
        assert await early.read() == b"hi", "one that came meanwhile"
        late = await network.deps(1).streams.dial(Addr(0, 2), 1500)
        assert await late.read() == b"hi"
        assert failing.pauses()[:2] == [AFTER_CRASH_SECONDS] * 2
        panics = [payload for topic, payload in events.take() if topic == "plugin.greeter.panic"]
        assert [(payload["op"], payload["plugin_panics"]) for payload in panics] == [("accept", 1), ("accept", 2)]
        await server.stop(5.0)

    with_server(scenario)


def test_one_that_always_crashes_neither_spins_nor_holds_up_the_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    failing = Failing(monkeypatch, 1_000_000)

    async def scenario(network: Network, server: StreamServer, events: Any) -> None:
        await server.start(1500)
        await asyncio.sleep(10.5)
        assert len(failing.taken) == 11
        before = asyncio.get_running_loop().time()
        await server.stop(5.0)
        assert asyncio.get_running_loop().time() == before
        assert not network.listeners
        await server.stop(5.0)

    with_server(scenario)


def test_the_servers_of_a_node_do_the_same(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    failing = Failing(monkeypatch, 2)
    assert node_listener.AFTER_CRASH_SECONDS == _serving.AFTER_CRASH_SECONDS

    async def main() -> None:
        network = Network()
        listen: Any = network.deps(2).streams.listen
        greeter: Any = greet
        async with serving(listen, 1500, greeter):
            stream = await network.deps(1).streams.dial(Addr(0, 2), 1500)
            await asyncio.sleep(2.5)
            assert await stream.read() == b"hi"
            assert failing.pauses()[:2] == [1.0, 1.0]
        assert not network.listeners
        assert len(asyncio.all_tasks()) == 1

    run(main())
    assert caplog.text.count("taking streams on port 1500 failed; next try in 1 s") == 2
