"""Fuzz targets of the registry's two ends: frames, JSON answers, JSON requests."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import copy
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pilot._fast.addr import Addr
from pilot._fast.errors import InvalidValueError
from pilot.node.directory import answers
from pilot.node.directory.client import _GarbageError, _NoAnswerError, _Wire
from pilot.node.directory.quiet import MAX_QUOTED_CHARS, clip_untrusted
from pilot.protocol import registry as wire
from pilot.rendezvous.registry_port import RegistryPort
from tests.fuzz.driver import Target, chunks, joined
from tests.rendezvous.helpers import ADMIN_TOKEN, LOCAL, Identity, World

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "registry.json").read_text())["exchanges"]
KEY = "A" * 43 + "="

ANSWERS: dict[str, Callable[[wire.Message], object]] = {
    "register": answers.registration_untrusted,
    "resolve": lambda answer: answers.location_untrusted(answer, 2),
    "lookup": lambda answer: answers.node_record_untrusted(answer, 2),
    "resolve_hostname": answers.found_name_untrusted,
    "list_nodes": lambda answer: answers.members_untrusted(answer, 3),
    "list_networks": answers.networks_untrusted,
    "join_network": lambda answer: answers.joined_untrusted(answer, Addr(1, 2)),
    "get_network_policy": answers.network_limits_untrusted,
    "get_expr_policy": answers.expr_policy_untrusted,
    "members": answers.network_members_untrusted,
    "poll_handshakes": answers.mailbox_untrusted,
    "beacon_list": answers.beacons_untrusted,
    "check_trust": answers.trusted_untrusted,
    "set_tags": answers.tags_answer_untrusted,
}
KINDS = list(ANSWERS)

VALUES: list[Any] = [
    None, True, False, 0, 1, 2, 3, -1, 0.5, 1e308, 65535, 65536, 2**32 - 2, 2**32 - 1, 2**53, 2**64, "", "a", "bob",
    "x" * 300, "\ud800", "\x00", "ä", "0:0000.0000.0002", "1:0001.0000.0002", "192.0.2.1:4000", "[::1]:4000",
    "[::]:0", "h:99999", KEY, "AAAA", "never", "2027-01-01T00:00:00Z", "2027-01-01", "1h30m", "999999999h", "30s",
    [], [1], [2, 65536], ["web", "#db"], ["A B"], [{}], [[[]]], {}, {"version": 1, "rules": [{}]}, {"version": "1"},
    {"links": 5, "cycle": "1h", "prune": 1, "fill": 1}, {"links": 10**9}, ["10.0.0.1:4000"], ["junk"] * 40,
    '{"version":1,"rules":[1]}', "{" * 2000, "[" * 5000, ADMIN_TOKEN, "token", "invite", "open", "admin", "sekret",
]  # fmt: skip
"""What fields are set to: edges of every type the protocol uses."""


@functools.cache
def originals(side: str) -> list[wire.Message]:
    """The captured requests or answers."""
    found = [exchange[side] for exchange in VECTORS if exchange.get(side)]
    if side == "request":
        found += [{"type": kind, "node_id": 1, "requester_id": 1, "network_id": 1} for kind in wire.CHALLENGES]
        found += [
            {"type": "create_network", "name": "fuzz", "join_rule": "token", "token": "sekret", "node_id": 1,
             "rules": {"links": 5, "cycle": "1h"}, "expr_policy": {"version": 1, "rules": [{}]}, "enterprise": True},
            {"type": "set_network_policy", "network_id": 1, "allowed_ports": [80, 443], "max_members": 9},
            {"type": "set_key_expiry", "node_id": 1, "expires_at": "2027-01-01T00:00:00Z"},
            {"type": "register", "listen_addr": "[2001:db8::1]:4000", "public_key": KEY, "version": "1.18.0",
             "lan_addrs": ["10.0.0.1:4000", 7], "hostname": "fuzz"},
            {"type": "beacon_register", "beacon_id": 1, "addr": "192.0.2.1:9001"},
        ]  # fmt: skip
    else:
        found += [{"type": "check_trust_ok", "trusted": True}, {"type": "error", "error": "no\nway", "message": 7}]
        found += [{"type": "get_network_policy_ok", "allowed_ports": [80, 443], "max_members": 9, "description": "x"}]
        found += [{"type": "get_expr_policy_ok", "expr_policy": {"version": 1, "rules": [{}]}}]
        found += [{"type": "members_ok", "nodes": [{"node_id": 2, "member_tags": ["a"], "tags": ["b"]}]}]
        found += [{"type": "list_networks_ok", "networks": [{"id": 1, "name": "open1", "join_rule": "open"}]}]
    return found


@functools.cache
def fields(side: str) -> list[str]:
    """Every field name of the captured messages, nested ones included."""
    names: set[str] = set()

    def walk(value: object) -> None:
        if isinstance(value, dict):
            names.update(value)
        for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            walk(inner)

    walk(originals(side))
    return sorted(names)


def message(chunk: bytes, side: str) -> wire.Message | None:
    """A JSON body as it is, or (first byte below 0x20) a captured message with fields set: index, field, value ..."""
    if not chunk or chunk[0] >= 0x20:
        try:
            return wire.decode_body_untrusted(chunk)
        except InvalidValueError:
            return None
    known, names = originals(side), fields(side)
    made = copy.deepcopy(known[int.from_bytes(chunk[1:3], "big") % len(known)])
    for at in range(3, len(chunk) - 1, 2):
        targets = [made, *(inner for value in made.values() for inner in objects(value))]
        value = copy.deepcopy(VALUES[chunk[at + 1] % len(VALUES)])
        targets[chunk[at] // 64 % len(targets)][names[chunk[at] % len(names)]] = value
    return made


def objects(value: object) -> list[dict[str, Any]]:
    return [inner for inner in value if isinstance(inner, dict)] if isinstance(value, list) else []


def edits(side: str) -> list[bytes]:
    """Seeds for `message`: every captured one as JSON and, by its number, with two fields set."""
    bodies = [json.dumps(known).encode() for known in originals(side)]
    numbered = [b"\x00" + n.to_bytes(2, "big") + bytes([n, n + 3, n + 64, n + 7]) for n in range(len(bodies))]
    return [*bodies, *numbered]


# ---- answers --------------------------------------------------------------------------------------------------------


def run_answers(data: bytes) -> None:
    """Answers of a lying registry, one parser after the other: understood or refused, and harmless to print."""
    for number, chunk in enumerate(chunks(data)):
        answer = message(chunk, "response")
        if answer is None:
            continue
        refusal = wire.reply_error_untrusted(answer)
        if refusal is not None:
            shown = clip_untrusted(refusal)
            assert shown.isprintable()
            assert len(shown) <= MAX_QUOTED_CHARS + 3
        kind = str(answer.get("type", "")).removesuffix("_ok")
        parsers = [ANSWERS[kind]] if kind in ANSWERS else [ANSWERS[KINDS[number % len(KINDS)]]]
        for parse in parsers:
            with contextlib.suppress(InvalidValueError):
                repr(parse(answer))


def answers_seeds() -> list[bytes]:
    return [joined([part]) for part in edits("response")]


def run_client(data: bytes) -> None:
    """What a registry sends, in any pieces, to the client's connection: one whole answer, or the connection ends."""
    for chunk in chunks(data):
        wires = _Wire(4096)
        transport = Transport()
        wires.connection_made(transport)
        waiting: asyncio.Future[bytes] = loop().create_future()
        wires._answer = waiting
        step = 1 + len(chunk) % 9
        for at in range(0, len(chunk), step):
            wires.data_received(chunk[at : at + step])
        if not waiting.done():
            assert not wires.closed
            assert len(wires._buffer) <= 4 + 4096
            wires.connection_lost(None)
        error = waiting.exception()
        if error is None:
            assert waiting.result() == chunk[4 : 4 + len(waiting.result())]
            assert int.from_bytes(chunk[:4], "big") == len(waiting.result())
            with contextlib.suppress(InvalidValueError):
                wire.decode_body_untrusted(waiting.result())
        else:
            assert isinstance(error, (_GarbageError, _NoAnswerError)), error
            assert wires.closed


