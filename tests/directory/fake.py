"""A scripted registry that answers, lies, stays silent or hangs up as a test wants (tests of L8)."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections import Counter
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Self

from pilot.node.directory import Advertisement, ClientOptions, Directory, DirectoryOptions, RegistryClient
from pilot.node.identity import LocalIdentity

Message = dict[str, Any]
Answer = Message | bytes | None

QUICK = ClientOptions(dial_timeout=2.0, answer_timeout=5.0, dial_pauses=(0.001, 0.001))


def frame(message: object) -> bytes:
    body = message if isinstance(message, bytes) else json.dumps(message).encode()
    return len(body).to_bytes(4, "big") + body


def error(text: str) -> Message:
    return {"type": "error", "error": text}


def ok(kind: str, **fields: object) -> Message:
    return {"type": f"{kind}_ok", **fields}


class ScriptedRegistry:
    """`answers[type]` is a message, raw bytes, None (silence), an exception (hangs up), or a function giving one."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.answers: dict[str, Any] = {}
        self.requests: list[Message] = []
        self.connections: list[asyncio.StreamWriter] = []
        self.used: list[int] = []
        """The index of the connection each request came on."""
        self._context = context
        self._news = asyncio.Condition()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0

    async def __aenter__(self) -> Self:
        await self.listen()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.shut()

    async def listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port, ssl=self._context)
        self.port = self._server.sockets[0].getsockname()[1]

    async def shut(self) -> None:
        """Stops listening and hangs up on everybody."""
        assert self._server is not None
        self._server.close()
        self.hang_up()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0.01)

    def hang_up(self) -> None:
        for writer in self.connections:
            writer.transport.abort()

    def kinds(self) -> Counter[str]:
        return Counter(request["type"] for request in self.requests)

    async def asked(self, kind: str, times: int = 1) -> None:
        """Returns when `kind` was asked `times` times."""
        await self._happened(lambda: self.kinds()[kind] >= times)

    async def connected(self, times: int) -> None:
        """Returns when so many connections have come."""
        await self._happened(lambda: len(self.connections) >= times)

    async def _happened(self, what: Callable[[], bool]) -> None:
        async with asyncio.timeout(10), self._news:
            await self._news.wait_for(what)

    async def _tell(self) -> None:
        async with self._news:
            self._news.notify_all()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        index = len(self.connections)
        self.connections.append(writer)
        await self._tell()
        try:
            await self._serve(reader, writer, index)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, index: int) -> None:
        while True:
            length = int.from_bytes(await reader.readexactly(4), "big")
            request: Message = json.loads(await reader.readexactly(length))
            self.requests.append(request)
            self.used.append(index)
            await self._tell()
            answer = self.answers.get(request["type"], error("unknown message type"))
            if isinstance(answer, list):
                answer = answer.pop(0) if len(answer) > 1 else answer[0]
            if callable(answer):
                answer = answer(request)
                if isinstance(answer, Awaitable):
                    answer = await answer
            if isinstance(answer, Exception):
                return
            if answer is not None:
                writer.write(answer if isinstance(answer, bytes) else frame(answer))

    # ------------------------------------------------------------------------------------ a whole registry

    def behave(self) -> None:
        """Answers like an empty-minded but correct registry: node 1 registers, everybody else is public."""
        self.answers |= {
            "register": lambda r: ok("register", node_id=1, address="0:0000.0000.0001", public_key=r["public_key"]),
            "heartbeat": lambda r: ok("heartbeat", time=1),
            "set_visibility": lambda r: ok("set_visibility"),
            "set_hostname": lambda r: ok("set_hostname"),
            "report_trust": lambda r: ok("report_trust"),
            "resolve": lambda r: ok("resolve", node_id=r["node_id"], real_addr="192.0.2.1:4000"),
            "lookup": lambda r: ok("lookup", node_id=r["node_id"], public=True, public_key="A" * 43 + "="),
            "resolve_hostname": lambda r: ok("resolve_hostname", node_id=7),
        }

    def client(self, options: ClientOptions = QUICK, **more: Any) -> RegistryClient:
        return RegistryClient("127.0.0.1", self.port, options=options, **more)

    def directory(
        self,
        identity: LocalIdentity | None = None,
        *,
        client: ClientOptions = QUICK,
        advertise: Callable[[], Advertisement] = lambda: Advertisement("127.0.0.1:4000"),
        **options: Any,
    ) -> Directory:
        return Directory(
            self.client(client), identity or LocalIdentity.generate(), advertise, DirectoryOptions(**options)
        )
