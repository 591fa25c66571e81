"""The signed list of trusted agents: what is signed, what is loaded, who is on it (plugin trustedagents, L11).

Source: services.md 7.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from pilot.coreapi import InvalidValueError, TrustMatch

__all__ = ["MAX_DOCUMENT_BYTES", "Agent", "AgentList", "parse_untrusted", "signed_bytes_untrusted"]

MAX_DOCUMENT_BYTES: Final = 1024 * 1024
MAX_HOSTNAME_CHARS: Final = 255
MAX_NODE_ID: Final = 0xFFFFFFFF
KEY_BYTES: Final = 32

_STRING_OR_SPACE: Final = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[ \t\r\n]+', re.DOTALL)
_HTML: Final = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}
"""Go's compact JSON escapes these; they occur in strings only."""
_decoder: Final = json.JSONDecoder()


@dataclass(frozen=True, slots=True)
class Agent:
    """An entry of the list."""

    node_id: int
    hostname: str
    public_key: bytes = b""
    """The pinned raw key; empty: the id alone counts."""


class AgentList:
    """Who is trusted. Never changes: a new list takes its place as a whole."""

    def __init__(self, agents: Iterable[Agent] = ()) -> None:
        """Two entries with one node id cancel each other: nobody can say which one is meant."""
        entries = list(agents)
        counts = Counter(agent.node_id for agent in entries)
        self._agents = {agent.node_id: agent for agent in entries if counts[agent.node_id] == 1}

    def __len__(self) -> int:
        return len(self._agents)

    def agents(self) -> list[Agent]:
        """The entries, in the order of the document."""
        return list(self._agents.values())

    def find(self, node_id: int) -> TrustMatch:
        """Whether `node_id` is on the list, whatever key is pinned."""
        agent = self._agents.get(node_id)
        return TrustMatch() if agent is None else TrustMatch(agent.hostname, True)

    def find_with_key(self, node_id: int, key: bytes) -> TrustMatch:
        """Whether `node_id` is on the list, with `key` where one is pinned; compared in constant time."""
        agent = self._agents.get(node_id)
        if agent is None or (agent.public_key and not hmac.compare_digest(agent.public_key, key)):
            return TrustMatch()
        return TrustMatch(agent.hostname, True)


def parse_untrusted(data: bytes, verifier_key: bytes) -> AgentList:
    """The list in `data`, which `verifier_key` (raw Ed25519) must have signed.

    Raises:
        InvalidValueError: it is no such document, its signature does not verify, or an entry cannot be read.
    """
    if len(data) > MAX_DOCUMENT_BYTES:
        raise InvalidValueError(f"the list has {len(data)} bytes, more than {MAX_DOCUMENT_BYTES}")
    members = _members(data)
    signature = _base64(json.loads(members.get("signature", "null")), "signature")
    try:
        Ed25519PublicKey.from_public_bytes(verifier_key).verify(signature, _signed(members))
    except (InvalidSignature, ValueError):
        raise InvalidValueError("the list's signature is not that of the configured key") from None
    entries = json.loads(members["agents"])
    if not isinstance(entries, list):
        raise InvalidValueError("'agents' in the list is no list")
    return AgentList(agent for entry in entries if (agent := _agent(entry)) is not None)


def signed_bytes_untrusted(data: bytes) -> bytes:
    """What the signature of the document `data` covers: the object with the single key `agents`, compact.

    Raises:
        InvalidValueError: it is no such document.
    """
    return _signed(_members(data))


def _signed(members: dict[str, str]) -> bytes:
    if "agents" not in members:
        raise InvalidValueError("the list has no 'agents'")
    return f'{{"agents":{members["agents"]}}}'.encode()


def _members(data: bytes) -> dict[str, str]:
    """The document's members as the compact JSON text of each value, otherwise as received."""
    try:
        text = data.decode()
        json.loads(text)  # without white space "1 2" would become a number
        compact = _STRING_OR_SPACE.sub(lambda found: found[0] if found[0][0] == '"' else "", text)
        return _split(compact.translate(_HTML))
    except (ValueError, RecursionError, IndexError) as error:  # JSON and Unicode errors are ValueErrors
        raise InvalidValueError(f"the list is no JSON object: {str(error)[:100]}") from None


def _split(text: str) -> dict[str, str]:
    """The members of the compact JSON object `text`, whose values stay text."""
    if not text.startswith("{"):
        raise ValueError("it begins otherwise")
    members: dict[str, str] = {}
    at = 1
    while not (text[at] == "}" and not members):
        name, colon = _decoder.raw_decode(text, at)
        if not isinstance(name, str) or text[colon] != ":" or name in members:
            raise ValueError("it has a member without a name of its own")
        _, at = _decoder.raw_decode(text, colon + 1)
        members[name] = text[colon + 1 : at]
        if text[at] == "}":
            break
        if text[at] != ",":
            raise ValueError("a comma is missing")
        at += 1
    if len(text) > at + 1:
        raise ValueError("it goes on after its end")
    return members


def _agent(entry: Any) -> Agent | None:
    """The entry, None where it is to be skipped. What cannot be read fails the whole list."""
    if not isinstance(entry, dict):
        raise InvalidValueError("an entry of the list is no object")
    node_id, hostname = entry.get("node_id") or 0, entry.get("hostname") or ""
    if not isinstance(node_id, int) or isinstance(node_id, bool) or not 0 <= node_id <= MAX_NODE_ID:
        raise InvalidValueError("an entry of the list has a node_id that is no node id")
    if not isinstance(hostname, str) or len(hostname) > MAX_HOSTNAME_CHARS or not hostname.isprintable():
        raise InvalidValueError(f"entry {node_id} of the list has a hostname that cannot be used")
    public_key = _base64(entry["public_key"], "public_key") if entry.get("public_key") else b""
    if len(public_key) not in (0, KEY_BYTES):
        raise InvalidValueError(f"entry {node_id} of the list pins a key of {len(public_key)} bytes, not {KEY_BYTES}")
    return Agent(node_id, hostname, public_key) if node_id and hostname else None


def _base64(text: object, name: str) -> bytes:
    if not isinstance(text, str):
        raise InvalidValueError(f"{name!r} in the list is missing or no text")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidValueError(f"{name!r} in the list is no base64") from None
