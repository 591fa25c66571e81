"""`zmq-curve`: a pair of ZeroMQ sockets under CURVE, in blocking calls, the fastest way pyzmq has (bench).

pyzmq has an I/O thread; it shares the core of its end, as everything of an end does.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

import zmq

from bench.subjects import BLOCK_BYTES, CREDIT_MESSAGES, End

__all__ = ["Client", "Server"]

QUEUED_MESSAGES: Final = 1000
QUEUED_BLOCKS: Final = 16


class _Pair(End):
    socket: zmq.Socket[bytes]
    key: bytes

    def _create(self, kind: str) -> None:
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.PAIR)
        self.socket.set_hwm(QUEUED_BLOCKS if kind == "stream" else QUEUED_MESSAGES)
        self.socket.linger = 0
        self.key, self.socket.curve_secretkey = zmq.curve_keypair()
        self.socket.curve_publickey = self.key

    async def close(self) -> None:
        """Closes socket and I/O thread."""
        self.socket.close()
        self.context.term()


class Server(_Pair):
    """What it does next is said by `expect` and done in a thread, while the loop waits for the next command."""

    async def open(self, *, host: str, kind: str, **_: Any) -> dict[str, Any]:
        """Binds a port; answers with port and key."""
        self._create(kind)
        self.socket.curve_server = True
        port = self.socket.bind_to_random_port(f"tcp://{host}")
        return {"server": f"tcp://{host}:{port}", "key": self.key.decode()}

    async def expect(self, kind: str, count: int = 0, size: int = 0) -> None:
        """Starts to receive."""
        action = {"stream": self._drain, "echo": self._reflect, "datagrams": self._count}[kind]
        self._running = asyncio.get_running_loop().run_in_executor(None, action, count, size)

    async def collect(self) -> dict[str, Any]:
        """What was received."""
        return await self._running

    def _drain(self, count: int, size: int) -> dict[str, Any]:
        while size > 0:
            size -= len(self.socket.recv(copy=False).buffer)
        return {"end": time.monotonic_ns()}

    def _reflect(self, count: int, size: int) -> dict[str, Any]:
        for _ in range(count):
            self.socket.send(self.socket.recv())
        return {}

    def _count(self, count: int, size: int) -> dict[str, Any]:
        for number in range(1, count + 1):
            self.socket.recv()
            if number % CREDIT_MESSAGES == 0:
                self.socket.send(number.to_bytes(8, "big"))
        return {"received": count, "end": time.monotonic_ns()}


class Client(_Pair):
    """Sends and waits in blocking calls."""

    async def open(self, *, server: str, key: str, kind: str, **_: Any) -> dict[str, Any]:
        """Connects."""
        self._create(kind)
        self.socket.curve_serverkey = key.encode()
        self.socket.connect(server)
        return {}

    async def send(self, size: int) -> dict[str, Any]:
        """`size` bytes in messages of a block; answers with the time before the first."""
        block = bytes(BLOCK_BYTES)
        started = time.monotonic_ns()
        for _ in range(size // BLOCK_BYTES):
            self.socket.send(block, copy=False)
        return {"start": started}

    async def echo(self, count: int, size: int) -> list[float]:
        """Microseconds of each round trip."""
        socket, message, times = self.socket, bytes(size), []
        for _ in range(count):
            started = time.perf_counter_ns()
            socket.send(message)
            socket.recv()
            times.append((time.perf_counter_ns() - started) / 1e3)
        return times

    async def flood(self, count: int, size: int, window: int) -> dict[str, Any]:
        """`count` messages; nothing is lost here."""
        socket, message, confirmed = self.socket, bytes(size), 0
        started = time.monotonic_ns()
        for number in range(count):
            while number - confirmed >= window or socket.getsockopt(zmq.EVENTS) & zmq.POLLIN:
                confirmed = int.from_bytes(socket.recv(), "big")
            socket.send(message)
        while confirmed < count:
            confirmed = int.from_bytes(socket.recv(), "big")
        return {"start": started, "sent": count, "lost": 0}
