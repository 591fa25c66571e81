"""The answer cache: freshness, staleness, failures kept for a moment, one request per key, bounds (L8)."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable

import pytest

from pilot._fast.errors import ClosedError, PeerNotFoundError, RegistryError
from pilot.node.directory import RegistryRefusedError
from pilot.node.directory import cache as cache_module
from pilot.node.directory.cache import AnswerCache


class Source:
    """Counts questions; answers with the number of the question, or raises `error`, after `gate` opens."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.error: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    async def ask(self, key: int) -> str:
        self.asked.append(key)
        number = len(self.asked)
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return f"{key}: {number}"

    def cache(self, *, fresh: float = 60.0, stale: float = 3600.0, limit: float = 8.0) -> AnswerCache[int, str]:
        return AnswerCache(self.ask, fresh=fresh, stale=stale, limit=limit, too_slow=lambda: RegistryError("too slow"))


@pytest.fixture
async def advance(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Moves the loop's clock forward at once."""
    loop = asyncio.get_running_loop()
    real, offset = loop.time, 0.0

    def forward(seconds: float) -> None:
        nonlocal offset
        offset += seconds

    monkeypatch.setattr(loop, "time", lambda: real() + offset)
    return forward


async def test_an_answer_is_fresh_for_a_while(advance: Callable[[float], None]) -> None:
    source = Source()
    cache = source.cache()
    assert await cache.get(7) == await cache.get(7) == "7: 1"
    advance(59)
    assert await cache.get(7) == cache.peek(7) == "7: 1"
    advance(2)
    assert cache.peek(7) is None
    assert await cache.get(7) == "7: 2"
    advance(10)
    assert await cache.get(7, max_age=11) == "7: 2"
    assert await cache.get(7, max_age=9) == "7: 3"
    assert await cache.get(8) == "8: 4"


async def test_stale_answers_serve_while_the_registry_cannot_be_asked(advance: Callable[[float], None]) -> None:
    source = Source()
    cache = source.cache()
    await cache.get(7)
    source.error = RegistryError("away")
    advance(3500)
    assert await cache.get(7) == "7: 1"
    assert await cache.get(7) == "7: 1"
    assert len(source.asked) == 2, "nobody waits for it twice within three seconds"
    advance(101)
    with pytest.raises(RegistryError, match="away"):
        await cache.get(7)


@pytest.mark.parametrize("no", [PeerNotFoundError("none"), RegistryRefusedError("refused", "text")])
async def test_a_no_ends_what_was_known(advance: Callable[[float], None], no: Exception) -> None:
    source = Source()
    cache = source.cache()
    await cache.get(7)
    advance(61)
    source.error = no
    with pytest.raises(type(no)):
        await cache.get(7)
    source.error = RegistryError("away")
    advance(4)
    with pytest.raises(RegistryError, match="away"):
        await cache.get(7)


@pytest.mark.parametrize(
    "failure", [PeerNotFoundError("none"), RegistryError("away"), RegistryRefusedError("refused", "text")]
)
async def test_failures_are_repeated_for_three_seconds(advance: Callable[[float], None], failure: Exception) -> None:
    source = Source()
    source.error = failure
    cache = source.cache()
    for _ in range(5):
        with pytest.raises(type(failure), match=str(failure)) as caught:
            await cache.get(7)
        assert type(caught.value) is type(failure)
    assert source.asked == [7]
    advance(3.1)
    source.error = None
    assert await cache.get(7) == "7: 2"


async def test_kept_failures_keep_nothing_alive() -> None:
    class Big:
        pass

    references = []

    async def ask(key: int) -> str:
        big = Big()
        references.append(weakref.ref(big))
        raise RegistryError("away")

    cache: AnswerCache[int, str] = AnswerCache(ask, fresh=1, stale=1, limit=8, too_slow=lambda: RegistryError("slow"))
    with pytest.raises(RegistryError):
        await cache.get(7)
    await asyncio.sleep(0)
    gc.collect()
    assert references[0]() is None


async def test_one_request_however_many_ask() -> None:
    source = Source()
    source.gate.clear()
    cache = source.cache()
    tasks = [asyncio.create_task(cache.get(7)) for _ in range(20)]
    await asyncio.sleep(0.01)
    tasks[0].cancel()
    await asyncio.sleep(0)
    source.gate.set()
    assert set(await asyncio.gather(*tasks[1:])) == {"7: 1"}
    assert tasks[0].cancelled()
    assert source.asked == [7]


async def test_a_request_all_have_left_still_fills_the_cache() -> None:
    source = Source()
    source.gate.clear()
    cache = source.cache()
    task = asyncio.create_task(cache.get(7))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    source.gate.set()
    await asyncio.sleep(0.01)
    assert cache.peek(7) == "7: 1"


async def test_a_failed_request_all_have_left_is_no_unhandled_error() -> None:
    problems: list[object] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: problems.append(context))
    source = Source()
    source.gate.clear()
    source.error = RegistryError("away")
    cache = source.cache()
    task = asyncio.create_task(cache.get(7))
    await asyncio.sleep(0.01)
    task.cancel()
    source.gate.set()
    await asyncio.sleep(0.01)
    gc.collect()
    assert problems == []
    await cache.close()


