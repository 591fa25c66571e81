"""Programs for simulated nodes that know what must arrive: streams both ways, slow readers, datagrams (testing, L7)."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pilot._fast.errors import ClosedError, PilotError

if TYPE_CHECKING:
    from random import Random

    from pilot.node import Node
    from pilot.node.stream import Stream
    from pilot.testing.world import Machine, World

__all__ = ["BOUND_SECONDS", "Conversation", "Side", "Traffic"]

STREAM_PORT: Final = 1000
DATAGRAM_PORT: Final = 2000
HEADER_BYTES: Final = 4
BOUND_SECONDS: Final = 900.0
"""Virtual seconds in which every conversation has ended, one way or another."""

EXPECTED = (PilotError, TimeoutError, asyncio.IncompleteReadError)
"""What a stream may end with on a bad network: the errors the documentation of `Stream` names."""


@dataclass(eq=False)
class Side:
    """One end of a conversation: what it writes, what it must get, and how it has gone."""

    out: bytes
    expect: bytes
    write_bytes: int = 65_536
    read_bytes: int = 65_536
    pause: float = 0.0
    pauses: int = 0
    stream: Stream | None = None
    got: int = 0
    eof: bool = False
    error: BaseException | None = None
    complete: bool = False

    def describe(self) -> str:
        """How far it has come."""
        stats = self.stream.stats() if self.stream is not None else None
        return f"got {self.got}/{len(self.expect)}, eof {self.eof}, error {self.error!r}, {stats}"


@dataclass(eq=False)
class Conversation:
    """One stream between two machines. `ends`: "orderly" after everything, "early" after the own bytes, or "abort"."""

    number: int
    caller: Machine
    callee: Machine
    ends: str
    dialer: Side
    acceptor: Side
    starts: float = 0.0
    abort_after: float = 0.0

    def __str__(self) -> str:
        return (
            f"conversation {self.number} ({self.caller.name} to {self.callee.name}, {self.ends}): "
            f"dialer {self.dialer.describe()}; acceptor {self.acceptor.describe()}"
        )


class Traffic:
    """All conversations and datagrams of a world. Each wrong byte is noted with the watch of the world at once."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.conversations: list[Conversation] = []
        self.received = 0
        self.datagrams = 0
        self._handlers: set[asyncio.Task[Any]] = set()
        self._servers: list[asyncio.Task[None]] = []
        self._sent: dict[bytes, Machine] = {}

    # ---------------------------------------------------------------------------------------------- who serves

    def serve(self, machine: Machine) -> None:
        """Answers on `machine` from now on, until it stops; to be called again after a restart."""
        self._servers.append(machine.spawn(self._serve(machine.node)))
        self._servers.append(machine.spawn(self._collect(machine)))

    async def _serve(self, node: Node) -> None:
        try:
            async with node.serve(STREAM_PORT, self._answer):
                await node.closed()
        except ClosedError:
            pass

    async def _collect(self, machine: Machine) -> None:
        try:
            with machine.node.datagrams(DATAGRAM_PORT) as inbox:
                async for datagram in inbox:
                    self.datagrams += 1
                    if datagram.data not in self._sent:
                        self.world.watch.violated(f"{machine.name} got a datagram nobody sent: {datagram!r:.80}")
        except ClosedError:
            pass

    async def _answer(self, stream: Stream) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._handlers.add(task)
        try:
            header = await stream.readexactly(HEADER_BYTES)
            number = int.from_bytes(header, "big")
            if number >= len(self.conversations):
                self.world.watch.violated(f"a stream began with {header!r}")
                return
            conversation = self.conversations[number]
            side = conversation.acceptor
            if side.stream is not None:
                self.world.watch.violated(f"conversation {number} was accepted twice")
                return
            side.stream = stream
            await self._both(conversation, side, conversation.dialer)
            if side.error is None and not side.eof:
                await self._until_end(conversation, side, conversation.dialer)
            if side.error is not None:
                stream.abort()
        except asyncio.IncompleteReadError as error:
            if error.partial:
                self.world.watch.violated(f"a header was cut short in silence: {error.partial!r}")
        except (PilotError, TimeoutError):
            pass  # before the header: nobody was promised anything
        finally:
            self._handlers.discard(task)

    # ----------------------------------------------------------------------------------------------- who calls

    async def call(self, conversation: Conversation) -> None:
        """Plays the caller's part; returns when its stream has ended."""
        await asyncio.sleep(conversation.starts)
        side = conversation.dialer
        try:
            async with asyncio.timeout(BOUND_SECONDS) as scope:
                await self._call(conversation, side)
        except EXPECTED as error:
            if scope.expired():
                self.world.watch.violated(f"no end within {BOUND_SECONDS:g} s: {conversation}")
            side.error = side.error or error

    async def _call(self, conversation: Conversation, side: Side) -> None:
        node = conversation.caller.node
        stream = side.stream = await node.dial(conversation.callee.node.address, STREAM_PORT)
        async with stream:
            await stream.write(conversation.number.to_bytes(HEADER_BYTES, "big"))
            if conversation.ends == "abort":
                self.world.loop.call_later(conversation.abort_after, self._abort, stream)
                await self._both(conversation, side, conversation.acceptor)
            elif conversation.ends == "early":
                await self._write(side)
            else:
                await self._both(conversation, side, conversation.acceptor)
                if side.error is None and not side.eof:
                    await stream.drain()
                    side.complete = True
            if side.error is not None:
                stream.abort()

    @staticmethod
    def _abort(stream: Stream) -> None:
        if not stream.closed:
            stream.abort()

    async def send_datagrams(self, caller: Machine, callee: Machine, count: int, random: Random) -> None:
        """Sends `count` datagrams, of which any may be lost, and none may arrive that was not sent."""
        for _ in range(count):
            data = random.randbytes(random.randrange(8, 1000))
            self._sent[data] = caller
            try:
                await caller.node.send_datagram(callee.node.address, DATAGRAM_PORT, data)
            except EXPECTED:
                return
            await asyncio.sleep(random.random() * 0.2)

    # -------------------------------------------------------------------------------------- reading and writing

    async def _both(self, conversation: Conversation, side: Side, other: Side) -> None:
        outcomes = await asyncio.gather(
            self._write(side), self._read(conversation, side, other), return_exceptions=True
        )
        for outcome in outcomes:
            if isinstance(outcome, ClosedError) and side.eof:
                continue  # the other end was done first: there is no half close
            if isinstance(outcome, EXPECTED):
                side.error = side.error or outcome
            elif isinstance(outcome, BaseException):
                raise outcome
        if isinstance(outcomes[1], BaseException):
            return
        if isinstance(side.error, ClosedError):
            side.error = None  # a write met the end that the reader then saw
            if not side.eof:
                await self._until_end(conversation, side, other)

    async def _write(self, side: Side) -> None:
        stream = side.stream
        assert stream is not None
        view = memoryview(side.out)
        for at in range(0, len(view), side.write_bytes):
            await stream.write(view[at : at + side.write_bytes])

    async def _read(self, conversation: Conversation, side: Side, other: Side) -> None:
        while side.got < len(side.expect) and not side.eof:
            await self._take(conversation, side, other)

    async def _until_end(self, conversation: Conversation, side: Side, other: Side) -> None:
        """The other end closes when it is done."""
        try:
            async with asyncio.timeout(BOUND_SECONDS) as scope:
                while not side.eof:
                    await self._take(conversation, side, other)
        except EXPECTED as error:
            if scope.expired():
                self.world.watch.violated(f"no end of stream within {BOUND_SECONDS:g} s: {conversation}")
            side.error = side.error or error

    async def _take(self, conversation: Conversation, side: Side, other: Side) -> None:
        stream = side.stream
        assert stream is not None
        data = await stream.read(side.read_bytes)
        if not data:
            side.eof = True
            self._check_end(conversation, side, other)
            return
        if side.expect[side.got : side.got + len(data)] != data:
            self.world.watch.violated(f"wrong bytes at {side.got}: {conversation}")
            stream.abort()
            raise ClosedError("wrong bytes")
        side.got += len(data)
        self.received += len(data)
        if side.pauses:
            side.pauses -= 1
            await asyncio.sleep(side.pause)

    def _check_end(self, conversation: Conversation, side: Side, other: Side) -> None:
        """An end of stream says: that was all. So it must be all that the other end wrote."""
        header = HEADER_BYTES if side is conversation.acceptor else 0
        written = other.stream.written if other.stream is not None else header
        if side.got + header != written:
            self.world.watch.violated(f"cut short in silence, {written} bytes were written: {conversation}")

    # ------------------------------------------------------------------------------------------------- the end

    async def settle(self) -> None:
        """Returns when every handler has ended, or notes those that do not; then nobody serves any more."""
        if self._handlers:
            _, late = await asyncio.wait(set(self._handlers), timeout=BOUND_SECONDS)
            if late:
                self.world.watch.violated(f"{len(late)} handlers do not end")
        for server in self._servers:
            server.cancel()
        if self._servers:
            await asyncio.wait(self._servers)
        for server in self._servers:
            error = None if server.cancelled() else server.exception()
            if error is not None:
                self.world.watch.violated(f"a server ended with {error!r}")

    def check_calm(self) -> None:
        """On a network that is merely imperfect every orderly conversation succeeds."""
        for conversation in self.conversations:
            if conversation.ends != "orderly":
                continue
            dialer, acceptor = conversation.dialer, conversation.acceptor
            whole = dialer.complete and acceptor.eof and acceptor.error is None
            if not whole or acceptor.got != len(acceptor.expect):
                self.world.watch.violated(f"failed without a cause: {conversation}")
