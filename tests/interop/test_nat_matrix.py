"""Our nodes behind every pair of NATs: the best path there is, else relay, and the way back to direct."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import pytest
import pytest_asyncio

from tests.interop.conftest import unavailable
from tests.interop.nat import FORWARDED, HUB, KINDS, Host, Internet, Remote, unavailable_reason
from tests.interop.rendezvous import our_rendezvous

PAIRS = [(one, other) for one in KINDS for other in KINDS]
UNPREDICTABLE = {"symmetric"}
PARTICULAR = {"port-restricted", "symmetric", "remapped"}
"""Who lets only the very address in that was written to cannot be met by one whose port nobody can know beforehand."""
SOME_BYTES = 1 << 18
SETTLE_SECONDS = 55.0
"""Two sweeps of 15 s and then some: how long the best path may take on a busy machine. Not a measurement."""
MOVED_SECONDS = 40.0
"""The same after a move, counted from when data has arrived at the new place: 11 s in simulation."""
BUSY_BYTES = 2000

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]


def best(one: str, other: str) -> str:
    """The best path two kinds of NAT allow."""
    relayed = (one in UNPREDICTABLE and other in PARTICULAR) or (other in UNPREDICTABLE and one in PARTICULAR)
    return "relay" if relayed else "direct"


@dataclass
class World:
    """The internet and a node for each host; two hosts of every kind."""

    internet: Internet
    ones: dict[str, Remote]
    others: dict[str, Remote]


@pytest.fixture(scope="module", autouse=True)
def inside() -> Iterator[Internet]:
    """This module's tests run in the hub, and need no official programs."""
    if reason := unavailable_reason():
        unavailable(reason)
    internet = Internet()
    try:
        with internet.hub.entered():
            yield internet
    finally:
        internet.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(inside: Internet) -> AsyncIterator[World]:
    """All nodes, registered."""
    hosts = [inside.host(kind) for _ in range(2) for kind in KINDS]
    nodes: list[Remote] = []
    async with our_rendezvous(HUB) as rendezvous:

        async def start(host: Host) -> Remote:
            node = await Remote.start(
                host, registry=rendezvous.registry, beacon=rendezvous.beacon, public=True, listen=f":{FORWARDED}"
            )
            nodes.append(node)
            return node

        try:
            started = dict(zip(hosts, await asyncio.gather(*map(start, hosts)), strict=True))
            halves = hosts[: len(KINDS)], hosts[len(KINDS) :]
            yield World(inside, *({host.kind: started[host] for host in half} for half in halves))
        finally:
            await asyncio.gather(*(node.stop() for node in nodes))


async def settled(one: Remote, other: Remote, path: str, *, within: float = SETTLE_SECONDS) -> None:
    """Keeps both in use until both report that path; RuntimeError says what they report instead."""
    until = time.monotonic() + within
    while True:
        await one.echo(other, BUSY_BYTES)
        found = await one.path(other), await other.path(one)
        if found == (path, path):
            return
        if time.monotonic() > until:
            known = await one.call("peers"), await other.call("peers")
            raise RuntimeError(f"{one.host.name} and {other.host.name}: {found} instead of {path}: {known}")
        await asyncio.sleep(0.3)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def met(world: World) -> dict[tuple[str, str], BaseException | None]:
    """Every node of one half has dialed every one of the other; what went wrong with each pair."""

    async def meet(one: Remote, other: Remote) -> None:
        await one.echo(other, SOME_BYTES)
        path = best(one.host.kind, other.host.kind)
        await settled(one, other, path)
        if path == "relay":
            await asyncio.sleep(3)  # the first attempt at a direct path is over by then
            await settled(one, other, path, within=0)
        await one.echo(other, SOME_BYTES)

    pairs = [meet(world.ones[one], world.others[other]) for one, other in PAIRS]
    return dict(zip(PAIRS, await asyncio.gather(*pairs, return_exceptions=True), strict=True))


@pytest.mark.parametrize(("one", "other"), PAIRS)
async def test_a_pair_meets_by_the_best_path(
    met: dict[tuple[str, str], BaseException | None], one: str, other: str
) -> None:
    if (error := met[one, other]) is not None:
        raise error


async def test_paths_change_under_streams(met: dict[tuple[str, str], BaseException | None], world: World) -> None:
    """Cut paths, other public ports and other addresses, all at once: streams go on, and find the best path again."""
    ones, others = world.ones, world.others

    async def cut(one: Remote, other: Remote) -> None:
        one.host.cut(other.host)
        await one.echo(other, SOME_BYTES)
        await settled(one, other, "relay")
        one.host.heal()
        await settled(one, other, "direct")
        await one.echo(other, SOME_BYTES)

    async def rebind() -> None:
        node = ones["remapped"]
        node.host.rebind(4500)
        peers = [others[kind] for kind in ("none", "full-cone", "port-restricted", "remapped", "symmetric")]
        await asyncio.gather(*(back(node, peer) for peer in peers))

    async def move(node: Remote, *kinds: str) -> None:
        node.host.move()
        await asyncio.gather(*(back(node, others[kind]) for kind in kinds))

    async def back(one: Remote, other: Remote) -> None:
        """The stream goes on, and the best path comes back, once the peer's old address has been given up."""
        await one.echo(other, SOME_BYTES)
        await settled(one, other, best(one.host.kind, other.host.kind), within=MOVED_SECONDS)
        await one.echo(other, SOME_BYTES)

    await asyncio.gather(
        cut(ones["port-restricted"], others["port-restricted"]),
        cut(ones["none"], others["full-cone"]),
        cut(ones["symmetric"], others["none"]),
        rebind(),
        move(ones["address-restricted"], "none", "port-restricted", "symmetric"),
        move(ones["full-cone"], "address-restricted", "symmetric"),
    )


async def test_hosts_move_one_of_them_without_nat(
    met: dict[tuple[str, str], BaseException | None], world: World
) -> None:
    """The socket of a host without NAT goes on at another address of its own, and peers find it there.

    Nothing of it comes in at a symmetric NAT: that peer has to ask the registry where the host is by now.
    """
    moved, others = world.ones["none"], world.others

    async def back(other: Remote) -> None:
        await moved.echo(other, SOME_BYTES)
        await settled(moved, other, "direct", within=MOVED_SECONDS)
        await moved.echo(other, SOME_BYTES)

    moved.host.move()
    await asyncio.gather(
        *(back(others[kind]) for kind in ("none", "full-cone", "port-restricted", "symmetric", "remapped"))
    )
