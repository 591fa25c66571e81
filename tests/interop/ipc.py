"""An asyncio client of the official daemon's local socket, written from the protocol notes on its framing (L9)."""

from __future__ import annotations

import asyncio
import json
import struct
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.reference.addr import Address, parse_untrusted, unpack_untrusted

MAX_FRAME = 1 << 20
MAX_SEND = 1_048_512

BIND, DIAL, ACCEPT, SEND, RECV, CLOSE, CLOSE_OK, ERROR = 0x01, 0x03, 0x05, 0x06, 0x07, 0x08, 0x09, 0x0A
SEND_TO, RECV_FROM, INFO, HANDSHAKE, RESOLVE_HOSTNAME, NETWORK = 0x0B, 0x0C, 0x0D, 0x0F, 0x11, 0x1F
HEALTH, CANCEL, UNBIND, SEND_TO_CONFIRM = 0x21, 0x2B, 0x37, 0x39
HANDSHAKE_SEND, HANDSHAKE_APPROVE, HANDSHAKE_REJECT, HANDSHAKE_PENDING = 1, 2, 3, 4
HANDSHAKE_TRUSTED, HANDSHAKE_REVOKE, HANDSHAKE_WAIT = 5, 6, 7


class IpcError(Exception):
    """The daemon answered Error; the argument is its text."""


@dataclass(frozen=True, slots=True)
class Datagram:
    """What a RecvFrom frame says."""

    source: Address
    source_port: int
    destination_port: int
    data: bytes


