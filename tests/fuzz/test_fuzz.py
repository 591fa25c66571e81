"""A short, repeatable pass of every fuzz target, and the driver itself."""

from __future__ import annotations

import random

import pytest

from tests.fuzz.driver import FuzzError, Target, attempt, fuzz, mutate
from tests.fuzz.targets import TARGETS, chunks, joined

RUNS = {
    "addr": 5000,
    "packet": 5000,
    "session": 3000,
    "datagram": 1500,
    "inner": 1500,
    "sack": 1500,
    "script": 400,
    "wire": 300,
}


@pytest.mark.parametrize("name", TARGETS)
def test_short_pass(name: str) -> None:
    fuzz(TARGETS[name], RUNS[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_long_pass(name: str) -> None:
    fuzz(TARGETS[name], RUNS[name] * 20, seed=1)


def test_the_driver_finds_and_reports() -> None:
    def picky(data: bytes) -> None:
        assert data[:1] != b"\x80", "there it is"

    target = Target("picky", "finds a byte", picky, lambda: [b"\x00\x01", b""])
    with pytest.raises(FuzzError, match="--input 80"):
        fuzz(target, 10_000)
    with pytest.raises(FuzzError, match="there it is"):
        attempt(target, b"\x80")


def test_mutation_is_repeatable_and_bounded() -> None:
    seeds = [bytes(100), b"", b"abc"]
    first = [mutate(random.Random(n), seeds[n % 3], seeds) for n in range(300)]
    again = [mutate(random.Random(n), seeds[n % 3], seeds) for n in range(300)]
    assert first == again
    assert len(set(first)) > 150
    assert max(map(len, first)) <= 70_000


def test_chunks() -> None:
    assert chunks(joined([b"a", b"", b"bcd"])) == [b"a", b"", b"bcd"]
    assert chunks(b"\xff\xffrest") == [b"rest"]
    assert chunks(b"\x00") == []
    assert len(chunks(bytes(1000))) == 40
