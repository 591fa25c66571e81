"""Registration, liveness, questions, names, tags and keys (rendezvous.md 4), without sockets."""

from __future__ import annotations

import dataclasses

import pytest

from pilot.protocol import registry as wire
from pilot.rendezvous import Limits
from pilot.rendezvous import directory as handlers
from pilot.rendezvous.endpoints import lan_addrs_untrusted, stored_endpoint_untrusted
from pilot.rendezvous.registry import Caller, Registry
from tests.rendezvous.helpers import ADMIN_TOKEN, Identity, World

STALE = 1_801


def expire(world: World) -> None:
    world.clock.now += STALE
    world.registry.reap()


# ------------------------------------------------------------------------------------------- register


def test_ids_start_at_one_and_grow(world: World) -> None:
    assert [world.join().node_id for _ in range(3)] == [1, 2, 3]
    reply = world.ok(Identity().registration())
    assert reply["node_id"] == 4
    assert reply["address"] == "0:0000.0000.0004"


def test_rule_1_known_live_key_keeps_everything_but_where_it_is(world: World) -> None:
    node = world.join(public=True, hostname="alice", version="1.18.0", lan_addrs=["192.168.1.2:4000"])
    world.ok(node.request("set_tags", tags=["web"]))
    reply = world.ok(
        node.registration(listen_addr="203.0.113.9:5000", relay_only=True, version="", owner="a@example.com")
    )
    assert reply["node_id"] == node.node_id
    row = world.registry.state.nodes[node.node_id]
    assert (row.endpoint, row.relay_only, row.lan_addrs) == ("203.0.113.9:5000", True, ())
    assert (row.version, row.public, row.hostname, row.tags) == ("1.18.0", True, "alice", ("web",))
    assert row.owner == "a@example.com"
    world.ok(node.registration(owner="b@example.com"))
    assert world.registry.state.nodes[node.node_id].owner == "a@example.com"


@pytest.mark.parametrize("how", ["reaped", "deregistered"])
def test_rule_2_known_key_comes_back_under_its_id_afresh(world: World, how: str) -> None:
    node = world.join(public=True, hostname="alice")
    network = world.admin("create_network", name="team", join_rule="open")["network_id"]
    world.ok(node.request("join_network", network_id=network, token=""))
    if how == "reaped":
        expire(world)
    else:
        world.ok(node.request("deregister"))
    assert world.error({"type": "lookup", "node_id": node.node_id}) == f"node {node.node_id}: node not found"
    world.join()
    assert world.ok(node.registration())["node_id"] == node.node_id
    seen = world.ok({"type": "lookup", "node_id": node.node_id})
    assert seen["public"] is False
    assert "hostname" not in seen
    assert seen["networks"] == ([0, network] if how == "reaped" else [0])


def test_rule_3_a_live_owner_is_not_rebound(world: World) -> None:
    world.join(owner="a@example.com")
    assert world.error(Identity().registration(owner="a@example.com")) == (
        'owner "a@example.com" is already bound to node 1 with a different key; use recover_identity to rotate the key'
    )


def test_rule_4_a_reaped_owner_gives_its_id_without_relations() -> None:
    world = World(owner_rebind=True)
    old = world.join(owner="a@example.com", public=True)
    friend = world.join()
    network = world.admin("create_network", name="team", join_rule="open")["network_id"]
    world.ok(old.request("join_network", network_id=network, token=""))
    world.ok(old.request("report_trust", peer_id=friend.node_id))
    world.ok(friend.request("request_handshake", to_node_id=old.node_id))
    expire(world)
    new = world.join(owner="a@example.com")
    assert new.node_id == old.node_id
    assert world.ok({"type": "lookup", "node_id": new.node_id})["networks"] == [0]
    trusted = world.ok({"type": "check_trust", "node_id": new.node_id, "peer_id": friend.node_id})
    assert trusted["trusted"] is False
    assert world.ok(new.request("poll_handshakes"))["requests"] == []
    assert "already bound" in world.error(old.registration(owner="a@example.com"))


def test_rule_4_is_off_by_default(world: World) -> None:
    world.join(owner="a@example.com")
    expire(world)
    assert world.join(owner="a@example.com").node_id == 2


def test_rule_5_owners_may_be_empty(world: World) -> None:
    assert [world.join(owner="").node_id, world.join(owner="").node_id] == [1, 2]


def test_unsigned_registration_is_refused(world: World) -> None:
    message = {"type": "register", "listen_addr": "203.0.113.9:1", "public_key": Identity().text}
    assert world.error(message) == "registration: signature required"


