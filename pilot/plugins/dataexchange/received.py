"""The received directory: unfinished files that can be resumed, and finished ones (plugin dataexchange, L11).

Source: services.md 2.3, 2.5. Blocks. An open unfinished file is used by one thread at a time.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import itertools
import math
import os
import secrets
import threading
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pilot.coreapi import BusyError
from pilot.coreapi.files import private_directory, sync_directory
from pilot.plugins.dataexchange.naming import numbered_names, stamped_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from io import FileIO

    from typing_extensions import Buffer

    from pilot.plugins.dataexchange.model import Limits
    from pilot.plugins.dataexchange.naming import Stamps

__all__ = ["PartialFile", "Received"]

PARTIAL_DIRECTORY: Final = ".partial"
ABANDONED_SECONDS: Final = 7 * 86400.0
"""An unfinished file nobody has gone on with for so long is removed at the next start."""
COUNT_SECONDS: Final = 5.0
"""How long the counts of bytes and files are kept up to date before the directories are looked at again."""
MAX_PARTIALS: Final = 256
"""Unfinished files kept; strangers make them."""
MAX_PARTIALS_PER_SENDER: Final = 32
"""Of one node, so that it cannot displace those of others."""
PROMISED_SHARE: Final = 0.5
"""Of the room that others leave, so much is kept for what one sender has announced and not sent."""
MAX_PIECES: Final = 64
"""Written with one call; a system takes some 1024."""
HASH_BLOCK: Final = 1 << 20


class PartialFile:
    """A file that arrives. Comes from `Received.begin`."""

    def __init__(self, store: Received, path: Path, file: FileIO, size: int, *, sender: int, resumable: bool) -> None:
        self._store = store
        self.path = path
        self._file = file
        self.sender = sender
        self.resumable = resumable
        """Whether another attempt can go on with what is there after `close`."""
        self._hash = hashlib.sha256()
        self._hashed = 0
        self.size = size
        self.position = os.fstat(file.fileno()).st_size
        """Bytes that are there; the next go behind them."""
        if self.position > size:
            file.truncate(0)
            self.position = 0
        self.promised_to = self.position
        """Up to here there is room for it, whatever others send; the store's, under its lock."""
        file.seek(self.position)

    def append(self, pieces: Sequence[Buffer]) -> None:
        """Writes `pieces` behind what is there. Raises `OSError`; `position` then says how much was written.

        EDQUOT is among its errors: others have filled the room that this file was not promised.
        """
        # A resumed file is hashed at its end: now the sender waits for its go-ahead.
        hashing = self._hashed == self.position
        left = deque(memoryview(piece) for piece in pieces)
        self._store.take_room(self, self.position + sum(map(len, left)))
        while left:
            # Few calls: after each the thread has to get the interpreter back from a busy event loop.
            written = os.writev(self._file.fileno(), list(itertools.islice(left, MAX_PIECES)))
            self.position += written
            while left and written >= len(left[0]):
                written -= len(left.popleft())
            if written:
                left[0] = left[0][written:]
        if hashing:
            for piece in pieces:
                self._hash.update(piece)
            self._hashed = self.position

    def digest(self) -> bytes:
        """The SHA-256 of everything that is there."""
        while block := os.pread(self._file.fileno(), HASH_BLOCK, self._hashed):
            self._hash.update(block)
            self._hashed += len(block)
        return self._hash.digest()

    def publish(self, name: str) -> Path:
        """Puts the whole file, safe on the disk, under its final name, which this returns. Closes it."""
        os.fsync(self._file.fileno())
        for path in self._store.names(name):
            with contextlib.suppress(FileExistsError):
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
                break
        os.replace(self.path, path)
        sync_directory(path.parent)
        self._leave()
        return path

    def condemn(self) -> None:
        """Closes the file and sets it aside under another name: the next attempt begins anew."""
        os.replace(self.path, self.path.with_suffix(".corrupt"))
        self._leave()

    def _leave(self) -> None:
        """Closes the file, which has another name now."""
        self._store.ended(self)
        self._file.close()

    def close(self) -> None:
        """Closes the file; what another attempt can go on with stays. May be repeated."""
        if self._file.closed:
            return
        removed = not self.resumable or not self.position
        if removed:
            self.path.unlink(missing_ok=True)
        self._file.close()
        self._store.ended(self, removed=removed)


