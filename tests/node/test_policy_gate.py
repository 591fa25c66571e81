"""The policy gate of a node: who is consulted, deny wins, port lists, tags that are not known yet; both ways (L9).

Source: services.md 9.7.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from pilot._fast.addr import Addr
from pilot._fast.errors import ClosedError, PeerNotFoundError, RefusedError, RegistryError
from pilot._fast.eventbus import EventBus
from pilot.coreapi import Deps, PolicyManager, Service
from pilot.node import Node
from pilot.node import tags as node_tags
from pilot.node.directory import Member
from pilot.node.policy import PolicyGate
from pilot.node.tags import NodeTags
from pilot.testing import World, simulate
from tests.node.test_networks import create, events

PEER = 7


class Runner:
    """A policy runner in the test's hands; fits `PolicyRunner`."""

    def __init__(self, network_id: int, *members: int, deny: Sequence[int] = ()) -> None:
        self.network_id = network_id
        self.members = set(members)
        self.deny = set(deny)
        self.asked: list[tuple[Any, ...]] = []
        self.broken = ""

    def has_member(self, peer_node_id: int) -> bool:
        if self.broken == "has_member":
            raise RuntimeError("no")
        return peer_node_id in self.members

    def evaluate_port_gate(self, event_type: Any, port: int, *rest: Any) -> bool:
        self.asked.append((str(event_type), port, *rest))
        if self.broken == "evaluate":
            raise RuntimeError("no")
        return port not in self.deny


class Manager:
    """A policy manager of given runners."""

    def __init__(self, *runners: Runner) -> None:
        self.runners = list(runners)

    def all(self) -> list[Any]:
        return list(self.runners)


class Stage:
    """A gate with everything around it in the test's hands."""

    def __init__(self, *runners: Runner) -> None:
        self.now = 1000.0
        self.ports: dict[int, tuple[int, ...] | None] = {}
        self.known: dict[int, Any] = {PEER: ("web",)}
        self.lookups: list[int] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.bus = EventBus(node_id=1)
        self.subscription = self.bus.subscribe()
        memberships: Any = SimpleNamespace(
            allowed_ports=lambda network: self.ports.get(network, ()),
            own_tags=lambda network: (f"own{network}",),
        )
        self.tags = NodeTags(
            self.lookup, lambda coroutine: self.tasks.append(asyncio.ensure_future(coroutine)), lambda: self.now
        )
        self.gate = PolicyGate(memberships, self.tags, self.bus)
        if runners:
            manager: Any = Manager(*runners)
            self.gate.manager = manager

    async def lookup(self, node_id: int) -> Any:
        self.lookups.append(node_id)
        await asyncio.sleep(0)
        found = self.known.get(node_id, PeerNotFoundError("nobody"))
        if isinstance(found, Exception):
            raise found
        return SimpleNamespace(tags=found)

    async def settled(self) -> None:
        await asyncio.gather(*self.tasks)

    async def meet(self, node: int = PEER) -> None:
        """The peer's tags are known from here on."""
        await self.tags.learn(node)
        self.lookups.clear()

    def told(self) -> list[tuple[str, dict[str, Any]]]:
        return [(event.topic, dict(event.payload)) for event in self.subscription.get_all()]


# ------------------------------------------------------------------------------------ who is consulted


async def test_network_of_the_packet_and_runners_that_track_the_peer() -> None:
    own, tracking, other = Runner(5), Runner(6, PEER), Runner(8)
    stage = Stage(own, tracking, other)
    await stage.meet()
    assert stage.gate.admit_syn(5, PEER, 80)
    assert own.asked == [("connect", 80, PEER, 0, "in", ("own5",), ("web",))]
    assert tracking.asked == [("connect", 80, PEER, 0, "in", ("own6",), ("web",))]
    assert other.asked == []
    assert stage.gate.admit_datagram(0, PEER, 81, 3)
    assert own.asked[1:] == []
    assert tracking.asked[1:] == [("datagram", 81, PEER, 3, "in", ("own6",), ("web",))]