async def test_a_slow_answer_is_given_up_and_stale_ones_serve_instead(advance: Callable[[float], None]) -> None:
    source = Source()
    cache = source.cache(limit=0.02)
    await cache.get(7)
    source.gate.clear()
    advance(61)
    assert await cache.get(7) == "7: 1"
    with pytest.raises(RegistryError, match="too slow"):
        await cache.get(8)
    await cache.close()


async def test_close_tells_the_waiters_and_does_not_cancel_them() -> None:
    source = Source()
    source.gate.clear()
    cache = source.cache()
    tasks = [asyncio.create_task(cache.get(key)) for key in (7, 7, 8)]
    await asyncio.sleep(0.01)
    await cache.close()
    for task in tasks:
        with pytest.raises(ClosedError):
            await task
    with pytest.raises(ClosedError):
        await cache.get(9)
    await cache.close()


async def test_tables_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "MAX_ANSWERS", 8)
    monkeypatch.setattr(cache_module, "MAX_FAILURES", 8)
    source = Source()
    cache = source.cache()
    for key in range(20):
        await cache.get(key)
    source.error = PeerNotFoundError("none")
    for key in range(100, 120):
        with pytest.raises(PeerNotFoundError):
            await cache.get(key)
    assert (len(cache._answers), len(cache._failures)) == (8, 8)
    assert cache.peek(19) is not None
    assert cache.peek(0) is None


async def test_forgetting() -> None:
    source = Source()
    cache = source.cache()
    await cache.get(7)
    cache.forget(7)
    assert await cache.get(7) == "7: 2"


@pytest.mark.parametrize("error", [None, RegistryRefusedError("no such thing", "no such thing")])
async def test_what_was_asked_before_forgetting_is_not_kept(error: Exception | None) -> None:
    """Trust that was taken back while the registry was asked for it."""
    source = Source()
    cache = source.cache()
    source.gate.clear()
    source.error = error
    old = asyncio.ensure_future(cache.get(7))
    await asyncio.sleep(0.01)
    cache.forget(7)
    source.gate.set()
    [outcome] = await asyncio.gather(old, return_exceptions=True)
    assert outcome == "7: 1" if error is None else isinstance(outcome, RegistryRefusedError)
    assert cache.peek(7) is None
    source.error = None
    assert await cache.get(7) == "7: 2"
    source.gate.clear()
    waiting = asyncio.ensure_future(cache.get(8))
    await asyncio.sleep(0.01)
    cache.forget(8)
    await cache.close()  # that one too
    with pytest.raises(ClosedError):
        await waiting


async def test_a_request_that_had_not_begun_ends_as_one_that_had() -> None:
    source = Source()
    source.gate.clear()
    cache = source.cache()
    waiting = asyncio.create_task(cache.get(1))
    await asyncio.sleep(0)  # the request is a task by now, but that has not run
    await cache.close()
    with pytest.raises(ClosedError):
        await waiting
