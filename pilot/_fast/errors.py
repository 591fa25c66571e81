"""Every exception `pilot` raises on purpose: one base, ten leaves, each also a built-in (_fast, ground floor).

Timeouts are the built-in `TimeoutError`. A message says what was tried, with which peer, and what to do next.
"""

from __future__ import annotations

__all__ = [
    "BusyError",
    "ClosedError",
    "InvalidValueError",
    "PathError",
    "PeerNotFoundError",
    "PilotError",
    "RefusedError",
    "RegistryError",
    "RegistryStartedError",
    "ResetError",
    "ServiceNotReadyError",
]


class PilotError(Exception):
    """Base of every exception this library raises on purpose, timeouts excepted (those are `TimeoutError`)."""


class InvalidValueError(PilotError, ValueError):
    """A value that cannot be used: an address, port, name, setting or file. The message quotes it and names the fix."""


class PeerNotFoundError(PilotError, LookupError):
    """The directory has no record of the peer, or refuses to show it to this node."""


class RefusedError(PilotError, ConnectionRefusedError):
    """The peer answered that nobody listens on the port (or that it takes no more streams)."""


class ResetError(PilotError, ConnectionResetError):
    """The peer ended the stream with a reset; bytes under way may be lost."""


class PathError(PilotError, ConnectionAbortedError):
    """No path to the peer works (any more): everything sent for too long went unanswered."""


class ClosedError(PilotError, ConnectionError):
    """This end has closed the object already: a stream, a listener or the node."""


class BusyError(PilotError, RuntimeError):
    """The object is used wrongly at the same time: two readers, another thread or loop, a bound port, a full table."""


class RegistryError(PilotError, ConnectionError):
    """The registry could not be reached or refused the request; its own words are in the message."""


class RegistryStartedError(PilotError, RuntimeError):
    """A service was registered after the service registry had started."""


class ServiceNotReadyError(PilotError, RuntimeError):
    """A service was used that has not completed its start."""
