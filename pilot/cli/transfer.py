"""One file over one stream: offer, resume point, bytes, verdict (L12). The format is in docs/FILE-TRANSFER.md.

    sender    "PXF1", then a JSON message: {"name": ..., "size": ..., "sha256": ...}
    receiver  a JSON message: {"offset": n}, or {"refused": reason} and the end
    sender    the bytes from `offset` to `size`
    receiver  a JSON message: {"ok": true}, or {"ok": false, "error": reason}

A JSON message is a 4-byte big-endian length (at most 64 KiB) and that many bytes of UTF-8.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pilot._fast.errors import PilotError

if TYPE_CHECKING:
    from collections.abc import Callable
    from io import BufferedReader, FileIO

    from pilot.coreapi import Stream

    Progress = Callable[[int, int], None]
    """Told how many bytes of how many are across."""

__all__ = ["TRANSFER_PORT", "FileOffer", "Received", "Sent", "TransferError", "hash_file", "receive_file", "send_file"]

TRANSFER_PORT: Final = 4711
MAGIC: Final = b"PXF1"
MAX_MESSAGE_BYTES: Final = 64 * 1024
MAX_NAME_BYTES: Final = 200
"""A name must leave room for `.part` and a number below the 255 bytes of common file systems."""
CHUNK_BYTES: Final = 1024 * 1024
IDLE_SECONDS: Final = 60.0
"""Either end gives up when the other does nothing for so long; hashing a large file counts as something."""
HASH_SECONDS: Final = 3600.0

_SHA256: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)


class TransferError(PilotError):
    """The other end refused the file, broke the format, or what arrived is not what was offered."""


@dataclass(frozen=True, slots=True)
class FileOffer:
    """What a sender says about its file."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Sent:
    """A file that was sent: `bytes` of it in `seconds`, until all were acknowledged; `offset` were there before."""

    bytes: int
    offset: int
    seconds: float

    @property
    def throughput(self) -> float:
        """Megabytes (10^6 bytes) per second; 0.0 when nothing had to be sent."""
        return self.bytes / self.seconds / 1e6 if self.bytes and self.seconds else 0.0


@dataclass(frozen=True, slots=True)
class Received:
    """A file that arrived whole and was verified. `offset` bytes of it were there from an earlier attempt."""

    path: Path
    size: int
    sha256: str
    offset: int


