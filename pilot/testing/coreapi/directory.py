"""What every `PeerResolver`, `Identity` and `TrustChecker` has to do (testing). A check takes what is to be judged."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from pilot._fast.errors import PeerNotFoundError, RegistryError
from pilot.coreapi import Addr, Identity, PeerInfo, PeerResolver, TrustChecker
from pilot.testing.coreapi.expecting import expecting

__all__ = [
    "IDENTITY_CHECKS",
    "RESOLVER_CHECKS",
    "TRUST_CHECKS",
    "ResolverUnderTest",
    "TrustUnderTest",
]

MAX_NODE: Final = 0xFFFF_FFFE


# ---- Identity -------------------------------------------------------------------------------------------------------


async def is_an_identity(identity: Identity) -> None:
    assert isinstance(identity, Identity), f"{identity!r} lacks a member of Identity"
    assert 0 <= identity.node_id <= MAX_NODE, f"{identity.node_id!r} is no node id"
    expected = Addr(0, identity.node_id)
    assert identity.address == expected, f"node {identity.node_id} says its backbone address is {identity.address!r}"
    key = identity.public_key
    assert isinstance(key, bytes), f"the public key is a {type(key).__name__}"
    assert len(key) == 32, f"the public key has {len(key)} bytes"


async def signs_anything_with_its_key(identity: Identity) -> None:
    key = Ed25519PublicKey.from_public_bytes(identity.public_key)
    for message in (b"", b"message", bytearray(b"message"), memoryview(b"a message")[2:], bytes(100_000)):
        signature = identity.sign(message)
        try:
            key.verify(signature, bytes(message))
        except InvalidSignature:
            raise AssertionError(f"its signature over {len(message)} bytes is not by its public key") from None


async def cannot_be_replaced(identity: Identity) -> None:
    for name in ("node_id", "address", "public_key"):
        before = getattr(identity, name)
        with expecting(AttributeError, TypeError, what=f"setting {name}"):
            setattr(identity, name, before)


IDENTITY_CHECKS: Final[tuple[Callable[[Identity], Awaitable[None]], ...]] = (
    is_an_identity,
    signs_anything_with_its_key,
    cannot_be_replaced,
)
"""Run each with an identity, registered or not."""


# ---- PeerResolver ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ResolverUnderTest:
    """A resolver, and what its directory holds."""

    resolver: PeerResolver
    node_id: int
    """A node it may see."""
    hostname: str
    """That node's."""
    network_id: int
    """A network both are in."""
    missing_id: int
    """A node that does not exist."""
    missing_hostname: str = "nobody-has-this-name"


async def is_a_resolver(under: ResolverUnderTest) -> None:
    assert isinstance(under.resolver, PeerResolver), f"{under.resolver!r} lacks a member of PeerResolver"


async def finds_a_node(under: ResolverUnderTest) -> None:
    info = await under.resolver.resolve(under.node_id)
    assert isinstance(info, PeerInfo), f"{info!r} is no PeerInfo"
    assert (info.node_id, info.addr) == (under.node_id, Addr(0, under.node_id)), f"asked for {under.node_id}: {info!r}"
    assert info.pub_key is None or len(info.pub_key) == 32, f"its key has {len(info.pub_key or b'')} bytes"
    if info.endpoint is not None:
        host, port = info.endpoint
        assert isinstance(host, str), f"the host {host!r} is no text"
        assert 1 <= port <= 65535, f"the port {port!r} is none"


async def finds_an_id_by_the_hostname(under: ResolverUnderTest) -> None:
    found = await under.resolver.resolve_hostname(under.hostname)
    assert found == under.node_id, f"{under.hostname!r} is node {under.node_id}, it says {found!r}"


async def says_what_does_not_exist(under: ResolverUnderTest) -> None:
    with expecting(PeerNotFoundError, what="resolving a node that does not exist"):
        await under.resolver.resolve(under.missing_id)
    with expecting(PeerNotFoundError, what="resolving a hostname nobody has"):
        await under.resolver.resolve_hostname(under.missing_hostname)


async def lists_a_network(under: ResolverUnderTest) -> None:
    members = await under.resolver.list_by_network(under.network_id)
    found = next((info for info in members if info.node_id == under.node_id), None)
    assert found is not None, f"node {under.node_id} is not listed in network {under.network_id}: {members!r}"
    assert found.addr == Addr(under.network_id, under.node_id), f"the address on the network reads {found.addr!r}"
    members.clear()
    assert await under.resolver.list_by_network(under.network_id), "it gives its own list away"


async def lists_no_backbone(under: ResolverUnderTest) -> None:
    with expecting(RegistryError, what="listing the backbone"):
        await under.resolver.list_by_network(0)


async def a_cancelled_question_harms_no_other(under: ResolverUnderTest) -> None:
    asking = [asyncio.ensure_future(under.resolver.resolve(under.node_id)) for _ in range(3)]
    await asyncio.sleep(0)
    asking[0].cancel()
    answers = await asyncio.gather(*asking[1:])
    assert {info.node_id for info in answers} == {under.node_id}, f"the answers are {answers!r}"


RESOLVER_CHECKS: Final[tuple[Callable[[ResolverUnderTest], Awaitable[None]], ...]] = (
    is_a_resolver,
    finds_a_node,
    finds_an_id_by_the_hostname,
    says_what_does_not_exist,
    lists_a_network,
    lists_no_backbone,
    a_cancelled_question_harms_no_other,
)
"""Run each with a `ResolverUnderTest`; one may serve them all."""


# ---- TrustChecker ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TrustUnderTest:
    """A list with one entry at least."""

    checker: TrustChecker
    node_id: int
    """Of somebody on it."""
    name: str
    """That entry's display name."""
    stranger: int
    """The id of somebody who is not on it."""


async def is_a_trust_checker(under: TrustUnderTest) -> None:
    assert isinstance(under.checker, TrustChecker), f"{under.checker!r} lacks a member of TrustChecker"


async def knows_who_is_on_the_list(under: TrustUnderTest) -> None:
    match = under.checker.is_trusted(under.node_id)
    assert match, f"node {under.node_id} is on the list, the answer {match!r} is false"
    name, ok = match
    assert (name, ok) == (under.name, True), f"node {under.node_id} is {under.name!r}, the answer is {match!r}"


async def a_miss_is_false_and_empty(under: TrustUnderTest) -> None:
    for stranger in (under.stranger, 0, MAX_NODE):
        match = under.checker.is_trusted(stranger)
        assert not match, f"node {stranger} is not on the list, the answer {match!r} is true"
        assert tuple(match) == ("", False), f"a miss reads {match!r}"


TRUST_CHECKS: Final[tuple[Callable[[TrustUnderTest], Awaitable[None]], ...]] = (
    is_a_trust_checker,
    knows_who_is_on_the_list,
    a_miss_is_false_and_empty,
)
"""Run each with a `TrustUnderTest`."""
