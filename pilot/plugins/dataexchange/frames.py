"""Frames of the data exchange: types, answers, and the layouts of FILE, TRACE and TAGGED (plugin dataexchange, L11).

Source: services.md 2.1, 2.2, 2.4. Nothing here does I/O. What a stranger sent and what breaks a rule raises
`InvalidValueError`; the stream is then closed without an answer.
"""

from __future__ import annotations

import json
import re
import struct
from enum import IntEnum
from typing import TYPE_CHECKING, Final, NamedTuple

from pilot.coreapi import InvalidValueError

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = [
    "HEADER_BYTES",
    "MAX_FRAME_BYTES",
    "Answer",
    "FileContent",
    "FrameType",
    "Tagged",
    "Tags",
    "Trace",
    "check_id",
    "encode_file",
    "encode_frame",
    "encode_tagged",
    "encode_trace",
    "header_untrusted",
    "parse_answer_untrusted",
    "split_file_untrusted",
    "split_tagged_untrusted",
    "split_trace_untrusted",
    "type_name",
]

HEADER_BYTES: Final = 8
MAX_FRAME_BYTES: Final = 64 << 20
MAX_FILE_NAME_BYTES: Final = 255
MAX_TAGS_BYTES: Final = 1024
MAX_ANSWER_BYTES: Final = 64 * 1024
"""An answer is a line of text; a longer one is no answer."""

_HEADER: Final = struct.Struct(">II")
_TRACE: Final = struct.Struct(">Iq")
_ID: Final = re.compile(r"[A-Za-z0-9\-_.:]{1,128}", re.ASCII)


class FrameType(IntEnum):
    """The number of a frame. 6 is reserved and, like the two governed ones, answered as unsupported."""

    TEXT = 1
    BINARY = 2
    JSON = 3
    FILE = 4
    TRACE = 5
    FILESTREAM = 7
    GOVERNED = 8
    GOVERNED_FILESTREAM = 9
    TAGGED = 10


MESSAGE_TYPES: Final = (FrameType.TEXT, FrameType.BINARY, FrameType.JSON)
_NAMES: Final = {int(kind): kind.name for kind in FrameType}


class Tags(NamedTuple):
    """What a TAGGED frame says about the frame in it; empty text where it says nothing."""

    message_id: str = ""
    reply_to: str = ""


class Tagged(NamedTuple):
    """A TAGGED payload taken apart."""

    tags: Tags
    inner_type: int
    payload: memoryview


class Trace(NamedTuple):
    """A TRACE payload taken apart."""

    inner_type: int
    sent_at_ns: int
    payload: memoryview


class FileContent(NamedTuple):
    """A FILE payload taken apart; without a name it is acknowledged and not stored."""

    name: str
    content: memoryview


class Answer(NamedTuple):
    """What a receiver said to one frame."""

    text: str
    """`ACK TEXT 5 bytes`, `ERR TEXT save failed: ...`, with non-printable characters replaced."""
    ok: bool
    """Whether it has been stored."""
    duplicate: bool
    """Whether the same frame had been stored before."""
    message_id: str = ""
    """What the frame was tagged with; empty where the receiver took it untagged only."""

    def __bool__(self) -> bool:
        return self.ok


def type_name(number: int) -> str:
    """The name of a frame type, as texts and files have it: `TEXT`, `UNKNOWN(11)`."""
    return _NAMES.get(number) or f"UNKNOWN({number})"


def encode_frame(number: int, payload: Buffer) -> bytes:
    """One whole frame."""
    view = memoryview(payload)
    return b"".join((_HEADER.pack(number, view.nbytes), view))


def header_untrusted(header: bytes, limit: int = MAX_FRAME_BYTES) -> tuple[int, int]:
    """Type and payload length of the frame that begins with these 8 bytes.

    Raises:
        InvalidValueError: the payload is longer than `limit`.
    """
    number, length = _HEADER.unpack(header)
    if length > limit:
        raise InvalidValueError(f"a {type_name(number)} frame of {length} bytes is longer than the {limit} allowed")
    return number, length


def parse_answer_untrusted(number: int, payload: bytes) -> Answer:
    """The answer to a frame. Raises `InvalidValueError`: it is none."""
    if number != FrameType.TEXT:
        raise InvalidValueError(f"a {type_name(number)} frame came where an answer was due")
    text = printable(payload.decode("utf-8", "replace"))
    if not text.startswith(("ACK ", "ERR ")):
        raise InvalidValueError(f"the answer {text[:100]!r} is neither ACK nor ERR")
    return Answer(text, text.startswith("ACK "), text.endswith(" (duplicate)"))


