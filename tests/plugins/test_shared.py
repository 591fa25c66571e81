"""What plugins share: memory for payloads, targets of clients, servers of streams."""

from __future__ import annotations

import asyncio

import pytest

from pilot.coreapi import Addr, InvalidValueError, PeerNotFoundError
from pilot.plugins import _receiving
from pilot.plugins._gojson import go_escaped, go_number, go_text
from pilot.plugins._receiving import FIRST_BYTES, MemoryBudget, read_payload_untrusted
from pilot.plugins._targets import find
from tests.plugins.fakes import Network, settle, stream_pair


async def test_payload_waits_for_memory_that_others_hold() -> None:
    budget = MemoryBudget(100, 60)
    with budget.lease(1) as first:
        await first.grow(60)
        assert not budget.has_room(1, 1)
        assert not budget.has_room(2, 41)
        with budget.lease(2) as second:
            waiting = asyncio.ensure_future(second.grow(50))
            await settle()
            assert not waiting.done()
            first.release()
            first.release()
            await waiting
            assert budget.used == 50
    assert (budget.used, budget._by_peer, budget._waiting) == (0, {}, [])


async def test_memory_that_never_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_receiving, "WAIT_SECONDS", 0.01)
    budget = MemoryBudget(100, 100)
    with budget.lease(1) as lease:
        with pytest.raises(TimeoutError):
            await lease.grow(101)
        assert budget.used == 0


async def test_memory_grows_with_what_arrives() -> None:
    budget = MemoryBudget(1 << 30, 1 << 30)
    ours, theirs = stream_pair(capacity=1 << 30)
    length = 5 * FIRST_BYTES
    with budget.lease(1) as lease:
        reading = asyncio.ensure_future(read_payload_untrusted(theirs, length, lease, 5.0))
        await settle()
        assert budget.used == FIRST_BYTES
        await ours.write(b"x" * FIRST_BYTES)
        await settle()
        assert budget.used == 2 * FIRST_BYTES
        await ours.write(b"y" * (length - FIRST_BYTES))
        payload = await reading
        assert (len(payload), payload.count(b"x"), budget.used) == (length, FIRST_BYTES, length)
    assert budget.used == 0


async def test_payload_that_stops() -> None:
    budget = MemoryBudget(100, 100)
    ours, theirs = stream_pair()
    with budget.lease(1) as lease, pytest.raises(TimeoutError):
        await read_payload_untrusted(theirs, 10, lease, 0.01)
    await ours.write(b"abc")
    await ours.close()
    with budget.lease(1) as lease, pytest.raises(EOFError, match="3 of 10"):
        await read_payload_untrusted(theirs, 10, lease, 5.0)


async def test_targets() -> None:
    network = Network()
    resolver = network.deps(1).resolver
    resolver.names["bob"] = 7  # type: ignore[attr-defined]
    assert await find(Addr(1, 2), None) == Addr(1, 2)
    assert await find("0:0000.0000.0002", None) == Addr(0, 2)
    assert await find("bob", resolver) == Addr(0, 7)
    with pytest.raises(PeerNotFoundError):
        await find("carol", resolver)
    for bad in ("bob", 5, "1:2:3"):
        with pytest.raises(InvalidValueError):
            await find(bad, None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (-0.0, "-0"), (1.0, "1"), (1e-7, "1e-7"), (1e21, "1e+21"), (0.1 + 0.2, "0.30000000000000004")],
)
def test_numbers_as_go_writes_them(value: float, text: str) -> None:
    assert go_number(value) == text


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_numbers_that_json_has_no_word_for(value: float) -> None:
    with pytest.raises(ValueError, match="no JSON form"):
        go_number(value)


def test_texts_as_go_writes_them() -> None:
    assert go_text('<ä"\u2028\ud83d\ude00') == '"\\u003cä\\"\\u2028😀"'
    assert go_text("a\ud800b").encode() == '"a\ufffdb"'.encode()
    assert go_escaped('{"<":1}') == '{"\\u003c":1}'
