"""Crash recovery: what is swallowed, counted, logged, published and handed on, and what never is (L10)."""

from __future__ import annotations

import asyncio
import functools
import logging
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from pilot._fast.eventbus import EventBus
from pilot.coreapi import (
    is_plugin_healthy,
    plugin_panic_count,
    plugin_recovered_panic_count,
    recover_plugin,
    reset_plugin_health,
    reset_plugin_recovered_panic_count_for_test,
)
from pilot.coreapi.recovery import MAX_PANIC_TEXT, UNHEALTHY_PANICS


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """The counters belong to the process: every test begins at zero and leaves zero."""
    reset_plugin_recovered_panic_count_for_test()
    yield
    reset_plugin_recovered_panic_count_for_test()


def crash(plugin: str = "greeter", error: BaseException | None = None, **options: Any) -> None:
    """One crash under guard; returns because it is swallowed."""
    with recover_plugin(plugin, "accept", **options):
        raise error or ValueError("boom")


def counts(plugin: str = "greeter") -> tuple[int, int]:
    return plugin_recovered_panic_count(), plugin_panic_count(plugin)


# ---------------------------------------------------------------------------------------------- counting


def test_crashes_are_counted_for_the_process_and_for_the_plugin() -> None:
    assert counts() == (0, 0)
    crash()
    crash("other")
    crash()
    assert counts() == (3, 2)
    assert counts("other") == (3, 1)
    assert counts("never seen") == (3, 0)


def test_a_body_that_does_not_crash_counts_nothing() -> None:
    with recover_plugin("greeter", "accept"):
        pass
    assert counts() == (0, 0)


def test_the_third_crash_makes_a_plugin_unhealthy_and_a_reset_well() -> None:
    healthy = []
    for _ in range(UNHEALTHY_PANICS):
        healthy.append(is_plugin_healthy("greeter"))
        crash()
    assert healthy == [True, True, True]
    assert not is_plugin_healthy("greeter")
    assert is_plugin_healthy("other")
    reset_plugin_health("greeter")
    reset_plugin_health("never seen")
    assert is_plugin_healthy("greeter")
    assert counts() == (3, 0)
    crash()
    assert counts() == (4, 1)


def test_the_reset_for_tests_forgets_everything() -> None:
    for _ in range(3):
        crash()
    reset_plugin_recovered_panic_count_for_test()
    assert counts() == (0, 0)
    assert is_plugin_healthy("greeter")


