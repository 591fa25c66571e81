"""Each topic of the node's own layers is published with exactly its documented keys, and each known one is documented.

Whole nodes in virtual time; each has a service that records all events of its life. Source: services.md 8.2.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import tempfile
from collections import defaultdict
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from pilot._fast.addr import Addr
from pilot._fast.errors import PilotError, RefusedError, RegistryError
from pilot.coreapi import Deps, Service
from pilot.node import Node
from pilot.node.directory import Directory, NetworkLimits
from pilot.node.topics import STRANGER_TOPICS
from pilot.testing import Machine, NatType, World, simulate
from tests.node.test_networks import POLICY, create

PAGE = (Path(__file__).parents[2] / "docs" / "EVENTS.md").read_text()

OFFICIAL = {
    "node.registered": "address endpoint",
    "node.reregistered": "address",
    "agent.registered": "address node_id endpoint? reregistered?",
    "agent.heartbeat": "address node_id",
    "daemon.shutting_down": "known_peers open_connections uptime_seconds",
    "key.rotated": "node_id public_key",
    "network.auto_joined": "network_id",
    "network.joined": "network_id member_tags expr_policy? rules?",
    "network.left": "network_id",
    "network.tags_changed": "network_id tags",
    "network.policy_load_failed": "net_id had_prior",
    "tunnel.peer_added": "peer_node_id",
    "tunnel.established": "authenticated relay rekeyed peer_node_id?",
    "tunnel.relay_activated": "peer_node_id",
    "tunnel.desync_salvage": "peer_node_id replayed",
    "tunnel.rekey_gave_up": "peer_node_id",
    "tunnel.path_suspect": "peer_node_id silent_for_seconds? probes_sent? reason?",  # wire.md 15 has two shapes
    "tunnel.path_recovered": "peer_node_id silent_for_seconds probes_sent",
    "tunnel.addr_changed": "reason previous current peers_notified registry_ok",
    "tunnel.host_resumed": "gap_seconds",
    "tunnel.rx_silence": "reason silent_for_seconds pkts_sent_during_silence dial_timeouts raw_rx_age_seconds attempt",
    "tunnel.rx_recovered": "silent_for_seconds soft_attempts",
    "tunnel.rx_wedge_restart_loop": "reason recent_exits window_seconds silent_for_seconds",
    "tunnel.rx_wedged_exit": "reason silent_for_seconds pkts_sent_during_silence soft_attempts dial_timeouts exit_code",
    "conn.syn_received": "conn_id src_addr src_port dst_port",
    "conn.established": "conn_id src_addr src_port dst_port",
    "conn.fin": "conn_id local_port remote_addr remote_port",
    "conn.rst": "conn_id local_port remote_addr remote_port",
    "conn.idle_timeout": "conn_id local_port remote_addr remote_port",
    "conn.dead_peer": "conn_id local_port remote_addr remote_port",
    "conn.accept_queue_full": "port src_addr src_port drops_total",  # the keys are those of streams.md 16
    "syn.rejected": "src_node_id src_addr dst_port",
    "syn.port_rejected": "src_node_id dst_port network",
    "data.datagram": "src_addr src_port dst_port size",
    "datagram.rejected": "src_node_id src_addr dst_port",
    "datagram.port_rejected": "src_node_id? direction? dst_node_id? dst_port network",
    "security.syn_rate_limited": "src_addr src_port",
    "security.nonce_replay": "peer_node_id counter",
    "security.src_spoofed": "authenticated_peer_hash claimed_src_hash",
}
"""services.md 8.2, but for the topics of plugins."""
OWN = {"network.auto_join_failed": "network_id error tried_again"}
TOPICS = OFFICIAL | OWN


def documented() -> dict[str, tuple[set[str], bool]]:
    """Topic to keys and whether it is marked as limited, from the tables of the page."""
    rows = re.findall(r"^\| `([a-z._]+)`( \*\*L\*\*)? \| (.*?) \|", PAGE, re.MULTILINE)
    return {topic: (set(keys.replace("`", "").split(", ")) - {""}, bool(mark)) for topic, mark, keys in rows}


def test_the_page_is_complete() -> None:
    page = documented()
    assert {topic: keys for topic, (keys, _) in page.items()} == {
        topic: set(keys.split()) for topic, keys in TOPICS.items()
    }
    assert {topic for topic, (_, limited) in page.items() if limited} == set(STRANGER_TOPICS) & TOPICS.keys()
    assert len(page) == len(re.findall(r"^\| `", PAGE, re.MULTILINE))


# ------------------------------------------------------------------------------------------- recording


class Recorder(Service):
    """Records every event of its node, from before the registration to the very end."""

    name, order = "recorder", 10

    def __init__(self) -> None:
        self.heard: list[tuple[str, dict[str, Any]]] = []

    async def start(self, deps: Deps) -> None:
        self._subscription = deps.events.subscribe("", capacity=1 << 16)

    async def stop(self) -> None:
        self.drain()
        self._subscription.close()

    def drain(self) -> None:
        while (event := self._subscription.get_nowait()) is not None:
            self.heard.append((event.topic, dict(event.payload)))


class Stage:
    """A world whose machines record."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.recorders: list[Recorder] = []

    def machine(self, name: str = "", **settings: Any) -> Machine:
        self.recorders.append(Recorder())
        return self.world.machine(name, services=[self.recorders[-1]], **settings)

    async def pair(self, **settings: Any) -> tuple[Node, Node]:
        """Alice, and bob with `settings`."""
        return await self.machine("alice").start(), await self.machine("bob", **settings).start()


