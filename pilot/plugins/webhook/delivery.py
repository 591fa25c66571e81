"""The queue of one webhook URL: numbers, order, tries, breaker (plugin policy, L11). Source: services.md 8.1."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pilot.coreapi import InvalidValueError, recover_plugin
from pilot.plugins.webhook.body import event_body, signature

if TYPE_CHECKING:
    from collections.abc import Callable
    from logging import Logger

    from pilot.coreapi import Event, EventBus, Subscription
    from pilot.plugins.webhook.poster import Poster

__all__ = ["QUEUE_EVENTS", "Counters", "Delivery"]

QUEUE_EVENTS: Final = 1024
PAUSES: Final = (1.0, 2.0)
"""Seconds before the second and the third try, the last one."""
BREAKER_FAILURES: Final = 5
"""Events in a row that used up their tries."""
BREAKER_SECONDS: Final = 30.0
CRASH_PAUSE_SECONDS: Final = 1.0
"""After a crash, which is an event itself: a crash for each event must not spin."""


@dataclass
class Counters:
    """What became of events, over all URLs of one service."""

    delivered: int = 0
    failed: int = 0
    """Refused with 3xx or 4xx, out of tries, without a body, or not sent when the webhook stopped."""
    queue_dropped: int = 0
    circuit_skips: int = 0


class Delivery:
    """Takes every event from the bus and posts them one after the other, in order.

    Events are numbered from 1 when they are taken, the dropped ones too, so a receiver sees gaps. At most
    `QUEUE_EVENTS` wait. A status below 300 is success. Others up to 499 end the event; 5xx, no answer or no connection
    use up one of three tries. After five events out of tries in a row events are skipped for 30 s; the next one
    then decides.
    """

    def __init__(
        self,
        poster: Poster,
        secret: bytes,
        events: EventBus,
        *,
        counters: Counters,
        clock: Callable[[], float],
        logger: Logger,
    ) -> None:
        self._poster = poster
        self._secret = secret
        self._events = events
        self._counters = counters
        self._clock = clock
        self._log = logger
        self._subscription: Subscription = events.subscribe("")
        self._queue: deque[tuple[int, Event]] = deque()
        self._filled = asyncio.Event()
        self._failures = 0
        self._closed_until = clock()
        self._collecting = asyncio.create_task(self._collect(), name="pilot webhook queue")
        self._delivering = asyncio.create_task(self._deliver(), name="pilot webhook delivery")

    def __repr__(self) -> str:
        return f"<delivery to {self._poster!r}>"

    async def finish(self, seconds: float) -> None:
        """Takes no more events, and returns when the queue has been worked off or `seconds` have passed.

        What is left then is counted as failed. Cancelled, the same without waiting.
        """
        self._subscription.close()
        tasks = [self._collecting, self._delivering]
        try:
            await asyncio.wait(tasks, timeout=seconds)
        finally:
            for task in tasks:
                task.cancel()
            self._counters.failed += len(self._queue)
            self._queue.clear()
            await asyncio.wait(tasks)
            await self._poster.close()

    # ------------------------------------------------------------------------------------------ taking

    async def _collect(self) -> None:
        """Empties the bus's ring, so that a slow receiver fills our queue only."""
        number = lost = 0
        with recover_plugin("webhook", "queue", self._events), self._subscription:
            async for event in self._subscription:
                newly_lost, lost = self._subscription.dropped - lost, self._subscription.dropped
                number += newly_lost + 1
                self._counters.queue_dropped += newly_lost
                if len(self._queue) >= QUEUE_EVENTS:
                    self._counters.queue_dropped += 1
                    continue
                self._queue.append((number, event))
                self._filled.set()
        self._filled.set()

    # ------------------------------------------------------------------------------------------ giving

    async def _deliver(self) -> None:
        while True:
            with recover_plugin("webhook", "bridgeLoop", self._events):
                return await self._work_off()
            await asyncio.sleep(CRASH_PAUSE_SECONDS)

    async def _work_off(self) -> None:
        """One event after the other, until the subscription has ended and the queue is empty."""
        while True:
            while not self._queue:
                if self._collecting.done():
                    return
                self._filled.clear()
                await self._filled.wait()
            number, event = self._queue.popleft()
            if self._clock() < self._closed_until:
                self._counters.circuit_skips += 1
                continue
            sent = False
            try:
                sent = await self._send(number, event)
            finally:
                if sent:
                    self._counters.delivered += 1
                else:
                    self._counters.failed += 1

    async def _send(self, number: int, event: Event) -> bool:
        """Whether the receiver took the event."""
        try:
            body = event_body(number, event)
        except InvalidValueError as error:
            self._log.warning("event %s is not sent: %s", event.topic, error)
            return False
        headers = {"X-Pilot-Signature-256": signature(self._secret, body)} if self._secret else {}
        try:
            for pause in (*PAUSES, None):
                problem = await self._try(body, headers)
                if not problem:
                    self._failures = 0
                    return True
                if pause is not None:
                    await asyncio.sleep(pause)
        except _RefusedError as error:
            self._log.warning("event %d (%s) is lost: %s: %s", number, event.topic, self._poster, error)
            return False
        self._log.warning("event %d (%s) is lost after 3 tries: %s: %s", number, event.topic, self._poster, problem)
        self._failures += 1
        if self._failures >= BREAKER_FAILURES:
            self._closed_until = self._clock() + BREAKER_SECONDS
            self._log.warning("%s: events are skipped for %g s", self._poster, BREAKER_SECONDS)
        return False

    async def _try(self, body: bytes, headers: dict[str, str]) -> str:
        """An empty string, or why the try failed; raises `_RefusedError` where another one is no use."""
        try:
            status = await self._poster.post(body, headers)
        except TimeoutError:
            return "no answer in time"
        except OSError as error:
            return str(error)
        except InvalidValueError as error:
            raise _RefusedError(str(error)) from error
        if status >= 500:
            return f"status {status}"
        if status >= 300:
            hint = "redirects are not followed, set the URL it leads to" if status < 400 else "it refuses the event"
            raise _RefusedError(f"status {status}: {hint}")
        return ""


class _RefusedError(Exception):
    """The receiver, or its address, is not to be tried again for this event."""
