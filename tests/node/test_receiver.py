"""Streams read by callbacks: what is shown and when, back-pressure, ends, failures, memory; on both loops."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Any

import pytest

from pilot._fast.errors import BusyError, ClosedError, InvalidValueError, ResetError
from pilot.node import Node, Stream
from pilot.testing import World, simulate
from tests.node.conftest import eventually
from tests.node.fakes import FakeCore
from tests.node.test_stream import open_stream, started
from tests.node.test_streams_between_nodes import MIB, Pair, connect


class Heard:
    """What a receiver was told, in order. `take`: what it returns for a size."""

    def __init__(self, take: Callable[[int], int | None] = lambda size: None) -> None:
        self.pieces: list[bytes] = []
        self.ends: list[Exception | None] = []
        self.rooms = 0
        self.take = take

    def received(self, view: memoryview) -> int | None:
        self.pieces.append(bytes(view))
        return self.take(len(view))

    def writable(self) -> None:
        self.rooms += 1

    def on(self, stream: Stream) -> Heard:
        stream.set_receiver(self.received, ended=self.ends.append, writable=self.writable)
        return self


async def turn() -> None:
    """Lets everything that was scheduled run."""
    await asyncio.sleep(0)


async def heard(take: Callable[[int], int | None] = lambda size: None) -> tuple[Heard, Stream, FakeCore]:
    stream, core = open_stream()
    told = Heard(take).on(stream)
    await turn()
    return told, stream, core


# --- what is shown ---


async def test_every_arrival_is_shown_once() -> None:
    told, _, core = await heard()
    for piece in (b"one", b"two"):
        core.feed(piece)
    assert told.pieces == [b"one", b"two"]
    assert not core.incoming
    assert told.ends == []


async def test_what_waits_is_shown_soon_and_never_inside_the_call() -> None:
    stream, core = open_stream()
    reading = await started(stream.readexactly(8))
    core.feed(b"held")
    await turn()
    reading.cancel()
    await asyncio.wait([reading])
    core.incoming += b"ring"
    told = Heard().on(stream)
    assert told.pieces == []
    await turn()
    assert told.pieces == [b"held", b"ring"]


async def test_the_view_is_read_only_and_dies_with_the_call() -> None:
    stream, core = open_stream()
    kept: list[memoryview] = []
    stream.set_receiver(kept.append)
    await turn()
    core.feed(b"x")
    with pytest.raises(ValueError, match="released"):
        kept[0][0]
    ends: list[Exception | None] = []

    def write(view: memoryview) -> None:
        view[0] = 1

    stream, core = open_stream()
    stream.set_receiver(write, ended=ends.append)
    await turn()
    core.feed(b"x")
    assert isinstance(ends[0], TypeError)


async def test_a_replaced_receiver_hears_nothing_more() -> None:
    stream, core = open_stream()
    second = Heard()

    def first(view: memoryview) -> int:
        second.on(stream)
        return 2

    stream.set_receiver(first)
    await turn()
    core.feed(b"abcdef")
    assert second.pieces == []
    await turn()
    assert second.pieces == [b"cdef"]


# --- instead of tasks ---


async def test_tasks_and_receivers_exclude_each_other() -> None:
    stream, core = open_stream()
    with pytest.raises(BusyError, match="no receiver"):
        stream.pause_reading()
    with pytest.raises(BusyError, match="no receiver"):
        stream.resume_reading()
    reading = await started(stream.read())
    with pytest.raises(BusyError, match="another task"):
        stream.set_receiver(print)
    core.feed(b"x")
    await reading
    told = Heard().on(stream)
    reads: list[Callable[[], Any]] = [
        stream.read,
        lambda: stream.readexactly(1),
        lambda: stream.read_into(bytearray(1)),
        lambda: anext(stream),
    ]
    for read in reads:
        with pytest.raises(BusyError, match=r"set_receiver\(None\)"):
            await read()
    stream.set_receiver(None)
    stream.set_receiver(None)
    await turn()
    core.feed(b"for a task")
    assert await stream.read() == b"for a task"
    assert told.pieces == []


# --- back-pressure ---


async def test_what_is_left_is_shown_again_after_resume_reading() -> None:
    takes = iter([2, 0, None])
    told, stream, core = await heard(lambda size: next(takes))
    core.feed(b"abcd")
    core.feed(b"ef")
    assert told.pieces == [b"abcd"]
    for expected in ([b"abcd", b"cdef"], [b"abcd", b"cdef", b"cdef"]):
        stream.resume_reading()
        await turn()
        assert told.pieces == expected
    assert not core.incoming


async def test_a_callback_may_take_a_little_in_each_turn() -> None:
    """It resumes itself, so what it leaves is shown again, and others run in between."""
    told, stream, core = await heard()

    def take(size: int) -> int:
        stream.resume_reading()
        return 2

    told.take = take
    core.feed(b"abcdef")
    for expected in ([b"abcdef"], [b"abcdef", b"cdef"], [b"abcdef", b"cdef", b"ef"]):
        assert told.pieces == expected
        await turn()
    assert not core.incoming


async def test_the_last_word_counts() -> None:
    told, stream, core = await heard()
    stream.resume_reading()
    stream.pause_reading()
    await turn()
    core.feed(b"x")
    assert told.pieces == []
    stream.pause_reading()
    stream.resume_reading()
    await turn()
    assert told.pieces == [b"x"]


async def test_an_eager_task_reads_what_the_callback_leaves(pair: Pair) -> None:
    """It starts inside the callback, as tasks do with `asyncio.eager_task_factory`, while the bytes are on loan."""
    ours, theirs = await connect(pair)
    waits: list[asyncio.Future[None]] = []

    def received(view: memoryview) -> int:
        theirs.set_receiver(None)
        waits.append(reading.send(None))
        return 3

    reading = theirs.read()
    theirs.set_receiver(received)
    await ours.write(b"abcdefgh")
    await eventually(lambda: bool(waits) and waits[0].done())
    with pytest.raises(StopIteration) as stop:
        reading.send(None)
    assert stop.value.value == b"defgh"


async def test_a_paused_stream_shows_nothing_and_hides_its_end() -> None:
    told, stream, core = await heard()
    stream.pause_reading()
    core.feed(b"last")
    core.finish()
    assert (told.pieces, told.ends) == ([], [])
    stream.resume_reading()
    await turn()
    assert (told.pieces, told.ends) == ([b"last"], [None])


async def test_room_is_told_once_and_only_after_the_ring_was_full() -> None:
    told, stream, core = await heard()
    core.acknowledge()
    assert told.rooms == 0
    core.room = 4
    assert stream.write_nowait(b"abcdef") == 4
    core.acknowledge()
    core.acknowledge()
    assert told.rooms == 1


# --- ends ---


@pytest.mark.parametrize(("end", "kind"), [("finish", type(None)), ("reset", ResetError)])
async def test_the_end_is_told_once_after_the_last_byte(end: str, kind: type) -> None:
    told, stream, core = await heard()
    core.incoming += b"last"
    getattr(core, end)()
    assert told.pieces == [b"last"]
    stream.resume_reading()
    await turn()
    assert [type(error) for error in told.ends] == [kind]


@pytest.mark.parametrize("how", ["abort", "close"])
async def test_closing_inside_the_callback(how: str) -> None:
    stream, core = open_stream()
    told = Heard()
    tasks: list[asyncio.Task[None]] = []

    def received(view: memoryview) -> int:
        told.received(view)
        if how == "abort":
            stream.abort()
        else:
            tasks.append(asyncio.ensure_future(stream.close()))
        return 1

    stream.set_receiver(received, ended=told.ends.append)
    await turn()
    core.feed(b"abc")
    await turn()
    if how == "close":
        core.fail(None)
        await asyncio.wait(tasks)
    assert told.pieces == [b"abc"]
    assert [type(error) for error in told.ends] == [ClosedError]


# --- failures ---


def fails(view: memoryview) -> None:
    raise KeyError("mine")


@pytest.mark.parametrize(
    ("received", "kind"),
    [(fails, KeyError), (lambda view: -1, InvalidValueError), (lambda view: 4, InvalidValueError),
     (lambda view: "x", InvalidValueError)],
)  # fmt: skip
async def test_a_failing_callback_resets_its_stream_and_is_logged(
    received: Any, kind: type, caplog: pytest.LogCaptureFixture
) -> None:
    stream, core = open_stream()
    ends: list[Exception | None] = []
    stream.set_receiver(received, ended=ends.append)
    await turn()
    with caplog.at_level(logging.ERROR, "pilot.streams"):
        core.feed(b"abc")
    assert core.aborted
    assert [type(error) for error in ends] == [kind]
    assert len(caplog.records) == 1
    assert "receiver callback" in caplog.text


async def test_a_broken_stream_is_no_defect_of_the_callback(caplog: pytest.LogCaptureFixture) -> None:
    stream, core = open_stream()
    ends: list[Exception | None] = []
    stream.set_receiver(stream.write_nowait, ended=ends.append)
    await turn()
    core.incoming += b"last"
    with caplog.at_level(logging.INFO, "pilot.streams"):
        core.reset()
    assert isinstance(ends[0], ResetError)
    assert [record.levelno for record in caplog.records] == [logging.INFO]


async def test_a_failing_end_or_room_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    stream, core = open_stream()
    calls: list[str] = []

    def writable() -> None:
        calls.append("writable")
        raise KeyError("mine")

    def ended(error: Exception | None) -> None:
        calls.append(type(error).__name__)
        raise ValueError("mine too")

    stream.set_receiver(lambda view: None, ended=ended, writable=writable)
    await turn()
    core.room = 1
    stream.write_nowait(b"ab")
    with caplog.at_level(logging.ERROR, "pilot.streams"):
        core.acknowledge()
    assert calls == ["writable", "KeyError"]
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [KeyError, ValueError]


def test_an_exit_leaves_the_loop(caplog: pytest.LogCaptureFixture) -> None:
    loop = asyncio.new_event_loop()

    async def scenario() -> None:
        stream, core = open_stream()
        stream.set_receiver(lambda view: exit(3))
        await turn()
        core.feed(b"x")
        await asyncio.sleep(5)

    with pytest.raises(SystemExit), caplog.at_level(logging.CRITICAL):
        loop.run_until_complete(scenario())
    for task in asyncio.all_tasks(loop):
        task.cancel()
        loop.run_until_complete(asyncio.wait([task]))
    loop.close()


# --- whole nodes ---


async def test_an_echo_without_a_task_holds_back_and_returns_everything(pair: Pair) -> None:
    ours, theirs = await connect(pair)
    ends: list[Exception | None] = []
    theirs.set_receiver(theirs.write_nowait, ended=ends.append, writable=theirs.resume_reading)
    data = random.Random(5).randbytes(12 * MIB + 7)
    writing = asyncio.ensure_future(ours.write(data))
    same = await ours.readexactly(len(data)) == data  # a comparison in the assert would print the difference
    assert same
    await writing
    await ours.close()
    await eventually(lambda: bool(ends))
    assert ends == [None]


async def test_a_receiver_that_stops_holds_back_its_sender_and_loses_nothing(pair: Pair) -> None:
    ours, theirs = await connect(pair)
    got = bytearray()

    def received(view: memoryview) -> int:
        taken = min(len(view), 100_000)
        got.extend(view[:taken])
        return taken

    theirs.set_receiver(received)
    data = random.Random(6).randbytes(8 * MIB)
    writing = asyncio.ensure_future(ours.write(data))
    while len(got) < len(data):
        theirs.resume_reading()
        await asyncio.sleep(0)
    same = got == data
    assert same
    await writing


async def test_two_streams_joined_by_two_lines(pair: Pair, start_node: Any) -> None:
    alice, bob = pair
    carol = await start_node("carol")
    left, inner = await connect((alice, bob))
    outer, right = await connect_to(bob, carol)
    inner.set_receiver(outer.write_nowait, writable=outer.resume_reading)
    outer.set_receiver(inner.write_nowait, writable=inner.resume_reading)
    data = random.Random(7).randbytes(6 * MIB)
    there = asyncio.ensure_future(left.write(data))
    back = asyncio.ensure_future(right.write(data))
    same = (await right.readexactly(len(data)) == data, await left.readexactly(len(data)) == data)
    assert same == (True, True)
    await asyncio.gather(there, back)


async def connect_to(source: Node, target: Node) -> tuple[Stream, Stream]:
    async with await target.listen(1001) as listener:
        ours = await source.dial(target.address, 1001)
        return ours, await listener.accept()


@pytest.mark.parametrize("close", [False, True])
async def test_a_kept_view_resets_the_stream_and_stays_readable(
    pair: Pair, close: bool, caplog: pytest.LogCaptureFixture
) -> None:
    ours, theirs = await connect(pair)
    kept: list[memoryview] = []
    ends: list[Exception | None] = []

    def received(view: memoryview) -> None:
        kept.append(view[:5])
        if close:
            theirs.abort()

    theirs.set_receiver(received, ended=ends.append)
    with caplog.at_level(logging.CRITICAL, "pilot.streams"):
        await ours.write(b"hello")
        await eventually(lambda: bool(ends))
    assert isinstance(ends[0], InvalidValueError)
    with pytest.raises(ResetError):
        await ours.read()
    assert bytes(kept[0]) == b"hello"
    with pytest.raises(ResetError):
        await ours.write(b"more")


async def test_the_lender_of_a_view_lends_nothing_afterwards(pair: Pair) -> None:
    ours, theirs = await connect(pair)
    lenders: list[Any] = []
    theirs.set_receiver(lambda view: lenders.append(view.obj))
    await ours.write(b"hello")
    await eventually(lambda: bool(lenders))
    with pytest.raises(BufferError, match="is over"):
        memoryview(lenders[0])


async def test_aborting_while_bytes_are_lent(pair: Pair) -> None:
    ours, theirs = await connect(pair)
    seen: list[bytes] = []

    def received(view: memoryview) -> int:
        theirs.abort()
        seen.append(bytes(view))
        return 1

    theirs.set_receiver(received)
    await ours.write(bytes(100_000))
    with pytest.raises(ResetError):
        await ours.read()
    assert seen[0]
    assert not any(seen[0])


async def test_closing_while_bytes_are_lent(pair: Pair) -> None:
    ours, theirs = await connect(pair)
    seen: list[bytes] = []
    closing: list[asyncio.Task[None]] = []

    def received(view: memoryview) -> None:
        theirs._core.close()  # what `close` does first, here before the view is given back
        closing.append(asyncio.ensure_future(theirs.close()))
        seen.append(bytes(view))

    theirs.set_receiver(received)
    await ours.write(b"x" * 5000)
    assert await ours.read() == b""
    await asyncio.wait(closing)
    assert b"".join(seen).strip(b"x") == b""


# --- the simulator ---


def test_an_echo_in_virtual_time() -> None:
    async def scenario(world: World) -> bool:
        a, b = world.machine("a"), world.machine("b")
        await a.start()
        await b.start()
        data = world.random.randbytes(300_000)
        async with await b.node.listen(1000) as listener:
            stream = await a.node.dial(b.node.address, 1000)
            peer = await listener.accept()
        over = asyncio.Event()
        peer.set_receiver(peer.write_nowait, ended=lambda error: over.set(), writable=peer.resume_reading)
        writing = asyncio.ensure_future(stream.write(data))
        same = await stream.readexactly(len(data)) == data
        await writing
        await stream.close()
        await over.wait()
        return same

    assert simulate(3, scenario, loss=0.05, reorder=0.1, duplicate=0.05)
