"""`trust.json`: the official file, read and written; changes are written one after the other (plugin handshake, L11).

Source: services.md 1.6. A user can bring the file of the official daemon. The list `distrusted` is our own; the
official daemon passes over it.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, TypeVar

from pilot.coreapi import InvalidValueError
from pilot.coreapi.files import private_directory, read_limited, write_atomically
from pilot.plugins.handshake.message import printable
from pilot.plugins.handshake.records import MAX_DISTRUSTED, REQUEST_SECONDS, PendingRequest, TrustBook, TrustRecord

if TYPE_CHECKING:
    import logging
    from pathlib import Path

__all__ = ["TRUST_NAME", "TrustFile", "dump", "load"]

TRUST_NAME: Final = "trust.json"
MAX_FILE_BYTES: Final = 16 * 1024 * 1024
PAUSE_SECONDS: Final = 0.1
"""Between two writes: strangers' requests change the book, and each write waits for the disk."""
MAX_NODE_ID: Final = 0xFFFFFFFD
MAX_NETWORK: Final = 0xFFFF
KEY_BYTES: Final = 32

T = TypeVar("T")

_ESCAPES: Final = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}
"""Go writes these so; all of them can occur inside of strings only."""


# --------------------------------------------------------------------------------------------- format


def dump(book: TrustBook) -> bytes:
    """The file's content."""
    fields: dict[str, Any] = {"trusted": [_trusted_fields(record) for record in book.trusted.values()] or None}
    if book.pending:
        fields["pending"] = [_pending_fields(request) for request in book.pending.values()]
    if book.revoked:
        fields["revoked"] = [{"node_id": node, "until": _time_text(at)} for node, at in book.revoked.items()]
    if book.outgoing:
        fields["outgoing"] = [{"node_id": node, "sent_at": _time_text(at)} for node, at in book.outgoing.items()]
    if book.distrusted:
        fields["distrusted"] = [{"node_id": node, "at": _time_text(at)} for node, at in book.distrusted.items()]
    return json.dumps(fields, indent=2, ensure_ascii=False).translate(_ESCAPES).encode()


def _trusted_fields(record: TrustRecord) -> dict[str, Any]:
    fields = {
        "node_id": record.node_id,
        "public_key": base64.b64encode(record.public_key).decode(),
        "approved_at": _time_text(record.approved_at),
        "mutual": record.mutual,
    }
    return {**fields, "network": record.network} if record.network else fields


def _pending_fields(request: PendingRequest) -> dict[str, Any]:
    fields = {
        "node_id": request.node_id,
        "public_key": base64.b64encode(request.public_key).decode(),
        "justification": request.justification,
        "received_at": _time_text(request.received_at),
        "source": request.source,
    }
    return {name: value for name, value in fields.items() if value}


def _time_text(at: int) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def load(data: bytes, now: float) -> tuple[TrustBook, int]:
    """The book in `data`, and how many entries were unusable and left out. Outgoing requests too old are left out too.

    Raises:
        InvalidValueError: it is no file of this kind.
    """
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidValueError(f"it is no JSON ({str(error)[:100]})") from None
    if not isinstance(fields, dict):
        raise InvalidValueError("it holds no JSON object")
    trusted, bad_trusted = _entries(fields, "trusted", _trusted)
    pending, bad_pending = _entries(fields, "pending", _pending)
    revoked, bad_revoked = _entries(fields, "revoked", lambda entry: (_node(entry), _time(entry, "until")))
    outgoing, bad_outgoing = _entries(fields, "outgoing", lambda entry: (_node(entry), _time(entry, "sent_at")))
    distrusted, bad_distrusted = _entries(fields, "distrusted", lambda entry: (_node(entry), _time(entry, "at")))
    book = TrustBook(
        {record.node_id: record for record in trusted},
        {request.node_id: request for request in pending},
        {node: at for node, at in outgoing if at >= now - REQUEST_SECONDS},
        dict(revoked),
        dict.fromkeys(node for node, _ in revoked),
        dict(distrusted[-MAX_DISTRUSTED:]),
    )
    return book, bad_trusted + bad_pending + bad_revoked + bad_outgoing + bad_distrusted


