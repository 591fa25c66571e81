"""Every captured registry exchange and beacon datagram, replayed (rendezvous.md, companion data)."""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pilot.protocol import beacon as beacon_wire
from pilot.protocol import registry as wire
from pilot.rendezvous import BeaconLimits
from pilot.rendezvous.beacon import Beacon
from pilot.rendezvous.registry import Caller, token_digest
from pilot.rendezvous.store import DecisionRow, InviteRow, MemberRow, NetworkRow, NodeRow, RequestRow, TrustRow
from tests.rendezvous.helpers import World

VECTORS = Path(__file__).parents[1] / "vectors"
REGISTRY = json.loads((VECTORS / "registry.json").read_text())
BEACON = json.loads((VECTORS / "rendezvous_beacon.json").read_text())["datagrams"]
EXCHANGES: dict[str, Any] = {exchange["name"]: exchange for exchange in REGISTRY["exchanges"]}
KEYS = [
    EXCHANGES[name]["request"]["public_key"]
    for name in (
        "register_startup_public_node",
        "register_startup_private_node",
        "register_relay_only",
        "register_fixed_endpoint",
        "register_advertise_endpoint",
    )
]
CALLER = Caller("127.0.0.1", 41_000, "127.0.0.1")


def populate(world: World, exchange: dict[str, Any]) -> None:
    """The five nodes of the capture, as they were before this exchange; node 2 has the key that signs here."""
    keys = list(KEYS)
    if exchange["name"] in ("respond_handshake_reject",):
        keys[1] = exchange["signer_public_key"]
    state = world.registry.state
    for at, text in enumerate(keys):
        node_id = state.take_id("next_node_id")
        row = NodeRow(
            node_id,
            base64.b64decode(text),
            f"{'abcdf'[at]}@example.com",
            endpoint=f"127.0.0.1:2020{node_id}",
            signed=True,
            hostname=("node-a", "node-b", "node-c", "", "")[at],
            public=node_id in (1, 3),
            relay_only=False,
            key_created=world.clock.wall(),
            version="1.18.0",
        )
        state.put_node(row, world.clock())


def network(world: World, network_id: int, name: str, rule: str = "open", **fields: Any) -> None:
    row = NetworkRow(network_id, name, rule, token_digest(fields.pop("token", "")), b"", False, 1_795_340_145)
    world.registry.state.put_network(dataclasses.replace(row, **fields))
    world.registry.state.counters["next_network_id"] = network_id + 1


def member(world: World, network_id: int, node_id: int, role: str = "member", tags: tuple[str, ...] = ()) -> None:
    world.registry.state.put_member(MemberRow(network_id, node_id, role, tags))


def change_node(world: World, node_id: int, **fields: Any) -> None:
    state = world.registry.state
    state.put_node(dataclasses.replace(state.nodes[node_id], **fields), world.clock())


def reap(world: World, node_id: int) -> None:
    world.registry.end_registration(world.registry.state.nodes[node_id])


def two_networks(world: World) -> None:
    network(world, 1, "open1")
    network(world, 2, "tok1", "token", token="sekret")
    network(world, 3, "inv1", "invite", enterprise=True)


def invite_network(world: World) -> None:
    network(world, 3, "inv1", "invite", enterprise=True)
    member(world, 3, 1, "owner")


def open_with_member(world: World) -> None:
    network(world, 1, "open1", enterprise=True)
    member(world, 1, 2)


def invited(world: World) -> None:
    invite_network(world)
    world.registry.state.put_invite(InviteRow(2, 3, 1, 1_795_340_145))


def role_of_two(role: str) -> Callable[[World], None]:
    def prepare(world: World) -> None:
        invite_network(world)
        member(world, 3, 2, role)

    return prepare


def state_of(change: Callable[[Any], None]) -> Callable[[World], None]:
    return lambda world: change(world.registry.state)