async def echo(node: Node, target: Addr, data: bytes = b"hello") -> None:
    async with await node.dial(target, 7, timeout=20.0) as stream:
        await stream.write(data)
        assert await stream.readexactly(len(data)) == data


async def fails(attempt: Awaitable[object]) -> None:
    with contextlib.suppress(PilotError, TimeoutError):
        await attempt


# ------------------------------------------------------------------------------------------- scenarios


async def life(stage: Stage) -> None:
    machine = stage.machine()
    node = await machine.start()
    await asyncio.sleep(66.0)
    await node.rotate_key()
    registry = stage.world.rendezvous.registry
    registry.end_registration(registry.state.nodes[node.node_id])
    await asyncio.sleep(66.0)
    machine.host.set_wall(1000.0)
    await asyncio.sleep(66.0)
    await machine.stop()


async def streams(stage: Stage) -> None:
    alice, bob = await stage.pair(backlog=1)
    await echo(alice, bob.address)
    await bob.listen(80)
    first = await alice.dial(bob.address, 80)
    with pytest.raises(RefusedError):
        await alice.dial(bob.address, 80)
    first._core.abort()
    await alice.send_datagram(bob.address, 9, b"datagram")
    await asyncio.sleep(1.0)


async def networks(stage: Stage) -> None:
    joined = create(stage.world, expr_policy=POLICY)
    auto = create(stage.world, "auto", rules={"links": 5, "cycle": "1h"})
    admin = stage.world.rendezvous.administer
    alice, bob = await stage.pair(join=f"{auto},99")
    for node in (alice, bob):
        await node.join_network(joined)
    target = Addr(joined, bob.node_id)
    await bob.listen(80)
    await echo(alice, target)
    admin("set_member_tags", network_id=joined, target_node_id=bob.node_id, tags=["red"])
    admin("set_network_policy", network_id=joined, allowed_ports=[443])
    bob.networks.sync_soon()
    await asyncio.sleep(1.0)
    await fails(alice.dial(target, 80, timeout=1.0))
    await alice.send_datagram(target, 80, b"in")
    await fails(bob.send_datagram(Addr(joined, alice.node_id), 80, b"out"))
    await asyncio.sleep(1.0)
    await bob.leave_network(joined)


