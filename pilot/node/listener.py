"""`Listener`: the accepted streams of one port, and `serving`, one task per stream (L9)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Final, Self

from pilot._fast.errors import ClosedError, PilotError
from pilot.node.stream import Stream
from pilot.node.waiting import Inbox

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from types import TracebackType

    from pilot._fast.addr import Addr
    from pilot._fast.mux import Mux
    from pilot._fast.stream import StreamCore
    from pilot.node.home import Home

    Handler = Callable[[Stream], Awaitable[object]]

__all__ = ["Listener", "serving"]

AFTER_CRASH_SECONDS: Final = 1.0
"""Until streams are taken again after that itself has failed."""

_log = logging.getLogger("pilot.node")


class Listener:
    """Takes the streams that peers open to one port, a `coreapi.Listener`. Comes from `Node.listen`."""

    __slots__ = ("__weakref__", "_core", "_home", "_inbox", "_mux", "_on_close", "_own_addr", "_port")

    def __init__(
        self,
        mux: Mux,
        home: Home,
        own_addr: Callable[[], Addr],
        port: int,
        backlog: int,
        on_close: Callable[[Listener], None],
    ) -> None:
        self._home = home
        self._mux = mux
        self._own_addr = own_addr
        self._inbox: Inbox[Stream] = Inbox(home.loop)
        self._on_close = on_close
        self._core = mux.listen(port, backlog, self)
        self._port = self._core.port

    @property
    def addr(self) -> Addr:
        """The address listened on: the node's own, also after the registry gave it another one."""
        return self._own_addr()

    @property
    def port(self) -> int:
        """The port listened on; the chosen one where 0 was asked for."""
        return self._port

    async def accept(self) -> Stream:
        """The next stream, in the order of arrival. Cancelling it loses none.

        Raises:
            ClosedError: the listener is closed.
            BusyError: the node belongs to another loop or thread.
        """
        self._home.check()
        stream = await self._inbox.take()
        self._core.queued -= 1
        return stream

    async def close(self) -> None:
        """Frees the port and resets the streams nobody accepted. Accepted streams live on. May be repeated.

        Does not wait, so there is nothing to cancel.

        Raises:
            BusyError: the node belongs to another loop or thread.
        """
        self._home.check()
        if self._inbox.closed:
            return
        self._mux.unlisten(self._core)
        for stream in self._inbox.close(self._closed_error):
            stream.abort()
        self._on_close(self)

    def _closed_error(self) -> ClosedError:
        return ClosedError(f"the listener on port {self._port} is closed")

    def __aiter__(self) -> Self:
        """Streams as `accept` returns them, until the listener is closed."""
        return self

    async def __anext__(self) -> Stream:
        """The next stream. Cancelling it loses none."""
        try:
            return await self.accept()
        except ClosedError:
            raise StopAsyncIteration from None

    async def __aenter__(self) -> Self:
        """The listener itself."""
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        """Closes the listener."""
        await self.close()

    def _on_stream(self, core: StreamCore) -> None:
        """The core has accepted a stream."""
        self._inbox.put(Stream(core, self._home))

    def __repr__(self) -> str:
        return f"<Listener {self.addr}:{self._port}{' closed' if self._inbox.closed else ''}>"


@contextlib.asynccontextmanager
async def serving(listen: Callable[[int], Awaitable[Listener]], port: int, handler: Handler) -> AsyncIterator[Listener]:
    """Calls `listen` for `port` and runs `handler` in a task of its own for each stream, while the block runs.

    A stream is closed when its handler returns and reset when it raises, which ends that stream only and is logged.
    When taking streams fails that is logged, and they are taken again a second later. At the end of the block the port
    is freed, handlers that still run are cancelled and their streams reset.
    """
    async with await listen(port) as listener:
        server = asyncio.create_task(_serve(listener, handler), name=f"pilot serve {listener.port}")
        try:
            yield listener
        finally:
            server.cancel()
            await asyncio.wait([server])


async def _serve(listener: Listener, handler: Handler) -> None:
    async with asyncio.TaskGroup() as tasks:
        while True:
            try:
                async for stream in listener:
                    tasks.create_task(_handle(stream, handler), name=f"pilot stream {listener.port}")
                return  # the listener is closed
            except Exception:
                _log.exception("taking streams on port %d failed; next try in %g s", listener.port, AFTER_CRASH_SECONDS)
            await asyncio.sleep(AFTER_CRASH_SECONDS)


async def _handle(stream: Stream, handler: Handler) -> None:
    try:
        async with stream:
            await handler(stream)
    except (PilotError, TimeoutError, EOFError) as error:
        _log.info("stream %s ended: %s", stream, error)  # the peer's doing, not a defect of the handler
    except Exception:
        _log.exception("the handler of %s failed; the stream was reset", stream)
