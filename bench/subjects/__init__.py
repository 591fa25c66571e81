"""What is measured: one module for each subject, with a `Server` and a `Client` end (bench).

An end is the one thing its process does. The orchestrator calls its methods by name (see `bench/worker.py`): `open` on
the server, `open` with what that returned on the client, then rounds of `expect` (server), an action (client) and
`collect` (server). An end has the actions it can do:

| client | server expects | what happens |
|---|---|---|
| `send(size)` | `stream`, `size` | `size` bytes one way; `collect` gives the time of the last one |
| `echo(count, size)` | `echo`, `count`, `size` | `count` round trips of `size` bytes, one after the other |
| `flood(count, size, window)` | `datagrams`, `count`, `size` | `count` messages, at most `window` of them unconfirmed |
| `dial(count, size)` | `echo` | `count` times: open, one round trip, close |
| `hold(count)` | - | `count` connections that stay open |

Times are CLOCK_MONOTONIC, which all processes of a machine share.
"""

from __future__ import annotations

import gc
import os
import resource
from pathlib import Path
from typing import Any, Final

__all__ = ["BLOCK_BYTES", "CREDIT_MESSAGES", "End", "proc_fields"]

BLOCK_BYTES: Final = 256 * 1024
"""What every subject gives to one write, and the most it takes with one read."""
CREDIT_MESSAGES: Final = 32
"""A receiver of single messages confirms every so many."""


def proc_fields(path: str) -> list[str]:
    """The words of a file in /proc; reading one never waits."""
    return Path(path).read_text().split()


class End:
    """One end of a subject. `detail` is what a subject has to say about itself after the rounds."""

    async def expect(self, kind: str, count: int = 0, size: int = 0) -> None:
        """Prepares the server for the next action of the client; nothing to do unless a subject says otherwise."""

    async def collect(self) -> dict[str, Any]:
        """What the server saw of the action."""
        return {}

    async def detail(self) -> dict[str, Any]:
        """Anything worth printing beside the result."""
        return {}

    async def usage(self) -> float:
        """CPU seconds of this end so far, of user and system."""
        spent = resource.getrusage(resource.RUSAGE_SELF)
        return spent.ru_utime + spent.ru_stime

    async def resident(self) -> int:
        """Bytes of resident memory."""
        gc.collect()
        return int(proc_fields("/proc/self/statm")[1]) * os.sysconf("SC_PAGE_SIZE")

    async def close(self) -> None:
        """Ends what `open` began."""
