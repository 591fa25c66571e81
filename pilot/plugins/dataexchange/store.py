"""The inbox directory: one JSON file per message, oldest removed at the caps (plugin dataexchange, L11).

Source: services.md 2.3. Blocks, and may be used by several threads at once.
"""

from __future__ import annotations

import base64
import json
import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from pilot.coreapi import BusyError
from pilot.coreapi.files import private_directory, write_atomically
from pilot.plugins._gojson import go_escaped
from pilot.plugins.dataexchange.frames import FrameType

if TYPE_CHECKING:
    from pathlib import Path

    from pilot.plugins.dataexchange.model import Limits, Message
    from pilot.plugins.dataexchange.naming import Stamps

__all__ = ["Inbox", "message_json"]

EVICTED_TO: Final = 0.9
"""Part of a cap that is left full when it is reached, so that it is not reached again at once."""


def message_json(message: Message, base64_only: bool = False) -> bytes:
    """The inbox object of a message: compact, keys sorted, as the official daemon writes it."""
    fields: dict[str, Any] = {
        "type": message.kind,
        "from": str(message.sender),
        "bytes": len(message.data),
        "received_at": rfc3339(message.received_at),
    }
    text = None if base64_only or message.kind == FrameType.BINARY.name else _utf8(message.data)
    if text is None:
        fields |= {"data_b64": base64.b64encode(message.data).decode(), "data_encoding": "base64"}
    else:
        fields |= {"data": text, "data_encoding": "utf8"}
    fields |= {name: value for name, value in message.tags._asdict().items() if value}
    encoded = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return go_escaped(encoded).encode()


def rfc3339(seconds: float) -> str:
    """Unix seconds as `2026-11-22T09:34:47.452967Z`: UTC, no more digits than a float holds, no trailing zeros."""
    when = datetime.fromtimestamp(seconds, UTC)
    digits = f".{when.microsecond:06d}".rstrip("0").rstrip(".")
    return f"{when:%Y-%m-%dT%H:%M:%S}{digits}Z"


def _utf8(data: bytes) -> str | None:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


class Inbox:
    """The inbox in `directory`, with the caps of `limits`."""

    def __init__(self, directory: Path, limits: Limits, stamps: Stamps, *, base64_only: bool = False) -> None:
        self._directory = directory
        self._limits = limits
        self._stamps = stamps
        self._base64_only = base64_only
        self._lock = threading.Lock()
        self._sizes: dict[str, int] = {}
        """Oldest first."""
        self._bytes = 0

    @property
    def max_bytes(self) -> int:
        """The cap of all messages together."""
        return self._limits.inbox_bytes

    def open(self) -> None:
        """Makes the directory where it is missing and learns what is there. Raises `OSError`, `InvalidValueError`."""
        private_directory(self._directory)
        with self._lock:
            self._load()

    def save(self, message: Message) -> Path:
        """Stores a message, on disk when this returns; older ones make room.

        Raises:
            BusyError: it is larger than the inbox may be.
            OSError: it cannot be written.
        """
        data = message_json(message, self._base64_only)
        path = self._directory / f"{message.kind}-{self._stamps.next()}.json"
        with self._lock:
            self._make_room(len(data))
            self._sizes[path.name] = len(data)
            self._bytes += len(data)
        try:
            write_atomically(path, data)
        except BaseException:
            with self._lock:
                self._forget(path.name)
            raise
        return path

    def _make_room(self, size: int) -> None:
        cap = self._limits.inbox_bytes
        if self._fits(size):
            return
        self._load()  # the user may have taken messages away
        if self._fits(size):
            return
        wanted, files = int(cap * EVICTED_TO), max(1, int(self._limits.inbox_files * EVICTED_TO))
        if size > wanted:
            raise BusyError(f"inbox byte budget exceeded: {size} bytes do not fit into {cap}")
        for name in list(self._sizes):
            if self._bytes + size <= wanted and len(self._sizes) < files:
                break
            (self._directory / name).unlink(missing_ok=True)
            self._forget(name)

    def _fits(self, size: int) -> bool:
        return self._bytes + size <= self._limits.inbox_bytes and len(self._sizes) < self._limits.inbox_files

    def _forget(self, name: str) -> None:
        self._bytes -= self._sizes.pop(name, 0)

    def _load(self) -> None:
        found = []
        for path in self._directory.glob("*.json"):
            try:
                status = path.stat()
            except FileNotFoundError:
                continue
            found.append((status.st_mtime_ns, path.name, status.st_size))
        self._sizes = {name: size for _, name, size in sorted(found)}
        self._bytes = sum(self._sizes.values())