async def strangers(stage: Stage) -> None:
    """Bob is private: alice may call back for five minutes after he dialed her, and has his address for longer."""
    alice, bob = await stage.pair(public=False, syn_rate=2.0)
    await bob.listen(80)
    await bob.ping(alice.address)
    await asyncio.gather(*(fails(alice.dial(bob.address, 80, timeout=2.0)) for _ in range(5)))
    for stream in [core.owner for core in alice._runtime.datapath.mux.all_streams()]:  # type: ignore[union-attr]
        if stream is not None:
            stream.abort()
    for _ in range(5):
        await asyncio.sleep(62.0)
        await fails(alice.ping(bob.address, timeout=1.0))
    await fails(alice.dial(bob.address, 80, timeout=1.0))
    await alice.send_datagram(bob.address, 9, b"anybody there?")
    await asyncio.sleep(1.0)


async def attackers(stage: Stage) -> None:
    alice, bob = await stage.pair()
    seen: list[tuple[bytes, Any, Any]] = []
    stage.world.network.taps.append(lambda now, source, target, data: seen.append((data, source, target)))
    await echo(alice, bob.address)
    data, source, target = next(entry for entry in seen if entry[0][:4] == b"PILS" and entry[2] == bob.endpoint)
    stage.world.network.inject(data, source, target)
    await asyncio.sleep(1.0)
    assert alice._runtime is not None
    alice._runtime.datapath.own_node = 99  # alice speaks in another's name from here on
    await alice.send_datagram(bob.address, 9, b"trust me")
    await asyncio.sleep(1.0)
    alice._runtime.datapath.own_node = alice.node_id


async def silence(stage: Stage) -> None:
    """The way to bob is cut for a minute, then for good while alice goes on sending; and then it comes back."""
    machine = stage.machine("alice")
    alice, bob = await machine.start(), await stage.machine("bob").start()
    network = stage.world.network
    await bob.listen(80)
    await alice.dial(bob.address, 80)
    bob_host = stage.world.machines[1].host
    everybody = [machine.host, stage.world.rendezvous.host]
    await asyncio.sleep(1.0)
    network.partition(everybody, [bob_host])
    await asyncio.sleep(70.0)
    network.heal()
    await asyncio.sleep(30.0)
    network.partition(everybody, [bob_host])
    for _ in range(60):
        await asyncio.sleep(5.0)
        await fails(alice.send_datagram(bob.address, 9, b"anybody there?"))
    network.heal()
    for _ in range(10):
        await asyncio.sleep(5.0)
        await fails(bob.send_datagram(alice.address, 9, b"yes"))


async def crashes(stage: Stage) -> None:
    """Bob crashes and comes back under the same key, and later for good."""
    alice, _ = await stage.pair()
    machine = stage.world.machines[1]
    target = machine.node.address
    await echo(alice, target)
    machine.crash()
    await machine.start()
    for _ in range(3):
        await alice.send_datagram(target, 9, b"to be read by nobody")
    await asyncio.sleep(20.0)
    machine.crash()
    await asyncio.sleep(320.0)  # alice has forgotten him
    await fails(alice.dial(target, 7, timeout=60.0))
    await asyncio.sleep(10.0)


async def relay(stage: Stage) -> None:
    """Two symmetric NATs: only the beacon connects them."""
    one = await stage.machine(nat=NatType.SYMMETRIC).start()
    two = await stage.machine(nat=NatType.SYMMETRIC).start()
    await asyncio.sleep(3.0)
    await echo(one, two.address)


async def moving(stage: Stage) -> None:
    alice, bob = await stage.pair()
    await echo(alice, bob.address)
    assert alice._runtime is not None
    alice._runtime.tunnel.local_address("10.9.9.9", alice._runtime.clock())  # what the system would answer
    await asyncio.sleep(5.0)


