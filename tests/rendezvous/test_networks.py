"""Networks, invites, roles, policies, tags and administration (rendezvous.md 4.10, 6), without sockets."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pilot.rendezvous import networks
from tests.rendezvous.helpers import ADMIN_TOKEN, Identity, World

POLICY = {"version": 1, "rules": [{"name": "r", "on": "dial", "match": "true", "actions": [{"type": "allow"}]}]}


def create(world: World, name: str = "team", rule: str = "open", **fields: Any) -> int:
    return int(world.admin("create_network", name=name, join_rule=rule, **fields)["network_id"])


def join(world: World, node: Identity, network: int, **fields: Any) -> dict[str, Any]:
    return world.ok(node.request("join_network", network_id=network, **{"token": "", "inviter_id": 0, **fields}))


# --------------------------------------------------------------------------------------------- tokens


def test_admin_token_is_required() -> None:
    world = World(admin_token=None)
    request = {"type": "create_network", "name": "team", "join_rule": "open"}
    assert world.error(request) == "network creation is disabled"
    assert world.error({**request, "admin_token": ""}) == "network creation is disabled"
    world = World()
    for token in ("", "wrong", 7, None, ADMIN_TOKEN + " ", "x" * 5_000):
        assert world.error({**request, "admin_token": token}) == "invalid admin token"
    assert world.ok({**request, "admin_token": ADMIN_TOKEN})["network_id"] == 1


def test_tokens_are_not_kept_or_shown(world: World) -> None:
    create(world, "team", "token", token="sekret", network_admin_token="boss")
    row = world.registry.state.networks[1]
    assert "sekret" not in repr(row)
    assert b"sekret" not in row.token_digest
    assert "boss" not in json.dumps(world.ok({"type": "list_networks"}))
    assert ADMIN_TOKEN not in repr(world.config)


# ----------------------------------------------------------------------------------- create, list, join


def test_create_network(world: World) -> None:
    node = world.join()
    reply = world.admin("create_network", name="team", join_rule="open", node_id=node.node_id)
    assert reply == {"type": "create_network_ok", "network_id": 1, "name": "team", "enterprise": False}
    role = world.ok({"type": "get_member_role", "network_id": 1, "target_node_id": node.node_id})
    assert role["role"] == "owner"
    rules = {"links": 3, "cycle": "1h30m", "prune": 1, "fill": 3, "prune_by": "age", "fill_how": "random"}
    assert world.admin("create_network", name="ring", join_rule="open", rules=json.dumps(rules))["managed"] is True
    listed = world.ok({"type": "list_networks"})["networks"]
    assert [entry["name"] for entry in listed] == ["backbone", "team", "ring"]
    assert listed[2]["rules"] == rules
    assert "members" not in listed[1]
    assert [entry["members"] for entry in world.admin("list_networks")["networks"]] == [1, 1, 0]


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"name": "team"}, 'network "team" already exists'),
        ({"name": "backbone"}, "invalid network name"),
        ({"name": "Team"}, "invalid network name"),
        ({"join_rule": "secret"}, "invalid join rule"),
        ({"join_rule": "token"}, "token networks require a token"),
        ({"join_rule": "token", "token": "x" * 2_000}, "token too long"),
        ({"join_rule": "invite"}, "enterprise feature: invite-only networks require the enterprise flag"),
        ({"node_id": 9}, "node 9 not registered"),
        ({"rules": "{"}, "invalid rules"),
        ({"rules": []}, "invalid rules"),
        ({"rules": {"links": 0, "cycle": "1m"}}, "invalid rules: links"),
        ({"rules": {"links": 1e300, "cycle": "1m"}}, "invalid rules: links"),
        ({"rules": {"links": 1, "cycle": "59s"}}, "invalid rules: cycle"),
        ({"rules": {"links": 1, "cycle": ""}}, "invalid rules: cycle"),
        ({"rules": {"links": 1, "cycle": "1m", "fill": 2}}, "invalid rules: fill"),
        ({"rules": {"links": 1, "cycle": "1m", "prune_by": "luck"}}, "invalid rules: prune_by"),
        ({"rules": {"links": 1, "cycle": "1m", "fill_how": "best"}}, "invalid rules: fill_how"),
        ({"expr_policy": {"version": 2, "rules": [1]}}, "invalid expr_policy"),
    ],
)
def test_creations_refused(world: World, fields: dict[str, Any], text: str) -> None:
    create(world)
    request = {"type": "create_network", "admin_token": ADMIN_TOKEN, "name": "other", "join_rule": "open", **fields}
    assert world.error(request).startswith(text)
    assert create(world, "next") == 2


def test_network_ids_are_never_given_out_twice(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    first = create(world)
    world.admin("delete_network", network_id=first)
    assert create(world) == 2
    monkeypatch.setattr(networks, "MAX_NETWORKS", 1)
    request = {"type": "create_network", "admin_token": ADMIN_TOKEN, "name": "more", "join_rule": "open"}
    assert world.error(request) == "too many networks"


def test_join_by_rule(world: World) -> None:
    node = world.join()
    opened, token = create(world), create(world, "tok", "token", token="sekret")
    closed = create(world, "inv", "invite", enterprise=True)
    assert join(world, node, opened)["address"] == "1:0001.0000.0001"
    request = node.request("join_network", network_id=opened)
    assert world.error(request) == "node 1 already in network 1"
    assert world.error(node.request("join_network", network_id=token, token="bad")) == "invalid token for network 2"
    assert world.error(node.request("join_network", network_id=token)) == "invalid token for network 2"
    join(world, node, token, token="sekret")
    assert world.error(node.request("join_network", network_id=closed)) == (
        "invite-only networks require invite_to_network + respond_invite flow"
    )
    assert world.error(node.request("join_network", network_id=0)) == "cannot join the backbone network"
    assert world.error(node.request("join_network", network_id=9)) == "network 9: network not found"
    assert world.error({**request, "network_id": token}) == "signature verification failed"
    assert world.ok({"type": "lookup", "node_id": 1})["networks"] == [0, 1, 2]


def test_membership_limits(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    network = create(world, enterprise=True)
    world.admin("set_network_policy", network_id=network, max_members=1)
    first, second = world.join(), world.join()
    join(world, first, network)
    assert world.error(second.request("join_network", network_id=network)) == "network membership limit reached"
    monkeypatch.setattr(networks, "MAX_NETWORKS_PER_NODE", 1)
    other = create(world, "other")
    assert world.error(first.request("join_network", network_id=other)).startswith("too many networks for node 1")


def test_leave(world: World) -> None:
    node = world.join()
    network = create(world)
    join(world, node, network)
    assert world.ok(node.request("leave_network", network_id=network))["network_id"] == network
    assert world.error(node.request("leave_network", network_id=network)) == ("node 1 is not a member of network 1")
    assert "cannot" in world.error(node.request("leave_network", network_id=0))
    owned = create(world, "mine", node_id=node.node_id, enterprise=True)
    assert "transfer ownership" in world.error(node.request("leave_network", network_id=owned))


def test_list_nodes(world: World) -> None:
    public, private = world.join(public=True, hostname="alice"), world.join()
    network = create(world)
    for node in (public, private):
        join(world, node, network)
    world.admin("set_member_tags", network_id=network, target_node_id=2, tags=["svc"])
    nodes = world.ok({"type": "list_nodes", "network_id": network})["nodes"]
    assert nodes[0]["real_addr"] == "203.0.113.9:4000"
    assert nodes[0]["address"] == "1:0001.0000.0001"
    assert "real_addr" not in nodes[1]
    assert (nodes[1]["role"], nodes[1]["member_tags"]) == ("member", ["svc"])
    world.clock.now += 1_801
    world.registry.reap()
    nodes = world.ok({"type": "list_nodes", "network_id": network})["nodes"]
    assert nodes[1] == {
        "node_id": 2,
        "address": "1:0001.0000.0002",
        "role": "member",
        "member_tags": ["svc"],
        "offline": True,
    }
    refusal = world.error({"type": "list_nodes", "network_id": 0})
    assert refusal == "listing backbone nodes is not permitted (use lookup with a specific node_id)"
    world.ok(public.registration())
    assert [entry["node_id"] for entry in world.admin("list_nodes", network_id=0)["nodes"]] == [1]


def test_long_member_lists_are_kept_for_a_second(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "MEMBER_LIST_CACHE_FROM", 1)
    network = create(world)
    join(world, world.join(), network)
    question = {"type": "list_nodes", "network_id": network}
    assert len(world.ok(question)["nodes"]) == 1
    join(world, world.join(), network)
    world.clock.now += 0.9
    assert len(world.ok(question)["nodes"]) == 1
    world.clock.now += 0.1
    assert len(world.ok(question)["nodes"]) == 2


# -------------------------------------------------------------------------------------------- invites


def test_invites(world: World) -> None:
    owner, guest, other = world.join(), world.join(), world.join()
    network = create(world, "inv", "invite", enterprise=True, node_id=owner.node_id)
    invite = owner.request("invite_to_network", network_id=network, target_node_id=guest.node_id)
    assert "status" not in world.ok(invite)
    assert world.ok(invite)["status"] == "already_invited"
    stamp = int(world.clock.wall())
    for _ in range(2):
        assert world.ok(guest.request("poll_invites"))["invites"] == [
            {"network_id": network, "inviter_id": owner.node_id, "timestamp": stamp}
        ]
    accepted = world.ok(guest.request("respond_invite", network_id=network, accept=True))
    assert accepted == {"type": "respond_invite_ok", "accepted": True, "network_id": network}
    assert world.ok(guest.request("poll_invites"))["invites"] == []
    assert world.ok({"type": "lookup", "node_id": 2})["networks"] == [0, network]
    assert world.error(invite) == "node 2 already in network 1"
    by_member = guest.request("invite_to_network", network_id=network, target_node_id=other.node_id)
    assert world.error(by_member) == 'rbac: node 2 has role "member", requires one of [owner admin]'
    by_stranger = other.request("invite_to_network", network_id=network, target_node_id=other.node_id)
    assert world.error(by_stranger) == "node 3 is not a member of network 1"
    myself = owner.request("invite_to_network", network_id=network, target_node_id=owner.node_id)
    assert world.error(myself) == "cannot invite yourself"
    unsigned = {**invite, "signature": "", "target_node_id": other.node_id}
    assert world.error(unsigned) == "signature required for authenticated node"
    world.ok({**unsigned, "admin_token": ADMIN_TOKEN})
    assert world.ok(other.request("respond_invite", network_id=network, accept=False))["accepted"] is False
    assert world.error(other.request("respond_invite", network_id=network, accept=True)) == (
        "no pending invite for node 3 to network 1"
    )


def test_invites_expire_and_are_capped(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "MAX_INBOX", 1)
    owner, guest = world.join(), world.join()
    for name in ("inv", "inw"):
        create(world, name, "invite", enterprise=True, node_id=owner.node_id)
    world.ok(owner.request("invite_to_network", network_id=1, target_node_id=guest.node_id))
    second = owner.request("invite_to_network", network_id=2, target_node_id=guest.node_id)
    assert world.error(second) == "too many invites wait for node 2"
    world.clock.now += 30 * 86_400
    assert world.ok(guest.request("poll_invites"))["invites"] == []
    world.ok(second)


def test_invites_need_an_enterprise_invite_network(world: World) -> None:
    owner, guest = world.join(), world.join()
    create(world, "plain", node_id=owner.node_id)
    create(world, "open", enterprise=True, node_id=owner.node_id)
    invite = {"target_node_id": guest.node_id}
    assert world.error(owner.request("invite_to_network", network_id=1, **invite)) == (
        "enterprise feature: requires enterprise network"
    )
    assert world.error(owner.request("invite_to_network", network_id=2, **invite)).startswith("cannot invite")


def test_deregistering_drops_invites_both_ways(world: World) -> None:
    owner, admin, guest = world.join(), world.join(), world.join()
    create(world, "inv", "invite", enterprise=True, node_id=owner.node_id)
    world.ok(owner.request("invite_to_network", network_id=1, target_node_id=guest.node_id))
    world.ok(owner.request("invite_to_network", network_id=1, target_node_id=admin.node_id))
    world.ok(admin.request("deregister"))
    assert set(world.registry.state.invites) == {guest.node_id}
    world.ok(owner.request("deregister"))
    assert not world.registry.state.invites


# ---------------------------------------------------------------------------------------------- roles


def test_a_bare_node_id_is_no_proof_of_a_role(world: World) -> None:
    owner = world.join()
    network = create(world, node_id=owner.node_id)
    bare = {"type": "rename_network", "network_id": network, "node_id": owner.node_id, "name": "mine"}
    assert world.error(bare) == "signature required for authenticated node"
    assert world.error({**bare, "node_id": 0}) == "rbac: node_id required for role-based authorization"
    assert world.error({**bare, "admin_token": "wrong"}) == "invalid admin token"


def test_a_signed_request_of_the_owner_is_proof(world: World) -> None:
    owner, member, stranger = world.join(), world.join(), world.join()
    network = create(world, node_id=owner.node_id)
    join(world, member, network)
    now = world.clock.wall()
    request = owner.admin_request("rename_network", now, network_id=network, name="mine")
    assert world.ok(request)["name"] == "mine"
    assert world.error({**request, "name": "yours"}) == "signature verification failed"
    world.clock.now += 301
    assert "timestamp" in world.error(request)
    now = world.clock.wall()
    by_member = member.admin_request("rename_network", now, network_id=network, name="ours")
    assert world.error(by_member) == 'rbac: node 2 has role "member", requires one of [owner admin]'
    by_stranger = stranger.admin_request("rename_network", now, network_id=network, name="ours")
    assert world.error(by_stranger) == "rbac: node 3 has no role in network 1"


def test_the_token_of_one_network_administers_that_one(world: World) -> None:
    create(world, "one", network_admin_token="boss")
    create(world, "two")
    rename = {"type": "rename_network", "network_id": 1, "name": "uno", "admin_token": "boss"}
    assert world.ok(rename)["name"] == "uno"
    assert world.error({**rename, "network_id": 2, "name": "due"}) == "invalid admin token"
    assert world.error({"type": "create_network", "name": "x", "admin_token": "boss"}) == "invalid admin token"
    assert world.error({**rename, "name": "two"}) == 'network "two" already exists'


def test_promote_demote_kick_transfer(world: World) -> None:
    owner, member, other = world.join(), world.join(), world.join()
    network = create(world, enterprise=True, node_id=owner.node_id)
    for node in (member, other):
        join(world, node, network)
    target = {"network_id": network, "target_node_id": member.node_id}
    for _ in range(2):
        assert world.admin("promote_member", **target)["role"] == "admin"
    by_admin = member.admin_request("kick_member", world.clock.wall(), network_id=network, target_node_id=3)
    world.ok(by_admin)
    join(world, other, network)
    world.admin("promote_member", network_id=network, target_node_id=3)
    assert "requires one of [owner]" in world.error(by_admin)
    assert world.admin("demote_member", **target)["role"] == "member"
    refused = {"type": "kick_member", "admin_token": ADMIN_TOKEN, "network_id": network, "target_node_id": 1}
    assert world.error(refused) == "cannot kick the owner of the network"
    assert "cannot" in world.error({**refused, "type": "demote_member"})
    assert world.error({**refused, "target_node_id": 9}) == "node 9 is not a member of network 1"
    moved = world.admin("transfer_ownership", network_id=network, new_owner_id=2)
    assert (moved["old_owner"], moved["new_owner"]) == (1, 2)
    roles = {n["node_id"]: n["role"] for n in world.ok({"type": "list_nodes", "network_id": network})["nodes"]}
    assert roles == {1: "admin", 2: "owner", 3: "admin"}
    world.admin("kick_member", network_id=network, target_node_id=1)
    assert world.ok({"type": "lookup", "node_id": 1})["networks"] == [0]


def test_roles_need_an_enterprise_network(world: World) -> None:
    member = world.join()
    network = create(world)
    join(world, member, network)
    for kind in ("promote_member", "demote_member", "kick_member", "transfer_ownership", "set_network_policy"):
        request = {"type": kind, "admin_token": ADMIN_TOKEN, "network_id": network, "target_node_id": 1}
        assert world.error(request) == "enterprise feature: requires enterprise network"


def test_switching_enterprise_fills_and_clears_roles(world: World) -> None:
    first, second = world.join(), world.join()
    network = create(world)
    for node in (first, second):
        join(world, node, network)
    world.admin("set_network_enterprise", network_id=network, enterprise=True)
    question = {"type": "get_member_role", "network_id": network}
    assert world.ok({**question, "target_node_id": 1})["role"] == "owner"
    assert world.ok({**question, "target_node_id": 2})["role"] == "member"
    world.admin("set_network_enterprise", network_id=network, enterprise=False)
    assert "role" not in world.ok({"type": "list_nodes", "network_id": network})["nodes"][0]


def test_delete_network(world: World) -> None:
    owner, guest = world.join(), world.join()
    network = create(world, "inv", "invite", enterprise=True, node_id=owner.node_id)
    world.ok(owner.request("invite_to_network", network_id=network, target_node_id=guest.node_id))
    world.admin("delete_network", network_id=network)
    assert world.ok({"type": "lookup", "node_id": 1})["networks"] == [0]
    assert world.ok(guest.request("poll_invites"))["invites"] == []
    assert world.error({"type": "list_nodes", "network_id": network}) == "network 1: network not found"
    for kind in ("delete_network", "rename_network"):
        assert "backbone" in world.error({"type": kind, "admin_token": ADMIN_TOKEN, "network_id": 0})


# ------------------------------------------------------------------------------------------- policies


def test_network_policy(world: World) -> None:
    network = create(world, enterprise=True)
    empty = {"max_members": 0, "allowed_ports": [], "description": ""}
    for network_id in (0, network):
        reply = world.ok({"type": "get_network_policy", "network_id": network_id})
        assert reply == {"type": "get_network_policy_ok", "network_id": network_id, **empty}
    world.admin("set_network_policy", network_id=network, max_members=5, allowed_ports=[7, 80], description="d")
    reply = world.admin("set_network_policy", network_id=network, max_members=6)
    assert (reply["max_members"], reply["allowed_ports"], reply["description"]) == (6, [7, 80], "d")
    assert world.admin("set_network_policy", network_id=network, allowed_ports=None)["allowed_ports"] == []


@pytest.mark.parametrize(
    "fields",
    [
        {"max_members": -1},
        {"max_members": 10_001},
        {"max_members": 1.5},
        {"max_members": True},
        {"max_members": "5"},
        {"allowed_ports": [0]},
        {"allowed_ports": [65_536]},
        {"allowed_ports": ["80"]},
        {"allowed_ports": 80},
        {"allowed_ports": [1] * 101},
        {"description": "x" * 257},
    ],
)
def test_policies_refused(world: World, fields: dict[str, Any]) -> None:
    network = create(world, enterprise=True)
    before = world.registry.state.networks[network]
    world.error({"type": "set_network_policy", "admin_token": ADMIN_TOKEN, "network_id": network, **fields})
    assert world.registry.state.networks[network] == before


@pytest.mark.parametrize("value", [POLICY, json.dumps(POLICY) + "\n"])
def test_expr_policy(world: World, value: object) -> None:
    node = world.join()
    network = create(world)
    question = {"type": "get_expr_policy", "network_id": network}
    assert "expr_policy" not in world.ok(question)
    assert world.admin("set_expr_policy", network_id=network, expr_policy=value) == {
        "type": "set_expr_policy_ok",
        "network_id": network,
    }
    assert world.ok(question)["expr_policy"] == POLICY
    assert world.ok({"type": "list_networks"})["networks"][1]["has_expr_policy"] is True
    assert join(world, node, network)["expr_policy"] == POLICY
    for bad in ("{", "[]", {"version": 2, "rules": [1]}, {"version": 1, "rules": []}, 7, {"version": 1}):
        request = {"type": "set_expr_policy", "admin_token": ADMIN_TOKEN, "network_id": network, "expr_policy": bad}
        assert world.error(request).startswith("invalid expr_policy")
    too_long = {"version": 1, "rules": ["x" * 70_000]}
    request = {"type": "set_expr_policy", "admin_token": ADMIN_TOKEN, "network_id": network, "expr_policy": too_long}
    assert "too long" in world.error(request)
    assert world.admin("set_expr_policy", network_id=network, expr_policy="null")["cleared"] is True
    assert "expr_policy" not in world.ok(question)


def test_member_tags(world: World) -> None:
    node, other = world.join(), world.join()
    network = create(world)
    for one in (node, other):
        join(world, one, network)
    assert world.admin("set_member_tags", network_id=network, target_node_id=1, tags=["#svc"])["tags"] == ["svc"]
    question = {"type": "get_member_tags", "network_id": network}
    assert world.ok({**question, "target_node_id": 0})["members"] == {"1": ["svc"]}
    assert world.ok({**question, "target_node_id": 1})["tags"] == ["svc"]
    assert world.ok({**question, "target_node_id": 2})["tags"] == []
    assert world.error({**question, "target_node_id": 9}) == "node 9 is not a member of network 1"


# -------------------------------------------------------------------------------------- administration


def test_audit_log(world: World) -> None:
    create(world, "one")
    create(world, "two")
    world.admin("rename_network", network_id=1, name="uno")
    entries = world.admin("get_audit_log")["entries"]
    assert [(e["action"], e["network_id"], e["details"]) for e in entries] == [
        ("rename_network", 1, "uno"),
        ("create_network", 2, "two"),
        ("create_network", 1, "one"),
    ]
    assert len(world.admin("get_audit_log", network_id=1, limit=1)["entries"]) == 1
    assert world.error({"type": "get_audit_log"}) == "invalid admin token"


def test_beacons_register_for_a_minute() -> None:
    world = World(advertise_beacon="beacon.example:9001")
    own = {"id": 1, "addr": "beacon.example:9001"}
    assert world.ok({"type": "beacon_list"})["beacons"] == [own]
    assert world.admin("beacon_register", beacon_id=2, addr="192.0.2.1:9001")["beacon_id"] == 2
    assert world.ok({"type": "beacon_list"})["beacons"] == [own, {"id": 2, "addr": "192.0.2.1:9001"}]
    refused = {"type": "beacon_register", "admin_token": ADMIN_TOKEN}
    assert world.error(refused) == "beacon_id required"
    assert world.error({**refused, "beacon_id": 3}) == "addr required"
    assert world.error({**refused, "beacon_id": 3, "addr": "x"}).startswith("beacon addr invalid")
    assert world.error({"type": "beacon_register", "beacon_id": 3, "addr": "192.0.2.1:1"}) == "invalid admin token"
    world.clock.now += 60
    assert world.ok({"type": "beacon_list"})["beacons"] == [own]
