"""`pilot policy`: documents of network policies (L12)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from pilot.cli.options import JSON_OPTION
from pilot.cli.output import Result, execute

__all__ = ["app"]

app: Final = typer.Typer(help="Check the documents of network policies.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Check the documents of network policies."""


@app.command()
def validate(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, readable=True, help="The document, JSON.")],
    as_json: JSON_OPTION = False,
) -> None:
    """Tell whether every node of a network would take a policy document, and if not, why."""
    execute(_validate(file), as_json=as_json, show=_show)


async def _validate(file: Path) -> Result:
    # Other commands need not wait for the language of policies to be loaded.
    from pilot.plugins.policy import MAX_DOCUMENT_BYTES, load_policy_untrusted

    with file.open("rb") as document:
        data = document.read(MAX_DOCUMENT_BYTES + 1)
    rules = load_policy_untrusted(data, "validation failed", "compilation failed").document.rules
    return {
        "valid": True,
        "version": 1,
        "rules": len(rules),
        "events": {rule.on: True for rule in rules},
    }


def _show(result: Result) -> None:
    typer.echo(f"valid policy: {result['rules']} rule{'' if result['rules'] == 1 else 's'}")
