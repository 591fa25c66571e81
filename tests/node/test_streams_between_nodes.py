"""Streams between two whole nodes over loopback: content, flow, ends, deadlines, cancellation."""

from __future__ import annotations

import asyncio
import hashlib
import random
from contextlib import AsyncExitStack

import pytest

from pilot._fast.addr import Addr
from pilot._fast.errors import (
    BusyError,
    ClosedError,
    InvalidValueError,
    PeerNotFoundError,
    PilotError,
    RefusedError,
    ResetError,
)
from pilot.node import ECHO_PORT, Node, Stream
from tests.node.conftest import StartNode, eventually

Pair = tuple[Node, Node]
MIB = 1 << 20


async def connect(pair: Pair, port: int = 1000) -> tuple[Stream, Stream]:
    """A stream from alice to bob, both ends."""
    alice, bob = pair
    async with await bob.listen(port) as listener:
        ours = await alice.dial("bob", port)
        return ours, await listener.accept()


@pytest.mark.parametrize("target", ["name", "text", "addr"])
async def test_echo_by_name_by_text_and_by_address(pair: Pair, target: str) -> None:
    alice, bob = pair
    to: str | Addr = {"name": "bob", "text": str(bob.address), "addr": bob.address}[target]
    async with await alice.dial(to, ECHO_PORT, timeout=5) as stream:
        await stream.write(b"hello")
        assert await stream.readexactly(5) == b"hello"
        assert (stream.remote_addr, stream.remote_port) == (bob.address, ECHO_PORT)
        assert stream.local_addr == alice.address
        assert stream.local_port >= 49152


async def test_both_ends_know_each_other(pair: Pair) -> None:
    ours, theirs = await connect(pair)
    assert (theirs.remote_addr, theirs.remote_port) == (pair[0].address, ours.local_port)
    assert (theirs.local_addr, theirs.local_port) == (pair[1].address, 1000)


async def test_32_mib_one_way(pair: Pair) -> None:
    data = random.Random(1).randbytes(32 * MIB)
    ours, theirs = await connect(pair)

    async def send() -> None:
        async with ours:
            await ours.write(data)
            await ours.drain()
            assert ours.stats().acknowledged == len(data)

    async def receive() -> bytes:
        digest = hashlib.sha256()
        async for chunk in theirs:
            digest.update(chunk)
        return digest.digest()

    _, digest = await asyncio.gather(send(), receive())
    assert digest == hashlib.sha256(data).digest()


async def test_both_directions_at_once(pair: Pair) -> None:
    async with await pair[0].dial("bob", ECHO_PORT) as stream:
        data = random.Random(2).randbytes(4 * MIB)
        writing = asyncio.ensure_future(stream.write(data))
        assert await stream.readexactly(len(data)) == data
        await writing


async def test_many_streams(pair: Pair) -> None:
    async def one(number: int) -> None:
        message = str(number).encode() * 1000
        async with await pair[0].dial("bob", ECHO_PORT) as stream:
            await stream.write(message)
            assert await stream.readexactly(len(message)) == message

    await asyncio.gather(*(one(number) for number in range(60)))
    await eventually(lambda: pair[0].stats().streams == pair[1].stats().streams == 0)


async def test_slow_reader_holds_the_writer_back(pair: Pair) -> None:
    ours, theirs = await connect(pair)
    writing = asyncio.ensure_future(ours.write(bytes(32 * MIB)))
    held_at = -1
    while held_at != ours.written:
        held_at = ours.written
        await asyncio.sleep(0.1)
    assert not writing.done()
    assert held_at < 16 * MIB
    assert len(await theirs.readexactly(32 * MIB)) == 32 * MIB
    await writing


async def test_end_of_stream_comes_after_the_data(pair: Pair) -> None:
    ours, theirs = await connect(pair)
    await ours.write(b"last words")
    await ours.close()
    assert await theirs.readexactly(10) == b"last words"
    assert await theirs.read() == b""
    with pytest.raises(ClosedError):
        await theirs.write(b"x")
    with pytest.raises(ClosedError):
        await ours.read()


async def test_abort_reaches_the_peer_as_reset(pair: Pair) -> None:
    ours, theirs = await connect(pair)
    reading = asyncio.ensure_future(theirs.read())
    await asyncio.sleep(0)
    ours.abort()
    for _ in range(2):
        with pytest.raises(ResetError):
            await reading
        reading = asyncio.ensure_future(theirs.read())
    with pytest.raises(ResetError):
        await reading


