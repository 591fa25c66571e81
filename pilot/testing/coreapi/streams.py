"""What every `Streams` has to do, with its `Stream` and `Listener` (testing). A check takes a `StreamsUnderTest`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from pilot._fast.errors import BusyError, ClosedError, InvalidValueError, RefusedError, ResetError
from pilot.coreapi import Addr, Listener, Stream, Streams
from pilot.testing.coreapi.expecting import expecting

__all__ = ["STREAMS_CHECKS", "StreamsUnderTest"]

PORT: Final = 2345
WAIT_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True)
class StreamsUnderTest:
    """Two ends that can reach each other; `near` and `far` may be one object that dials itself."""

    near: Streams
    """The end that dials."""
    far: Streams
    """The end that listens; ports 2345 and 2346 have to be free."""
    far_addr: Addr
    """Its address."""

    @contextlib.asynccontextmanager
    async def pair(self) -> AsyncIterator[tuple[Stream, Stream]]:
        """A stream by both ends: the dialing one, the accepted one. Both are closed at the end."""
        async with await self.far.listen(PORT) as listener:
            near = await self.near.dial(self.far_addr, PORT, timeout=WAIT_SECONDS)
            far = await asyncio.wait_for(listener.accept(), WAIT_SECONDS)
        try:
            yield near, far
        finally:
            await asyncio.gather(near.close(), far.close())


Check = Callable[[StreamsUnderTest], Awaitable[None]]


async def has_every_member(under: StreamsUnderTest) -> None:
    assert isinstance(under.near, Streams), f"{under.near!r} lacks a member of Streams"
    async with await under.far.listen(0) as listener:
        assert isinstance(listener, Listener), f"{listener!r} lacks a member of Listener"
        assert 1 <= listener.port <= 65535, f"listening on port 0 chose {listener.port}"
    async with under.pair() as (near, far):
        assert isinstance(near, Stream), f"{near!r} lacks a member of Stream"
        assert isinstance(far, Stream), f"{far!r} lacks a member of Stream"
        assert near.remote_addr.node == under.far_addr.node, "the dialing end names another node"
        assert (near.remote_port, far.local_port) == (PORT, PORT), "an end names another port"
        assert near.local_port == far.remote_port, "the two ends disagree about the dialing port"


async def carries_bytes_both_ways_in_order(under: StreamsUnderTest) -> None:
    blob = bytes(range(256)) * 1024

    async def echo(far: Stream) -> None:
        async for chunk in far:
            assert chunk, "an empty chunk before the end"
            await far.write(chunk)

    async with under.pair() as (near, far):
        task = asyncio.ensure_future(echo(far))
        writing = asyncio.ensure_future(near.write(memoryview(blob)))
        assert await near.readexactly(len(blob)) == blob, "the echo differs"
        await writing
        assert near.written == len(blob), f"{len(blob)} bytes were written, {near.written} are counted"
        await near.drain()
        await near.close()
        await asyncio.wait_for(task, WAIT_SECONDS)


async def reads_at_most_what_was_asked(under: StreamsUnderTest) -> None:
    async with under.pair() as (near, far):
        await near.write(b"abcdef")
        assert await far.readexactly(1) == b"a", "readexactly(1)"
        assert await far.read(2) == b"bc", "read(2) with more waiting"
        buffer = bytearray(3)
        assert (await far.read_into(buffer), bytes(buffer)) == (3, b"def"), "read_into"
        assert await far.readexactly(0) == b"", "readexactly(0)"
        with expecting(InvalidValueError, what="read(0)"):
            await far.read(0)


async def ends_in_order(under: StreamsUnderTest) -> None:
    async with under.pair() as (near, far):
        await near.write(b"last words")
        closing = asyncio.ensure_future(near.close())
        with expecting(asyncio.IncompleteReadError, what="readexactly beyond the end"):
            await far.readexactly(11)
        assert await far.read() == b"", "a read after the end is not empty"
        assert await far.read_into(bytearray(1)) == 0, "read_into after the end is not 0"
        await closing
        await near.close()
        with expecting(ClosedError, what="read after the own close"):
            await near.read()
        with expecting(ClosedError, what="write after the own close"):
            await near.write(b"x")


async def an_exception_resets(under: StreamsUnderTest) -> None:
    async with under.pair() as (near, far):
        with contextlib.suppress(KeyError):
            async with near:
                await near.write(b"half a mess")
                raise KeyError
        with expecting(ResetError, what="reading what the peer left by an exception"):
            while await far.read():
                pass
            raise AssertionError("half a message looked like a whole one")


async def deadlines_fire_and_can_be_moved(under: StreamsUnderTest) -> None:
    clock = asyncio.get_running_loop().time
    async with under.pair() as (near, far):
        near.set_read_deadline(clock() - 1)
        with expecting(TimeoutError, what="read past its deadline"):
            await near.read()
        near.set_read_deadline(clock() + 1000)
        reading = asyncio.ensure_future(near.read())
        await asyncio.sleep(0.01)
        near.set_deadline(clock() + 0.01)
        with expecting(TimeoutError, what="a read whose deadline was moved"):
            await asyncio.wait_for(reading, WAIT_SECONDS)
        with expecting(TimeoutError, what="write past its deadline"):
            await near.write(b"x")
        near.set_deadline(None)
        await far.write(b"y")
        assert await near.read() == b"y", "a read after a removed deadline"


async def a_cancelled_read_loses_nothing(under: StreamsUnderTest) -> None:
    async with under.pair() as (near, far):
        await near.write(b"ab")
        with expecting(TimeoutError, what="waiting for a third byte"):
            await asyncio.wait_for(far.readexactly(3), 0.5)
        await near.write(b"c")
        assert await far.readexactly(3) == b"abc", "a cancelled readexactly lost bytes"


async def two_readers_are_an_error(under: StreamsUnderTest) -> None:
    async with under.pair() as (near, far):
        reading = asyncio.ensure_future(near.read())
        await asyncio.sleep(0)
        with expecting(BusyError, what="a second reader"):
            await near.read()
        await far.write(b"x")
        assert await reading == b"x", "the first reader was disturbed"


async def a_slow_reader_holds_the_writer(under: StreamsUnderTest) -> None:
    async with under.pair() as (near, far):
        block = bytes(1 << 20)

        async def write() -> None:
            for _ in range(256):
                await near.write(block)

        writing = asyncio.ensure_future(write())
        await asyncio.sleep(1)
        assert not writing.done(), "256 MiB were taken though nobody reads"
        writing.cancel()
        await asyncio.wait([writing])
        taken, read = near.written, 0
        closing = asyncio.ensure_future(near.close())
        while chunk := await far.read(1 << 20):
            read += len(chunk)
        assert read == taken, f"`written` says {taken}, {read} bytes came"
        await closing


async def ports_are_checked_and_refused(under: StreamsUnderTest) -> None:
    with expecting(RefusedError, what="dialing a port nobody listens on"):
        await under.near.dial(under.far_addr, PORT, timeout=WAIT_SECONDS)
    for port in (-1, 0, 65536):
        with expecting(InvalidValueError, what=f"dialing port {port}"):
            await under.near.dial(under.far_addr, port)
    for port in (-1, 65536):
        with expecting(InvalidValueError, what=f"listening on port {port}"):
            await under.far.listen(port)
        with expecting(InvalidValueError, what=f"a datagram to port {port}"):
            await under.near.send_datagram(under.far_addr, port, b"x")


async def listeners_own_their_port_until_closed(under: StreamsUnderTest) -> None:
    listener = await under.far.listen(PORT + 1)
    with expecting(BusyError, what="listening twice on a port"):
        await under.far.listen(PORT + 1)
    accepting = asyncio.ensure_future(anext(aiter(listener), None))
    await asyncio.sleep(0)
    await listener.close()
    await listener.close()
    assert await asyncio.wait_for(accepting, WAIT_SECONDS) is None, "closing does not end 'async for'"
    with expecting(ClosedError, what="accepting from a closed listener"):
        await listener.accept()
    async with await under.far.listen(PORT + 1):
        pass


STREAMS_CHECKS: Final[tuple[Check, ...]] = (
    has_every_member,
    carries_bytes_both_ways_in_order,
    reads_at_most_what_was_asked,
    ends_in_order,
    an_exception_resets,
    deadlines_fire_and_can_be_moved,
    a_cancelled_read_loses_nothing,
    two_readers_are_an_error,
    a_slow_reader_holds_the_writer,
    ports_are_checked_and_refused,
    listeners_own_their_port_until_closed,
)
"""Run each with a `StreamsUnderTest`; one may serve them all, one after the other."""