async def test_one_that_denies_is_enough_and_all_are_asked() -> None:
    first, second = Runner(5, deny=[80]), Runner(6, PEER)
    stage = Stage(first, second)
    await stage.meet()
    assert not stage.gate.admit_syn(5, PEER, 80)
    assert len(second.asked) == 1, "its actions take place all the same"
    assert stage.told() == [("syn.port_rejected", {"src_node_id": PEER, "dst_port": 80, "network": 5})]
    second.deny, first.deny = {81}, set()
    assert not stage.gate.admit_datagram(0, PEER, 81, 3)
    assert stage.told() == [("datagram.port_rejected", {"src_node_id": PEER, "dst_port": 81, "network": 0})]


async def test_port_list_counts_only_where_no_runner_is_consulted() -> None:
    runner = Runner(5)
    stage = Stage(runner)
    await stage.meet()
    stage.ports = {5: (443,), 6: (443,), 7: None}
    assert stage.gate.admit_syn(5, PEER, 80), "the runner decides alone"
    assert stage.gate.admit_syn(6, PEER, 443)
    assert not stage.gate.admit_syn(6, PEER, 80)
    assert stage.gate.admit_syn(0, PEER, 80)
    assert not stage.gate.admit_syn(7, PEER, 443), "a list that is not known permits nothing"
    runner.members.add(PEER)
    assert stage.gate.admit_syn(6, PEER, 80), "a policy of network 5 decides about network 6"


async def test_only_port_lists() -> None:
    stage = Stage()
    stage.ports = {6: (443,)}
    assert [stage.gate.admit_syn(6, PEER, port) for port in (80, 443)] == [False, True]
    assert [stage.gate.admit_datagram(6, PEER, port, 1) for port in (80, 443)] == [False, True]
    assert stage.lookups == [], "nobody's tags matter"
    await stage.gate.check_dial(Addr(6, PEER), 443)
    with pytest.raises(RefusedError):
        await stage.gate.check_dial(Addr(6, PEER), 80)


@pytest.mark.parametrize("step", ["has_member", "evaluate"])
async def test_a_runner_that_crashes(step: str, caplog: pytest.LogCaptureFixture) -> None:
    """Its network is not left open; the others are asked all the same."""
    broken, sound = Runner(5), Runner(6, PEER)
    broken.broken = step
    stage = Stage(broken, sound)
    await stage.meet()
    verdicts = [stage.gate.admit_syn(6, PEER, 80) for _ in range(100)]
    assert len(sound.asked) == 100
    if step == "has_member":
        assert len(broken.asked) == 100, "whoever cannot tell has a say"
    else:
        assert verdicts == [True] * 100
        assert not stage.gate.admit_syn(5, PEER, 80)
    assert len(caplog.records) == 1, "a stranger cannot fill the log"


# ---------------------------------------------------------------------------------------------- outward


async def test_outward() -> None:
    runner = Runner(5, deny=[80])
    stage = Stage(runner)
    await stage.gate.check_dial(Addr(5, PEER), 443)
    assert runner.asked == [("dial", 443, PEER, 0, "out", ("own5",), ("web",))]
    await stage.gate.check_datagram(Addr(5, PEER), 443, 9)
    assert runner.asked[1:] == [("datagram", 443, PEER, 9, "out", ("own5",), ("web",))]
    assert stage.lookups == [PEER]
    assert stage.told() == []
    with pytest.raises(RefusedError, match="port 80 not allowed by network 5 policy"):
        await stage.gate.check_dial(Addr(5, PEER), 80)
    assert stage.told() == []
    with pytest.raises(RefusedError, match="port 80 not allowed by network 5 policy"):
        await stage.gate.check_datagram(Addr(5, PEER), 80, 1)
    out = {"direction": "out", "dst_node_id": PEER, "dst_port": 80, "network": 5}
    assert stage.told() == [("datagram.port_rejected", out)]


async def test_outward_names_the_network_of_the_address() -> None:
    stage = Stage(Runner(5, PEER, deny=[80]))
    with pytest.raises(RefusedError, match="network 0 policy"):
        await stage.gate.check_dial(Addr(0, PEER), 80)


async def test_outward_without_the_tags_that_are_needed() -> None:
    stage = Stage(Runner(5))
    stage.known[PEER] = RegistryError("down")
    with pytest.raises(RegistryError):
        await stage.gate.check_dial(Addr(5, PEER), 443)
    await stage.gate.check_dial(Addr(0, PEER), 443)


