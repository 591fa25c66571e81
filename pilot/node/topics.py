"""The event topics that strangers can trigger, and so are limited: the node's own and those of the stock plugins (L9).

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
    "dataexchange.ack_failed",
    "datagram.port_rejected",
    "datagram.rejected",
    "file.received",
    "handshake.auto_approved",
    "handshake.pending",
    "handshake.received",
    "inbox.full",
    "message.received",
    "policy.eval_error",
    "policy.join_denied",
    "pubsub.publish_denied",
    "pubsub.published",
    "pubsub.rate_limited",
    "pubsub.subscribe_denied",
    "pubsub.subscribed",
    "pubsub.unsubscribed",
    "received.full",
    "security.nonce_replay",
    "security.src_spoofed",
    "security.syn_rate_limited",
    "syn.port_rejected",
    "syn.rejected",
    "trust.changed",
    "trust.revoked_by_peer",
    "tunnel.desync_salvage",
    "tunnel.established",
    "tunnel.path_recovered",
    "tunnel.path_suspect",
    "tunnel.peer_added",
    "tunnel.rekey_gave_up",
    "tunnel.relay_activated",
)
"""Published at most 100 times a second each; the rest is only counted, `EventBus.suppressed`."""
