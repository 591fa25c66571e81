"""What the registry answers, as records: every parser here takes a hostile JSON object and checks all of it (L8).

The parsers raise `InvalidValueError` and nothing else; `RegistryClient.ask` makes a `RegistryError` of it. A value that
another node chose (its endpoint, its name) is left out when it is unusable, so that nobody can spoil a list for others;
what the registry itself must get right (types, ids, the node that was asked about) fails the whole answer.
Source: reference rendezvous.md, sections 4 to 7.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from pilot._fast.addr import Addr
from pilot._fast.errors import InvalidValueError
from pilot.coreapi import PeerInfo
from pilot.protocol.endpoints import ip_of, split_endpoint_untrusted
from pilot.protocol.names import hostname_untrusted, tags_untrusted
from pilot.protocol.registry import (
    MAX_JUSTIFICATION_BYTES,
    MAX_NETWORK_ID,
    RESERVED_NODE_IDS,
    Message,
    id_untrusted,
    public_key_untrusted,
)

__all__ = [
    "Beacon",
    "Endpoint",
    "HandshakeRequest",
    "HandshakeResponse",
    "JoinedNetwork",
    "Location",
    "Mailbox",
    "Member",
    "NetworkInfo",
    "NetworkLimits",
    "NodeRecord",
    "Registration",
]

T = TypeVar("T")
Endpoint = tuple[str, int]

MAX_TEXT_CHARS = 1024
MAX_LAN_ADDRS = 16
MAX_NETWORKS_OF_NODE = 1024
MAX_NETWORKS = 10_000
MAX_MEMBERS = 20_000
MAX_ALLOWED_PORTS = 1024
MAX_DOCUMENT_BYTES = 256 * 1024
"""Of a policy or the rules of a network; our own server takes 64 KiB."""
MAX_MAILBOX = 256
MAX_BEACONS = 64


@dataclass(frozen=True, slots=True)
class Registration:
    """What the registry made of a registration."""

    node_id: int
    addr: Addr
    observed: Endpoint | None = None
    """The endpoint it stored, where it says so."""


@dataclass(frozen=True, slots=True)
class Location:
    """Where a node is: the answer to `resolve`."""

    node_id: int
    endpoint: Endpoint | None = None
    """Its public endpoint (the beacon's for a relay-only node); None when it registered none that can be used."""
    lan_addrs: tuple[Endpoint, ...] = ()
    """Addresses on its own local networks, worth a try when both are behind one router."""
    relay_only: bool = False


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """Who a node is: the answer to `lookup`."""

    node_id: int
    public_key: bytes | None = None
    public: bool = False
    hostname: str = ""
    tags: tuple[str, ...] = ()
    networks: tuple[int, ...] = ()
    version: str = ""
    relay_only: bool = False


@dataclass(frozen=True, slots=True)
class HandshakeRequest:
    """Somebody asks, through the registry's mailbox, to be trusted. `timestamp` is in unix seconds."""

    from_node_id: int
    justification: str
    timestamp: int


@dataclass(frozen=True, slots=True)
class HandshakeResponse:
    """The answer of a node this one asked to trust it. `timestamp` is in unix seconds."""

    from_node_id: int
    accept: bool
    timestamp: int


@dataclass(frozen=True, slots=True)
class Mailbox:
    """What a poll of the handshake mailbox brought."""

    requests: tuple[HandshakeRequest, ...] = ()
    responses: tuple[HandshakeResponse, ...] = ()


@dataclass(frozen=True, slots=True)
class NetworkInfo:
    """A network as `list_networks` describes it."""

    network_id: int
    name: str
    join_rule: str
    enterprise: bool = False
    has_expr_policy: bool = False
    rules: str = ""
    """The text of the rules of a managed network, empty for others."""


@dataclass(frozen=True, slots=True)
class Member:
    """A member of a network, as `list_nodes` describes it; live or not."""

    node_id: int
    member_tags: tuple[str, ...] = ()
    """What the network's administrators call it."""
    node_tags: tuple[str, ...] = ()
    """What it calls itself."""
    hostname: str = ""


@dataclass(frozen=True, slots=True)
class JoinedNetwork:
    """What the registry answered to `join_network`."""

    addr: Addr
    """This node's address in the network."""
    expr_policy: str = ""
    """The text of the network's expression policy, empty without one."""
    rules: str = ""
    """The text of the rules of a managed network, empty for others."""


@dataclass(frozen=True, slots=True)
class NetworkLimits:
    """The static policy of a network: `get_network_policy`."""

    allowed_ports: tuple[int, ...] = ()
    """The ports members may use, in ascending order; empty: all."""
    max_members: int = 0
    description: str = ""


@dataclass(frozen=True, slots=True)
class Beacon:
    """A beacon that told the registry about itself."""

    beacon_id: int
    endpoint: Endpoint


# ------------------------------------------------------------------------------------------------ answers


def registration_untrusted(answer: Message) -> Registration:
    """The answer to `register`."""
    node_id = _node_id(answer, "node_id")
    addr = Addr.parse(_text(answer, "address"))
    if addr != Addr(0, node_id):
        raise InvalidValueError(f"it registered node {node_id} but gave the address {addr}")
    return Registration(node_id, addr, _endpoint(_text(answer, "observed_addr")))


def location_untrusted(answer: Message, node_id: int) -> Location:
    """The answer to `resolve` of `node_id`."""
    _check_node(answer, node_id)
    lan_addrs = (_local_endpoint(text) for text in _list(answer, "lan_addrs", MAX_LAN_ADDRS, cut=True))
    return Location(
        node_id,
        endpoint=_endpoint(_text(answer, "real_addr")),
        lan_addrs=tuple(endpoint for endpoint in lan_addrs if endpoint),
        relay_only=_flag(answer, "relay_only"),
    )


def node_record_untrusted(answer: Message, node_id: int) -> NodeRecord:
    """The answer to `lookup` of `node_id`."""
    _check_node(answer, node_id)
    key = answer.get("public_key")
    return NodeRecord(
        node_id,
        public_key=public_key_untrusted(key) if key not in (None, "") else None,
        public=_flag(answer, "public"),
        hostname=_hostname(answer),
        tags=_or_default(tags_untrusted, answer.get("tags"), ()),
        networks=tuple(_network_id(value) for value in _list(answer, "networks", MAX_NETWORKS_OF_NODE)),
        version=_text(answer, "version"),
        relay_only=_flag(answer, "relay_only"),
    )


def found_name_untrusted(answer: Message) -> int:
    """The node id in the answer to `resolve_hostname`."""
    return _node_id(answer, "node_id")


def members_untrusted(answer: Message, network_id: int) -> list[PeerInfo]:
    """The answer to `list_nodes` of `network_id`; entries with a reserved node id are left out."""
    return [
        PeerInfo(
            node_id,
            Addr(network_id, node_id),
            endpoint=_endpoint(_text(entry, "real_addr")),
            public=_flag(entry, "public"),
            hostname=_hostname(entry),
            relay_only=_flag(entry, "relay_only"),
        )
        for entry in _objects(answer, "nodes", MAX_MEMBERS)
        if (node_id := id_untrusted(entry.get("node_id"))) not in RESERVED_NODE_IDS
    ]


def networks_untrusted(answer: Message) -> tuple[NetworkInfo, ...]:
    """The answer to `list_networks`."""
    return tuple(
        NetworkInfo(
            _network_id(entry.get("id")),
            name=_text(entry, "name"),
            join_rule=_text(entry, "join_rule"),
            enterprise=_flag(entry, "enterprise"),
            has_expr_policy=_flag(entry, "has_expr_policy"),
            rules=_or_default(lambda value: _document({"rules": value}, "rules"), entry.get("rules"), ""),
        )
        for entry in _objects(answer, "networks", MAX_NETWORKS)
    )


def network_members_untrusted(answer: Message) -> list[Member]:
    """The answer to `list_nodes`, for who wants the tags; entries with a reserved node id are left out."""
    return [
        Member(
            node_id,
            member_tags=_or_default(tags_untrusted, entry.get("member_tags"), ()),
            node_tags=_or_default(tags_untrusted, entry.get("tags"), ()),
            hostname=_hostname(entry),
        )
        for entry in _objects(answer, "nodes", MAX_MEMBERS)
        if (node_id := id_untrusted(entry.get("node_id"))) not in RESERVED_NODE_IDS
    ]


def joined_untrusted(answer: Message, addr: Addr) -> JoinedNetwork:
    """The answer to `join_network`, which must name `addr`, the node's address in that network."""
    if Addr.parse(_text(answer, "address")) != addr:
        raise InvalidValueError(f"it should have given the address {addr}")
    return JoinedNetwork(addr, _document(answer, "expr_policy"), _document(answer, "rules"))


def network_limits_untrusted(answer: Message) -> NetworkLimits:
    """The answer to `get_network_policy`."""
    ports = _list(answer, "allowed_ports", MAX_ALLOWED_PORTS)
    limit = answer.get("max_members")
    return NetworkLimits(
        allowed_ports=tuple(sorted({_whole(port, "allowed_ports", 1, 0xFFFF) for port in ports})),
        max_members=0 if limit is None else _whole(limit, "max_members", 0, 1 << 32),
        description=_text(answer, "description"),
    )


def expr_policy_untrusted(answer: Message) -> str:
    """The answer to `get_expr_policy`: the text of the policy, empty without one. What it says is not checked."""
    return _document(answer, "expr_policy")


def mailbox_untrusted(answer: Message) -> Mailbox:
    """The answer to `poll_handshakes`; bad entries are left out: the poll took the others from the registry."""
    return Mailbox(
        tuple(_good_entries(_handshake_request, _list(answer, "requests", MAX_MAILBOX, cut=True))),
        tuple(_good_entries(_handshake_response, _list(answer, "responses", MAX_MAILBOX, cut=True))),
    )


def beacons_untrusted(answer: Message) -> tuple[Beacon, ...]:
    """The answer to `beacon_list`; entries without a usable address are left out."""
    entries = _objects(answer, "beacons", MAX_BEACONS, cut=True)
    endpoints = ((id_untrusted(entry.get("id")), _endpoint(_text(entry, "addr"))) for entry in entries)
    return tuple(Beacon(beacon_id, endpoint) for beacon_id, endpoint in endpoints if endpoint)


def trusted_untrusted(answer: Message) -> bool:
    """The answer to `check_trust`; anything but a clear yes is no."""
    return answer.get("trusted") is True


def tags_answer_untrusted(answer: Message) -> tuple[str, ...]:
    """The answer to `set_tags`, and to `get_member_tags` and `set_member_tags` of one member."""
    return tags_untrusted(answer.get("tags"))


def nothing(answer: Message) -> None:
    """For answers that say no more than that it is done."""


# ---------------------------------------------------------------------------------------------- endpoints


def _endpoint(text: str) -> Endpoint | None:
    """An endpoint that packets can be sent to, else None."""
    endpoint = _or_default(split_endpoint_untrusted, text, None)
    if endpoint is None:
        return None
    address = ip_of(endpoint[0])
    if address is not None and (address.is_unspecified or address.is_multicast or "%" in endpoint[0]):
        return None
    return endpoint


def _local_endpoint(text: object) -> Endpoint | None:
    """An address on somebody's local network; names and loopback would lead to places of this host, so not those."""
    endpoint = _endpoint(text) if isinstance(text, str) else None
    if endpoint is None:
        return None
    address = ip_of(endpoint[0])
    return None if address is None or address.is_loopback else endpoint


# ------------------------------------------------------------------------------------------------- fields


def _text(answer: Message, name: str) -> str:
    value = answer.get(name)
    if value is None:
        return ""
    if not isinstance(value, str) or len(value) > MAX_TEXT_CHARS:
        raise InvalidValueError(f"its {name!r} is no text of at most {MAX_TEXT_CHARS} characters")
    return value


def _document(answer: Message, name: str) -> str:
    """A JSON document, sent as text or as object, as text; "" where it is missing or null."""
    value = answer.get(name)
    if value is None:
        return ""
    try:
        text = json.dumps(value, separators=(",", ":"), ensure_ascii=False) if isinstance(value, dict) else value
        usable = isinstance(text, str) and len(text.encode()) <= MAX_DOCUMENT_BYTES
    except (UnicodeEncodeError, RecursionError):
        usable = False
    if not usable:
        raise InvalidValueError(f"its {name!r} is no document of at most {MAX_DOCUMENT_BYTES} bytes")
    return "" if text.strip() == "null" else text


def _whole(value: object, name: str, lowest: int, highest: int) -> int:
    """A whole number, which JSON may have made a float."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not lowest <= value <= highest or value != int(value):  # type: ignore[operator, call-overload]
        raise InvalidValueError(f"its {name} is no whole number in {lowest}..{highest}")
    return int(value)  # type: ignore[call-overload, no-any-return]


def _flag(answer: Message, name: str) -> bool:
    value = answer.get(name, False)
    if not isinstance(value, bool):
        raise InvalidValueError(f"its {name!r} is neither true nor false")
    return value


def _node_id(answer: Message, name: str) -> int:
    node_id = id_untrusted(answer.get(name))
    if node_id in RESERVED_NODE_IDS:
        raise InvalidValueError(f"its {name!r} is no node id")
    return node_id


def _check_node(answer: Message, node_id: int) -> None:
    told = _node_id(answer, "node_id")
    if told != node_id:
        raise InvalidValueError(f"it was asked about node {node_id} and told about node {told}")


def _network_id(value: object) -> int:
    return _whole(value, "network id", 0, MAX_NETWORK_ID)


def _list(answer: Message, name: str, limit: int, *, cut: bool = False) -> list[Any]:
    """The list `name`, empty where it is missing; one above `limit` is cut or refused."""
    value = answer.get(name)
    if value is None:
        return []
    if not isinstance(value, list):
        raise InvalidValueError(f"its {name!r} is no list")
    if len(value) > limit and not cut:
        raise InvalidValueError(f"its {name!r} holds {len(value)} entries, more than {limit}")
    return value[:limit]


def _objects(answer: Message, name: str, limit: int, *, cut: bool = False) -> list[Message]:
    entries = _list(answer, name, limit, cut=cut)
    if not all(isinstance(entry, dict) for entry in entries):
        raise InvalidValueError(f"its {name!r} holds something that is no object")
    return entries


def _hostname(answer: Message) -> str:
    return _or_default(hostname_untrusted, answer.get("hostname"), "")


def _handshake_request(entry: Any) -> HandshakeRequest:
    justification = entry.get("justification") or ""
    if not isinstance(justification, str) or len(justification.encode()) > MAX_JUSTIFICATION_BYTES:
        raise InvalidValueError("a handshake request has an unusable justification")
    return HandshakeRequest(_node_id(entry, "from_node_id"), justification, id_untrusted(entry.get("timestamp")))


def _handshake_response(entry: Any) -> HandshakeResponse:
    return HandshakeResponse(
        _node_id(entry, "from_node_id"), _flag(entry, "accept"), id_untrusted(entry.get("timestamp"))
    )


def _good_entries(parse: Callable[[Any], T], entries: Iterable[Any]) -> Iterable[T]:
    for entry in entries:
        if isinstance(entry, dict) and (record := _or_default(parse, entry, None)) is not None:
            yield record


def _or_default(parse: Callable[[Any], T], value: object, default: T) -> T:
    try:
        return parse(value)
    except InvalidValueError:
        return default
