"""CRC-32 of packet-sized data (bench)."""

from __future__ import annotations

import zlib
from typing import Any

import pytest

from pilot._fast.packet import checksum

TABLE = []
for byte in range(256):
    entry = byte
    for _ in range(8):
        entry = entry >> 1 ^ (0xEDB88320 if entry & 1 else 0)
    TABLE.append(entry)


def plain(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for value in data:
        crc = crc >> 8 ^ TABLE[(crc ^ value) & 255]
    return crc ^ 0xFFFFFFFF


PEERS = {"pilot": checksum, "zlib": zlib.crc32, "reference": plain}


@pytest.mark.parametrize("size", [64, 1200, 1400, 4096])
@pytest.mark.parametrize("peer", PEERS)
def test_crc(benchmark: Any, peer: str, size: int) -> None:
    data = bytes(i * 7 & 255 for i in range(size))
    assert benchmark(PEERS[peer], data) == zlib.crc32(data)