def register_beacons(world: World) -> None:
    for beacon_id, addr in ((1, "127.0.0.1:9201"), (2, "127.0.0.1:9221")):
        world.admin("beacon_register", beacon_id=beacon_id, addr=addr)


PREPARE: dict[str, Callable[[World], None]] = {
    "reregister_after_key_rotation": lambda world: reap(world, 2),
    "get_network_policy_ok": lambda world: network(world, 1, "open1"),
    "heartbeat_unknown_node": lambda world: reap(world, 1),
    "resolve_relay_only_target": lambda world: change_node(world, 3, relay_only=True),
    "poll_handshakes_with_request": state_of(lambda s: s.put_request(RequestRow(2, 1, "hello", 1_795_340_061))),
    "respond_handshake_accept": state_of(lambda s: s.put_request(RequestRow(2, 1, "hello", 1_795_340_061, True))),
    "poll_handshakes_with_response": state_of(lambda s: s.put_decision(DecisionRow(1, 2, True, 1_795_340_081))),
    "poll_handshakes_with_rejection": state_of(lambda s: s.put_decision(DecisionRow(4, 2, False, 1_795_340_416))),
    "revoke_trust": state_of(lambda s: s.put_trust(TrustRow(1, 2, 1))),
    "create_network_token": lambda world: network(world, 1, "open1"),
    "create_network_invite_enterprise": lambda world: (network(world, 1, "open1"), network(world, 2, "tok1")),
    "list_networks_many": two_networks,
    "join_network_open": two_networks,
    "join_network_already_member": open_with_member,
    "join_network_bad_token": two_networks,
    "join_network_token": two_networks,
    "join_network_invite_only": two_networks,
    "list_nodes": open_with_member,
    "leave_network": open_with_member,
    "leave_network_not_member": two_networks,
    "invite_to_network": invite_network,
    "poll_invites": invited,
    "respond_invite_accept": invited,
    "respond_invite_reject": invited,
    "respond_invite_none_pending": invite_network,
    "promote_member": role_of_two("member"),
    "demote_member": role_of_two("admin"),
    "kick_member": role_of_two("member"),
    "rename_network": two_networks,
    "delete_network": two_networks,
    "set_network_policy": open_with_member,
    "get_member_role": role_of_two("admin"),
    "set_expr_policy": open_with_member,
    "set_member_tags": open_with_member,
    "directory_status": lambda world: network(world, 1, "open1"),
    "get_member_tags_all": lambda world: (network(world, 1, "open1"), member(world, 1, 1, tags=("svc",))),
    "beacon_list_two": register_beacons,
}

ERRORS = {
    "register_without_key_from_cli": "registration requires public_key",
    "heartbeat_unknown_node": "node 1: node not found",
    "lookup_unknown_node": "node 99: node not found",
    "resolve_hostname_unknown": 'hostname "nosuch" not found',
    "resolve_hostname_private": 'hostname "node-b" not found',
    "resolve_denied_private_target": "resolve denied: node 2 is private (establish mutual trust first)",
    "set_hostname_bad_charset": "invalid hostname: 'Bad_Name' must be lowercase alphanumeric with hyphens, "
    "alphanumeric at both ends",
    "set_hostname_taken": 'hostname "node-b" already in use by node 2',
    "set_tags_bad_charset": 'tag "BAD_TAG" must be lowercase alphanumeric with hyphens',
    "revoke_trust_already_gone": "no trust pair between 2 and 1",
    "set_hostname_signed_with_rotated_key": "signature verification failed",
}
"""What the February 2026 server masked, and the private name it told to anyone."""