class Received:
    """Files in `directory`, with the caps of `limits`.

    `keep_names` gives them their senders' names, numbered where taken, instead of stamped ones.
    """

    def __init__(self, directory: Path, limits: Limits, stamps: Stamps, *, keep_names: bool = False) -> None:
        self._directory = directory
        self._partials = directory / PARTIAL_DIRECTORY
        self._limits = limits
        self._stamps = stamps
        self._keep_names = keep_names
        self._lock = threading.Lock()
        self._open: dict[PartialFile, int] = {}
        """What is being written, and how much of it is in `_bytes`."""
        self._bytes = self._files = 0
        self._counted_at = -math.inf

    @property
    def max_bytes(self) -> int:
        """The cap of all files together."""
        return self._limits.received_bytes

    def open(self, now: float) -> None:
        """Makes the directory where it is missing, removes abandoned unfinished files. Raises `OSError`."""
        private_directory(self._directory)
        if not self._partials.exists():
            return
        for path in self._partials.iterdir():
            if path.stat().st_mtime < now - ABANDONED_SECONDS:
                path.unlink(missing_ok=True)

    def close(self) -> None:
        """Removes the directory of unfinished files when there are none."""
        with contextlib.suppress(OSError):
            self._partials.rmdir()

    def begin(self, size: int, transfer_id: bytes = b"", *, sender: int = 0) -> PartialFile:
        """An unfinished file for `size` bytes: what the node `sender` left of this transfer, if nobody has it open.

        There is room for it now. A share of that is kept for it; beyond that who sends first has it.

        Raises:
            BusyError: there is no room for it under the caps.
            OSError: it cannot be made.
        """
        if size > self._limits.file_bytes:
            raise BusyError(f"file of {size} bytes is larger than the {self._limits.file_bytes} allowed here")
        with self._lock:
            self._remove_partials(sender)
            partial = self._open_partial(size, transfer_id, sender)
            missing = size - partial.position
            self._count_new()
            available = self._available()
            files = self._files
            if missing <= available and files <= self._limits.received_files:
                partial.promised_to += min(missing, self._share(sender, available))
                self._open[partial] = partial.position
                return partial
            self._files -= 1
        partial.close()
        if missing <= available:
            raise BusyError(f"{files} files are there already, {self._limits.received_files} are allowed")
        raise BusyError(f"need {missing}, {available} of {self._limits.received_bytes} available")

    def names(self, name: str) -> Iterator[Path]:
        """The final paths a file of this name may have, in the order to try them."""
        if not self._keep_names:
            name = stamped_name(name, self._stamps.next())
        return (self._directory / candidate for candidate in numbered_names(name))

    def ended(self, partial: PartialFile, *, removed: bool = False) -> None:
        """An unfinished file has been closed, and perhaps removed."""
        with self._lock:
            counted = self._open.pop(partial, None)
            if counted is not None:
                self._bytes += (0 if removed else partial.position) - counted
                self._files -= removed

    def take_room(self, partial: PartialFile, end: int) -> None:
        """Makes sure that an unfinished file may grow to `end` bytes. Raises `OSError` where others have the room."""
        if end <= partial.promised_to:
            return
        with self._lock:
            more = end - partial.promised_to
            if more > self._available():
                self._count()
            if more > self._available():
                raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
            partial.promised_to = end

    def _available(self) -> int:
        """Bytes that are neither there nor promised."""
        promised = sum(partial.promised_to - counted for partial, counted in self._open.items())
        return max(0, self._limits.received_bytes - self._bytes - promised)

    def _share(self, sender: int, available: int) -> int:
        """How much of `available` can be promised to one more file of `sender`."""
        held = sum(other.promised_to - other.position for other in self._open if other.sender == sender)
        return max(0, int((available + held) * PROMISED_SHARE) - held)

    def _open_partial(self, size: int, transfer_id: bytes, sender: int) -> PartialFile:
        private_directory(self._partials)
        name = f"{transfer_id.hex()}-{sender:08x}"
        if transfer_id:
            path = self._partials / name
            file = _open_alone(path)
            if file is not None:
                return PartialFile(self, path, file, size, sender=sender, resumable=True)
        # Another stream has it, or nobody may: this one gets a file of its own, from the start.
        path = self._partials / f"{name}.{secrets.token_hex(8)}"
        return PartialFile(self, path, _open(path), size, sender=sender, resumable=False)

    def _count_new(self) -> None:
        """Brings `_bytes` and `_files` up to date, with a file just made among them."""
        if not self._count():
            self._files += 1

    def _count(self) -> bool:
        """Looks what is really there, unless that was done just now; whether it has."""
        now = time.monotonic()
        if now - self._counted_at < COUNT_SECONDS:
            return False
        found = [each for directory in (self._directory, self._partials) for each in _files(directory)]
        sizes = {path: status.st_size for path, status in found}
        self._bytes, self._files, self._counted_at = sum(sizes.values()), len(sizes), now
        for partial in self._open:  # others write meanwhile: what was seen counts, or, just published, what is there
            self._open[partial] = sizes.get(partial.path, partial.position)
        return True

    def _remove_partials(self, sender: int) -> None:
        """Makes room for one more unfinished file of `sender`: its oldest go, then the oldest of all."""
        if not self._partials.exists():
            return
        found = [path for _, path in sorted((status.st_mtime_ns, path) for path, status in _files(self._partials))]
        own = [path for path in found if path.name.partition(".")[0].endswith(f"-{sender:08x}")]
        taken = {partial.path for partial in self._open}
        for paths, most in (own, MAX_PARTIALS_PER_SENDER), (found, MAX_PARTIALS):
            there = [path for path in paths if path.exists()]
            free = [path for path in there if path not in taken]
            for path in free[: max(0, len(there) - most + 1)]:
                path.unlink(missing_ok=True)


def _files(directory: Path) -> Iterator[tuple[Path, os.stat_result]]:
    with os.scandir(directory) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                if entry.is_file(follow_symlinks=False):
                    yield Path(entry.path), entry.stat(follow_symlinks=False)


def _open_alone(path: Path) -> FileIO | None:
    """The file at `path`, locked; None when somebody else has it."""
    while True:
        file = _open(path)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(path.stat(), os.fstat(file.fileno())):
                return file
            file.close()  # whoever had it has just given it its final name
        except BlockingIOError:
            file.close()
            return None


def _open(path: Path) -> FileIO:
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    return open(os.open(path, flags, 0o600), "r+b", buffering=0)
