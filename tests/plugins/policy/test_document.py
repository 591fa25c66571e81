"""Documents: every captured validation, Go's decoder with its texts and its habits, writing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pilot.coreapi import InvalidValueError
from pilot.plugins.policy import MAX_DOCUMENT_BYTES, load_policy_untrusted, parse_document_untrusted
from tests.plugins.policy.documents import document, rule

VECTORS: dict[str, Any] = json.loads((Path(__file__).parents[2] / "vectors" / "services.json").read_text())
RULE = rule("r", "connect", "true", "allow")
RULE_TEXT = json.dumps(RULE)


def verdict(data: bytes) -> str | dict[str, Any]:
    """What `policy validate` says."""
    try:
        policy = load_policy_untrusted(data, "validation failed", "compilation failed")
    except InvalidValueError as error:
        return str(error)
    events = {str(event): True for event in policy.document.events}
    return {"valid": True, "version": 1, "rules": len(policy.document.rules), "events": events}


@pytest.mark.parametrize("case", VECTORS["policy_validation"]["cases"], ids=lambda case: case["name"])
def test_captured_validations(case: dict[str, Any]) -> None:
    given = case["document"]
    assert verdict((given if isinstance(given, str) else json.dumps(given)).encode()) == case["result"]


@pytest.mark.parametrize("case", VECTORS["policy_samples_in_circulation"]["documents"], ids=lambda case: case["name"])
def test_samples_in_circulation(case: dict[str, Any]) -> None:
    said = verdict(json.dumps(case["expr_policy"]).encode())
    if case["loads"]:
        assert isinstance(said, dict)
    else:
        assert said == f"validation failed: {case['error']}"


# Every expectation below was printed by the official 1.18.0 tool for the same bytes.
SYNTAX: list[tuple[str | bytes, str]] = [
    ("", "unexpected end of JSON input"),
    ("{", "unexpected end of JSON input"),
    ('"', "unexpected end of JSON input"),
    ("nul", "invalid character ' ' in literal null (expecting 'l')"),
    ("truE", "invalid character 'E' in literal true (expecting 'e')"),
    ('{"version" 1}', "invalid character '1' after object key"),
    ("{1:2}", "invalid character '1' looking for beginning of object key string"),
    ('{"a":1,}', "invalid character '}' looking for beginning of object key string"),
    ("[1,]", "invalid character ']' looking for beginning of value"),
    ("[1 2]", "invalid character '2' after array element"),
    ('{"a":01}', "invalid character '1' after object key:value pair"),
    ("-", "invalid character ' ' in numeric literal"),
    ("1.x", "invalid character 'x' after decimal point in numeric literal"),
    ("1e+", "invalid character ' ' in exponent of numeric literal"),
    (b'"\x01"', "invalid character '\\x01' in string literal"),
    ('"\\x"', "invalid character 'x' in string escape code"),
    ('"\\u12g4"', "invalid character 'g' in \\u hexadecimal character escape"),
    ('"\\u12', "invalid character ' ' in \\u hexadecimal character escape"),
    ("{} x", "invalid character 'x' after top-level value"),
    ("\ufeff{}", "invalid character 'ï' looking for beginning of value"),
    (b"\xff", "invalid character 'ÿ' looking for beginning of value"),
    ("'", "invalid character '\\'' looking for beginning of value"),
    ("\n\t\x0b", "invalid character '\\v' looking for beginning of value"),
    (b"{\x00", "invalid character '\\x00' looking for beginning of object key string"),
]


@pytest.mark.parametrize(("data", "message"), SYNTAX)
def test_syntax_errors_are_those_of_go(data: str | bytes, message: str) -> None:
    given = data.encode() if isinstance(data, str) else data
    assert verdict(given) == f"validation failed: policy: invalid JSON: {message}"


def changed(**values: str) -> str:
    """The rule with some of its keys replaced by JSON texts."""
    texts = {key: json.dumps(value) for key, value in RULE.items()} | values
    return "{" + ",".join(f'"{key}":{value}' for key, value in texts.items()) + "}"


def with_rules(*rules: str, more: str = "") -> str:
    return f'{{"version":1,"rules":[{",".join(rules)}]{more}}}'


MISFITS: list[tuple[str, str]] = [
    ("1", "number into Go value of type policylang.PolicyDocument"),
    ('"x"', "string into Go value of type policylang.PolicyDocument"),
    ("true", "bool into Go value of type policylang.PolicyDocument"),
    ('{"version":1.0}', "number 1.0 into Go struct field PolicyDocument.version of type int"),
    ('{"version":99999999999999999999}', "number 99999999999999999999 into Go struct field PolicyDocument.version of"),
    ('{"version":{}}', "object into Go struct field PolicyDocument.version of type int"),
    ('{"version":"x","rules":1}', "string into Go struct field PolicyDocument.version of type int"),
    ('{"rules":{}}', "object into Go struct field PolicyDocument.rules of type []policylang.Rule"),
    ('{"rules":[1]}', "number into Go struct field PolicyDocument.rules of type policylang.Rule"),
    (with_rules(changed(name="1")), "number into Go struct field Rule.rules.name of type string"),
    (with_rules(changed(actions='["x"]')), "string into Go struct field Rule.rules.actions of type policylang.Action"),
    (
        with_rules(changed(actions='[{"type":1},{"type":2,"params":5}]')),
        "number into Go struct field Action.rules.actions.type of type policylang.ActionType",
    ),
    (
        with_rules(changed(actions='[{"type":"allow","params":[]}]')),
        "array into Go struct field Action.rules.actions.params of type map[string]interface {}",
    ),
    (
        with_rules(changed(actions='[{"params":{"a":[{"b":1e400}]}}]')),
        "number 1e400 into Go struct field Action.rules.actions.params of type float64",
    ),
    (with_rules(RULE_TEXT, more=',"fail_closed":1'), "number into Go struct field PolicyDocument.fail_closed of type"),
    (
        with_rules(RULE_TEXT, more=',"config":[]'),
        "array into Go struct field PolicyDocument.config of type map[string]",
    ),
    ('{"rules":[{"NAME":4}]}', "number into Go struct field Rule.rules.name of type string"),
    ('{"rules":[{"n\\u0061me":4}]}', "number into Go struct field Rule.rules.name of type string"),
]


@pytest.mark.parametrize(("data", "message"), MISFITS)
def test_wrong_types_are_reported_as_go_does(data: str, message: str) -> None:
    said = verdict(data.encode())
    assert isinstance(said, str)
    assert said.startswith(f"validation failed: policy: invalid JSON: json: cannot unmarshal {message}")


BOTH = (RULE_TEXT, RULE_TEXT.replace('"r"', '"b"'))
HABITS: list[tuple[str, str]] = [
    ("null", "unsupported version 0 (want 1)"),
    (with_rules(RULE_TEXT, more=',"VERSION":2'), "unsupported version 2 (want 1)"),
    (with_rules(RULE_TEXT, more=',"ver\u017fion":2'), "unsupported version 2 (want 1)"),
    (with_rules(RULE_TEXT, more=',"vers\\u0131on":2'), ""),
    (with_rules(RULE_TEXT, more=',"version":null'), ""),
    (with_rules("null"), "rule[0]: name is required"),
    (with_rules(RULE_TEXT, more=',"rules":null'), "at least one rule is required"),
    # Repeated keys: decoded over what is there, lists into their old elements, also into those cut off before.
    (with_rules(RULE_TEXT, more=',"rules":[{"match":"false"}]'), ""),
    (with_rules(*BOTH, more=',"rules":[{}],"rules":[{"name":"q"},{"on":"x"}]'), 'rule "b": unknown event type "x"'),
    (with_rules(*BOTH, more=',"rules":[],"rules":[{"name":"q"}]'), 'rule "q": unknown event type ""'),
    (with_rules(RULE_TEXT, more=',"config":{"cycle":5},"config":{"a":1}'), "config.cycle must be a string"),
    (with_rules(RULE_TEXT, more=',"config":{"cycle":5},"config":null'), ""),
    (with_rules(RULE_TEXT, more=',"config":{"CYCLE":5}'), ""),
    (with_rules(RULE_TEXT, more=',"unknown":1e999'), ""),
    (with_rules(changed(name=r'"aé\u200b\n\"\ud800z\ud83d\ude00"', on='"x"')), 'rule "aé\\u200b\\n\\"�z😀": unknown'),
    (with_rules(RULE_TEXT, more=',"config":{"cycle":""}'), 'config.cycle: time: invalid duration ""'),
    (with_rules(RULE_TEXT, more=',"config":{"cycle":"1"}'), 'config.cycle: time: missing unit in duration "1"'),
    (
        with_rules(RULE_TEXT, more=r',"config":{"cycle":"1\u00e9\ufffd\"\\\n"}'),
        r'config.cycle: time: unknown unit "\xc3\xa9\xef\xbf\xbd\"\\\x0a" in duration "1\xc3\xa9\xef\xbf\xbd\"\\\x0a"',
    ),
    (with_rules(RULE_TEXT, more=',"config":{"cycle":"99999999999h"}'), "config.cycle: time: invalid duration"),
    (with_rules(RULE_TEXT, more=',"config":{"cycle":"999ms"}'), "config.cycle must be >= 1s"),
    (with_rules(RULE_TEXT, more=',"config":{"cycle":"+1.5h30m"}'), ""),
]


@pytest.mark.parametrize(("data", "message"), HABITS)
def test_habits_of_gos_decoder(data: str, message: str) -> None:
    said = verdict(data.encode())
    if message:
        assert isinstance(said, str)
        assert said.startswith(f"validation failed: policy: {message}")
    else:
        assert isinstance(said, dict)


def test_bytes_that_are_no_utf8_are_shown_one_by_one() -> None:
    said = verdict(b'{"version":1,"rules":[{"name":"a\xff\xc3\xe2\x82","on":"q"}]}')
    assert said == 'validation failed: policy: rule "a\ufffd\ufffd\ufffd\ufffd": unknown event type "q"'


def test_limits() -> None:
    assert "exceeded max depth" in str(verdict(b"[" * 100_000))
    padded = document(RULE) + b" " * MAX_DOCUMENT_BYTES
    assert verdict(padded) == f"validation failed: policy: document too long (max {MAX_DOCUMENT_BYTES} bytes)"
    data = "[" * 90 + "]" * 90
    nested = with_rules(changed(actions=f'[{{"type":"webhook","params":{{"event":"e","data":{data}}}}}]'))
    assert data.encode() in parse_document_untrusted(nested.encode()).encoded()


def test_what_a_document_says() -> None:
    plain = parse_document_untrusted(document(RULE))
    assert (plain.default_allow, plain.fail_closed, plain.max_peers, plain.cycle_seconds) == (True, True, None, None)
    config = {"cycle": "1h30m", "max_peers": 2.9, "grace": 5, "own": [1]}
    full = parse_document_untrusted(document(RULE, default_verdict="deny", fail_closed=False, config=config))
    assert (full.default_allow, full.fail_closed, full.max_peers, full.cycle_seconds) == (False, False, 2, 5400.0)
    for useless in (0, -1, "2", True, None, [], 1e-9):
        assert parse_document_untrusted(document(RULE, config={"max_peers": useless})).max_peers is None


def test_written_as_go_writes_it() -> None:
    params = {
        "event": "e",
        "data": {"z": 1, "a": 1.5, "b": 1e21, "c": "<&>", "d": 1e-7, "e": 1e20, "f": -0.0, "g": 5e-5},
    }
    given = {
        "rules": [
            {"actions": [{"params": params, "type": "webhook", "x": 1}], "match": "true", "on": "join", "name": "j"}
        ],
        "fail_closed": True,
        "config": {"max_peers": 10, "grace": "1h"},
        "version": 1,
        "unknown": 5,
    }
    written = parse_document_untrusted(json.dumps(given).encode()).encoded()
    assert written.decode() == (
        '{"version":1,"fail_closed":true,"config":{"grace":"1h","max_peers":10},"rules":[{"name":"j","on":"join",'
        '"match":"true","actions":[{"type":"webhook","params":{"data":{"a":1.5,"b":1e+21,"c":"\\u003c\\u0026\\u003e",'
        '"d":1e-7,"e":100000000000000000000,"f":-0,"g":0.00005,"z":1},"event":"e"}}]}]}'
    )
    assert parse_document_untrusted(document(RULE)).encoded() == (
        b'{"version":1,"rules":[{"name":"r","on":"connect","match":"true","actions":[{"type":"allow"}]}]}'
    )
    assert parse_document_untrusted(written).encoded() == written
