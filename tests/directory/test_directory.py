"""`Directory` against our own rendezvous server: registration, look-ups, names, trust, mailbox, networks, keys (L8)."""

from __future__ import annotations

import asyncio
import base64
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from pilot._fast.addr import Addr
from pilot._fast.errors import ClosedError, InvalidValueError, PeerNotFoundError, RegistryError
from pilot.coreapi import PeerInfo
from pilot.node.directory import (
    Advertisement,
    Directory,
    DirectoryOptions,
    JoinedNetwork,
    Member,
    NetworkLimits,
    RegistryClient,
    RegistryRefusedError,
)
from pilot.node.identity import LocalIdentity
from pilot.rendezvous import BeaconLimits, Limits, Rendezvous, RendezvousConfig
from tests.directory.fake import QUICK

ADMIN = "admin-token"

Make = Callable[..., Awaitable[Directory]]


@pytest.fixture
async def server() -> AsyncIterator[Rendezvous]:
    config = RendezvousConfig(
        registry_port=0,
        beacon_port=0,
        admin_token=ADMIN,
        limits=Limits.relaxed(),
        beacon_limits=BeaconLimits.relaxed(),
        advertise_beacon="198.51.100.1:9001",
    )
    async with Rendezvous(config) as running:
        yield running


@pytest.fixture
async def make(server: Rendezvous) -> AsyncIterator[Make]:
    started: list[Directory] = []

    async def start(
        identity: LocalIdentity | None = None, *, where: Advertisement | None = None, **options: Any
    ) -> Directory:
        directory = Directory(
            RegistryClient(*server.registry_address, options=QUICK),
            identity or LocalIdentity.generate(),
            lambda: where or Advertisement(f"127.0.0.1:{4001 + len(started)}"),
            DirectoryOptions(**options),
        )
        started.append(directory)
        await directory.start()
        return directory

    yield start
    for directory in started:
        await directory.stop()


async def request(server: Rendezvous, message: dict[str, Any]) -> dict[str, Any]:
    client = RegistryClient(*server.registry_address, options=QUICK)
    try:
        return await client.request(message)
    finally:
        await client.close()


# ------------------------------------------------------------------------------------------- registration


async def test_registration_fills_the_identity_and_is_told(make: Make, server: Rendezvous) -> None:
    told: list[tuple[int, Addr]] = []
    identity = LocalIdentity.generate()
    directory = await make(identity, on_registered=lambda *news: told.append(news))
    assert directory.registration is not None
    assert (directory.registration.node_id, directory.registration.observed) == (1, ("127.0.0.1", 4002))
    assert (identity.node_id, identity.address) == (1, Addr(0, 1))
    assert told == [(1, Addr(0, 1))]
    assert directory.unconfirmed == frozenset()


async def test_the_key_decides_the_id(make: Make) -> None:
    identity = LocalIdentity.generate()
    first = await make(identity)
    await make()
    await first.stop()
    await make(identity)
    assert identity.node_id == 1


async def test_a_private_start_undoes_an_earlier_public_one(make: Make) -> None:
    identity = LocalIdentity.generate()
    stranger = await make()
    await (await make(identity, public=True)).stop()
    assert (await stranger.resolve(identity.node_id)).public
    await make(identity)
    with pytest.raises(PeerNotFoundError, match="it is private"):
        await stranger.resolve(identity.node_id, max_age=0)


