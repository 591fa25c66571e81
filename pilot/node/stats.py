"""What a node tells about itself: small frozen records, pulled, never pushed (L9)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["NodeStats", "PeerStats"]


@dataclass(frozen=True, slots=True)
class PeerStats:
    """One tunnel at this moment. Times in seconds."""

    node_id: int
    path: str
    """`direct`, `relay`, or `none` while no path is known."""
    endpoint: tuple[str, int] | None
    """The peer's UDP address, None while it is reached by relay only."""
    encrypted: bool
    """Whether a session key is installed."""
    authenticated: bool
    """Whether that key was signed by the key the registry holds for the node."""
    rtt: float | None
    """Smoothed round trip, None before the first measurement."""
    segment_bytes: int
    """Most stream bytes a packet on this path carries."""
    open_streams: int
    silence: float | None
    """Since the last packet that came from it, None when none ever did."""


@dataclass(frozen=True, slots=True)
class NodeStats:
    """A node at this moment; counters run from its start."""

    uptime: float
    """Seconds since the start."""
    peers: tuple[PeerStats, ...]
    streams: int
    """Open at this moment."""
    bytes_in: int
    """Of UDP payload, as `datagrams_in`, `bytes_out` and `datagrams_out`; 0 on a port that does not count."""
    bytes_out: int
    datagrams_in: int
    datagrams_out: int
    counters: Mapping[str, int]
    """Everything else the data path and the tunnel count, by name."""
