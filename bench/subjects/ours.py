"""`ours`: two nodes of `pilot`, used through the public API alone (bench)."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

import pilot
from bench.subjects import BLOCK_BYTES, CREDIT_MESSAGES, End
from bench.subjects.flood import Counted, Window
from bench.subjects.timed import DIAL_SECONDS, TIMED_PORT, Arrivals, drain, paced

__all__ = ["Client", "Server"]

SINK_PORT: Final = 1000
ECHO_PORT: Final = 1001
HOLD_PORTS: Final = range(1100, 1110)
DATAGRAM_PORT: Final = 4000
CREDIT_PORT: Final = 4001
DIALS_AT_ONCE: Final = 64
UNLIMITED: Final = {"syn_rate": 1e6, "peer_syn_rate": 1e6, "peer_syn_burst": 1_000_000, "streams_per_port": 65535}
"""The limits are for strangers; here one peer is meant to call as often as it can. Names of `NodeConfig`."""


class _Node(End):
    """What both ends have: a node, and sums over its streams."""

    node: pilot.Node

    async def _start(
        self, host: str, registry: str, beacon: str, segment: int, more: dict[str, Any] | None = None
    ) -> None:
        settings: dict[str, Any] = UNLIMITED | (more or {})
        if segment:
            settings["max_segment_bytes"] = segment
        self.node = pilot.Node(
            registry=registry,
            beacon=beacon,
            listen=f"{host}:0",
            public=True,
            backlog=65535,
            datagram_queue=1 << 16,
            **settings,
        )
        await self.node.start()

    async def close(self) -> None:
        """Stops the node."""
        await self.node.stop()


class Server(_Node):
    """Swallows streams on one port, echoes on another, holds idle ones on a few more, counts datagrams."""

    async def open(
        self,
        *,
        host: str,
        registry: str,
        beacon: str,
        segment: int = 0,
        settings: dict[str, Any] | None = None,
        callbacks: bool = False,
        **_: Any,
    ) -> dict[str, Any]:
        """Starts node and services; answers with the address. `callbacks`: the echo is a receiver, not a task."""
        await self._start(host, registry, beacon, segment, settings)
        self._callbacks = callbacks
        self._buffer = memoryview(bytearray(BLOCK_BYTES))
        self._counted = Counted()
        self._held: list[pilot.Stream] = []
        self._stream: pilot.Stream | None = None
        self._sink = await self.node.listen(SINK_PORT)
        self._timed = await self.node.listen(TIMED_PORT)
        self._arriving: asyncio.Task[None] | None = None
        self._echoing = self.node.serve(ECHO_PORT, self._echo)
        await self._echoing.__aenter__()
        self._inbox = self.node.datagrams(DATAGRAM_PORT)
        self._tasks = [asyncio.create_task(self._count())]
        self._tasks += [asyncio.create_task(self._hold(await self.node.listen(port))) for port in HOLD_PORTS]
        return {"address": str(self.node.address)}

    async def expect(self, kind: str, count: int = 0, size: int = 0) -> None:
        """A stream of `size` bytes, or datagrams; echoes need no preparation."""
        if kind == "stream":
            self._draining = asyncio.create_task(self._drain(size))
        elif kind == "datagrams":
            self._counted.reset()
        elif kind == "timed":
            if self._arriving is not None:
                self._arriving.cancel()
            self._arrivals = Arrivals()
            self._arriving = asyncio.create_task(self._arrive(self._arrivals, confirm=bool(size)))
        self._kind = kind

    async def collect(self) -> dict[str, Any]:
        """When the last byte came, or how many datagrams came until when."""
        if self._kind == "stream":
            return {"end": await self._draining}
        return self._counted.result() if self._kind == "datagrams" else {}

    async def _drain(self, size: int) -> int:
        if self._stream is None:
            self._stream = await self._sink.accept()
        if self._callbacks:
            return await _count_bytes(self._stream, size)
        while size > 0:
            size -= await self._stream.read_into(self._buffer)
        return time.monotonic_ns()

    async def received(self, start: int, seconds: float) -> dict[str, Any]:
        """What the stream of a timed transfer had brought by then."""
        return self._arrivals.received(start, seconds)

    async def _arrive(self, arrivals: Arrivals, *, confirm: bool) -> None:
        stream = await self._timed.accept()
        try:
            if confirm:
                await drain(stream, arrivals)
            else:
                while count := await stream.read_into(self._buffer):
                    arrivals.add(count)
        except ConnectionError:
            pass  # the client ends by tearing the stream down
        finally:
            stream.abort()

    async def _echo(self, stream: pilot.Stream) -> None:
        if self._callbacks:
            over = asyncio.Event()
            stream.set_receiver(stream.write_nowait, ended=lambda error: over.set(), writable=stream.resume_reading)
            await over.wait()
            return
        buffer = memoryview(bytearray(BLOCK_BYTES))
        while count := await stream.read_into(buffer):
            await stream.write(buffer[:count])

    async def _hold(self, listener: pilot.Listener) -> None:
        async for stream in listener:
            self._held.append(stream)
            if len(self._held) == 1:
                self._tasks.append(asyncio.create_task(self._echo(stream)))

    async def _count(self) -> None:
        counted = self._counted
        async for datagram in self._inbox:
            counted.one()
            if counted.total % CREDIT_MESSAGES == 0:
                await self.node.send_datagram(datagram.source, CREDIT_PORT, counted.total.to_bytes(8, "big"))

    async def detail(self) -> dict[str, Any]:
        """Counters that are not 0."""
        return {"counters": {name: value for name, value in self.node.stats().counters.items() if value}}

    async def close(self) -> None:
        """Stops services and node."""
        tasks = [*self._tasks, *filter(None, [self._arriving])]
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await self._echoing.__aexit__(None, None, None)
        await super().close()


class Client(_Node):
    """Dials the server's node; streams are dialed when they are first needed and then kept."""

    async def open(
        self,
        *,
        host: str,
        registry: str,
        beacon: str,
        address: str,
        segment: int = 0,
        settings: dict[str, Any] | None = None,
        callbacks: bool = False,
        **_: Any,
    ) -> dict[str, Any]:
        """Starts the node and makes contact. `callbacks`: round trips without a task."""
        await self._start(host, registry, beacon, segment, settings)
        self._callbacks = callbacks
        self._peer = await self.node.find(address)
        self._bulk: pilot.Stream | None = None
        self._echo: pilot.Stream | None = None
        self._held: list[pilot.Stream] = []
        self._window = Window()
        self._inbox = self.node.datagrams(CREDIT_PORT)
        self._credits = asyncio.create_task(self._take_credits())
        await self.node.ping(self._peer)
        return {}

    async def send(self, size: int) -> dict[str, Any]:
        """`size` bytes on one stream; answers with the time before the first."""
        if self._bulk is None:
            self._bulk = await self.node.dial(self._peer, SINK_PORT)
        block = bytes(BLOCK_BYTES)
        started = time.monotonic_ns()
        for _ in range(size // BLOCK_BYTES):
            await self._bulk.write(block)
        return {"start": started}

    async def send_for(self, seconds: float, window: int = 0) -> dict[str, Any]:
        """A fresh stream, written to for so long; answers with the time before the first byte, and how it went."""
        async with asyncio.timeout(DIAL_SECONDS):
            stream = await self.node.dial(self._peer, TIMED_PORT)
        block, reason = bytes(BLOCK_BYTES), ""
        started = time.monotonic_ns()
        try:
            async with asyncio.timeout(seconds):
                if window:
                    await paced(stream, window)
                while True:
                    await stream.write(block)
        except TimeoutError:
            pass
        except ConnectionError as error:
            reason = f"{type(error).__name__}: {error}"
        told = stream.stats()._asdict()
        del told["state"]
        stream.abort()
        return {"start": started, "reason": reason, "stream": told}

    async def echo(self, count: int, size: int) -> list[float]:
        """Microseconds of each round trip; on one of the held streams if there are any."""
        if self._held:
            self._echo = self._held[0]
        elif self._echo is None:
            self._echo = await self.node.dial(self._peer, ECHO_PORT)
        if self._callbacks:
            return await _round_trips(self._echo, count, bytes(size))
        stream, message, times = self._echo, bytes(size), []
        for _ in range(count):
            started = time.perf_counter_ns()
            await stream.write(message)
            await stream.readexactly(size)
            times.append((time.perf_counter_ns() - started) / 1e3)
        return times

    async def dial(self, count: int, size: int) -> dict[str, list[float]]:
        """Microseconds from each call of `dial` to the first echo, and of each close."""
        message, opened, closed = bytes(size), [], []
        for _ in range(count):
            started = time.perf_counter_ns()
            stream = await self.node.dial(self._peer, ECHO_PORT)
            await stream.write(message)
            await stream.readexactly(size)
            echoed = time.perf_counter_ns()
            await stream.close()
            opened.append((echoed - started) / 1e3)
            closed.append((time.perf_counter_ns() - echoed) / 1e3)
        return {"open": opened, "close": closed}

    async def flood(self, count: int, size: int, window: int) -> dict[str, Any]:
        """`count` datagrams."""
        message = bytes(size)

        async def send(number: int) -> None:
            for _ in range(number):
                await self.node.send_datagram(self._peer, DATAGRAM_PORT, message)

        return await self._window.flood(send, count, window)

    async def _take_credits(self) -> None:
        async for datagram in self._inbox:
            self._window.confirmed(int.from_bytes(datagram.data, "big"))

    async def hold(self, count: int) -> None:
        """`count` streams that stay idle, the first of them alone before the others."""
        self._held.append(await self.node.dial(self._peer, HOLD_PORTS[0]))
        await asyncio.sleep(0.1)
        for start in range(1, count, DIALS_AT_ONCE):
            numbers = range(start, min(start + DIALS_AT_ONCE, count))
            dials = (self.node.dial(self._peer, HOLD_PORTS[number % len(HOLD_PORTS)]) for number in numbers)
            self._held += await asyncio.gather(*dials)

    async def detail(self) -> dict[str, Any]:
        """Segment size, retransmissions and counters."""
        stats = self.node.stats()
        found: dict[str, Any] = {"counters": {name: value for name, value in stats.counters.items() if value}}
        stream = self._bulk or self._echo
        if stream is not None:
            of = stream.stats()
            found |= {"segment_bytes": of.segment_bytes, "retransmissions": of.retransmissions, "rtt_us": of.srtt * 1e6}
        return found

    async def close(self) -> None:
        """Stops the node."""
        self._inbox.close()
        await self._credits
        await super().close()


async def _count_bytes(stream: pilot.Stream, size: int) -> int:
    """When the last of `size` bytes was seen by the callback, which copies none."""
    over = asyncio.get_running_loop().create_future()

    def received(view: memoryview) -> None:
        nonlocal size
        size -= len(view)
        if size == 0:
            over.set_result(time.monotonic_ns())

    stream.set_receiver(received)
    try:
        end: int = await over
    finally:
        stream.set_receiver(None)
    return end


async def _round_trips(stream: pilot.Stream, count: int, message: bytes) -> list[float]:
    """Microseconds of each round trip, each begun by the callback that ended the one before."""
    times: list[float] = []
    over = asyncio.get_running_loop().create_future()
    missing, started = len(message), 0

    def begin() -> None:
        nonlocal missing, started
        missing, started = len(message), time.perf_counter_ns()
        stream.write_nowait(message)

    def received(view: memoryview) -> None:
        nonlocal missing
        missing -= len(view)
        if missing:
            return
        times.append((time.perf_counter_ns() - started) / 1e3)
        if len(times) < count:
            begin()
        else:
            over.set_result(None)

    stream.set_receiver(received)
    begin()
    await over
    stream.set_receiver(None)
    return times