def test_ratchet_where_unsigned_registration_is_allowed() -> None:
    world = World(require_signed_registration=False)
    loose = Identity()
    message = {"type": "register", "listen_addr": "203.0.113.9:1", "public_key": loose.text}
    assert world.ok(message)["node_id"] == 1
    assert world.ok(message)["node_id"] == 1
    world.ok(loose.registration())
    assert world.error(message) == "node 1: unsigned registration cannot modify a signature-verified key"
    expire(world)
    assert "unsigned registration" in world.error(message)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"public_key": ""}, "registration requires public_key"),
        ({"public_key": "!!"}, "invalid public key"),
        ({"public_key": "AAAA"}, "invalid public key"),
        ({"signature": "AAAA"}, "registration: invalid signature encoding"),
        ({"signature": "*"}, "registration: invalid signature encoding"),
        ({"signature": "A" * 86 + "=="}, "registration: signature verification failed"),
        ({"listen_addr": "203.0.113.9:4001"}, "registration: signature verification failed"),
        ({"public_key": Identity().text}, "registration: signature verification failed"),
    ],
)
def test_bad_registrations(world: World, change: dict[str, object], text: str) -> None:
    assert world.error({**Identity().registration(), **change}).startswith(text)
    assert not world.registry.state.nodes


def test_registry_full() -> None:
    world = World(limits=dataclasses.replace(Limits.relaxed(), max_nodes=2))
    first = world.join()
    world.join()
    assert world.error(Identity().registration()) == "registry full"
    world.ok(first.registration())


def test_node_id_space_ends(world: World) -> None:
    world.registry.state.counters["next_node_id"] = wire.MAX_NODE_ID
    assert world.join().node_id == wire.MAX_NODE_ID
    assert world.error(Identity().registration()) == "node ID space exhausted"


def test_new_keys_are_limited_per_address_and_known_ones_are_not() -> None:
    world = World(limits=Limits(new_node_rate=1.0, new_node_burst=2.0))
    first = world.join()
    world.join()
    assert world.error(Identity().registration()) == "rate limited: too many registrations from 127.0.0.1"
    world.ok(first.registration())
    world.ok(Identity().registration(), Caller("192.0.2.1", 1, "192.0.2.9"))
    world.clock.now += 1
    world.join()


def test_register_with_hostname_never_fails_for_it(world: World) -> None:
    assert world.ok(Identity().registration(hostname="alice"))["hostname"] == "alice"
    reply = world.ok(Identity().registration(hostname="alice"))
    assert reply["hostname_error"] == 'hostname "alice" already in use by node 1'
    assert "hostname_error" in world.ok(Identity().registration(hostname="Bad"))


@pytest.mark.parametrize(
    ("sent", "stored"),
    [
        ("203.0.113.9:4000", "203.0.113.9:4000"),
        ("198.51.100.7:4000", "198.51.100.7:4000"),
        ("100.63.255.255:4000", "100.63.255.255:4000"),
        ("100.64.0.1:4000", "192.0.2.1:4000"),
        ("100.127.255.255:4000", "192.0.2.1:4000"),
        ("100.128.0.0:4000", "100.128.0.0:4000"),
        ("node.example:4000", "node.example:4000"),
        ("[2001:db8::7]:4000", "[2001:db8::7]:4000"),
        ("10.0.0.1:4000", "192.0.2.1:4000"),
        ("172.31.255.1:4000", "192.0.2.1:4000"),
        ("192.168.1.1:4000", "192.0.2.1:4000"),
        ("127.0.0.1:4000", "192.0.2.1:4000"),
        ("169.254.1.1:4000", "192.0.2.1:4000"),
        ("0.0.0.0:4000", "192.0.2.1:4000"),
        ("[::]:4000", "192.0.2.1:4000"),
        ("[::1]:4000", "192.0.2.1:4000"),
        ("[fd00::1]:4000", "192.0.2.1:4000"),
        ("[fe80::1]:4000", "192.0.2.1:4000"),
        ("[::ffff:10.0.0.1]:4000", "192.0.2.1:4000"),
        (":4000", "192.0.2.1:4000"),
        ("", "192.0.2.1:777"),
    ],
)
def test_endpoint_rule(sent: str, stored: str) -> None:
    assert stored_endpoint_untrusted(sent, "192.0.2.1", 777) == stored


def test_endpoint_of_an_ipv6_source() -> None:
    assert stored_endpoint_untrusted("10.0.0.1:4", "2001:db8::1", 777) == "[2001:db8::1]:4"


