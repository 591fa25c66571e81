"""Frames of the event stream: a topic and a payload (plugin eventstream, L11).

Source: services.md section 3. Nothing here does I/O but `read_event_untrusted`, which awaits the stream it is given.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, NamedTuple

from pilot.coreapi import InvalidValueError
from pilot.plugins._receiving import read_payload_untrusted

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from pilot.coreapi import Stream
    from pilot.plugins._receiving import MemoryLease

__all__ = [
    "EVERYTHING",
    "MAX_PAYLOAD_BYTES",
    "MAX_TOPIC_BYTES",
    "RESERVED_TOPIC",
    "StreamEvent",
    "decode_topic_untrusted",
    "encode_event",
    "read_event_untrusted",
]

MAX_TOPIC_BYTES: Final = 1024
MAX_PAYLOAD_BYTES: Final = 16 << 20
EVERYTHING: Final = "*"
"""The topic that subscribes to all others. There are no other patterns on this wire."""
RESERVED_TOPIC: Final = "\0pilot.governed.v1"
"""Nobody may publish on it."""


class StreamEvent(NamedTuple):
    """What was published, and under which topic."""

    topic: str
    payload: bytes

    @property
    def text(self) -> str:
        """The payload as UTF-8, with replacements."""
        return self.payload.decode("utf-8", "replace")


def encode_event(topic: str, payload: Buffer = b"") -> bytes:
    """One frame. Raises `InvalidValueError`: topic or payload is too long, or the topic cannot be sent."""
    view = memoryview(payload)
    try:
        encoded = topic.encode()
    except UnicodeEncodeError:
        raise InvalidValueError(f"the topic {topic!r} cannot be sent as UTF-8") from None
    if len(encoded) > MAX_TOPIC_BYTES:
        raise InvalidValueError(f"a topic of {len(encoded)} bytes is longer than the {MAX_TOPIC_BYTES} allowed")
    if view.nbytes > MAX_PAYLOAD_BYTES:
        raise InvalidValueError(f"an event of {view.nbytes} bytes is longer than the {MAX_PAYLOAD_BYTES} allowed")
    return b"".join((len(encoded).to_bytes(2, "big"), encoded, view.nbytes.to_bytes(4, "big"), view))


def decode_topic_untrusted(encoded: bytes) -> str:
    """A topic. Raises `InvalidValueError`: it is not UTF-8."""
    try:
        return encoded.decode()
    except UnicodeDecodeError:
        raise InvalidValueError("a topic is not UTF-8") from None


async def read_event_untrusted(
    stream: Stream, lease: MemoryLease, idle_seconds: float, *, first_seconds: float | None = None
) -> StreamEvent | None:
    """The next frame, None when the peer has ended between two.

    Its beginning is waited for `first_seconds` long, None: without limit.

    Raises:
        InvalidValueError: topic or payload is too long, or the topic is not UTF-8.
        TimeoutError: no frame began in time, or one that had begun did not go on for `idle_seconds`.
        EOFError: the peer ended within a frame.
        ResetError, PathError, ClosedError: as `Stream.read`.
    """
    loop = asyncio.get_running_loop()
    stream.set_read_deadline(None if first_seconds is None else loop.time() + first_seconds)
    try:
        length = int.from_bytes(await stream.readexactly(2), "big")
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise
        return None
    if length > MAX_TOPIC_BYTES:
        raise InvalidValueError(f"a topic of {length} bytes is longer than the {MAX_TOPIC_BYTES} allowed")
    stream.set_read_deadline(loop.time() + idle_seconds)
    head = await stream.readexactly(length + 4)
    topic = decode_topic_untrusted(head[:length])
    size = int.from_bytes(head[length:], "big")
    if size > MAX_PAYLOAD_BYTES:
        raise InvalidValueError(f"an event of {size} bytes is longer than the {MAX_PAYLOAD_BYTES} allowed")
    return StreamEvent(topic, bytes(await read_payload_untrusted(stream, size, lease, idle_seconds)))
