"""The state directory of one node: created private, locked against a second node, written atomically (L9)."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Self

from pilot._fast.errors import BusyError, InvalidValueError

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["StateDirectory", "read_file", "write_file"]

LOCK_NAME = ".lock"
MAX_STATE_BYTES = 16 * 1024 * 1024  # far above any state this library writes; stops a wrong file from filling memory


def write_file(path: Path, data: bytes) -> None:
    """Replaces `path` by `data` (mode 0600) so that a crash leaves the old or the new content, never a mixture.

    Symbolic links are followed. Blocks for one fsync. Raises `OSError`, and then leaves `path` as it was.
    """
    path = Path(os.path.realpath(path))
    temp = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(fd)
        os.replace(temp, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temp)
        raise
    _sync_directory(path.parent)


def read_file(path: Path, limit: int = MAX_STATE_BYTES) -> tuple[bytes, int]:
    """The content of `path` and its mode bits, both of the same open file.

    Raises `FileNotFoundError`, other `OSError`, and `InvalidValueError` when the file is longer than `limit` bytes.
    """
    with open(path, "rb") as file:
        mode = os.fstat(file.fileno()).st_mode & 0o777
        data = file.read(limit + 1)
    if len(data) > limit:
        raise InvalidValueError(f"{path} is longer than {limit} bytes: it is not a state file of pilot, move it away")
    return data, mode


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


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
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except FileExistsError:
            raise InvalidValueError(f"state directory {self.path} is a file: choose another path") from None
        fd = os.open(self.path / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            # flock, not lockf: it also keeps apart two nodes of one process.
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise BusyError(
                f"state directory {self.path} is in use by another node: stop that node or choose another state_dir"
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
            data, _ = read_file(path)
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
            write_file(path, json.dumps(value, indent=2, ensure_ascii=False).encode())

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
