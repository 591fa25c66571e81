"""Webhook bodies: byte for byte what the official daemon writes, and an outcome for everything else."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from datetime import UTC, datetime, timedelta, timezone
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot.coreapi import Addr, Event, InvalidValueError
from pilot.plugins.webhook.body import MAX_BODY_BYTES, MAX_DEPTH, event_body, go_json, rfc3339, signature

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "services.json").read_text())["webhook"]
BODIES = VECTORS["observed_bodies"] + VECTORS["computed_bodies"]
NOON = datetime(2026, 11, 22, 12, 0, 0, tzinfo=UTC)


def body(payload: Any, topic: str = "t") -> str:
    return event_body(1, Event(topic, 7, NOON, payload)).decode()


@pytest.mark.parametrize("vector", BODIES, ids=lambda v: json.loads(v["body_text"])["event"])
def test_vectors(vector: dict[str, str]) -> None:
    """Ours from the parsed content: the same bytes, but for the nanoseconds that a `datetime` does not hold."""
    text = vector["body_text"]
    assert signature(VECTORS["secret_utf8"].encode(), text.encode()) == vector["X-Pilot-Signature-256"]
    content = json.loads(text)
    time = datetime.fromisoformat(content["timestamp"])
    ours = event_body(content["event_id"], Event(content["event"], content["node_id"], time, content["data"])).decode()

    def stamp(found: str) -> str:
        return re.sub(r'("timestamp":"[^"]*?\.\d{1,6})\d*Z"', lambda m: m[1].rstrip("0") + 'Z"', found)

    assert ours == stamp(text)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl program")
def test_signature_as_openssl_makes_it() -> None:
    done = subprocess.run(
        ["openssl", "dgst", "-sha256", "-hmac", "a secret", "-r"],
        input=b'{"a":1}', capture_output=True, check=True, timeout=20,
    )  # fmt: skip
    assert signature(b"a secret", b'{"a":1}') == done.stdout.split()[0].decode()


def test_order_of_keys_and_no_data() -> None:
    assert body({}) == '{"event_id":1,"event":"t","node_id":7,"timestamp":"2026-11-22T12:00:00Z"}'
    assert body({"b": 1, "a": {"z": 1, "Z": 2}}).endswith(',"data":{"a":{"Z":2,"z":1},"b":1}}')


@pytest.mark.parametrize(
    ("micros", "text"), [(0, "00Z"), (1, "00.000001Z"), (500_000, "00.5Z"), (957_850, "00.95785Z")]
)
def test_times(micros: int, text: str) -> None:
    assert rfc3339(NOON + timedelta(microseconds=micros)) == f"2026-11-22T12:00:{text}"


def test_times_of_other_zones() -> None:
    assert rfc3339(NOON.astimezone(timezone(timedelta(hours=-5)))) == "2026-11-22T12:00:00Z"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("<a href='x'>&", "\"\\u003ca href='x'\\u003e\\u0026\""),
        ("\u2028\u2029", '"\\u2028\\u2029"'),
        ('"\\/', '"\\"\\\\/"'),
        ("\n\r\t\b\f\x00\x1f\x7f", '"\\n\\r\\t\\b\\f\\u0000\\u001f\x7f"'),
        ("ä€😀", '"ä€😀"'),
        ("a\ud800b", '"a\ufffdb"'),
        (True, "true"), (False, "false"), (None, "null"), (-5, "-5"), (2**64, "18446744073709551616"),
        (1.0, "1"), (0.5, "0.5"), (-0.0, "-0"), (0.1 + 0.2, "0.30000000000000004"), (1e20, "100000000000000000000"),
        (1e21, "1e+21"), (1.5e300, "1.5e+300"), (1e-6, "0.000001"), (1e-7, "1e-7"), (1.25e-10, "1.25e-10"),
        (float("nan"), "null"), (float("-inf"), "null"),
        (b"\x00\xff", '"AP8="'), (bytearray(b"a"), '"YQ=="'), (memoryview(b"a"), '"YQ=="'),
        (NOON, '"2026-11-22T12:00:00Z"'), (Addr(1, 2), '"1:0001.0000.0002"'), (PurePosixPath("/x"), '"/x"'),
        (StrEnum("E", {"A": "a"}).A, '"a"'), ({"b", "a"}, '["a","b"]'), ((1, "x"), '[1,"x"]'),
        ({3: 1, Addr(0, 1): 2, (): 3}, '{"0:0000.0000.0001":2,"3":1,"\\u003ctuple\\u003e":3}'),
        (object(), '"\\u003cobject\\u003e"'), (1 << 20_000, '"\\u003cint\\u003e"'),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_values(value: object, text: str) -> None:
    assert go_json(value) == text


def test_an_unknown_object_shows_nothing_of_itself() -> None:
    class Secret:
        def __repr__(self) -> str:
            return "hunter2"

    assert "hunter2" not in body({"k": Secret()})


def test_too_deep_and_too_long() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(InvalidValueError, match=str(MAX_DEPTH)):
        body({"k": endless})
    with pytest.raises(InvalidValueError, match="limit"):
        body({"k": "x" * MAX_BODY_BYTES})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64) | st.floats(-1e15, 1e15) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)  # fmt: skip


@given(JSON)
def test_any_json_value_comes_back(value: object) -> None:
    text = go_json(value)
    assert json.loads(text) == value
    assert not set("<>&\u2028\u2029") & set(text)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_come_back_and_look_like_go(value: float) -> None:
    text = go_json(value)
    assert float(text) == value
    assert re.fullmatch(r"-?\d+(\.\d*[1-9])?(e(\+\d\d+|-[1-9]\d*))?", text), text
