"""`uvloop-tcp` and `uvloop-tls`: kernel TCP on uvloop, bare or under TLS 1.3 with AES-256-GCM (bench).

Written as asyncio protocols, the fastest way uvloop has; a `BufferedProtocol` receives.
"""

from __future__ import annotations

import asyncio
import datetime
import resource
import socket
import ssl
import struct
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from bench.subjects import BLOCK_BYTES, End
from bench.subjects.timed import DIAL_SECONDS, Arrivals

__all__ = ["Client", "Server", "self_signed"]

CIPHER: Final = "TLS_AES_256_GCM_SHA384"
HIGH_WATER: Final = 1 << 20
CONNECTS_AT_ONCE: Final = 64


def self_signed(directory: str) -> tuple[str, str]:
    """Paths of a fresh certificate and its key, PEM, in `directory`."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "bench")])
    now = datetime.datetime.now(datetime.UTC)
    day = datetime.timedelta(days=1)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now - day, now + day)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("bench")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    paths = Path(directory, "certificate.pem"), Path(directory, "key.pem")
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    encoding = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    paths[1].write_bytes(key.private_bytes(*encoding))
    return str(paths[0]), str(paths[1])


def server_context() -> ssl.SSLContext:
    """TLS 1.3 with a certificate of its own."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    with tempfile.TemporaryDirectory(prefix="pilot-bench-") as directory:
        context.load_cert_chain(*self_signed(directory))
    return context


def client_context() -> ssl.SSLContext:
    """TLS 1.3 that believes any certificate: nobody else is here."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


class _Sink(asyncio.BufferedProtocol):
    """Swallows what comes and notes when the awaited number of bytes is complete."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._buffer = bytearray(BLOCK_BYTES)

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._buffer

    def buffer_updated(self, count: int) -> None:
        self._server.arrived(count)


class _Timed(asyncio.BufferedProtocol):
    """Swallows what comes of a timed transfer; only the newest connection counts."""

    def __init__(self, server: Server) -> None:
        self._arrivals = server.arrivals
        self._buffer = bytearray(BLOCK_BYTES)

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._buffer

    def buffer_updated(self, count: int) -> None:
        self._arrivals.add(count)


class _Reflect(asyncio.Protocol):
    def connection_made(self, transport: Any) -> None:
        self._write = transport.write

    def data_received(self, data: bytes) -> None:
        self._write(data)


class Server(End):
    """A port that swallows and one that echoes."""

    async def open(self, *, host: str, tls: bool = False, **_: Any) -> dict[str, Any]:
        """Listens; answers with the ports."""
        _raise_file_limit()
        context = server_context() if tls else None
        create = asyncio.get_running_loop().create_server
        self._sink = await create(lambda: _Sink(self), host, 0, ssl=context)
        self._echo = await create(_Reflect, host, 0, ssl=context, backlog=4096)
        self._timed = await create(lambda: _Timed(self), host, 0, ssl=context)
        ports = [server.sockets[0].getsockname()[1] for server in (self._sink, self._echo, self._timed)]
        return {"server": host, "sink": ports[0], "echo": ports[1], "timed": ports[2]}

    async def expect(self, kind: str, count: int = 0, size: int = 0) -> None:
        """A stream of `size` bytes; echoes need no preparation."""
        self._missing = size
        self.arrivals = Arrivals()
        self._done: asyncio.Future[int] | None = (
            asyncio.get_running_loop().create_future() if kind == "stream" else None
        )

    def arrived(self, count: int) -> None:
        """Bytes have come."""
        self._missing -= count
        if self._missing == 0 and self._done is not None:
            self._done.set_result(time.monotonic_ns())

    async def collect(self) -> dict[str, Any]:
        """When the last byte came."""
        return {"end": await self._done} if self._done is not None else {}

    async def received(self, start: int, seconds: float) -> dict[str, Any]:
        """What the connection of a timed transfer had brought by then."""
        return self.arrivals.received(start, seconds)

    async def close(self) -> None:
        """Stops listening."""
        self._timed.close()
        self._sink.close()
        self._echo.close()


class _Connection(asyncio.Protocol):
    """The client's side: writes with back-pressure, and waits for a number of bytes."""

    def __init__(self) -> None:
        self._missing = 0
        self._ended = asyncio.get_running_loop().create_future()
        self._arrived = self._writable = self._ended

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        transport.set_write_buffer_limits(HIGH_WATER)
        self.writing = True

    def pause_writing(self) -> None:
        self.writing = False
        self._writable = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        self.writing = True
        self._writable.set_result(None)

    def data_received(self, data: bytes) -> None:
        self._missing -= len(data)
        if self._missing == 0:
            self._arrived.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        self._ended.set_result(None)

    async def write(self, data: bytes) -> None:
        self.transport.write(data)
        if not self.writing:
            await self._writable

    async def round_trip(self, message: bytes) -> None:
        self._missing = len(message)
        self._arrived = asyncio.get_running_loop().create_future()
        self.transport.write(message)
        await self._arrived

    async def close(self) -> None:
        self.transport.close()
        await self._ended


