"""The plugin in whole nodes on the simulated network: a policy from the registry decides who reaches what."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from pilot.coreapi import Addr, RefusedError
from pilot.plugins.handshake import HandshakeService
from pilot.plugins.policy import PolicyService
from pilot.testing import World, simulate
from tests.node.test_networks import create, events
from tests.plugins.policy.documents import document, rule

DOCUMENT = document(
    rule("members", "connect", 'has_tag(local_tags, "server") && has_tag(peer_tags, "client") && port == 80', "allow"),
    rule("others", "connect", "true", ("webhook", {"event": "knock"}), "deny"),
    rule("quiet", "datagram", 'direction == "in" && size > 5', "deny"),
    rule("out", "dial", "port == 81", "deny"),
    rule("grow", "cycle", "trusted_count == 0", ("fill_trust", {"target": 1})),
).decode()


def test_a_policy_of_the_registry_decides_at_the_gates(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        network = create(world, expr_policy=DOCUMENT)
        alice = await world.machine("alice").start()
        services = [PolicyService.for_node, HandshakeService.for_node]
        machine = world.machine("bob", services=services, state_dir=tmp_path)
        bob = await machine.start()
        assert bob._runtime is not None
        assert bob._runtime.datapath.mux.policy is None, "no policy, no call of it"
        for node in (alice, bob):
            await node.join_network(network)
        await asyncio.sleep(0.1)
        assert bob._runtime.datapath.mux.policy is not None
        told = events(bob, "*")
        await bob.listen(80)
        await bob.listen(82)
        await asyncio.sleep(6.0)
        policy = bob.service("policy")
        assert isinstance(policy, PolicyService)
        runner = policy.manager.get(network)
        assert runner is not None
        assert runner.has_member(alice.node_id)

        with pytest.raises(TimeoutError):
            await alice.dial(bob.address, 80, timeout=3.0)
        assert {"policy.knock", "syn.port_rejected"} <= {topic for topic, _ in told()}
        world.rendezvous.administer(
            "set_member_tags", network_id=network, target_node_id=alice.node_id, tags=["client"]
        )
        world.rendezvous.administer("set_member_tags", network_id=network, target_node_id=bob.node_id, tags=["server"])
        bob.networks.sync_soon()
        await asyncio.sleep(6.0)
        async with await alice.dial(bob.address, 80, timeout=3.0) as stream:
            await stream.write(b"hello")
        with pytest.raises(TimeoutError):
            await alice.dial(Addr(network, bob.node_id), 82, timeout=3.0)
        with pytest.raises(RefusedError, match="port 81 not allowed by network 0 policy"):
            await bob.dial(alice.address, 81)

        inbox = bob.datagrams(80)
        await alice.send_datagram(bob.address, 80, b"too long")
        await alice.send_datagram(bob.address, 80, b"short")
        assert (await anext(inbox)).data == b"short"
        inbox.close()

        assert runner.force_cycle()["filled_trust"] == 1
        await asyncio.sleep(3.0)
        handshakes = bob.service("handshake")
        assert isinstance(handshakes, HandshakeService)
        assert "policy.fill_trust" in {topic for topic, _ in told()}

        added = runner.peer_list()
        await machine.stop()
        bob = await machine.start()
        await asyncio.sleep(6.0)
        policy = bob.service("policy")
        assert isinstance(policy, PolicyService)
        again = policy.manager.get(network)
        assert again is not None
        assert json.loads(again.policy_json()) == json.loads(DOCUMENT)
        assert again.peer_list() == added
        await bob.leave_network(network)
        await asyncio.sleep(0.1)
        assert policy.manager.all() == []
        assert bob._runtime is not None
        assert bob._runtime.datapath.mux.policy is None

    simulate("policy plugin", body)
