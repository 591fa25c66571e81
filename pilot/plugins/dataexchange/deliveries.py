"""What happens to a message or file that has arrived: duplicates, stores, readers, events (plugin dataexchange, L11).

Source: services.md 2.2 to 2.4.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final, NamedTuple, ParamSpec, TypeVar

from pilot.coreapi import BusyError, PilotError
from pilot.plugins.dataexchange.feed import Feed
from pilot.plugins.dataexchange.frames import MESSAGE_TYPES, FileContent, FrameType, Tags, printable, type_name
from pilot.plugins.dataexchange.model import Message, ReceivedFile
from pilot.plugins.dataexchange.naming import plain_name
from pilot.plugins.dataexchange.received import PartialFile

if TYPE_CHECKING:
    from pathlib import Path

    from pilot.coreapi import Addr, EventBus
    from pilot.plugins.dataexchange.connection import Connection
    from pilot.plugins.dataexchange.received import Received
    from pilot.plugins.dataexchange.store import Inbox

__all__ = ["Deliveries", "in_thread", "reason", "to_the_end"]

P = ParamSpec("P")
R = TypeVar("R")

DUPLICATE_SECONDS: Final = 600.0
MAX_DUPLICATES: Final = 8192
"""Answers kept to recognise a repeated frame by."""
FEED_CAPACITY: Final = 1024
QUOTA_TEXTS: Final = {FrameType.FILE: "received-files", FrameType.FILESTREAM: "receiver disk"}
SMALL_BYTES: Final = 64 * 1024
"""Up to here a hash is not worth a thread."""


async def to_the_end(work: Coroutine[Any, Any, R]) -> R:
    """`work` in a task. Cancelled, however often, it waits for the end of the work first."""
    running = asyncio.ensure_future(work)
    cancelled = None
    while not running.done():
        try:
            await asyncio.wait([running])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        if not running.cancelled():
            running.exception()
        raise cancelled
    return running.result()


async def in_thread(call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """`call` in a thread. Cancelled, it waits for the end of the call first: nobody works on a closed file."""
    return await to_the_end(asyncio.to_thread(call, *args, **kwargs))


def reason(error: Exception) -> str:
    """Why something could not be stored, for the peer: no paths of this machine."""
    if isinstance(error, PilotError):
        return str(error)
    return getattr(error, "strerror", None) or type(error).__name__


class _Key(NamedTuple):
    sender: int
    number: int
    file_name: str
    tags: Tags
    sha256: bytes


class Deliveries:
    """Everything one service has taken, and is about to take. Without an inbox messages go to readers alone."""

    def __init__(
        self,
        inbox: Inbox | None,
        received: Received | None,
        events: EventBus,
        clock: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        self.received = received
        self.wall = wall
        self.stored_messages = 0
        self.stored_files = 0
        self.refused = 0
        self._inbox = inbox
        self._events = events
        self._clock = clock
        self._messages: set[Feed[Message]] = set()
        self._files: set[Feed[ReceivedFile]] = set()
        self._answers: OrderedDict[_Key, tuple[float, str]] = OrderedDict()
        self._in_progress: dict[_Key, asyncio.Future[None]] = {}
        self.transfers: dict[tuple[int, bytes], Connection] = {}
        """The streams on which files arrive that can be resumed, by sender and transfer."""

    def messages(self, capacity: int = FEED_CAPACITY) -> Feed[Message]:
        """A reader of the messages from now on."""
        feed: Feed[Message] = Feed(capacity, self._messages.discard)
        self._messages.add(feed)
        return feed

    def files(self, capacity: int = FEED_CAPACITY) -> Feed[ReceivedFile]:
        """A reader of the files from now on."""
        feed: Feed[ReceivedFile] = Feed(capacity, self._files.discard)
        self._files.add(feed)
        return feed

    def close(self) -> None:
        """Ends all readers."""
        for messages in list(self._messages):
            messages.close()
        for files in list(self._files):
            files.close()
        if self.received is not None:
            self.received.close()

    # ---- frames ------------------------------------------------------------------------------------------------------

    async def deliver(
        self, sender: Addr, number: int, payload: memoryview, file: FileContent | None, tags: Tags
    ) -> str:
        """Takes a TEXT, BINARY, JSON or FILE frame, or whatever came in its place; the answer to it."""
        if not tags.message_id:
            return await self._take(sender, number, payload, file, tags)
        key = _Key(sender.node, number, file.name if file else "", tags, await _sha256(payload))
        while (running := self._in_progress.get(key)) is not None:
            await asyncio.wait([running])
        if (known := self._answer_of(key)) is not None:
            return f"{known} (duplicate)"
        self._in_progress[key] = done = asyncio.get_running_loop().create_future()
        try:
            answer = await self._take(sender, number, payload, file, tags)
        finally:
            del self._in_progress[key]
            done.set_result(None)
        if answer.startswith("ACK"):
            self._remember(key, answer)
        return answer

    def _answer_of(self, key: _Key) -> str | None:
        expires, answer = self._answers.get(key, (0.0, ""))
        return answer if self._clock() < expires else None

    def _remember(self, key: _Key, answer: str) -> None:
        now = self._clock()
        self._answers[key] = now + DUPLICATE_SECONDS, answer
        self._answers.move_to_end(key)
        while self._answers:
            oldest = next(iter(self._answers))
            if len(self._answers) <= MAX_DUPLICATES and now < self._answers[oldest][0]:
                break
            del self._answers[oldest]

    async def _take(self, sender: Addr, number: int, payload: memoryview, file: FileContent | None, tags: Tags) -> str:
        name, size = type_name(number), len(payload)
        if number == FrameType.FILE and file is not None:
            size = len(file.content)
            problem = await self._store_file(sender, file, tags) if file.name else ""
        elif number in MESSAGE_TYPES:
            problem = await self.store_message(sender, name, payload, tags)
        else:
            problem = f"unsupported frame type {number}"
        return f"ERR {name} save failed: {problem}" if problem else f"ACK {name} {size} bytes"

    # ---- messages ----------------------------------------------------------------------------------------------------

    async def store_message(self, sender: Addr, kind: str, payload: memoryview, tags: Tags) -> str:
        """Stores a message; why it was not, or an empty text."""
        message = Message(kind, bytes(payload), sender, self.wall(), tags, None)
        size = len(message.data)
        if self._inbox is not None:
            try:
                message = message._replace(path=await in_thread(self._inbox.save, message))
            except BusyError as error:
                self._refuse("inbox.full", sender, kind, size, self._inbox.max_bytes)
                return str(error)
            except (OSError, PilotError) as error:
                self.refused += 1
                return f"write: {reason(error)}"
        taken = [feed.offer(message, size) for feed in list(self._messages)]
        if self._inbox is None and not any(taken):
            self.refused += 1
            return "nobody reads messages here" if not taken else "those who read messages here have no room"
        self.stored_messages += 1
        self._publish("message.received", {"type": kind, "from": str(sender), "size": size}, tags)
        return ""

    # ---- files -------------------------------------------------------------------------------------------------------

    async def _store_file(self, sender: Addr, file: FileContent, tags: Tags) -> str:
        try:
            partial = await self.begin_file(sender, FrameType.FILE, len(file.content))
        except BusyError as error:
            return str(error)
        except OSError as error:
            return f"write: {reason(error)}"

        def store() -> tuple[Path, bytes]:
            try:
                partial.append([file.content])
                digest = partial.digest()
                return partial.publish(plain_name(file.name)), digest
            finally:
                partial.close()

        try:
            path, digest = await in_thread(store)
        except OSError as error:
            self.refused += 1
            return f"write: {reason(error)}"
        self.file_stored(ReceivedFile(path, file.name, len(file.content), digest, sender, 0, tags), file.name)
        return ""

    async def begin_file(self, sender: Addr, kind: FrameType, size: int, transfer_id: bytes = b"") -> PartialFile:
        """An unfinished file to write to. Raises `BusyError` with the reason it is refused for; `OSError`."""
        if self.received is None:
            self.refused += 1
            raise BusyError("no files are taken here")
        received, begun = self.received, list[PartialFile]()
        try:
            await in_thread(lambda: begun.append(received.begin(size, transfer_id, sender=sender.node)))
        except asyncio.CancelledError:
            for partial in begun:
                partial.close()
            raise
        except BusyError as error:
            self._refuse("received.full", sender, kind.name, size, received.max_bytes)
            raise BusyError(f"{QUOTA_TEXTS[kind]} quota exceeded: {error}") from None
        return begun[0]

    def file_stored(self, file: ReceivedFile, shown_name: str) -> None:
        """Tells readers and the bus of a file under its final name."""
        self.stored_files += 1
        for feed in list(self._files):
            feed.offer(file)
        payload = {"filename": printable(shown_name), "size": file.size, "path": str(file.path)}
        self._publish("file.received", payload, file.tags)

    # ---- events ------------------------------------------------------------------------------------------------------

    def _publish(self, topic: str, payload: dict[str, Any], tags: Tags) -> None:
        ids = {name: value for name, value in tags._asdict().items() if value}
        self._events.publish(topic, {**payload, **ids})

    def _refuse(self, topic: str, sender: Addr, kind: str, size: int, limit: int) -> None:
        self.refused += 1
        payload: dict[str, Any] = {"type": kind, "frame_bytes": size, "max_bytes": limit}
        if topic == "inbox.full":
            payload["from"] = str(sender)
        self._events.publish(topic, payload)


async def _sha256(payload: memoryview) -> bytes:
    if len(payload) <= SMALL_BYTES:
        return hashlib.sha256(payload).digest()
    return await in_thread(lambda: hashlib.sha256(payload).digest())
