"""Requests to third parties signed by a node: the official vector, and everything a verifier has to refuse (L9)."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot._fast.addr import Addr
from pilot._fast.errors import InvalidValueError
from pilot.node.identity import LocalIdentity
from pilot.protocol.signed_request import FRESH_SECONDS, RequestEnvelope, verify_request_untrusted

VECTOR = json.loads((Path(__file__).parent / "vectors" / "services.json").read_text())["request_signature"]
TIME = int(VECTOR["envelope"].split("|")[2])


def verified(**changes: Any) -> RequestEnvelope:
    """The vector as a verifier gets it, but for `changes`."""
    given = {
        "envelope": VECTOR["envelope"],
        "signature": base64.b64decode(VECTOR["signature"]),
        "body": VECTOR["body_utf8"].encode(),
        "audience": VECTOR["audience"],
        "public_key": base64.b64decode(VECTOR["public_key"]),
        "now": TIME,
        **changes,
    }
    return verify_request_untrusted(given.pop("envelope"), given.pop("signature"), given.pop("body"), **given)


def test_the_official_one() -> None:
    found = verified()
    assert (found.addr, found.timestamp, found.audience) == (Addr(0, 1), TIME, "example.com")
    assert found.body_sha256 == hashlib.sha256(b"hello").digest()
    assert str(found) == VECTOR["envelope"]


def test_ours_is_accepted() -> None:
    identity = LocalIdentity.generate()
    identity._registered(7, Addr(0, 7))
    envelope, signature = identity.sign_request(b"body", "api.example", now=1_000_000.9)
    found = verify_request_untrusted(
        envelope, signature, b"body", audience="api.example", public_key=identity.public_key, now=1_000_000
    )
    assert (found.addr, found.timestamp) == (Addr(0, 7), 1_000_000)
    again, _ = identity.sign_request(b"body", "api.example", now=1_000_000.9)
    assert again != envelope  # the nonce


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"body": b"hellO"}, "another body"),
        ({"audience": "example.org"}, "for 'example.com', not for 'example.org'"),
        ({"public_key": bytes(32)}, "not signed by the key"),
        ({"public_key": b"short"}, "not signed by the key"),
        ({"signature": bytes(64)}, "not signed by the key"),
        ({"signature": b""}, "not signed by the key"),
        ({"envelope": VECTOR["envelope"] + "x"}, "not signed by the key"),
        ({"now": TIME + FRESH_SECONDS + 1}, "301 s old"),
        ({"now": TIME - FRESH_SECONDS - 1}, "-301 s old"),
    ],
)
def test_what_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        verified(**changes)


def test_the_limit_of_freshness() -> None:
    assert verified(now=TIME + FRESH_SECONDS)
    assert verified(now=TIME - FRESH_SECONDS)


BAD = ["", "X", "0" * 300, "é"]


@pytest.mark.parametrize(
    ("field", "value"), [(field, bad) for field in range(6) for bad in BAD + ["-1", "01", "zz"] * (field < 5)]
)
def test_malformed_envelopes(field: int, value: str) -> None:
    parts = VECTOR["envelope"].split("|")
    parts[field] = value
    with pytest.raises(InvalidValueError, match="malformed"):
        verified(envelope="|".join(parts))


@pytest.mark.parametrize("audience", ["", "Example.com", "a" * 65, "a|b", "a b", "ä"])
def test_audiences_that_cannot_be_used(audience: str) -> None:
    with pytest.raises(InvalidValueError, match="audience"):
        LocalIdentity.generate().sign_request(b"", audience)


@given(st.text(max_size=300))
def test_any_text_is_refused_in_one_way(envelope: str) -> None:
    with pytest.raises(InvalidValueError):
        verified(envelope=envelope)
