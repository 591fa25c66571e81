"""File streams: the payloads of a FILESTREAM frame, sender's and receiver's (plugin dataexchange, L11).

Source: services.md 2.5. Nothing here does I/O.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import TYPE_CHECKING, Final, NamedTuple

from pilot.coreapi import InvalidValueError
from pilot.plugins.dataexchange.frames import FrameType, encode_frame, printable

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = [
    "CHUNK_HEAD_BYTES",
    "NO_TRANSFER",
    "TRANSFER_ID_BYTES",
    "Chunk",
    "Init",
    "Kind",
    "Part",
    "abort",
    "ack",
    "chunk_header",
    "complete",
    "done",
    "encode_init",
    "init_ack",
    "split_chunk_untrusted",
    "split_init_untrusted",
    "split_offset_untrusted",
    "split_untrusted",
    "text_untrusted",
]

TRANSFER_ID_BYTES: Final = 16
NO_TRANSFER: Final = bytes(TRANSFER_ID_BYTES)
"""The id in the answer to a frame that has none."""
PREFIX_BYTES: Final = 1 + TRANSFER_ID_BYTES
MAX_TEXT_CHARS: Final = 200

_INIT: Final = struct.Struct(">Q32sIH")
_OFFSET: Final = struct.Struct(">Q")
_CHUNK: Final = struct.Struct(">IIB16sQ")
"""Frame header, kind, transfer id and offset: what comes before the bytes of a chunk."""
CHUNK_HEAD_BYTES: Final = PREFIX_BYTES + _OFFSET.size
"""The part of the payload that comes before them."""


class Kind(IntEnum):
    """The first byte of a FILESTREAM payload."""

    INIT = 1
    CHUNK = 2
    ACK = 3
    DONE = 4
    INIT_ACK = 5
    COMPLETE = 6
    ABORT = 7


class Part(NamedTuple):
    """Any FILESTREAM payload."""

    kind: int
    transfer_id: bytes
    body: memoryview


class Init(NamedTuple):
    """What a sender says about its file. `name` is as it came: it has to be reduced before it names anything."""

    size: int
    sha256: bytes
    chunk_bytes: int
    name: str


class Chunk(NamedTuple):
    """Bytes of the file and where they belong."""

    offset: int
    data: memoryview


def _frame(kind: Kind, transfer_id: bytes, body: Buffer = b"") -> bytes:
    return encode_frame(FrameType.FILESTREAM, b"".join((bytes([kind]), transfer_id, memoryview(body))))


def encode_init(transfer_id: bytes, init: Init) -> bytes:
    """An INIT frame. Raises `InvalidValueError`: the name is longer than 65,535 bytes."""
    name = init.name.encode()
    if len(name) > 0xFFFF:
        raise InvalidValueError(f"a file name of {len(name)} bytes cannot be sent")
    body = _INIT.pack(init.size, init.sha256, init.chunk_bytes, len(name)) + name
    return _frame(Kind.INIT, transfer_id, body)


def chunk_header(transfer_id: bytes, offset: int, length: int) -> bytes:
    """What goes before `length` bytes of the file to make them a CHUNK frame."""
    payload = CHUNK_HEAD_BYTES + length
    return _CHUNK.pack(FrameType.FILESTREAM, payload, Kind.CHUNK, transfer_id, offset)


def ack(transfer_id: bytes, cursor: int) -> bytes:
    """An ACK frame: everything before `cursor` is there."""
    return _frame(Kind.ACK, transfer_id, _OFFSET.pack(cursor))


def init_ack(transfer_id: bytes, cursor: int) -> bytes:
    """An INIT-ACK frame: go on from `cursor`."""
    return _frame(Kind.INIT_ACK, transfer_id, _OFFSET.pack(cursor))


def done(transfer_id: bytes) -> bytes:
    """A DONE frame."""
    return _frame(Kind.DONE, transfer_id)


def complete(transfer_id: bytes, text: str = "") -> bytes:
    """A COMPLETE frame: good without a text, a refusal with one."""
    return _frame(Kind.COMPLETE, transfer_id, bytes([bool(text)]) + text.encode("utf-8", "replace"))


def abort(transfer_id: bytes, text: str) -> bytes:
    """An ABORT frame."""
    return _frame(Kind.ABORT, transfer_id, text.encode("utf-8", "replace"))


def split_untrusted(payload: Buffer) -> Part:
    """A FILESTREAM payload taken apart. Raises `InvalidValueError`: it is too short for that."""
    view = memoryview(payload)
    if len(view) < PREFIX_BYTES:
        raise InvalidValueError("malformed stream frame")
    return Part(view[0], bytes(view[1:PREFIX_BYTES]), view[PREFIX_BYTES:])


def split_init_untrusted(body: memoryview) -> Init:
    """The body of an INIT. Raises `InvalidValueError`: it is too short for what it says."""
    if len(body) < _INIT.size:
        raise InvalidValueError("malformed INIT")
    size, sha256, chunk_bytes, length = _INIT.unpack_from(body)
    if _INIT.size + length > len(body):
        raise InvalidValueError("malformed INIT")
    name = bytes(body[_INIT.size : _INIT.size + length]).decode("utf-8", "replace")
    return Init(size, sha256, chunk_bytes, name)


def split_chunk_untrusted(body: memoryview) -> Chunk:
    """The body of a CHUNK. Raises `InvalidValueError`: it has no offset."""
    if len(body) < _OFFSET.size:
        raise InvalidValueError("malformed CHUNK")
    return Chunk(_OFFSET.unpack_from(body)[0], body[_OFFSET.size :])


def split_offset_untrusted(body: memoryview) -> int:
    """The body of an ACK or INIT-ACK. Raises `InvalidValueError`: it is too short."""
    if len(body) < _OFFSET.size:
        raise InvalidValueError("an acknowledgment without an offset came")
    return int(_OFFSET.unpack_from(body)[0])


def text_untrusted(body: memoryview) -> str:
    """The text of a COMPLETE (after its status) or an ABORT, cut and made printable."""
    return printable(bytes(body[: 4 * MAX_TEXT_CHARS]).decode("utf-8", "replace"))[:MAX_TEXT_CHARS]
