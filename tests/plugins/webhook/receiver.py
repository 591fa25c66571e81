"""A small HTTP/1.1 server that records what a webhook sends and answers as told (test support)."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

Answer = Callable[["Request"], "bytes | None"]


@dataclass(frozen=True)
class Request:
    """One request as it came, and when, in seconds of the loop's clock."""

    line: str
    headers: dict[str, str]
    body: bytes
    time: float

    @property
    def json(self) -> dict[str, Any]:
        """The body as an object."""
        value: dict[str, Any] = json.loads(self.body)
        return value


def status(code: int, *headers: str) -> bytes:
    """An empty answer."""
    return "\r\n".join([f"HTTP/1.1 {code} Because", *headers, "Content-Length: 0", "", ""]).encode()


@dataclass
class Receiver:
    """What has come so far; `answer` decides what goes back, None: nothing, the connection stays open."""

    answer: Answer = lambda request: status(204)
    requests: list[Request] = field(default_factory=list)
    port: int = 0
    host: str = ""
    writers: set[asyncio.StreamWriter] = field(default_factory=set)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://{self.host}:{self.port}/hook?a=1"

    def events(self) -> list[str]:
        """The topics received."""
        return [request.json["event"] for request in self.requests]

    async def received(self, count: int, timeout: float = 10.0) -> list[Request]:
        """The first `count` requests, once so many have come."""
        async with asyncio.timeout(timeout):
            while len(self.requests) < count:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        return self.requests[:count]

    def close_connections(self) -> None:
        """Ends all connections at once."""
        for writer in self.writers:
            writer.transport.abort()
        self.writers.clear()

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, several requests."""
        self.writers.add(writer)
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                line, *fields = head.decode("latin-1").rstrip().split("\r\n")
                headers = {key.lower(): value.strip() for key, value in (field.split(":", 1) for field in fields)}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                request = Request(line, headers, body, asyncio.get_running_loop().time())
                self.requests.append(request)
                answer = self.answer(request)
                if answer is None:
                    await reader.read()
                    return
                writer.write(answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def receiver(
    host: str = "127.0.0.1", answer: Answer | None = None, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Receiver]:
    """A running one."""
    made = Receiver(host=host)
    if answer is not None:
        made.answer = answer
    server = await asyncio.start_server(made.converse, host, 0, ssl=tls)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()
        made.close_connections()
