"""`PluginScope`: what one plugin has opened, so that nothing of it outlives the plugin (L10)."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Self, TypeVar
from weakref import WeakSet

from pilot._fast.errors import ClosedError

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Buffer

    from pilot._fast.addr import Addr
    from pilot.coreapi.events import EventBus, Subscription
    from pilot.coreapi.service import Deps
    from pilot.coreapi.streams import Listener, Stream, Streams

__all__ = ["PluginScope"]

T = TypeVar("T")


class PluginScope:
    """The `Deps` of one life of a plugin, and a list of what it opened through them."""

    def __init__(self, plugin: str, deps: Deps) -> None:
        self.plugin = plugin
        self.closed = False
        self.deps = dataclasses.replace(
            deps,
            streams=_ScopedStreams(self, deps.streams),
            events=_ScopedEvents(self, deps.events),
            logger=logging.getLogger(f"pilot.plugin.{plugin}"),
        )
        self.listeners: set[_ScopedListener] = set()
        self.streams: WeakSet[Stream] = WeakSet()
        self.subscriptions: list[Subscription] = []

    def run(self, call: Callable[[], Awaitable[T]]) -> asyncio.Task[T]:
        """`call()` in a task of its own, named after the plugin."""

        async def inside() -> T:
            return await call()

        return asyncio.create_task(inside(), name=f"pilot plugin {self.plugin}")

    def check(self) -> None:
        """Raises `ClosedError` once the plugin has stopped."""
        if self.closed:
            raise ClosedError(f"plugin {self.plugin} has stopped: a new start brings new dependencies")

    async def close(self) -> None:
        """Closes listeners and subscriptions, resets open streams. Does not raise.

        Tasks the plugin left behind end when they next use what is closed here; nobody can tell them from tasks that
        others made on its behalf, so none is cancelled.
        """
        self.closed = True
        for subscription in self.subscriptions:
            subscription.close()
        for listener in list(self.listeners):
            await self._quietly(listener.close())
        for stream in list(self.streams):
            error = ClosedError(f"plugin {self.plugin} has stopped")
            await self._quietly(stream.__aexit__(ClosedError, error, None))

    async def _quietly(self, closing: Awaitable[None]) -> None:
        try:
            await closing
        except Exception:
            self.deps.logger.exception("what plugin %s left open could not be closed", self.plugin)

    def keep_subscription(self, subscription: Subscription) -> None:
        """Remembers it, and forgets those that are closed."""
        self.subscriptions = [known for known in self.subscriptions if not known.closed]
        self.subscriptions.append(subscription)

    async def keep_stream(self, stream: Stream) -> Stream:
        """`stream`, remembered; reset where the plugin has stopped while it was opened."""
        if self.closed:
            await stream.__aexit__(ClosedError, ClosedError("stopped"), None)
            self.check()
        self.streams.add(stream)
        return stream


class _ScopedStreams:
    """`Streams` of one plugin."""

    def __init__(self, scope: PluginScope, streams: Streams) -> None:
        self._scope = scope
        self._streams = streams

    async def dial(self, dst: Addr, port: int, *, timeout: float | None = None) -> Stream:
        self._scope.check()
        return await self._scope.keep_stream(await self._streams.dial(dst, port, timeout=timeout))

    async def listen(self, port: int) -> Listener:
        self._scope.check()
        listener = _ScopedListener(self._scope, await self._streams.listen(port))
        self._scope.listeners.add(listener)
        return listener

    async def send_datagram(self, dst: Addr, port: int, data: Buffer) -> None:
        self._scope.check()
        await self._streams.send_datagram(dst, port, data)


class _ScopedListener:
    """A `Listener` of one plugin."""

    def __init__(self, scope: PluginScope, listener: Listener) -> None:
        self._scope = scope
        self._listener = listener

    @property
    def addr(self) -> Addr:
        return self._listener.addr

    @property
    def port(self) -> int:
        return self._listener.port

    async def accept(self) -> Stream:
        return await self._scope.keep_stream(await self._listener.accept())

    async def close(self) -> None:
        self._scope.listeners.discard(self)
        await self._listener.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Stream:
        try:
            return await self.accept()
        except ClosedError:
            raise StopAsyncIteration from None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<{self._scope.plugin}: {self._listener!r}>"


class _ScopedEvents:
    """The `EventBus` of one plugin; one that has stopped is heard no more."""

    def __init__(self, scope: PluginScope, events: EventBus) -> None:
        self._scope = scope
        self._events = events

    def publish(self, topic: str, payload: Mapping[str, Any]) -> None:
        if not self._scope.closed:
            self._events.publish(topic, payload)

    def subscribe(self, pattern: str = "", *, capacity: int = 1024) -> Subscription:
        self._scope.check()
        subscription = self._events.subscribe(pattern, capacity=capacity)
        self._scope.keep_subscription(subscription)
        return subscription
