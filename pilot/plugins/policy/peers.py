"""The peers a runner tracks, and the file that remembers them (plugin policy, L11).

Source: services.md 9.4 (tags, age) and 9.8 (the file, byte for byte as the official daemon writes it).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from pilot.coreapi import InvalidValueError
from pilot.plugins.policy.gojson import encode
from pilot.plugins.policy.timestamps import SECOND_NS, ZERO_TIME, format_time, parse_time_untrusted

__all__ = ["MAX_STATE_BYTES", "MAX_TRACKED_PEERS", "PeerTable", "TrackedPeer", "read_table_untrusted"]

MAX_TRACKED_PEERS: Final = 65_536
"""A network's list may be longer; the rest of it is not tracked."""
MAX_STATE_BYTES: Final = 64 * 1024 * 1024
MAX_TAGS: Final = 64
"""Tags of one kind a peer has at most."""
MAX_TAG_CHARS: Final = 256
NEVER: Final = -62_135_596_800.0
"""`last_seen` of a peer that never was: the seconds of Go's zero time."""


@dataclass(slots=True)
class TrackedPeer:
    """One peer: when it came, and its tags."""

    node_id: int
    added_ns: int
    """When it was added, nanoseconds since 1970."""
    born: float
    """The same instant on the monotonic clock, which may lie before the clock's zero."""
    last_seen_ns: int | None = None
    member_tags: tuple[str, ...] = ()
    rule_tags: tuple[str, ...] = ()
    _node_tags: tuple[str, ...] = ()
    _merged: tuple[str, ...] | None = None

    def age(self, now: float) -> float:
        """Seconds since it was added."""
        return max(0.0, now - self.born)

    @property
    def last_seen(self) -> float:
        """Unix seconds, as expressions see it."""
        return NEVER if self.last_seen_ns is None else float(self.last_seen_ns // SECOND_NS)

    def tags(self, node_tags: tuple[str, ...]) -> tuple[str, ...]:
        """Tags of its node, of its membership and of rules, each once, in this order."""
        if self._merged is None or node_tags != self._node_tags:
            self._node_tags = node_tags
            self._merged = tuple(dict.fromkeys((*node_tags, *self.member_tags, *self.rule_tags)))
        return self._merged

    def set_member_tags(self, tags: tuple[str, ...]) -> bool:
        """What the registry says about its membership; whether it is something else than before."""
        if tags == self.member_tags:
            return False
        self.member_tags = tags
        self._merged = None
        return True

    def change_rule_tags(self, add: Iterable[str], remove: Iterable[str]) -> bool:
        """Adds, then removes; whether anything changed. Beyond 64 tags none is added."""
        gone = frozenset(remove)
        changed = tuple(tag for tag in dict.fromkeys((*self.rule_tags, *add)) if tag not in gone)[:MAX_TAGS]
        if changed == self.rule_tags:
            return False
        self.rule_tags = changed
        self._merged = None
        return True


@dataclass(slots=True)
class PeerTable:
    """The tracked peers of one network, when this node joined it, and how many cycles there were."""

    network_id: int
    joined_ns: int
    cycle_num: int = 0
    peers: dict[int, TrackedPeer] = field(default_factory=dict)

    def add(self, node_id: int, now: float, wall: float) -> TrackedPeer | None:
        """A new peer; None when the table is full."""
        if len(self.peers) >= MAX_TRACKED_PEERS:
            return None
        peer = self.peers[node_id] = TrackedPeer(node_id, int(wall * SECOND_NS), now)
        return peer

    @property
    def joined_at(self) -> str:
        """When this node joined, to the second."""
        return format_time(self.joined_ns - self.joined_ns % SECOND_NS)

    def oldest_first(self) -> list[TrackedPeer]:
        """The peers by age."""
        return sorted(self.peers.values(), key=lambda peer: (peer.added_ns, peer.node_id))

    def listed(self) -> list[dict[str, Any]]:
        """The peers as `peer_list` shows them."""
        return [_listed(peer) for peer in self.oldest_first()]

    def snapshot(self) -> PeerTable:
        """The same peers, for a thread to encode while they come and go here."""
        return PeerTable(self.network_id, self.joined_ns, self.cycle_num, dict(self.peers))

    def encoded(self) -> bytes:
        """The state file."""
        shown = {
            "network_id": self.network_id,
            "peers": {key: _stored(self.peers[int(key)]) for key in sorted(map(str, self.peers))},
            "joined_at": self.joined_at,
            "cycle_num": self.cycle_num,
        }
        return encode(shown, "  ").encode()


def _stored(peer: TrackedPeer) -> dict[str, Any]:
    shown: dict[str, Any] = {"node_id": peer.node_id}
    if peer.rule_tags:
        shown["tags"] = peer.rule_tags
    if peer.member_tags:
        shown["registry_tags"] = peer.member_tags
    return shown | {"added_at": format_time(peer.added_ns), "last_seen": _seen(peer)}


def _seen(peer: TrackedPeer) -> str:
    return ZERO_TIME if peer.last_seen_ns is None else format_time(peer.last_seen_ns)


def _listed(peer: TrackedPeer) -> dict[str, Any]:
    shown: dict[str, Any] = {"node_id": peer.node_id, "added_at": format_time(peer.added_ns)}
    if peer.last_seen_ns is not None:
        shown["last_seen"] = _seen(peer)
    if tags := peer.tags(()):
        shown["tags"] = list(tags)
    return shown


def _tags_untrusted(tags: object) -> tuple[str, ...]:
    """The texts in a list of tags, within the limits; anything else is no tags."""
    if not isinstance(tags, list | tuple):
        return ()
    return tuple(tag for tag in tags[:MAX_TAGS] if isinstance(tag, str) and len(tag) <= MAX_TAG_CHARS)


def read_table_untrusted(data: bytes, network_id: int, now: float, wall: float) -> PeerTable:
    """The table in a state file. Entries that make no sense are left out.

    Raises:
        InvalidValueError: it is no state file of that network.
    """
    try:
        stored = json.loads(data)
        joined = parse_time_untrusted(_text(stored["joined_at"]))
        cycle_num, entries = stored["cycle_num"], stored["peers"]
        if stored["network_id"] != network_id or not isinstance(cycle_num, int) or not isinstance(entries, dict):
            raise ValueError("wrong network or shape")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise InvalidValueError(f"this is no state of network {network_id}: {error}") from None
    table = PeerTable(network_id, joined, max(0, cycle_num))
    for entry in list(entries.values())[:MAX_TRACKED_PEERS]:
        peer = _peer_untrusted(entry, now, wall)
        if peer is not None:
            table.peers[peer.node_id] = peer
    return table


def _peer_untrusted(entry: Any, now: float, wall: float) -> TrackedPeer | None:
    try:
        node_id = entry["node_id"]
        added = parse_time_untrusted(_text(entry["added_at"]))
        seen = _text(entry.get("last_seen", ZERO_TIME))
        last_seen = None if seen == ZERO_TIME else parse_time_untrusted(seen)
        tags, member_tags = entry.get("tags"), entry.get("registry_tags")
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    if not isinstance(node_id, int) or isinstance(node_id, bool) or not 0 < node_id < 1 << 32:
        return None
    born = now - max(0.0, wall - added / SECOND_NS)
    return TrackedPeer(node_id, added, born, last_seen, _tags_untrusted(member_tags), _tags_untrusted(tags))


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no text")
    return value