async def test_block_left_by_an_exception_resets(pair: Pair) -> None:
    ours, theirs = await connect(pair)
    with pytest.raises(KeyError):
        async with ours:
            raise KeyError
    with pytest.raises(ResetError):
        await theirs.read()


async def test_refused_port_says_so(pair: Pair) -> None:
    with pytest.raises(RefusedError, match=r"0:0000\.0000\.0002.*80"):
        await pair[0].dial("bob", 80)
    assert issubclass(RefusedError, ConnectionRefusedError)


async def test_unknown_names_and_nodes(pair: Pair) -> None:
    with pytest.raises(PeerNotFoundError, match=r"no node named 'carol' at registry 127\.0\.0\.1"):
        await pair[0].dial("carol", 80)
    with pytest.raises(PeerNotFoundError):
        await pair[0].dial(Addr(0, 999), 80)
    with pytest.raises(PeerNotFoundError, match=r"9:0009\.0000\.03E7"):
        await pair[0].dial(Addr(9, 999), 80)
    with pytest.raises(PeerNotFoundError):
        await pair[0].send_datagram("carol", 80, b"x")


async def test_useless_arguments(pair: Pair) -> None:
    alice, _ = pair
    for port in (0, 65536, -1, True, "80"):
        with pytest.raises(InvalidValueError, match="port"):
            await alice.dial("bob", port)  # type: ignore[arg-type]
    for timeout in (float("nan"), -1, "5"):
        with pytest.raises(InvalidValueError, match="timeout"):
            await alice.dial("bob", 80, timeout=timeout)  # type: ignore[arg-type]
        with pytest.raises(InvalidValueError, match="timeout"):
            await alice.ping("bob", timeout=timeout)  # type: ignore[arg-type]
    with pytest.raises(InvalidValueError, match="public"):
        await alice.set_public("no")  # type: ignore[arg-type]
    for target in ("9:0000.0000.0001", 5, None):
        with pytest.raises(InvalidValueError):
            await alice.dial(target, 80)  # type: ignore[arg-type]
    with pytest.raises(InvalidValueError):
        await alice.listen(70000)


async def test_dial_oneself(start_node: StartNode) -> None:
    alice = await start_node("alice")
    async with await alice.dial(alice.address, ECHO_PORT) as stream:
        await stream.write(b"me")
        assert await stream.readexactly(2) == b"me"
    with pytest.raises(RefusedError):
        await alice.dial("alice", 80)
    assert await alice.ping("alice") == 0.0


async def test_bound_port_is_busy_until_closed(pair: Pair) -> None:
    _, bob = pair
    listener = await bob.listen(1000)
    with pytest.raises(BusyError, match="1000"):
        await bob.listen(1000)
    await listener.close()
    await listener.close()
    with pytest.raises(ClosedError):
        await listener.accept()
    async with await bob.listen(1000):
        pass
    async with await bob.listen(0) as chosen:
        assert chosen.port >= 49152
        assert chosen.addr == bob.address


async def test_closing_a_listener_resets_what_nobody_accepted(pair: Pair) -> None:
    alice, bob = pair
    listener = await bob.listen(1000)
    stream = await alice.dial("bob", 1000)
    await listener.close()
    with pytest.raises(ResetError):
        await stream.read()


async def test_full_backlog_refuses(start_node: StartNode) -> None:
    alice, bob = await start_node("alice"), await start_node("bob", backlog=2)
    async with await bob.listen(1000) as listener:
        streams = [await alice.dial("bob", 1000) for _ in range(2)]
        with pytest.raises(RefusedError):
            await alice.dial("bob", 1000)
        await listener.accept()
        streams.append(await alice.dial("bob", 1000))


@pytest.mark.parametrize("segment_bytes", [1152, 8902])
async def test_segments_grow_no_further_than_allowed(start_node: StartNode, segment_bytes: int) -> None:
    alice, _ = await start_node("alice", max_segment_bytes=segment_bytes), await start_node("bob")
    async with await alice.dial("bob", ECHO_PORT) as stream:
        for _ in range(20):
            await stream.write(bytes(100_000))
            await stream.readexactly(100_000)
            await asyncio.sleep(0.01)
        assert stream.stats().segment_bytes == segment_bytes


