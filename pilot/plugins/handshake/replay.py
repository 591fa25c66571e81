"""`ReplaySet`: which messages were seen within the last ten minutes, within bounds (plugin handshake, L11).

Source: services.md 1.2. Unlike in 1.18.0 the key covers time and texts, so that a second honest request is not lost.
Like there it covers the spelling of the signature: what is signed is always the same, so this hides nothing, and tells
two messages of one second apart.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pilot.plugins.handshake.message import Message

__all__ = ["ReplaySet", "replay_key"]

MAX_ENTRIES: Final = 8192
MAX_ENTRIES_PER_PEER: Final = 256
EXPIRE_SECONDS: Final = 600.0
"""Longer than a message may be old: what is forgotten is refused for its age."""


def replay_key(message: Message, receiver: int) -> bytes:
    """What makes a message the same one again."""
    parts = [
        message.type,
        f"handshake:{message.node_id}:{receiver}",
        message.spelling,
        str(message.timestamp),
        message.justification,
        message.reason,
    ]
    joined = "\0".join(f"{len(part)}:{part}" for part in parts)
    return hashlib.sha256(joined.encode(errors="surrogatepass")).digest()


class ReplaySet:
    """Keys with the peer they came from, oldest first."""

    def __init__(self) -> None:
        self._entries: OrderedDict[bytes, tuple[int, float]] = OrderedDict()
        self._peers: dict[int, OrderedDict[bytes, None]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def seen(self, key: bytes, now: float) -> bool:
        """Whether `key` was recorded within the last ten minutes."""
        entry = self._entries.get(key)
        return entry is not None and now - entry[1] < EXPIRE_SECONDS

    def record(self, key: bytes, peer: int, now: float) -> None:
        """Remembers `key`; where there is no room the oldest of the peer, or of all, is forgotten."""
        self._forget(key)
        self.sweep(now)
        own = self._peers.get(peer)
        if own is not None and len(own) >= MAX_ENTRIES_PER_PEER:
            self._forget(next(iter(own)))
        elif len(self._entries) >= MAX_ENTRIES:
            self._forget(next(iter(self._entries)))
        self._entries[key] = peer, now
        self._peers.setdefault(peer, OrderedDict())[key] = None

    def sweep(self, now: float) -> None:
        """Forgets what has expired."""
        while self._entries:
            key, (_, at) = next(iter(self._entries.items()))
            if now - at < EXPIRE_SECONDS:
                return
            self._forget(key)

    def _forget(self, key: bytes) -> None:
        entry = self._entries.pop(key, None)
        if entry is None:
            return
        own = self._peers[entry[0]]
        del own[key]
        if not own:
            del self._peers[entry[0]]
