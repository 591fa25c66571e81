"""Small files of nodes and plugins: private, replaced atomically, read within a limit (L10).

All of it blocks: what may be more than a few kB is called through `asyncio.to_thread`.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from typing import TYPE_CHECKING

from pilot._fast.errors import InvalidValueError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["private_directory", "read_limited", "read_with_mode", "sync_directory", "write_atomically"]


def private_directory(path: Path) -> Path:
    """`path`, made as a directory of mode 0700, parents too, if it is missing.

    Raises:
        InvalidValueError: there is something else.
        OSError: it cannot be made.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except FileExistsError:
        raise InvalidValueError(f"{path} is no directory: move it away or choose another one") from None
    return path


def write_atomically(path: Path, data: bytes) -> None:
    """Replaces `path` by `data` (mode 0600): a crash leaves the old or the new content. Symbolic links are followed.

    Raises:
        OSError: it cannot be written; `path` is as it was.
    """
    target = os.path.realpath(path)
    directory, name = os.path.split(target)
    temp = os.path.join(directory, f".{name}.{secrets.token_hex(8)}")
    fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(fd)
        os.replace(temp, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temp)
        raise
    sync_directory(directory)


def read_limited(path: Path, cap: int) -> bytes:
    """The content of `path`.

    Raises:
        FileNotFoundError: there is no such file.
        InvalidValueError: it is longer than `cap` bytes.
        OSError: it cannot be read.
    """
    return read_with_mode(path, cap)[0]


def read_with_mode(path: Path, cap: int) -> tuple[bytes, int]:
    """The content of `path` and its mode bits, both of the same open file. Raises what `read_limited` raises."""
    with open(path, "rb") as file:
        mode = os.fstat(file.fileno()).st_mode & 0o777
        data = file.read(cap + 1)
    if len(data) > cap:
        raise InvalidValueError(f"{path} is longer than {cap} bytes: it cannot be what it should be, move it away")
    return data, mode


def sync_directory(path: str | Path) -> None:
    """Returns when the names in a directory are safe on the disk: those of new and renamed files. Raises `OSError`."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
