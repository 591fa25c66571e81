"""The service registry by itself: order, errors, bounds, cancellation; and the scope each plugin lives in (L10)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from pilot._fast.errors import (
    BusyError,
    ClosedError,
    InvalidValueError,
    PilotError,
    RegistryStartedError,
    ServiceNotReadyError,
)
from pilot._fast.eventbus import EventBus
from pilot.coreapi import Deps, Service, ServiceRegistry, plugin_panic_count, recover_plugin
from pilot.coreapi.life import CANCEL_SECONDS, STOP_SECONDS
from pilot.testing.loop import run

NOTHING: Any = object()


def deps() -> Deps:
    return Deps(NOTHING, NOTHING, NOTHING, EventBus(), logging.getLogger("pilot.test"))


async def nothing() -> None:
    return


class Recorded(Service):
    """A service that writes down what is asked of it, and then does what it is told."""

    def __init__(
        self,
        name: str,
        order: int = 100,
        log: list[str] | None = None,
        start: Callable[[], Awaitable[None]] = nothing,
        stop: Callable[[], Awaitable[None]] = nothing,
    ) -> None:
        self.name, self.order = name, order
        self.log = [] if log is None else log
        self.on_start, self.on_stop = start, stop
        self.deps: list[Deps] = []

    async def start(self, deps: Deps) -> None:
        self.log.append(f"+{self.name}")
        self.deps.append(deps)
        await self.on_start()

    async def stop(self) -> None:
        self.log.append(f"-{self.name}")
        await self.on_stop()


def registry_of(*services: Service) -> ServiceRegistry:
    registry = ServiceRegistry()
    for service in services:
        registry.register(service)
    return registry


async def fail() -> None:
    raise OSError("broken")


async def hang() -> None:
    await asyncio.get_running_loop().create_future()


async def test_services_start_by_order_and_stop_in_reverse() -> None:
    log: list[str] = []
    services = [Recorded(name, order, log) for name, order in [("b", 20), ("a", 10), ("c", 20), ("z", 5)]]
    registry = registry_of(*services)
    assert [service.name for service in registry.all()] == ["z", "a", "b", "c"]
    await registry.start_all(deps())
    await registry.stop_all()
    assert log == ["+z", "+a", "+b", "+c", "-c", "-b", "-a", "-z"]


async def test_a_list_of_services_is_a_snapshot() -> None:
    registry = registry_of(Recorded("a"))
    registry.all().clear()
    assert len(registry.all()) == 1


async def test_registering_is_for_before_the_start() -> None:
    registry = registry_of(Recorded("a"))
    await registry.start_all(deps())
    with pytest.raises(RegistryStartedError, match="'b'"):
        registry.register(Recorded("b"))
    with pytest.raises(RegistryStartedError):
        await registry.start_all(deps())
    await registry.stop_all()
    registry.register(Recorded("b"))
    await registry.start_all(deps())
    assert registry.service("b").name == "b"
    await registry.stop_all()


@pytest.mark.parametrize("name", ["", "Big", "with space", "x" * 65, "dot.ted", 7])
def test_names_that_cannot_be_used(name: Any) -> None:
    with pytest.raises(InvalidValueError, match="a-z"):
        registry_of(Recorded(name))


def test_names_are_unique_and_services_are_services() -> None:
    with pytest.raises(InvalidValueError, match="two services"):
        registry_of(Recorded("a"), Recorded("a"))
    with pytest.raises(InvalidValueError, match="no service"):
        registry_of(NOTHING)


async def test_a_service_is_given_only_while_it_is_ready() -> None:
    seen: list[str] = []

    async def look() -> None:
        for name in ("first", "second"):
            try:
                registry.service(name)
            except ServiceNotReadyError as error:
                seen.append(str(error))

    second = Recorded("second", 20, start=look)
    registry = registry_of(Recorded("first", 10), second)
    with pytest.raises(ServiceNotReadyError):
        registry.service("first")
    with pytest.raises(InvalidValueError, match="there are: first, second"):
        registry.service("third")
    await registry.start_all(deps())
    assert len(seen) == 1
    assert "'second'" in seen[0]
    assert registry.service("second") is second
    await registry.stop_all()
    with pytest.raises(ServiceNotReadyError):
        registry.service("second")


async def test_the_first_failing_start_ends_it_and_leaves_the_others_to_the_caller() -> None:
    log: list[str] = []
    bad = Recorded("bad", 20, log, start=fail)
    registry = registry_of(Recorded("good", 10, log), bad, Recorded("never", 30, log))
    with pytest.raises(PilotError, match=r"plugin 'bad' failed to start: OSError: broken") as caught:
        await registry.start_all(deps())
    assert isinstance(caught.value.__cause__, OSError)
    assert log == ["+good", "+bad"]
    assert registry.service("good").name == "good"
    with pytest.raises(ClosedError):
        bad.deps[0].events.subscribe("")
    await registry.stop_all()
    assert log == ["+good", "+bad", "-good"]


async def test_a_start_that_failed_with_the_first_service_may_be_repeated() -> None:
    registry = registry_of(Recorded("bad", start=fail))
    for _ in range(2):
        with pytest.raises(PilotError):
            await registry.start_all(deps())
    registry.register(Recorded("another"))


async def test_a_cancelled_start_cancels_the_service_that_is_starting() -> None:
    ended: list[bool] = []

    async def slow() -> None:
        try:
            await hang()
        finally:
            ended.append(True)

    registry = registry_of(Recorded("slow", start=slow))
    starting = asyncio.create_task(registry.start_all(deps()))
    await asyncio.sleep(0.01)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert ended == [True]
    with pytest.raises(ServiceNotReadyError):
        registry.service("slow")


async def test_a_start_that_completes_as_its_caller_is_cancelled_is_stopped() -> None:
    async def cancel() -> None:
        starting.cancel()

    service = Recorded("a", start=cancel)
    registry = registry_of(service)
    starting = asyncio.create_task(registry.start_all(deps()))
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert service.log == ["+a", "-a"]
    with pytest.raises(ServiceNotReadyError):
        registry.service("a")
    with pytest.raises(ClosedError):
        service.deps[0].events.subscribe("")


async def test_every_stop_is_called_and_the_first_failure_raised() -> None:
    log: list[str] = []
    registry = registry_of(Recorded("a", 1, log, stop=fail), Recorded("b", 2, log), Recorded("c", 3, log, stop=fail))
    await registry.start_all(deps())
    with pytest.raises(PilotError, match="plugin 'c' crashed in stop: OSError: broken") as caught:
        await registry.stop_all()
    assert log[3:] == ["-c", "-b", "-a"]
    assert caught.value.__notes__ == ["plugin 'a' crashed in stop: OSError: broken"]
    await registry.stop_all()


def test_a_stop_that_hangs_is_cancelled_and_one_that_ignores_that_is_abandoned() -> None:
    released = asyncio.Event()

    async def ignore() -> None:
        while not released.is_set():
            try:
                await released.wait()
            except asyncio.CancelledError:
                continue

    async def main() -> tuple[float, float, str]:
        loop = asyncio.get_running_loop()
        hanging = registry_of(Recorded("a", stop=hang), Recorded("b"))
        await hanging.start_all(deps())
        started = loop.time()
        with pytest.raises(PilotError, match=r"plugin 'a' did not stop within 4\.5 s"):
            await hanging.stop_all()
        first = loop.time() - started
        ignoring = registry_of(Recorded("a", stop=ignore))
        await ignoring.start_all(deps())
        started = loop.time()
        with pytest.raises(PilotError, match="abandoned") as caught:
            await ignoring.stop_all()
        second = loop.time() - started
        released.set()
        await asyncio.sleep(0)
        return first, second, str(caught.value)

    first, second, text = run(main())
    assert first == pytest.approx(CANCEL_SECONDS)
    assert second == pytest.approx(STOP_SECONDS)
    assert "plugin 'a'" in text


async def test_stop_goes_on_when_its_caller_is_cancelled_and_serves_several() -> None:
    release = asyncio.Event()

    async def slow() -> None:
        await release.wait()

    log: list[str] = []
    registry = registry_of(Recorded("a", 1, log), Recorded("b", 2, log, stop=slow))
    await registry.start_all(deps())
    first = asyncio.create_task(registry.stop_all())
    second = asyncio.create_task(registry.stop_all())
    await asyncio.sleep(0.01)
    first.cancel()
    await asyncio.wait([first])
    assert log == ["+a", "+b", "-b"]
    release.set()
    await second
    assert log == ["+a", "+b", "-b", "-a"]


async def test_restart_brings_new_dependencies_and_health() -> None:
    service = Recorded("a")
    registry = registry_of(service)
    with pytest.raises(ServiceNotReadyError):
        await registry.restart("a")
    await registry.start_all(deps())
    with recover_plugin("a", "work"):
        raise ValueError
    assert plugin_panic_count("a") == 1
    restarting = asyncio.create_task(registry.restart("a", pause=0.05))
    await asyncio.sleep(0.01)
    with pytest.raises(BusyError):
        await registry.restart("a")
    with pytest.raises(BusyError):
        await registry.halt("a")
    with pytest.raises(ServiceNotReadyError):
        registry.service("a")
    await restarting
    assert plugin_panic_count("a") == 0
    old, new = service.deps
    new.events.subscribe("").close()
    with pytest.raises(ClosedError):
        old.events.subscribe("")
    old.events.publish("ignored", {})
    await registry.stop_all()


async def test_a_restart_during_which_all_stops_ends_there() -> None:
    service = Recorded("a")
    registry = registry_of(service)
    await registry.start_all(deps())
    restarting = asyncio.create_task(registry.restart("a", pause=0.05))
    await asyncio.sleep(0.01)
    await registry.stop_all()
    with pytest.raises(ServiceNotReadyError):
        await restarting
    assert service.log == ["+a", "-a"]


async def test_a_halted_service_can_be_brought_back() -> None:
    service = Recorded("a")
    registry = registry_of(service, Recorded("b"))
    await registry.start_all(deps())
    await registry.halt("a")
    await registry.halt("a")
    with pytest.raises(ServiceNotReadyError):
        registry.service("a")
    assert registry.service("b").name == "b"
    await registry.restart("a")
    assert registry.service("a") is service
    await registry.stop_all()
    assert service.log == ["+a", "-a", "+a", "-a"]


async def test_the_logger_is_the_plugins_own() -> None:
    service = Recorded("a")
    registry = registry_of(service)
    await registry.start_all(deps())
    assert service.deps[0].logger.name == "pilot.plugin.a"
    await registry.stop_all()


# ------------------------------------------------------------------------------- calls that meet each other


class Slow(Recorded):
    """Starts when `go` is set."""

    def __init__(self, name: str, order: int, log: list[str]) -> None:
        self.go = asyncio.Event()
        super().__init__(name, order, log, start=lambda: _wait(self.go))


async def _wait(event: asyncio.Event) -> None:
    await event.wait()


async def test_a_second_start_meanwhile_is_refused() -> None:
    log: list[str] = []
    slow = Slow("slow", 1, log)
    registry = registry_of(slow)
    first = asyncio.create_task(registry.start_all(deps()))
    await asyncio.sleep(0.01)
    with pytest.raises(RegistryStartedError, match="is starting"):
        await registry.start_all(deps())
    with pytest.raises(RegistryStartedError, match="is starting"):
        registry.register(Recorded("late"))
    slow.go.set()
    await first
    assert log == ["+slow"]
    await registry.stop_all()


async def test_a_stop_during_the_start_ends_it_and_leaves_nothing() -> None:
    log: list[str] = []
    registry = registry_of(Recorded("a", 1, log), Slow("slow", 2, log), Recorded("never", 3, log))
    starting = asyncio.create_task(registry.start_all(deps()))
    await asyncio.sleep(0.01)
    await registry.stop_all()
    with pytest.raises(PilotError, match="'slow' failed to start"):
        await starting
    assert log == ["+a", "+slow", "-a"]
    for name in ("a", "slow", "never"):
        with pytest.raises(ServiceNotReadyError):
            registry.service(name)
    registry.register(Recorded("more"))


async def test_a_start_that_ignores_its_cancellation_is_stopped_when_it_is_done() -> None:
    log: list[str] = []

    async def deaf() -> None:
        try:
            await asyncio.sleep(10)
        except asyncio.CancelledError:
            log.append("deaf")

    registry = registry_of(Recorded("a", 1, log, start=deaf))
    starting = asyncio.create_task(registry.start_all(deps()))
    await asyncio.sleep(0.01)
    await registry.stop_all()
    with pytest.raises(ServiceNotReadyError, match="stopped while it started"):
        await starting
    assert log == ["+a", "deaf", "-a"]


async def test_a_start_during_the_stop_is_refused() -> None:
    log: list[str] = []
    go = asyncio.Event()
    registry = registry_of(Recorded("a", 1, log), Recorded("b", 2, log, stop=lambda: _wait(go)))
    await registry.start_all(deps())
    stopping = asyncio.create_task(registry.stop_all())
    await asyncio.sleep(0.01)
    with pytest.raises(RegistryStartedError, match="is stopping"):
        await registry.start_all(deps())
    go.set()
    await stopping
    assert log == ["+a", "+b", "-b", "-a"]
    await registry.start_all(deps())
    assert registry.service("a").name == "a"
    await registry.stop_all()


async def test_a_stop_while_a_restart_is_inside_the_start() -> None:
    log: list[str] = []
    slow = Slow("slow", 1, log)
    registry = registry_of(slow)
    slow.go.set()
    await registry.start_all(deps())
    slow.go.clear()
    restarting = asyncio.create_task(registry.restart("slow"))
    await asyncio.sleep(0.01)
    await registry.stop_all()
    with pytest.raises(PilotError, match="failed to start"):
        await restarting
    assert log == ["+slow", "-slow", "+slow"]
    with pytest.raises(ServiceNotReadyError):
        registry.service("slow")


async def test_a_restart_does_not_reach_into_the_next_life_of_the_registry() -> None:
    log: list[str] = []
    registry = registry_of(Recorded("a", 1, log))
    await registry.start_all(deps())
    restarting = asyncio.create_task(registry.restart("a", pause=0.05))
    await asyncio.sleep(0.01)
    await registry.stop_all()
    await registry.start_all(deps())
    with pytest.raises(ServiceNotReadyError):
        await restarting
    assert log == ["+a", "-a", "+a"]
    assert registry.service("a").name == "a"
    await registry.stop_all()


async def test_two_stops_of_one_service_are_one() -> None:
    log: list[str] = []
    go = asyncio.Event()
    registry = registry_of(Recorded("a", 1, log, stop=lambda: _wait(go)))
    await registry.start_all(deps())
    halting = asyncio.create_task(registry.halt("a"))
    await asyncio.sleep(0.01)
    stopping = asyncio.create_task(registry.stop_all())
    await asyncio.sleep(0.01)
    assert not stopping.done()
    go.set()
    await asyncio.gather(halting, stopping)
    assert log == ["+a", "-a"]
