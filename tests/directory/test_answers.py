"""Answers of a lying registry: wrong types, wrong ids, huge lists, unusable endpoints; and the true ones (L8)."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot._fast.addr import Addr
from pilot._fast.errors import InvalidValueError
from pilot.node.directory import answers
from pilot.node.directory.answers import (
    Beacon,
    HandshakeRequest,
    HandshakeResponse,
    JoinedNetwork,
    Mailbox,
    Member,
    NetworkLimits,
)
from pilot.protocol.registry import decode_body_untrusted

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "registry.json").read_text())
CAPTURED: dict[str, dict[str, Any]] = {
    exchange["name"]: decode_body_untrusted(bytes.fromhex(exchange["response_hex"])[4:])
    for exchange in VECTORS["exchanges"]
    if exchange.get("response_hex")
}
KEY = "A" * 43 + "="

PARSERS: dict[str, Callable[[dict[str, Any]], object]] = {
    "register": answers.registration_untrusted,
    "resolve": lambda answer: answers.location_untrusted(answer, 7),
    "lookup": lambda answer: answers.node_record_untrusted(answer, 7),
    "resolve_hostname": answers.found_name_untrusted,
    "list_nodes": lambda answer: answers.members_untrusted(answer, 3),
    "list_networks": answers.networks_untrusted,
    "list_nodes: tags": answers.network_members_untrusted,
    "join_network": lambda answer: answers.joined_untrusted(answer, Addr(3, 7)),
    "get_network_policy": answers.network_limits_untrusted,
    "get_expr_policy": answers.expr_policy_untrusted,
    "poll_handshakes": answers.mailbox_untrusted,
    "beacon_list": answers.beacons_untrusted,
    "check_trust": answers.trusted_untrusted,
    "set_tags": answers.tags_answer_untrusted,
}


# ------------------------------------------------------------------------------------- captured answers


def test_captured_answers_are_understood() -> None:
    registration = answers.registration_untrusted(CAPTURED["register_startup_private_node"])
    assert (registration.node_id, registration.addr, registration.observed) == (2, Addr(0, 2), None)
    location = answers.location_untrusted(CAPTURED["resolve_relay_only_target"], 3)
    assert (location.endpoint, location.relay_only) == (("127.0.0.1", 9201), True)
    record = answers.node_record_untrusted(CAPTURED["lookup_private_peer_from_cli"], 2)
    assert (record.hostname, record.networks, record.public, len(record.public_key or b"")) == (
        "node-b",
        (0,),
        False,
        32,
    )
    assert answers.found_name_untrusted(CAPTURED["resolve_hostname_public"]) == 3
    assert answers.mailbox_untrusted(CAPTURED["poll_handshakes_with_request"]) == Mailbox(
        (HandshakeRequest(1, "hello", 1795340061),)
    )
    assert answers.mailbox_untrusted(CAPTURED["poll_handshakes_with_rejection"]) == Mailbox(
        (), (HandshakeResponse(2, False, 1795340416),)
    )
    assert answers.beacons_untrusted(CAPTURED["beacon_list_two"]) == (
        Beacon(1, ("127.0.0.1", 9201)),
        Beacon(2, ("127.0.0.1", 9221)),
    )
    assert [network.name for network in answers.networks_untrusted(CAPTURED["list_networks_many"])][:2] == [
        "backbone",
        "open1",
    ]
    members = answers.members_untrusted(CAPTURED["list_nodes"], 1)
    assert {member.addr.network for member in members} == {1}
    assert answers.tags_answer_untrusted(CAPTURED["set_tags"]) == ("web", "api")
    assert answers.tags_answer_untrusted(CAPTURED["set_tags_clear"]) == ()
    assert answers.joined_untrusted(CAPTURED["join_network_open"], Addr(1, 2)) == JoinedNetwork(Addr(1, 2))
    tagged = answers.network_members_untrusted(CAPTURED["list_nodes"])
    assert [member.node_id for member in tagged] == [member.node_id for member in members]


def test_answers_about_networks() -> None:
    entry = {"node_id": 5, "member_tags": ["a"], "tags": ["#b", "b"], "hostname": "bob"}
    spoilt = {"node_id": 6, "member_tags": ["A B"], "tags": 7, "hostname": 8}
    assert answers.network_members_untrusted({"nodes": [entry, spoilt, {"node_id": 0}]}) == [
        Member(5, ("a",), ("b",), "bob"),
        Member(6),
    ]
    limits = answers.network_limits_untrusted({"allowed_ports": [443, 80.0, 443], "max_members": 5, "description": "x"})
    assert limits == NetworkLimits((80, 443), 5, "x")
    assert answers.network_limits_untrusted({"allowed_ports": None}) == NetworkLimits()
    policy = {"version": 1, "rules": [{"match": 'x == "ä"'}]}
    for sent in (policy, json.dumps(policy, separators=(",", ":"), ensure_ascii=False)):
        text = answers.expr_policy_untrusted({"expr_policy": sent})
        assert text == '{"version":1,"rules":[{"match":"x == \\"ä\\""}]}'
        joined = answers.joined_untrusted(
            {"address": "3:0003.0000.0007", "expr_policy": sent, "rules": {"links": 5}}, Addr(3, 7)
        )
        assert joined == JoinedNetwork(Addr(3, 7), text, '{"links":5}')
    for none in ({}, {"expr_policy": None}, {"expr_policy": ""}, {"expr_policy": " null "}):
        assert answers.expr_policy_untrusted(none) == ""
    [network] = answers.networks_untrusted({"networks": [{"id": 4, "name": "n", "rules": 7, "has_expr_policy": True}]})
    assert (network.network_id, network.has_expr_policy, network.rules) == (4, True, "")


# ------------------------------------------------------------------------------------------------- lies

LIES: dict[str, tuple[str, dict[str, Any]]] = {
    "register: no id": ("register", {"address": "0:0000.0000.0007"}),
    "register: reserved id": ("register", {"node_id": 0xFFFFFFFF, "address": "0:0000.FFFF.FFFF"}),
    "register: id too large": ("register", {"node_id": 2**32 + 7, "address": "0:0000.0000.0007"}),
    "register: negative id": ("register", {"node_id": -7, "address": "0:0000.0000.0007"}),
    "register: true as an id": ("register", {"node_id": True, "address": "0:0000.0000.0001"}),
    "register: id as text": ("register", {"node_id": "7", "address": "0:0000.0000.0007"}),
    "register: infinite id": ("register", {"node_id": float("inf"), "address": "0:0000.0000.0007"}),
    "register: no address": ("register", {"node_id": 7}),
    "register: another node's address": ("register", {"node_id": 7, "address": "0:0000.0000.0008"}),
    "register: another network": ("register", {"node_id": 7, "address": "1:0001.0000.0007"}),
    "register: address as number": ("register", {"node_id": 7, "address": 7}),
    "resolve: another node": ("resolve", {"node_id": 8, "real_addr": "192.0.2.1:4000"}),
    "resolve: no node": ("resolve", {"real_addr": "192.0.2.1:4000"}),
    "resolve: endpoint as list": ("resolve", {"node_id": 7, "real_addr": ["192.0.2.1", 4000]}),
    "resolve: endless endpoint": ("resolve", {"node_id": 7, "real_addr": "1" * 2000}),
    "resolve: lan_addrs as text": ("resolve", {"node_id": 7, "lan_addrs": "10.0.0.1:4000"}),
    "resolve: relay_only as number": ("resolve", {"node_id": 7, "relay_only": 1}),
    "lookup: another node": ("lookup", {"node_id": 8, "public_key": KEY}),
    "lookup: short key": ("lookup", {"node_id": 7, "public_key": "AAAA"}),
    "lookup: key as number": ("lookup", {"node_id": 7, "public_key": 5}),
    "lookup: key is no base64": ("lookup", {"node_id": 7, "public_key": "!" * 44}),
    "lookup: public as text": ("lookup", {"node_id": 7, "public_key": KEY, "public": "yes"}),
    "lookup: too many networks": ("lookup", {"node_id": 7, "networks": [1] * 1025}),
    "lookup: network too large": ("lookup", {"node_id": 7, "networks": [65536]}),
    "lookup: network as text": ("lookup", {"node_id": 7, "networks": ["0"]}),
    "resolve_hostname: no node": ("resolve_hostname", {"hostname": "bob"}),
    "list_nodes: no list": ("list_nodes", {"nodes": {"0": {}}}),
    "list_nodes: no objects": ("list_nodes", {"nodes": [1, 2]}),
    "list_nodes: too many": ("list_nodes", {"nodes": [{}] * 20_001}),
    "list_networks: bad id": ("list_networks", {"networks": [{"id": -1, "name": "x"}]}),
    "list_networks: too many": ("list_networks", {"networks": [{"id": 1}] * 10_001}),
    "list_networks: name as number": ("list_networks", {"networks": [{"id": 1, "name": 1}]}),
    "join_network: another node's address": ("join_network", {"address": "3:0003.0000.0008"}),
    "join_network: no address": ("join_network", {}),
    "join_network: policy as list": ("join_network", {"address": "3:0003.0000.0007", "expr_policy": []}),
    "get_network_policy: port 0": ("get_network_policy", {"allowed_ports": [0]}),
    "get_network_policy: port 65536": ("get_network_policy", {"allowed_ports": [65536]}),
    "get_network_policy: half a port": ("get_network_policy", {"allowed_ports": [80.5]}),
    "get_network_policy: true as a port": ("get_network_policy", {"allowed_ports": [True]}),
    "get_network_policy: infinite port": ("get_network_policy", {"allowed_ports": [float("inf")]}),
    "get_network_policy: text": ("get_network_policy", {"allowed_ports": "80"}),
    "get_network_policy: too many ports": ("get_network_policy", {"allowed_ports": [80] * 1025}),
    "get_expr_policy: too long": ("get_expr_policy", {"expr_policy": "x" * (256 * 1024 + 1)}),
    "get_expr_policy: no text": ("get_expr_policy", {"expr_policy": "\ud800"}),
    "get_expr_policy: no text within": ("get_expr_policy", {"expr_policy": {"rules": "\ud800"}}),
    "get_expr_policy: a number": ("get_expr_policy", {"expr_policy": 1}),
    "poll_handshakes: no list": ("poll_handshakes", {"requests": "none"}),
    "beacon_list: no objects": ("beacon_list", {"beacons": ["192.0.2.1:9001"]}),
    "set_tags: no list": ("set_tags", {"tags": "web"}),
}


@pytest.mark.parametrize(("kind", "answer"), LIES.values(), ids=LIES)
def test_lies_are_refused(kind: str, answer: dict[str, Any]) -> None:
    with pytest.raises(InvalidValueError):
        PARSERS[kind](answer)


FIELDS = [
    "node_id", "address", "observed_addr", "real_addr", "lan_addrs", "relay_only", "public_key", "public", "hostname",
    "tags", "networks", "version", "nodes", "id", "name", "join_rule", "requests", "responses", "from_node_id",
    "accept", "justification", "timestamp", "beacons", "addr", "trusted", "member_tags", "allowed_ports",
    "max_members", "description", "expr_policy", "rules",
]  # fmt: skip

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
    | st.sampled_from(["192.0.2.1:4000", "[::1]:1", "0:0000.0000.0007", KEY, "bob"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=5),
    max_leaves=12,
)


@pytest.mark.parametrize("kind", PARSERS)
@given(answer=st.dictionaries(st.sampled_from(FIELDS), json_values, max_size=8))
def test_any_object_is_understood_or_refused(kind: str, answer: dict[str, Any]) -> None:
    for message in (answer, {"node_id": 7, **answer}):
        with contextlib.suppress(InvalidValueError):
            PARSERS[kind](message)


# ------------------------------------------------------------------- what another node chose is left out


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("192.0.2.1:4000", ("192.0.2.1", 4000)),
        ("[2001:db8::1]:4000", ("2001:db8::1", 4000)),
        ("[2001:DB8:0:0::1]:4000", ("2001:db8::1", 4000)),
        ("[::ffff:192.0.2.1]:4000", ("192.0.2.1", 4000)),
        ("node.example.org:65535", ("node.example.org", 65535)),
        ("", None),
        ("192.0.2.1", None),
        ("192.0.2.1:0", None),
        ("192.0.2.1:65536", None),
        ("192.0.2.1:+80", None),
        ("192.0.2.1:٤", None),
        ("192.0.2.1:0000080", None),
        (":4000", None),
        ("[]:4000", None),
        ("2001:db8::1:4000", None),
        ("0.0.0.0:4000", None),
        ("[::]:4000", None),
        ("224.0.0.1:4000", None),
        ("[ff02::1]:4000", None),
        ("[fe80::1%eth0]:4000", None),
        ("bad_name!:4000", None),
        ("-x.example:4000", None),
        ("a\nb:4000", None),
        ("a..b:4000", None),
        ("x" * 64 + ":4000", None),
    ],
)
def test_endpoints(text: str, endpoint: tuple[str, int] | None) -> None:
    assert answers.location_untrusted({"node_id": 7, "real_addr": text}, 7).endpoint == endpoint


def test_local_addresses_are_literal_bounded_and_not_this_host() -> None:
    texts: list[object] = ["10.0.0.1:4000", "127.0.0.1:4000", "[::1]:4000", "router.local:4000", 7, None, "junk"]
    location = answers.location_untrusted({"node_id": 7, "lan_addrs": texts}, 7)
    assert location.lan_addrs == (("10.0.0.1", 4000),)
    many = [f"10.0.0.{n}:4000" for n in range(200)]
    assert len(answers.location_untrusted({"node_id": 7, "lan_addrs": many}, 7).lan_addrs) == 16


def test_unusable_names_and_tags_of_others_are_left_out() -> None:
    record = answers.node_record_untrusted(
        {"node_id": 7, "hostname": "<script>", "tags": ["UPPER"], "public_key": ""}, 7
    )
    assert (record.hostname, record.tags, record.public_key) == ("", (), None)


def test_reserved_ids_in_a_list_are_left_out() -> None:
    nodes = [{"node_id": n} for n in (0, 7, 0xFFFFFFFE, 0xFFFFFFFF, 8, "9", None)]
    assert [member.node_id for member in answers.members_untrusted({"nodes": nodes}, 3)] == [7, 8]


def test_a_mailbox_with_bad_entries_still_delivers_the_good_ones() -> None:
    requests = [
        {"from_node_id": 0, "justification": "nobody"},
        {"from_node_id": 5, "justification": "x" * 1025},
        {"from_node_id": 5, "justification": 5},
        "junk",
        None,
        {"from_node_id": 6, "justification": "hello", "timestamp": -1},
    ]
    responses = [{"from_node_id": 5, "accept": "yes"}, {"from_node_id": 6, "accept": True, "timestamp": 9}]
    assert answers.mailbox_untrusted({"requests": requests, "responses": responses}) == Mailbox(
        (HandshakeRequest(6, "hello", 0),), (HandshakeResponse(6, True, 9),)
    )
    flood = {"requests": [{"from_node_id": n + 1} for n in range(5000)]}
    assert len(answers.mailbox_untrusted(flood).requests) == 256


@pytest.mark.parametrize("value", [False, None, 1, "true", [True], {}])
def test_only_a_clear_yes_is_trust(value: object) -> None:
    assert answers.trusted_untrusted({"trusted": value}) is False
    assert answers.trusted_untrusted({"trusted": True}) is True


def test_beacons_are_bounded_and_the_unusable_left_out() -> None:
    entries = [{"id": 1, "addr": "junk"}, {"id": 2, "addr": "192.0.2.1:9001"}] + [{"addr": "192.0.2.2:9001"}] * 500
    beacons = answers.beacons_untrusted({"beacons": entries})
    assert beacons[0] == Beacon(2, ("192.0.2.1", 9001))
    assert len(beacons) == 63
