"""Reaching a peer: starts the tunnel's first contact and lets tasks wait for its outcome (L9)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from pilot._fast.addr import Addr
from pilot._fast.errors import ClosedError, PathError, PilotError
from pilot.tunnel.interfaces import ContactState

if TYPE_CHECKING:
    from collections.abc import Callable

    from pilot._fast.datapath import Datapath
    from pilot._fast.peer import Peer
    from pilot.tunnel import Tunnel

__all__ = ["Contacts"]


class Contacts:
    """Tasks that wait for a session with a node, and why the last resolve of one failed."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, datapath: Datapath, tunnel: Tunnel, clock: Callable[[], float]
    ) -> None:
        self._loop = loop
        self._datapath = datapath
        self._tunnel = tunnel
        self._clock = clock
        self._waiting: dict[int, list[asyncio.Future[None]]] = {}
        self._resolve_errors: dict[int, PilotError] = {}
        self._closed = False

    async def reach(self, node: int) -> Peer:
        """The peer entry of `node`, with a session, as soon as the key exchange is done; the own node's at once.

        Cancelled, the key exchange goes on: it is shared by all who want the peer.

        Raises:
            PeerNotFoundError, RegistryError: the directory does not tell where it is.
            PathError: it did not answer the key exchange, or no path leads there.
            ClosedError: the node has stopped.
        """
        if node == self._datapath.own_node:
            return self._datapath.own_peer()
        if self._closed:
            raise self._closed_error()
        outcome: asyncio.Future[None] = self._loop.create_future()
        waiting = self._waiting.setdefault(node, [])
        waiting.append(outcome)
        try:
            state = self._tunnel.contact(node, self._clock())
            if state is ContactState.COOLING:
                raise self._path_error(node, "it did not answer the key exchange moments ago; try again in 5 s")
            if state is not ContactState.READY:
                await outcome
        finally:
            waiting.remove(outcome)
            if outcome.done() and not outcome.cancelled():
                outcome.exception()  # seen, also where it came too late to be raised
            if not waiting and self._waiting.get(node) is waiting:
                del self._waiting[node]
        return self._datapath.add_peer(node)

    def resolve_failed(self, node: int, error: PilotError) -> None:
        """The directory's answer about `node`, in case the contact fails for it."""
        if node in self._waiting:
            self._resolve_errors[node] = error

    def session_ready(self, node: int) -> None:
        """The tunnel has a session with `node`."""
        self._resolve_errors.pop(node, None)
        for outcome in self._waiting.get(node, ()):
            if not outcome.done():
                outcome.set_result(None)

    def contact_failed(self, node: int, reason: str) -> None:
        """The tunnel gives the contact with `node` up."""
        error = self._resolve_errors.pop(node, None) or self._path_error(node, reason)
        self._fail(node, error)

    def close(self) -> None:
        """Everybody who waits gets `ClosedError`."""
        self._closed = True
        for node in list(self._waiting):
            self._fail(node, self._closed_error())

    def _fail(self, node: int, error: PilotError) -> None:
        for outcome in self._waiting.get(node, ()):
            if not outcome.done():
                outcome.set_exception(type(error)(*error.args))

    def _path_error(self, node: int, reason: str) -> PathError:
        return PathError(f"no path to {Addr(0, node)}: {reason}")

    def _closed_error(self) -> ClosedError:
        return ClosedError("the node has stopped: start another one")