class Client(End):
    """Connections to both ports, made when they are first needed and then kept."""

    async def open(
        self,
        *,
        server: str,
        sink: int,
        echo: int,
        timed: int,
        tls: bool = False,
        server_hostname: str = "bench",
        congestion: str = "",
        **_: Any,
    ) -> dict[str, Any]:
        """Keeps where the server is; fails where the kernel has no congestion control of that name."""
        _raise_file_limit()
        self._ports = {"sink": (server, sink), "echo": (server, echo), "timed": (server, timed)}
        self._congestion = congestion
        self._socket().close()
        self._tls: dict[str, Any] = {"ssl": client_context(), "server_hostname": server_hostname} if tls else {}
        self._bulk: _Connection | None = None
        self._echo: _Connection | None = None
        self._held: list[_Connection] = []
        return {}

    def _socket(self) -> socket.socket:
        """One that has the chosen congestion control."""
        made = socket.socket()
        try:
            if self._congestion:
                made.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, self._congestion.encode())
        except OSError as error:
            made.close()
            raise OSError(f"the kernel has no TCP congestion control {self._congestion}: {error}") from None
        made.setblocking(False)
        return made

    async def send_for(self, seconds: float, window: int = 0) -> dict[str, Any]:
        """A fresh connection, written to for so long; answers with the time before the first byte, and how it went."""
        loop, made = asyncio.get_running_loop(), self._socket()
        try:
            async with asyncio.timeout(DIAL_SECONDS):
                await loop.sock_connect(made, self._ports["timed"])
        except BaseException:
            made.close()
            raise
        # What is left in the send buffer goes with the connection instead of into the next round.
        made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        _, connection = await loop.create_connection(_Connection, sock=made)
        block, reason = bytes(BLOCK_BYTES), ""
        started = time.monotonic_ns()
        try:
            async with asyncio.timeout(seconds):
                while not connection.transport.is_closing():
                    await connection.write(block)
            reason = "the connection ended"
        except TimeoutError:
            pass
        except ConnectionError as error:
            reason = str(error)
        connection.transport.abort()
        return {"start": started, "reason": reason}

    async def _connect(self, port: str) -> _Connection:
        loop = asyncio.get_running_loop()
        transport, protocol = await loop.create_connection(_Connection, *self._ports[port], **self._tls)
        if self._tls and (cipher := transport.get_extra_info("cipher")[0]) != CIPHER:
            raise ValueError(f"TLS chose {cipher}: the comparison needs {CIPHER}")
        return protocol

    async def send(self, size: int) -> dict[str, Any]:
        """`size` bytes; answers with the time before the first."""
        if self._bulk is None:
            self._bulk = await self._connect("sink")
        block = bytes(BLOCK_BYTES)
        started = time.monotonic_ns()
        for _ in range(size // BLOCK_BYTES):
            await self._bulk.write(block)
        return {"start": started}

    async def echo(self, count: int, size: int) -> list[float]:
        """Microseconds of each round trip; on one of the held connections if there are any."""
        if self._held:
            self._echo = self._held[0]
        elif self._echo is None:
            self._echo = await self._connect("echo")
        connection, message, times = self._echo, bytes(size), []
        for _ in range(count):
            started = time.perf_counter_ns()
            await connection.round_trip(message)
            times.append((time.perf_counter_ns() - started) / 1e3)
        return times

    async def dial(self, count: int, size: int) -> dict[str, list[float]]:
        """Microseconds from each connect to the first echo, and of each close."""
        message, opened, closed = bytes(size), [], []
        for _ in range(count):
            started = time.perf_counter_ns()
            connection = await self._connect("echo")
            await connection.round_trip(message)
            echoed = time.perf_counter_ns()
            await connection.close()
            opened.append((echoed - started) / 1e3)
            closed.append((time.perf_counter_ns() - echoed) / 1e3)
        return {"open": opened, "close": closed}

    async def hold(self, count: int) -> None:
        """`count` connections that stay idle."""
        for start in range(0, count, CONNECTS_AT_ONCE):
            numbers = range(start, min(start + CONNECTS_AT_ONCE, count))
            self._held += await asyncio.gather(*(self._connect("echo") for _ in numbers))


def _raise_file_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
