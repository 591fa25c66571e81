"""What users of the data exchange see: messages, files, limits, progress (plugin dataexchange, L11)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple

from pilot.coreapi import Addr, InvalidValueError
from pilot.plugins.dataexchange.frames import HEADER_BYTES, MAX_FRAME_BYTES, Tags

__all__ = ["PORT", "FileProgress", "Limits", "Message", "Progress", "ReceivedFile", "SentFile"]

PORT = 1001
PLUGIN = "dataexchange"

Progress = Callable[[int, int], None]
"""Told how many bytes of how many are across."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What peers may fill. Source of the defaults: services.md 2.1 and 2.3."""

    frame_bytes: int = MAX_FRAME_BYTES
    """Longest payload of one frame."""
    inbox_files: int = 10_000
    inbox_bytes: int = 256 << 20
    received_bytes: int = 2 << 30
    """All of the received directory, unfinished files too."""
    received_files: int = 100_000
    file_bytes: int = 1 << 62
    """Longest single file."""
    memory_bytes: int = 256 << 20
    """All payloads in memory together."""
    streams: int = 256
    streams_per_peer: int = 32

    def __post_init__(self) -> None:
        if not 1 << 16 <= self.frame_bytes < 1 << 31:
            raise InvalidValueError(f"frame_bytes={self.frame_bytes} cannot be used: 65536 to 2147483647")
        if min(getattr(self, field.name) for field in fields(self)) < 1:
            raise InvalidValueError("a limit of the data exchange has to be 1 or more")
        if self.memory_bytes < self.peer_memory_bytes:
            raise InvalidValueError(f"memory_bytes={self.memory_bytes} cannot hold a frame of {self.frame_bytes} bytes")

    @property
    def peer_memory_bytes(self) -> int:
        """What the payloads of one node may take in memory: one frame of the longest kind and some chunks."""
        return self.frame_bytes + (self.frame_bytes >> 1) + HEADER_BYTES


class Message(NamedTuple):
    """A message that arrived."""

    kind: str
    """`TEXT`, `JSON`, `BINARY`; for a traced one the name of whatever was traced."""
    data: bytes
    sender: Addr
    received_at: float
    """Unix seconds."""
    tags: Tags
    path: Path | None
    """Where it is in the inbox; None where there is no inbox directory."""

    @property
    def text(self) -> str:
        """The data as UTF-8, with replacements."""
        return self.data.decode("utf-8", "replace")


class ReceivedFile(NamedTuple):
    """A file that arrived whole; one that came as a file stream has been verified."""

    path: Path
    name: str
    """As the sender wrote it, reduced to a plain name."""
    size: int
    sha256: bytes
    sender: Addr
    resumed_at: int
    """Bytes that were there from an earlier attempt."""
    tags: Tags


class FileProgress(NamedTuple):
    """Where a file stream stands that arrives."""

    name: str
    sender: Addr
    transfer_id: bytes
    done: int
    total: int
    error: str = ""
    """Why it ended before it was whole."""


@dataclass(frozen=True, slots=True)
class SentFile:
    """A file that the receiver has stored."""

    receiver: Addr
    name: str
    size: int
    sha256: bytes
    resumed_at: int
    """Bytes the receiver had from an earlier attempt."""
    seconds: float
    """From the receiver's go-ahead until it had written the last byte; checking and storing the whole come after."""
    streamed: bool
    """Whether it went as a file stream, verified by the receiver, and not in one frame to an old one."""

    @property
    def throughput(self) -> float:
        """Megabytes (10^6 bytes) per second; 0.0 when nothing had to be sent."""
        sent = self.size - self.resumed_at
        return sent / self.seconds / 1e6 if sent and self.seconds else 0.0
