"""Names of stream states and wake-up bits, and the statistics snapshot (_fast, L7)."""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import NamedTuple


class StreamState(IntEnum):
    """Where a stream is in its life."""

    SYN_SENT = 0
    ESTABLISHED = 1
    CLOSING = 2
    FIN_WAIT = 3
    TIME_WAIT = 4
    CLOSED = 5


class Wake(IntFlag):
    """What a stream's owner can wait for; CLOSED is always delivered, once."""

    OPEN = 1
    READ = 2
    WRITE = 4
    ACKED = 8
    CLOSED = 16


class StreamStats(NamedTuple):
    """A snapshot of one stream. Times in seconds, sizes in bytes."""

    state: StreamState
    written: int
    acknowledged: int
    received: int
    unread: int
    in_flight: int
    segments_sent: int
    segments_received: int
    retransmissions: int
    srtt: float
    congestion_window: int
    segment_bytes: int
    peer_window_slots: int