def test_threads_lose_no_count() -> None:
    logging.getLogger("pilot.plugin.greeter").disabled = True
    try:
        threads = [threading.Thread(target=lambda: [crash() for _ in range(500)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        logging.getLogger("pilot.plugin.greeter").disabled = False
    assert counts() == (2000, 2000)


# ------------------------------------------------------------------------------- what is no crash of a plugin


@pytest.mark.parametrize(
    "error",
    [asyncio.CancelledError(), KeyboardInterrupt(), SystemExit(1), GeneratorExit()],
    ids=lambda error: type(error).__name__,
)
def test_cancellation_and_the_end_of_the_interpreter_pass(error: BaseException) -> None:
    handed: list[Exception] = []
    with pytest.raises(type(error)) as caught:
        crash(error=error, on_panic=handed.append)
    assert caught.value is error
    assert counts() == (0, 0)
    assert handed == []


async def test_a_cancelled_task_is_cancelled() -> None:
    async def body() -> None:
        with recover_plugin("greeter", "loop"):
            await asyncio.get_running_loop().create_future()

    task = asyncio.create_task(body())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()
    assert counts() == (0, 0)


def test_groups_are_crashes_unless_a_cancellation_is_among_them() -> None:
    crash(error=ExceptionGroup("both", [ValueError(), KeyError()]))
    assert counts() == (1, 1)
    with pytest.raises(BaseExceptionGroup):
        crash(error=BaseExceptionGroup("mixed", [ValueError(), asyncio.CancelledError()]))
    assert counts() == (1, 1)


# ------------------------------------------------------------------------------------------------- forms


def test_execution_goes_on_after_the_body_and_clean_up_has_run() -> None:
    steps = []
    with recover_plugin("greeter", "accept"):
        try:
            raise ValueError
        finally:
            steps.append("clean up")
    steps.append("on")
    assert steps == ["clean up", "on"]


async def test_one_guard_serves_many_bodies_at_once() -> None:
    guard = recover_plugin("greeter", "serve")

    async def body(number: int) -> None:
        with guard:
            await asyncio.sleep(0)
            if number % 2:
                raise ValueError(number)

    await asyncio.gather(*(body(number) for number in range(10)))
    assert counts() == (5, 5)


def test_as_a_decorator_of_a_function() -> None:
    @recover_plugin("greeter", "divide")
    def divide(a: int, *, by: int) -> float:
        """Divides."""
        return a / by

    assert divide(6, by=3) == 2.0
    assert divide(6, by=0) is None
    assert (divide.__name__, divide.__doc__) == ("divide", "Divides.")
    assert counts() == (1, 1)


async def test_as_a_decorator_of_a_coroutine_function() -> None:
    @recover_plugin("greeter", "divide")
    async def divide(a: int, *, by: int) -> float:
        """Divides later."""
        await asyncio.sleep(0)
        return a / by

    assert asyncio.iscoroutinefunction(divide)
    assert await divide(6, by=3) == 2.0
    assert await divide(6, by=0) is None
    assert (divide.__name__, divide.__doc__) == ("divide", "Divides later.")

    @recover_plugin("greeter", "wait")
    async def wait() -> None:
        await asyncio.get_running_loop().create_future()

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert counts() == (1, 1)


async def test_as_a_decorator_of_methods_and_partial_functions() -> None:
    class Plugin:
        @recover_plugin("greeter", "method")
        async def method(self, value: int) -> int:
            return 1 // value

    assert await Plugin().method(1) == 1
    assert await Plugin().method(0) is None
    partly = functools.partial(Plugin.method, Plugin())
    assert await recover_plugin("greeter", "partial")(partly)(0) is None
    assert counts() == (2, 2)


def test_generators_cannot_be_decorated() -> None:
    def plain() -> Iterator[int]:
        yield 1

    async def later() -> AsyncIterator[int]:
        yield 1

    for function in (plain, later):
        with pytest.raises(TypeError, match="cannot guard the generator"):
            recover_plugin("greeter", "generate")(function)


# ------------------------------------------------------------------------------------------------- events


def test_events_at_each_crash_and_once_at_the_third() -> None:
    bus = EventBus()
    with bus.subscribe("plugin.*") as events:
        for number in range(5):
            crash(error=ValueError(number), events=bus)
        found = [(event.topic, dict(event.payload)) for event in events.get_all()]

    def panic(number: int) -> tuple[str, dict[str, Any]]:
        payload = {"plugin": "greeter", "op": "accept", "panic": f"ValueError: {number - 1}"}
        return "plugin.greeter.panic", {**payload, "recovered_total": number, "plugin_panics": number}

    unhealthy = "plugin.greeter.unhealthy", {"plugin": "greeter", "plugin_panics": 3, "recovered_total": 3}
    assert found == [panic(1), panic(2), panic(3), unhealthy, panic(4), panic(5)]


def test_after_a_reset_the_third_crash_is_told_again() -> None:
    bus = EventBus()
    with bus.subscribe("plugin.*.unhealthy") as events:
        for _ in range(3):
            crash(events=bus)
        reset_plugin_health("greeter")
        for _ in range(4):
            crash(events=bus)
        totals = [event.payload["recovered_total"] for event in events.get_all()]
    assert totals == [3, 6]


def test_nothing_is_published_without_a_bus_and_it_is_counted_all_the_same() -> None:
    crash(events=None)
    assert counts() == (1, 1)


class BrokenBus:
    """Fails for every event, after noting it."""

    def __init__(self) -> None:
        self.tried: list[str] = []

    def publish(self, topic: str, payload: Any) -> None:
        self.tried.append(topic)
        raise OSError("no bus today")


def test_a_bus_that_fails_is_logged_and_swallowed(caplog: pytest.LogCaptureFixture) -> None:
    bus, handed = BrokenBus(), list[Exception]()
    with caplog.at_level(logging.ERROR, "pilot.plugin.greeter"):
        for _ in range(3):
            crash(events=bus, on_panic=handed.append)
    assert bus.tried == ["plugin.greeter.panic"] * 3 + ["plugin.greeter.unhealthy"]
    assert "plugin.greeter.unhealthy could not be published" in caplog.text
    assert len(handed) == 3
    assert counts() == (3, 3)


def test_a_closed_bus_is_no_trouble() -> None:
    bus = EventBus()
    bus.close()
    crash(events=bus)
    assert counts() == (1, 1)


class UnspeakableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text for you")

    __repr__ = __str__


def panic_text(error: Exception) -> str:
    bus = EventBus()
    with bus.subscribe("plugin.greeter.panic") as events:
        crash(error=error, events=bus)
        event = events.get_nowait()
    assert event is not None
    return str(event.payload["panic"])


def test_an_error_without_a_text_is_recovered_all_the_same() -> None:
    assert panic_text(UnspeakableError()) == "UnspeakableError: (its text cannot be made)"
    assert counts() == (1, 1)


def test_the_text_in_an_event_is_bounded() -> None:
    assert panic_text(ValueError("x" * 10_000)) == "ValueError: " + "x" * (MAX_PANIC_TEXT - len("ValueError: "))


# --------------------------------------------------------------------------------------- log and on_panic


def test_the_log_names_plugin_and_operation_and_has_the_stack(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR, "pilot.plugin.greeter"):
        crash()
    (record,) = caplog.records
    assert record.name == "pilot.plugin.greeter"
    assert record.getMessage() == "plugin greeter crashed in accept"
    assert (record.__dict__["plugin"], record.__dict__["op"]) == ("greeter", "accept")
    assert record.exc_info is not None
    assert "ValueError: boom" in caplog.text
    assert "in crash" in caplog.text  # the stack leads to where it happened


def test_on_panic_gets_the_error_after_it_was_counted_and_published() -> None:
    bus, seen = EventBus(), list[tuple[Exception, int, int]]()
    error = ValueError("boom")
    with bus.subscribe("plugin.greeter.panic") as events:
        crash(
            error=error, events=bus, on_panic=lambda e: seen.append((e, plugin_panic_count("greeter"), events.waiting))
        )
    assert seen == [(error, 1, 1)]


def test_an_on_panic_that_fails_is_logged_and_swallowed(caplog: pytest.LogCaptureFixture) -> None:
    def broken(error: Exception) -> None:
        raise KeyError("again")

    with caplog.at_level(logging.ERROR, "pilot.plugin.greeter"):
        crash(on_panic=broken)
    assert "what plugin greeter does after a crash failed" in caplog.text
    assert counts() == (1, 1)


def test_an_on_panic_may_end_the_interpreter() -> None:
    def leave(error: Exception) -> None:
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        crash(on_panic=leave)
    assert counts() == (1, 1)


def test_guards_inside_guards_count_once() -> None:
    with recover_plugin("outer", "loop"):
        crash("inner")
    assert (counts("inner"), counts("outer")) == ((1, 1), (1, 0))


# --------------------------------------------------------------------------------- what must not get through


def test_a_logging_filter_that_fails_undoes_nothing() -> None:
    class Broken(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            raise RuntimeError("no disk")

    log, broken, seen = logging.getLogger("pilot.plugin.greeter"), Broken(), list[Exception]()
    log.addFilter(broken)
    try:
        crash(on_panic=seen.append)
    finally:
        log.removeFilter(broken)
    assert (counts(), len(seen)) == ((1, 1), 1)


async def test_an_object_with_an_async_call_is_guarded() -> None:
    class Handler:
        async def __call__(self) -> None:
            raise ValueError("boom")

    await recover_plugin("greeter", "handle")(Handler())()
    assert counts() == (1, 1)


async def test_a_cancelled_task_ends_though_its_body_made_another_error_of_it() -> None:
    rounds = 0

    async def work() -> None:
        nonlocal rounds
        while True:
            rounds += 1
            with recover_plugin("greeter", "work"):
                try:
                    await asyncio.sleep(60)
                except asyncio.CancelledError:
                    raise ValueError("lost the connection") from None

    task = asyncio.create_task(work())
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (rounds, counts()) == (1, (1, 1))


async def test_a_time_limit_around_the_guard_still_is_one() -> None:
    async def work() -> None:
        with recover_plugin("greeter", "work"):
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                raise ValueError("lost the connection") from None

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await work()
