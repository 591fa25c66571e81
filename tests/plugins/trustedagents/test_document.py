"""The signed list: the computed vectors, Go's compact form, loading rules, damage."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pilot.coreapi import InvalidValueError
from pilot.plugins.trustedagents.document import (
    MAX_DOCUMENT_BYTES,
    Agent,
    AgentList,
    parse_untrusted,
    signed_bytes_untrusted,
)

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "services.json").read_text())["trusted_agents"]
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
VERIFIER = KEY.public_key().public_bytes_raw()
PIN = VECTORS["document"]["agents"][1]["public_key"]


def signed(agents: str, compact: str | None = None, **more: object) -> bytes:
    """A document with the `agents` text, signed over `compact` or what it should be."""
    text = f'{{"agents":{compact or agents}}}'
    rest = {"signature": base64.b64encode(KEY.sign(text.encode())).decode(), **more}
    return f'{{"agents": {agents}, {json.dumps(rest)[1:]}'.encode()


def entries(*agents: object) -> AgentList:
    return parse_untrusted(signed(json.dumps(agents, separators=(",", ":"))), VERIFIER)


@pytest.mark.parametrize("indent", [None, 1, 7])
def test_the_vectors(indent) -> None:
    assert VECTORS["verifier_public_key_hex"] == VERIFIER.hex()
    data = json.dumps(VECTORS["document"], indent=indent).encode()
    assert signed_bytes_untrusted(data).decode() == VECTORS["signed_bytes_text"]
    agents = parse_untrusted(data, bytes.fromhex(VECTORS["verifier_public_key_hex"]))
    pin = base64.b64decode(PIN)
    keys = {"matching": [pin], "other or empty": [b"", bytes(32)], None: [b"", pin]}
    for lookup in VECTORS["lookups"]:
        for key in keys[lookup.get("key")]:
            match = agents.find_with_key(lookup["node_id"], key)
            assert bool(match) is lookup["trusted"]
            assert match.name == lookup.get("name", "pinned-desk" if lookup["trusted"] else "")
    assert agents.find(18309) == ("pinned-desk", True)
    assert not agents.find(1)
    assert [agent.node_id for agent in agents.agents()] == [18308, 18309]


@pytest.mark.parametrize(
    ("received", "compact"),
    [
        ("[ ]", "[]"),
        ('[ {"node_id" :\t1 ,\r\n"hostname":"a b" } ]', '[{"node_id":1,"hostname":"a b"}]'),
        ('[{"x":"<&>"}]', '[{"x":"\\u003c\\u0026\\u003e"}]'),
        ('[{"x":"\u2028\u2029 ä"}]', '[{"x":"\\u2028\\u2029 ä"}]'),
        ('[{"x":"\\/ \\u00e4 \\" { , : ","b":1.50,"a":1e2}]', '[{"x":"\\/ \\u00e4 \\" { , : ","b":1.50,"a":1e2}]'),
        ('[{"a":1,"a":2}]', '[{"a":1,"a":2}]'),
    ],
)
def test_what_is_signed_is_the_text_received_without_white_space(received, compact) -> None:
    data = signed(received, compact)
    assert signed_bytes_untrusted(data).decode() == f'{{"agents":{compact}}}'
    parse_untrusted(data, VERIFIER)


def test_loading_rules() -> None:
    good = {"hostname": "desk", "node_id": 1, "tier": "free", "address": 7}
    assert entries(good).agents() == [Agent(1, "desk")]
    assert len(entries({**good, "node_id": 0}, {**good, "hostname": ""}, {"hostname": "x"}, {"node_id": 5})) == 0
    two = entries(good, {**good, "hostname": "other"}, {**good, "node_id": 2})
    assert [agent.node_id for agent in two.agents()] == [2]  # neither of the two, the rest loads
    assert entries({**good, "public_key": ""}).agents() == [Agent(1, "desk")]
    assert VECTORS["duplicate_rule"].startswith("two entries with one node_id")


@pytest.mark.parametrize(
    "bad",
    [
        7,
        None,
        {"node_id": "1", "hostname": "a"},
        {"node_id": 1.0, "hostname": "a"},
        {"node_id": True, "hostname": "a"},
        {"node_id": -1, "hostname": "a"},
        {"node_id": 1 << 32, "hostname": "a"},
        {"node_id": 1, "hostname": 5},
        {"node_id": 1, "hostname": "a\nb"},
        {"node_id": 1, "hostname": "a" * 256},
        {"node_id": 1, "hostname": "a", "public_key": "AAAA"},
        {"node_id": 1, "hostname": "a", "public_key": "?"},
        {"node_id": 1, "hostname": "a", "public_key": 7},
    ],
)
def test_one_bad_entry_fails_the_whole_list(bad) -> None:
    with pytest.raises(InvalidValueError):
        entries({"node_id": 2, "hostname": "good"}, bad)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{",
        b"{}",
        b'{"agents":[]}',
        b'{"agents":[],"signature":""}',
        b'{"agents":[],"signature":7}',
        b'{"agents":[],"signature":"?"}',
        signed("{}"),
        signed("[]", "[1]"),
        signed("[1 2]", "[12]"),
        signed("[]") + b"x",
        signed("[]").replace(b"{", b'{"agents":[1],', 1),
        signed("[]").replace(b'"agents"', b'"Agents"'),
        b'{"agents":[],}',
        b"\xff",
        b"\xef\xbb\xbf" + signed("[]"),
        b'{"agents":' + b"[" * 20000,
        b" " * (MAX_DOCUMENT_BYTES + 1),
    ],
)
def test_what_is_no_signed_list(data) -> None:
    with pytest.raises(InvalidValueError):
        parse_untrusted(data, VERIFIER)


def test_another_key_or_one_changed_bit_is_noticed() -> None:
    data = json.dumps(VECTORS["document"]).encode()
    parse_untrusted(data, VERIFIER)
    with pytest.raises(InvalidValueError, match="configured key"):
        parse_untrusted(data, bytes(32))
    with pytest.raises(InvalidValueError, match="configured key"):
        parse_untrusted(data.replace(b"18308", b"18307"), VERIFIER)


def test_other_members_are_not_signed_and_do_not_matter() -> None:
    data = signed("[]", version=7, note={"a": [1, {"b": "}"}]})
    assert signed_bytes_untrusted(data) == b'{"agents":[]}'
    assert len(parse_untrusted(data, VERIFIER)) == 0
