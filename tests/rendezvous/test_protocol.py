"""The shared codecs: frames, ids, keys, names and beacon layouts, on good and hostile input (protocol room)."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot.protocol import beacon, names
from pilot.protocol import registry as wire

JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4)
    ),
    max_leaves=12,
)
MESSAGES = st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), JSON_VALUES, max_size=6)


# --------------------------------------------------------------------------------------------- frames


@given(st.lists(MESSAGES, max_size=5), st.data())
def test_frames_round_trip_however_they_are_cut(messages: list[wire.Message], data: Any) -> None:
    stream = b"".join(wire.encode_frame(message) for message in messages)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))

    async def read() -> list[wire.Message]:
        reader = asyncio.StreamReader()
        for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
            reader.feed_data(stream[start:end])
        reader.feed_eof()
        out = []
        while not reader.at_eof():
            length = wire.frame_length_untrusted(await reader.readexactly(wire.HEADER_BYTES))
            out.append(wire.decode_body_untrusted(await reader.readexactly(length)))
        return out

    assert asyncio.run(read()) == messages


@given(st.binary(max_size=200))
def test_any_body_is_an_object_or_refused(body: bytes) -> None:
    try:
        message = wire.decode_body_untrusted(body)
    except ValueError:
        return
    assert isinstance(message, dict)
    assert wire.decode_body_untrusted(wire.encode_frame(message)[4:]) == message


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"7",
        b"null",
        b"{",
        b'{"a":NaN}',
        b'{"a":1e999}',
        b'{"a":Infinity}',
        b'{"a":-Infinity}',
        b"\xff\xfe",
        b'{"a":' * 100_000,
        b"[" * 1_000_000,
        b'{"a":' + b"9" * 5_000 + b"}",
        b'{"a":1}{"b":2}',
    ],
)
def test_bodies_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match="registry frame"):
        wire.decode_body_untrusted(body)


def test_half_surrogates_become_storable_text() -> None:
    assert wire.decode_body_untrusted(rb'{"a":"x\ud800y","\udc00":"\ud83d\ude00"}') == {"a": "x�y", "�": "😀"}


def test_frame_limits() -> None:
    assert wire.frame_length_untrusted(b"\0\0\1\0", 256) == 256
    with pytest.raises(ValueError, match="over the limit"):
        wire.frame_length_untrusted(b"\0\0\1\1", 256)
    with pytest.raises(ValueError, match="over the limit"):
        wire.frame_length_untrusted(b"PILT")
    with pytest.raises(ValueError, match="JSON"):
        wire.encode_frame({"a": float("nan")})
    with pytest.raises(ValueError, match="over the limit"):
        wire.encode_frame({"a": "x" * wire.MAX_FRAME_BYTES})


# --------------------------------------------------------------------------------- envelopes, ids, keys


def test_what_counts_as_a_failure() -> None:
    assert wire.reply_error_untrusted(wire.error_reply("no")) == "no"
    assert wire.reply_error_untrusted({"type": "x_ok", "error": 7}) == "7"
    assert wire.reply_error_untrusted({"a": 1}) == "malformed response"
    assert wire.reply_error_untrusted({}) is None
    assert wire.reply_error_untrusted(wire.ok_reply("x", {"a": 1})) is None


@given(JSON_VALUES)
def test_ids_are_in_range_whatever_comes(value: object) -> None:
    assert 0 <= wire.id_untrusted(value) <= 0xFFFFFFFF
    assert 0 <= wire.id_untrusted(value, 0xFFFF) <= 0xFFFF


def test_ids_are_read_as_doubles() -> None:
    assert [wire.id_untrusted(v) for v in (3, 3.0, 3.7, 2**32 - 1)] == [3, 3, 3, 2**32 - 1]
    assert [wire.id_untrusted(v) for v in (True, "3", None, [3], -1, 2**32, 1e300, float("inf"))] == [0] * 8
    assert wire.challenge_text({"type": "heartbeat", "node_id": 3.0}) == "heartbeat:3"
    assert wire.challenge_text({"type": "resolve"}) == "resolve:0:0"
    with pytest.raises(ValueError, match="carry no signature"):
        wire.challenge_text({"type": "beacon_list"})


@given(st.text(max_size=100) | st.integers() | st.none())
def test_keys_and_signatures_are_whole_or_refused(value: object) -> None:
    for parse, size in ((wire.public_key_untrusted, 32), (wire.signature_untrusted, 64)):
        try:
            assert len(parse(value)) == size
        except ValueError:
            continue


def test_a_bad_key_verifies_nothing() -> None:
    assert not wire.signature_is_valid(b"\xff" * 32, b"\0" * 64, "x")
    assert not wire.signature_is_valid(b"", b"\0" * 64, "x")


# ---------------------------------------------------------------------------------------------- names


@given(st.text(max_size=80) | st.integers() | st.none() | st.lists(st.text(), max_size=2))
def test_names_are_safe_or_refused(value: object) -> None:
    for parse in (names.hostname_untrusted, names.network_name_untrusted):
        try:
            name = parse(value)
        except ValueError:
            continue
        assert name == value
        assert 1 <= len(name) <= 63
        assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
        assert name[0] != "-" != name[-1]


@given(st.lists(st.text(max_size=40) | st.integers(), max_size=12) | JSON_VALUES)
def test_tags_are_safe_or_refused(value: object) -> None:
    try:
        tags = names.tags_untrusted(value)
    except ValueError:
        return
    assert len(tags) == len(set(tags)) <= names.MAX_TAGS
    assert names.tags_untrusted(tags) == tags


@pytest.mark.parametrize("name", ["a", "a" * 63, "a-b", "0", "a--b"])
def test_good_hostnames(name: str) -> None:
    assert names.hostname_untrusted(name) == name


@pytest.mark.parametrize(
    "name",
    ["", "a" * 64, "-a", "a-", "A", "a_b", "a.b", "ä", "a\n", "localhost", "backbone", "broadcast", "٣", None, 7],
)
def test_bad_hostnames(name: object) -> None:
    with pytest.raises(ValueError, match=r"^invalid hostname: "):
        names.hostname_untrusted(name)


# --------------------------------------------------------------------------------------------- beacon


@given(st.binary(max_size=120))
def test_beacon_datagrams_parse_or_are_refused(datagram: bytes) -> None:
    for parse in (
        beacon.parse_endpoint_untrusted,
        beacon.parse_discover_untrusted,
        beacon.parse_punch_request_untrusted,
        beacon.parse_sync_untrusted,
        beacon.unwrap_relay_untrusted,
        beacon.unwrap_deliver_untrusted,
    ):
        try:
            parse(datagram)  # type: ignore[operator]
        except ValueError:
            continue


@given(st.ip_addresses(), st.integers(0, 0xFFFF))
def test_endpoints_round_trip(address: Any, port: int) -> None:
    mapped = getattr(address, "ipv4_mapped", None)
    expected = (str(mapped or address), port)
    for encode in (beacon.encode_discover_reply, beacon.encode_punch_command):
        assert beacon.parse_endpoint_untrusted(encode(str(address), port)) == expected


def test_mapped_addresses_are_ipv4_both_ways() -> None:
    vectors = bytes.fromhex("041000000000000000000000ffffcb0071079c40")
    assert beacon.parse_endpoint_untrusted(vectors) == ("203.0.113.7", 40000)
    for host in ("::ffff:203.0.113.7", "::FFFF:203.0.113.7", "::ffff:cb00:7107", "203.0.113.7"):
        assert beacon.encode_punch_command(host, 40000).hex() == "0404cb0071079c40"
    assert beacon.normal_host("fe80::1%eth0") == "fe80::1"


@pytest.mark.parametrize("raw", ["", "04", "04047f0000", "04057f000001009c40", "0410" + "00" * 17])
def test_bad_endpoints(raw: str) -> None:
    with pytest.raises(ValueError, match="beacon address"):
        beacon.parse_endpoint_untrusted(bytes.fromhex(raw))


def test_what_cannot_be_encoded() -> None:
    for host, port in (("name.example", 1), ("", 1), ("192.0.2.1", 65_536), ("192.0.2.1", -1)):
        with pytest.raises(ValueError, match="not an IP address and a port"):
            beacon.encode_discover_reply(host, port)
    with pytest.raises(ValueError, match="at most"):
        beacon.encode_sync(1, [0] * 65_536)


def test_messages_are_sorted_like_those_of_the_official_programs() -> None:
    assert wire.encode_frame({"type": "x", "a": 1})[4:] == b'{"a":1,"type":"x"}'
    assert json.loads(wire.encode_frame({"ü": "é"})[4:]) == {"ü": "é"}
