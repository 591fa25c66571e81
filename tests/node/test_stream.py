"""The stream shell on a fake core: reading, writing, deadlines, cancellation, closing, on both loops."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from pilot._fast.errors import BusyError, ClosedError, InvalidValueError, RefusedError, ResetError
from pilot._fast.stream import StreamState
from pilot.coreapi import Stream as StreamProtocol
from pilot.node.home import Home
from pilot.node.stream import TURNS, Stream
from tests.node.fakes import FakeCore


def open_stream(core: FakeCore | None = None) -> tuple[Stream, FakeCore]:
    core = core or FakeCore()
    return Stream(core, Home(asyncio.get_running_loop(), lambda: None)), core  # type: ignore[arg-type]


async def started(awaitable: Awaitable[Any]) -> asyncio.Task[Any]:
    """A task that has run up to its first wait."""
    task = asyncio.ensure_future(awaitable)
    await asyncio.sleep(0)
    return task


async def test_stream_is_a_coreapi_stream() -> None:
    stream, _ = open_stream()
    assert isinstance(stream, StreamProtocol)


async def test_read_returns_what_is_there_without_suspending() -> None:
    stream, core = open_stream()
    core.incoming += b"hello"
    coroutine = stream.read(3)
    with pytest.raises(StopIteration) as stop:
        coroutine.send(None)
    assert stop.value.value == b"hel"
    assert await stream.read() == b"lo"


async def test_read_waits_for_bytes_and_ends_with_the_peer() -> None:
    stream, core = open_stream()
    reading = await started(stream.read())
    assert not reading.done()
    core.feed(b"x")
    assert await reading == b"x"
    reading = await started(stream.read())
    core.finish()
    assert await reading == b""
    assert await stream.read() == b""
    assert stream.closed


async def test_reset_is_raised_after_the_bytes_and_every_time() -> None:
    stream, core = open_stream()
    core.incoming += b"last"
    core.reset()
    assert await stream.read() == b"last"
    for _ in range(2):
        with pytest.raises(ResetError):
            await stream.read()


async def test_readexactly_collects_over_several_arrivals() -> None:
    stream, core = open_stream()
    reading = await started(stream.readexactly(6))
    for part in (b"ab", b"cd", b"efgh"):
        core.feed(part)
        await asyncio.sleep(0)
    assert await reading == b"abcdef"
    assert await stream.read() == b"gh"
    assert await stream.readexactly(0) == b""


async def test_readexactly_at_the_end_hands_over_the_rest() -> None:
    stream, core = open_stream()
    core.incoming += b"abc"
    core.finish()
    with pytest.raises(asyncio.IncompleteReadError) as caught:
        await stream.readexactly(4)
    assert caught.value.partial == b"abc"
    assert caught.value.expected == 4
    assert await stream.read() == b""


@pytest.mark.parametrize("again", ["read", "readexactly", "read_into"])
async def test_cancelled_readexactly_loses_no_byte(again: str) -> None:
    stream, core = open_stream()
    reading = await started(stream.readexactly(10))
    core.feed(b"abc")
    await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    if again == "read":
        assert await stream.read(2) + await stream.read() == b"abc"
    elif again == "readexactly":
        core.feed(b"d")
        assert await stream.readexactly(4) == b"abcd"
    else:
        buffer = bytearray(8)
        assert await stream.read_into(buffer) == 3
        assert bytes(buffer) == b"abc\0\0\0\0\0"


async def test_read_cancelled_in_the_moment_of_waking_loses_no_byte() -> None:
    stream, core = open_stream()
    reading = await started(stream.read())
    core.feed(b"abc")
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert await stream.read() == b"abc"


async def test_read_into_fills_the_callers_buffer() -> None:
    stream, core = open_stream()
    buffer = bytearray(4)
    reading = await started(stream.read_into(buffer))
    core.feed(b"abcdef")
    assert await reading == 4
    assert buffer == b"abcd"
    core.finish()
    assert await stream.read_into(buffer) == 2
    assert await stream.read_into(buffer) == 0


@pytest.mark.parametrize("buffer", [b"abc", bytearray()])
async def test_read_into_refuses_useless_buffers(buffer: Any) -> None:
    stream, _ = open_stream()
    with pytest.raises(InvalidValueError):
        await stream.read_into(buffer)


async def test_sizes_out_of_range() -> None:
    stream, _ = open_stream()
    with pytest.raises(InvalidValueError):
        await stream.read(0)
    with pytest.raises(InvalidValueError):
        await stream.readexactly(-1)


async def test_iteration_ends_with_the_peer() -> None:
    stream, core = open_stream()
    core.incoming += b"abc"
    core.finish()
    assert [chunk async for chunk in stream] == [b"abc"]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (lambda s: s.read(), lambda s: s.readexactly(1)),
        (lambda s: s.readexactly(5), lambda s: s.read_into(bytearray(1))),
        (lambda s: s.write(b"x" * 20), lambda s: s.write(b"y")),
        (lambda s: s.drain(), lambda s: s.drain()),
    ],
    ids=["read", "readexactly", "write", "drain"],
)
async def test_two_at_once_are_an_error(
    first: Callable[[Stream], Awaitable[Any]], second: Callable[[Stream], Awaitable[Any]]
) -> None:
    stream, core = open_stream(FakeCore(room=10))
    await stream.write(b"12345")
    waiting = await started(first(stream))
    core.incoming += b"x"
    with pytest.raises(BusyError, match="another task"):
        await second(stream)
    waiting.cancel()


async def test_write_waits_for_room_and_counts() -> None:
    stream, core = open_stream(FakeCore(room=10))
    writing = await started(stream.write(bytes(range(25))))
    assert stream.written == 10
    core.acknowledge()
    await asyncio.sleep(0)
    assert stream.written == 20
    core.acknowledge()
    await writing
    assert core.outgoing == bytes(range(25))


async def test_cancelled_write_tells_what_it_took() -> None:
    stream, core = open_stream(FakeCore(room=10))
    writing = await started(stream.write(b"x" * 25))
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    assert stream.written == 10
    core.acknowledge()
    await stream.write(b"y")
    assert core.outgoing == b"x" * 10 + b"y"


async def test_write_nowait_takes_what_fits() -> None:
    stream, _ = open_stream(FakeCore(room=3))
    assert stream.write_nowait(b"abcde") == 3
    assert stream.write_nowait(b"de") == 0


@pytest.mark.parametrize("data", [b"abcd", bytearray(b"abcd"), memoryview(b"abcd").cast("H")])
async def test_write_takes_any_buffer(data: Any) -> None:
    stream, core = open_stream()
    await stream.write(data)
    assert core.outgoing == b"abcd"


async def test_drain_waits_for_what_was_written_before() -> None:
    stream, core = open_stream()
    await stream.write(b"x" * 10)
    draining = await started(stream.drain())
    await stream.write(b"y" * 10)
    core.acknowledge(9)
    await asyncio.sleep(0)
    assert not draining.done()
    core.acknowledge(1)
    await draining
    assert core.unacknowledged == 10


async def test_drain_tells_when_the_bytes_will_never_be_acknowledged() -> None:
    stream, core = open_stream()
    await stream.write(b"x")
    draining = await started(stream.drain())
    core.finish()
    with pytest.raises(ClosedError, match="1 bytes unacknowledged"):
        await draining


# --------------------------------------------------------------------------------------------- deadlines


async def test_past_read_deadline_fails_at_once_and_keeps_the_bytes() -> None:
    stream, core = open_stream()
    core.incoming += b"abc"
    stream.set_read_deadline(asyncio.get_running_loop().time() - 1)
    for _ in range(2):
        with pytest.raises(TimeoutError, match="read deadline"):
            await stream.read()
    stream.set_read_deadline(None)
    assert await stream.read() == b"abc"


async def test_read_deadline_fires_while_waiting_and_not_early() -> None:
    stream, _ = open_stream()
    loop = asyncio.get_running_loop()
    when = loop.time() + 0.03
    stream.set_read_deadline(when)
    with pytest.raises(TimeoutError):
        await stream.read()
    assert loop.time() >= when


async def test_moving_a_deadline_wakes_a_waiting_reader() -> None:
    stream, _ = open_stream()
    loop = asyncio.get_running_loop()
    reading = await started(stream.read())
    stream.set_read_deadline(loop.time() + 3600)
    await asyncio.sleep(0)
    assert not reading.done()
    stream.set_read_deadline(loop.time() - 1)
    with pytest.raises(TimeoutError):
        await reading


async def test_a_deadline_moved_on_does_not_fire_at_the_old_time() -> None:
    stream, core = open_stream()
    loop = asyncio.get_running_loop()
    stream.set_read_deadline(loop.time() + 0.01)
    reading = await started(stream.read())
    stream.set_read_deadline(loop.time() + 3600)
    await asyncio.sleep(0.05)
    assert not reading.done()
    core.feed(b"x")
    assert await reading == b"x"
    stream.abort()


async def test_readexactly_past_its_deadline_loses_no_byte() -> None:
    stream, core = open_stream()
    stream.set_read_deadline(asyncio.get_running_loop().time() + 0.01)
    reading = await started(stream.readexactly(4))
    core.feed(b"ab")
    with pytest.raises(TimeoutError):
        await reading
    stream.set_deadline(None)
    assert await stream.read() == b"ab"


@pytest.mark.parametrize("call", [lambda s: s.write(b"x" * 20), lambda s: s.drain()], ids=["write", "drain"])
async def test_write_deadline_covers_write_and_drain(call: Callable[[Stream], Awaitable[None]]) -> None:
    stream, _ = open_stream(FakeCore(room=10))
    await stream.write(b"12345")
    stream.set_write_deadline(asyncio.get_running_loop().time() + 0.01)
    for _ in range(2):
        with pytest.raises(TimeoutError, match=r"(write|drain) deadline"):
            await call(stream)


async def test_past_write_deadline_fails_a_drain_with_nothing_to_wait_for() -> None:
    stream, _ = open_stream()
    stream.set_write_deadline(asyncio.get_running_loop().time() - 1)
    with pytest.raises(TimeoutError, match="drain deadline"):
        await stream.drain()


async def test_deadlines_that_are_no_time() -> None:
    stream, core = open_stream()
    for useless in (float("nan"), "soon"):
        with pytest.raises(InvalidValueError, match="no deadline"):
            stream.set_deadline(useless)  # type: ignore[arg-type]
    stream.set_deadline(float("inf"))
    core.incoming += b"x"
    assert await stream.read() == b"x"


async def test_the_end_of_the_stream_takes_its_timers_along() -> None:
    stream, core = open_stream()
    stream.set_read_deadline(asyncio.get_running_loop().time() + 3600)
    reading = await started(stream.read())
    core.finish()
    await reading
    assert stream._read_deadline is not None
    assert stream._read_deadline._timer is None


# ----------------------------------------------------------------------------------------------- closing


async def test_close_waits_for_the_end_and_wakes_everybody() -> None:
    stream, core = open_stream(FakeCore(room=1))
    await stream.write(b"x")
    reading, writing = await started(stream.read()), await started(stream.write(b"y"))
    closing = await started(stream.close())
    for task in (reading, writing):
        with pytest.raises(ClosedError):
            await task
    assert not closing.done()
    core.end()
    await closing
    await stream.close()
    assert core.closing
    assert not core.aborted


async def test_close_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pilot.node.stream.CLOSE_SECONDS", 0.01)
    stream, core = open_stream()
    await stream.close()
    assert not core.aborted


async def test_close_waits_on_while_the_peer_acknowledges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pilot.node.stream.CLOSE_SECONDS", 0.03)
    stream, core = open_stream()
    await stream.write(b"x" * 10)
    closing = await started(stream.close())
    for _ in range(10):
        await asyncio.sleep(0.02)
        assert not closing.done()
        core.acknowledge(1)
    await closing


async def test_cancelled_close_aborts() -> None:
    stream, core = open_stream()
    closing = await started(stream.close())
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert core.aborted


async def test_block_closes_in_order_or_resets() -> None:
    stream, core = open_stream()
    asyncio.get_running_loop().call_later(0.001, core.end)
    async with stream:
        pass
    assert not core.aborted
    stream, core = open_stream()
    with pytest.raises(KeyError):
        async with stream:
            raise KeyError
    assert core.aborted
    stream.abort()


async def test_bytes_held_back_are_gone_after_close() -> None:
    stream, core = open_stream()
    reading = await started(stream.readexactly(4))
    core.feed(b"ab")
    await asyncio.sleep(0)
    reading.cancel()
    await asyncio.wait([reading])
    stream.abort()
    with pytest.raises(ClosedError):
        await stream.read()


# ----------------------------------------------------------------------------------------------- opening


async def test_until_open() -> None:
    stream, core = open_stream(FakeCore(state=StreamState.SYN_SENT))
    opening = await started(stream._until_open())
    core.open()
    await opening


async def test_refused_while_opening() -> None:
    stream, core = open_stream(FakeCore(state=StreamState.SYN_SENT))
    opening = await started(stream._until_open())
    core.fail(RefusedError("nobody there"))
    with pytest.raises(RefusedError):
        await opening


async def test_cancelled_opening_resets() -> None:
    stream, core = open_stream(FakeCore(state=StreamState.SYN_SENT))
    opening = await started(stream._until_open())
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert core.aborted


# ---------------------------------------------------------------------------------------------- fairness


@pytest.mark.parametrize("operation", ["read", "write"])
async def test_immediate_returns_let_other_tasks_run(operation: str) -> None:
    stream, core = open_stream()
    core.incoming += bytes(4 * TURNS)
    ran = 0

    async def other() -> None:
        nonlocal ran
        while True:
            ran += 1
            await asyncio.sleep(0)

    task = await started(other())
    for _ in range(4 * TURNS):
        await (stream.read(1) if operation == "read" else stream.write(b"x"))
    task.cancel()
    assert 3 <= ran <= 8


async def test_cancelled_at_the_checkpoint_loses_no_byte() -> None:
    stream, core = open_stream()
    core.incoming += bytes(TURNS) + b"!"
    for _ in range(TURNS):
        await stream.read(1)
    reading = await started(stream.read(1))
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert await stream.read(1) == b"!"


# ---------------------------------------------------------------------------------- threads and loops


def test_another_loop_of_the_same_thread_is_refused() -> None:
    async def enter() -> Stream:
        return open_stream()[0]

    loop = asyncio.new_event_loop()
    try:
        stream = loop.run_until_complete(enter())
        with pytest.raises(BusyError, match="outside the event loop"):
            asyncio.run(stream.read())
        with pytest.raises(BusyError, match="outside the event loop"):
            stream.abort()
    finally:
        loop.close()


async def test_other_thread_is_refused_and_told_how_to_hop() -> None:
    stream, _ = open_stream()
    errors: list[BaseException] = []

    def intrude() -> None:
        for call in (stream.abort, lambda: asyncio.run(stream.read()), lambda: stream.set_deadline(None)):
            try:
                call()
            except BusyError as error:
                errors.append(error)

    thread = threading.Thread(target=intrude)
    thread.start()
    await asyncio.to_thread(thread.join)
    assert len(errors) == 3
    assert all("run_coroutine_threadsafe" in str(error) for error in errors)
