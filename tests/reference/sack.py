"""The SACK payload in plain Python, streams.md section 8.1 (L7)."""

from __future__ import annotations

import struct

MAGIC = b"SACK"
MAX_BLOCKS = 4

Block = tuple[int, int]


def encode(blocks: list[Block]) -> bytes:
    """Return the payload for 1 to 4 blocks of (left, right), right exclusive; ValueError for another number."""
    if not 1 <= len(blocks) <= MAX_BLOCKS:
        raise ValueError("a SACK has one to four blocks")
    return MAGIC + bytes([len(blocks)]) + b"".join(struct.pack(">II", *block) for block in blocks)


def decode_untrusted(payload: bytes, *, strict: bool = False) -> list[Block] | None:
    """Return the blocks, or None when the payload is data.

    Without `strict` this is the test 1.18.0 makes: magic, count 1..4, length at least 5 + 8n. With it the length must
    be exact and every block must have left < right in sequence arithmetic, as this project requires.
    """
    if len(payload) < 5 or payload[:4] != MAGIC or not 1 <= payload[4] <= MAX_BLOCKS:
        return None
    end = 5 + 8 * payload[4]
    if len(payload) < end or (strict and len(payload) != end):
        return None
    blocks = [struct.unpack_from(">II", payload, offset) for offset in range(5, end, 8)]
    if strict and not all(0 < (right - left) % 2**32 < 2**31 for left, right in blocks):
        return None
    return blocks
