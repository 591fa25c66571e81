"""The networks of whole nodes in virtual time: joining and leaving here and elsewhere, tags, ports, what is kept (L9).

Source: services.md 8.2, 9.1, 9.8; rendezvous.md 6 and 8.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from pilot._fast.addr import Addr
from pilot._fast.errors import InvalidValueError, RegistryError
from pilot.coreapi import Deps, Service
from pilot.node import Node
from pilot.node.directory import Directory, NetworkLimits, RegistryRefusedError
from pilot.node.network_file import Network, NetworkFile
from pilot.node.networks import Member
from pilot.node.state import StateDirectory
from pilot.rendezvous.store import MemberRow
from pilot.testing import World, simulate

POLICY = '{"version":1,"rules":[{"name":"a","on":"dial","match":"true","actions":[{"type":"allow"}]}]}'
ROUND = 331.0
"""Seconds in which a round of questions certainly takes place."""


def create(world: World, name: str = "team", **fields: Any) -> int:
    fields = {"join_rule": "open", "enterprise": True, **fields}
    number = world.rendezvous.administer("create_network", name=name, node_id=0, **fields)["network_id"]
    assert isinstance(number, int)
    return number


def events(node: Node, pattern: str = "network.*") -> Callable[[], list[tuple[str, dict[str, Any]]]]:
    """What was published since the last call."""
    subscription = node.events.subscribe(pattern)
    return lambda: [(event.topic, dict(event.payload)) for event in subscription.get_all()]


def scenario(body: Callable[[World], Awaitable[None]]) -> Callable[[], None]:
    def test() -> None:
        simulate(body.__name__, body)  # type: ignore[arg-type]

    test.__name__, test.__doc__ = body.__name__, body.__doc__
    return test


@scenario
async def test_joining_and_leaving(world: World) -> None:
    network = create(world, expr_policy=POLICY)
    token = create(world, "guarded", join_rule="token", token="secret", rules={"links": 5, "cycle": "1h"})
    node = await world.machine().start()
    told = events(node)
    assert node.networks.ids() == []
    assert await node.join_network(network) == Addr(network, node.node_id)
    [(topic, joined)] = told()
    assert (topic, set(joined)) == ("network.joined", {"network_id", "member_tags", "expr_policy"})
    assert (joined["network_id"], joined["member_tags"]) == (network, None)
    assert json.loads(joined["expr_policy"]) == json.loads(POLICY)
    assert await node.join_network(network) == Addr(network, node.node_id), "being in it is fine"
    with pytest.raises(RegistryError, match="invalid token"):
        await node.join_network(token, "guess")
    with pytest.raises(RegistryError, match="not found"):
        await node.join_network(99)
    with pytest.raises(InvalidValueError):
        await node.join_network(65536)
    assert told() == []
    await node.join_network(token, "secret")
    assert told() == [
        ("network.joined", {"network_id": token, "member_tags": None, "rules": {"links": 5, "cycle": "1h"}})
    ]
    assert node.networks.ids() == [network, token]
    await node.leave_network(network)
    await node.leave_network(network)
    assert told() == [("network.left", {"network_id": network})]
    assert node.networks.ids() == [token]
    assert (await node.resolver.lookup(node.node_id)).networks == (0, token)


@scenario
async def test_what_others_change_is_found_in_the_next_round(world: World) -> None:
    network = create(world, join_rule="invite", rules={"links": 5, "cycle": "1h"})
    admin = world.rendezvous.administer
    node = await world.machine().start()
    told = events(node)
    admin("invite_to_network", network_id=network, inviter_id=9, target_node_id=node.node_id)
    await node.resolver._ask_signed(
        "respond_invite", lambda answer: None, node_id=node.node_id, network_id=network, accept=True
    )
    admin("set_expr_policy", network_id=network, expr_policy=POLICY)
    admin("set_member_tags", network_id=network, target_node_id=node.node_id, tags=["red"])
    await asyncio.sleep(ROUND)
    [(topic, payload)] = told()
    assert (topic, json.loads(payload.pop("expr_policy"))) == ("network.joined", json.loads(POLICY))
    assert payload == {"network_id": network, "member_tags": ["red"], "rules": {"links": 5, "cycle": "1h"}}
    assert node.networks.own_tags(network) == ("red",)
    admin("set_member_tags", network_id=network, target_node_id=node.node_id, tags=[])
    admin("set_network_policy", network_id=network, allowed_ports=[443, 80])
    await asyncio.sleep(ROUND)
    assert told() == [("network.tags_changed", {"network_id": network, "tags": None})]
    assert node.networks.own_tags(network) == ()
    assert node.networks.allowed_ports(network) == (80, 443)
    assert node.networks.restricted
    admin("kick_member", network_id=network, target_node_id=node.node_id)
    node.networks.sync_soon()
    await asyncio.sleep(1.0)
    assert told() == [("network.left", {"network_id": network})]
    assert node.networks.allowed_ports(network) == (), "a network it is not in restricts nothing"
    assert not node.networks.restricted


@scenario
async def test_members_with_tags(world: World) -> None:
    network = create(world)
    one, two = [await world.machine(name).start() for name in ("one", "two")]
    for node in (one, two):
        await node.join_network(network)
    await two.resolver.set_tags(["web"])
    await two.set_hostname("two")
    world.rendezvous.administer("set_member_tags", network_id=network, target_node_id=two.node_id, tags=["red"])
    assert one.networks.node_tags(two.node_id) == ()
    assert await one.networks.members(network) == [
        Member(one.node_id),
        Member(two.node_id, ("red",), ("web",), "two"),
    ]
    assert one.networks.node_tags(two.node_id) == ("web",)


@scenario
async def test_policy_texts(world: World) -> None:
    network = create(world)
    node = await world.machine().start()
    assert await node.networks.policy_text(network) is None
    await node.networks.set_policy_text(network, POLICY, admin_token="admin")
    assert json.loads(await node.networks.policy_text(network) or "") == json.loads(POLICY)
    with pytest.raises(RegistryError):
        await node.networks.set_policy_text(network, None)
    await node.networks.set_policy_text(network, None, admin_token="admin")
    assert await node.networks.policy_text(network) is None


@scenario
async def test_auto_join(world: World) -> None:
    open1, other = create(world), create(world, "other")
    guarded = create(world, "guarded", join_rule="token", token="x")
    machine = world.machine(join=f"{other}, {guarded},{open1}")
    node = await machine.start()
    assert node.networks.ids() == [open1, other], "the one that refused does not stop the others"
    world.rendezvous.administer("kick_member", network_id=other, target_node_id=node.node_id)
    await asyncio.sleep(ROUND)
    assert node.networks.ids() == [open1], "it is joined at the start, not again and again"


class Joining:
    """Makes the registry's answer to joining an error, for as long as there is one for the network."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **errors: Exception) -> None:
        self.errors = {int(name[1:]): error for name, error in errors.items()}
        self.asked: list[tuple[int, float]] = []
        real = Directory.join_network

        async def join_network(directory: Directory, network_id: int, token: str = "") -> Any:
            self.asked.append((network_id, asyncio.get_running_loop().time()))
            if network_id in self.errors:
                raise self.errors[network_id]
            return await real(directory, network_id, token)

        monkeypatch.setattr(Directory, "join_network", join_network)

    def pauses(self, network_id: int) -> list[float]:
        times = [when for asked, when in self.asked if asked == network_id]
        return [later - sooner for sooner, later in itertools.pairwise(times)]


