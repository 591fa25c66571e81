"""`LastResort`: ends a node that stays deaf, so that a supervisor of its process starts it anew (L9).

Source: wire.md 12.6 and services.md 8.2 (the official daemon exits with code 86). Only where the owner of the node has
asked for it: a library does not end its user's programs.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final, NamedTuple

from pilot._fast.errors import InvalidValueError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pilot.node.state import StateDirectory

__all__ = ["EXIT_CODE", "LastResort", "Silence"]

EXIT_CODE: Final = 86
FILE_NAME: Final = "deaf_ends.json"
MAX_ENDS: Final = 3
WINDOW_SECONDS: Final = 7200

_log = logging.getLogger("pilot.node")


class Silence(NamedTuple):
    """Nothing of any peer has arrived for long, though this node asked to be found again."""

    reason: str
    """`rx_silence` or `dial_timeouts`."""
    seconds: int
    sent: int
    """Frames sent since the last one that arrived."""
    attempts: int
    """How often it has asked."""
    dial_timeouts: int


class LastResort:
    """Decides whether a deaf node ends: not before it is `ready`, and three times in two hours at most, counted over
    restarts in the state directory. Then it is left to a human: `tunnel.rx_wedge_restart_loop`.
    """

    def __init__(
        self,
        state: StateDirectory,
        *,
        ready: Callable[[], bool],
        publish: Callable[[str, dict[str, object]], object],
        end: Callable[[], object],
        wall: Callable[[], float],
    ) -> None:
        self._state = state
        self._ready = ready
        self._publish = publish
        self._end = end
        self._wall = wall

    def take(self, silence: Silence) -> bool:
        """Whether this silence is dealt with: the node is about to end, or has ended too often. Does not raise."""
        if not self._ready():
            return False
        now = self._wall()
        ends = self._recent_ends(now)
        if len(ends) >= MAX_ENDS:
            _log.error("nothing is received, and starting anew has not helped %d times in two hours", len(ends))
            self._publish(
                "tunnel.rx_wedge_restart_loop",
                {
                    "reason": silence.reason,
                    "recent_exits": len(ends),
                    "window_seconds": WINDOW_SECONDS,
                    "silent_for_seconds": silence.seconds,
                },
            )
            return True
        try:
            self._state.write_json(FILE_NAME, [*ends, now])
        except OSError as error:
            _log.error("nothing is received; not ended, as it cannot be noted down: %s", error)
            return True
        _log.error("nothing has been received for %d s: the node ends, to be started anew", silence.seconds)
        self._publish(
            "tunnel.rx_wedged_exit",
            {
                "reason": silence.reason,
                "silent_for_seconds": silence.seconds,
                "pkts_sent_during_silence": silence.sent,
                "soft_attempts": silence.attempts,
                "dial_timeouts": silence.dial_timeouts,
                "exit_code": EXIT_CODE,
            },
        )
        self._end()
        return True

    def _recent_ends(self, now: float) -> list[float]:
        """When it ended during the last two hours; a file that cannot be read counts as none."""
        try:
            kept = self._state.read_json(FILE_NAME)
        except (InvalidValueError, OSError) as error:
            _log.warning("%s", error)
            return []
        times = kept if isinstance(kept, list) else []
        return [time for time in times if isinstance(time, int | float) and now - WINDOW_SECONDS < time <= now]
