"""The event topics of the node itself that strangers can trigger, and so are limited (L9).

Source: services.md 8.2; docs/EVENTS.md lists all topics with their keys.
"""

from __future__ import annotations

from typing import Final

__all__ = ["STRANGER_TOPICS"]

STRANGER_TOPICS: Final = (
    "conn.accept_queue_full",
    "conn.dead_peer",
    "conn.established",
    "conn.fin",
    "conn.idle_timeout",
    "conn.rst",
    "conn.syn_received",
    "data.datagram",
    "datagram.port_rejected",
    "datagram.rejected",
    "security.nonce_replay",
    "security.src_spoofed",
    "security.syn_rate_limited",
    "syn.port_rejected",
    "syn.rejected",
    "tunnel.established",
    "tunnel.path_recovered",
    "tunnel.path_suspect",
    "tunnel.peer_added",
    "tunnel.rekey_gave_up",
    "tunnel.relay_activated",
)
"""Published at most 100 times a second each; the rest is only counted, `EventBus.suppressed`."""
