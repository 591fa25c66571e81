"""A short, repeatable pass of every fuzz target, what each of them reaches, and the driver itself."""

from __future__ import annotations

import ast
import gc
import importlib
import inspect
import random
import re
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from tests.fuzz.driver import CORPUS, FuzzError, Target, attempt, chunks, corpus, fuzz, joined, mutate, starting_points
from tests.fuzz.targets import TARGETS

ROOT = Path(__file__).parents[2]

RUNS = {
    "addr": 5000,
    "packet": 5000,
    "session": 3000,
    "datagram": 1500,
    "inner": 1500,
    "sack": 1500,
    "script": 400,
    "wire": 300,
    "pair": 500,
    "exchange": 300,
    "beacon": 300,
    "relay": 5000,
    "signed_request": 2000,
    "answers": 5000,
    "client": 5000,
    "requests": 500,
    "server": 500,
    "dataexchange": 500,
    "sending": 1000,
    "events": 100,
    "secure": 1000,
    "names": 1000,
    "handshake": 300,
    "agents": 1000,
    "policy-expression": 1500,
    "policy": 2000,
    "policy_state": 2000,
}

REACHED_BY = {
    "pilot/_fast/packet.pyx:decode_untrusted": "packet",
    "pilot/_fast/seal.pyx:open_untrusted": "session",
    "pilot/node/directory/answers.py:beacons_untrusted": "answers",
    "pilot/node/directory/answers.py:expr_policy_untrusted": "answers",
    "pilot/node/directory/answers.py:found_name_untrusted": "answers",
    "pilot/node/directory/answers.py:joined_untrusted": "answers",
    "pilot/node/directory/answers.py:location_untrusted": "answers",
    "pilot/node/directory/answers.py:mailbox_untrusted": "answers",
    "pilot/node/directory/answers.py:members_untrusted": "answers",
    "pilot/node/directory/answers.py:network_limits_untrusted": "answers",
    "pilot/node/directory/answers.py:network_members_untrusted": "answers",
    "pilot/node/directory/answers.py:networks_untrusted": "answers",
    "pilot/node/directory/answers.py:node_record_untrusted": "answers",
    "pilot/node/directory/answers.py:registration_untrusted": "answers",
    "pilot/node/directory/answers.py:tags_answer_untrusted": "answers",
    "pilot/node/directory/answers.py:trusted_untrusted": "answers",
    "pilot/node/directory/quiet.py:clip_untrusted": "answers",
    "pilot/protocol/signed_request.py:verify_request_untrusted": "signed_request",
    "pilot/plugins/_receiving.py:read_payload_untrusted": "dataexchange",
    "pilot/plugins/dataexchange/connection.py:_read_next_chunk_untrusted": "dataexchange",
    "pilot/plugins/dataexchange/filestream.py:split_chunk_untrusted": "dataexchange",
    "pilot/plugins/dataexchange/filestream.py:split_init_untrusted": "dataexchange",
    "pilot/plugins/dataexchange/filestream.py:split_offset_untrusted": "sending",
    "pilot/plugins/dataexchange/filestream.py:split_untrusted": "dataexchange",
    "pilot/plugins/dataexchange/filestream.py:text_untrusted": "sending",
    "pilot/plugins/dataexchange/frames.py:_id_untrusted": "dataexchange",
    "pilot/plugins/dataexchange/frames.py:header_untrusted": "dataexchange",
    "pilot/plugins/dataexchange/frames.py:parse_answer_untrusted": "sending",
    "pilot/plugins/dataexchange/frames.py:split_file_untrusted": "dataexchange",
    "pilot/plugins/dataexchange/frames.py:split_tagged_untrusted": "dataexchange",
    "pilot/plugins/dataexchange/frames.py:split_trace_untrusted": "dataexchange",
    "pilot/plugins/dataexchange/outgoing.py:_check_verdict_untrusted": "sending",
    "pilot/plugins/dataexchange/outgoing.py:_on_part_untrusted": "sending",
    "pilot/plugins/eventstream/frames.py:decode_topic_untrusted": "events",
    "pilot/plugins/eventstream/frames.py:read_event_untrusted": "events",
    "pilot/plugins/handshake/checks.py:check_untrusted": "handshake",
    "pilot/plugins/handshake/life.py:_read_untrusted": "handshake",
    "pilot/plugins/handshake/message.py:feed_untrusted": "handshake",
    "pilot/plugins/handshake/message.py:parse_untrusted": "handshake",
    "pilot/plugins/nameserver/client.py:_read_untrusted": "names",
    "pilot/plugins/nameserver/lines.py:_address_untrusted": "names",
    "pilot/plugins/nameserver/lines.py:_name_answer_untrusted": "names",
    "pilot/plugins/nameserver/lines.py:_number_untrusted": "names",
    "pilot/plugins/nameserver/lines.py:_text_untrusted": "names",
    "pilot/plugins/nameserver/lines.py:address_answer_untrusted": "names",
    "pilot/plugins/nameserver/lines.py:net_id_answer_untrusted": "names",
    "pilot/plugins/nameserver/lines.py:parse_records_untrusted": "names",
    "pilot/plugins/nameserver/lines.py:parse_request_untrusted": "names",
    "pilot/plugins/nameserver/lines.py:parse_services_untrusted": "names",
    "pilot/plugins/nameserver/service.py:answer_untrusted": "names",
    "pilot/plugins/policy/compiled.py:load_policy_in_thread_untrusted": "policy",
    "pilot/plugins/policy/compiled.py:load_policy_untrusted": "policy",
    "pilot/plugins/policy/decoder.py:decode_document_untrusted": "policy",
    "pilot/plugins/policy/document.py:parse_document_untrusted": "policy",
    "pilot/plugins/policy/expression/durations.py:parse_duration_untrusted": "policy-expression",
    "pilot/plugins/policy/expression/layouts.py:parse_time_untrusted": "policy-expression",
    "pilot/plugins/policy/expression/lexer.py:tokens_untrusted": "policy-expression",
    "pilot/plugins/policy/expression/parser.py:parse_untrusted": "policy-expression",
    "pilot/plugins/policy/expression/regexes.py:pattern_untrusted": "policy-expression",
    "pilot/plugins/policy/expression/times.py:zone_untrusted": "policy-expression",
    "pilot/plugins/policy/gojson.py:parse_untrusted": "policy",
    "pilot/plugins/policy/managed.py:_count_untrusted": "policy_state",
    "pilot/plugins/policy/managed.py:_text_untrusted": "policy_state",
    "pilot/plugins/policy/managed.py:parse_rules_untrusted": "policy_state",
    "pilot/plugins/policy/peers.py:_peer_untrusted": "policy_state",
    "pilot/plugins/policy/peers.py:_tags_untrusted": "policy_state",
    "pilot/plugins/policy/peers.py:read_table_untrusted": "policy_state",
    "pilot/plugins/policy/timestamps.py:parse_time_untrusted": "policy_state",
    "pilot/plugins/secure/authentication.py:check_untrusted": "secure",
    "pilot/plugins/secure/authentication.py:parse_untrusted": "secure",
    "pilot/plugins/secure/handshake.py:derive_untrusted": "secure",
    "pilot/plugins/secure/records.py:open_untrusted": "secure",
    "pilot/plugins/secure/records.py:record_length_untrusted": "secure",
    "pilot/plugins/trustedagents/document.py:parse_untrusted": "agents",
    "pilot/plugins/trustedagents/document.py:signed_bytes_untrusted": "agents",
    "pilot/plugins/trustedagents/sources.py:_body_untrusted": "agents",
    "pilot/protocol/beacon.py:parse_discover_untrusted": "relay",
    "pilot/protocol/beacon.py:parse_endpoint_untrusted": "beacon",
    "pilot/protocol/beacon.py:parse_punch_request_untrusted": "relay",
    "pilot/protocol/beacon.py:parse_sync_untrusted": "beacon",
    "pilot/protocol/beacon.py:unwrap_deliver_untrusted": "beacon",
    "pilot/protocol/beacon.py:unwrap_relay_untrusted": "beacon",
    "pilot/protocol/endpoints.py:split_endpoint_untrusted": "answers",
    "pilot/protocol/names.py:_name_untrusted": "answers",
    "pilot/protocol/names.py:_tag_untrusted": "answers",
    "pilot/protocol/names.py:hostname_untrusted": "answers",
    "pilot/protocol/names.py:network_name_untrusted": "requests",
    "pilot/protocol/names.py:tags_untrusted": "answers",
    "pilot/protocol/registry.py:decode_body_untrusted": "server",
    "pilot/protocol/registry.py:frame_length_untrusted": "client",
    "pilot/protocol/registry.py:id_untrusted": "requests",
    "pilot/protocol/registry.py:public_key_untrusted": "answers",
    "pilot/protocol/registry.py:reply_error_untrusted": "answers",
    "pilot/protocol/registry.py:signature_untrusted": "requests",
    "pilot/rendezvous/beacon.py:_relay_untrusted": "relay",
    "pilot/rendezvous/beacon.py:receive_untrusted": "relay",
    "pilot/rendezvous/directory.py:_expiry_untrusted": "requests",
    "pilot/rendezvous/directory.py:_version_untrusted": "requests",
    "pilot/rendezvous/endpoints.py:lan_addrs_untrusted": "requests",
    "pilot/rendezvous/endpoints.py:stored_endpoint_untrusted": "requests",
    "pilot/rendezvous/roles.py:_ports_untrusted": "requests",
    "pilot/rendezvous/roles.py:_whole_untrusted": "requests",
    "pilot/rendezvous/rules.py:_count_untrusted": "requests",
    "pilot/rendezvous/rules.py:_document_untrusted": "requests",
    "pilot/rendezvous/rules.py:_seconds_untrusted": "requests",
    "pilot/rendezvous/rules.py:expr_policy_untrusted": "requests",
    "pilot/rendezvous/rules.py:managed_rules_untrusted": "requests",
    "pilot/tunnel/beacons.py:receive_untrusted": "beacon",
    "pilot/tunnel/exchange.py:receive_untrusted": "exchange",
    "pilot/tunnel/frames.py:parse_exchange_untrusted": "exchange",
    "pilot/tunnel/frames.py:signature_holds_untrusted": "exchange",
    "pilot/tunnel/identities.py:submit_untrusted": "exchange",
    "pilot/tunnel/keys.py:session_key_untrusted": "exchange",
    "pilot/tunnel/sessions.py:derive_untrusted": "exchange",
    "pilot/tunnel/tunnel.py:beacon_message_untrusted": "beacon",
    "pilot/tunnel/tunnel.py:key_exchange_untrusted": "exchange",
}
"""Which target feeds each function that reads what a stranger sent."""


