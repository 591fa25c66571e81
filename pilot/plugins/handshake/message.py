"""The one message of port 444: its bytes, its signature text, and reading it from a stream (plugin handshake, L11).

Source: services.md 1.1.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from pilot.coreapi import InvalidValueError

__all__ = [
    "MAX_MESSAGE_BYTES",
    "MAX_RECEIVED_BYTES",
    "Message",
    "MessageType",
    "ObjectReader",
    "encode",
    "parse_untrusted",
    "printable",
    "signed_text",
]

MAX_MESSAGE_BYTES: Final = 1152
"""One segment of a stream: 1.18.0 reads once, and loses what did not come in one piece."""
MAX_RECEIVED_BYTES: Final = 65536
MAX_DEPTH: Final = 16
MAX_TEXT_BYTES: Final = 1024
MAX_TYPE_CHARS: Final = 64
KEY_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
VARIANTS: Final = 16
"""Texts that stand for one signature: its last base64 symbol before the padding has four bits nobody reads."""
MAX_NODE_ID: Final = 0xFFFFFFFF
MAX_TIMESTAMP: Final = 1 << 63

_ALPHABET: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_OUTSIDE: Final = re.compile(rb'["{}\[\]]')
_IN_STRING: Final = re.compile(rb'["\\]')
_WHITE_SPACE: Final = b" \t\r\n"


class MessageType(StrEnum):
    """The types that mean something; others are ignored."""

    REQUEST = "handshake_request"
    ACCEPT = "handshake_accept"
    REJECT = "handshake_reject"
    REVOKE = "handshake_revoke"


@dataclass(frozen=True, slots=True)
class Message:
    """A handshake message. Only `node_id` and the receiver's id are signed."""

    type: str
    node_id: int
    public_key: bytes
    """Raw, 32 bytes; empty where the message had none."""
    signature: bytes
    """64 bytes; empty where the message had none."""
    timestamp: int
    """Unix seconds."""
    justification: str = ""
    reason: str = ""
    spelling: str = ""
    """The text of the signature in a message that was received."""


def signed_text(sender: int, receiver: int) -> bytes:
    """What the sender's key signs: the same for every message between the two in this direction."""
    return f"handshake:{sender}:{receiver}".encode()


def encode(message: Message, variant: int = 0) -> bytes:
    """The bytes for the wire. `variant` (0..15) chooses among spellings of the signature that decode to the same bytes.

    1.18.0 keeps the spelling of the signature for ten minutes and takes a message that repeats it for a replay, though
    it must be the same in every message: a variant lets it hear a second one (services.md 1.2).

    Raises:
        InvalidValueError: the texts make it longer than one segment, or cannot be encoded.
    """
    fields = {
        "type": message.type,
        "node_id": message.node_id,
        "public_key": base64.b64encode(message.public_key).decode(),
        "justification": message.justification,
        "signature": _spelled(message.signature, variant),
        "reason": message.reason,
        "timestamp": message.timestamp,
    }
    try:
        data = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        raise InvalidValueError("the text of a handshake holds half a character: give whole ones") from None
    if len(data) > MAX_MESSAGE_BYTES:
        raise InvalidValueError(
            f"a handshake message of {len(data)} bytes does not fit into one segment of {MAX_MESSAGE_BYTES}: "
            "shorten its text to 700 bytes"
        )
    return data


def _spelled(signature: bytes, variant: int) -> str:
    text = base64.b64encode(signature).decode()
    if not text.endswith("=="):
        return text
    last = _ALPHABET.index(text[-3]) & ~(VARIANTS - 1) | variant % VARIANTS
    return f"{text[:-3]}{_ALPHABET[last]}=="