async def held_up(stage: Stage) -> None:
    """Bob's process gets no processor for two minutes."""
    alice, bob = await stage.pair()
    await bob.listen(80)
    await alice.dial(bob.address, 80)
    await asyncio.sleep(1.0)
    stage.world.machines[1].host.jump(130.0)
    await asyncio.sleep(10.0)


async def deaf(stage: Stage) -> None:
    """Nothing of bob reaches alice any more, her only peer; she ends, and is started anew, four times."""
    stage.world.expected_errors.add("pilot.node")
    with tempfile.TemporaryDirectory() as directory:
        machine = stage.machine("alice", end_when_deaf=True, state_dir=directory)
        bob = await stage.machine("bob").start()
        network, everybody = stage.world.network, [machine.host, stage.world.rendezvous.host]
        for life in range(4):
            alice = await machine.start()
            await asyncio.sleep(1800.0)
            await alice.ping(bob.address)
            network.partition(everybody, [stage.world.machines[1].host])
            for _ in range(100):
                await fails(alice.send_datagram(bob.address, 9, b"anybody there?"))
                await asyncio.sleep(5.0)
            assert alice.deaf is (life < 3)
            network.heal()
            await machine.stop()


SCENARIOS: dict[Callable[[Stage], Awaitable[None]], str] = {
    life: "node.registered node.reregistered agent.registered agent.heartbeat daemon.shutting_down key.rotated "
    "tunnel.host_resumed",
    streams: "tunnel.established tunnel.peer_added conn.syn_received conn.established conn.fin conn.rst "
    "conn.accept_queue_full data.datagram",
    networks: "network.joined network.auto_joined network.auto_join_failed network.left network.tags_changed "
    "syn.port_rejected datagram.port_rejected",
    strangers: "syn.rejected datagram.rejected security.syn_rate_limited",
    attackers: "security.nonce_replay security.src_spoofed",
    silence: "tunnel.path_suspect tunnel.path_recovered conn.dead_peer tunnel.rx_silence tunnel.rx_recovered",
    crashes: "tunnel.rekey_gave_up tunnel.desync_salvage",
    relay: "tunnel.relay_activated",
    moving: "tunnel.addr_changed",
    held_up: "conn.idle_timeout",
    deaf: "tunnel.rx_silence tunnel.rx_wedged_exit tunnel.rx_wedge_restart_loop",
}


def play(scenario: Callable[[Stage], Awaitable[None]]) -> dict[str, list[dict[str, Any]]]:
    """What the nodes of a scenario published, by topic."""
    stages: list[Stage] = []

    async def body(world: World) -> None:
        stages.append(Stage(world))
        await scenario(stages[0])

    simulate(f"events: {scenario.__name__}", body)
    heard: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for recorder in stages[0].recorders:
        for topic, payload in recorder.heard:
            heard[topic].append(payload)
    return heard


def check_keys(heard: dict[str, list[dict[str, Any]]]) -> None:
    for topic, payloads in heard.items():
        keys = TOPICS[topic].split()
        needed = {key for key in keys if not key.endswith("?")}
        for payload in payloads:
            assert needed <= payload.keys() <= {key.removesuffix("?") for key in keys}, (topic, payload)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_published_as_documented(scenario: Callable[[Stage], Awaitable[None]]) -> None:
    heard = play(scenario)
    check_keys(heard)
    missing = set(SCENARIOS[scenario].split()) - heard.keys()
    assert not missing


def test_a_failing_port_list(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(directory: Directory, network_id: int) -> NetworkLimits:
        raise RegistryError("no")

    monkeypatch.setattr(Directory, "network_limits", refuse)

    async def joining(stage: Stage) -> None:
        network = create(stage.world)
        node = await stage.machine().start()
        await node.join_network(network)

    heard = play(joining)
    check_keys(heard)
    assert "network.policy_load_failed" in heard


def test_no_topic_is_left_out() -> None:
    played = {topic for topics in SCENARIOS.values() for topic in topics.split()} | {"network.policy_load_failed"}
    assert played == TOPICS.keys()