@pytest.mark.parametrize("name", TARGETS)
def test_short_pass(name: str) -> None:
    fuzz(TARGETS[name], RUNS[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_long_pass(name: str) -> None:
    fuzz(TARGETS[name], RUNS[name] * 20, seed=1)


@pytest.mark.parametrize("name", TARGETS)
def test_no_input_leaves_anything_behind(name: str) -> None:
    target = TARGETS[name]
    inputs = (target.seeds() * 10)[:10]

    def objects() -> int:
        for data in inputs:
            target.run(data)
        gc.collect()
        return len(gc.get_objects())

    objects()
    before = objects()
    assert objects() - before < 20


# ------------------------------------------------------------------------------------------------------ reach


def untrusted_functions() -> set[str]:
    """Every function of the package whose name says that it reads what a stranger sent."""
    found = set()
    for path in sorted((ROOT / "pilot").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.endswith("_untrusted"):
                found.add(f"{path.relative_to(ROOT)}:{node.name}")
    for path in sorted((ROOT / "pilot").rglob("*.pyx")):
        for name in re.findall(r"^\s*(?:def|cdef|cpdef)\s[^=#\n]*?(\w+_untrusted)\(", path.read_text(), re.MULTILINE):
            found.add(f"{path.relative_to(ROOT)}:{name}")
    return found


def test_every_function_that_reads_untrusted_bytes_has_a_target() -> None:
    assert untrusted_functions() == set(REACHED_BY)
    assert set(REACHED_BY.values()) <= set(TARGETS)


@pytest.mark.parametrize("name", sorted(set(REACHED_BY.values())))
def test_the_target_reaches_what_it_is_said_to_reach(name: str) -> None:
    target = TARGETS[name]
    wanted = {function for function, by in REACHED_BY.items() if by == name}
    called = set()

    def note(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code.co_name.endswith("_untrusted"):
            path = Path(frame.f_code.co_filename)
            if path.is_relative_to(ROOT):
                called.add(f"{path.relative_to(ROOT)}:{frame.f_code.co_name}")

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        for data in starting_points(target):
            target.run(data)
    finally:
        sys.setprofile(before)
    # A profile sees no compiled function: the target calls those by name.
    text = inspect.getsource(inspect.getmodule(target.run) or importlib.import_module("tests.fuzz.targets"))
    called |= {f for f in wanted if f.split(":")[0].endswith(".pyx") and "." + f.split(":")[1] + "(" in text}
    assert wanted <= called


# ----------------------------------------------------------------------------------------------------- corpus


def test_the_corpus_belongs_to_targets_and_is_tried() -> None:
    assert {path.stem for path in CORPUS.glob("*.json")} <= set(TARGETS)
    for name, target in TARGETS.items():
        inputs = corpus(name)
        assert set(inputs.values()) <= set(starting_points(target))
        for data in inputs.values():
            attempt(target, data)


# ----------------------------------------------------------------------------------------------------- driver


def test_the_driver_finds_and_reports() -> None:
    def picky(data: bytes) -> None:
        assert data[:1] != b"\x80", "there it is"

    target = Target("picky", "finds a byte", picky, lambda: [b"\x00\x01", b""])
    with pytest.raises(FuzzError, match="--input 80"):
        fuzz(target, 10_000)
    with pytest.raises(FuzzError, match="there it is"):
        attempt(target, b"\x80")


def test_mutation_is_repeatable_and_bounded() -> None:
    seeds = [bytes(100), b"", b"abc"]
    first = [mutate(random.Random(n), seeds[n % 3], seeds) for n in range(300)]
    again = [mutate(random.Random(n), seeds[n % 3], seeds) for n in range(300)]
    assert first == again
    assert len(set(first)) > 150
    assert max(map(len, first)) <= 70_000


def test_chunks() -> None:
    assert chunks(joined([b"a", b"", b"bcd"])) == [b"a", b"", b"bcd"]
    assert chunks(b"\xff\xffrest") == [b"rest"]
    assert chunks(b"\x00") == []
    assert len(chunks(bytes(1000))) == 40
