"""Warnings that may recur for ever, logged at most once a minute per kind (L8)."""

from __future__ import annotations

import asyncio
import logging

__all__ = ["QuietLog", "clip_untrusted"]

QUIET_SECONDS = 60.0
MAX_QUOTED_CHARS = 200


def clip_untrusted(text: str) -> str:
    """A stranger's words fit for a message or a log: printable, on one line, at most `MAX_QUOTED_CHARS` long."""
    clipped = text[:MAX_QUOTED_CHARS] + ("..." if len(text) > MAX_QUOTED_CHARS else "")
    return "".join(c if c.isprintable() else "?" for c in clipped)


class QuietLog:
    """A logger for background failures: per `kind`, a word of ours, one record a minute with the number held back."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._kinds: dict[str, tuple[float, int]] = {}

    def warning(self, kind: str, message: str, *args: object) -> None:
        """Logs `message % args`, unless one of this `kind` was logged less than a minute ago."""
        now = asyncio.get_running_loop().time()
        last, held_back = self._kinds.get(kind, (now - QUIET_SECONDS, 0))
        if now - last < QUIET_SECONDS:
            self._kinds[kind] = last, held_back + 1
            return
        self._kinds[kind] = now, 0
        if held_back:
            message, args = f"{message} (and %d more like it)", (*args, held_back)
        self._logger.warning(message, *args)
