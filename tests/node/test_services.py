"""Plugins in whole nodes on a virtual network: wiring, order, crashes at every step, restarts, what is left (L9)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint, EntryPoints
from typing import Any

import pytest

from pilot._fast.errors import (
    ClosedError,
    InvalidValueError,
    PilotError,
    RefusedError,
    ServiceNotReadyError,
)
from pilot.coreapi import (
    Addr,
    Deps,
    RestartPolicy,
    Service,
    Stream,
    TrustMatch,
    recover_plugin,
    reset_plugin_recovered_panic_count_for_test,
)
from pilot.node import services
from pilot.node.services import NodeServices
from pilot.testing import World, simulate

GREETING = b"hi\n"
QUICK = RestartPolicy(restarts=3, first_pause_seconds=0.5, window_seconds=600)


@pytest.fixture(autouse=True)
def fresh_counters() -> None:
    reset_plugin_recovered_panic_count_for_test()


class Greeter(Service):
    """Says hi on port 1500; `crash` decides of each stream whether it crashes instead."""

    name, order = "greeter", 150

    def __init__(self, crash: Callable[[], bool] = lambda: False, port: int = 1500) -> None:
        self.crash, self.port = crash, port
        self.deps: Deps | None = None
        self.starts = self.stops = 0

    async def start(self, deps: Deps) -> None:
        self.deps = deps
        self.starts += 1
        self._listener = await deps.streams.listen(self.port)
        self._task = asyncio.create_task(self._accept(deps))

    async def stop(self) -> None:
        self.stops += 1
        await self._listener.close()
        await self._task

    async def _accept(self, deps: Deps) -> None:
        async for stream in self._listener:
            with recover_plugin(self.name, "accept", deps.events):
                async with stream:
                    if self.crash():
                        raise RuntimeError("boom")
                    await stream.write(GREETING)


class Second(Greeter):
    name = "second"


class Named(Greeter):
    def __init__(self, name: str, order: int, log: list[str], port: int) -> None:
        super().__init__(port=port)
        self.name, self.order, self.log = name, order, log

    async def start(self, deps: Deps) -> None:
        self.log.append(f"start {self.name}")
        await super().start(deps)

    async def stop(self) -> None:
        self.log.append(f"stop {self.name}")
        await super().stop()


async def greeted(world: World, target: Addr, port: int = 1500) -> bytes:
    """What a guest hears on `port` of `target`."""
    guest = next((machine for machine in world.machines if machine.name == "guest"), None)
    if guest is None:
        guest = world.machine("guest")
        await guest.start()
    async with await guest.node.dial(target, port, timeout=10) as stream:
        return await stream.read()


def test_a_service_by_object_class_and_factory_is_started_and_serves() -> None:
    made: list[Any] = []

    def factory(facilities: Any) -> Service:
        made.append(facilities)
        return Named("third", 10, [], 1502)

    class Second(Greeter):
        name = "second"

        def __init__(self) -> None:
            super().__init__(port=1501)

    async def scenario(world: World) -> None:
        bob = world.machine("bob", services=[Greeter(), Second, factory])
        node = await bob.start()
        for port in (1500, 1501, 1502):
            assert await greeted(world, node.address, port) == GREETING
        assert [service.name for service in node._running().services.registry.all()] == ["third", "greeter", "second"]
        assert isinstance(node.service("second"), Second)
        assert node.service(Second) is node.service("second")
        with pytest.raises(InvalidValueError, match=r"several services are a Greeter: third, greeter, second"):
            node.service(Greeter)
        with pytest.raises(InvalidValueError, match="no service is one"):
            node.service(type("Other", (), {}))
        assert made[0].registry is node.resolver
        assert made[0].service("third") is node.service("third")
        with pytest.raises(InvalidValueError, match=r"no service 'fourth'.*third, greeter, second"):
            node.service("fourth")
        await bob.stop()

    simulate(1, scenario)


def test_services_start_before_the_registration_and_stop_in_reverse_order_after_the_announcement() -> None:
    log: list[str] = []
    seen: list[str] = []

    class Watcher(Named):
        async def start(self, deps: Deps) -> None:
            assert deps.identity.node_id == 0
            assert deps.logger is logging.getLogger(f"pilot.plugin.{self.name}")
            await super().start(deps)
            self.events = deps.events.subscribe("")

        async def stop(self) -> None:
            seen.extend(event.topic for event in self.events.get_all())
            await super().stop()

    async def scenario(world: World) -> None:
        services = [Named("late", 200, log, 1501), Watcher("early", 50, log, 1502), Named("same", 200, log, 1503)]
        bob = world.machine("bob", services=services)
        await bob.start()
        await bob.stop()

    simulate(2, scenario)
    assert log == [
        *("start early", "start late", "start same"),
        *("stop same", "stop late", "stop early"),
    ]
    assert seen[0] == "node.registered"
    assert seen[-1] == "daemon.shutting_down"


def test_a_node_starts_and_stops_again_with_the_same_services() -> None:
    greeter = Greeter()

    async def scenario(world: World) -> None:
        bob = world.machine("bob", services=[greeter])
        for life in (1, 2):
            node = await bob.start()
            assert await greeted(world, node.address) == GREETING
            await bob.stop()
            assert greeter.starts == greeter.stops == life

    simulate(3, scenario)


@pytest.mark.parametrize(
    "failure", [ValueError("no licence"), asyncio.CancelledError()], ids=["error", "cancels itself"]
)
def test_a_crash_in_start_names_the_plugin_and_leaves_nothing(failure: BaseException) -> None:
    log: list[str] = []

    class Broken(Named):
        async def start(self, deps: Deps) -> None:
            await super().start(deps)  # opens a listener, and leaves a task
            raise failure

    async def scenario(world: World) -> None:
        services = [Named("good", 10, log, 1501), Broken("broken", 20, log, 1502), Named("never", 30, log, 1503)]
        bob = world.machine("bob", services=services)
        with pytest.raises(PilotError, match="plugin 'broken' failed to start") as caught:
            await bob.start()
        if isinstance(failure, Exception):
            assert caught.value.__cause__ is failure
            assert "ValueError: no licence" in str(caught.value)
        services[1]._task.cancel()  # what 3.11 cannot find
        other = world.machine("other", services=[Greeter()])
        assert await greeted(world, (await other.start()).address) == GREETING

    simulate(4, scenario)
    assert log == ["start good", "start broken", "stop good"]


def test_a_crash_in_a_task_ends_that_stream_only() -> None:
    crashes = iter([True, False])
    greeter = Greeter(lambda: next(crashes))

    async def scenario(world: World) -> None:
        world.expected_errors |= {"pilot.plugin.greeter"}
        bob = world.machine("bob", services=[greeter, Named("other", 160, [], 1501)])
        node = await bob.start()
        with node.events.subscribe("plugin.*") as events:
            with pytest.raises(ConnectionResetError):
                await greeted(world, node.address)
            assert await greeted(world, node.address) == GREETING
            assert await greeted(world, node.address, 1501) == GREETING
            event = events.get_nowait()
        assert event is not None
        assert event.topic == "plugin.greeter.panic"
        assert event.payload == {
            "plugin": "greeter",
            "op": "accept",
            "panic": "RuntimeError: boom",
            "recovered_total": 1,
            "plugin_panics": 1,
        }
        await bob.stop()

    simulate(5, scenario)


def test_an_unhealthy_plugin_is_restarted_while_the_others_go_on() -> None:
    crashing = [True]
    greeter = Greeter(lambda: crashing[0])

    async def scenario(world: World) -> None:
        world.expected_errors |= {"pilot.plugin.greeter"}
        bob = world.machine("bob", services=[greeter, Named("other", 160, [], 1501)], restart_policy=QUICK)
        node = await bob.start()
        with node.events.subscribe("plugin.greeter.*") as events:
            for _ in range(3):
                with pytest.raises(ConnectionResetError):
                    await greeted(world, node.address)
            await asyncio.sleep(0.1)  # in the pause
            with pytest.raises(ServiceNotReadyError):
                node.service("greeter")
            with pytest.raises(RefusedError):
                await greeted(world, node.address)
            assert greeter.deps is not None
            with pytest.raises(ClosedError, match="greeter has stopped"):
                await greeter.deps.streams.listen(1600)
            assert await greeted(world, node.address, 1501) == GREETING
            crashing[0] = False
            await asyncio.sleep(1)
            assert node.service("greeter") is greeter
            assert await greeted(world, node.address) == GREETING
            topics = [event.topic.removeprefix("plugin.greeter.") for event in events.get_all()]
        assert topics == ["panic", "panic", "panic", "unhealthy", "restarting", "restarted"]
        assert (greeter.starts, greeter.stops) == (2, 1)
        await bob.stop()

    simulate(6, scenario)


def test_an_unhealthy_plugin_that_hangs_in_stop_is_restarted_after_its_bound() -> None:
    crashing = [True]

    class Stuck(Greeter):
        async def stop(self) -> None:
            self.stops += 1
            while True:
                try:
                    await asyncio.sleep(60)
                    return
                except asyncio.CancelledError:
                    continue

    stuck = Stuck(lambda: crashing[0])

    async def scenario(world: World) -> None:
        world.expected_errors |= {"pilot.plugin.greeter", "pilot.coreapi"}
        bob = world.machine("bob", services=[stuck, Named("other", 160, [], 1501)], restart_policy=QUICK)
        node = await bob.start()
        for _ in range(3):
            with pytest.raises(ConnectionResetError):
                await greeted(world, node.address)
        crashing[0] = False
        await asyncio.sleep(4.0)
        assert (stuck.starts, stuck.stops) == (1, 1)
        with pytest.raises(ServiceNotReadyError):
            node.service("greeter")
        assert await greeted(world, node.address, 1501) == GREETING
        await asyncio.sleep(3.0)
        assert stuck.starts == 2
        assert await greeted(world, node.address) == GREETING
        await asyncio.sleep(60.0)  # the first stop comes to its end, and harms the second life in no way
        assert await greeted(world, node.address) == GREETING
        stopping = asyncio.get_running_loop().time()
        await bob.stop()
        assert asyncio.get_running_loop().time() - stopping < 10.0
        await asyncio.sleep(120.0)  # so does the second

    simulate("stuck", scenario)


def test_a_plugin_that_does_not_get_well_is_given_up() -> None:
    greeter = Greeter(lambda: True)

    async def scenario(world: World) -> None:
        world.expected_errors |= {"pilot.plugin.greeter", "pilot.coreapi"}
        bob = world.machine("bob", services=[greeter], restart_policy=QUICK)
        node = await bob.start()
        with node.events.subscribe("plugin.greeter.*") as events:
            for _ in range(60):
                with contextlib.suppress(ConnectionError):
                    await greeted(world, node.address)
                await asyncio.sleep(0.5)
            told = [event for event in events.get_all() if not event.topic.endswith(("panic", "unhealthy"))]
        pauses = [event.payload["pause_seconds"] for event in told if event.topic.endswith("restarting")]
        assert pauses == [0.5, 1.0, 2.0]
        assert told[-1].topic == "plugin.greeter.gave_up"
        assert told[-1].payload == {"plugin": "greeter", "attempts": 3}
        with pytest.raises(RefusedError):
            await greeted(world, node.address)
        assert await world.machines[1].node.ping(node.address) > 0
        await bob.stop()

    simulate(7, scenario)


def test_a_restart_whose_start_fails_is_tried_again() -> None:
    class Moody(Greeter):
        async def start(self, deps: Deps) -> None:
            if self.starts in (1, 2):
                self.starts += 1
                raise OSError("not now")
            await super().start(deps)

    moody = Moody(lambda: moody.starts == 1)

    async def scenario(world: World) -> None:
        world.expected_errors |= {"pilot.plugin.greeter", "pilot.coreapi"}
        bob = world.machine("bob", services=[moody], restart_policy=QUICK)
        node = await bob.start()
        with node.events.subscribe("plugin.greeter.restart*") as events:
            for _ in range(3):
                with pytest.raises(ConnectionResetError):
                    await greeted(world, node.address)
            await asyncio.sleep(5)
            assert await greeted(world, node.address) == GREETING
            told = [(event.topic.rpartition(".")[2], event.payload["attempt"]) for event in events.get_all()]
        assert told == [
            *(("restarting", 1), ("restart_failed", 1)),
            *(("restarting", 2), ("restart_failed", 2)),
            *(("restarting", 3), ("restarted", 3)),
        ]
        await bob.stop()

    simulate(8, scenario)


class _Stops(Greeter):
    """A greeter whose stop goes wrong in the way `how` says."""

    name = "bad"

    def __init__(self, how: str) -> None:
        super().__init__(port=1501)
        self.how = how

    async def stop(self) -> None:
        self._task.cancel()
        if self.how == "crash":
            raise RuntimeError("boom in stop")
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                if self.how == "hang":
                    raise
                if self.how == "ignore" and self.deps is None:
                    return


@pytest.mark.parametrize(
    ("how", "message", "seconds"),
    [
        ("crash", "plugin 'bad' crashed in stop: RuntimeError: boom in stop", 0.0),
        ("hang", "plugin 'bad' did not stop within 4.5 s", 4.5),
        ("ignore", "plugin 'bad' did not stop within 5 s and ignores that: abandoned", 5.0),
    ],
)
def test_a_stop_that_goes_wrong_is_reported_and_bounded(
    how: str, message: str, seconds: float, caplog: pytest.LogCaptureFixture
) -> None:
    bad, log = _Stops(how), []

    async def scenario(world: World) -> None:
        world.expected_errors |= {"pilot.coreapi"}
        bob = world.machine("bob", services=[Named("first", 10, log, 1502), bad, Named("last", 200, log, 1503)])
        node = await bob.start()
        started = asyncio.get_running_loop().time()
        await node._running().services.stop()
        assert asyncio.get_running_loop().time() - started == pytest.approx(seconds, abs=0.1)
        assert log[2:] == ["stop last", "stop first"]
        with pytest.raises(RefusedError):
            await greeted(world, node.address, 1501)
        bad.deps = None  # lets the one that ignores its cancellation end
        for task in asyncio.all_tasks():
            if task.get_name() == "pilot plugin bad":
                task.cancel()
        await bob.stop()

    simulate(9, scenario)
    assert message in caplog.text


def test_a_plugin_that_floods_the_bus_loses_its_own_events_only() -> None:
    async def scenario(world: World) -> None:
        greeter = Greeter()
        bob = world.machine("bob", services=[greeter])
        node = await bob.start()
        with node.events.subscribe("flood.*") as slow, node.events.subscribe("calm.*") as calm:
            assert greeter.deps is not None
            for number in range(100_000):
                greeter.deps.events.publish("flood.water", {"number": number})
            greeter.deps.events.publish("calm.sea", {})
            assert slow.dropped == 100_000 - 1024
            assert (calm.dropped, len(calm.get_all())) == (0, 1)
            assert node.stats().counters["events_dropped"] == slow.dropped
            for _ in range(150):
                greeter.deps.events.publish("conn.rst", {})  # nobody listens: not even counted
            assert node.stats().counters["events_suppressed"] == 0
            with node.events.subscribe("conn.*"):
                for _ in range(150):
                    greeter.deps.events.publish("conn.rst", {})
            assert node.stats().counters["events_suppressed"] == 50
        assert await greeted(world, node.address) == GREETING
        await bob.stop()

    simulate(10, scenario)


def test_what_a_stopped_plugin_leaves_is_closed() -> None:
    class Leaky(Greeter):
        streams: list[Stream]

        async def start(self, deps: Deps) -> None:
            self.deps = deps
            self.starts += 1
            self.streams = []
            self._listener = await deps.streams.listen(1500)
            self.events = deps.events.subscribe("")
            self.leak = asyncio.create_task(self._leak(deps), name="a leak")

        async def stop(self) -> None:
            return

        async def _leak(self, deps: Deps) -> None:
            async for stream in self._listener:
                self.streams.append(stream)
            with contextlib.suppress(ClosedError):
                while True:
                    await asyncio.sleep(1)
                    await deps.streams.send_datagram(Addr(0, 1), 1, b"still here")

    leaky = Leaky()

    async def scenario(world: World) -> None:
        bob = world.machine("bob", services=[leaky])
        node = await bob.start()
        guest = world.machine("guest")
        await guest.start()
        stream = await guest.node.dial(node.address, 1500)
        await asyncio.sleep(1)
        await node._running().services.registry.restart("greeter")
        with pytest.raises(ConnectionResetError):
            await stream.read()
        await (await guest.node.dial(node.address, 1500)).close()
        assert leaky.starts == 2
        await bob.stop()
        assert leaky.events.closed
        await asyncio.sleep(2)
        assert leaky.leak.done()
        assert not [task for task in asyncio.all_tasks() if task.get_name() == "a leak"]

    simulate(11, scenario)


def test_the_checker_of_the_trust_list_reaches_every_plugin() -> None:
    class Checker(Greeter):
        name = "list"

        def is_trusted(self, node_id: int) -> TrustMatch:
            return TrustMatch("Bob", True) if node_id == 2 else TrustMatch()

    checker, greeter = Checker(port=1501), Greeter()

    async def scenario(world: World) -> None:
        bob = world.machine("bob", services=[greeter, checker])
        await bob.start()
        assert greeter.deps is not None
        assert greeter.deps.trust is checker
        assert greeter.deps.trust.is_trusted(2)
        assert not greeter.deps.trust.is_trusted(3)
        await bob.stop()
        both = world.machine("both", services=[checker, type("Second", (Checker,), {"name": "second"})()])
        with pytest.raises(InvalidValueError, match="each a TrustChecker"):
            await both.start()

    simulate(12, scenario)


def test_sources_that_cannot_be_used() -> None:
    def broken(facilities: Any) -> Service:
        raise KeyError("licence")

    for source, error, message in [
        ("no such plugin", InvalidValueError, "no plugin 'no such plugin' is installed"),
        (7, InvalidValueError, "7 is no service"),
        (broken, PilotError, "could not be made: KeyError: 'licence'"),
        (lambda facilities: object(), InvalidValueError, "is no service"),
        (type("Unnamed", (Greeter,), {"name": "Big Name"}), InvalidValueError, "'Big Name' cannot be used"),
    ]:
        with pytest.raises(error, match=message):
            NodeServices([source], None)  # type: ignore[list-item, arg-type]
    with pytest.raises(InvalidValueError, match="two services have the name 'greeter'"):
        NodeServices([Greeter(), Greeter()], None)  # type: ignore[arg-type]


def test_what_is_installed_is_looked_through_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def installed(*, group: str) -> EntryPoints:
        asked.append(group)
        return EntryPoints(
            [EntryPoint("a", f"{__name__}:Greeter", group), EntryPoint("b", f"{__name__}:Second", group)]
        )

    monkeypatch.setattr(services, "entry_points", installed)
    made = NodeServices(["a", "b"], None).registry.all()  # type: ignore[arg-type]
    assert [service.name for service in made] == ["greeter", "second"]
    assert asked == ["pilot.plugins"], "once"
    NodeServices([Greeter()], None)  # type: ignore[arg-type]
    assert asked == ["pilot.plugins"], "without names nobody looks"


def test_a_plugin_that_lacks_a_package_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "re2", None)
    for name in [name for name in sys.modules if name.startswith("pilot.plugins.policy")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(PilotError, match=r"plugin 'policy' needs the package 're2'.*pilot-asyncio\[plugins\]"):
        NodeServices(["policy"], None)  # type: ignore[arg-type]


def test_callbacks_that_crash_harm_neither_the_node_nor_other_plugins(caplog: pytest.LogCaptureFixture) -> None:
    trusted: set[int] = set()
    mail: list[str] = []

    def crash(*_: object) -> Any:
        raise ZeroDivisionError("a defect")

    def broken(facilities: Any) -> Service:
        facilities.add_trust_source(crash)
        facilities.on_mailbox(crash)
        facilities.add_counter("broken", crash)
        return Named("broken", 1, [], 1501)

    def sound(facilities: Any) -> Service:
        facilities.add_trust_source(trusted.__contains__)
        facilities.on_mailbox(lambda: mail.append("you have got some"))
        facilities.add_counter("sound", lambda: 42)
        return Greeter()

    async def scenario(world: World) -> None:
        bob = world.machine("bob", public=False, services=[broken, sound])
        guest = world.machine("guest")
        node = await bob.start()
        trusted.add((await guest.start()).node_id)
        await guest.node.resolver.report_trust(node.node_id)  # or it would not find bob
        assert await greeted(world, node.address) == GREETING
        node._running()._hooks.poll_handshakes()
        counters = node.stats().counters
        assert counters["sound"] == 42
        assert "broken" not in counters

    simulate(13, scenario)
    assert mail == ["you have got some"]
    for kind in ("trust source", "mailbox callback", "counter"):
        assert caplog.text.count(f"the {kind} ") == 1, caplog.text
