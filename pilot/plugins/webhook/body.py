"""The body of a webhook request, byte for byte as Go's `encoding/json` writes it, and its signature (plugin, L11).

Sources: services.md 8.1, vectors `webhook`.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import math
import operator
from collections.abc import Mapping, Set
from datetime import UTC, datetime
from enum import Enum
from pathlib import PurePath
from typing import Final

from pilot.coreapi import Addr, Event, InvalidValueError
from pilot.plugins._gojson import go_number, go_text

__all__ = ["MAX_BODY_BYTES", "event_body", "go_json", "rfc3339", "signature"]

MAX_BODY_BYTES: Final = 1 << 20
MAX_DEPTH: Final = 32
"""Nesting of payload values; a value that contains itself ends here too."""
MAX_INTEGER_BITS: Final = 1024
"""Python refuses to write integers much longer than this."""


def event_body(event_id: int, event: Event) -> bytes:
    """The request body for `event`: compact JSON in the official order of keys, `data` left out when it is empty.

    Values JSON has no word for become text, so that no event is lost for one of them: bytes as standard base64, times
    as RFC 3339, addresses and paths as their text, members of an enumeration as their value, sets as sorted lists,
    infinities and NaN as null, anything else as the name of its type in angle brackets (its text might be a secret).

    Raises:
        InvalidValueError: the body would be longer than `MAX_BODY_BYTES`, or its values are nested too deep.
    """
    members = [
        f'"event_id":{event_id}',
        f'"event":{go_text(event.topic)}',
        f'"node_id":{event.node_id}',
        f'"timestamp":"{rfc3339(event.time)}"',
    ]
    if event.payload:
        members.append(f'"data":{go_json(event.payload)}')
    body = f"{{{','.join(members)}}}".encode()
    if len(body) > MAX_BODY_BYTES:
        raise InvalidValueError(f"event {event.topic} makes {len(body)} bytes of JSON, {MAX_BODY_BYTES} are the limit")
    return body


def signature(secret: bytes, body: bytes) -> str:
    """The value of `X-Pilot-Signature-256`: 64 lower-case hex digits of HMAC-SHA-256 over exactly `body`."""
    return hmac.new(secret, body, hashlib.sha256).hexdigest()


def rfc3339(time: datetime) -> str:
    """`time` in UTC as Go's `RFC3339Nano` has it: as many decimals as needed, none for a whole second."""
    text = time.astimezone(UTC).replace(tzinfo=None).isoformat()
    return (text.rstrip("0") if "." in text else text) + "Z"


def go_json(value: object, depth: int = 0) -> str:
    """`value` as compact JSON with sorted keys, escaped and with numbers written as Go does; see `event_body`.

    Raises:
        InvalidValueError: it is nested deeper than `MAX_DEPTH`.
    """
    if depth > MAX_DEPTH:
        raise InvalidValueError(f"a payload is nested more than {MAX_DEPTH} deep")
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case Enum():
            return go_json(value.value, depth + 1)
        case int():
            return format(value, "d") if value.bit_length() <= MAX_INTEGER_BITS else go_text("<int>")
        case float():
            return go_number(value) if math.isfinite(value) else "null"
        case str():
            return go_text(value)
        case bytes() | bytearray() | memoryview():
            return f'"{base64.b64encode(value).decode()}"'
        case datetime():
            return f'"{rfc3339(value)}"'
        case Addr() | PurePath():
            return go_text(str(value))
        case Mapping():
            members = sorted(((_key(key), inner) for key, inner in value.items()), key=operator.itemgetter(0))
            return f"{{{','.join(f'{go_text(key)}:{go_json(inner, depth + 1)}' for key, inner in members)}}}"
        case list() | tuple():
            return f"[{','.join(go_json(inner, depth + 1) for inner in value)}]"
        case Set():
            return f"[{','.join(sorted(go_json(inner, depth + 1) for inner in value))}]"
        case _:
            return go_text(f"<{type(value).__name__}>")


def _key(key: object) -> str:
    """The name of a member; Go too has whole numbers as text there."""
    match key:
        case str():
            return key
        case int() | Addr():
            return str(key)
        case _:
            return f"<{type(key).__name__}>"
