"""Lines of the name server: the vectors, every refusal with its text, answers of a lying server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot.coreapi import Addr, InvalidValueError, PeerNotFoundError, RegistryError
from pilot.plugins.nameserver import NameServerService, ServiceRecord
from pilot.plugins.nameserver.lines import (
    Request,
    address_answer_untrusted,
    check_name,
    net_id_answer_untrusted,
    parse_records_untrusted,
    parse_request_untrusted,
    parse_services_untrusted,
    request_text,
)

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "services.json").read_text())["nameserver_port_53"]


def server() -> NameServerService:
    """Knows what the vectors take for known."""
    made = NameServerService(clock=lambda: 0.0)
    for node, name in ((5, "web1"), (6, "web2")):
        addr = Addr(0, node)
        assert made.answer_untrusted(f"REGISTER A {name} {addr}".encode(), node) == "OK"
        assert made.answer_untrusted(f"REGISTER S {name} {addr} 0 80".encode(), node) == "OK"
    return made


@pytest.mark.parametrize(("asked", "answer"), VECTORS["exchanges"], ids=lambda text: text)
def test_vectors(asked: str, answer: str) -> None:
    assert server().answer_untrusted(asked.partition(" (")[0].encode(), 5) == answer


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        ("", "too few fields"),
        (" \t\n ", "too few fields"),
        ("NONSENSE", "too few fields"),
        ("Nonsense A b", "unknown command: Nonsense"),
        ("QUERY X y", "unknown record type: X"),
        ("register x", "unknown record type: x"),
        ("QUERY A", "QUERY A requires <name>"),
        ("query n", "QUERY N requires <name>"),
        ("QUERY S 0", "QUERY S requires <net_id> <port>"),
        ("REGISTER A x", "REGISTER A requires <name> <address>"),
        ("REGISTER N x", "REGISTER N requires <name> <net_id>"),
        ("REGISTER S x 0:0000.0000.0005 1", "REGISTER S requires <name> <address> <net_id> <port>"),
        ("QUERY A a b", "too many fields (4 > 3)"),
        ("REGISTER S a 0:0000.0000.0005 1 2 3", "too many fields (7 > 6)"),
        ("QUERY S x 80", "invalid net_id: x is no number from 0 to 65535"),
        ("QUERY S 65536 80", "invalid net_id: 65536 is no number from 0 to 65535"),
        ("QUERY S -1 80", "invalid net_id: -1 is no number from 0 to 65535"),
        ("QUERY S ٣ 80", "invalid net_id: ٣ is no number from 0 to 65535"),
        ("QUERY S 0 0", "invalid port: 0 is no number from 1 to 65535"),
        ("REGISTER N x 1e3", "invalid net_id: 1e3 is no number from 0 to 65535"),
        ("REGISTER A x nowhere", "invalid address: nowhere"),
        ("QUERY N nope", 'network "nope" not found'),
        ("QUERY A NOPE", 'name "nope" not found'),
        ("QUERY A " + "x" * 254, "name too long: 254 bytes (max 253)"),
        ("QUERY A " + "ä" * 127, "name too long: 254 bytes (max 253)"),
        ("QUERY A a\x00b", "invalid name: a?b"),
        ("QUERY A a\u202eb", "invalid name: a?b"),
        ("REGISTER A web1 0:0000.0000.0009", "cannot register address for another node"),
        ("REGISTER S web1 0:0000.0000.0009 0 80", "cannot register service for another node"),
        ("REGISTER A web2 0:0000.0000.0005", 'name "web2" is registered by another node'),
        ("x" * 9999 + " A b", "unknown command: " + "x" * 100 + "..."),
    ],
)
def test_refusals(asked: str, error: str) -> None:
    assert server().answer_untrusted(asked.encode(), 5) == f"ERR {error}"


def test_bytes_that_are_no_text() -> None:
    assert server().answer_untrusted(b"QUERY A \xff", 5) == "ERR request is not UTF-8"


def test_words_and_names_in_any_case_and_any_white_space() -> None:
    made = server()
    assert made.answer_untrusted(b"  query\ta\nWEB1\r\n", 5) == "A web1 0:0000.0000.0005"
    assert made.answer_untrusted(b"Register N LAB 5", 9) == "OK"
    assert made.answer_untrusted(b"QUERY N lab", 9) == "N lab 5"


def test_long_names() -> None:
    assert check_name("X" * 253) == "x" * 253
    with pytest.raises(InvalidValueError, match="too long"):
        check_name("\u0130" * 126 + "a")  # longer in lower case


NAMES = st.from_regex(r"[a-zA-Z0-9äöß€._-]{1,40}", fullmatch=True)
ADDRESSES = st.builds(Addr, st.integers(0, 65535), st.integers(0, 2**32 - 1))
PORTS = st.integers(1, 65535)
NETWORKS = st.integers(0, 65535)


@given(
    st.one_of(
        st.builds(lambda name: Request("QUERY", "A", name=name.lower()), NAMES),
        st.builds(lambda net, port: Request("QUERY", "S", net_id=net, port=port), NETWORKS, PORTS),
        st.builds(lambda name, addr: Request("REGISTER", "A", name.lower(), addr), NAMES, ADDRESSES),
        st.builds(lambda name, net: Request("REGISTER", "N", name.lower(), net_id=net), NAMES, NETWORKS),
        st.builds(lambda name, *rest: Request("REGISTER", "S", name.lower(), *rest), NAMES, ADDRESSES, NETWORKS, PORTS),
    )
)  # fmt: skip
def test_a_request_is_read_as_it_was_written(request: Request) -> None:
    assert parse_request_untrusted(request_text(request).encode()) == request


# ------------------------------------------------------------------------------------------------- answers

QUERY_A = Request("QUERY", "A", name="web1")
QUERY_N = Request("QUERY", "N", name="lab")
QUERY_S = Request("QUERY", "S", net_id=0, port=80)
REGISTER = Request("REGISTER", "N", name="lab", net_id=5)


def test_good_answers() -> None:
    assert parse_records_untrusted(b"A web1 0:0000.0000.0005", QUERY_A) == ["0:0000.0000.0005"]
    assert parse_records_untrusted(b"n LAB 5\n", QUERY_N) == ["5"]
    assert parse_records_untrusted(b"OK\n", REGISTER) == []
    assert parse_services_untrusted(b"S", QUERY_S) == []
    assert parse_services_untrusted(b"S web1 0:0000.0000.0005 80\nS web2 0:0000.0000.0006 80\n", QUERY_S) == [
        ServiceRecord("web1", Addr(0, 5), 80),
        ServiceRecord("web2", Addr(0, 6), 80),
    ]


def test_refusals_become_errors() -> None:
    with pytest.raises(PeerNotFoundError, match="no name 'web1'"):
        parse_records_untrusted(b'ERR name "web1" not found', QUERY_A)
    with pytest.raises(PeerNotFoundError, match="no network 'lab'"):
        parse_records_untrusted(b'ERR network "lab" not found', QUERY_N)
    with pytest.raises(RegistryError, match="refuses 'REGISTER N lab 5': too many"):
        parse_records_untrusted(b"ERR too many", REGISTER)
    with pytest.raises(RegistryError, match="refuses"):
        parse_services_untrusted(b"ERR \x1b[2Jgone", QUERY_S)


@pytest.mark.parametrize(
    ("data", "request_"),
    [
        (b"", QUERY_A), (b"OK", QUERY_A), (b"A web2 0:0000.0000.0005", QUERY_A), (b"N web1 5", QUERY_A),
        (b"A web1", QUERY_A), (b"A web1 a b", QUERY_A), (b"\xff\x00", QUERY_A), (b"FINE", REGISTER),
        (b"OK OK", REGISTER), (b"", REGISTER),
    ],
)  # fmt: skip
def test_unusable_single_answers(data: bytes, request_: Any) -> None:
    with pytest.raises(RegistryError, match="unusable"):
        parse_records_untrusted(data, request_)


@pytest.mark.parametrize(
    "data",
    [b"", b"\n", b"S web1 0:0000.0000.0005 81", b"S web1 nowhere 80", b"S web1 0:0000.0000.0005", b"A x y z",
     b"S web1 0:0000.0000.0005 80\nS", b"S a\x00b 0:0000.0000.0005 80", b"S\nS"],
)  # fmt: skip
def test_unusable_lists(data: bytes) -> None:
    with pytest.raises(RegistryError, match="unusable"):
        parse_services_untrusted(data, QUERY_S)


def test_unusable_values() -> None:
    for text in ("", "65536", "x"):
        with pytest.raises(RegistryError):
            net_id_answer_untrusted(text)
        with pytest.raises(RegistryError):
            address_answer_untrusted(text)
