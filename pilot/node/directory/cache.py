"""Answers of the registry kept for a while, asked for once however many wait, and failures kept for a moment (L8)."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

from pilot._fast.errors import ClosedError, PeerNotFoundError, PilotError, RegistryError
from pilot.node.directory.client import RegistryRefusedError

__all__ = ["NEGATIVE_SECONDS", "AnswerCache"]

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

MAX_ANSWERS = 4096
MAX_FAILURES = 4096
NEGATIVE_SECONDS = 3.0


class _Table(Generic[K, V]):
    """At most `cap` values with the time they came; the oldest make room."""

    def __init__(self, cap: int) -> None:
        self._cap = cap
        self._entries: OrderedDict[K, tuple[float, V]] = OrderedDict()

    def put(self, key: K, value: V, now: float) -> None:
        self._entries[key] = now, value
        self._entries.move_to_end(key)
        if len(self._entries) > self._cap:
            self._entries.popitem(last=False)

    def get(self, key: K, not_before: float) -> tuple[V] | None:
        """The value in a 1-tuple if it came at `not_before` or later, else None."""
        entry = self._entries.get(key)
        return (entry[1],) if entry and entry[0] >= not_before else None

    def drop(self, key: K) -> None:
        self._entries.pop(key, None)

    def __len__(self) -> int:
        return len(self._entries)


class AnswerCache(Generic[K, V]):
    """One kind of question to the registry.

    An answer is fresh for `fresh` seconds. When the registry cannot be asked one up to `stale` seconds old serves as
    well, but never after the registry said no. A failure is repeated to everybody for `NEGATIVE_SECONDS`. Only one
    request per key is under way, and it is given up after `limit` seconds; a waiter that is cancelled does not end it.
    """

    def __init__(
        self,
        ask: Callable[[K], Awaitable[V]],
        *,
        fresh: float,
        stale: float,
        limit: float,
        too_slow: Callable[[], RegistryError],
        check_loop: Callable[[], None] = lambda: None,
    ) -> None:
        self._ask = ask
        self._fresh, self._stale, self._limit = fresh, stale, limit
        self._too_slow = too_slow
        self._check_loop = check_loop
        self._answers: _Table[K, V] = _Table(MAX_ANSWERS)
        self._failures: _Table[K, Callable[[], PilotError]] = _Table(MAX_FAILURES)
        self._under_way: dict[K, asyncio.Task[V]] = {}
        self._tasks: set[asyncio.Task[V]] = set()
        self._closed = False

    async def get(self, key: K, max_age: float | None = None) -> V:
        """The answer for `key`, at most `max_age` seconds old (None: `fresh`) unless the registry cannot be asked.

        Raises:
            PeerNotFoundError, RegistryError: what the request raised.
            ClosedError: the cache was closed.
            BusyError: this is another loop or thread.
        """
        self._check_loop()
        now = asyncio.get_running_loop().time()
        fresh = self._fresh if max_age is None else max_age
        # A loop's clock may stand still for a millisecond: an answer of this moment is not younger than "no age".
        if fresh > 0 and (answer := self._answers.get(key, now - fresh)):
            return answer[0]
        try:
            if failure := self._failures.get(key, now - NEGATIVE_SECONDS):
                raise failure[0]()
            return await self._answered(self._request(key))
        except (PeerNotFoundError, RegistryRefusedError):
            raise
        except RegistryError:
            if answer := self._answers.get(key, now - self._stale):
                return answer[0]
            raise

    async def _answered(self, task: asyncio.Task[V]) -> V:
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            waiter = asyncio.current_task()
            if task.cancelled() and waiter is not None and not waiter.cancelling():
                raise ClosedError("the directory was closed before the registry was asked") from None
            raise

    def peek(self, key: K) -> V | None:
        """The answer for `key` that is there, if it is fresh."""
        answer = self._answers.get(key, asyncio.get_running_loop().time() - self._fresh)
        return answer[0] if answer else None

    def forget(self, key: K) -> None:
        """Drops what is known about `key`; a request under way is for those who wait already, and not kept."""
        self._answers.drop(key)
        self._failures.drop(key)
        self._under_way.pop(key, None)

    async def close(self) -> None:
        """Ends the requests under way; who waits for one gets `ClosedError`. May be repeated."""
        self._closed = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _request(self, key: K) -> asyncio.Task[V]:
        if self._closed:
            raise ClosedError("the directory is closed: start the node again")
        task = self._under_way.get(key)
        if task is None:
            task = self._under_way[key] = asyncio.get_running_loop().create_task(self._run(key))
            self._tasks.add(task)
            task.add_done_callback(lambda done: self._finished(key, done))
        return task

    def _finished(self, key: K, task: asyncio.Task[V]) -> None:
        self._tasks.discard(task)
        if self._under_way.get(key) is task:
            del self._under_way[key]
        if not task.cancelled():
            task.exception()  # marks it as seen: all who waited may have been cancelled

    async def _run(self, key: K) -> V:
        """Asks and keeps the outcome; an end by `close` reaches the waiters as `ClosedError`, not as cancellation."""
        try:
            async with asyncio.timeout(self._limit):
                answer = await self._ask(key)
        except asyncio.CancelledError:
            if self._closed:
                raise ClosedError("the directory was closed while the registry was asked") from None
            raise
        except TimeoutError:
            error: PilotError = self._too_slow()
        except (PeerNotFoundError, RegistryError) as failure:
            error = failure
        else:
            if self._is_current(key):
                self._failures.drop(key)
                self._answers.put(key, answer, asyncio.get_running_loop().time())
            return answer
        if self._is_current(key):
            self._failures.put(key, _remake(error), asyncio.get_running_loop().time())
            if isinstance(error, PeerNotFoundError | RegistryRefusedError):
                self._answers.drop(key)
        raise error.with_traceback(None)

    def _is_current(self, key: K) -> bool:
        """Whether `key` was not forgotten since the request of this task was made."""
        return self._under_way.get(key) is asyncio.current_task()


def _remake(error: PilotError) -> Callable[[], PilotError]:
    """Makes errors like `error`: to keep the object itself would keep alive everything its traceback refers to."""
    kind, message = type(error), str(error)
    if isinstance(error, RegistryRefusedError):
        text = error.text
        return lambda: RegistryRefusedError(message, text)
    return lambda: kind(message)