def printable(text: str) -> str:
    """`text` with nothing in it that a terminal or a log would act on."""
    return "".join(char if char.isprintable() else "?" for char in text)


# ---- FILE -----------------------------------------------------------------------------------------------------------


def encode_file(name: str, content: Buffer) -> bytes:
    """A FILE payload. Raises `InvalidValueError`: the name cannot be sent."""
    encoded = name.encode()
    _check_file_name(name, len(encoded))
    return b"".join((len(encoded).to_bytes(2, "big"), encoded, memoryview(content)))


def split_file_untrusted(payload: Buffer) -> FileContent:
    """A FILE payload taken apart. One whose name runs past its end has no name and is content as a whole.

    Raises:
        InvalidValueError: the name is a path, too long or not UTF-8.
    """
    view = memoryview(payload)
    length = int.from_bytes(view[:2], "big")
    if len(view) < 2 or 2 + length > len(view):
        return FileContent("", view)
    try:
        name = bytes(view[2 : 2 + length]).decode()
    except UnicodeDecodeError:
        raise InvalidValueError("a file name is not UTF-8") from None
    if length:
        _check_file_name(name, length)
    return FileContent(name, view[2 + length :])


def _check_file_name(name: str, length: int) -> None:
    if "/" in name or "\\" in name or name in ("", ".", ".."):
        raise InvalidValueError(f"the file name {printable(name)[:100]!r} cannot be used: it must be a plain name")
    if length > MAX_FILE_NAME_BYTES:
        raise InvalidValueError(f"a file name of {length} bytes is longer than the {MAX_FILE_NAME_BYTES} allowed")


# ---- TRACE ----------------------------------------------------------------------------------------------------------


def encode_trace(inner_type: int, sent_at_ns: int, payload: Buffer) -> bytes:
    """A TRACE payload."""
    return b"".join((_TRACE.pack(inner_type, sent_at_ns), memoryview(payload)))


def split_trace_untrusted(payload: Buffer) -> Trace | None:
    """A TRACE payload taken apart; None when it is too short, which is answered rather than punished."""
    view = memoryview(payload)
    if len(view) < _TRACE.size:
        return None
    inner_type, sent_at_ns = _TRACE.unpack_from(view)
    return Trace(inner_type, sent_at_ns, view[_TRACE.size :])


# ---- TAGGED ---------------------------------------------------------------------------------------------------------


def check_id(text: str) -> str:
    """`text`, which may be empty. Raises `InvalidValueError`: it cannot be a message id."""
    if text and not _ID.fullmatch(text):
        shown = printable(text)[:140]
        raise InvalidValueError(f"the message id {shown!r} cannot be used: 1 to 128 of A-Z a-z 0-9 - _ . :")
    return text


def encode_tagged(tags: Tags, inner_type: int, payload: Buffer) -> bytes:
    """A TAGGED payload. Raises `InvalidValueError`: an id cannot be used."""
    header = json.dumps({name: check_id(text) for name, text in tags._asdict().items() if text}).encode()
    return b"".join((len(header).to_bytes(2, "big"), header, inner_type.to_bytes(4, "big"), memoryview(payload)))


def split_tagged_untrusted(payload: Buffer) -> Tagged:
    """A TAGGED payload taken apart.

    Raises:
        InvalidValueError: its header is no JSON object of 1 to 1024 bytes or holds an unusable id, the frame in it is
            missing or tagged itself.
    """
    view = memoryview(payload)
    length = int.from_bytes(view[:2], "big")
    if not 1 <= length <= MAX_TAGS_BYTES or 2 + length + 4 > len(view):
        raise InvalidValueError("a TAGGED frame has no usable header")
    try:
        header = json.loads(bytes(view[2 : 2 + length]))
    except (ValueError, RecursionError):
        header = ""
    if header is None:  # the official receiver takes `null` for an empty object
        header = {}
    if not isinstance(header, dict):
        raise InvalidValueError("the header of a TAGGED frame is no JSON object")
    inner_type = int.from_bytes(view[2 + length : 6 + length], "big")
    if inner_type == FrameType.TAGGED:
        raise InvalidValueError("a TAGGED frame holds a TAGGED frame")
    return Tagged(Tags(*(_id_untrusted(header, name) for name in Tags._fields)), inner_type, view[6 + length :])


def _id_untrusted(header: dict[str, object], name: str) -> str:
    value = header.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InvalidValueError(f"the {name} of a TAGGED frame is no text")
    return check_id(value)
