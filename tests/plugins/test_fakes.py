"""The fakes keep the contract they stand in for, so that a plugin tested on them works on a node."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from pilot import coreapi
from pilot.coreapi import Addr, ClosedError, RefusedError, ResetError
from tests.plugins.fakes import Network, settle, stream_pair


async def test_they_are_what_plugins_take() -> None:
    deps = Network().deps(1)
    assert isinstance(deps.streams, coreapi.Streams)
    assert isinstance(deps.identity, coreapi.Identity)
    assert isinstance(deps.resolver, coreapi.PeerResolver)
    assert isinstance(deps.events, coreapi.EventBus)
    assert isinstance(await deps.streams.listen(7), coreapi.Listener)
    assert all(isinstance(end, coreapi.Stream) for end in stream_pair())


async def test_dial_and_talk() -> None:
    network = Network(capacity=4)
    alice, bob = network.deps(1), network.deps(2)
    with pytest.raises(RefusedError):
        await alice.streams.dial(Addr(0, 2), 7)
    listener = await bob.streams.listen(7)
    there = await alice.streams.dial(Addr(0, 2), 7)
    here = await listener.accept()
    assert (here.remote_addr, there.remote_addr, here.local_port) == (Addr(0, 1), Addr(0, 2), 7)
    writing = asyncio.create_task(there.write(b"0123456789"))
    assert await here.readexactly(10) == b"0123456789"
    await writing
    await there.close()
    assert await here.read() == b""
    with pytest.raises(ClosedError):
        await there.write(b"x")


async def test_a_cancelled_write_leaves_a_prefix_and_a_cancelled_read_loses_nothing() -> None:
    ours, theirs = stream_pair(capacity=4)
    writing = asyncio.create_task(ours.write(b"0123456789"))
    await settle()
    writing.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await writing
    assert ours.written == 4
    reading = asyncio.create_task(theirs.readexactly(6))
    await settle()
    reading.cancel()
    await settle()
    assert await theirs.read() == b"0123"


async def test_a_block_left_by_an_exception_resets() -> None:
    ours, theirs = stream_pair()
    with pytest.raises(KeyError):
        async with ours:
            raise KeyError
    with pytest.raises(ResetError):
        await theirs.read()
