"""Replay windows in plain Python, with and without epochs, wire.md sections 7.1 and 7.2 (L6)."""

from __future__ import annotations

ACCEPT = "accept"
REPLAY = "replay"
OUTSIDE = "outside_window"
NEW_EPOCH = "accept_new_epoch"
OLDER_EPOCH = "accept_older_epoch"
TOO_MANY_EPOCHS = "too_many_epochs"


class Window:
    """Highest counter seen and the set of counters seen within `size` below it, as 1.18.0 keeps them."""

    def __init__(self, size: int = 256) -> None:
        self.size = size
        self.highest = 0
        self.seen: set[int] = set()

    def check(self, counter: int) -> str:
        """Return the verdict on an authenticated counter and remember it if accepted.

        While nothing but counter 0 has been seen, 0 is accepted again and again (a quirk of 1.18.0).
        """
        if self.highest and counter <= self.highest:
            if self.highest - counter >= self.size:
                return OUTSIDE
            if counter in self.seen:
                return REPLAY
        self.highest = max(self.highest, counter)
        self.seen = {value for value in self.seen | {counter} if self.highest - value < self.size}
        return ACCEPT


class EpochWindows:
    """One window per nonce prefix; at most `max_epochs` prefixes in the life of a session, none forgotten."""

    def __init__(self, size: int = 256, max_epochs: int = 4) -> None:
        self.size = size
        self.max_epochs = max_epochs
        self.windows: dict[bytes, Window] = {}
        self.newest: bytes | None = None

    def check(self, prefix: bytes, counter: int) -> str:
        """Return the verdict on an authenticated (prefix, counter) and remember it if accepted."""
        first = self.newest is None
        if prefix not in self.windows:
            if len(self.windows) == self.max_epochs:
                return TOO_MANY_EPOCHS
            self.windows[prefix] = Window(self.size)
            self.newest = prefix
            self.windows[prefix].check(counter)
            return ACCEPT if first else NEW_EPOCH
        verdict = self.windows[prefix].check(counter)
        return OLDER_EPOCH if verdict == ACCEPT and prefix != self.newest else verdict
