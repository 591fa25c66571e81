"""The `pilot` command: composes nodes and the rendezvous server (L12). Needs the extra `cli`."""

from __future__ import annotations

import contextlib
import sys

__all__ = ["main"]


def main() -> None:
    """Runs the command line; ends the process with one of the codes of `pilot.cli.output.Exit`."""
    _refuse_core_dumps()
    try:
        sys.exit(_main())
    except KeyboardInterrupt:  # before a command has installed its own handlers
        sys.exit(130)


def _refuse_core_dumps() -> None:
    """A core file of this process would hold the identity and every session key. A library leaves that to its user."""
    try:
        import resource
    except ImportError:
        return
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


def _main() -> int:
    try:
        import rich
        import typer
    except ImportError as error:
        sys.exit(f"pilot: the command needs {error.name!r}: install it with  pip install 'pilot-asyncio[cli]'")
    del rich, typer
    from pilot.cli.app import run_app

    return run_app(sys.argv[1:])