async def test_a_policy_that_goes_while_the_tags_are_asked_for() -> None:
    stage = Stage(Runner(5, deny=[80]))
    stage.ports = {5: (443,)}
    manager: Any = stage.gate.manager
    dial = asyncio.ensure_future(stage.gate.check_dial(Addr(5, PEER), 80))
    await asyncio.sleep(0)
    manager.runners.clear()
    with pytest.raises(RefusedError):
        await dial


# ------------------------------------------------------------------------------------------------- tags


async def test_unknown_tags_keep_a_peer_out_until_they_are_known() -> None:
    runner = Runner(5)
    stage = Stage(runner)
    assert not stage.gate.admit_syn(5, PEER, 80)
    assert not stage.gate.admit_syn(5, PEER, 80)
    assert (runner.asked, stage.told()) == ([], []), "no verdict, no event"
    await stage.settled()
    assert stage.gate.admit_syn(5, PEER, 80)
    assert stage.lookups == [PEER]
    assert stage.gate.admit_syn(0, 9, 80), "nobody is consulted about that one"
    assert stage.lookups == [PEER]


async def test_an_outage_of_the_registry_opens_nothing(caplog: pytest.LogCaptureFixture) -> None:
    stage = Stage(Runner(5))
    stage.known[PEER] = RegistryError("down")
    for _ in range(10):
        assert not stage.gate.admit_syn(5, PEER, 80)
        await stage.settled()
    assert stage.lookups == [PEER], "not asked again at once"
    stage.now += node_tags.RETRY_SECONDS
    stage.known[PEER] = ()
    assert not stage.gate.admit_syn(5, PEER, 80)
    await stage.settled()
    assert stage.gate.admit_syn(5, PEER, 80)


async def test_a_node_the_registry_does_not_know_has_no_tags() -> None:
    stage = Stage(Runner(5))
    stage.gate.admit_syn(5, 99, 80)
    await stage.settled()
    assert stage.gate.admit_syn(5, 99, 80)
    assert await stage.tags.learn(99) == ()


async def test_old_tags_serve_while_they_are_asked_for_again() -> None:
    stage = Stage()
    stage.tags.take([Member(PEER, node_tags=("old",))])
    assert stage.tags.get(PEER) == ("old",)
    assert stage.lookups == []
    stage.now += node_tags.FRESH_SECONDS
    assert stage.tags.get(PEER) == ("old",)
    await stage.settled()
    assert (stage.tags.get(PEER), stage.tags.peek(PEER)) == (("web",), ("web",))
    assert stage.lookups == [PEER]


async def test_tags_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_tags, "MAX_NODES", 10)
    stage = Stage()
    for node in range(100, 200):
        stage.known[node] = ("x",)
        stage.tags.get(node)
    assert len(stage.tasks) == node_tags.MAX_LOOKUPS
    await stage.settled()
    assert len(stage.tags._known) == 10
    stage.tags.get(199)
    assert len(stage.tasks) == node_tags.MAX_LOOKUPS + 1, "what was answered makes room"


async def test_a_stopped_node_learns_nothing() -> None:
    stage = Stage()
    stage.known[PEER] = ClosedError("stopped")
    with pytest.raises(ClosedError):
        await stage.tags.learn(PEER)


# ------------------------------------------------------------------------------------------ whole nodes


class Policies(Service):
    """A service with a policy manager."""

    name, order = "policies", 60

    def __init__(self, *runners: Runner) -> None:
        manager: Any = Manager(*runners)
        manager.start = manager.stop = manager.get = manager.stop_all = manager.load_persisted = lambda *args: None
        self.policy_manager: PolicyManager = manager

    async def start(self, deps: Deps) -> None:
        pass

    async def stop(self) -> None:
        pass


async def answered(node: Node, target: Addr, port: int) -> bool:
    try:
        stream = await node.dial(target, port, timeout=3.0)
    except TimeoutError:
        return False
    await stream.close()
    return True


