"""The node room: what turns the sans-IO core into awaitable `coreapi` objects (L8, L9)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pilot.node.config import NodeConfig
from pilot.node.datagrams import Datagram, DatagramInbox
from pilot.node.echo import ECHO_PORT
from pilot.node.listener import Listener
from pilot.node.node import Node
from pilot.node.stats import NodeStats, PeerStats
from pilot.node.stream import Stream

if TYPE_CHECKING:
    from pilot import coreapi
    from pilot.node.directory import Directory
    from pilot.node.identity import LocalIdentity
    from pilot.node.streams import NodeStreams

    def _fits_the_contract(
        streams: NodeStreams, stream: Stream, listener: Listener, identity: LocalIdentity, resolver: Directory
    ) -> tuple[coreapi.Streams, coreapi.Stream, coreapi.Listener, coreapi.Identity, coreapi.PeerResolver]:
        """The type checker holds every signature to `coreapi` here."""
        return streams, stream, listener, identity, resolver


__all__ = [
    "ECHO_PORT",
    "Datagram",
    "DatagramInbox",
    "Listener",
    "Node",
    "NodeConfig",
    "NodeStats",
    "PeerStats",
    "Stream",
]