@pytest.mark.parametrize("text", ["host", "host:", "a b:1", "1.2.3.4:65536", "1.2.3.4:٣", "[x]:1", "::1:2:", "-:1"])
def test_bad_endpoints(text: str) -> None:
    with pytest.raises(ValueError, match="invalid address"):
        stored_endpoint_untrusted(text, "192.0.2.1", 777)


def test_lan_addrs_keep_what_is_usable() -> None:
    assert lan_addrs_untrusted(["192.168.1.2:4000", 7, "x", "name:1", "[fd00::1]:5"]) == (
        "192.168.1.2:4000",
        "[fd00::1]:5",
    )
    assert lan_addrs_untrusted("192.168.1.2:4000") == ()
    assert len(lan_addrs_untrusted([f"10.0.0.{i}:1" for i in range(99)])) == 16


# --------------------------------------------------------------------------------------------- liveness


def test_heartbeat(world: World) -> None:
    node = world.join()
    world.clock.now += 1_000
    assert world.ok(node.request("heartbeat")) == {"type": "heartbeat_ok", "time": int(world.clock.wall())}
    world.clock.now += 1_000
    assert world.registry.reap() == 0
    world.clock.now += 1_000
    assert world.registry.reap() == 1
    assert world.error(node.request("heartbeat")) == "node 1: node not found"


def test_heartbeat_texts_that_make_a_daemon_register_again(world: World) -> None:
    node, other = world.join(), Identity()
    other.node_id = node.node_id
    assert world.error(other.request("heartbeat")) == "signature verification failed"
    assert world.error({"type": "heartbeat", "node_id": 1}) == "signature required for authenticated node"
    assert world.error({"type": "heartbeat", "node_id": 1, "signature": "?"}).startswith("invalid signature encoding")
    assert world.error({"type": "heartbeat", "node_id": 77}) == "node 77: node not found"
    for bad_id in (0, -1, 1.5e30, "1", None, True, [1]):
        assert world.error({"type": "heartbeat", "node_id": bad_id}) == "node 0: node not found"


def test_reaper_works_in_portions_and_frees_names(world: World) -> None:
    for at in range(5):
        world.join(hostname=f"n{at}")
    world.clock.now += STALE
    late = world.join()
    assert world.registry.reap(limit=3) == 3
    assert world.registry.reap(limit=3) == 2
    assert world.registry.reap() == 0
    assert set(world.registry.state.last_seen) == {late.node_id}
    world.ok(late.request("set_hostname", hostname="n3"))


def test_deregister(world: World) -> None:
    node = world.join(public=True, hostname="alice")
    friend = world.join()
    world.ok(node.request("report_trust", peer_id=friend.node_id))
    assert world.error({"type": "deregister", "node_id": node.node_id}) == "signature required for authenticated node"
    assert world.ok(node.request("deregister")) == {"type": "deregister_ok"}
    assert world.ok(node.request("deregister")) == {"type": "deregister_ok"}
    world.ok(friend.request("set_hostname", hostname="alice"))
    assert world.ok({"type": "check_trust", "node_id": 1, "peer_id": 2})["trusted"] is True


def test_key_expiry(world: World) -> None:
    node = world.join()
    times = [handlers.rfc3339(world.clock.wall() + seconds) for seconds in (3_600, -5, 11 * 366 * 86_400)]
    assert world.error(node.request("set_key_expiry", expires_at=times[0])).startswith("enterprise feature")
    network = world.admin("create_network", name="team", join_rule="open", enterprise=True)["network_id"]
    world.ok(node.request("join_network", network_id=network, token=""))
    for bad in (*times[1:], "", "soon", "2030-01-01T00:00:00", "9999999"):
        assert world.error(node.request("set_key_expiry", expires_at=bad)).startswith("invalid expires_at")
    world.ok(node.request("set_key_expiry", expires_at=times[0]))
    assert world.ok(node.request("heartbeat"))["key_expiry_warning"] is True
    world.clock.now += 3_600
    assert world.error(node.request("heartbeat")) == f"node 1: key expired at {times[0]}"
    world.ok(node.request("set_key_expiry", expires_at="never"))
    assert "key_expiry_warning" not in world.ok(node.request("heartbeat"))


# ------------------------------------------------------------------------------------------- questions


def test_lookup_shows_the_endpoint_of_public_nodes_only(world: World) -> None:
    node = world.join(hostname="alice", version="1.18.0")
    seen = world.ok({"type": "lookup", "node_id": 1})
    assert seen == {
        "type": "lookup_ok",
        "node_id": 1,
        "address": "0:0000.0000.0001",
        "networks": [0],
        "public_key": node.text,
        "public": False,
        "hostname": "alice",
        "version": "1.18.0",
        "last_seen_unix": int(world.clock.wall()),
        "key_generation": 0,
    }
    world.ok(node.request("set_visibility", public=True))
    seen = world.ok({"type": "lookup", "node_id": 1})
    assert seen["real_addr"] == seen["endpoint"] == "203.0.113.9:4000"