ANSWERS: dict[str, dict[str, Any]] = {
    "get_network_policy_startup_refused": {
        "network_id": 0,
        "max_members": 0,
        "allowed_ports": [],
        "description": "",
    },
    "list_networks_startup": {
        "networks": [{"id": 0, "name": "backbone", "join_rule": "open", "enterprise": False, "created": 1_795_340_000}]
    },
    "list_nodes": {
        "nodes": [
            {
                "address": "1:0001.0000.0002",
                "hostname": "node-b",
                "last_seen": "2026-11-22T09:33:20Z",
                "node_id": 2,
                "public": False,
                "role": "member",
                "version": "1.18.0",
            }
        ]
    },
    "rotate_key_refused": {
        "node_id": 1,
        "address": "0:0000.0000.0001",
        "public_key": EXCHANGES["rotate_key_refused"]["request"]["new_public_key"],
    },
    "set_tags_clear": {"node_id": 1, "tags": []},
}
"""Where 1.18.0's request is served now and the old server refused it, or what is answered depends on the nodes here."""

ANY_VALUE = {"time", "polo_score", "timestamp"}


def world_for(name: str) -> World:
    settings: dict[str, Any] = {}
    if name == "reregister_after_key_rotation":
        settings["owner_rebind"] = True
    if name == "register_error_at_startup":
        settings["limits"] = dataclasses.replace(World().config.limits, max_nodes=5)
    world = World(**settings)
    exchange = EXCHANGES[name]
    if not (exchange["type"] == "register" and name in _FIRST_REGISTRATIONS):
        populate(world, exchange)
    PREPARE.get(name, lambda world: None)(world)
    return world


_FIRST_REGISTRATIONS = {
    "register_startup_public_node": 0,
    "register_startup_private_node": 1,
    "register_relay_only": 2,
    "register_fixed_endpoint": 3,
    "register_advertise_endpoint": 4,
}


@pytest.mark.parametrize("name", EXCHANGES)
def test_frames_and_challenges(name: str) -> None:
    exchange = EXCHANGES[name]
    request = exchange["request"]
    for message, frame in ((request, exchange["request_hex"]), (exchange["response"], exchange["response_hex"])):
        raw = bytes.fromhex(frame)
        assert wire.frame_length_untrusted(raw[:4]) == len(raw) - 4
        assert wire.decode_body_untrusted(raw[4:]) == message
    if exchange.get("signed_challenge"):
        text = wire.challenge_text(request)
        assert text == exchange["signed_challenge"]
        key = wire.public_key_untrusted(exchange["signer_public_key"])
        assert wire.signature_is_valid(key, wire.signature_untrusted(request["signature"]), text)
        assert not wire.signature_is_valid(key, wire.signature_untrusted(request["signature"]), text + "0")


@pytest.mark.parametrize("name", EXCHANGES)
def test_exchange(name: str) -> None:
    exchange = EXCHANGES[name]
    world = world_for(name)
    for _ in range(_FIRST_REGISTRATIONS.get(name, 0)):
        world.join()
    reply = world.send(exchange["request"], CALLER)
    if name in ERRORS:
        assert reply == {"type": "error", "error": ERRORS[name]}
        return
    expected = {"type": f"{exchange['type']}_ok", **ANSWERS[name]} if name in ANSWERS else exchange["response"]
    compare(reply, expected)


def compare(reply: Any, expected: Any) -> None:
    """Every expected field is there with its value; an answer may say more. Times only have to be of the same kind."""
    if isinstance(expected, dict):
        for field, value in expected.items():
            if field == "polo_score":
                continue
            if field in ANY_VALUE:
                assert type(reply[field]) is type(value)
            elif field == "created":
                assert abs(reply[field] - value) < 1_000
            else:
                compare(reply[field], value)
    elif isinstance(expected, list):
        assert len(reply) == len(expected)
        for one, other in zip(reply, expected, strict=True):
            compare(one, other)
    else:
        assert reply == expected
        assert type(reply) is type(expected)


def test_every_signed_type_has_a_handler_or_is_refused() -> None:
    world = World()
    for kind in wire.CHALLENGES:
        assert "unknown message type" not in str(world.send({"type": kind}).get("error"))


