"""The table of commands (L12)."""

from __future__ import annotations

import json
from typing import Any

import typer

from pilot.cli import bench, demo, files, ping, policy, rendezvous, up

__all__ = ["app", "run_app"]

app = typer.Typer(
    help="Pilot Protocol: an overlay network for agents, inside a Python process.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)
app.command()(demo.demo)
app.command()(up.up)
app.command()(rendezvous.rendezvous)
app.command()(ping.ping)
app.command()(files.send)
app.command()(files.recv)
app.command()(bench.bench)
app.add_typer(policy.app, name="policy")
app.command(hidden=True)(demo.demo_receiver)
app.command(hidden=True)(demo.demo_sender)


def run_app(arguments: list[str]) -> int:
    """Runs one command line and returns its exit code; with --json usage errors are one JSON object too."""
    command: Any = typer.main.get_command(app)
    try:
        code = command.main(arguments, prog_name="pilot", standalone_mode=False)
    except Exception as error:
        if not hasattr(error, "format_message"):  # typer has its own copy of click, and so of its exceptions
            raise
        usage: Any = error
        if "--json" in arguments:
            message = usage.format_message()
            typer.echo(json.dumps({"error": {"kind": "UsageError", "message": message, "exit_code": usage.exit_code}}))
        else:
            usage.show()
        return int(usage.exit_code)
    return code if isinstance(code, int) else 0