async def test_a_taken_name_does_not_stop_the_start_and_is_claimed_later(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    first = await make(hostname="alice", public=True)
    second = await make(hostname="alice", public=True)
    assert second.unconfirmed == {"hostname"}
    assert 'hostname "alice" already in use by node 1' in caplog.text
    await first.clear_hostname()
    await second._beat()
    assert second.unconfirmed == frozenset()
    assert await first.resolve_hostname("alice") == 2


async def test_a_start_name_that_cannot_be_is_refused_before_anything_happens() -> None:
    with pytest.raises(InvalidValueError, match="invalid hostname"):
        DirectoryOptions(hostname="Alice!")


async def test_a_failing_callback_stops_nothing(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    def explode(*_: object) -> None:
        raise ZeroDivisionError

    directory = await make(on_registered=explode)
    assert directory.registration is not None
    assert "on_registered failed" in caplog.text


async def test_deregister_ends_the_registration_until_the_next_register(make: Make) -> None:
    alice, bob = await make(public=True), await make()
    await bob.resolve(1)
    await alice.deregister()
    assert alice.registration is None
    with pytest.raises(PeerNotFoundError):
        await bob.resolve(1, max_age=0)
    await alice._beat()
    alice.reregister("it must not come back by itself")
    assert not alice._wanted.is_set()
    assert (await alice.register()).node_id == 1


async def test_stop_closes_everything_and_may_be_repeated(make: Make) -> None:
    directory = await make()
    await directory.stop()
    await directory.stop()
    for call in (
        directory.resolve(2),
        directory.resolve_hostname("bob"),
        directory.beacon_list(),
        directory.register(),
    ):
        with pytest.raises(ClosedError):
            await call
    names = {getattr(task.get_coro(), "__qualname__", "") for task in asyncio.all_tasks()}
    assert not {name for name in names if name.startswith(("Directory", "AnswerCache", "RegistryClient"))}


async def test_calls_before_the_registration_say_so(server: Rendezvous) -> None:
    directory = Directory(
        RegistryClient(*server.registry_address), LocalIdentity.generate(), lambda: Advertisement("127.0.0.1:1")
    )
    for call in (directory.resolve(2), directory.report_trust(2), directory.poll_handshakes(), directory.rotate_key()):
        with pytest.raises(RegistryError, match="this node is not registered at registry"):
            await call
    assert await directory.beacon_list() != ()
    await directory.stop()


# ------------------------------------------------------------------------------------------------ look-ups


async def test_a_public_node_is_resolved_by_strangers(make: Make) -> None:
    identity = LocalIdentity.generate()
    bob = await make(identity, public=True, hostname="bob", where=Advertisement("127.0.0.1:5000", ("10.1.2.3:5000",)))
    alice = await make()
    assert await alice.resolve(1) == PeerInfo(
        1, Addr(0, 1), ("127.0.0.1", 5000), identity.public_key, public=True, hostname="bob"
    )
    assert alice.lan_addrs(1) == (("10.1.2.3", 5000),)
    assert alice.lan_addrs(2) == ()
    assert await alice.resolve_hostname("bob") == 1
    assert (await bob.resolve(1)).node_id == 1


async def test_a_relay_only_node_shows_the_beacon(make: Make) -> None:
    await make(public=True, where=Advertisement("127.0.0.1:5000", ("10.1.2.3:5000",), relay_only=True))
    info = await (await make()).resolve(1)
    assert (info.relay_only, info.endpoint) == (True, ("198.51.100.1", 9001))


async def test_a_private_node_is_hidden_until_one_side_trusts(make: Make) -> None:
    bob, alice = await make(hostname="bob"), await make()
    with pytest.raises(PeerNotFoundError, match=r"does not tell this node where 0:0000\.0000\.0001 is: it is private"):
        await alice.resolve(1)
    with pytest.raises(PeerNotFoundError):
        await alice.resolve_hostname("bob")
    assert not await bob.check_trust(2)
    assert await alice.peer_key(1) == bob._identity.public_key, "the key of a private node is needed before trust"
    await bob.report_trust(2)
    alice._forget(1)
    alice._names.forget("bob")
    assert (await alice.resolve(1)).endpoint is not None
    assert await alice.resolve_hostname("bob") == 1
    assert await bob.check_trust(2)
    await bob.revoke_trust(2)
    await bob.revoke_trust(2)
    assert not await bob.check_trust(2)
    with pytest.raises(PeerNotFoundError):
        await alice.resolve(1, max_age=0)


async def test_unknown_nodes_and_names(make: Make, server: Rendezvous) -> None:
    alice = await make()
    registry = "{}:{}".format(*server.registry_address)
    with pytest.raises(PeerNotFoundError, match=rf"^no node 0:0000\.0000\.0009 at registry {registry}$"):
        await alice.resolve(9)
    with pytest.raises(PeerNotFoundError, match=rf"^no node named 'carol' at registry {registry}$"):
        await alice.resolve_hostname("carol")
    for name in ("Carol", "", "a b", "x" * 64, "carol.", "localhost"):
        with pytest.raises(PeerNotFoundError, match="no node named"):
            await alice.resolve_hostname(name)
    with pytest.raises(PeerNotFoundError):
        await alice.peer_key(9)
    for reserved in (0, 0xFFFFFFFE, 0xFFFFFFFF):
        with pytest.raises(PeerNotFoundError):
            await alice.resolve(reserved)
    for impossible in (-1, 2**32):
        with pytest.raises(InvalidValueError, match="is no node id"):
            await alice.resolve(impossible)


async def test_lookup_tells_who_a_node_is(make: Make) -> None:
    bob, alice = await make(hostname="bob", version="0.1.0"), await make()
    assert await bob.set_tags(["#web", "api", "web"]) == ("web", "api")
    record = await alice.lookup(1)
    assert (record.hostname, record.tags, record.networks, record.version) == ("bob", ("web", "api"), (0,), "0.1.0")
    with pytest.raises(InvalidValueError, match="too many tags"):
        await bob.set_tags(str(n) for n in range(11))
    assert await bob.set_tags([]) == ()


async def test_names_can_be_changed(make: Make) -> None:
    bob, alice = await make(public=True), await make(public=True)
    await bob.set_hostname("bob")
    assert await alice.resolve_hostname("bob") == 1
    with pytest.raises(RegistryRefusedError, match="already in use by node 1"):
        await alice.set_hostname("bob")
    assert (alice.hostname, alice.unconfirmed) == ("", frozenset())
    with pytest.raises(InvalidValueError):
        await alice.set_hostname("")
    await bob.set_hostname("robert")
    await alice.set_hostname("bob")
    assert (bob.hostname, alice.hostname) == ("robert", "bob")


async def test_visibility_can_be_changed(make: Make) -> None:
    bob, alice = await make(), await make()
    await bob.set_visibility(True)
    assert bob.public
    assert (await alice.resolve(1)).public
    await bob.set_visibility(False)
    with pytest.raises(PeerNotFoundError):
        await alice.resolve(1, max_age=0)


# ---------------------------------------------------------------------------------------------- mailbox


async def test_the_handshake_mailbox(make: Make) -> None:
    bob, alice = await make(), await make()
    await alice.request_handshake(1, "it is me, héllo")
    (asked,) = (await bob.poll_handshakes()).requests
    assert (asked.from_node_id, asked.justification) == (2, "it is me, héllo")
    assert (await bob.poll_handshakes()).requests == ()
    assert await bob.respond_handshake(2, True)
    (answer,) = (await alice.poll_handshakes()).responses
    assert (answer.from_node_id, answer.accept) == (1, True)
    assert (await alice.resolve(1)).endpoint is not None
    with pytest.raises(PeerNotFoundError):
        await alice.request_handshake(99)
    with pytest.raises(InvalidValueError, match="at most 1024 bytes"):
        await alice.request_handshake(1, "é" * 513)


async def test_accepting_what_nobody_asked_for(make: Make) -> None:
    bob = await make()
    await make()
    assert await bob.respond_handshake(2, True) is False


# ---------------------------------------------------------------------------------------------- networks


async def test_networks(make: Make, server: Rendezvous) -> None:
    bob, alice = await make(public=True, hostname="bob"), await make()
    create = {"type": "create_network", "node_id": 1, "name": "team", "join_rule": "token", "token": "secret"}
    network = (await request(server, {**create, "admin_token": ADMIN}))["network_id"]
    assert {"backbone", "team"} <= {entry.name for entry in await alice.list_networks()}
    with pytest.raises(RegistryRefusedError, match="invalid token"):
        await alice.join_network(network, "wrong")
    assert await alice.join_network(network, "secret") == JoinedNetwork(Addr(network, 2))
    assert (await alice.lookup(2)).networks == (0, network), "what was cached about itself is gone"
    members = {member.node_id: member for member in await alice.list_by_network(network)}
    assert set(members) == {1, 2}
    assert members[1].addr == Addr(network, 1)
    assert (members[1].hostname, members[1].public, members[1].pub_key) == ("bob", True, None)
    assert await bob.check_trust(2), "members of a network see each other"
    await alice.leave_network(network)
    assert [member.node_id for member in await alice.list_by_network(network)] == [1]
    with pytest.raises(RegistryRefusedError, match="listing backbone nodes is not permitted"):
        await alice.list_by_network(0)
    for call in (alice.list_by_network, alice.join_network, alice.leave_network):
        with pytest.raises(InvalidValueError, match="is no network id"):
            await call(65536)


async def test_administering_a_network(make: Make, server: Rendezvous) -> None:
    owner, member = await make(), await make()
    create = {"type": "create_network", "node_id": 1, "name": "team", "join_rule": "open", "enterprise": True}
    network = (await request(server, {**create, "admin_token": ADMIN}))["network_id"]
    policy = '{"version":1,"rules":[{"name":"a","on":"dial","match":"true","actions":[{"type":"allow"}]}]}'
    assert await member.expr_policy(network) == ""
    await owner.set_expr_policy(network, policy)
    assert json.loads(await member.expr_policy(network)) == json.loads(policy)
    assert json.loads((await member.join_network(network)).expr_policy) == json.loads(policy)
    with pytest.raises(RegistryRefusedError, match="requires one of"):
        await member.set_expr_policy(network, "")
    with pytest.raises(RegistryRefusedError, match="invalid admin token"):
        await member.set_expr_policy(network, "", admin_token="wrong")
    await member.set_expr_policy(network, "", admin_token=ADMIN)
    assert await member.expr_policy(network) == ""
    assert await owner.set_member_tags(network, 2, ["#red", "fast"]) == ("red", "fast")
    assert await member.member_tags(network, 2) == ("red", "fast")
    await member.set_tags(["web"])
    assert await owner.list_members(network) == [Member(1), Member(2, ("red", "fast"), ("web",))]
    limits = {"type": "set_network_policy", "network_id": network, "allowed_ports": [443, 80], "max_members": 2}
    await request(server, {**limits, "admin_token": ADMIN})
    assert await member.network_limits(network) == NetworkLimits((80, 443), 2)
    with pytest.raises(RegistryRefusedError, match="not a member"):
        await owner.member_tags(network, 99)
    with pytest.raises(InvalidValueError):
        await owner.set_member_tags(network, 2, ["A B"])


async def test_relay_only_members_are_listed_as_such(make: Make, server: Rendezvous) -> None:
    await make(public=True, where=Advertisement("127.0.0.1:5000", (), relay_only=True))
    create = {"type": "create_network", "node_id": 1, "name": "team", "join_rule": "open"}
    network = (await request(server, {**create, "admin_token": ADMIN}))["network_id"]
    [member] = await (await make()).list_by_network(network)
    assert (member.relay_only, member.endpoint) == (True, ("198.51.100.1", 9001))


async def test_beacons_are_listed(make: Make) -> None:
    (beacon,) = await (await make()).beacon_list()
    assert beacon.endpoint == ("198.51.100.1", 9001)


# -------------------------------------------------------------------------------------------------- keys


async def test_a_rotated_key_is_used_and_seen_at_once(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "identity.json"
    identity = LocalIdentity.load_or_create(path)
    bob, alice = await make(identity, public=True), await make()
    old = await alice.peer_key(1)
    new = await bob.rotate_key()
    assert new == identity.public_key == LocalIdentity.load(path).public_key != old
    await bob.heartbeat()
    await bob.set_hostname("bob")
    alice._forget(1)
    assert await alice.peer_key(1) == new
    again = await bob.rotate_key()
    assert again != new
    assert (await bob.register()).node_id == 1
    assert os.listdir(tmp_path) == ["identity.json"]


async def test_a_crash_between_acceptance_and_file_costs_nothing(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "identity.json"
    identity = LocalIdentity.load_or_create(path)
    bob = await make(identity)

    def crash() -> None:
        raise KeyboardInterrupt

    identity.commit_rotation = crash  # type: ignore[method-assign]
    rotation = asyncio.ensure_future(_swallow(bob.rotate_key()))
    assert await rotation is KeyboardInterrupt
    await bob.stop()

    survivor = LocalIdentity.load(path)
    assert survivor.rotation is not None
    expected = survivor.rotation.public_key
    told: list[Any] = []
    await make(survivor, publish=lambda topic, payload: told.append((topic, payload)))
    assert (survivor.node_id, survivor.public_key, survivor.rotation) == (1, expected, None)
    assert LocalIdentity.load(path).public_key == expected
    assert told == [("key.rotated", {"node_id": 1, "public_key": base64.b64encode(expected).decode()})]


async def _swallow(call: Awaitable[object]) -> type[BaseException] | None:
    try:
        await call
    except KeyboardInterrupt as error:  # in a task it would end the loop
        return type(error)
    return None


async def test_a_new_key_is_published_when_the_registry_has_it(make: Make) -> None:
    told: list[Any] = []
    bob = await make(publish=lambda topic, payload: told.append((topic, payload)))
    new = await bob.rotate_key()
    assert told == [("key.rotated", {"node_id": 1, "public_key": base64.b64encode(new).decode()})]


async def test_a_crash_before_the_request_keeps_the_old_key(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "identity.json"
    identity = LocalIdentity.load_or_create(path)
    bob = await make(identity)
    old = identity.public_key
    identity.begin_rotation()
    await bob.stop()
    survivor = LocalIdentity.load(path)
    await make(survivor)
    assert (survivor.node_id, survivor.public_key, survivor.rotation) == (1, old, None)
    assert os.listdir(tmp_path) == ["identity.json"]