def parse_untrusted(data: bytes) -> Message:
    """The message in `data`, which must be one JSON object and nothing else.

    Raises:
        InvalidValueError: it is none, or a field has the wrong type or size.
    """
    if len(data) > MAX_RECEIVED_BYTES:
        raise InvalidValueError(f"a handshake message of {len(data)} bytes is longer than {MAX_RECEIVED_BYTES}")
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidValueError(f"a handshake message is no JSON: {str(error)[:100]}") from None
    if not isinstance(fields, dict):
        raise InvalidValueError("a handshake message is no JSON object")
    kind = _text(fields, "type")
    if len(kind) > MAX_TYPE_CHARS:
        raise InvalidValueError(f"a handshake message has a type of more than {MAX_TYPE_CHARS} characters")
    return Message(
        kind,
        _number(fields, "node_id", 0, MAX_NODE_ID),
        _binary(fields, "public_key", KEY_BYTES),
        _binary(fields, "signature", SIGNATURE_BYTES),
        _number(fields, "timestamp", -MAX_TIMESTAMP, MAX_TIMESTAMP - 1),
        _text(fields, "justification"),
        _text(fields, "reason"),
        _text(fields, "signature"),
    )


def _text(fields: dict[str, object], name: str) -> str:
    value = "" if fields.get(name) is None else fields[name]
    if not isinstance(value, str):
        raise InvalidValueError(f"{name!r} of a handshake message is no text")
    return value


def _number(fields: dict[str, object], name: str, lowest: int, highest: int) -> int:
    value = 0 if fields.get(name) is None else fields[name]
    if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= highest:
        raise InvalidValueError(f"{name!r} of a handshake message is no whole number in {lowest}..{highest}")
    return value


def _binary(fields: dict[str, object], name: str, size: int) -> bytes:
    text = _text(fields, name)
    try:
        value = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidValueError(f"{name!r} of a handshake message is no base64") from None
    if len(value) not in (0, size):
        raise InvalidValueError(f"{name!r} of a handshake message has {len(value)} bytes, not {size}")
    return value


def printable(text: str) -> str:
    """`text` as events and files show it: printable characters only, at most 1024 bytes of UTF-8."""
    shown = "".join(filter(str.isprintable, text))
    return shown.encode()[:MAX_TEXT_BYTES].decode(errors="ignore")


class ObjectReader:
    """Finds the end of a JSON object that comes in pieces, looking at every byte once."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._next = 0
        self._depth = 0
        self._in_string = False

    def feed_untrusted(self, piece: bytes) -> bytes | None:
        """Adds `piece`; everything received once the object is complete, None before.

        Raises:
            InvalidValueError: it cannot become one object: it begins otherwise, goes on after its end, is nested too
                deep or too long.
        """
        self._data += piece
        if len(self._data) > MAX_RECEIVED_BYTES:
            raise InvalidValueError(f"a handshake message is longer than {MAX_RECEIVED_BYTES} bytes")
        if self._depth == 0 and not self._begins():
            return None
        while self._next < len(self._data):
            if self._in_string:
                self._scan_string()
            elif self._scan_structure():
                return self._finished()
        return None

    def _begins(self) -> bool:
        """Whether the opening brace is there; everything before it is white space."""
        first = self._data.lstrip(_WHITE_SPACE)[:1]
        if first and first != b"{":
            raise InvalidValueError("a handshake message is no JSON object")
        return bool(first)

    def _scan_string(self) -> None:
        found = _IN_STRING.search(self._data, self._next)
        if found is None:
            self._next = len(self._data)
        elif found[0] == b'"':
            self._in_string, self._next = False, found.end()
        else:
            self._next = found.end() + 1  # whatever is escaped ends no string

    def _scan_structure(self) -> bool:
        """Goes on to the next quote or bracket; whether that ends the object."""
        found = _OUTSIDE.search(self._data, self._next)
        if found is None:
            self._next = len(self._data)
            return False
        self._next = found.end()
        if found[0] == b'"':
            self._in_string = True
        elif found[0] in b"{[":
            self._depth += 1
            if self._depth > MAX_DEPTH:
                raise InvalidValueError(f"a handshake message is nested more than {MAX_DEPTH} deep")
        else:
            self._depth -= 1
        return self._depth == 0

    def _finished(self) -> bytes:
        if self._data[self._next :].strip(_WHITE_SPACE):
            raise InvalidValueError("a handshake message goes on after its end")
        return bytes(self._data)
