"""An asyncio event loop whose clock is virtual: it jumps to the next timer when nothing is left to do (testing)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar, TypeVarTuple

__all__ = ["StuckError", "VirtualLoop", "run"]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

Connect = Callable[[asyncio.BaseProtocol, str, int], asyncio.Transport]

START_SECONDS: Final = 1000.0
"""Where virtual time begins: not at 0, which code might take for "never"."""
CLOCK_RESOLUTION: Final = 1e-9
MAX_TURNS_AT_ONE_TIME: Final = 200_000
"""Turns of the loop without the clock moving before that counts as a spin."""


class StuckError(Exception):
    """Virtual time cannot go on: nothing is left that could ever happen, or something happens for ever at one time."""


class _Jump:
    """What the base class takes for a selector. Instead of waiting for a timer it moves the clock there."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self._turns = 0

    def select(self, timeout: float | None) -> list[Any]:
        if timeout is None:
            raise StuckError("every task waits, and no timer is set that could wake one")
        if timeout > 0:
            self._turns = 0
            self._loop._advance()
            return []
        self._turns += 1
        if self._turns > MAX_TURNS_AT_ONE_TIME:
            raise StuckError(f"{MAX_TURNS_AT_ONE_TIME} turns of the loop passed without the clock moving")
        return []


class VirtualLoop(asyncio.BaseEventLoop):
    """Runs callbacks, timers and tasks as asyncio does, in one thread, without a file descriptor and without waiting.

    `connect(protocol, host, port)` answers `create_connection`; without it every connection is refused. Sockets,
    subprocesses and other threads are out of reach; `asyncio.to_thread` calls at once. Whatever runs on it is as
    reproducible as itself.
    """

    _scheduled: list[asyncio.TimerHandle]

    def __init__(self, start: float = START_SECONDS) -> None:
        super().__init__()
        self._now = start
        self._selector = _Jump(self)
        self._clock_resolution = CLOCK_RESOLUTION
        self.connect: Connect | None = None

    def time(self) -> float:
        """Virtual seconds."""
        return self._now

    def _advance(self) -> None:
        self._now = max(self._now, self._scheduled[0].when())

    def run_in_executor(self, executor: Any, func: Callable[[*Ts], T], *args: *Ts) -> asyncio.Future[T]:
        """Calls `func` at once, in this thread: blocking work takes no virtual time, and happens in a fixed order."""
        future: asyncio.Future[T] = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future

    def _process_events(self, event_list: list[Any]) -> None:
        """There are no file descriptors."""

    def _write_to_self(self) -> None:
        """Nobody sleeps who would have to be woken."""

    async def create_connection(
        self, protocol_factory: Callable[[], Any], host: str | None = None, port: int | None = None, **options: Any
    ) -> tuple[asyncio.Transport, Any]:
        """A connection on the virtual network. TLS is not simulated.

        Raises:
            ConnectionRefusedError: nobody listens there.
            OSError: the way there is cut.
        """
        if options.get("ssl"):
            raise NotImplementedError("the virtual network has no TLS: leave registry_tls empty")
        if self.connect is None:
            raise ConnectionRefusedError("this virtual loop has no network")
        protocol = protocol_factory()
        return self.connect(protocol, host or "", port or 0), protocol


def run(main: Coroutine[Any, Any, T], *, loop: VirtualLoop | None = None) -> T:
    """Runs `main` in virtual time on a new loop (or `loop`) and closes it, like `asyncio.run`.

    Raises what `main` raises, and `StuckError` when it can never end.
    """
    with asyncio.Runner(loop_factory=lambda: loop or VirtualLoop()) as runner:
        return runner.run(main)
