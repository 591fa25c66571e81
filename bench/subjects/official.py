"""`official`: two official daemons 1.18.0, black boxes driven through their local sockets (bench).

Each end is a process that starts a daemon on its own core and is the daemon's client there, on the same core: that is
how an application uses it. Runs in a network namespace that has nothing but loopback, entered before this process
starts. Two daemons deadlock on a closed window and lose transfers without pacing, so the receiver confirms bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from bench.subjects import End, proc_fields
from bench.subjects.timed import DIAL_SECONDS, TIMED_PORT, Arrivals, drain, paced
from tests.interop.ipc import IpcClient, IpcError, IpcStream
from tests.interop.netns import Namespace
from tests.interop.official import OfficialDaemon, fetch

__all__ = ["Client", "Server"]

SINK_PORT: Final = 1000
ECHO_PORT: Final = 7
"""The daemon's own echo service, which spares it one of its clients."""
UNCONFIRMED_BYTES: Final = 512 << 10
CREDIT_BYTES: Final = 64 << 10
WRITE_BYTES: Final = 64 << 10
CREDIT: Final = b"."


class _Here(Namespace):
    """The namespace this process is in already."""

    def __init__(self) -> None:
        self.name = ""

    def command(self, *argv: str) -> list[str]:
        return list(argv)


class _Client(IpcClient):
    """The harness's client as it is, but for a line that takes no transport of uvloop."""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        transport.set_write_buffer_limits(high=WRITE_BYTES)
        self.connected = True
        self._writable.set()


class _Official(OfficialDaemon):
    async def ipc(self, *, high_water: int | None = None) -> IpcClient:
        return await _Client.connect(self.socket, high_water=high_water)


class _Daemon(End):
    daemon: OfficialDaemon
    ipc: IpcClient

    async def _start(self, host: str, registry: str, beacon: str, port: int = 4000) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="pilot-bench-")
        settings: dict[str, Any] = {
            "registry": registry,
            "beacon": beacon,
            "host": host,
            "port": port,
            "public": True,
            "log_level": "error",
        }
        self.daemon = _Official(fetch(), _Here(), Path(self._directory.name), **settings)
        await self.daemon.start()
        self.ipc = await self.daemon.ipc()

    async def usage(self) -> float:
        """CPU seconds of the daemon and of its client."""
        ticks = sum(map(int, proc_fields(f"/proc/{self.daemon.pid}/stat")[13:15]))
        return await super().usage() + ticks / os.sysconf("SC_CLK_TCK")

    async def close(self) -> None:
        """Ends client and daemon."""
        await self.ipc.disconnect()
        await self.daemon.kill()
        self._directory.cleanup()


class Server(_Daemon):
    """Swallows streams; the daemon echoes by itself."""

    async def open(self, *, host: str, registry: str, beacon: str, port: int = 4000, **_: Any) -> dict[str, Any]:
        """Starts the daemon; answers with its address."""
        await self._start(host, registry, beacon, port)
        self._sink = await self.ipc.bind(SINK_PORT)
        self._timed = await self.ipc.bind(TIMED_PORT)
        self._arriving: asyncio.Task[None] | None = None
        self._stream: IpcStream | None = None
        return {"address": str(self.daemon.address)}

    async def expect(self, kind: str, count: int = 0, size: int = 0) -> None:
        """A stream of `size` bytes; echoes need no preparation."""
        self._draining = asyncio.create_task(self._drain(size)) if kind == "stream" else None
        if kind == "timed":
            if self._arriving is not None:
                self._arriving.cancel()
            self._arrivals = Arrivals()
            self._arriving = asyncio.create_task(self._arrive(self._arrivals))

    async def collect(self) -> dict[str, Any]:
        """When the last byte came."""
        return {"end": await self._draining} if self._draining is not None else {}

    async def received(self, start: int, seconds: float) -> dict[str, Any]:
        """What the stream of a timed transfer had brought by then."""
        return self._arrivals.received(start, seconds)

    async def _arrive(self, arrivals: Arrivals) -> None:
        await drain(await self._timed.accept(), arrivals)

    async def _drain(self, size: int) -> int:
        if self._stream is None:
            self._stream = await self._sink.accept()
        received = confirmed = 0
        while received < size:
            data = await self._stream.read()
            if not data:
                raise ConnectionResetError("the official daemon ended the stream")
            received += len(data)
            ended = time.monotonic_ns()
            if credits := (received - confirmed) // CREDIT_BYTES:
                await self._stream.write(CREDIT * credits)
                confirmed += credits * CREDIT_BYTES
        return ended


class Client(_Daemon):
    """Dials the other daemon."""

    async def open(
        self, *, host: str, registry: str, beacon: str, address: str, port: int = 4000, **_: Any
    ) -> dict[str, Any]:
        """Starts the daemon."""
        await self._start(host, registry, beacon, port)
        self._address = address
        self._bulk: IpcStream | None = None
        self._echo: IpcStream | None = None
        return {}

    async def send(self, size: int) -> dict[str, Any]:
        """`size` bytes; answers with the time before the first."""
        if self._bulk is None:
            self._bulk = await self.ipc.dial(self._address, SINK_PORT)
        stream, block, unconfirmed = self._bulk, bytes(WRITE_BYTES), 0
        started = time.monotonic_ns()
        for _ in range(size // WRITE_BYTES):
            while unconfirmed >= UNCONFIRMED_BYTES:
                unconfirmed -= len(await stream.read()) * CREDIT_BYTES
            await stream.write(block)
            unconfirmed += WRITE_BYTES
        while unconfirmed > 0:
            unconfirmed -= len(await stream.read()) * CREDIT_BYTES
        return {"start": started}

    async def send_for(self, seconds: float, window: int) -> dict[str, Any]:
        """A fresh stream, written to for so long; answers with the time before the first byte, and how it went."""
        async with asyncio.timeout(DIAL_SECONDS):
            stream = await self.ipc.dial(self._address, TIMED_PORT)
        reason, started = "", time.monotonic_ns()
        try:
            async with asyncio.timeout(seconds):
                await paced(stream, window)
        except TimeoutError:
            pass
        except ConnectionError as error:
            reason = str(error)
        self._closing = asyncio.create_task(self._end(stream))
        return {"start": started, "reason": reason}

    async def _end(self, stream: IpcStream) -> None:
        with contextlib.suppress(TimeoutError, ConnectionError, IpcError):
            await stream.close()

    async def echo(self, count: int, size: int) -> list[float]:
        """Microseconds of each round trip."""
        if self._echo is None:
            self._echo = await self.ipc.dial(self._address, ECHO_PORT)
        stream, message, times = self._echo, bytes(size), []
        for _ in range(count):
            started = time.perf_counter_ns()
            await stream.write(message)
            await stream.readexactly(size)
            times.append((time.perf_counter_ns() - started) / 1e3)
        return times
