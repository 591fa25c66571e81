"""`pilot up` with its plugins: the stock set, what is left out and added, options and what they refuse."""

from __future__ import annotations

import io
from typing import Any

import pytest
import typer
from rich.console import Console

from pilot._fast.errors import InvalidValueError
from pilot.cli.services import STOCK, chosen_services
from pilot.cli.up import _up
from pilot.node import Node, NodeConfig
from pilot.plugins.handshake import HandshakeService
from pilot.testing import virtual_network
from tests.cli.test_command import Exit, Start, finish, first_line, start, where

__all__ = ["start", "where"]  # fixtures


async def test_up_runs_the_stock_set(start: Start, where: dict[str, str]) -> None:
    process = await start("up", "--hostname", "erin", "--public", "--json")
    assert (await first_line(process))["services"] == list(STOCK)
    async with Node(**where) as node:
        for port in (444, 1001, 1002):
            await (await node.dial("erin", port)).close()


async def test_what_is_left_out_and_what_cannot_be(start: Start) -> None:
    process = await start("up", "--json", "--without", "webhook", "--without", "policy", "--service", "nameserver")
    expected = [name for name in STOCK if name not in ("webhook", "policy")]
    assert (await first_line(process))["services"] == [*expected, "nameserver"]
    for arguments, message in [
        (["--without", "nameserver"], "not of the stock set"),
        (["--service", "nobody"], "no plugin 'nobody' is installed"),
        (["--webhook", "http://169.254.169.254/"], "169.254.169.254"),
        (["--trusted-agents", "/nowhere/agents.json"], "key"),
    ]:
        code, result = await finish(await start("up", "--json", "--ephemeral", *arguments))
        assert (code, result["error"]["kind"]) == (Exit.INVALID, "InvalidValueError")
        assert message in result["error"]["message"]


def test_everybody_is_trusted_where_that_is_wanted() -> None:
    with virtual_network() as net:
        bob = net.node("bob", public=False, services=chosen_services(trust_auto_approve=True))
        alice = net.node("alice", public=True, services=chosen_services(without=["webhook", "policy"]))

        async def meet() -> Any:
            handshake = alice.service("handshake")
            assert isinstance(handshake, HandshakeService)
            await handshake.request(bob.node_id, "hello")
            return await handshake.wait_for_trust(bob.node_id, 60)

        assert net.run(meet())
        assert [service.name for service in bob.services] == list(STOCK)


def test_a_plugin_of_the_stock_set_is_left_out_by_its_name() -> None:
    with pytest.raises(InvalidValueError, match="'nobody' cannot be left out"):
        chosen_services(without=["nobody"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trust_auto_approve": True, "without": ["handshake"]}, "--trust-auto-approve is for the plugin 'handshake'"),
        ({"trusted_agents": "x", "without": ["trustedagents"]}, "--trusted-agents is for the plugin 'trustedagents'"),
    ],
)
def test_an_option_of_a_plugin_that_is_left_out_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        chosen_services(**options)


class Deaf(Node):
    """Ends by itself, as one that receives nothing any more."""

    async def closed(self) -> None:
        self._end_deaf()
        await super().closed()


async def test_up_ends_with_a_code_of_its_own_when_the_node_is_deaf(
    monkeypatch: pytest.MonkeyPatch, where: dict[str, str]
) -> None:
    monkeypatch.setattr("pilot.cli.up.Node", Deaf)
    with pytest.raises(typer.Exit) as caught:
        await _up(NodeConfig(**where), list, as_json=False)
    assert caught.value.exit_code == Exit.DEAF
    monkeypatch.setattr("pilot.cli.up.stderr", Console(file=io.StringIO(), force_terminal=True))
    monkeypatch.setattr("pilot.cli.up.REFRESH_SECONDS", 0.05)
    running: list[Node] = []
    monkeypatch.setattr("pilot.cli.up._page", lambda node, *_: running.append(node) or node._end_deaf() or "")
    with pytest.raises(typer.Exit) as caught:
        await _up(NodeConfig(**where), list, as_json=False)
    assert caught.value.exit_code == Exit.DEAF
    assert running
