"""Crash recovery: the guard around every task of a plugin, and the two counters behind it (L10).

Source: seed `coreapi.RecoverPlugin`, services.md 10.4. The counters belong to the process, as the contract has it; they
are the only module-level state of the library.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import logging
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from pilot.coreapi.events import EventBus

__all__ = [
    "UNHEALTHY_PANICS",
    "is_plugin_healthy",
    "plugin_panic_count",
    "plugin_recovered_panic_count",
    "recover_plugin",
    "reset_plugin_health",
    "reset_plugin_recovered_panic_count_for_test",
]

UNHEALTHY_PANICS: Final = 3
"""So many crashes, and a plugin counts as unhealthy."""
MAX_PANIC_TEXT: Final = 1024
"""Characters of an exception's text in an event; the log has all of it."""

F = TypeVar("F", bound="Callable[..., Any]")


class _Recovery(Protocol):
    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool: ...

    def __call__(self, function: F) -> F: ...


class _Panics:
    """How often plugins have crashed in this process. Nodes in several threads share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._total = 0
        self._plugins: Counter[str] = Counter()

    def count(self, plugin: str) -> tuple[int, int]:
        with self._lock:
            self._total += 1
            self._plugins[plugin] += 1
            return self._total, self._plugins[plugin]

    def total(self) -> int:
        return self._total

    def of(self, plugin: str) -> int:
        return self._plugins[plugin]

    def forget(self, plugin: str) -> None:
        with self._lock:
            del self._plugins[plugin]

    def reset(self) -> None:
        with self._lock:
            self._total = 0
            self._plugins.clear()


_panics: Final = _Panics()


def recover_plugin(
    plugin: str,
    op: str,
    events: EventBus | None = None,
    on_panic: Callable[[Exception], object] | None = None,
) -> _Recovery:
    """Swallows what crashes in the body: `with recover_plugin("greeter", "accept", deps.events): ...`.

    The crash is logged with its stack to `pilot.plugin.<plugin>`, counted for the process and for the plugin, published
    as `plugin.<plugin>.panic` {plugin, op, panic, recovered_total, plugin_panics}, at the third of a plugin as
    `plugin.<plugin>.unhealthy` {plugin, plugin_panics, recovered_total} too, and handed to `on_panic`; failures of
    these are logged and swallowed. Execution goes on after the body. Cancellation, interpreter exit and whatever else
    is no `Exception` pass through; a cancelled task whose body made another error of it ends as cancelled. It has to be
    the outermost guard of a task, so that every other clean-up runs first.

    It may be entered again and again, by several tasks too. As a decorator of a function, plain or `async`, it has the
    call return None after a crash; use that only where no bus is wanted.
    """
    return _PluginRecovery(plugin, op, events, on_panic)


class _PluginRecovery:
    __slots__ = ("_events", "_on_panic", "_op", "_plugin")

    def __init__(
        self, plugin: str, op: str, events: EventBus | None, on_panic: Callable[[Exception], object] | None
    ) -> None:
        self._plugin = plugin
        self._op = op
        self._events = events
        self._on_panic = on_panic

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if not isinstance(error, Exception):
            return False
        self._recover(error)
        if _is_cancelled():  # the body made another error of it: the task has to end all the same
            raise asyncio.CancelledError from error
        return True

    def __call__(self, function: F) -> F:
        if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
            raise TypeError(f"recover_plugin cannot guard the generator {function!r}: use it in a 'with' inside")
        if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__):

            async def guarded_async(*args: Any, **kwargs: Any) -> Any:
                with self:
                    return await function(*args, **kwargs)

            return functools.wraps(function)(guarded_async)  # type: ignore[return-value]

        def guarded(*args: Any, **kwargs: Any) -> Any:
            with self:
                return function(*args, **kwargs)

        return functools.wraps(function)(guarded)  # type: ignore[return-value]

    def _recover(self, error: Exception) -> None:
        plugin, op = self._plugin, self._op
        total, panics = _panics.count(plugin)
        log = logging.getLogger(f"pilot.plugin.{plugin}")
        with contextlib.suppress(Exception):  # a broken handler must not undo the recovery
            log.error("plugin %s crashed in %s", plugin, op, exc_info=error, extra={"plugin": plugin, "op": op})
        if self._events is not None:
            counts = {"plugin": plugin, "plugin_panics": panics, "recovered_total": total}
            self._publish(f"plugin.{plugin}.panic", {**counts, "op": op, "panic": _panic_text(error)}, log)
            if panics == UNHEALTHY_PANICS:
                self._publish(f"plugin.{plugin}.unhealthy", counts, log)
        if self._on_panic is not None:
            try:
                self._on_panic(error)
            except Exception:
                log.exception("what plugin %s does after a crash failed", plugin)

    def _publish(self, topic: str, payload: dict[str, Any], log: logging.Logger) -> None:
        assert self._events is not None
        try:
            self._events.publish(topic, payload)
        except Exception:
            log.exception("%s could not be published", topic)


def _is_cancelled() -> bool:
    try:
        task = asyncio.current_task()
    except RuntimeError:  # no loop runs here
        return False
    return task is not None and task.cancelling() > 0


def _panic_text(error: Exception) -> str:
    try:
        text = str(error)
    except Exception:  # a broken __str__ must not undo the recovery
        text = "(its text cannot be made)"
    return f"{type(error).__name__}: {text}"[:MAX_PANIC_TEXT]


def plugin_recovered_panic_count() -> int:
    """How many crashes `recover_plugin` has swallowed since the process started."""
    return _panics.total()


def plugin_panic_count(plugin: str) -> int:
    """How many of them were of this plugin, since its health was last reset."""
    return _panics.of(plugin)


def is_plugin_healthy(plugin: str) -> bool:
    """Whether the plugin has crashed fewer than three times since its health was last reset."""
    return _panics.of(plugin) < UNHEALTHY_PANICS


def reset_plugin_health(plugin: str) -> None:
    """Counts the plugin's crashes from zero again, as a supervisor does after a restart; the total stays."""
    _panics.forget(plugin)


def reset_plugin_recovered_panic_count_for_test() -> None:
    """Sets the total and every plugin's count to zero. For tests."""
    _panics.reset()
