"""The options every command with a node has: made from `NodeConfig`, so each setting is documented once (L12)."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from pilot._fast.errors import BusyError, InvalidValueError
from pilot.cli.output import fail
from pilot.node.config import NodeConfig, default_config_file, default_state_dir
from pilot.node.state import StateDirectory

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["JSON_OPTION", "with_node"]

JSON_OPTION = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, errors included.")]

_KINDS: Final[dict[str, Any]] = {
    "str": str | None,
    "bool": bool | None,
    "int": int | None,
    "float": float | None,
    "str | os.PathLike[str] | None": Path | None,
}
_PANEL: Final = "Node settings"


def with_node(*, client: bool = False) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command the node's settings as options, and as its first argument the finished `NodeConfig`.

    The command keeps its node in the default state directory unless told otherwise. A `client` command, which is over
    soon, takes a new identity when that directory is in use, by `pilot up` say.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        parameters = list(signature.parameters.values())[1:] + _parameters()

        @functools.wraps(command)
        def wrapper(**given: Any) -> None:
            flags = {setting.name: given.pop(setting.name) for setting in dataclasses.fields(NodeConfig)}
            file, ephemeral = given.pop("config"), given.pop("ephemeral")
            _log_to_stderr(given.pop("verbose"))
            try:
                config = _load(flags, file)
                if not ephemeral and config.state_dir is None:
                    config = _with_default_state(config, client)
            except (InvalidValueError, BusyError, OSError) as error:
                fail(error, given["as_json"])
            command(config, **given)

        wrapper.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return wrapper

    return decorate


def _parameters() -> list[inspect.Parameter]:
    return [
        *(
            _parameter(s.name, _KINDS[str(s.type)], s.metadata["doc"], envvar=f"PILOT_{s.name.upper()}")
            for s in dataclasses.fields(NodeConfig)
        ),
        _parameter("config", Path | None, "TOML file with settings; default pilot/pilot.toml where XDG says."),
        _parameter("ephemeral", bool, "Use a new identity and write nothing, instead of a state directory.", False),
        _parameter("verbose", bool, "Log to stderr.", False),
    ]


def _parameter(name: str, kind: Any, doc: str, default: Any = None, envvar: str = "") -> inspect.Parameter:
    # The environment is only named here: NodeConfig.load reads it, and knows how to say what is wrong with a value.
    text = f"{doc} (environment: {envvar})" if envvar else doc
    flag = f"--{name.replace('_', '-')}"
    if kind == bool | None:
        flag = f"{flag}/--no-{name.replace('_', '-')}"
    option = typer.Option(flag, help=text, show_default=False, rich_help_panel=_PANEL)
    annotation = Annotated[kind, option]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _load(flags: dict[str, Any], file: Path | None) -> NodeConfig:
    if file is None and (standard := default_config_file(os.environ)).exists():
        file = standard
    return NodeConfig.load(flags, os.environ, file)


def _with_default_state(config: NodeConfig, client: bool) -> NodeConfig:
    state = StateDirectory(default_state_dir(os.environ))
    try:
        state.open()
    except BusyError:
        if not client:
            raise
        typer.echo(f"pilot: {state.path} is in use by another node: using a new identity", err=True)
        return config
    state.close()
    return dataclasses.replace(config, state_dir=state.path)


def _log_to_stderr(verbose: bool) -> None:
    level = logging.DEBUG if verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    logging.getLogger("asyncio").setLevel(logging.WARNING)
