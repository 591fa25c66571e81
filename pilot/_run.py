"""`pilot.run`: one coroutine on the fastest event loop there is (top of the package, above L9)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine

__all__ = ["new_event_loop", "run"]

T = TypeVar("T")


def new_event_loop() -> asyncio.AbstractEventLoop:
    """A uvloop loop where uvloop is installed, else a plain asyncio one; the loop policy is neither read nor set."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def run(main: Coroutine[Any, Any, T], *, debug: bool | None = None) -> T:
    """What `asyncio.run` does, on uvloop where there is one: runs `main` to its end and returns its result.

    Raises:
        RuntimeError: an event loop runs in this thread already: `await` the coroutine there.
    """
    with asyncio.Runner(debug=debug, loop_factory=new_event_loop) as runner:
        return runner.run(main)
