"""Our node and the official daemon in one network: members, tags, and the ports it allows, at both ends' gates."""

from __future__ import annotations

import asyncio

import pytest

from pilot._fast.addr import Addr
from pilot._fast.errors import RefusedError
from pilot.node import Node
from tests.interop.ipc import IpcError
from tests.interop.ours import our_node
from tests.interop.probe import registry_call
from tests.interop.rendezvous import ADMIN_TOKEN

ALLOWED, FORBIDDEN = 7, 1234


async def answered(node: Node, target: Addr, port: int) -> bool:
    try:
        async with await node.dial(target, port, timeout=1.0):
            return True
    except TimeoutError:
        return False


async def test_ports_of_a_network(start_daemon, rendezvous, namespace):
    async def admin(kind: str, **fields):
        return await registry_call(rendezvous.registry, type=kind, admin_token=ADMIN_TOKEN, **fields)

    created = await admin("create_network", node_id=0, name="lab", join_rule="open", enterprise=True)
    network = created["network_id"]
    daemon = await start_daemon("bob", public=True)
    async with our_node(namespace, rendezvous) as node, await daemon.ipc() as client:
        await daemon.ctl("network", "join", str(network))
        assert await node.join_network(network) == Addr(network, node.node_id)
        theirs, ours = Addr(network, daemon.node_id), Addr(network, node.node_id)
        assert [member.node_id for member in await node.networks.members(network)] == sorted(
            (daemon.node_id, node.node_id)
        )
        async with await client.bind(FORBIDDEN), await node.listen(FORBIDDEN):
            assert await answered(node, theirs, FORBIDDEN)
            async with await client.dial(str(ours), FORBIDDEN):
                pass
            await admin("set_network_policy", network_id=network, allowed_ports=[ALLOWED])
            await admin("set_member_tags", network_id=network, target_node_id=node.node_id, tags=["red"])
            with node.events.subscribe("*") as events:
                node.networks.sync_soon()
                async with asyncio.timeout(5.0):
                    while (event := await anext(events)).topic != "network.tags_changed":
                        pass
                assert (event.payload["network_id"], event.payload["tags"]) == (network, ["red"])
            with pytest.raises(RefusedError, match=f"port {FORBIDDEN} not allowed by network {network} policy"):
                await node.dial(theirs, FORBIDDEN)
            assert await answered(node, theirs, ALLOWED)
            # The daemon has not asked again yet and lets its dial out: our gate answers with silence.
            with node.events.subscribe("syn.port_rejected") as rejected:
                with pytest.raises((IpcError, TimeoutError)):
                    await client.dial(str(ours), FORBIDDEN, timeout=1.0)
                event = await anext(rejected)
            expected = {"src_node_id": daemon.node_id, "dst_port": FORBIDDEN, "network": network}
            assert dict(event.payload) == expected
            async with await client.dial(str(ours), ALLOWED):
                pass
            # The official daemon reads the list at its start, and then refuses with the same words.
        await daemon.restart(kill=True)
        async with await daemon.ipc() as again:
            with pytest.raises(IpcError, match=f"port {FORBIDDEN} not allowed by network {network} policy"):
                await again.dial(str(ours), FORBIDDEN)
        await node.leave_network(network)
        assert [member.node_id for member in await node.networks.members(network)] == [daemon.node_id]