@pytest.mark.parametrize(
    ("advertised", "address"), [(None, "127.0.0.1:9201"), ("beacon.example:9001", "beacon.example:9001")]
)
def test_relay_only_nodes_show_the_beacon(advertised: str | None, address: str) -> None:
    world = World(advertise_beacon=advertised)
    node = world.join(relay_only=True, lan_addrs=["192.168.1.2:4000"], public=True)
    assert world.ok(node.request("resolve", requester_id=1, node_id=1)) == {
        "type": "resolve_ok",
        "node_id": 1,
        "real_addr": address,
        "relay_only": True,
        "key_age_days": 0,
    }
    seen = world.ok({"type": "lookup", "node_id": 1})
    assert (seen["real_addr"], seen["endpoint"], seen["relay_only"]) == (address, address, True)


def test_resolve_checks_in_order(world: World) -> None:
    asker, target = world.join(), world.join(lan_addrs=["192.168.1.2:4000"])
    stranger = Identity()
    stranger.node_id = 99
    resolve = asker.request("resolve", node_id=target.node_id)
    # 1: the requester is registered, even before its signature is looked at
    assert world.error(stranger.request("resolve", node_id=98)) == (
        "resolve denied: requester node 99 is not registered"
    )
    # 2: the signature, even before the target is looked for
    assert world.error({**asker.request("resolve", node_id=98), "signature": ""}) == (
        "signature required for authenticated node"
    )
    assert world.error({**resolve, "node_id": 98}) == "signature verification failed"
    # 3: the target exists
    assert world.error(asker.request("resolve", node_id=98)) == "node 98: node not found"
    # 4: public, trusted or of a shared network
    denied = f"resolve denied: node {target.node_id} is private (establish mutual trust first)"
    assert world.error(resolve) == denied
    world.ok(target.request("set_visibility", public=True))
    answer = world.ok(resolve)
    assert (answer["real_addr"], answer["lan_addrs"]) == ("203.0.113.9:4000", ["192.168.1.2:4000"])
    world.ok(target.request("set_visibility", public=False))
    assert world.error(resolve) == denied
    world.ok(target.request("report_trust", peer_id=asker.node_id))
    world.ok(resolve)
    world.ok(asker.request("revoke_trust", peer_id=target.node_id))
    assert world.error(resolve) == denied
    network = world.admin("create_network", name="team", join_rule="open")["network_id"]
    world.ok(asker.request("join_network", network_id=network, token=""))
    assert world.error(resolve) == denied
    world.ok(target.request("join_network", network_id=network, token=""))
    world.ok(resolve)


def test_a_node_may_resolve_itself(world: World) -> None:
    node = world.join()
    assert world.ok(node.request("resolve", requester_id=1, node_id=1))["real_addr"] == "203.0.113.9:4000"


def test_punch_over_tcp_obeys_the_resolve_rules(world: World) -> None:
    asker, target, third = world.join(), world.join(), world.join(public=True)
    pair = {"node_a": asker.node_id, "node_b": target.node_id}
    assert "is private" in world.error(asker.request("punch", **pair))
    world.ok(target.request("report_trust", peer_id=asker.node_id))
    reply = world.ok(asker.request("punch", **pair))
    assert reply["node_a_addr"] == reply["node_b_addr"] == "203.0.113.9:4000"
    assert world.error(third.request("punch", **pair)).startswith("invalid punch")


# ---------------------------------------------------------------------------------------- names and tags


def test_hostnames_are_unique_and_repeatable(world: World) -> None:
    first, second = world.join(), world.join()
    for _ in range(2):
        assert world.ok(first.request("set_hostname", hostname="alice"))["hostname"] == "alice"
    assert world.error(second.request("set_hostname", hostname="alice")) == (
        'hostname "alice" already in use by node 1'
    )
    world.ok(first.request("set_hostname", hostname="ally"))
    world.ok(second.request("set_hostname", hostname="alice"))
    world.ok(second.request("set_hostname", hostname=""))
    assert world.error({"type": "resolve_hostname", "hostname": "alice"}) == 'hostname "alice" not found'
    assert world.error({"type": "resolve_hostname", "hostname": ""}) == 'hostname "" not found'


