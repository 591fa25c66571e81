"""`EventStreamClient`: subscribes and publishes at the broker of a peer (plugin eventstream, L11).

Source: services.md section 3.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Self

from pilot.plugins._receiving import MemoryBudget
from pilot.plugins._targets import find
from pilot.plugins.eventstream.frames import EVERYTHING, MAX_PAYLOAD_BYTES, encode_event, read_event_untrusted

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Buffer

    from pilot.coreapi import PeerResolver, Stream, Streams
    from pilot.plugins._targets import Target
    from pilot.plugins.eventstream.frames import StreamEvent

__all__ = ["EVENT_STREAM_PORT", "EventStreamClient", "EventSubscription"]

EVENT_STREAM_PORT: Final = 1002
STEP_SECONDS: Final = 60.0
"""How long a broker may take for a piece of what is written, and go silent within an event."""


class EventSubscription:
    """One stream to a broker: the events of one topic, or of all. Comes from `EventStreamClient.subscribe`.

    `async for event in subscription` until the broker ends it. What is published through it does not come back on it.
    At most one task may read and one may publish at a time.
    """

    def __init__(self, stream: Stream, topic: str) -> None:
        self.topic = topic
        self._stream = stream
        self._budget = MemoryBudget(MAX_PAYLOAD_BYTES, MAX_PAYLOAD_BYTES)

    async def publish(self, topic: str, payload: Buffer | str = b"") -> None:
        """Publishes under any topic; returns when it is under way. The broker does not answer.

        It drops what is more than 200 events at once or 100 per second, without a word. Cancelled, the subscription can
        no longer be used.

        Raises:
            InvalidValueError: topic or payload is too long.
            TimeoutError: the broker took nothing for 60 s.
            ResetError, PathError, ClosedError, BusyError: as `Stream.write`.
        """
        frame = encode_event(topic, payload.encode() if isinstance(payload, str) else payload)
        self._stream.set_write_deadline(asyncio.get_running_loop().time() + STEP_SECONDS)
        await self._stream.write(frame)

    async def drain(self) -> None:
        """Returns when the broker's node has everything published so far. Raises what `Stream.drain` raises."""
        self._stream.set_write_deadline(asyncio.get_running_loop().time() + STEP_SECONDS)
        await self._stream.drain()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> StreamEvent:
        """The next event. Cancelled within an event, the subscription can no longer be used.

        Raises:
            InvalidValueError: what the broker sent is no event.
            TimeoutError, EOFError: it stopped within one.
            ResetError, PathError, ClosedError, BusyError: as `Stream.read`.
        """
        with self._budget.lease(0) as lease:
            event = await read_event_untrusted(self._stream, lease, STEP_SECONDS)
        if event is None:
            raise StopAsyncIteration
        return event

    async def close(self) -> None:
        """Ends the subscription after what has been published. May be repeated."""
        await self._stream.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._stream.__aexit__(exc_type, exc, tb)


class EventStreamClient:
    """Subscribes and publishes over any `coreapi.Streams`. `resolver` is needed for hostnames alone."""

    def __init__(
        self, streams: Streams, resolver: PeerResolver | None = None, *, port: int = EVENT_STREAM_PORT
    ) -> None:
        self._streams = streams
        self._resolver = resolver
        self._port = port

    async def subscribe(
        self, target: Target, topic: str = EVERYTHING, *, timeout: float | None = None
    ) -> EventSubscription:
        """The events of `topic` at the broker of `target`, of all topics for `*`. Use it with `async with`.

        The broker does not answer to a subscription, so this returns when it is under way; one that the broker refuses
        ends at once. `timeout` is that of the dial, in seconds. Cancelled, none is left.

        Raises:
            InvalidValueError: target or topic cannot be used.
            PeerNotFoundError, RefusedError, TimeoutError, PathError, RegistryError, ClosedError: as `Streams.dial`.
        """
        frame = encode_event(topic)
        stream = await self._streams.dial(await find(target, self._resolver), self._port, timeout=timeout)
        try:
            await stream.write(frame)
        except BaseException as error:
            await stream.__aexit__(type(error), error, None)
            raise
        return EventSubscription(stream, topic)

    async def publish(
        self, target: Target, topic: str, payload: Buffer | str = b"", *, timeout: float | None = None
    ) -> None:
        """Publishes one event at the broker of `target`; returns when its node has it. The broker does not answer.

        For many events `subscribe` once and use `publish` of the subscription.

        Raises:
            InvalidValueError: target, topic or payload cannot be used.
            PeerNotFoundError, RefusedError, TimeoutError, PathError, RegistryError, ClosedError: as `Streams.dial`.
            ResetError: the broker ended the stream before it had the event.
        """
        data = payload.encode() if isinstance(payload, str) else payload
        encode_event(topic, data)  # before a stream is opened for nothing
        # The first frame of a stream is a subscription, whatever one wants; the official tool does the same.
        async with await self.subscribe(target, topic, timeout=timeout) as subscription:
            await subscription.publish(topic, data)
            await subscription.drain()
