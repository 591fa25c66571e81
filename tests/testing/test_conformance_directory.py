"""The suites for resolvers, identities and trust lists: ours pass them, what breaks a promise does not (testing)."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from pilot.coreapi import Addr, PeerInfo, TrustMatch
from pilot.node.identity import LocalIdentity
from pilot.plugins.trustedagents import TrustedAgentsService
from pilot.testing import World, simulate
from pilot.testing.coreapi import (
    IDENTITY_CHECKS,
    RESOLVER_CHECKS,
    TRUST_CHECKS,
    ResolverUnderTest,
    TrustUnderTest,
)
from tests.node.test_networks import create
from tests.plugins.trustedagents.test_service import ONE, VERIFIER, Host
from tests.testing.checks import by_name, failing

# ---- identities -----------------------------------------------------------------------------------------------------


@by_name(IDENTITY_CHECKS)
def test_the_identity_of_a_node(check: Any) -> None:
    async def scenario(world: World) -> None:
        await check((await world.machine().start()).identity)

    simulate(1, scenario)


@by_name(IDENTITY_CHECKS)
async def test_an_identity_that_is_not_registered(check: Any) -> None:
    await check(LocalIdentity.generate())


class Impostor:
    """Signs with another key than it shows, and lets everybody write."""

    def __init__(self) -> None:
        self.node_id, self.address = 5, Addr(0, 5)
        self.public_key = LocalIdentity.generate().public_key
        self._other = LocalIdentity.generate()

    def sign(self, msg: Any) -> bytes:
        return self._other.sign(msg)


async def test_a_bad_identity_is_found_out() -> None:
    assert await failing(IDENTITY_CHECKS, Impostor()) == ["signs_anything_with_its_key", "cannot_be_replaced"]


# ---- resolvers ------------------------------------------------------------------------------------------------------


async def directory(world: World) -> ResolverUnderTest:
    """The resolver of a node that shares a network with bob."""
    network = create(world)
    alice, bob = await world.machine("alice").start(), await world.machine("bob", hostname="bob").start()
    for node in (alice, bob):
        await node.join_network(network)
    return ResolverUnderTest(alice.resolver, bob.node_id, "bob", network, 4242)


@by_name(RESOLVER_CHECKS)
def test_the_resolver_of_a_node(check: Any) -> None:
    async def scenario(world: World) -> None:
        await check(await directory(world))

    simulate(2, scenario)


class Guesses:
    """Has an answer to everything."""

    async def resolve(self, node_id: int) -> PeerInfo:
        return PeerInfo(node_id, Addr(0, node_id), pub_key=b"short")

    async def resolve_hostname(self, name: str) -> int:
        return 1

    async def list_by_network(self, network_id: int) -> list[PeerInfo]:
        return [PeerInfo(2, Addr(0, 2))]


async def test_a_bad_resolver_is_found_out() -> None:
    assert await failing(RESOLVER_CHECKS, ResolverUnderTest(Guesses(), 2, "bob", 1, 4242)) == [
        "finds_a_node",
        "finds_an_id_by_the_hostname",
        "says_what_does_not_exist",
        "lists_a_network",
        "lists_no_backbone",
    ]


# ---- trust lists ----------------------------------------------------------------------------------------------------


@by_name(TRUST_CHECKS)
async def test_the_list_of_trusted_agents(check: Any, tmp_path: Path) -> None:
    (tmp_path / "agents.json").write_bytes(ONE)
    key = base64.b64encode(VERIFIER).decode()
    service = TrustedAgentsService.for_node(Host(), file=tmp_path / "agents.json", key=key)
    await service.refresh()
    await check(TrustUnderTest(service, 7, "desk", 8))


class Gullible:
    """Answers with bare tuples, which are always true."""

    def is_trusted(self, node_id: int) -> TrustMatch:
        return ("desk", True) if node_id == 7 else ("", False)  # type: ignore[return-value]


async def test_a_bad_list_is_found_out() -> None:
    assert await failing(TRUST_CHECKS, TrustUnderTest(Gullible(), 7, "desk", 8)) == ["a_miss_is_false_and_empty"]
