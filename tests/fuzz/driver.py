"""A small mutation driver: seeds in, mutated inputs out, everything decided by one number (test support)."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

INTERESTING = (0, 1, 2, 4, 5, 13, 34, 36, 37, 127, 128, 255, 256, 512, 1152, 65_535, 2**31 - 1, 2**31, 2**32 - 1)
MAX_INPUT = 70_000
CORPUS = Path(__file__).parent / "corpus"


@dataclass(frozen=True)
class Target:
    """`run` takes one input and raises when something does not hold; `seeds` are inputs worth starting from."""

    name: str
    purpose: str
    run: Callable[[bytes], None]
    seeds: Callable[[], Sequence[bytes]]


class FuzzError(AssertionError):
    """An input that broke something; the message says how to run it again."""


def mutate(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """One to six small changes, as a network, an attacker or a bug would make them."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        MUTATIONS[rng.randrange(len(MUTATIONS))](rng, out, others)
    return bytes(out[:MAX_INPUT])


def flip_bit(rng: random.Random, out: bytearray, others: Sequence[bytes]) -> None:
    if out:
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)


def set_byte(rng: random.Random, out: bytearray, others: Sequence[bytes]) -> None:
    if out:
        out[rng.randrange(len(out))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))


def set_number(rng: random.Random, out: bytearray, others: Sequence[bytes]) -> None:
    size = rng.choice((2, 4))
    if len(out) >= size:
        at = rng.randrange(len(out) - size + 1)
        out[at : at + size] = (rng.choice(INTERESTING) % 256**size).to_bytes(size, "big")


def nudge_number(rng: random.Random, out: bytearray, others: Sequence[bytes]) -> None:
    size = rng.choice((1, 2, 4))
    if len(out) >= size:
        at = rng.randrange(len(out) - size + 1)
        value = int.from_bytes(out[at : at + size], "big") + rng.choice((-35, -2, -1, 1, 2, 35))
        out[at : at + size] = (value % 256**size).to_bytes(size, "big")


def cut(rng: random.Random, out: bytearray, others: Sequence[bytes]) -> None:
    if out:
        at = rng.randrange(len(out))
        del out[at : at + rng.choice((1, 2, 4, 16, len(out)))]


def insert(rng: random.Random, out: bytearray, others: Sequence[bytes]) -> None:
    at = rng.randrange(len(out) + 1)
    out[at:at] = rng.randbytes(rng.choice((1, 2, 4, 16)))


def repeat(rng: random.Random, out: bytearray, others: Sequence[bytes]) -> None:
    if out:
        at = rng.randrange(len(out))
        piece = out[at : at + rng.randrange(1, 64)]
        out[at:at] = piece * rng.choice((1, 2, 8))


def splice(rng: random.Random, out: bytearray, others: Sequence[bytes]) -> None:
    other = rng.choice(others)
    if other:
        at = rng.randrange(len(other))
        start = rng.randrange(len(out) + 1)
        out[start : start + rng.choice((0, len(out)))] = other[at:]


def truncate(rng: random.Random, out: bytearray, others: Sequence[bytes]) -> None:
    del out[rng.randrange(len(out) + 1) :]


MUTATIONS = (flip_bit, flip_bit, set_byte, set_number, nudge_number, cut, insert, repeat, splice, truncate)


def corpus(name: str) -> dict[str, bytes]:
    """Inputs of the past worth trying for ever, by what they once did: `corpus/NAME.json`, hex by reason."""
    path = CORPUS / f"{name}.json"
    if not path.exists():
        return {}
    return {why: bytes.fromhex(text) for why, text in json.loads(path.read_text()).items()}


def starting_points(target: Target) -> list[bytes]:
    """The target's seeds and its corpus."""
    return [*target.seeds(), *corpus(target.name).values()]


def fuzz(target: Target, runs: int, seed: int = 0, last: Path | None = None) -> int:
    """Feed the starting points and `runs` mutations of them to the target; the number of inputs.

    `last` is a file that always holds the input being tried, for crashes and hangs.
    """
    rng = random.Random(f"{target.name} {seed}")
    seeds = starting_points(target)
    for data in seeds:
        attempt(target, data, last)
    for _ in range(runs):
        attempt(target, mutate(rng, rng.choice(seeds), seeds), last)
    return len(seeds) + runs


def attempt(target: Target, data: bytes, last: Path | None = None) -> None:
    if last is not None:
        last.write_text(data.hex())
    try:
        target.run(data)
    except Exception as error:
        raise FuzzError(
            f"{target.name}: {error!r}\nagain: python -m tests.fuzz {target.name} --input {data.hex()}"
        ) from error


# ---- inputs of several parts ----------------------------------------------------------------------------------------


def joined(parts: Sequence[bytes]) -> bytes:
    """Parts as `chunks` reads them."""
    return b"".join(len(part).to_bytes(2, "big") + part for part in parts)


def chunks(data: bytes) -> list[bytes]:
    """At most 40 parts, each after a two-byte length; a length beyond the end takes the rest."""
    found = []
    while len(data) >= 2 and len(found) < 40:
        size = int.from_bytes(data[:2], "big")
        found.append(data[2 : 2 + size])
        data = data[2 + size :]
    return found
