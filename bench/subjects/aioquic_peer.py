"""`aioquic`: QUIC in Python, AES-256-GCM, one connection (bench).

aioquic buffers without limit what is written; so the receiver confirms bytes, as a real application would have to.
"""

from __future__ import annotations

import asyncio
import ssl
import tempfile
import time
from typing import Any, Final

from aioquic.asyncio import QuicConnectionProtocol, connect, serve
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import ConnectionTerminated, DatagramFrameReceived, QuicEvent, StreamDataReceived
from aioquic.tls import CipherSuite

from bench.subjects import BLOCK_BYTES, CREDIT_MESSAGES, End
from bench.subjects.flood import Counted, Window
from bench.subjects.tcp import self_signed

__all__ = ["Client", "Server"]

WINDOW_BYTES: Final = 16 << 20
UNCONFIRMED_BYTES: Final = 4 << 20
CREDIT_BYTES: Final = 1 << 20
IDLE_SECONDS: Final = 3600.0


def _configuration(is_client: bool) -> QuicConfiguration:
    return QuicConfiguration(
        alpn_protocols=["bench"],
        is_client=is_client,
        verify_mode=ssl.CERT_NONE,
        cipher_suites=[CipherSuite.AES_256_GCM_SHA384],
        max_data=WINDOW_BYTES,
        max_stream_data=WINDOW_BYTES,
        max_datagram_frame_size=65536,
        idle_timeout=IDLE_SECONDS,
    )


class _Accepted(QuicConnectionProtocol):
    server: Server

    def quic_event_received(self, event: QuicEvent) -> None:
        if isinstance(event, StreamDataReceived):
            if self.server.kind == "stream":
                self.server.arrived(self, event.stream_id, len(event.data))
            else:
                self.say(event.stream_id, event.data)
        elif isinstance(event, DatagramFrameReceived):
            counted = self.server.counted
            counted.one()
            if counted.total % CREDIT_MESSAGES == 0:
                self._quic.send_datagram_frame(counted.total.to_bytes(8, "big"))
                self.transmit()

    def say(self, stream: int, data: bytes) -> None:
        self._quic.send_stream_data(stream, data)
        self.transmit()


class Server(End):
    """Swallows, echoes or counts, as `expect` said last."""

    async def open(self, *, host: str, **_: Any) -> dict[str, Any]:
        """Listens; answers with the port."""
        self.kind = "echo"
        self.counted = Counted()
        configuration = _configuration(is_client=False)
        with tempfile.TemporaryDirectory(prefix="pilot-bench-") as directory:
            configuration.load_cert_chain(*self_signed(directory))

        def accept(*arguments: Any, **named: Any) -> _Accepted:
            accepted = _Accepted(*arguments, **named)
            accepted.server = self
            return accepted

        self._listener = await serve(host, 0, configuration=configuration, create_protocol=accept)
        return {"server": host, "port": self._listener._transport.get_extra_info("sockname")[1]}

    async def expect(self, kind: str, count: int = 0, size: int = 0) -> None:
        """Does that from now on."""
        self.kind = kind
        self.counted.reset()
        self._received, self._wanted, self._confirmed = 0, size, 0
        self._done: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def arrived(self, connection: _Accepted, stream: int, count: int) -> None:
        """Bytes have come; tells the sender so now and then."""
        self._received += count
        if self._received - self._confirmed >= CREDIT_BYTES or self._received == self._wanted:
            connection.say(stream, (self._received - self._confirmed).to_bytes(4, "big"))
            self._confirmed = self._received
        if self._received == self._wanted:
            self._done.set_result(time.monotonic_ns())

    async def collect(self) -> dict[str, Any]:
        """When the last byte or datagram came, and how many of those."""
        if self.kind == "stream":
            return {"end": await self._done}
        return self.counted.result()

    async def close(self) -> None:
        """Stops listening."""
        self._listener.close()


class _Connected(QuicConnectionProtocol):
    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.received = bytearray()
        self.changed = asyncio.Event()
        self.window = Window()
        self.terminated = False

    def quic_event_received(self, event: QuicEvent) -> None:
        if isinstance(event, StreamDataReceived):
            self.received += event.data
            self.changed.set()
        elif isinstance(event, DatagramFrameReceived):
            self.window.confirmed(int.from_bytes(event.data, "big"))
        elif isinstance(event, ConnectionTerminated):
            self.terminated = True
            self.changed.set()

    async def take(self, count: int) -> bytes:
        while len(self.received) < count:
            if self.terminated:
                raise ConnectionResetError("aioquic ended the connection")
            self.changed.clear()
            await self.changed.wait()
        data = bytes(self.received[:count])
        del self.received[:count]
        return data

    def say(self, stream: int, data: bytes) -> None:
        self._quic.send_stream_data(stream, data)
        self.transmit()

    def datagram(self, data: bytes) -> None:
        self._quic.send_datagram_frame(data)

    def new_stream(self) -> int:
        return self._quic.get_next_available_stream_id()


class Client(End):
    """One connection with one stream."""

    async def open(self, *, server: str, port: int, **_: Any) -> dict[str, Any]:
        """Connects."""
        self._server = server, port
        self._context = self._connect()
        self._connection = await self._context.__aenter__()
        self._stream = self._connection.new_stream()
        return {}

    def _connect(self) -> Any:
        return connect(*self._server, configuration=_configuration(is_client=True), create_protocol=_Connected)

    async def send(self, size: int) -> dict[str, Any]:
        """`size` bytes; answers with the time before the first."""
        connection, block, unconfirmed = self._connection, bytes(BLOCK_BYTES), 0
        started = time.monotonic_ns()
        for _ in range(size // BLOCK_BYTES):
            connection.say(self._stream, block)
            unconfirmed += BLOCK_BYTES
            while unconfirmed >= UNCONFIRMED_BYTES:
                unconfirmed -= int.from_bytes(await connection.take(4), "big")
        while unconfirmed:
            unconfirmed -= int.from_bytes(await connection.take(4), "big")
        return {"start": started}

    async def echo(self, count: int, size: int) -> list[float]:
        """Microseconds of each round trip."""
        return [await self._round_trip(self._connection, self._stream, bytes(size)) for _ in range(count)]

    async def _round_trip(self, connection: _Connected, stream: int, message: bytes) -> float:
        started = time.perf_counter_ns()
        connection.say(stream, message)
        await connection.take(len(message))
        return (time.perf_counter_ns() - started) / 1e3

    async def dial(self, count: int, size: int) -> dict[str, list[float]]:
        """Microseconds from each connect to the first echo, and of each close."""
        opened, closed = [], []
        for _ in range(count):
            started = time.perf_counter_ns()
            async with self._connect() as connection:
                await self._round_trip(connection, connection.new_stream(), bytes(size))
                echoed = time.perf_counter_ns()
                opened.append((echoed - started) / 1e3)
            closed.append((time.perf_counter_ns() - echoed) / 1e3)
        return {"open": opened, "close": closed}

    async def flood(self, count: int, size: int, window: int) -> dict[str, Any]:
        """`count` datagrams."""
        connection, message = self._connection, bytes(size)

        async def send(number: int) -> None:
            for _ in range(number):
                connection.datagram(message)
            connection.transmit()

        return await connection.window.flood(send, count, window)

    async def close(self) -> None:
        """Closes the connection."""
        await self._context.__aexit__(None, None, None)
