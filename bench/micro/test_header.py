"""The 34-byte header with its CRC: encode, decode, and both, with payloads of several sizes (bench).

`struct` is tests/reference/packet.py: the same fields as an object, made of `struct` and `zlib`. `struct-tuple` gives a
bare tuple and checks the CRC only: the least that plain Python can do.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from pilot._fast.addr import Addr
from pilot._fast.packet import Packet
from tests.reference import packet as reference
from tests.reference.addr import Address

SIZES = [0, 64, 1200, 1400, 4096]
LAYOUT = struct.Struct(">BBHHIHIHHIIHI")


class Codec(NamedTuple):
    encode: Callable[[], bytes]
    decode: Callable[[bytes], Any]


def tuple_encode(payload: bytes) -> bytes:
    fields = (0x12, 1, len(payload), 0, 1, 0, 2, 49152, 1000, 5, 6, 512)
    return LAYOUT.pack(*fields, zlib.crc32(LAYOUT.pack(*fields, 0) + payload)) + payload


def tuple_decode(data: bytes) -> tuple[Any, ...]:
    fields = LAYOUT.unpack_from(data)
    if zlib.crc32(data[34:], zlib.crc32(data[:30] + bytes(4))) != fields[-1]:
        raise ValueError("CRC does not match")
    return (*fields, data[34:])


def codec(peer: str, size: int) -> Codec:
    payload = bytes(range(256)) * (size // 256) + bytes(size % 256)
    if peer == "pilot":
        ours = Packet(2, 1, Addr(0, 1), Addr(0, 2), 49152, 1000, 5, 6, 512, payload)
        return Codec(ours.encode, Packet.decode_untrusted)
    if peer == "struct":
        theirs = reference.Packet(Address(0, 1), Address(0, 2), 1, 2, 49152, 1000, 5, 6, 512, payload)
        return Codec(theirs.encode, reference.decode_untrusted)
    return Codec(lambda: tuple_encode(payload), tuple_decode)


PEERS = ["pilot", "struct", "struct-tuple"]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("peer", PEERS)
def test_header_encode(benchmark: Any, peer: str, size: int) -> None:
    assert benchmark(codec(peer, size).encode) == codec("struct", size).encode()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("peer", PEERS)
def test_header_decode(benchmark: Any, peer: str, size: int) -> None:
    decoded = benchmark(codec(peer, size).decode, codec("struct", size).encode())
    assert (decoded[-1] if peer == "struct-tuple" else decoded.payload) == codec("struct", size).encode()[34:]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("peer", PEERS)
def test_header_encode_and_decode(benchmark: Any, peer: str, size: int) -> None:
    encode, decode = codec(peer, size)
    benchmark(lambda: decode(encode()))