async def test_streams_that_one_peer_opens_are_limited_by_configuration(start_node: StartNode) -> None:
    alice, bob = await start_node("alice"), await start_node("bob", peer_syn_burst=1, peer_syn_rate=0.1)
    async with await bob.listen(1000):
        await alice.dial("bob", 1000)
        with pytest.raises(TimeoutError, match="SYN direct"):
            await alice.dial("bob", 1000, timeout=0.5)


async def test_cancelled_accept_loses_no_stream(pair: Pair) -> None:
    alice, bob = pair
    async with await bob.listen(1000) as listener:
        accepting = asyncio.ensure_future(listener.accept())
        stream = await alice.dial("bob", 1000)
        accepting.cancel()
        await asyncio.wait([accepting])
        theirs = accepting.result() if not accepting.cancelled() else await listener.accept()
        assert theirs.remote_port == stream.local_port


async def test_read_deadline_on_a_real_stream(pair: Pair) -> None:
    ours, theirs = await connect(pair)
    loop = asyncio.get_running_loop()
    ours.set_read_deadline(loop.time() + 0.02)
    with pytest.raises(TimeoutError, match="read deadline"):
        await ours.readexactly(4)
    ours.set_read_deadline(None)
    await theirs.write(b"late")
    assert await ours.readexactly(4) == b"late"


async def test_write_deadline_on_a_full_ring(pair: Pair) -> None:
    ours, theirs = await connect(pair)
    ours.set_write_deadline(asyncio.get_running_loop().time() + 0.1)
    with pytest.raises(TimeoutError):
        await ours.write(bytes(64 * MIB))
    taken = ours.written
    assert 0 < taken < 64 * MIB
    ours.set_write_deadline(None)
    assert len(await theirs.readexactly(taken)) == taken
    await ours.drain()


async def test_dial_timeout_names_the_step(pair: Pair, start_node: StartNode) -> None:
    alice, _ = pair
    hidden = await start_node("hidden", public=False)
    await alice.resolver.report_trust(hidden.node_id)  # makes it visible to the registry ...
    hidden._running().gate._check_trust = never  # ... but it does not come to believe it
    with pytest.raises(TimeoutError, match=r"hidden port 7 .* within 0\.3 s \(step: SYN direct\)"):
        await alice.dial("hidden", ECHO_PORT, timeout=0.3)


async def never(node: int) -> bool:
    return False


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 50, 80])
async def test_cancellation_anywhere_leaves_nothing(pair: Pair, steps: int) -> None:
    alice, bob = pair

    async def work() -> None:
        async with await alice.dial("bob", ECHO_PORT) as stream:
            await stream.write(bytes(300_000))
            await stream.readexactly(300_000)
            await stream.drain()

    task = asyncio.ensure_future(work())
    for _ in range(steps):
        await asyncio.sleep(0.0002 if steps > 6 else 0)
    task.cancel()
    await asyncio.wait([task])
    await eventually(lambda: alice.stats().streams == bob.stats().streams == 0)
    async with await alice.dial("bob", ECHO_PORT) as stream:
        await stream.write(b"still here")
        assert await stream.readexactly(10) == b"still here"


async def test_serve_runs_a_task_per_stream_and_outlives_handlers_that_fail(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    alice, bob = pair

    async def shout(stream: Stream) -> None:
        async for chunk in stream:
            if chunk == b"fail":
                raise KeyError(chunk)
            await stream.write(chunk.upper())

    async with bob.serve(1000, shout), AsyncExitStack() as streams:
        open_streams = [await streams.enter_async_context(await alice.dial("bob", 1000)) for _ in range(3)]
        bad = await alice.dial("bob", 1000)
        await bad.write(b"fail")
        with pytest.raises(ResetError):
            await bad.read()
        for stream in open_streams:
            await stream.write(b"abc")
            assert await stream.readexactly(3) == b"ABC"
    with pytest.raises(RefusedError):
        await alice.dial("bob", 1000)
    assert "handler" in caplog.text


async def test_errors_share_one_base() -> None:
    for error in (RefusedError, ResetError, ClosedError, PeerNotFoundError, BusyError, InvalidValueError):
        assert issubclass(error, PilotError)
