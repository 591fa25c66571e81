"""Which plugins the command's node runs: the stock set, what is added to it, what is left out, their options (L12)."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Annotated, Final

import typer

from pilot._fast.errors import InvalidValueError
from pilot.node.services import ServiceSource  # evaluated: the signature is what the options are made of

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = ["STOCK", "with_services"]

STOCK: Final = ("trustedagents", "handshake", "webhook", "dataexchange", "eventstream", "policy")
"""What the official daemon runs."""
_PANEL: Final = "Plugins"


def with_services(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the options of plugins, and as its argument `services` what a `Node` takes as such."""
    signature = inspect.signature(command, eval_str=True)
    options = inspect.signature(chosen_services, eval_str=True).parameters

    @functools.wraps(command)
    def wrapper(*args: Any, **given: Any) -> None:
        chosen = {name: given.pop(name) for name in options}
        command(*args, services=functools.partial(chosen_services, **chosen), **given)

    own = [parameter for name, parameter in signature.parameters.items() if name != "services"]
    wrapper.__signature__ = signature.replace(parameters=[*own, *options.values()])  # type: ignore[attr-defined]
    wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in [*own, *options.values()]}
    return wrapper


def chosen_services(
    *,
    service: Annotated[
        list[str] | None,
        typer.Option(help="Run this installed plugin too; may be repeated.", rich_help_panel=_PANEL),
    ] = None,
    without: Annotated[
        list[str] | None,
        typer.Option(help=f"Leave this one out of the stock set ({', '.join(STOCK)}).", rich_help_panel=_PANEL),
    ] = None,
    trust_auto_approve: Annotated[
        bool, typer.Option("--trust-auto-approve", help="Trust whoever asks for it.", rich_help_panel=_PANEL)
    ] = False,
    trusted_agents: Annotated[
        str,
        typer.Option(help="File or https URL of the signed list of agents to trust unasked.", rich_help_panel=_PANEL),
    ] = "",
    trusted_agents_key: Annotated[
        str, typer.Option(help="The Ed25519 key that signs it, base64.", rich_help_panel=_PANEL)
    ] = "",
    webhook: Annotated[
        str, typer.Option(help="URL that events are posted to.", envvar="PILOT_WEBHOOK", rich_help_panel=_PANEL)
    ] = "",
    webhook_secret: Annotated[
        str,
        typer.Option(
            help="Signs what is posted; better given by the environment, where `ps` does not show it.",
            envvar="PILOT_WEBHOOK_SECRET",
            show_default=False,
            rich_help_panel=_PANEL,
        ),
    ] = "",
) -> list[ServiceSource]:
    """The services as `Node` takes them.

    Raises:
        InvalidValueError: a plugin is to be left out that is not of the stock set, or that an option is for.
    """
    for name in without or ():
        if name not in STOCK:
            raise InvalidValueError(f"{name!r} cannot be left out, it is not of the stock set: {', '.join(STOCK)}")
    for option, given, name in (
        ("--trust-auto-approve", trust_auto_approve, "handshake"),
        ("--trusted-agents", trusted_agents, "trustedagents"),
    ):
        if given and name in (without or ()):
            raise InvalidValueError(f"{option} is for the plugin {name!r}, which --without leaves out")
    # Other commands need not wait for the plugins to be loaded.
    from pilot.plugins.dataexchange import DataExchangeService
    from pilot.plugins.eventstream import EventStreamService
    from pilot.plugins.handshake import HandshakeService
    from pilot.plugins.policy import PolicyService
    from pilot.plugins.trustedagents import TrustedAgentsService
    from pilot.plugins.webhook import WebhookService

    is_url = trusted_agents.startswith("https://")
    made: dict[str, ServiceSource] = {
        "trustedagents": functools.partial(
            TrustedAgentsService.for_node,
            file=None if is_url else trusted_agents or None,
            url=trusted_agents if is_url else None,
            key=trusted_agents_key or None,
        ),
        "handshake": functools.partial(HandshakeService.for_node, auto_approve=trust_auto_approve),
        "webhook": functools.partial(WebhookService.for_node, url=webhook or None, secret=webhook_secret),
        "dataexchange": DataExchangeService.for_node,
        "eventstream": EventStreamService.for_node,
        "policy": PolicyService.for_node,
    }
    return [*(made[name] for name in STOCK if name not in (without or ())), *(service or ())]