def _entries(fields: dict[str, Any], name: str, parse: Callable[[Any], T]) -> tuple[list[T], int]:
    """The usable entries of the list `name`, and the number of others."""
    entries = fields.get(name)
    if entries is None:
        return [], 0
    if not isinstance(entries, list):
        raise InvalidValueError(f"{name!r} in it is no list")
    good = []
    for entry in entries:
        try:
            good.append(parse(entry))
        except (InvalidValueError, KeyError, TypeError, AttributeError, ValueError, OverflowError):
            continue
    return good, len(entries) - len(good)


def _trusted(entry: Any) -> TrustRecord:
    mutual, network = entry.get("mutual", False), entry.get("network", 0)
    if not isinstance(mutual, bool):
        raise InvalidValueError("mutual is neither true nor false")
    return TrustRecord(_node(entry), _key(entry), _time(entry, "approved_at"), mutual, _number(network, 0, MAX_NETWORK))


def _pending(entry: Any) -> PendingRequest:
    justification = entry.get("justification", "")
    if not isinstance(justification, str):
        raise InvalidValueError("justification is no text")
    source = _number(entry.get("source", 0), 0, MAX_NODE_ID)
    return PendingRequest(_node(entry), _key(entry), printable(justification), _time(entry, "received_at"), source)


def _node(entry: Any) -> int:
    return _number(entry["node_id"], 1, MAX_NODE_ID)


def _number(value: Any, lowest: int, highest: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= highest:
        raise InvalidValueError(f"{value!r} is no whole number in {lowest}..{highest}")
    return value


def _key(entry: Any) -> bytes:
    try:
        key = base64.b64decode(entry.get("public_key", ""), validate=True)
    except binascii.Error:
        raise InvalidValueError("public_key is no base64") from None
    if len(key) not in (0, KEY_BYTES):
        raise InvalidValueError(f"public_key has {len(key)} bytes")
    return key


def _time(entry: Any, name: str) -> int:
    moment = datetime.fromisoformat(entry[name])
    if moment.tzinfo is None:
        raise InvalidValueError(f"{name} names no time zone")
    at = int(moment.timestamp())
    _time_text(at)  # a time zone can move it out of the years that can be written
    return at


# --------------------------------------------------------------------------------------------- the file


class TrustFile:
    """Keeps the file as the book is. `changed` never waits; `run` writes, one write for all changes during the last."""

    def __init__(self, directory: Path | None, logger: logging.Logger) -> None:
        self._path = None if directory is None else directory / TRUST_NAME
        self._log = logger
        self._wanted = asyncio.Event()
        self._writing = asyncio.Lock()
        self._failing = False

    async def load(self, now: float) -> TrustBook:
        """The book in the file; an empty one where there is no file, or none is kept.

        Raises:
            InvalidValueError: the file is damaged; it is left as it is.
            OSError: it cannot be read.
        """
        if self._path is None:
            return TrustBook()
        path = self._path
        try:
            data = await asyncio.to_thread(read_limited, path, MAX_FILE_BYTES)
        except FileNotFoundError:
            return TrustBook()
        try:
            book, unusable = load(data, now)
        except InvalidValueError as error:
            raise InvalidValueError(f"trust file {path} is damaged: {error}; repair it or move it away") from None
        if unusable:
            self._log.warning("%d entries of %s cannot be used and will be left out", unusable, path)
        return book

    def changed(self) -> None:
        """The book is not what the file says any more."""
        self._wanted.set()

    async def run(self, book: TrustBook) -> None:
        """Writes whenever something has changed. Ends when cancelled."""
        while True:
            await self._wanted.wait()
            await self.write(book)
            await asyncio.sleep(PAUSE_SECONDS)

    async def write(self, book: TrustBook) -> None:
        """Writes the book as it is now. That it cannot be written is logged once; the next change tries again.

        Cancelled, it ends when the disk has it or the file is as it was.
        """
        if self._path is None:
            self._wanted.clear()
            return
        async with self._writing:
            self._wanted.clear()
            data = dump(book)
            try:
                await self._write(self._path, data)
            except (OSError, InvalidValueError) as error:
                if not self._failing:
                    self._log.error("trust could not be written to %s, so it ends with the node: %s", self._path, error)
                self._failing = True
            else:
                self._failing = False

    async def _write(self, path: Path, data: bytes) -> None:
        def write() -> None:
            private_directory(path.parent)
            write_atomically(path, data)

        writing = asyncio.ensure_future(asyncio.to_thread(write))
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            # The thread goes on whatever happens here: it must not replace what is written after it.
            await asyncio.wait([writing])
            raise
