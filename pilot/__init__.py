"""Pilot Protocol, whole, inside a Python process: an overlay network for agents (top of the package).

    import pilot

    async def main():
        async with pilot.Node(registry="127.0.0.1:9000", hostname="alice", state_dir="alice", public=True) as node:
            async with await node.dial("bob", 7, timeout=5) as stream:
                await stream.write(b"hello")
                print(await stream.read())

    pilot.run(main())

Importing any room imports this module first, so it loads none of them before one of its names is used.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from pilot._fast.addr import Addr
    from pilot._fast.errors import (
        BusyError,
        ClosedError,
        InvalidValueError,
        PathError,
        PeerNotFoundError,
        PilotError,
        RefusedError,
        RegistryError,
        RegistryStartedError,
        ResetError,
        ServiceNotReadyError,
    )
    from pilot._run import run
    from pilot.coreapi import PeerInfo
    from pilot.node import Datagram, DatagramInbox, Listener, Node, NodeConfig, NodeStats, Stream

__all__ = [
    "Addr",
    "BusyError",
    "ClosedError",
    "Datagram",
    "DatagramInbox",
    "InvalidValueError",
    "Listener",
    "Node",
    "NodeConfig",
    "NodeStats",
    "PathError",
    "PeerInfo",
    "PeerNotFoundError",
    "PilotError",
    "RefusedError",
    "RegistryError",
    "RegistryStartedError",
    "ResetError",
    "ServiceNotReadyError",
    "Stream",
    "__version__",
    "run",
]

__version__: Final = "0.1.0"

_ROOMS: Final = ("pilot._run", "pilot._fast.errors", "pilot._fast.addr", "pilot.coreapi", "pilot.node")
"""Where the names are, cheapest to load first."""

logging.getLogger("pilot").addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    if name in __all__:
        for room in _ROOMS:
            module = importlib.import_module(room)
            if hasattr(module, name):
                value = globals()[name] = getattr(module, name)
                return value
    raise AttributeError(f"module 'pilot' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
