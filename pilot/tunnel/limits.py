"""Rate limits with bounded memory: token buckets and least spacings per key (tunnel, L4-5)."""

from __future__ import annotations

from collections.abc import Hashable


class TokenBucket:
    """`burst` tokens, refilled at `rate` per second."""

    __slots__ = ("_burst", "_rate", "_tokens", "touched")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = float(burst)
        self.touched = now

    def take(self, now: float) -> bool:
        """Take one token; False when there is none."""
        self._tokens = min(self._burst, self._tokens + max(0.0, now - self.touched) * self._rate)
        self.touched = now
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True


class TokenBuckets:
    """One bucket per key, at most `cap`; when full, keys idle for `idle` seconds go, else newcomers are refused."""

    def __init__(self, rate: float, burst: float, cap: int, idle: float) -> None:
        self._rate = rate
        self._burst = burst
        self._cap = cap
        self._idle = idle
        self._buckets: dict[Hashable, TokenBucket] = {}
        self._pruned_at = -idle

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, key: Hashable, now: float) -> bool:
        """Take one of `key`'s tokens; False when it has none, or no room is left to count them."""
        bucket = self._buckets.get(key)
        if bucket is None:
            if len(self._buckets) >= self._cap and not self._prune(now):
                return False
            bucket = self._buckets[key] = TokenBucket(self._rate, self._burst, now)
        return bucket.take(now)

    def _prune(self, now: float) -> bool:
        # A full table is searched at most ten times per idle time: the search must not become the attack.
        if now - self._pruned_at >= self._idle / 10:
            self._pruned_at = now
            self._buckets = {k: b for k, b in self._buckets.items() if now - b.touched < self._idle}
        return len(self._buckets) < self._cap


class Spacing:
    """At most one event per key in `seconds`; at most `cap` keys: expired ones go, else newcomers are refused."""

    def __init__(self, seconds: float, cap: int) -> None:
        self._seconds = seconds
        self._cap = cap
        self._last: dict[Hashable, float] = {}

    def __len__(self) -> int:
        return len(self._last)

    def held(self, key: Hashable, now: float) -> bool:
        """Whether `key` had its event less than `seconds` ago."""
        last = self._last.get(key)
        return last is not None and now - last < self._seconds

    def allow(self, key: Hashable, now: float) -> bool:
        """Whether the event may happen now; if so it is remembered."""
        if self.held(key, now):
            return False
        self._last.pop(key, None)
        if len(self._last) >= self._cap and not self._prune(now):
            return False
        self._last[key] = now
        return True

    def lift(self, key: Hashable) -> None:
        """Let the next event of `key` happen at once."""
        self._last.pop(key, None)

    def _prune(self, now: float) -> bool:
        # Insertion order is time order, so the expired keys are the first ones.
        while self._last:
            key = next(iter(self._last))
            if now - self._last[key] < self._seconds:
                break
            del self._last[key]
        return len(self._last) < self._cap
