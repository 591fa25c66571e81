"""Connections (TCP in the real world) on the virtual network: no loss, but stalls while the way is cut (testing)."""

from __future__ import annotations

import asyncio
import errno
import os
from collections import deque
from collections.abc import Callable
from typing import Any, Final

__all__ = ["Connection", "End", "connect"]

Address = tuple[str, int]

RETRY_SECONDS: Final = 0.5
"""How often a stalled connection looks whether the way is open again."""
GIVE_UP_SECONDS: Final = 60.0
"""After so long a stall the connection breaks."""


class End(asyncio.Transport):
    """One end of a connection: what it is given arrives at the other end, in order, after the delay."""

    def __init__(self, connection: Connection, protocol: asyncio.Protocol, extra: dict[str, Any]) -> None:
        super().__init__(extra)
        self._connection = connection
        self._protocol = protocol
        self._queue: deque[bytes] = deque()
        self._closing = False
        self._stalled = 0.0
        self.other: End | None = None

    def open(self) -> None:
        """Tells the protocol that the connection is made."""
        self._protocol.connection_made(self)

    def write(self, data: Any) -> None:
        """Sends `data`; nothing after `close`."""
        if not self._closing and data:
            self._queue.append(bytes(data))
            self._connection.later(self._connection.delay, self._pass_on)

    def _pass_on(self) -> None:
        """The oldest bytes arrive; an empty chunk is the end."""
        connection = self._connection
        if connection.closed or not self._queue:
            return
        if connection.cut():
            self._stalled += RETRY_SECONDS
            if self._stalled > GIVE_UP_SECONDS:
                connection.fail()
            else:
                connection.later(RETRY_SECONDS, self._pass_on)
            return
        self._stalled = 0.0
        data = self._queue.popleft()
        if self.other is None:
            return
        if data:
            self.other._protocol.data_received(data)
        else:
            connection.end(None)

    def is_closing(self) -> bool:
        """Whether this end was closed."""
        return self._closing

    def close(self) -> None:
        """Ends the connection after what was written."""
        if not self._closing:
            self._closing = True
            self._queue.append(b"")
            self._connection.later(self._connection.delay, self._pass_on)

    def abort(self) -> None:
        """Ends the connection at once."""
        self._closing = True
        self._connection.end(None)

    def get_write_buffer_size(self) -> int:
        """Bytes under way."""
        return sum(map(len, self._queue))

    def lost(self, error: Exception | None) -> None:
        """Tells the protocol that the connection is gone."""
        self._closing = True
        self._protocol.connection_lost(error)


class Connection:
    """Both ends of one connection. `key` is the address that was called."""

    def __init__(self, loop: asyncio.AbstractEventLoop, key: Address, delay: float, cut: Callable[[], bool]) -> None:
        self.key = key
        self.delay = delay
        self.cut = cut
        self.closed = False
        self._loop = loop
        self._ends: tuple[End, ...] = ()

    @property
    def caller(self) -> End:
        """The end of who called."""
        return self._ends[0]

    def join(self, caller: End, callee: End) -> None:
        """Puts the two ends together."""
        self._ends = caller, callee
        caller.other, callee.other = callee, caller

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        """`call` after so many virtual seconds."""
        self._loop.call_later(seconds, call)

    def fail(self) -> None:
        """The connection breaks; both ends are told."""
        self.end(ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET)))

    def end(self, error: Exception | None) -> None:
        """The connection is over; both ends are told, in the next turn of the loop."""
        if self.closed:
            return
        self.closed = True
        for end in self._ends:
            self._loop.call_soon(end.lost, error)


def connect(
    loop: asyncio.AbstractEventLoop,
    key: Address,
    caller: asyncio.Protocol,
    callee: asyncio.Protocol,
    source: Address,
    delay: float,
    cut: Callable[[], bool],
) -> Connection:
    """An open connection of `caller` at `source` to `callee` at `key`."""
    connection = Connection(loop, key, delay, cut)
    connection.join(
        End(connection, caller, {"peername": key, "sockname": source}),
        End(connection, callee, {"peername": source, "sockname": key}),
    )
    for end in connection._ends:
        end.open()
    return connection
