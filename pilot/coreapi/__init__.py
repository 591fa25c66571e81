"""The contract between a node and its plugins: protocols and records, no I/O (L10).

Plugins import this package and nothing else of `pilot`; the node implements it. Names follow the Go package `coreapi`
of the official daemon; methods and fields are `snake_case`, errors are exceptions, and a context is the cancellation of
the awaiting task. Everything belongs to the loop and thread of the node that handed it out.
"""

from pilot._fast.addr import Addr
from pilot._fast.errors import PeerNotFoundError
from pilot.coreapi.identity import Identity
from pilot.coreapi.resolver import PeerInfo, PeerResolver
from pilot.coreapi.streams import Listener, Stream, Streams

__all__ = [
    "Addr",
    "Identity",
    "Listener",
    "PeerInfo",
    "PeerNotFoundError",
    "PeerResolver",
    "Stream",
    "Streams",
]