# --------------------------------------------------------------------------------------------- beacon


@pytest.mark.parametrize("name", [d["name"] for d in BEACON])
def test_beacon_codec(name: str) -> None:
    datagram = next(d for d in BEACON if d["name"] == name)
    raw, fields = bytes.fromhex(datagram["hex"]), datagram["fields"]
    match fields["type"]:
        case beacon_wire.DISCOVER | beacon_wire.DISCOVER_EXTENDED as kind:
            parsed = beacon_wire.parse_discover_untrusted(raw)
            assert parsed.node_id == fields["node_id"]
            assert beacon_wire.encode_discover(parsed.node_id, extended=kind == 8) == raw
        case beacon_wire.DISCOVER_REPLY | beacon_wire.PUNCH_COMMAND as kind:
            host, port = beacon_wire.parse_endpoint_untrusted(raw)
            assert (host, port) == (fields["ip"], fields["port"])
            encode = beacon_wire.encode_discover_reply if kind == 2 else beacon_wire.encode_punch_command
            assert encode(host, port) == raw
        case beacon_wire.PUNCH_REQUEST:
            parsed_punch = beacon_wire.parse_punch_request_untrusted(raw)
            assert parsed_punch[:2] == (fields["requester_id"], fields["target_id"])
            assert beacon_wire.encode_punch_request(*parsed_punch) == raw
            if parsed_punch.grant is not None:
                text = beacon_wire.punch_grant_text(*parsed_punch[:2], parsed_punch.grant.expiry)
                assert text == fields["signed_text"]
        case beacon_wire.RELAY | beacon_wire.RELAY_DELIVER_TO as kind:
            sender, dest, frame = beacon_wire.unwrap_relay_untrusted(raw)
            assert (sender, dest) == (fields["sender_id"], fields["dest_id"])
            wrap = beacon_wire.wrap_relay if kind == 5 else beacon_wire.wrap_deliver_to
            assert wrap(sender, dest, frame) == raw
        case beacon_wire.RELAY_DELIVER:
            sender, frame = beacon_wire.unwrap_deliver_untrusted(raw)
            assert sender == fields["sender_id"]
            assert beacon_wire.wrap_deliver(sender, frame) == raw
        case beacon_wire.SYNC:
            beacon_id, ids = beacon_wire.parse_sync_untrusted(raw)
            assert (beacon_id, list(ids)) == (fields["beacon_id"], fields["node_ids"])
            assert beacon_wire.encode_sync(beacon_id, list(ids)) == raw
        case other:
            pytest.fail(f"no codec for type {other}")


def test_beacon_capture_replayed() -> None:
    """The observed datagrams, in order: each one the beacon sent then is sent now, to the same endpoint."""
    sent: list[tuple[bytes, Any]] = []
    beacon = Beacon(BeaconLimits(), lambda data, address: sent.append((bytes(data), address)))

    def receive(raw: bytes, port: int) -> list[tuple[str, int]]:
        sent.clear()
        beacon.receive_untrusted(bytearray(raw), len(raw), ("127.0.0.1", port), 100.0)
        return [(data.hex(), address[1]) for data, address in sent]

    by_name = {d["name"]: d for d in BEACON}
    assert receive(bytes.fromhex(by_name["discover_probe"]["hex"]), 20202) == [
        (by_name["discover_reply"]["hex"], 20202)
    ]
    assert len(beacon) == 0
    for node_id in (1, 2, 3):
        assert len(receive(beacon_wire.encode_discover(node_id), 20200 + node_id)) == 1
    assert receive(bytes.fromhex(by_name["punch_request"]["hex"]), 20202) == [
        (by_name["punch_command_to_requester"]["hex"], 20202),
        (by_name["punch_command_to_target"]["hex"], 20201),
    ]
    assert receive(bytes.fromhex(by_name["relay"]["hex"]), 20202) == [(by_name["relay_deliver"]["hex"], 20203)]
