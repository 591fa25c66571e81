"""The echo service, port 7: sends everything back, and answers TRCE with the time it came (L9).

Source: streams.md section 16.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from pilot.node.stream import Stream

__all__ = ["ECHO_PORT", "EchoService"]

ECHO_PORT: Final = 7
TRACE_MAGIC: Final = b"TRCE"
TRACE_BYTES: Final = 12
"""Magic and the 8 bytes that come back."""
SEGMENT_BYTES: Final = 1152
"""A trace comes alone in one segment; bulk data that happens to begin like one is echoed."""
CHUNK_BYTES: Final = 262144


class EchoService:
    """Serves echo streams. A private node ends those of peers it does not trust; the own node is always served."""

    def __init__(self, serves: Callable[[int], bool], wall_clock_ns: Callable[[], int] = time.time_ns) -> None:
        self._serves = serves
        self._wall_clock_ns = wall_clock_ns

    async def handle(self, stream: Stream) -> None:
        """One stream until its peer ends it. Every arrival is one write, so its boundaries follow what was received."""
        if not self._serves(stream.remote_addr.node):
            return
        buffer = memoryview(bytearray(CHUNK_BYTES))
        while count := await stream.read_into(buffer):
            if TRACE_BYTES <= count <= SEGMENT_BYTES and bytes(buffer[:4]) == TRACE_MAGIC:
                received = self._wall_clock_ns().to_bytes(8, "big")
                await stream.write(bytes(buffer[:TRACE_BYTES]) + received)
            else:
                await stream.write(buffer[:count])
