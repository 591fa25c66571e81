"""The codec of port 444: vectors, the spelling of signatures, pieces, limits."""

from __future__ import annotations

import base64
import dataclasses
import itertools
import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from pilot.coreapi import InvalidValueError
from pilot.plugins.handshake.message import (
    MAX_MESSAGE_BYTES,
    MAX_RECEIVED_BYTES,
    Message,
    ObjectReader,
    encode,
    parse_untrusted,
    printable,
    signed_text,
)

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "services.json").read_text())
MESSAGES = VECTORS["handshake_port_444"]["messages"]
SIGNED = Message("handshake_request", 1, bytes(32), bytes(range(64)), 1_700_000_000)


@pytest.mark.parametrize("vector", MESSAGES, ids=lambda vector: vector["decoded"]["type"])
def test_the_captured_messages(vector) -> None:
    payload = vector["stream_payload_text"].encode()
    message = parse_untrusted(payload)
    assert payload.hex() in vector["datagram_hex"]
    assert signed_text(vector["from_node"], vector["to_node"]).decode() == vector["signed_text"]
    key = Ed25519PublicKey.from_public_bytes(base64.b64decode(vector["signature_verifies_with"]))
    key.verify(message.signature, signed_text(vector["from_node"], vector["to_node"]))
    assert encode(message) == payload


@pytest.mark.parametrize("vector", VECTORS["handshake_relay_registry"], ids=str)
def test_the_captured_relay_signs_the_same_text(vector) -> None:
    request = vector.get("request", {})
    if request.get("type") != "request_handshake":
        return
    text = signed_text(request["from_node_id"], request["to_node_id"])
    assert text.decode() == vector["signed_text"]
    key = Ed25519PublicKey.from_public_bytes(base64.b64decode(vector["public_key"]))
    key.verify(base64.b64decode(request["signature"]), text)


def test_one_signature_has_sixteen_spellings() -> None:
    texts = {json.loads(encode(SIGNED, variant))["signature"] for variant in range(40)}
    assert len(texts) == 16
    for variant in range(16):
        got = parse_untrusted(encode(SIGNED, variant))
        assert dataclasses.replace(got, spelling="") == SIGNED
    assert json.loads(encode(SIGNED))["signature"] == base64.b64encode(SIGNED.signature).decode()


def test_a_message_fits_into_one_segment_or_is_refused() -> None:
    room = MAX_MESSAGE_BYTES - len(encode(SIGNED))
    assert room >= 700
    assert len(encode(dataclasses.replace(SIGNED, justification="x" * room))) == MAX_MESSAGE_BYTES
    with pytest.raises(InvalidValueError, match="shorten"):
        encode(dataclasses.replace(SIGNED, justification="x" * (room + 1)))
    with pytest.raises(InvalidValueError, match="half a character"):
        encode(dataclasses.replace(SIGNED, reason="\ud800"))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"node_id": "1"}, "node_id"),
        ({"node_id": True}, "node_id"),
        ({"node_id": -1}, "node_id"),
        ({"node_id": 1 << 32}, "node_id"),
        ({"timestamp": 1.5}, "timestamp"),
        ({"timestamp": 1 << 63}, "timestamp"),
        ({"public_key": "AAAA"}, "3 bytes, not 32"),
        ({"public_key": "!"}, "base64"),
        ({"signature": "ä"}, "base64"),
        ({"signature": [1]}, "no text"),
        ({"justification": 7}, "justification"),
        ({"type": "x" * 65}, "64 characters"),
    ],
)
def test_a_field_that_cannot_be_used(change, problem) -> None:
    fields = {**json.loads(encode(SIGNED)), **change}
    with pytest.raises(InvalidValueError, match=problem):
        parse_untrusted(json.dumps(fields).encode())


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"1", b"{} {}", b"\xff", b'{"a":' + b"[" * 5000, b" " * 70000])
def test_what_is_no_message(data) -> None:
    with pytest.raises(InvalidValueError):
        parse_untrusted(data)


def test_missing_fields_are_empty() -> None:
    assert parse_untrusted(b"{}") == Message("", 0, b"", b"", 0)
    assert parse_untrusted(b'{"type":null,"node_id":null,"new":{"a":[1]}}') == Message("", 0, b"", b"", 0)


@given(st.lists(st.integers(0, 400), max_size=8), st.text(max_size=40))
def test_a_message_may_come_in_any_pieces(cuts, text) -> None:
    data = json.dumps({"justification": text, "x": {"y": ["}", '"', "\\"]}}).encode()
    reader = ObjectReader()
    edges = [0, *sorted(min(cut, len(data) - 1) for cut in cuts), len(data)]
    pieces = [data[a:b] for a, b in itertools.pairwise(edges)]
    assert [reader.feed_untrusted(piece) for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert reader.feed_untrusted(pieces[-1]) == data


@pytest.mark.parametrize(
    ("before", "last"),
    [
        (b"", b"x"),
        (b"  ", b"["),
        (b"", b"{} {"),
        (b"", b"{}x"),
        (b'{"a":', b"[" * 16),
        (b"{", b" " * MAX_RECEIVED_BYTES),
    ],
)
def test_what_can_never_become_a_message(before, last) -> None:
    reader = ObjectReader()
    assert reader.feed_untrusted(before) is None
    with pytest.raises(InvalidValueError):
        reader.feed_untrusted(last)


def test_the_text_that_is_shown() -> None:
    case = next(c for c in VECTORS["handshake_receive_checks"]["cases"] if "stored as" in c["effect"])
    assert "linetab é" in case["effect"]
    assert printable("line\n\ttab é…\u200b\ud800") == "linetab é…"
    assert printable("ä" * 600) == "ä" * 512
    assert printable("x" + "ä" * 600) == "x" + "ä" * 511
