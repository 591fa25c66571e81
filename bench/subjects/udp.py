"""`uvloop-udp`: bare datagrams through uvloop's datagram endpoint (bench)."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from bench.subjects import CREDIT_MESSAGES, End
from bench.subjects.flood import Counted, Window

__all__ = ["Client", "Server"]


class Server(End, asyncio.DatagramProtocol):
    """Echoes, or counts and confirms."""

    async def open(self, *, host: str, **_: Any) -> dict[str, Any]:
        """Binds a port and answers with it."""
        self._counted = Counted()
        self._echo = True
        loop = asyncio.get_running_loop()
        self._transport, _protocol = await loop.create_datagram_endpoint(lambda: self, local_addr=(host, 0))
        return {"server": host, "port": self._transport.get_extra_info("sockname")[1]}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The endpoint is open."""

    def connection_lost(self, error: Exception | None) -> None:
        """The endpoint is closed."""

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        """Back to where it came from, or one more."""
        if self._echo:
            self._transport.sendto(data, address)
            return
        self._counted.one()
        if self._counted.total % CREDIT_MESSAGES == 0:
            self._transport.sendto(self._counted.total.to_bytes(8, "big"), address)

    async def expect(self, kind: str, count: int = 0, size: int = 0) -> None:
        """Echo or count from now on."""
        self._echo = kind == "echo"
        self._counted.reset()

    async def collect(self) -> dict[str, Any]:
        """How many came until when."""
        return self._counted.result()

    async def close(self) -> None:
        """Closes the port."""
        self._transport.close()


class Client(End, asyncio.DatagramProtocol):
    """A connected endpoint."""

    async def open(self, *, server: str, port: int, **_: Any) -> dict[str, Any]:
        """Connects."""
        self._loop = asyncio.get_running_loop()
        self._window: Window | None = None
        self._answer: asyncio.Future[None] | None = None
        self._transport, _protocol = await self._loop.create_datagram_endpoint(lambda: self, remote_addr=(server, port))
        return {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The endpoint is open."""

    def connection_lost(self, error: Exception | None) -> None:
        """The endpoint is closed."""

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        """An echo, or a confirmation."""
        if self._window is not None:
            self._window.confirmed(int.from_bytes(data, "big"))
        elif self._answer is not None and not self._answer.done():
            self._answer.set_result(None)

    async def echo(self, count: int, size: int) -> list[float]:
        """Microseconds of each round trip."""
        message, times = bytes(size), []
        for _ in range(count):
            started = time.perf_counter_ns()
            self._answer = self._loop.create_future()
            self._transport.sendto(message)
            await self._answer
            times.append((time.perf_counter_ns() - started) / 1e3)
        return times

    async def flood(self, count: int, size: int, window: int) -> dict[str, Any]:
        """`count` datagrams."""
        message = bytes(size)
        self._window = Window()

        async def send(number: int) -> None:
            for _ in range(number):
                self._transport.sendto(message)

        return await self._window.flood(send, count, window)

    async def close(self) -> None:
        """Closes the endpoint."""
        self._transport.close()