def test_auto_join_that_meets_an_outage_is_tried_until_it_succeeds(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Joining(
        monkeypatch, n1=RegistryError("down"), n2=RegistryRefusedError("rate limited: x", "rate limited: x")
    )
    early = Early()

    async def body(world: World) -> None:
        networks = [create(world, f"n{number}") for number in (1, 2, 3)]
        assert networks == [1, 2, 3]
        node = await world.machine(join="1,2,3", services=[early.made]).start()
        assert node.networks.ids() == [3], "what fails does not stop the others"
        assert [topic for topic, _ in early.told()] == [
            *("network.auto_join_failed", "network.auto_join_failed", "network.joined", "network.auto_joined")
        ]
        await asyncio.sleep(400)
        assert [round(pause) for pause in registry.pauses(1)] == [10, 20, 40, 80, 160]
        assert registry.pauses(2) == pytest.approx(registry.pauses(1), abs=1.0)
        assert registry.pauses(3) == []
        failed = early.told()
        assert failed[0] == ("network.auto_join_failed", {"network_id": 1, "error": "down", "tried_again": True})
        assert len(failed) == 10
        await asyncio.sleep(1000)
        assert max(registry.pauses(1)) <= 301.0
        registry.errors.clear()
        await asyncio.sleep(301)
        assert node.networks.ids() == [1, 2, 3]
        assert [topic for topic, _ in early.told()][-4:] == ["network.joined", "network.auto_joined"] * 2
        registry.asked.clear()
        await asyncio.sleep(2 * ROUND)
        assert registry.asked == []

    simulate("auto-join", body)


def test_each_network_that_is_not_joined_is_named_in_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    Joining(monkeypatch, n1=RegistryError("down"), n2=RegistryError("down"))

    async def body(world: World) -> None:
        await world.machine(join="1,2").start()
        for number in (1, 2):
            assert f"network {number}, which this node is to join at its start, was not joined" in caplog.text

    simulate("auto-join log", body)


def test_auto_join_that_is_refused_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Joining(
        monkeypatch, n1=RegistryRefusedError("no", "no such network"), n2=InvalidValueError("no network")
    )
    early = Early()

    async def body(world: World) -> None:
        await world.machine(join="1,2", services=[early.made]).start()
        await asyncio.sleep(2 * ROUND)
        assert [network for network, _ in registry.asked] == [1, 2]
        assert early.told() == [
            ("network.auto_join_failed", {"network_id": 1, "error": "no", "tried_again": False}),
            ("network.auto_join_failed", {"network_id": 2, "error": "no network", "tried_again": False}),
        ]

    simulate("auto-join refused", body)


def test_auto_join_ends_with_the_node_and_with_leaving(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Joining(monkeypatch, n1=RegistryError("down"), n2=RegistryError("down"))

    async def body(world: World) -> None:
        machine = world.machine(join="1,2")
        node = await machine.start()
        with contextlib.suppress(RegistryError):
            await node.leave_network(2)
        registry.asked.clear()
        await asyncio.sleep(15)
        assert [network for network, _ in registry.asked] == [1]
        await machine.stop()
        await asyncio.sleep(ROUND)
        assert len(registry.asked) == 1

    simulate("auto-join ends", body)


@scenario
async def test_a_registry_that_forgot_everything(world: World) -> None:
    network = create(world)
    node = await world.machine().start()
    await node.join_network(network)
    told = events(node)
    state = world.rendezvous.registry.state
    member = state.members[network][node.node_id]
    state.delete_member(member)
    world.rendezvous.registry.end_registration(state.nodes[node.node_id])
    await asyncio.sleep(90.0)  # the next heartbeat, far from the next round
    assert told() == [("network.left", {"network_id": network})]


@scenario
async def test_an_outage_changes_nothing(world: World) -> None:
    network = create(world)
    node = await world.machine().start()
    await node.join_network(network)
    world.rendezvous.administer("set_network_policy", network_id=network, allowed_ports=[80])
    node.networks.sync_soon()
    await asyncio.sleep(1.0)
    told = events(node)
    world.rendezvous.down()
    await asyncio.sleep(2 * ROUND)
    assert node.networks.ids() == [network]
    assert node.networks.allowed_ports(network) == (80,)
    world.rendezvous.up()
    await asyncio.sleep(ROUND)
    assert {topic for topic, _ in told()} <= {"network.policy_load_failed"}


class Limited:
    """Makes the registry refuse the port lists of its networks for as long as `refusing`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.refusing = True
        self.error = RegistryError("no")
        self.asked = 0
        real = Directory.network_limits

        async def network_limits(directory: Directory, network_id: int) -> NetworkLimits:
            self.asked += 1
            if self.refusing:
                raise self.error
            return await real(directory, network_id)

        monkeypatch.setattr(Directory, "network_limits", network_limits)


def test_port_lists_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing known: nothing permitted, and asked again soon. Something known: that holds."""
    registry = Limited(monkeypatch)

    async def body(world: World) -> None:
        network = create(world)
        node = await world.machine().start()
        told = events(node, "network.policy_load_failed")
        await node.join_network(network)
        assert node.networks.allowed_ports(network) is None
        assert node.networks.restricted
        await asyncio.sleep(5.0)
        assert ("network.policy_load_failed", {"net_id": network, "had_prior": False}) in told()
        registry.refusing = False
        await asyncio.sleep(10.0)
        assert node.networks.allowed_ports(network) == ()
        world.rendezvous.administer("set_network_policy", network_id=network, allowed_ports=[80])
        await asyncio.sleep(ROUND)
        registry.refusing, registry.asked = True, 0
        await asyncio.sleep(ROUND)
        assert node.networks.allowed_ports(network) == (80,)
        failures = told()
        assert set(map(repr, failures)) == {
            repr(("network.policy_load_failed", {"net_id": network, "had_prior": True}))
        }
        assert registry.asked == 3 * len(failures), "three tries each"
        assert len(failures) < 10, "ever more slowly"

    simulate("ports", body)


def test_an_outage_is_noticed_at_the_first_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A round over many networks does not wait for each of them; a network that is refused does not stop the others."""

    async def body(world: World) -> None:
        networks = [create(world, f"n{number}") for number in range(5)]
        node = await world.machine().start()
        for network in networks:
            await node.join_network(network)
        registry = Limited(monkeypatch)
        node.networks.sync_soon()
        await asyncio.sleep(5.0)
        assert registry.asked == 3
        registry.error, registry.asked = RegistryRefusedError("no", "no"), 0
        node.networks.sync_soon()
        await asyncio.sleep(5.0)
        assert registry.asked == 15

    simulate("outage", body)


def test_nothing_is_open_before_the_registry_has_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(world: World) -> None:
        network = create(world)
        machine = world.machine()
        node = await machine.start()
        await node.join_network(network)
        await machine.stop()
        early = Early()
        machine.settings["services"] = [early.made]
        real = Directory.lookup

        async def lookup(directory: Directory, node_id: int, **options: Any) -> Any:
            raise RegistryError("down")

        with monkeypatch.context() as patch:
            patch.setattr(Directory, "lookup", lookup)
            node = await machine.start()
            assert (node.networks.ids(), node.networks.restricted) == ([], True)
            assert (node.networks.allowed_ports(network), node.networks.allowed_ports(0)) == (None, ())
        assert Directory.lookup is real
        await asyncio.sleep(11.0)
        assert (node.networks.allowed_ports(network), node.networks.restricted) == ((), False)
        assert early.told() == [("network.joined", {"network_id": network, "member_tags": None})]

    simulate("early", body)


# ------------------------------------------------------------------------------------------------- file


def test_what_a_node_knew_holds_until_the_registry_answers(tmp_path: Path) -> None:
    path = tmp_path / "networks.json"

    async def body(world: World) -> None:
        network, other = create(world), create(world, "other")
        machine = world.machine(state_dir=tmp_path)
        node = await machine.start()
        assert not path.exists(), "a node without networks gets no file"
        await node.join_network(network)
        world.rendezvous.administer("set_member_tags", network_id=network, target_node_id=node.node_id, tags=["red"])
        world.rendezvous.administer("set_network_policy", network_id=network, allowed_ports=[80])
        await asyncio.sleep(ROUND)
        saved = json.loads(path.read_text())
        assert saved.pop("synced_at").startswith("2027-01-15T08:")
        assert saved == {
            "networks": [0, network],
            "policies": {"0": None, str(network): [80]},
            "member_tags": {str(network): ["red"]},
        }
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.read_text().startswith('{\n  "networks"')
        await machine.stop()
        world.rendezvous.administer("kick_member", network_id=network, target_node_id=1)
        world.rendezvous.registry.state.put_member(MemberRow(other, 1, "member"))
        machine.settings["services"] = [early.made]
        node = await machine.start()
        assert early.seen == [([network], (80,), ("red",))], "before it is registered"
        assert node.networks.ids() == [other]
        assert early.told() == [
            ("network.left", {"network_id": network}),
            ("network.joined", {"network_id": other, "member_tags": None}),
        ], "what changed while it did not run"
        assert json.loads(path.read_text())["networks"] == [0, other]

    early = Early()
    simulate("file", body)


class Early(Service):
    """Looks at the networks before the node is registered."""

    name, order = "early", 10

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def made(self, facilities: Any) -> Early:
        self.networks = facilities.networks
        return self

    async def start(self, deps: Deps) -> None:
        for network_id in self.networks.ids():
            ports, tags = self.networks.allowed_ports(network_id), self.networks.own_tags(network_id)
            self.seen.append((self.networks.ids(), ports, tags))
        self._events = deps.events.subscribe("network.*")

    async def stop(self) -> None:
        self._events.close()

    def told(self) -> list[tuple[str, dict[str, Any]]]:
        found = []
        while (event := self._events.get_nowait()) is not None:
            found.append((event.topic, dict(event.payload)))
        return found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("{", {}),
        ("[]", {}),
        ('{"networks": {"1": 2}}', {}),
        ('{"networks": [0, 1, true, "2", 65536, -1, 3.5]}', {1: Network()}),
        ('{"networks": [1], "policies": {"1": null}, "member_tags": null}', {1: Network(())}),
        ('{"networks": [1], "policies": {"1": [80, 80, 7]}}', {1: Network((7, 80))}),
        ('{"networks": [1], "policies": {"1": [0]}}', {1: Network()}),
        ('{"networks": [1], "policies": {"1": "80"}, "member_tags": {"1": ["A B"]}}', {1: Network()}),
        ('{"networks": [1], "policies": [], "member_tags": {"1": ["#red"]}}', {1: Network(None, ("red",))}),
    ],
)
def test_a_spoilt_file_opens_nothing(tmp_path: Path, text: str, found: dict[int, Network]) -> None:
    (tmp_path / "networks.json").write_text(text)
    with StateDirectory(tmp_path) as state:
        file = NetworkFile(state, lambda: 0.0)
        assert file.load() == found
        file.save({})
    assert json.loads((tmp_path / "networks.json").read_text()) == {
        "networks": [0],
        "policies": {"0": None},
        "member_tags": {},
        "synced_at": "1970-01-01T00:00:00Z",
    }


def test_a_full_disk_is_survived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "no space")

    async def body(world: World) -> None:
        network = create(world)
        node = await world.machine(state_dir=tmp_path).start()
        monkeypatch.setattr(StateDirectory, "write_json", full)
        await node.join_network(network)
        assert node.networks.ids() == [network]

    simulate("full", body)