class IpcStream:
    """One virtual connection of the daemon. `read` gives b"" at the end, however the connection ended."""

    def __init__(self, client: IpcClient, connection: int, remote: Address, remote_port: int) -> None:
        self.connection = connection
        self.remote = remote
        self.remote_port = remote_port
        self._client = client
        self._pieces: deque[bytes] = deque()
        self._unread = 0
        self._ended = False
        self._changed = asyncio.Event()

    @property
    def unread(self) -> int:
        """Bytes received and not yet read."""
        return self._unread

    @property
    def ended(self) -> bool:
        """Whether the daemon has reported the end of the connection."""
        return self._ended

    async def read(self) -> bytes:
        """Return everything received so far, waiting for the first byte; b"" at the end."""
        while not self._pieces and not self._ended:
            self._changed.clear()
            await self._changed.wait()
        data = b"".join(self._pieces)
        self._pieces.clear()
        self._take(len(data))
        return data

    async def readexactly(self, count: int) -> bytes:
        """Return `count` bytes; EOFError, with what there was, when the stream ends before."""
        data = bytearray()
        while len(data) < count:
            piece = await self.read()
            if not piece:
                raise EOFError(bytes(data))
            data += piece
        if len(data) > count:
            self._pieces.appendleft(bytes(data[count:]))
            self._unread += len(data) - count
            del data[count:]
        return bytes(data)

    async def write(self, data: bytes | bytearray | memoryview, piece: int = 65536) -> None:
        """Send in frames of `piece` bytes; waits while the daemon does not read, and that is its back-pressure."""
        view = memoryview(data)
        for start in range(0, len(view), min(piece, MAX_SEND)):
            await self._client.send(SEND, struct.pack(">I", self.connection), view[start : start + piece])

    async def close(self) -> None:
        """Close both directions and wait for CloseOK."""
        if self._client.connected:
            await self._client.request(CLOSE, struct.pack(">I", self.connection))
        self._client.forget(self.connection)
        self.end()

    def feed(self, data: bytes) -> None:
        """Take received bytes; called by the client."""
        self._pieces.append(data)
        self._unread += len(data)
        self._changed.set()

    def end(self) -> None:
        """Note the end of the connection; called by the client."""
        self._ended = True
        self._changed.set()

    def _take(self, count: int) -> None:
        self._unread -= count
        self._client.consumed(count)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class IpcListener:
    """A bound port; `accept` gives the connections in order of arrival, with their data already flowing."""

    def __init__(self, client: IpcClient, port: int) -> None:
        self.port = port
        self._client = client
        self.queue: asyncio.Queue[IpcStream] = asyncio.Queue()

    async def accept(self) -> IpcStream:
        """Return the next inbound stream."""
        return await self.queue.get()

    async def close(self) -> None:
        """Unbind; accepted streams live on."""
        self._client.listeners.pop(self.port, None)
        if self._client.connected:
            await self._client.request(UNBIND, struct.pack(">H", self.port))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class IpcClient(asyncio.Protocol):
    """One connection to the daemon. One request is outstanding at a time; others wait their turn.

    `pause_reading` and `resume_reading` stop and restart reading the socket, so that the daemon's buffers fill; with
    `high_water` that happens by itself while more than so many received bytes are unread.
    """

    def __init__(self, high_water: int | None = None) -> None:
        self.listeners: dict[int, IpcListener] = {}
        self.datagrams: asyncio.Queue[Datagram] = asyncio.Queue()
        self.connected = False
        self._high_water = high_water
        self._streams: dict[int, IpcStream] = {}
        self._unread = 0
        self._paused_by_hand = False
        self._buffer = bytearray()
        self._turn = asyncio.Lock()
        self._reply: asyncio.Future[tuple[int, bytes]] | None = None
        self._expected: Callable[[int, bytes], bool] = lambda command, body: False
        self._dialed: tuple[Address, int] = (Address(0, 0), 0)
        self._writable = asyncio.Event()
        self._gone = asyncio.Event()
        self._requests: set[asyncio.Task[bytes]] = set()

    @classmethod
    async def connect(cls, path: str | Path, *, high_water: int | None = None) -> IpcClient:
        """Return a client connected to the socket at `path`; OSError when nobody listens there."""
        loop = asyncio.get_running_loop()
        _, client = await loop.create_unix_connection(lambda: cls(high_water), str(path))
        return client

    async def disconnect(self) -> None:
        """Close the socket, as a client that exits does."""
        self._transport.abort()
        await self._gone.wait()

    # -- requests

    async def request(self, command: int, body: bytes = b"", *, timeout: float = 40.0) -> bytes:
        """Send a request and return the body of its answer.

        Raises IpcError for Error, ConnectionError when the daemon goes away, TimeoutError after `timeout` seconds. A
        cancelled or timed-out request keeps its turn until the daemon has answered it, so that answers cannot be mixed
        up; a dial is also aborted with Cancel.
        """
        task = asyncio.ensure_future(self._exchange(command, body))
        self._requests.add(task)
        task.add_done_callback(self._request_done)
        try:
            async with asyncio.timeout(timeout):
                return await asyncio.shield(task)
        except (TimeoutError, asyncio.CancelledError):
            if command == DIAL and not task.done() and self.connected:
                self._write(CANCEL)
            raise

    async def _exchange(self, command: int, body: bytes) -> bytes:
        async with self._turn:
            if not self.connected:
                raise ConnectionResetError("the daemon is gone")
            self._reply = asyncio.get_running_loop().create_future()
            self._expected = _expectation(command, body)
            if command == DIAL:
                self._dialed = unpack_untrusted(body[:6]), int.from_bytes(body[6:8], "big")
            self._write(command, body)
            try:
                answer, payload = await self._reply
            finally:
                self._reply = None
        if answer == ERROR:
            raise IpcError(payload[2:].decode())
        return payload

    def _request_done(self, task: asyncio.Task[bytes]) -> None:
        self._requests.discard(task)
        if not task.cancelled():
            task.exception()

    async def send(self, command: int, head: bytes, data: bytes | memoryview = b"") -> None:
        """Send a frame that has no answer; waits while the daemon does not read."""
        await self._writable.wait()
        if not self.connected:
            raise ConnectionResetError("the daemon is gone")
        self._write(command, head, data)
        await self._writable.wait()

    async def json(self, command: int, body: bytes = b"", *, timeout: float = 40.0) -> dict[str, Any]:
        """Send a request that is answered in JSON and return the object."""
        answer: dict[str, Any] = json.loads(await self.request(command, body, timeout=timeout))
        return answer

    async def info(self) -> dict[str, Any]:
        """Return the daemon's Info object."""
        return await self.json(INFO)

    async def health(self) -> dict[str, Any]:
        """Return the daemon's Health object."""
        return await self.json(HEALTH)

    async def resolve_hostname(self, name: str) -> Address:
        """Return the address registered under a name."""
        return parse_untrusted((await self.json(RESOLVE_HOSTNAME, name.encode()))["address"])

    async def handshake(self, sub: int, node: int | None = None, rest: bytes = b"") -> dict[str, Any]:
        """Do a trust request: a HANDSHAKE_* number, the peer, and a justification or reason."""
        return await self.json(HANDSHAKE, bytes([sub]) + (b"" if node is None else struct.pack(">I", node)) + rest)

    async def wait_trusted(self, node: int, timeout: float = 10.0) -> bool:
        """Return whether the node is trusted, after waiting for it up to `timeout` seconds."""
        rest = struct.pack(">I", int(timeout * 1000))
        return bool((await self.handshake(HANDSHAKE_WAIT, node, rest))["trusted"])

    async def dial(self, address: Address | str, port: int, *, timeout: float = 35.0) -> IpcStream:
        """Return a stream to a port of a peer; IpcError says `connection refused`, `dial timeout` and so on."""
        payload = await self.request(DIAL, _target(address, port), timeout=timeout)
        return self._streams[int.from_bytes(payload[:4], "big")]

    async def bind(self, port: int) -> IpcListener:
        """Return a listener on a port nobody has bound."""
        self.listeners[port] = listener = IpcListener(self, port)
        try:
            await self.request(BIND, struct.pack(">H", port))
        except IpcError:
            del self.listeners[port]
            raise
        return listener

    async def send_datagram(self, address: Address | str, port: int, data: bytes, *, confirm: bool = True) -> None:
        """Send a datagram; with `confirm` the daemon says whether it went to the tunnel."""
        if confirm:
            await self.request(SEND_TO_CONFIRM, _target(address, port) + data)
        else:
            await self.send(SEND_TO, _target(address, port), data)

    async def receive_datagram(self) -> Datagram:
        """Return the next datagram; the daemon gives every client every datagram, whatever its port."""
        return await self.datagrams.get()

    # -- reading

    def pause_reading(self) -> None:
        """Stop reading the socket until `resume_reading`."""
        self._paused_by_hand = True
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read again."""
        self._paused_by_hand = False
        self.consumed(0)

    def consumed(self, count: int) -> None:
        """Note that `count` received bytes were read; called by streams."""
        self._unread -= count
        below = self._high_water is None or self._unread <= self._high_water
        if self.connected and below and not self._paused_by_hand and not self._transport.is_reading():
            self._transport.resume_reading()

    def forget(self, connection: int) -> None:
        """Drop a closed stream; called by streams."""
        stream = self._streams.pop(connection, None)
        if stream is not None:
            self.consumed(stream.unread)

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=65536)
        self.connected = True
        self._writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.connected = False
        for stream in self._streams.values():
            stream.end()
        if self._reply is not None and not self._reply.done():
            self._reply.set_exception(ConnectionResetError("the daemon closed the socket"))
        self._writable.set()
        self._gone.set()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        view, offset, size = memoryview(self._buffer), 0, len(self._buffer)
        with view:
            while size - offset >= 4:
                end = offset + 4 + int.from_bytes(view[offset : offset + 4], "big")
                if end - offset > MAX_FRAME + 4:
                    raise ValueError("the daemon sent a frame above 1 MiB")
                if end > size:
                    break
                if end > offset + 4:
                    self._frame(view[offset + 4], bytes(view[offset + 5 : end]))
                offset = end
        del self._buffer[:offset]
        if self._high_water is not None and self._unread > self._high_water:
            self._transport.pause_reading()

    def _frame(self, command: int, body: bytes) -> None:
        if command == RECV:
            stream = self._streams.get(int.from_bytes(body[:4], "big"))
            if stream is not None:
                self._unread += len(body) - 4
                stream.feed(body[4:])
        elif command == ACCEPT:
            port, connection = struct.unpack_from(">HI", body)
            stream = self._open(connection, unpack_untrusted(body[6:12]), int.from_bytes(body[12:14], "big"))
            if port in self.listeners:
                self.listeners[port].queue.put_nowait(stream)
        elif command == RECV_FROM:
            ports = struct.unpack_from(">HH", body, 6)
            self.datagrams.put_nowait(Datagram(unpack_untrusted(body[:6]), *ports, body[10:]))
        else:
            self._answer(command, body)

    def _answer(self, command: int, body: bytes) -> None:
        if command == CLOSE_OK and (stream := self._streams.get(int.from_bytes(body[:4], "big"))) is not None:
            stream.end()
        if self._reply is None or self._reply.done() or not (command == ERROR or self._expected(command, body)):
            return
        if command == DIAL + 1:
            self._open(int.from_bytes(body[:4], "big"), *self._dialed)
        self._reply.set_result((command, body))

    def _open(self, connection: int, remote: Address, port: int) -> IpcStream:
        self._streams[connection] = stream = IpcStream(self, connection, remote, port)
        return stream

    def _write(self, command: int, head: bytes = b"", data: bytes | memoryview = b"") -> None:
        length = 1 + len(head) + len(data)
        self._transport.write(b"".join((length.to_bytes(4, "big"), bytes([command]), head, data)))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.disconnect()


def _expectation(command: int, body: bytes) -> Callable[[int, bytes], bool]:
    """Return the test for the answer of a request; CloseOK is also pushed, so its connection must match."""
    if command == CLOSE:
        return lambda answer, payload: answer == CLOSE_OK and payload == body
    return lambda answer, payload: answer == command + 1


def _target(address: Address | str, port: int) -> bytes:
    where = parse_untrusted(address) if isinstance(address, str) else address
    return where.pack() + struct.pack(">H", port)


async def eventually(condition: Callable[[], Awaitable[bool] | bool], timeout: float = 10.0) -> None:
    """Return when `condition` is true, asked every 20 ms; TimeoutError after `timeout` seconds."""
    async with asyncio.timeout(timeout):
        while True:
            result = condition()
            if await result if isinstance(result, Awaitable) else result:
                return
            await asyncio.sleep(0.02)
