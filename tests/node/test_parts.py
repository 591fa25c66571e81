"""The small parts of the runtime: scheduler, tasks, contacts, echo."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from pilot._fast.errors import ClosedError, PathError, PeerNotFoundError
from pilot.node.contacts import Contacts
from pilot.node.echo import EchoService
from pilot.node.scheduler import Scheduler
from pilot.node.tasks import Tasks
from pilot.tunnel import ContactState


class Clockwork:
    """What a scheduler drives."""

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.fired: list[float] = []
        self.iterations = 0

    def next_deadline(self) -> float:
        return self.deadline

    def handle_timer(self, now: float) -> None:
        self.fired.append(now)
        self.deadline = float("inf")

    def end_of_iteration(self) -> None:
        self.iterations += 1


def scheduler() -> Scheduler:
    return Scheduler(asyncio.get_running_loop(), time.monotonic)


async def test_timer_fires_once_and_never_early() -> None:
    now = time.monotonic()
    clockwork = Clockwork(now + 0.0204)
    timers = scheduler()
    timers.attach(clockwork)  # type: ignore[arg-type]
    await asyncio.sleep(0.1)
    [fired] = clockwork.fired
    assert fired >= now + 0.0204


async def test_earlier_deadline_replaces_the_timer_and_a_later_one_is_ignored() -> None:
    now = time.monotonic()
    clockwork = Clockwork(now + 60)
    timers = scheduler()
    timers.attach(clockwork)  # type: ignore[arg-type]
    timers.arm(now + 0.01)
    timers.arm(now + 30)
    await asyncio.sleep(0.05)
    assert len(clockwork.fired) == 1


async def test_nothing_is_called_after_stop() -> None:
    clockwork = Clockwork(time.monotonic() + 0.005)
    timers = scheduler()
    timers.attach(clockwork)  # type: ignore[arg-type]
    timers.soon()
    timers.stop()
    timers.soon()
    timers.arm(0.0)
    await asyncio.sleep(0.03)
    assert (clockwork.fired, clockwork.iterations) == ([], 0)


async def test_soon_is_the_end_of_this_iteration() -> None:
    clockwork = Clockwork(float("inf"))
    timers = scheduler()
    timers.attach(clockwork)  # type: ignore[arg-type]
    timers.soon()
    assert clockwork.iterations == 0
    await asyncio.sleep(0)
    assert clockwork.iterations == 1


async def test_tasks_are_gone_after_stop_and_defects_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    tasks = Tasks(asyncio.get_running_loop())
    ended: list[str] = []

    async def run(seconds: float) -> None:
        try:
            await asyncio.sleep(seconds)
            raise KeyError("a defect")
        finally:
            ended.append(str(seconds))

    tasks.spawn(run(0))
    tasks.spawn(run(60))
    await asyncio.sleep(0.01)
    await tasks.stop()
    tasks.spawn(run(1))
    assert ended == ["0", "60"]
    assert "a defect" in caplog.text


class Tunnel:
    """Answers `contact` as it is told."""

    def __init__(self, state: ContactState) -> None:
        self.state = state

    def contact(self, node: int, now: float) -> ContactState:
        return self.state


class Datapath:
    own_node = 1

    def own_peer(self) -> str:
        return "self"

    def add_peer(self, node: int) -> str:
        return f"peer {node}"


def contacts(state: ContactState) -> Any:
    return Contacts(asyncio.get_running_loop(), Datapath(), Tunnel(state), time.monotonic)  # type: ignore[arg-type]


async def test_ready_and_own_peers_are_there_at_once() -> None:
    assert await contacts(ContactState.READY).reach(2) == "peer 2"
    assert await contacts(ContactState.RESOLVING).reach(1) == "self"


async def test_all_who_wait_go_on_together_and_none_is_left() -> None:
    waiting = contacts(ContactState.EXCHANGING)
    tasks = [asyncio.ensure_future(waiting.reach(2)) for _ in range(3)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    await asyncio.sleep(0)
    waiting.session_ready(3)
    waiting.session_ready(2)
    assert await asyncio.gather(*tasks[1:]) == ["peer 2", "peer 2"]
    assert waiting._waiting == {}


async def test_failures_carry_the_registrys_reason_or_the_tunnels() -> None:
    waiting = contacts(ContactState.RESOLVING)
    tasks = [asyncio.ensure_future(waiting.reach(node)) for node in (2, 2, 3)]
    await asyncio.sleep(0)
    waiting.resolve_failed(2, PeerNotFoundError("nobody"))
    waiting.resolve_failed(9, PeerNotFoundError("nobody asked"))
    waiting.contact_failed(2, "resolve")
    waiting.contact_failed(3, "it did not answer")
    first, second, third = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(first, PeerNotFoundError)
    assert first is not second
    assert str(second) == "nobody"
    assert isinstance(third, PathError)
    assert "0:0000.0000.0003: it did not answer" in str(third)
    assert (waiting._waiting, waiting._resolve_errors) == ({}, {})


async def test_cooling_peer_fails_at_once() -> None:
    with pytest.raises(PathError, match="moments ago"):
        await contacts(ContactState.COOLING).reach(2)


async def test_waiting_ends_with_the_node() -> None:
    waiting = contacts(ContactState.EXCHANGING)
    task = asyncio.ensure_future(waiting.reach(2))
    await asyncio.sleep(0)
    waiting.close()
    with pytest.raises(ClosedError):
        await task
    with pytest.raises(ClosedError):
        await waiting.reach(2)


class EchoStream:
    """Arrivals as the test lists them."""

    def __init__(self, *arrivals: bytes) -> None:
        self.arrivals = list(arrivals)
        self.sent: list[bytes] = []
        self.remote_addr = self
        self.node = 2

    async def read_into(self, buffer: Any) -> int:
        data = self.arrivals.pop(0) if self.arrivals else b""
        buffer[: len(data)] = data
        return len(data)

    async def write(self, data: Any) -> None:
        self.sent.append(bytes(data))


async def test_echo_keeps_boundaries_and_answers_traces() -> None:
    trace = b"TRCE" + bytes(range(8))
    stream = EchoStream(b"one", b"two", trace + b"dropped", b"TRCE short", trace + bytes(2000))
    await EchoService(lambda node: True, lambda: 0x0102030405060708).handle(stream)  # type: ignore[arg-type]
    answer = trace + bytes(range(1, 9))
    assert stream.sent == [b"one", b"two", answer, b"TRCE short", trace + bytes(2000)]


async def test_echo_is_not_for_everybody() -> None:
    stream = EchoStream(b"one")
    await EchoService(lambda node: node != 2).handle(stream)  # type: ignore[arg-type]
    assert stream.sent == []