def test_whole_nodes() -> None:
    """Denied inward: silence and an event, each time anew; nothing listens: still refused; denied outward: at once."""
    runner = Runner(5)

    async def body(world: World) -> None:
        alice = await world.machine("alice").start()
        bob = await world.machine("bob", services=[Policies(runner)]).start()
        await bob.listen(80)
        told = events(bob, "*.port_rejected")
        target = Addr(0, bob.node_id)
        assert bob._runtime is not None
        assert bob._runtime.datapath.mux.policy is not None, "a manager that does not tell may have runners at any time"
        assert await answered(alice, target, 80)
        assert runner.asked == []
        runner.members.add(alice.node_id)
        runner.deny = {80, 81}
        assert not await answered(alice, target, 80)
        assert len(runner.asked) > 2, "each SYN is judged"
        assert told()[0] == ("syn.port_rejected", {"src_node_id": alice.node_id, "dst_port": 80, "network": 0})
        with pytest.raises(RefusedError, match="nobody listening"):
            await alice.dial(target, 81, timeout=3.0)
        runner.asked.clear()
        with pytest.raises(RefusedError, match="port 81 not allowed by network 0 policy"):
            await bob.dial(alice.address, 81)
        assert [asked[0] for asked in runner.asked] == ["dial"]
        assert told() == []
        inbox, others = bob.datagrams(80), bob.datagrams(82)
        await alice.send_datagram(target, 80, b"no")
        await alice.send_datagram(target, 82, b"yes")
        assert (await anext(others)).data == b"yes"
        assert told() == [("datagram.port_rejected", {"src_node_id": alice.node_id, "dst_port": 80, "network": 0})]
        with pytest.raises(RefusedError):
            await bob.send_datagram(alice.address, 80, b"no")
        assert [topic for topic, _ in told()] == ["datagram.port_rejected"]
        assert bob.stats().counters["datagram_port_rejected"] == 1
        stream = await bob.dial(bob.address, 80)
        await stream.close()
        inbox.close()

    simulate("policies", body)


class Telling(Manager):
    """A policy manager that tells when it has runners."""

    def on_activity(self, changed: Callable[[], object]) -> None:
        self.changed = changed

    def set(self, *runners: Runner) -> None:
        self.runners = list(runners)
        self.changed()


def test_a_manager_that_tells_is_asked_only_while_it_has_runners() -> None:
    service = Policies()
    manager: Any = Telling()
    manager.start = manager.stop = manager.get = manager.stop_all = manager.load_persisted = lambda *args: None
    service.policy_manager = manager

    async def body(world: World) -> None:
        bob = await world.machine("bob", services=[service]).start()
        assert bob._runtime is not None
        assert bob._runtime.datapath.mux.policy is None
        runner = Runner(5)
        manager.set(runner)
        assert bob._runtime.datapath.mux.policy is not None
        alice = await world.machine("alice").start()
        await bob.listen(80)
        runner.members.add(alice.node_id)
        runner.deny = {80}
        assert not await answered(alice, bob.address, 80)
        asked = len(runner.asked)
        assert asked
        manager.set()
        assert bob._runtime.datapath.mux.policy is None
        assert await answered(alice, bob.address, 80)
        assert len(runner.asked) == asked

    simulate("telling", body)


def test_port_list_of_a_network() -> None:
    async def body(world: World) -> None:
        network = create(world)
        alice, bob = [await world.machine(name).start() for name in ("alice", "bob")]
        assert bob._runtime is not None
        assert bob._runtime.datapath.mux.policy is None, "nothing to decide costs nothing"
        for node in (alice, bob):
            await node.join_network(network)
        for port in (80, 443):
            await bob.listen(port)
        target = Addr(network, bob.node_id)
        assert await answered(alice, target, 80)
        world.rendezvous.administer("set_network_policy", network_id=network, allowed_ports=[443])
        bob.networks.sync_soon()
        await asyncio.sleep(1.0)
        told = events(bob, "syn.port_rejected")
        assert not await answered(alice, target, 80)
        assert told()[0][1] == {"src_node_id": alice.node_id, "dst_port": 80, "network": network}
        assert await answered(alice, target, 443)
        assert await answered(alice, Addr(0, bob.node_id), 80), "the backbone has no list"
        alice.networks.sync_soon()
        await asyncio.sleep(1.0)
        with pytest.raises(RefusedError, match=f"network {network} policy"):
            await alice.dial(target, 80)
        await bob.leave_network(network)
        assert bob._runtime.datapath.mux.policy is None

    simulate("ports", body)
