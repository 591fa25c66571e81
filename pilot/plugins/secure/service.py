"""`SecureService`: runs a handler for every secure channel that peers open to a port (plugin, L11)."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

from pilot.coreapi import PeerNotFoundError, PilotError, Service
from pilot.plugins._serving import StreamServer
from pilot.plugins.secure.authentication import Authentication, KeyLookup
from pilot.plugins.secure.channel import SecureChannel
from pilot.plugins.secure.handshake import PORT
from pilot.plugins.secure.records import MAX_RECORD_BYTES
from pilot.plugins.secure.replay import ReplayCache

if TYPE_CHECKING:
    from pilot.coreapi import Deps, PeerResolver, Stream

__all__ = ["MAX_CHANNELS", "MAX_CHANNELS_PER_PEER", "SecureService", "resolved_keys"]

MAX_CHANNELS: Final = 64
MAX_CHANNELS_PER_PEER: Final = 8
"""A channel may hold some 48 MiB of its peer's largest record; `max_record_bytes` lowers that."""
STOP_SECONDS: Final = 2.0
"""For handlers to end by themselves when the service stops."""


class SecureService(Service):
    """Listens on port 443, or another, and calls `handle(channel)` for every channel whose handshake succeeded.

    With `authenticate` peers must prove who they are, by the keys that the directory, or `lookup`, has for them. The
    channel is closed when the handler returns and reset when it raises; broken streams are no crash. Unlike other
    plugins it brings no behaviour of its own and so has no entry point: give a node the object,
    `Node(services=[SecureService(handle)])`.
    """

    name = "secure"
    order = 130

    def __init__(
        self,
        handle: Callable[[SecureChannel], Awaitable[None]],
        *,
        port: int = PORT,
        authenticate: bool = True,
        lookup: KeyLookup | None = None,
        max_record_bytes: int = MAX_RECORD_BYTES,
        wall: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._handle = handle
        self._port = port
        self._authenticate = authenticate
        self._lookup = lookup
        self._max_record_bytes = max_record_bytes
        self._wall = wall
        self._clock = clock
        self._server: StreamServer | None = None

    async def start(self, deps: Deps) -> None:
        """Opens the port.

        Raises:
            BusyError: somebody listens there already.
        """
        auth: Authentication | None = None
        if self._authenticate:
            lookup = self._lookup or resolved_keys(deps.resolver)
            auth = Authentication(deps.identity, lookup=lookup, wall=self._wall, replays=ReplayCache(self._clock))

        async def serve(stream: Stream) -> None:
            try:
                accepted = SecureChannel.accept(stream, auth=auth, max_record_bytes=self._max_record_bytes)
                async with await accepted as channel:
                    await self._handle(channel)
            except (PilotError, ConnectionError, TimeoutError, EOFError) as error:
                deps.logger.debug("a secure channel of %s ended: %s", stream.remote_addr, error)

        server = StreamServer(self.name, deps, serve, most=MAX_CHANNELS, most_per_peer=MAX_CHANNELS_PER_PEER)
        await server.start(self._port)
        self._server = server

    async def stop(self) -> None:
        """Frees the port, gives handlers 2 s to end, then cancels them."""
        server, self._server = self._server, None
        if server is not None:
            await server.stop(STOP_SECONDS)


def resolved_keys(resolver: PeerResolver) -> KeyLookup:
    """The keys that the directory has for nodes, as a lookup of an `Authentication`."""

    async def lookup(node_id: int) -> bytes | None:
        try:
            return (await resolver.resolve(node_id)).pub_key
        except PeerNotFoundError:
            return None

    return lookup
