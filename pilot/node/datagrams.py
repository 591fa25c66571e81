"""Inbound datagrams: bounded inboxes per port that drop the oldest and count (L9)."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from pilot._fast.errors import ClosedError
from pilot.node.waiting import Inbox

if TYPE_CHECKING:
    from types import TracebackType

    from pilot._fast.addr import Addr
    from pilot.node.home import Home

__all__ = ["Datagram", "DatagramInbox", "Datagrams"]

INBOX_BYTES: Final = 4 * 1024 * 1024
"""Bytes one inbox holds at most; senders are strangers, and a datagram may be 65 kB."""


@dataclass(frozen=True, slots=True)
class Datagram:
    """One datagram from a peer. `source` is authenticated by the tunnel, the ports are what the sender wrote."""

    source: Addr
    source_port: int
    port: int
    data: bytes


class DatagramInbox:
    """The datagrams to one port, in the order of arrival: `async for datagram in inbox`. Comes from `Node.datagrams`.

    Collects from its creation until `close`, or until nobody refers to it any more. When it is full the oldest datagram
    is dropped and `dropped` counts it.
    """

    __slots__ = ("__weakref__", "_bytes", "_home", "_inbox", "_limit", "_ports", "dropped", "port")

    def __init__(self, port: int, limit: int, home: Home, ports: Datagrams) -> None:
        self.port = port
        self.dropped = 0
        self._limit = limit
        self._home = home
        self._bytes = 0
        self._inbox: Inbox[Datagram] = Inbox(home.loop)
        self._ports = ports

    async def receive(self) -> Datagram:
        """The next datagram as soon as there is one. Cancelling it loses none.

        Raises:
            ClosedError: the inbox or the node is closed.
            BusyError: the node belongs to another loop or thread.
        """
        self._home.check()
        datagram = await self._inbox.take()
        self._bytes -= len(datagram.data)
        return datagram

    def close(self) -> None:
        """Stops collecting; who waits gets `ClosedError`. May be repeated."""
        self._ports.remove(self)
        self._inbox.close(lambda: ClosedError(f"the datagram inbox of port {self.port} is closed"))

    def _put(self, datagram: Datagram) -> None:
        self._inbox.put(datagram)
        self._bytes += len(datagram.data)
        while len(self._inbox) > self._limit or self._bytes > INBOX_BYTES:
            self._bytes -= len(self._inbox.take_oldest().data)
            self.dropped += 1

    def __aiter__(self) -> Self:
        """Datagrams as `receive` returns them, until the inbox or the node is closed."""
        return self

    async def __anext__(self) -> Datagram:
        """The next datagram. Cancelling it loses none."""
        try:
            return await self.receive()
        except ClosedError:
            raise StopAsyncIteration from None

    def __enter__(self) -> Self:
        """The inbox itself."""
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        """Closes the inbox."""
        self.close()


class Datagrams:
    """All inboxes of a node. An inbox nobody refers to any more stops collecting by itself."""

    def __init__(self) -> None:
        self._ports: dict[int, weakref.WeakSet[DatagramInbox]] = {}

    def add(self, inbox: DatagramInbox) -> None:
        """Delivers to `inbox` from now on."""
        self._ports.setdefault(inbox.port, weakref.WeakSet()).add(inbox)

    def remove(self, inbox: DatagramInbox) -> None:
        """Delivers nothing more to `inbox`."""
        inboxes = self._ports.get(inbox.port)
        if inboxes is not None:
            inboxes.discard(inbox)
            if not inboxes:
                del self._ports[inbox.port]

    def deliver(self, source: Addr, source_port: int, port: int, data: bytes) -> None:
        """Gives every inbox of `port` a copy; without one the datagram is lost, as on any datagram network."""
        inboxes = self._ports.get(port)
        if inboxes:
            datagram = Datagram(source, source_port, port, data)
            for inbox in list(inboxes):
                inbox._put(datagram)

    def close(self) -> None:
        """Closes every inbox."""
        for inboxes in list(self._ports.values()):
            for inbox in list(inboxes):
                inbox.close()
