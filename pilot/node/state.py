"""The state directory of one node: created private, locked against a second node, written atomically (L9)."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Self

from pilot._fast.errors import BusyError, InvalidValueError
from pilot.coreapi.files import private_directory, read_limited, write_atomically

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["StateDirectory"]

LOCK_NAME = ".lock"
MAX_STATE_BYTES = 16 * 1024 * 1024  # far above any state this library writes; stops a wrong file from filling memory


class StateDirectory:
    """Where one node keeps its identity, trust, policies and caches; with `path` None it keeps nothing (ephemeral).

    `open` (or entering it) creates and locks the directory; the lock is held until `close` and dies with the process.
    Not for use by several threads. Source: reference services.md, section 11 (directory 0700, files 0600, atomic).
    """

    def __init__(self, path: str | os.PathLike[str] | None) -> None:
        self.path = None if path is None else Path(path).expanduser()
        self._lock_fd = -1

    def open(self) -> None:
        """Creates the directory (0700, parents too) if it is missing and locks it. May be repeated.

        Raises:
            BusyError: another node, in this process or another, uses the directory.
            InvalidValueError: the path exists and is no directory.
            OSError: it cannot be created or written.
        """
        if self.path is None or self._lock_fd >= 0:
            return
        fd = os.open(private_directory(self.path) / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            # flock, not lockf: it also keeps apart two nodes of one process.
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise BusyError(
                f"state directory {self.path} is in use by another node: stop it, or choose another one (--state-dir)"
            ) from None
        except BaseException:
            os.close(fd)
            raise
        self._lock_fd = fd

    def close(self) -> None:
        """Gives the lock back. May be repeated."""
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def file(self, name: str) -> Path | None:
        """The path of the file `name` in the directory, None when ephemeral.

        Raises:
            InvalidValueError: `name` is no plain file name.
        """
        if name in ("", ".", "..", LOCK_NAME) or "/" in name or "\0" in name:
            raise InvalidValueError(f"{name!r} is no name for a state file: use a plain file name")
        return None if self.path is None else self.path / name

    def read_json(self, name: str) -> object:
        """The value stored under `name`, or None if there is none or the node is ephemeral.

        Raises:
            InvalidValueError: the file is no JSON; it is left untouched.
            OSError: it cannot be read.
        """
        path = self.file(name)
        if path is None:
            return None
        try:
            data = read_limited(path, MAX_STATE_BYTES)
        except FileNotFoundError:
            return None
        try:
            value: object = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise InvalidValueError(f"state file {path} is damaged ({error}): repair it or move it away") from None
        return value

    def write_json(self, name: str, value: object) -> None:
        """Stores `value` under `name` (two-space indent, no final newline, 0600, atomic); does nothing when ephemeral.

        Raises:
            OSError: it cannot be written; the old value is still there.
            TypeError, ValueError: `value` is no JSON value.
        """
        path = self.file(name)
        if path is not None:
            write_atomically(path, json.dumps(value, indent=2, ensure_ascii=False).encode())

    def remove(self, name: str) -> None:
        """Deletes what is stored under `name`, if anything is."""
        path = self.file(name)
        if path is not None:
            path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"StateDirectory({str(self.path) if self.path else None!r})"
