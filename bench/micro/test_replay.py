"""The replay check: 1,000 counters in order, and shuffled within 64 (bench).

`reference` is tests/reference/replay.py, which keeps a set; `bitmap` keeps the bits in one Python integer.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from pilot._fast.seal import ReplayWindow, Verdict
from tests.reference.replay import ACCEPT, EpochWindows

PREFIX = b"\x01\x02\x03\x04"
COUNTERS = 1000

# The reference copies its set for every counter: minutes when it is 8192 wide.
PEERS = [("pilot", 256), ("pilot", 8192), ("bitmap", 256), ("bitmap", 8192), ("reference", 256)]


class Bitmap:
    """One window; bit n stands for the counter `highest` - n."""

    def __init__(self, width: int) -> None:
        self.mask = (1 << width) - 1
        self.width = width
        self.highest = 0
        self.seen = 0

    def accept(self, counter: int) -> bool:
        ahead = counter - self.highest
        if ahead > 0:
            self.seen = (self.seen << ahead | 1) & self.mask
            self.highest = counter
            return True
        if -ahead >= self.width or self.seen >> -ahead & 1:
            return False
        self.seen |= 1 << -ahead
        return True


def window(peer: str, width: int) -> Callable[[int], Any]:
    if peer == "pilot":
        ours = ReplayWindow(width).accept
        return lambda counter: ours(PREFIX, counter)
    if peer == "bitmap":
        return Bitmap(width).accept
    reference = EpochWindows(width).check
    return lambda counter: reference(PREFIX, counter)


def check_all(accept: Callable[[int], Any], counters: list[int]) -> list[Any]:
    return [accept(counter) for counter in counters]


@pytest.mark.parametrize("order", ["ascending", "shuffled"])
@pytest.mark.parametrize(("peer", "width"), PEERS)
def test_replay_check(benchmark: Any, peer: str, order: str, width: int) -> None:
    counters = list(range(1, COUNTERS + 1))
    if order == "shuffled":
        rng = random.Random(1)
        counters.sort(key=lambda counter: counter + rng.randrange(64))
    verdicts = benchmark.pedantic(check_all, setup=lambda: ((window(peer, width), counters), {}), rounds=20)
    assert set(verdicts) <= {Verdict.ACCEPT, True, ACCEPT}
