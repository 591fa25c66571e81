"""Sealing and opening PILS frames, one and in batches (bench).

`cryptography` is the AEAD alone, its key prepared once: it frames but checks no replay. `reference` is
tests/reference/frames.py, which prepares the key for each frame. pilot refuses to open a frame twice, so each round of
opening has a receiver of its own, made outside the measured time.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from pilot._fast.seal import Session, Verdict
from tests.reference import frames

KEY = bytes(range(32))
PREFIX = b"\x01\x02\x03\x04"
SENDER = (7).to_bytes(4, "big")

SIZES = [64, 1200, 1400, 4096]
BATCHES = [1, 32]
PEERS = ["pilot", "cryptography", "reference"]

Batch = list[bytes]


def session(own: int, peer: int) -> Session:
    return Session(KEY, own, peer, PREFIX, 0.0, authenticated=True, peer_x25519=bytes(32))


def sealer(peer: str) -> Callable[[bytes], bytes]:
    counters = count(1)
    if peer == "pilot":
        return session(7, 8).seal
    if peer == "reference":
        return lambda packet: frames.seal(KEY, 7, PREFIX, next(counters), packet)
    encrypt = AESGCM(KEY).encrypt

    def seal(packet: bytes) -> bytes:
        nonce = PREFIX + next(counters).to_bytes(8, "big")
        return b"PILS" + SENDER + nonce + encrypt(nonce, packet, SENDER)

    return seal


def opener(peer: str) -> Callable[[bytes], Any]:
    if peer == "pilot":
        return session(8, 7).open_untrusted
    if peer == "reference":
        return lambda frame: frames.open_untrusted(KEY, frame)
    decrypt = AESGCM(KEY).decrypt
    return lambda frame: decrypt(frame[8:20], frame[20:], frame[4:8])


def plain(peer: str, opened: Any) -> bytes:
    if peer == "pilot":
        verdict, packet = opened
        assert verdict == Verdict.ACCEPT
        return bytes(packet)
    return bytes(opened if peer == "cryptography" else opened.plaintext)


def each(function: Callable[[bytes], Any], batch: Batch) -> list[Any]:
    return [function(item) for item in batch]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("peer", PEERS)
def test_seal(benchmark: Any, peer: str, size: int, batch: int) -> None:
    packets = [bytes(size)] * batch
    sealed = benchmark(each, sealer(peer), packets)
    assert frames.open_untrusted(KEY, sealed[-1]).plaintext == bytes(size)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("peer", PEERS)
def test_open(benchmark: Any, peer: str, size: int, batch: int) -> None:
    sealed = each(sealer("pilot"), [bytes(size)] * batch)
    opened = benchmark.pedantic(each, setup=lambda: ((opener(peer), sealed), {}), rounds=1024 // batch)
    assert [plain(peer, one) for one in opened] == [bytes(size)] * batch
