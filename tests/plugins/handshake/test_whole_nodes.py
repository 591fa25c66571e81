"""Trust between whole nodes on the simulated network: approve, reject, revoke, relayed, the gate of private nodes."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from pilot.coreapi import PeerNotFoundError, PilotError
from pilot.plugins.handshake import HandshakeService, RequestOutcome
from pilot.testing import NatType, simulate

TOPICS = ("handshake.auto_approved", "trust.changed")


def machine(world, name, *, auto_approve=False, **settings):
    service = partial(HandshakeService.for_node, auto_approve=auto_approve)
    return world.machine(name, services=[service], **settings)


def trust(host) -> HandshakeService:
    return host.node.service("handshake")


async def pair(world, **settings):
    alice, bob = machine(world, "alice", **settings), machine(world, "bob", **settings)
    await alice.start()
    await bob.start()
    return alice, bob


async def until(condition, seconds=200.0):
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def echo(host, target) -> bool:
    try:
        async with await host.node.dial(target.node.address, 7, timeout=5) as stream:
            await stream.write(b"hello")
            return await stream.readexactly(5) == b"hello"
    except (PilotError, TimeoutError):
        return False


async def befriend(alice, bob) -> None:
    await trust(alice).request(bob.node.node_id, "it is me")
    await until(lambda: trust(bob).pending())
    assert await trust(bob).approve(alice.node.node_id)
    assert await trust(alice).wait_for_trust(bob.node.node_id, 130)


def test_a_request_is_approved() -> None:
    async def scenario(world):
        alice, bob = await pair(world)
        a, b = alice.node.node_id, bob.node.node_id
        assert await trust(alice).request(b, "hi\nthere") is RequestOutcome.SENT
        (request,) = trust(bob).pending()
        assert (request.node_id, request.justification, request.source) == (a, "hithere", a)
        assert list(trust(alice).outgoing()) == [b]
        assert await trust(bob).approve(a)
        assert await trust(alice).wait_for_trust(b, 5)
        (mine,), (theirs,) = trust(alice).trusted(), trust(bob).trusted()
        assert (mine.node_id, mine.mutual, mine.public_key) == (b, True, bob.node.identity.public_key)
        assert (theirs.node_id, theirs.mutual, theirs.public_key) == (a, False, alice.node.identity.public_key)
        assert trust(alice).outgoing() == {}
        assert trust(bob).pending() == []
        assert await trust(alice).request(b) is RequestOutcome.ALREADY_TRUSTED
        assert await alice.node.resolver.check_trust(b)
        assert not await trust(bob).approve(a)

    simulate(1, scenario)


def test_a_private_node_is_out_of_reach_until_it_trusts() -> None:
    async def scenario(world):
        alice = machine(world, "alice", nat=NatType.PORT_RESTRICTED, public=False)
        bob = machine(world, "bob", nat=NatType.FULL_CONE, public=False)
        await alice.start()
        await bob.start()
        assert not await echo(alice, bob)
        assert await trust(alice).request(bob.node.node_id, "let me in") is RequestOutcome.RELAYED
        assert not await echo(alice, bob)
        await trust(bob).refresh()
        await until(lambda: trust(bob).pending())
        assert await trust(bob).approve(alice.node.node_id)
        assert await trust(alice).wait_for_trust(bob.node.node_id, 10)
        (record,) = trust(alice).trusted()
        assert record.mutual
        assert record.public_key == bob.node.identity.public_key
        assert await echo(alice, bob)
        assert await echo(bob, alice)
        await trust(bob).revoke(alice.node.node_id)
        await until(lambda: not trust(alice).trusted())
        await asyncio.sleep(400)  # what was dialed lately may answer for five minutes
        assert not await echo(alice, bob)
        assert not await echo(bob, alice)

    simulate(2, scenario)


def test_the_mailbox_alone_carries_a_request_and_its_rejection() -> None:
    async def scenario(world):
        alice, bob = await pair(world, public=False)
        a, b = alice.node.node_id, bob.node.node_id
        assert await trust(alice).request(b, "please") is RequestOutcome.RELAYED
        assert await trust(alice).request(b, "please") is RequestOutcome.RELAYED  # it still waits there
        await until(lambda: trust(bob).pending())
        assert trust(bob).pending()[0].justification == "please"
        assert await trust(bob).reject(a, "no")
        await until(lambda: not trust(alice).outgoing())
        assert trust(alice).trusted() == trust(bob).trusted() == []
        assert not await trust(bob).reject(a, "no")
        await asyncio.sleep(70)  # that one is read too, and does not answer the next request
        assert await trust(alice).request(b, "again") is RequestOutcome.RELAYED
        await until(lambda: trust(bob).pending())
        await trust(bob).approve(a)
        assert await trust(alice).wait_for_trust(b, 10)

    simulate(3, scenario)


def test_both_ask_each_other() -> None:
    async def scenario(world):
        alice, bob = await pair(world)
        a, b = alice.node.node_id, bob.node.node_id
        with alice.node.events.subscribe("trust.changed") as first, bob.node.events.subscribe("trust.changed") as other:
            await asyncio.gather(trust(alice).request(b), trust(bob).request(a))
            await until(lambda: trust(alice).trusted() and trust(bob).trusted())
            changes = [event.payload for event in first.get_all() + other.get_all()]
        assert {"reason": "mutual", "state": "granted"}.items() <= dict(changes[0]).items()
        assert trust(alice).pending() == trust(bob).pending() == []
        await asyncio.sleep(5)
        assert trust(alice).outgoing() == trust(bob).outgoing() == {}

    simulate(4, scenario)


@pytest.mark.parametrize("public", [True, False])
def test_a_node_that_approves_everybody(public: bool) -> None:
    async def scenario(world):
        alice = machine(world, "alice", public=public)
        bob = machine(world, "bob", public=public, auto_approve=True)
        await alice.start()
        await bob.start()
        with bob.node.events.subscribe("*") as events:
            await trust(alice).request(bob.node.node_id)
            assert await trust(alice).wait_for_trust(bob.node.node_id, 100)
            await until(lambda: trust(bob).trusted())
            told = [(event.topic, event.payload) for event in events.get_all() if event.topic in TOPICS]
        peer = {"peer_node_id": alice.node.node_id}
        reason = "auto_approve" if public else "auto_approve_relayed"
        assert told == [
            ("handshake.auto_approved", {**peer, "reason": "auto_approve"}),
            ("trust.changed", {**peer, "state": "granted", "reason": reason}),
        ]
        assert not trust(bob).trusted()[0].mutual

    simulate(5, scenario)


def test_a_node_trusts_itself() -> None:
    async def scenario(world):
        (alice, _) = await pair(world)
        me = alice.node.node_id
        assert await trust(alice).wait_for_trust(me, 0)
        assert await trust(alice).request(me) is RequestOutcome.SENT
        await until(lambda: trust(alice).trusted())
        assert trust(alice).trusted()[0].mutual

    simulate(6, scenario)


def test_revocation_ends_it_for_both_and_late_approvals_count_for_nothing() -> None:
    async def scenario(world):
        alice, bob = await pair(world)
        a, b = alice.node.node_id, bob.node.node_id
        await befriend(alice, bob)
        with alice.node.events.subscribe("trust.*") as mine, bob.node.events.subscribe("trust.*") as theirs:
            async with asyncio.timeout(1):  # bob says that he has heard it before he ends the tunnel
                await trust(alice).revoke(b)
            await until(lambda: not trust(bob).trusted())
            assert [event.topic for event in mine.get_all()] == ["trust.revoked", "trust.changed"]
            assert [event.topic for event in theirs.get_all()] == ["trust.revoked_by_peer", "trust.changed"]
        await until(lambda: not world.rendezvous.registry.state.trust)
        with pytest.raises(PeerNotFoundError, match=f"node {b} was not trusted"):
            await trust(alice).revoke(b)
        await befriend(bob, alice)
        assert [record.node_id for record in trust(alice).trusted()] == [b]
        await trust(bob).revoke(a)
        await until(lambda: not trust(alice).trusted())
        await befriend(alice, bob)  # the third time within minutes: no message is taken for a replay

    simulate(7, scenario)


def test_a_node_nobody_knows() -> None:
    async def scenario(world):
        (alice, _) = await pair(world)
        with pytest.raises(PeerNotFoundError):
            await trust(alice).request(4711, "hello?")
        assert trust(alice).outgoing() == {}

    simulate(8, scenario)


def test_a_registry_that_forgot_everything_learns_the_trust_again() -> None:
    async def scenario(world):
        alice, bob = await pair(world)
        await befriend(alice, bob)
        pairs = world.rendezvous.registry.state.trust
        await until(lambda: len(pairs) == 1)
        pairs.clear()
        alice.node.resolver.reregister("a test says so")
        await until(lambda: len(pairs) == 1)

    simulate(9, scenario)


def test_what_waits_in_the_mailbox_is_there_soon_after_the_start() -> None:
    async def scenario(world):
        alice, bob = await pair(world, public=False)
        number = bob.node.node_id
        await bob.stop()
        assert await trust(alice).request(number, "when you are back") is RequestOutcome.RELAYED
        await asyncio.sleep(100)
        await bob.start()
        await asyncio.sleep(1)
        assert [request.justification for request in trust(bob).pending()] == ["when you are back"]

    simulate(11, scenario)


def test_the_beacons_word_brings_the_request_at_once() -> None:
    async def scenario(world):
        alice, bob = await pair(world, public=False)
        await asyncio.sleep(10)
        await trust(alice).request(bob.node.node_id, "knock")
        before = asyncio.get_running_loop().time()
        trust(bob)._on_mailbox()
        await until(lambda: trust(bob).pending())
        assert asyncio.get_running_loop().time() - before < 2

    simulate(10, scenario)
