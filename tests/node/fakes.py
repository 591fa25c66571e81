"""A stream machine without a network: bytes are handed in and taken out by the test."""

from __future__ import annotations

from typing import Any

from pilot._fast.addr import Addr
from pilot._fast.errors import ClosedError, ResetError
from pilot._fast.stream import StreamState, Wake


class FakeCore:
    """What `Stream` needs of a `StreamCore`; `feed`, `acknowledge`, `finish`, `fail` play the peer."""

    def __init__(self, room: int = 1 << 20, state: StreamState = StreamState.ESTABLISHED) -> None:
        self.local_addr, self.local_port = Addr(0, 1), 50000
        self.remote_addr, self.remote_port = Addr(0, 2), 7
        self.state = state
        self.owner: Any = None
        self.interest = 0
        self.room = room
        self.incoming = bytearray()
        self.outgoing = bytearray()
        self.written = 0
        self.acked = 0
        self.finished = False
        self.failure: Exception | None = None
        self.aborted = False
        self.closing = False

    @property
    def unacknowledged(self) -> int:
        return self.written - self.acked

    @property
    def readable(self) -> int:
        return len(self.incoming)

    def read(self, max_bytes: int) -> bytes | None:
        if self.closing:
            raise ClosedError("closed by this end")
        if self.incoming:
            data = bytes(self.incoming[:max_bytes])
            del self.incoming[:max_bytes]
            return data
        if self.failure is not None:
            raise self.failure
        return b"" if self.finished else None

    def read_into(self, buffer: memoryview) -> int:
        data = self.read(len(buffer))
        if data is None:
            return -1
        buffer[: len(data)] = data
        return len(data)

    def lend(self) -> memoryview | None:
        return memoryview(bytes(self.incoming)) if self.incoming else None

    def give_back(self, count: int) -> None:
        del self.incoming[:count]

    @property
    def writable(self) -> int:
        return self.room - self.unacknowledged

    def write(self, data: Any, offset: int = 0) -> int:
        if self.failure is not None:
            raise self.failure
        if self.closing or self.finished:
            raise ClosedError("closed")
        taken = bytes(memoryview(data)[offset:])[: self.room - self.unacknowledged]
        self.outgoing += taken
        self.written += len(taken)
        return len(taken)

    def close(self) -> None:
        self.closing = True

    def abort(self) -> None:
        self.closing = True
        if self.state != StreamState.CLOSED:
            self.aborted = True
            self.fail(ClosedError("aborted by this end"))

    def error(self) -> BaseException | None:
        return self.failure

    # ------------------------------------------------------------------------------------- the peer

    def feed(self, data: bytes) -> None:
        self.incoming += data
        self.wake(Wake.READ)

    def acknowledge(self, count: int | None = None) -> None:
        self.acked = self.written if count is None else self.acked + count
        self.wake(Wake.WRITE | Wake.ACKED)

    def open(self) -> None:
        self.state = StreamState.ESTABLISHED
        self.wake(Wake.OPEN)

    def finish(self) -> None:
        self.finished = True
        self.end()

    def reset(self) -> None:
        self.fail(ResetError("reset by the peer"))

    def fail(self, error: Exception | None) -> None:
        self.failure = error
        self.end()

    def end(self) -> None:
        self.state = StreamState.CLOSED
        self.wake(Wake.READ | Wake.WRITE | Wake.ACKED)
        self.owner._on_wake(Wake.CLOSED)

    def wake(self, events: int) -> None:
        if asked := events & self.interest:
            self.interest &= ~asked
            self.owner._on_wake(asked)
