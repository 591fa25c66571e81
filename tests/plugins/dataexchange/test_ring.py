"""The ring between the stream and the disk: its order, its room, how it grows, what it costs."""

from __future__ import annotations

import random

import pytest

from pilot.plugins._receiving import MemoryBudget
from pilot.plugins.dataexchange.ring import FIRST_BYTES, MAX_BYTES, Ring


def fill(ring: Ring, data: bytes) -> int:
    """Puts what fits at once; how much that was."""
    room = ring.room()[: len(data)]
    room[:] = data[: len(room)]
    ring.filled(len(room))
    return len(room)


async def opened(limit: int, budget: MemoryBudget) -> Ring:
    ring = Ring(budget.lease(1), limit)
    await ring.open()
    return ring


async def test_bytes_leave_in_the_order_they_came() -> None:
    chance = random.Random(5)
    ring = await opened(1000, MemoryBudget(1 << 30, 1 << 30))
    data = chance.randbytes(50_000)
    came, left = 0, b""
    pieces = 0
    while len(left) < len(data):
        came += fill(ring, data[came : came + chance.randrange(1200)])
        waiting = ring.waiting()
        pieces = max(pieces, len(waiting))
        taken = b"".join(waiting)[: chance.randrange(1200)]
        ring.emptied(len(taken))
        left += taken
        assert ring.used == came - len(left) <= 1000
        assert ring.is_half_full == (ring.used >= 500)
    assert (left, pieces) == (data, 2)


async def test_full_and_empty() -> None:
    ring = await opened(10, MemoryBudget(100, 100))
    assert not ring.can_grow
    assert ring.waiting() == []
    assert fill(ring, b"0123456789abc") == 10
    assert not ring.room()
    assert [bytes(piece) for piece in ring.waiting()] == [b"0123456789"]
    ring.emptied(4)
    assert fill(ring, b"abcdef") == 4
    assert not ring.room()
    assert [bytes(piece) for piece in ring.waiting()] == [b"456789", b"abcd"]


async def test_it_grows_to_its_limit_only() -> None:
    budget = MemoryBudget(1 << 30, 1 << 30)
    ring = await opened(3 * FIRST_BYTES, budget)
    await ring.open()
    assert budget.used == FIRST_BYTES
    ring.grow()
    ring.grow()
    assert (budget.used, len(ring.room()), ring.can_grow) == (3 * FIRST_BYTES, 3 * FIRST_BYTES, False)
    large = await opened(1 << 40, budget)
    while large.can_grow:
        large.grow()
    assert len(large.room()) == MAX_BYTES


@pytest.mark.parametrize(("total", "per_peer"), [(8, 100), (100, 8)])
async def test_it_leaves_half_of_all_memory_to_others(total: int, per_peer: int) -> None:
    budget = MemoryBudget(total * FIRST_BYTES, per_peer * FIRST_BYTES)
    first, second = [await opened(1 << 40, budget) for _ in range(2)]
    for _ in range(5):
        first.grow()
    assert (len(first.room()), budget.used, first.can_grow) == (2 * FIRST_BYTES, 3 * FIRST_BYTES, True)
    second.grow()
    assert (len(second.room()), budget.used) == (2 * FIRST_BYTES, 4 * FIRST_BYTES)
    assert budget.has_room(1, 4 * FIRST_BYTES)