def hash_file(path: Path) -> str:
    """The SHA-256 of a file in hexadecimal digits. Blocks: call it in a thread."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


async def send_file(stream: Stream, path: Path, sha256: str, progress: Progress) -> Sent:
    """Sends the file at `path`; returns when the receiver has verified it.

    Cancelled, the receiver keeps what it has and another attempt goes on from there.

    Raises:
        TransferError: the receiver refused the file or found it damaged.
        OSError: the file cannot be read, or the stream broke (`PilotError`); `TimeoutError`: the receiver went silent.
    """
    with _open_source(path) as file:
        size = os.fstat(file.fileno()).st_size
        await stream.write(MAGIC)
        await _write_message(stream, {"name": path.name, "size": size, "sha256": sha256})
        answer = await _read_message_untrusted(stream, HASH_SECONDS)
        if "refused" in answer:
            raise TransferError(f"the receiver refused {path.name!r}: {_clip(answer['refused'])}")
        offset = answer.get("offset")
        if type(offset) is not int or not 0 <= offset <= size:
            raise TransferError("the receiver named no usable offset: does `pilot recv` run there?")
        started = time.monotonic()
        await _send_bytes(stream, file, offset, size, progress)
        seconds = time.monotonic() - started
    verdict = await _read_message_untrusted(stream, HASH_SECONDS)
    if verdict.get("ok") is not True:
        reason = _clip(verdict.get("error", "no reason given"))
        raise TransferError(f"the receiver did not accept {path.name!r}: {reason}")
    return Sent(size - offset, offset, seconds)


def _open_source(path: Path) -> BufferedReader:
    return open(path, "rb")


async def _send_bytes(stream: Stream, file: BufferedReader, offset: int, size: int, progress: Progress) -> None:
    file.seek(offset)
    buffer = memoryview(bytearray(CHUNK_BYTES))
    done = offset
    progress(done, size)
    while done < size:
        count = file.readinto(buffer[: min(CHUNK_BYTES, size - done)])
        if not count:
            raise TransferError(f"the file became shorter while it was sent: {done} of {size} bytes were there")
        stream.set_write_deadline(_idle_deadline())
        await stream.write(buffer[:count])
        done += count
        progress(done, size)
    stream.set_write_deadline(_idle_deadline())
    await stream.drain()
    stream.set_write_deadline(None)


async def receive_file(
    stream: Stream,
    directory: Path,
    progress: Progress,
    *,
    max_bytes: int,
    accept: Callable[[FileOffer], str | None] = lambda offer: None,
) -> Received:
    """Takes one file into `directory` under the offered name, or a numbered one; never replaces a file.

    An unfinished file stays as `.<sha256>.part`; a sender that offers the same content again goes on from there.
    `accept` returns a reason to refuse an offer. Cancelled, the unfinished file stays.

    Raises:
        TransferError: the offer is unusable or refused, or the content is not what was offered (it is then deleted).
        asyncio.IncompleteReadError: the sender ended before everything was there.
        OSError: the file cannot be written, or the stream broke (`PilotError`); `TimeoutError`: the sender went silent.
    """
    try:
        offer = await _read_offer_untrusted(stream)
        reason = accept(offer)
        if offer.size > max_bytes:
            reason = f"{offer.size} bytes are more than the {max_bytes} allowed here"
        if reason:
            raise TransferError(reason)
    except TransferError as error:
        await _write_message(stream, {"refused": str(error)})
        raise
    part = directory / f".{offer.sha256}.part"
    with _open_part(part) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            await _write_message(stream, {"refused": "the same content is arriving already"})
            raise TransferError(f"{offer.name!r} is arriving over another stream already") from None
        offset = min(os.fstat(file.fileno()).st_size, offer.size)
        await _write_message(stream, {"offset": offset})
        await _receive_bytes(stream, file, offset, offer.size, progress)
    actual = await asyncio.to_thread(hash_file, part)
    if actual != offer.sha256:
        part.unlink()
        await _write_message(stream, {"ok": False, "error": f"its SHA-256 is {actual} there"})
        raise TransferError(f"{offer.name!r} arrived damaged: SHA-256 {actual}, offered {offer.sha256}; it was deleted")
    path = _publish(part, directory / offer.name)
    await _write_message(stream, {"ok": True})
    return Received(path, offer.size, offer.sha256, offset)


async def _receive_bytes(stream: Stream, file: FileIO, offset: int, size: int, progress: Progress) -> None:
    buffer = memoryview(bytearray(CHUNK_BYTES))
    file.truncate(offset)
    file.seek(offset)
    done = offset
    progress(done, size)
    while done < size:
        stream.set_read_deadline(_idle_deadline())
        count = await stream.read_into(buffer[: min(CHUNK_BYTES, size - done)])
        if not count:
            raise asyncio.IncompleteReadError(b"", size - done)
        written = 0
        while written < count:
            written += file.write(buffer[written:count])
        done += count
        progress(done, size)
    stream.set_read_deadline(None)


def _open_part(path: Path) -> FileIO:
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    return open(os.open(path, flags, 0o600), "wb", buffering=0)


def _publish(part: Path, path: Path) -> Path:
    """Gives the finished file its name, `stem (2).suffix` and so on where it is taken; never replaces a file."""
    number, target = 1, path
    while True:
        try:
            os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        except FileExistsError:
            number += 1
            target = path.with_name(f"{path.stem} ({number}){path.suffix}")
        else:
            os.replace(part, target)
            return target


async def _read_offer_untrusted(stream: Stream) -> FileOffer:
    stream.set_read_deadline(_idle_deadline())
    if await stream.readexactly(len(MAGIC)) != MAGIC:
        raise TransferError("this port takes files from `pilot send` only")
    message = await _read_message_untrusted(stream, IDLE_SECONDS)
    name, size, sha256 = message.get("name"), message.get("size"), message.get("sha256")
    if not isinstance(name, str) or not _is_safe_name(name):
        raise TransferError("the offered file name cannot be used here")
    if type(size) is not int or size < 0:
        raise TransferError("the offer holds no usable size")
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        raise TransferError("the offer holds no SHA-256")
    return FileOffer(name, size, sha256)


def _is_safe_name(name: str) -> bool:
    """A plain visible name: no path, no hidden file, nothing a terminal would act on."""
    return (
        name == Path(name).name
        and not name.startswith(".")
        and "\\" not in name
        and name.isprintable()
        and 0 < len(name.encode("utf-8", "replace")) <= MAX_NAME_BYTES
    )


async def _write_message(stream: Stream, message: dict[str, Any]) -> None:
    body = json.dumps(message).encode()
    stream.set_write_deadline(_idle_deadline())
    await stream.write(len(body).to_bytes(4, "big") + body)
    stream.set_write_deadline(None)


async def _read_message_untrusted(stream: Stream, seconds: float) -> dict[str, Any]:
    stream.set_read_deadline(asyncio.get_running_loop().time() + seconds)
    length = int.from_bytes(await stream.readexactly(4), "big")
    if length > MAX_MESSAGE_BYTES:
        raise TransferError("the other end does not speak the file transfer protocol")
    body = await stream.readexactly(length)
    stream.set_read_deadline(None)
    try:
        message = json.loads(body)
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict):
        raise TransferError("the other end does not speak the file transfer protocol")
    return message


def _idle_deadline() -> float:
    return asyncio.get_running_loop().time() + IDLE_SECONDS


def _clip(text: object) -> str:
    return "".join(c if c.isprintable() else "?" for c in str(text)[:200])