def test_private_names_are_found_by_who_may_resolve_them(world: World) -> None:
    node, friend, stranger = world.join(hostname="alice"), world.join(), world.join()
    world.ok(node.request("report_trust", peer_id=friend.node_id))
    question = {"type": "resolve_hostname", "hostname": "alice"}
    assert world.ok({**question, "requester_id": friend.node_id})["node_id"] == node.node_id
    assert world.ok({**question, "requester_id": node.node_id})["public"] is False
    assert world.ok(friend.request("resolve_hostname", hostname="alice"))["address"] == "0:0000.0000.0001"
    forged = {**stranger.request("resolve_hostname", hostname="alice"), "requester_id": friend.node_id}
    assert world.error(forged) == "signature verification failed"
    for requester in (stranger.node_id, 0, 99):
        assert world.error({**question, "requester_id": requester}) == 'hostname "alice" not found'
    world.ok(node.request("set_visibility", public=True))
    assert world.ok(question)["hostname"] == "alice"


def test_tags(world: World) -> None:
    node = world.join()
    reply = world.ok(node.request("set_tags", tags=["#web", "api", "web"]))
    assert reply["tags"] == ["web", "api"]
    assert world.ok({"type": "lookup", "node_id": 1})["tags"] == ["web", "api"]
    for bad in (["a"] * 11, [""], ["#"], ["x" * 33], ["-a"], [7], "web", {"a": 1}):
        world.error(node.request("set_tags", tags=bad))
    assert world.ok(node.request("set_tags", tags=None))["tags"] == []
    assert "tags" not in world.ok({"type": "lookup", "node_id": 1})


def test_admin_token_instead_of_a_signature(world: World) -> None:
    node = world.join()
    for kind, fields in (
        ("set_visibility", {"public": True}),
        ("set_hostname", {"hostname": "alice"}),
        ("set_tags", {"tags": []}),
        ("deregister", {}),
    ):
        message = {"type": kind, "node_id": node.node_id, **fields}
        assert world.error(message) == "signature required for authenticated node"
        assert world.error({**message, "admin_token": "wrong"}) == "signature required for authenticated node"
        world.ok({**message, "admin_token": ADMIN_TOKEN})


# ------------------------------------------------------------------------------------------------ keys


def test_rotate_key(world: World) -> None:
    node, successor = world.join(hostname="alice", owner="a@example.com"), Identity()
    rotation = node.request("rotate_key", new_public_key=successor.text)
    expected = {
        "type": "rotate_key_ok",
        "node_id": 1,
        "address": "0:0000.0000.0001",
        "public_key": successor.text,
    }
    world.clock.now += 2 * 86_400
    world.ok(node.registration(owner="a@example.com"))
    assert world.ok(rotation) == expected
    assert world.ok(rotation) == expected  # a repeat after a lost answer
    successor.node_id = node.node_id
    world.ok(successor.request("heartbeat"))
    assert world.error(node.request("heartbeat")) == "signature verification failed"
    seen = world.ok({"type": "lookup", "node_id": 1})
    assert (seen["hostname"], seen["public_key"], seen["key_generation"]) == ("alice", successor.text, 1)
    info = world.ok({"type": "get_key_info", "node_id": 1})
    assert (info["rotate_count"], info["key_age_days"]) == (1, 0)
    assert {"created_at", "rotated_at"} <= set(info)
    assert world.ok(successor.registration())["node_id"] == 1
    assert "already bound" in world.error(node.registration(owner="a@example.com"))


def test_rotations_refused(world: World) -> None:
    node, other, successor = world.join(), world.join(), Identity()
    good = node.request("rotate_key", new_public_key=successor.text)
    assert world.error({**good, "new_public_key": ""}) == "rotate_key requires new_public_key"
    assert world.error({**good, "new_public_key": "?"}).startswith("invalid new_public_key")
    assert world.error({**good, "signature": ""}) == "rotate_key requires a valid signature"
    assert world.error({**good, "new_public_key": other.text}) == "signature verification failed"
    taken = node.request("rotate_key", new_public_key=other.text)
    assert world.error(taken) == "invalid new_public_key: already registered by another node"
    world.ok(good)
    assert world.error({**good, "signature": other.request("rotate_key", new_public_key="x")["signature"]}) == (
        "signature verification failed"
    )


def test_recovery_and_badges_are_refused(world: World) -> None:
    for kind in ("submit_badge", "enroll_recovery", "recover_identity"):
        assert world.error({"type": kind}).startswith("cannot ")


def test_a_failing_handler_is_answered_and_logged_sparingly(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Registry, "require_node", lambda self, node_id: 1 / 0)
    for _ in range(30):
        assert world.error({"type": "lookup", "node_id": 1}) == "request failed"
    assert len(caplog.records) == 10
