"""The stream step: 256 KiB through two whole datapaths in memory, header, CRC, AEAD, acknowledgments and all (bench).

`cryptography` is the floor below it: the same bytes in the same segments, sealed and opened, with nothing around it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from bench.micro.wire import Wire

DATA = bytes(256 * 1024)


def aead_alone(segment: int) -> Callable[[bytes], int]:
    cipher = AESGCM(bytes(32))
    nonce, extra = bytearray(12), bytes(4)
    sealed = bytearray(segment + 16)

    def transfer(data: bytes) -> int:
        view = memoryview(data)
        done = 0
        while done < len(data):
            piece = view[done : done + segment]
            end = len(piece)
            nonce[4:] = done.to_bytes(8, "big")
            cipher.encrypt_into(nonce, piece, extra, memoryview(sealed)[: end + 16])
            cipher.decrypt_into(nonce, memoryview(sealed)[: end + 16], extra, memoryview(sealed)[:end])
            done += end
        return done

    return transfer


@pytest.mark.parametrize("segment", [1152, 1400, 16384, 60000])
@pytest.mark.parametrize("peer", ["pilot", "cryptography"])
def test_stream_step(benchmark: Any, peer: str, segment: int) -> None:
    transfer = Wire(segment).transfer if peer == "pilot" else aead_alone(segment)
    assert benchmark(transfer, DATA) == len(DATA)


@pytest.mark.parametrize("peer", ["pilot"])
def test_stream_echo(benchmark: Any, peer: str) -> None:
    """64 bytes there, with all that their acknowledgment takes."""
    wire = Wire(1152)
    assert benchmark(wire.transfer, bytes(64)) == 64
