"""Addresses: parse, format, pack, unpack (bench)."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from pilot._fast.addr import Addr
from tests.reference import addr as reference

TEXT = "7:0007.1234.ABCD"
WIRE = bytes.fromhex("00071234abcd")
LAYOUT = struct.Struct(">HI")

PARSE = {"pilot": Addr.parse, "reference": reference.parse_untrusted}
UNPACK = {"pilot": Addr.from_bytes, "reference": reference.unpack_untrusted, "struct": LAYOUT.unpack}
ADDRESS: dict[str, Any] = {"pilot": Addr.parse(TEXT), "reference": reference.parse_untrusted(TEXT)}
PACK = {
    "pilot": ADDRESS["pilot"].pack,
    "reference": ADDRESS["reference"].pack,
    "struct": lambda: LAYOUT.pack(7, 0x1234ABCD),
}


@pytest.mark.parametrize("peer", PARSE)
def test_address_parse(benchmark: Any, peer: str) -> None:
    assert str(benchmark(PARSE[peer], TEXT)) == TEXT


@pytest.mark.parametrize("peer", ADDRESS)
def test_address_format(benchmark: Any, peer: str) -> None:
    assert benchmark(str, ADDRESS[peer]) == TEXT


@pytest.mark.parametrize("peer", PACK)
def test_address_pack(benchmark: Any, peer: str) -> None:
    assert benchmark(PACK[peer]) == WIRE


@pytest.mark.parametrize("peer", UNPACK)
def test_address_unpack(benchmark: Any, peer: str) -> None:
    assert benchmark(UNPACK[peer], WIRE) in (*ADDRESS.values(), (7, 0x1234ABCD))


@pytest.mark.parametrize("peer", ADDRESS)
def test_address_as_key(benchmark: Any, peer: str) -> None:
    table = {ADDRESS[peer]: 1}
    assert benchmark(table.get, PARSE[peer](TEXT)) == 1
