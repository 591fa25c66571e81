"""Trust with the official daemon, both ways: approve, reject, revoke, mutual, auto-approve, the mailbox, the gate."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest

from pilot.coreapi import PilotError
from pilot.node import Node
from pilot.plugins.handshake import HandshakeService, RequestOutcome
from pilot.plugins.handshake.file import load
from tests.interop.ipc import IpcError, eventually
from tests.interop.official import (
    AFTER_MAILBOX_APPROVAL,
    AFTER_TRUST_ENDED,
    WHEN_HANDSHAKES_ARE_REJECTED,
    WHEN_STRANGERS_CALL,
    OfficialDaemon,
)
from tests.interop.ours import our_node
from tests.interop.probe import registry_call
from tests.interop.rendezvous import ADMIN_TOKEN
from tests.plugins.webhook.receiver import receiver

COMPLAINTS = (*AFTER_TRUST_ENDED, *AFTER_MAILBOX_APPROVAL, *WHEN_STRANGERS_CALL, *WHEN_HANDSHAKES_ARE_REJECTED)


@asynccontextmanager
async def ours(namespace, rendezvous, *, auto_approve: bool = False, **settings: Any) -> AsyncIterator[Node]:
    service = partial(HandshakeService.for_node, auto_approve=auto_approve)
    async with our_node(namespace, rendezvous, services=[service], **settings) as node:
        yield node


def trust(node: Node) -> HandshakeService:
    service = node.service("handshake")
    assert isinstance(service, HandshakeService)
    return service


async def pending(daemon: OfficialDaemon) -> list[dict[str, Any]]:
    return (await daemon.ctl("pending"))["pending"]


async def trusted(daemon: OfficialDaemon) -> list[dict[str, Any]]:
    return (await daemon.ctl("trust"))["trusted"]


async def asks(node: Node, daemon: OfficialDaemon, text: str) -> RequestOutcome:
    """Our node asks; returns when the daemon shows the request."""
    outcome = await trust(node).request(daemon.node_id, text)

    async def shown() -> bool:
        return any(row["node_id"] == node.node_id and row["justification"] == text for row in await pending(daemon))

    await eventually(shown, 20)
    return outcome


async def is_asked(node: Node, daemon: OfficialDaemon, text: str) -> None:
    """The daemon asks; returns when our node has the request."""
    await daemon.ctl("handshake", str(node.node_id), text)

    async def there() -> bool:
        await trust(node).refresh()
        return any(request.justification == text for request in trust(node).pending())

    await eventually(there, 20)


def has_logged(daemon: OfficialDaemon, text: str) -> bool:
    return any(text in record["msg"] for record in daemon.records())


async def reaches(node: Node, daemon: OfficialDaemon) -> bool:
    try:
        async with await node.dial(str(daemon.address), 7, timeout=2) as stream:
            await stream.write(b"hello")
            return await stream.readexactly(5) == b"hello"
    except (PilotError, TimeoutError, asyncio.IncompleteReadError):
        return False


async def is_reached(node: Node, daemon: OfficialDaemon) -> bool:
    try:
        async with await daemon.ipc() as client, await client.dial(str(node.address), 7, timeout=30) as stream:
            await stream.write(b"hello")
            return await stream.readexactly(5) == b"hello"
    except (IpcError, TimeoutError, asyncio.IncompleteReadError, OSError):
        return False


async def eventually_trusts(daemon: OfficialDaemon, node: Node, wanted: bool = True) -> dict[str, Any]:
    async def so() -> bool:
        return any(row["node_id"] == node.node_id for row in await trusted(daemon)) is wanted

    await eventually(so, 20)
    return next((row for row in await trusted(daemon) if row["node_id"] == node.node_id), {})


async def test_we_ask_and_they_approve_reject_and_revoke(start_daemon, rendezvous, namespace) -> None:
    daemon = await start_daemon("bob", public=True, expect=COMPLAINTS)
    async with ours(namespace, rendezvous) as node:
        assert await asks(node, daemon, "hello <bob> & äöü") is RequestOutcome.SENT
        await daemon.ctl("approve", str(node.node_id))
        assert await trust(node).wait_for_trust(daemon.node_id, 10)
        (record,) = trust(node).trusted()
        assert record.mutual
        assert (await eventually_trusts(daemon, node))["mutual"] is False
        await daemon.ctl("untrust", str(node.node_id))
        await eventually(lambda: trust(node).trusted() == [])
        assert await asks(node, daemon, "a second time within ten minutes") is RequestOutcome.SENT
        await daemon.ctl("reject", str(node.node_id), "no thanks")
        await eventually(lambda: not trust(node).outgoing())
        assert await asks(node, daemon, "a third time") is RequestOutcome.SENT


async def test_they_ask_and_we_approve_reject_and_revoke(start_daemon, rendezvous, namespace) -> None:
    daemon = await start_daemon("bob", public=True, expect=COMPLAINTS)
    async with ours(namespace, rendezvous) as node:
        await is_asked(node, daemon, "hello node")
        assert await trust(node).reject(daemon.node_id, "not today")
        # It is told twice. The second time would count as the answer to a request made in between.
        await eventually(lambda: has_logged(daemon, "handshake rejected via relay"))
        await is_asked(node, daemon, "please")
        assert await trust(node).approve(daemon.node_id)
        assert (await eventually_trusts(daemon, node))["mutual"] is True
        await trust(node).revoke(daemon.node_id)
        await eventually_trusts(daemon, node, wanted=False)
        await is_asked(node, daemon, "again")
        assert await trust(node).approve(daemon.node_id)
        await eventually_trusts(daemon, node)


async def test_mutual_and_automatic(start_daemon, rendezvous, namespace) -> None:
    daemon = await start_daemon("bob", public=True, expect=COMPLAINTS)
    async with ours(namespace, rendezvous) as node:
        await asks(node, daemon, "first")
        await daemon.ctl("handshake", str(node.node_id), "me too")
        await eventually_trusts(daemon, node)
        await eventually(lambda: len(trust(node).trusted()) == 1)
        assert trust(node).outgoing() == {}
    async with ours(namespace, rendezvous, auto_approve=True, name="willing") as node:
        await daemon.ctl("handshake", str(node.node_id), "let me in")
        assert (await eventually_trusts(daemon, node))["mutual"] is True
        assert trust(node).trusted()[0].mutual is False
    generous = await start_daemon("carol", public=True, trust_auto_approve=True, expect=COMPLAINTS)
    async with ours(namespace, rendezvous, name="asking") as node:
        await trust(node).request(generous.node_id, "let me in")
        assert await trust(node).wait_for_trust(generous.node_id, 10)
        await eventually_trusts(generous, node)


async def test_trust_in_a_shared_network_stays_revoked_until_we_approve(start_daemon, rendezvous, namespace) -> None:
    daemon = await start_daemon("bob", public=True, expect=COMPLAINTS)
    async with ours(namespace, rendezvous) as node:
        created = await registry_call(
            rendezvous.registry,
            type="create_network",
            node_id=daemon.node_id,  # which is a member from then on
            name="team",
            join_rule="open",
            token="",
            admin_token=ADMIN_TOKEN,
        )
        await node.join_network(created["network_id"])
        await daemon.ctl("handshake", str(node.node_id), "colleagues")
        await eventually_trusts(daemon, node)
        assert trust(node).trusted()[0].network == created["network_id"]
        await trust(node).revoke(daemon.node_id)
        await eventually_trusts(daemon, node, wanted=False)
        await is_asked(node, daemon, "again")
        assert trust(node).trusted() == []
        assert await trust(node).approve(daemon.node_id)
        assert (await eventually_trusts(daemon, node))["mutual"] is True


async def test_private_nodes_meet_through_the_mailbox(start_daemon, rendezvous, namespace) -> None:
    daemon = await start_daemon("bob", expect=COMPLAINTS)
    async with ours(namespace, rendezvous, public=False) as node:
        assert not await reaches(node, daemon)
        assert await asks(node, daemon, "through the mailbox") is RequestOutcome.RELAYED
        await daemon.ctl("approve", str(node.node_id))
        assert await trust(node).wait_for_trust(daemon.node_id, 10)
        assert await reaches(node, daemon)
        assert await is_reached(node, daemon)
    async with ours(namespace, rendezvous, public=False, name="second") as node:
        assert not await is_reached(node, daemon)
        await is_asked(node, daemon, "mailbox back")
        assert await trust(node).approve(daemon.node_id)
        await eventually_trusts(daemon, node)
        assert await is_reached(node, daemon)
        assert await reaches(node, daemon)
        await trust(node).revoke(daemon.node_id)
        await eventually_trusts(daemon, node, wanted=False)


async def test_a_relayed_rejection(start_daemon, rendezvous, namespace) -> None:
    daemon = await start_daemon("bob", expect=COMPLAINTS)
    async with ours(namespace, rendezvous, public=False) as node:
        await is_asked(node, daemon, "please")
        assert await trust(node).reject(daemon.node_id, "no")
        await eventually(lambda: has_logged(daemon, "handshake rejected via relay"), 20)
        assert not await trust(node).reject(daemon.node_id, "no")
        assert await asks(node, daemon, "but we want") is RequestOutcome.RELAYED
        await daemon.ctl("reject", str(node.node_id), "no")
        await eventually(lambda: not trust(node).outgoing(), 20)


async def test_a_user_brings_the_official_file(start_daemon, rendezvous, namespace, tmp_path) -> None:
    """A node of ours goes on with identity and trust of a daemon, and a daemon with those of our node."""
    peer = await start_daemon("bob", public=True, expect=COMPLAINTS)
    daemon = await start_daemon("alice", public=True, expect=COMPLAINTS)
    await daemon.ctl("handshake", str(peer.node_id), "hello")

    async def arrived() -> bool:
        return bool(await pending(peer))

    await eventually(arrived, 20)
    await peer.ctl("approve", str(daemon.node_id))

    async def friends() -> bool:
        return bool(await trusted(daemon))

    await eventually(friends, 20)
    file = daemon.directory / "trust.json"
    await eventually(lambda: json.loads(file.read_text())["trusted"], 20)
    await daemon.kill()
    async with ours(namespace, rendezvous, name="alice", state_dir=daemon.directory) as node:
        assert node.node_id == daemon.node_id
        (record,) = trust(node).trusted()
        assert record.node_id == peer.node_id
        await trust(node).revoke(peer.node_id)
        await eventually_trusts(peer, node, wanted=False)
        await is_asked(node, peer, "again")
    book, unusable = load(file.read_bytes(), 0)
    assert unusable == 0
    assert list(book.pending) == list(book.revoked) == [peer.node_id]
    await daemon.start()
    assert [row["justification"] for row in await pending(daemon)] == ["again"]
    assert json.loads(file.read_text())["trusted"] is None


@pytest.mark.parametrize("relayed", [False, True])
async def test_the_same_events(start_daemon, rendezvous, namespace, relayed) -> None:
    """What an official daemon and our node publish when each is asked, approves and is untrusted."""
    async with receiver(namespace.new_host()) as hook:
        daemon = await start_daemon("bob", public=not relayed, flags=("-webhook", hook.url), expect=COMPLAINTS)
        async with ours(namespace, rendezvous, public=not relayed) as node:
            with node.events.subscribe("*") as events:
                await asks(node, daemon, "q")
                await daemon.ctl("approve", str(node.node_id))
                assert await trust(node).wait_for_trust(daemon.node_id, 10)
                await daemon.ctl("untrust", str(node.node_id))
                await eventually(lambda: trust(node).trusted() == [])
                await is_asked(node, daemon, "q")
                await trust(node).approve(daemon.node_id)
                await eventually_trusts(daemon, node)
                await trust(node).revoke(daemon.node_id)
                await eventually_trusts(daemon, node, wanted=False)
                await eventually(lambda: any("revoked_by_peer" in topic for topic in hook.events()))
                mine = [(event.topic, dict(event.payload)) for event in events.get_all()]
        await daemon.kill()  # or it complains that the receiver is gone
        theirs = [(request.json["event"], request.json["data"]) for request in hook.requests]
    shown = [
        [(topic, {**data, "peer_node_id": 0}) for topic, data in side if topic.startswith(("handshake.", "trust."))]
        for side in (mine, theirs)
    ]
    ended_by_peer, asked = shown[0][:2], shown[0][2:]
    if relayed and asked[0][0] == "handshake.received":
        # Requests out of the mailbox come silently. The daemon's takes the tunnel while that has not ended yet.
        assert asked[1][0] == "handshake.pending"
        asked = asked[2:]
    assert asked + ended_by_peer == shown[1]
