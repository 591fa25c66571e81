"""What a command prints and how it ends: JSON or a table on stdout, all else on stderr, an exit code (L12)."""

from __future__ import annotations

import asyncio
import errno
import json
import signal
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final, NoReturn

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from pilot._fast.errors import (
    BusyError,
    InvalidValueError,
    PeerNotFoundError,
    PilotError,
    RefusedError,
    RegistryError,
)
from pilot._run import run
from pilot.node.last_resort import EXIT_CODE

if TYPE_CHECKING:
    from collections.abc import Awaitable

__all__ = ["Bars", "Exit", "Result", "execute", "fail", "forever", "progress_bar", "progress_bars", "table"]

Result = Mapping[str, Any]

stderr: Final = Console(stderr=True)


class Exit(IntEnum):
    """How a command ended. The table in docs/COMMAND.md is made from this."""

    OK = 0
    FAILED = 1  # it ran, and the outcome is bad: damaged or refused file, no answer to any ping, a defect
    USAGE = 2  # the command line cannot be understood, or names a file or directory that cannot be used
    INVALID = 3  # a setting, address or name cannot be used
    NOT_FOUND = 4  # the registry knows no such peer, or does not show it to this node
    REFUSED = 5  # nobody listens there
    TIMEOUT = 6  # the peer did not answer in time
    BROKEN = 7  # the connection broke
    REGISTRY = 8  # the registry cannot be reached or refused
    BUSY = 9  # in use: the state directory, a port
    DEAF = EXIT_CODE  # nothing was received any more; with --end-when-deaf
    INTERRUPTED = 130  # SIGINT before it was done
    TERMINATED = 143  # SIGTERM before it was done


_EXITS: Final[tuple[tuple[type[BaseException], Exit], ...]] = (
    (InvalidValueError, Exit.INVALID),
    (PeerNotFoundError, Exit.NOT_FOUND),
    (RefusedError, Exit.REFUSED),
    (TimeoutError, Exit.TIMEOUT),
    (RegistryError, Exit.REGISTRY),
    (BusyError, Exit.BUSY),
    (ConnectionError, Exit.BROKEN),
    (EOFError, Exit.BROKEN),
)


_MEANT: Final = (PilotError, OSError, EOFError)  # TimeoutError and ConnectionError are kinds of OSError


class _SignalledError(Exception):
    """The command was ended by a signal before it was done."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"ended by {signal.Signals(signum).name}")
        self.exit = Exit.INTERRUPTED if signum == signal.SIGINT else Exit.TERMINATED


def execute(
    command: Coroutine[Any, Any, Result | None],
    *,
    as_json: bool,
    show: Callable[[Result], object] | None = None,
    verdict: str = "ok",
) -> None:
    """Runs `command` to its end and prints its result: JSON, or what `show` makes of it.

    SIGINT and SIGTERM cancel it, so it stops as cleanly as on any other way out. A result whose `verdict` is false
    means exit code 1. Errors that have a meaning for the user are one line on stderr, or one JSON object on stdout.
    """
    try:
        result = run(_until_signalled(command))
    except (_SignalledError, *_MEANT) as error:
        fail(error, as_json)
    if result is None:
        return
    if as_json:
        typer.echo(json.dumps(result))
    elif show is not None:
        show(result)
    if result.get(verdict, True) is False:
        raise typer.Exit(Exit.FAILED)


async def _until_signalled(command: Coroutine[Any, Any, Result | None]) -> Result | None:
    loop = asyncio.get_running_loop()
    task = loop.create_task(command)
    received: list[int] = []

    def stop(signum: int) -> None:
        received.append(signum)
        task.cancel()

    for signum in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signum, stop, signum)
    try:
        return await task
    except asyncio.CancelledError:
        if received:
            raise _SignalledError(received[0]) from None
        raise
    finally:
        for signum in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(signum)


async def forever(waiting: Awaitable[object]) -> None:
    """Waits for `waiting` or a signal: for commands whose proper end is the signal."""
    try:
        await waiting
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None:
            task.uncancel()


def fail(error: BaseException, as_json: bool) -> NoReturn:
    """Tells what went wrong, on one line of stderr or as one JSON object on stdout, and ends with its exit code."""
    text = str(error) or type(error).__name__
    code = _exit_of(error)
    if as_json:
        kind = type(error).__name__.lstrip("_")
        typer.echo(json.dumps({"error": {"kind": kind, "message": text, "exit_code": int(code)}}))
    else:
        typer.echo(f"pilot: {text}", err=True)
    raise typer.Exit(code)


def _exit_of(error: BaseException) -> Exit:
    if isinstance(error, _SignalledError):
        return error.exit
    if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
        return Exit.BUSY
    return next((code for kind, code in _EXITS if isinstance(error, kind)), Exit.FAILED)


def table(result: Result) -> None:
    """Prints a result as two columns. Nothing is shortened: a hash or a path is of use only when it is whole."""
    width = max(map(len, result), default=0)
    for name, value in result.items():
        typer.echo(f"{name.replace('_', ' '):<{width}}  {_text(value)}")


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.1f}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {item}" for name, item in value.items())
    return str(value)


class Bars:
    """Bars on stderr, one for each label, while something of it is under way."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}

    def show(self, label: str, done: int, total: int, *, ended: bool = False) -> None:
        """Moves the bar of `label`; it goes when all is done, or it has `ended`."""
        task = self._tasks.get(label)
        if task is None:
            task = self._tasks[label] = self._progress.add_task(label, total=None)
        self._progress.update(task, completed=done, total=total)
        if ended or done >= total:
            self._progress.remove_task(self._tasks.pop(label))


@contextmanager
def progress_bars(as_json: bool) -> Iterator[Bars]:
    """Bars, for the block; they are shown when stderr is a terminal."""
    columns = (
        TextColumn("{task.description}", markup=False),  # names of files, which peers choose
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=stderr, transient=True, disable=as_json or not stderr.is_terminal) as progress:
        yield Bars(progress)


@contextmanager
def progress_bar(label: str, as_json: bool) -> Iterator[Callable[[int, int], None]]:
    """A function to report bytes done and in all to; shows a bar on stderr when that is a terminal."""
    with progress_bars(as_json) as bars:
        yield lambda done, total: bars.show(label, done, total)