def client_seeds() -> list[bytes]:
    frames = [bytes.fromhex(exchange["response_hex"]) for exchange in VECTORS if exchange.get("response_hex")]
    return [
        *(joined([frame]) for frame in frames[::5]),
        joined(frames[:12]),
        joined([b"\x00\x00\x10\x01x", b"PILO\x01"]),
    ]


class Transport(asyncio.Transport):
    """A transport that keeps what is written and notes when it is ended."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.ended = False

    def write(self, data: Any) -> None:
        self.written += data

    def abort(self) -> None:
        self.ended = True

    def close(self) -> None:
        self.ended = True

    def is_closing(self) -> bool:
        return self.ended


@functools.cache
def loop() -> asyncio.AbstractEventLoop:
    """One loop for all inputs; nothing of one input is left on it."""
    made = asyncio.SelectorEventLoop()
    atexit.register(made.close)
    return made


# ---- requests -------------------------------------------------------------------------------------------------------


class Registered(Identity):
    """A node whose key is the same in every run."""

    def __init__(self, number: int) -> None:
        self.key = Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32)
        self.text = wire.public_key_text(self.key.public_key().public_bytes_raw())
        self.node_id = number


@functools.cache
def registrations() -> list[tuple[Registered, wire.Message]]:
    nodes = [Registered(number) for number in (1, 2, 3)]
    return [(node, node.registration()) for node in nodes]


def populated() -> World:
    """A registry with three nodes and two networks."""
    world = World()
    for node, registration in registrations():
        assert world.ok(registration)["node_id"] == node.node_id
    world.admin("create_network", name="open1", join_rule="open", node_id=1, enterprise=True)
    world.admin("create_network", name="tok1", join_rule="token", token="sekret", node_id=2)
    return world


def run_requests(data: bytes) -> None:
    """Requests of strangers, of nodes and of an admin: always one answer, never an error of our own making."""
    world = populated()
    signers = [node for node, _ in registrations()]
    for number, chunk in enumerate(chunks(data)):
        request = message(chunk, "request")
        if request is None:
            continue
        if number % 4 in (0, 1) and isinstance(request.get("type"), str):
            if request["type"] in wire.CHALLENGES:
                request["signature"] = sign(signers[number % 3], request)
        elif number % 4 == 2:
            request["admin_token"] = ADMIN_TOKEN
        reply = world.send(request, LOCAL)
        assert reply["type"] in ("error", f"{request.get('type')}_ok"), reply
        assert reply.get("error") != "request failed", request
        world.clock.now += 1.0
    assert len(world.registry.state.nodes) <= 3 + len(data)


def sign(node: Registered, request: wire.Message) -> str:
    try:
        return wire.sign(node.key, wire.challenge_text(request))
    except UnicodeEncodeError:
        return KEY


def requests_seeds() -> list[bytes]:
    # The place of a request decides who signs it: each once in every place.
    parts = edits("request")
    return [joined([b" "] * place + [part]) for part in parts for place in (0, 1, 2)] + [joined(parts[:40])]


def run_server(data: bytes) -> None:
    """Bytes of a client into a registry connection: whole answers in order, then the end."""
    world = populated()
    written = loop().run_until_complete(conversation(world, data))
    while written:
        length = wire.frame_length_untrusted(bytes(written[:4]))
        reply = wire.decode_body_untrusted(bytes(written[4 : 4 + length]))
        assert reply.get("error", reply["type"]) != "request failed"
        del written[: 4 + length]


async def conversation(world: World, data: bytes) -> bytearray:
    """What the server writes to a client that sends `data` in pieces and hangs up."""
    await world.store.load()
    port = RegistryPort(world.registry, world.journal)
    reader = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(reader)
    transport = Transport()
    protocol.connection_made(transport)
    writer = asyncio.StreamWriter(transport, protocol, reader, asyncio.get_running_loop())
    reader.feed_data(data[: len(data) // 2])
    task = asyncio.ensure_future(port._converse(reader, writer, LOCAL))
    await asyncio.sleep(0)
    reader.feed_data(data[len(data) // 2 :])
    reader.feed_eof()
    with contextlib.suppress(InvalidValueError, EOFError):
        await asyncio.wait_for(task, 10.0)
    writer.close()
    await world.store.close()
    return transport.written


def server_seeds() -> list[bytes]:
    frames = [bytes.fromhex(exchange["request_hex"]) for exchange in VECTORS]
    preamble = b"PILO\x01\x00\x00\x10" + bytes(16)
    return [*frames[::6], b"".join(frames[:10]), preamble, b"\x00\x10\x00\x01", b"\x00\x00\x00\x02{}" * 5]


TARGETS = (
    Target("answers", "answers of a lying registry", run_answers, answers_seeds),
    Target("client", "a registry connection, client side", run_client, client_seeds),
    Target("requests", "requests to our registry", run_requests, requests_seeds),
    Target("server", "a registry connection, server side", run_server, server_seeds),
)
