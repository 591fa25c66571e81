"""Names of stored files: stamped as the official daemon does, or the sender's own (plugin dataexchange, L11).

Source: services.md 2.3, 2.5. A peer's name never leaves the directory, hides a file or acts on a terminal.
"""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Stamps", "numbered_names", "plain_name", "reduced_name", "stamped_name"]

MAX_NAME_BYTES: Final = 255
"""What common file systems take."""
MAX_EXTENSION_BYTES: Final = 32
"""A longer one is part of the stem, and shortened with it."""
NAMELESS: Final = "received.bin"


class Stamps:
    """Local time to the millisecond and a counter, shared by the inbox and the received files of one service."""

    def __init__(self, wall: Callable[[], float]) -> None:
        self._wall = wall
        self._numbers = itertools.count(1)

    def next(self) -> str:
        """`20261122-093447.452-000001`. May be called from any thread."""
        now = self._wall()
        local = time.strftime("%Y%m%d-%H%M%S", time.localtime(now))
        return f"{local}.{int(now * 1000) % 1000:03d}-{next(self._numbers):06d}"


def reduced_name(name: str) -> str:
    """What is left of a name in a file stream: its last element, `received.bin` when there is none."""
    last = name.rstrip("/").rpartition("/")[2]
    return NAMELESS if last in ("", ".") else last


def plain_name(name: str) -> str:
    """`name` with nothing in it that a file system or a terminal would act on, and not hidden."""
    plain = "".join(char if char.isprintable() and char not in "/\\" else "_" for char in name)
    plain = plain.encode("utf-8", "replace").decode()
    return f"_{plain}" if plain.startswith(".") else plain or NAMELESS


def stamped_name(name: str, stamp: str) -> str:
    """`a.tar.gz` as `a.tar-<stamp>.gz`."""
    stem, extension = _split(name)
    stamped = f"-{stamp}{extension}"
    return plain_name(_cut(stem, stamped) + stamped)


def numbered_names(name: str) -> Iterator[str]:
    """`a.txt`, `a (2).txt`, `a (3).txt` and so on, without end."""
    stem, extension = _split(plain_name(name))
    yield _cut(stem, extension) + extension
    for number in itertools.count(2):
        end = f" ({number}){extension}"
        yield _cut(stem, end) + end


def _split(name: str) -> tuple[str, str]:
    """Stem and extension: what begins with the last dot. A name that is all extension has an empty stem."""
    dot = name.rfind(".")
    if dot < 0 or len(name[dot:].encode("utf-8", "replace")) > MAX_EXTENSION_BYTES:
        return name, ""
    return name[:dot], name[dot:]


def _cut(stem: str, end: str) -> str:
    """As much of `stem` as leaves room for `end`, whole characters only."""
    room = MAX_NAME_BYTES - 1 - len(end.encode("utf-8", "replace"))  # 1: what hides no file
    return stem.encode("utf-8", "replace")[:room].decode("utf-8", "ignore")
