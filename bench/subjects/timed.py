"""Transfers that end by the clock: what has arrived by when, and a sender paced by confirmations (bench).

| client | server expects | what happens |
|---|---|---|
| `send_for(seconds, window)` | `timed` | a fresh stream, written to until the time is over, then torn down |

`received(start, seconds)` of the server then tells what its application had by the end of that time, so a transfer that
stalls has a low figure instead of none. With a `window` the receiving application confirms and the sending one has at
most so many bytes unconfirmed: two official daemons lose transfers without it.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from itertools import pairwise
from typing import Any, Final, Protocol

__all__ = ["DIAL_SECONDS", "TIMED_PORT", "WRITE_BYTES", "Arrivals", "drain", "paced"]

TIMED_PORT: Final = 1050
DIAL_SECONDS: Final = 15.0
WRITE_BYTES: Final = 64 << 10
CREDIT_BYTES: Final = 64 << 10
CREDIT: Final = b"."
CURVE_SECONDS: Final = 0.5


class Readable(Protocol):
    """A stream of any subject, as far as it is needed here."""

    async def read(self) -> bytes:
        """Some bytes; b"" at the end."""

    async def write(self, data: bytes) -> None:
        """Returns when all of `data` was taken."""


class Arrivals:
    """How many bytes had come at which time."""

    def __init__(self) -> None:
        self._times: list[int] = []
        self._totals: list[int] = []
        self.total = 0

    def add(self, count: int) -> None:
        """`count` more, now."""
        self.total += count
        self._times.append(time.monotonic_ns())
        self._totals.append(self.total)

    def by(self, when: int) -> int:
        """What had come by that time, in nanoseconds of the monotonic clock."""
        place = bisect_right(self._times, when)
        return self._totals[place - 1] if place else 0

    def received(self, start: int, seconds: float) -> dict[str, Any]:
        """Bytes within `seconds` of `start`, and the MB/s of each half second on the way."""
        marks = [start + round(CURVE_SECONDS * 1e9) * number for number in range(int(seconds / CURVE_SECONDS) + 1)]
        totals = [self.by(mark) for mark in marks]
        speeds = [(after - before) / CURVE_SECONDS / 1e6 for before, after in pairwise(totals)]
        return {"bytes": self.by(start + round(seconds * 1e9)), "curve": [round(speed, 2) for speed in speeds]}


async def drain(stream: Readable, arrivals: Arrivals) -> None:
    """Reads to the end and confirms what has come."""
    confirmed = 0
    while data := await stream.read():
        arrivals.add(len(data))
        if credits := (arrivals.total - confirmed) // CREDIT_BYTES:
            await stream.write(CREDIT * credits)
            confirmed += credits * CREDIT_BYTES


async def paced(stream: Readable, window: int) -> None:
    """Writes for ever, at most `window` bytes ahead of the confirmations."""
    block, unconfirmed = bytes(WRITE_BYTES), 0
    while True:
        while unconfirmed >= window:
            data = await stream.read()
            if not data:
                raise ConnectionResetError("the peer ended the stream")
            unconfirmed -= len(data) * CREDIT_BYTES
        await stream.write(block)
        unconfirmed += WRITE_BYTES
