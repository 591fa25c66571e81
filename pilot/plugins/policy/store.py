"""The state files: written soon after a change, one at a time, off the event loop (plugin policy, L11)."""

from __future__ import annotations

import asyncio
import logging
import re
from pathlib import Path
from typing import Final

from pilot.coreapi import InvalidValueError
from pilot.coreapi.files import private_directory, read_limited, write_atomically
from pilot.plugins.policy.peers import MAX_STATE_BYTES, PeerTable

__all__ = ["StateStore"]

SAVE_SECONDS: Final = 0.5
"""Changes within this time, as a stream of tagged connections makes them, are one write."""
MAX_FILES: Final = 4096
_NAME: Final = re.compile(r"(?:policy|managed)_[1-9][0-9]{0,4}\.json")


class StateStore:
    """Keeps what `save` is told in files of `directory`; without a directory it keeps nothing.

    Between `open` and `close`, both on the loop. A file that cannot be written is logged, and tried again at the next
    change.
    """

    def __init__(self, directory: Path | None, log: logging.Logger) -> None:
        self._directory = directory
        self._log = log
        self._pending: dict[str, PeerTable] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._writing: asyncio.Task[None] | None = None
        self._closed = False

    def read_all(self) -> dict[str, bytes]:
        """Every state file by name. Blocks; files that cannot be read are logged and left out."""
        found = {}
        for path in self._paths():
            try:
                found[path.name] = read_limited(path, MAX_STATE_BYTES)
            except (OSError, InvalidValueError) as error:
                self._log.warning("the policy state in %s cannot be read: %s", path, error)
        return found

    def _paths(self) -> list[Path]:
        if self._directory is None:
            return []
        try:
            return sorted(path for path in self._directory.iterdir() if _NAME.fullmatch(path.name))[:MAX_FILES]
        except FileNotFoundError:
            return []
        except OSError as error:
            self._log.warning("the policy states in %s cannot be read: %s", self._directory, error)
            return []

    def save(self, name: str, table: PeerTable) -> None:
        """Has the file `name` hold what is in `table` when it is written, soon."""
        if self._directory is None or self._closed:
            return
        self._pending[name] = table
        if self._timer is None and self._writing is None:
            self._write_later()

    async def close(self) -> None:
        """Returns when everything is written; nothing is saved from then on. Cancelled, a change may be lost."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._writing is not None:
            await self._writing
        await self._write()

    def _write_later(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(SAVE_SECONDS, self._begin)

    def _begin(self) -> None:
        self._timer = None
        self._writing = asyncio.get_running_loop().create_task(self._write())

    async def _write(self) -> None:
        """Writes what waits now. What comes meanwhile waits its time, or the disk would never rest."""
        pending, self._pending = self._pending, {}
        try:
            for name, table in pending.items():
                await asyncio.to_thread(self._write_file, name, table.snapshot())
        finally:
            self._writing = None
            if self._pending and not self._closed:
                self._write_later()

    def _write_file(self, name: str, table: PeerTable) -> None:
        assert self._directory is not None  # nothing is pending without
        try:
            write_atomically(private_directory(self._directory) / name, table.encoded())
        except (OSError, InvalidValueError) as error:
            self._log.warning("the policy state %s cannot be written to %s: %s", name, self._directory, error)
