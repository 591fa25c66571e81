"""One end of a subject in a process of its own, pinned to one core before anything else is imported (bench).

`python -m bench.worker SUBJECT ROLE CORE`: reads one JSON object with `do` and parameters a line, calls that method of
the end, writes `{"result": ...}` or `{"error": ...}`. End of input ends the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import os
import sys
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from bench.subjects import End

LINE_LIMIT = 1 << 26


def pin(core: int) -> None:
    """This process, and threads and processes it starts, run on `core` alone; -1: wherever the system likes."""
    if core >= 0 and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})


async def serve(end: End, replies: TextIO) -> None:
    """Does what the lines on standard input say, one after the other."""
    reader = asyncio.StreamReader(LINE_LIMIT)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    opened = False
    while line := await reader.readline():
        request = json.loads(line)
        answer = await _answer(end, request)
        opened = opened or (request["do"] == "open" and "result" in answer)
        replies.write(json.dumps(answer) + "\n")
        replies.flush()
    if opened:
        await end.close()


async def _answer(end: End, request: dict[str, Any]) -> dict[str, Any]:
    try:
        return {
            "result": await getattr(end, request["do"])(**{name: request[name] for name in request if name != "do"})
        }
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def main() -> None:
    """The command line of the module docstring."""
    subject, role, core = sys.argv[1:]
    pin(int(core))
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not get between the answers
    try:
        module = importlib.import_module(f"bench.subjects.{subject}")
    except ImportError as error:
        replies.write(json.dumps({"error": f"{subject} cannot run here: {error}"}) + "\n")
        replies.flush()
        return
    import pilot

    with contextlib.suppress(KeyboardInterrupt):
        pilot.run(serve(getattr(module, role.capitalize())(), replies))


if __name__ == "__main__":
    main()
