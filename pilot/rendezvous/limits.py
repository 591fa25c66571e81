"""Token buckets and windows: how often one source may ask (rendezvous room, L8 server side)."""

from __future__ import annotations

import ipaddress
import math
from collections import OrderedDict
from collections.abc import Hashable, Iterable

from pilot._fast.errors import InvalidValueError
from pilot.rendezvous.config import Limits


class Bucket:
    """A token bucket: `rate` a second, `burst` at once. A rate of `math.inf` never refuses."""

    __slots__ = ("_burst", "_last", "_rate", "_tokens")

    def __init__(self, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = burst
        self._last: float | None = None

    def take(self, now: float) -> bool:
        """Use one token at `now`; False when there is none."""
        if self._rate == math.inf:
            return True
        if self._last is not None:
            self._tokens = min(self._burst, self._tokens + (now - self._last) * self._rate)
        self._last = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class IpBuckets:
    """One bucket per source IP, for at most `table` of them: the one longest unused is forgotten."""

    def __init__(self, rate: float, burst: float, table: int) -> None:
        self._rate = rate
        self._burst = burst
        self._table = table
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, host: str, now: float) -> bool:
        """Use one token of `host`; False when it has none."""
        if self._rate == math.inf:
            return True
        bucket = self._buckets.get(host)
        if bucket is None:
            if len(self._buckets) >= self._table:
                self._buckets.popitem(last=False)
            bucket = self._buckets[host] = Bucket(self._rate, self._burst)
        else:
            self._buckets.move_to_end(host)
        return bucket.take(now)


class WindowCounter:
    """Events per key in windows of one second, for at most `table` keys a window: others are refused."""

    def __init__(self, rate: float, table: int) -> None:
        self._rate = rate
        self._table = table
        self._window = -math.inf
        self._counts: dict[Hashable, int] = {}

    def take(self, key: Hashable, now: float) -> bool:
        """Count one event of `key`; False when it had `rate` of them in this window."""
        if self._rate == math.inf:
            return True
        if now - self._window >= 1.0:
            self._window = now
            self._counts.clear()
        count = self._counts.get(key, 0)
        if count >= self._rate or (not count and len(self._counts) >= self._table):
            return False
        self._counts[key] = count + 1
        return True


class Spacing:
    """At most one event per `interval` for each key; the `table` keys seen last are remembered."""

    def __init__(self, interval: float, table: int) -> None:
        self._interval = interval
        self._table = table
        self._last: OrderedDict[Hashable, float] = OrderedDict()

    def ready(self, key: Hashable, now: float) -> bool:
        """Whether an event of `key` would be allowed; `mark` counts it."""
        last = self._last.get(key)
        return last is None or now - last >= self._interval

    def mark(self, key: Hashable, now: float) -> None:
        """An event of `key` happened."""
        self._last[key] = now
        self._last.move_to_end(key)
        if len(self._last) > self._table:
            self._last.popitem(last=False)

    def expire(self, before: float) -> None:
        """Forget the keys whose last event was earlier than `before`."""
        while self._last and next(iter(self._last.values())) < before:
            self._last.popitem(last=False)


class Exemptions:
    """The source addresses no rate applies to: CIDR texts, ``*`` for all. `InvalidValueError` when one is malformed."""

    def __init__(self, texts: Iterable[str]) -> None:
        texts = tuple(texts)
        self._all = "*" in texts
        try:
            self._networks = tuple(ipaddress.ip_network(text, strict=False) for text in texts if text != "*")
        except ValueError as error:
            raise InvalidValueError(f"an exemption must be an IP address, a CIDR network or '*': {error}") from None

    def __contains__(self, host: str) -> bool:
        if self._all or not self._networks:
            return self._all
        address = ipaddress.ip_address(host)
        return any(address in network for network in self._networks)


class RequestPace:
    """What the age and request count of one connection say: go on, slow down, or close (rendezvous.md 2.5)."""

    __slots__ = ("_limits", "_requests", "_since")

    def __init__(self, limits: Limits, now: float) -> None:
        self._limits = limits
        self._since = now
        self._requests = 0

    def is_young(self, now: float) -> bool:
        """Whether the connection is still in its period of grace."""
        return now - self._since < self._limits.grace

    def rate(self, now: float) -> float:
        """Count a request; requests a second since the connection began, 0 during the period of grace."""
        self._requests += 1
        return 0.0 if self.is_young(now) else self._requests / (now - self._since)
