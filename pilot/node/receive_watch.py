"""`ReceiveWatch`: notices that nothing arrives any more although much is sent, and has the node found again (L9).

Source: wire.md 12.6. What comes when that does not help is in last_resort.py.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final, NamedTuple

from pilot.node.last_resort import Silence

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ReceiveWatch", "Received"]

TICK_SECONDS: Final = 30.0
SILENCE_SECONDS: Final = 180.0
LEAST_SENT: Final = 30
"""Frames sent in vain before silence means anything."""
MAX_ATTEMPTS: Final = 3
"""Recoveries in one silence."""
DIAL_TIMEOUTS: Final = 4
"""Dials in a row without an answer that mean the same; counted by `NodeStreams`."""

_log = logging.getLogger("pilot.node")


class Received(NamedTuple):
    """The traffic of a node so far."""

    frames: int
    """Frames of peers that were decrypted."""
    datagrams: int
    """Datagrams of any kind that arrived."""
    sent: int
    """Frames sent to peers."""
    dial_timeouts: int
    """Dials in a row, up to now, that got no answer."""


class ReceiveWatch:
    """Call `tick` every `TICK_SECONDS`; it calls `recover` (announce to the beacon, register) at most three times per
    silence, and publishes `tunnel.rx_silence` with each and `tunnel.rx_recovered` at its end. With a `last_resort` it
    calls that from the tick after the third on, until it says that it has dealt with the silence."""

    def __init__(
        self,
        read: Callable[[], Received],
        recover: Callable[[str], object],
        publish: Callable[[str, dict[str, object]], object],
        clock: Callable[[], float],
        last_resort: Callable[[Silence], bool] | None = None,
    ) -> None:
        self._read = read
        self._last_resort = last_resort
        self._dealt_with = False
        self._reason = ""
        self._recover = recover
        self._publish = publish
        self._clock = clock
        now = clock()
        self._before = read()
        self._heard_at = self._raw_at = now
        self._sent_before = self._before.sent
        self._dials_before = 0
        self._attempts = 0

    def tick(self) -> None:
        """Compares with the last time."""
        now, seen = self._clock(), self._read()
        if seen.datagrams != self._before.datagrams:
            self._raw_at = now
        if seen.frames != self._before.frames:
            self._heard(now, seen)
        if seen.dial_timeouts < self._dials_before:
            self._dials_before = 0  # one got through meanwhile
        self._before = seen
        silent = now - self._heard_at
        if self._attempts >= MAX_ATTEMPTS:
            if self._last_resort is not None and not self._dealt_with:
                sent = seen.sent - self._sent_before
                silence = Silence(self._reason, int(silent), sent, self._attempts, seen.dial_timeouts)
                self._dealt_with = self._last_resort(silence)
            return
        if silent >= SILENCE_SECONDS and seen.sent - self._sent_before >= LEAST_SENT:
            self._act("rx_silence", silent, now, seen)
        elif seen.dial_timeouts - self._dials_before >= DIAL_TIMEOUTS:
            self._dials_before = seen.dial_timeouts
            self._act("dial_timeouts", silent, now, seen)

    def _heard(self, now: float, seen: Received) -> None:
        if self._attempts:
            silent = int(now - self._heard_at)
            self._publish("tunnel.rx_recovered", {"silent_for_seconds": silent, "soft_attempts": self._attempts})
        self._heard_at, self._sent_before, self._attempts = now, seen.sent, 0
        self._dealt_with = False

    def _act(self, reason: str, silent: float, now: float, seen: Received) -> None:
        self._attempts += 1
        self._reason = reason
        _log.warning("nothing was received for %d s (%s); announcing this node again", silent, reason)
        self._publish(
            "tunnel.rx_silence",
            {
                "reason": reason,
                "silent_for_seconds": int(silent),
                "pkts_sent_during_silence": seen.sent - self._sent_before,
                "dial_timeouts": seen.dial_timeouts,
                "raw_rx_age_seconds": int(now - self._raw_at),
                "attempt": self._attempts,
            },
        )
        self._recover(reason)
