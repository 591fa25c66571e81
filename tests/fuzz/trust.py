"""Fuzz targets of trust: messages to the handshake port, signed lists of trusted agents, answers of their servers."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import json
from collections.abc import Iterable

import httpx
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pilot.coreapi import Addr, InvalidValueError, PilotError
from pilot.plugins.handshake.message import Message, ObjectReader, encode, parse_untrusted
from pilot.plugins.handshake.records import MAX_PENDING_PER_SOURCE
from pilot.plugins.trustedagents.document import AgentList, signed_bytes_untrusted
from pilot.plugins.trustedagents.document import parse_untrusted as parse_list_untrusted
from pilot.plugins.trustedagents.sources import UrlSource
from tests.fuzz.driver import Target, chunks, joined
from tests.fuzz.registry import loop
from tests.plugins.handshake.helpers import Stage, message

NOW = 1_800_000_000

# ---- handshake ------------------------------------------------------------------------------------------------------


def run_handshake(data: bytes) -> None:
    """Streams to port 444 of node 2, from node 1, a fellow of its network: only who signed is trusted."""
    for chunk in chunks(data):
        try_reader(chunk)
    loop().run_until_complete(received(chunks(data), 1 + len(data) % 97))


def try_reader(data: bytes) -> None:
    """In two pieces or in one, the end of an object is found where JSON has it, or not at all."""
    results = []
    for edge in (0, len(data) // 2):
        reader = ObjectReader()
        try:
            results.append(reader.feed_untrusted(data[:edge]) or reader.feed_untrusted(data[edge:]))
        except InvalidValueError:
            results.append(None)
    with contextlib.suppress(InvalidValueError):
        parsed = parse_untrusted(data)
        assert isinstance(parsed, Message)
        assert results[0] == data


async def received(pieces: Iterable[bytes], step: int) -> None:
    stage = Stage()
    stage.registry.add(1, 5)
    async with stage.service(2, networks=(5,), wall=lambda: NOW) as service:
        stranger = stage.network.deps(1).streams
        for piece in pieces:
            stream = await stranger.dial(Addr(0, 2), 444)
            with contextlib.suppress(PilotError):
                for at in range(0, len(piece), max(step, len(piece) // 20)):
                    await stream.write(piece[at : at + max(step, len(piece) // 20)])
                    await asyncio.sleep(0)
                await stream.close()
            await quiet(service)
        assert {record.node_id for record in service.trusted()} <= {1}
        assert len(service.pending()) <= MAX_PENDING_PER_SOURCE
        assert all(request.justification.isprintable() for request in service.pending())
        stream = await stranger.dial(Addr(0, 2), 444)
        await stream.write(message(1, 2, timestamp=NOW, justification="still alive"))
        await stream.close()
        await quiet(service)
        assert service.is_trusted_peer(1)


async def quiet(service: object) -> None:
    """Until no stream is being read."""
    await asyncio.sleep(0)
    while service._life._serving:  # type: ignore[attr-defined]  # noqa: ASYNC110
        await asyncio.sleep(0)


@functools.cache
def handshake_seeds() -> list[bytes]:
    kinds = ["handshake_request", "handshake_accept", "handshake_reject", "handshake_revoke", "dance"]
    honest = [message(1, 2, kind, timestamp=NOW, justification="hi \N{BULLET} \\ }") for kind in kinds]
    unsigned = encode(Message("handshake_revoke", 1, b"", b"", NOW))
    forged = message(1, 2, key_of=9, timestamp=NOW)
    others = [message(node, 2, timestamp=NOW) for node in range(100, 120)]
    return [*(joined([one]) for one in (*honest, unsigned, forged, b"{}", b"")), joined(honest), joined(others)]


# ---- trusted agents -------------------------------------------------------------------------------------------------

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
VERIFIER = KEY.public_key().public_bytes_raw()
LISTS = [
    '[{"node_id":7,"hostname":"desk","x":"<\\"}"}]',
    f'[{{"hostname":"pinned","node_id":8,"public_key":"{base64.b64encode(bytes(32)).decode()}"}}]',
    "[]",
    "[7]",
]


def run_agents(data: bytes) -> None:
    """A document: what is accepted is what the key has signed. The same bytes as an HTTPS server's answer."""
    accepted: AgentList | None = None
    with contextlib.suppress(InvalidValueError):
        signed = signed_bytes_untrusted(data)
        assert json.loads(signed)["agents"] == json.loads(data)["agents"]
    with contextlib.suppress(InvalidValueError):
        accepted = parse_list_untrusted(data, VERIFIER)
    if accepted is not None:
        assert [agent.node_id for agent in accepted.agents()] in ([7], [8], [])
    loop().run_until_complete(fetched(data))


class Body(httpx.AsyncByteStream):
    def __init__(self, data: bytes) -> None:
        self.data = data

    async def __aiter__(self):  # type: ignore[no-untyped-def]
        yield self.data


async def fetched(data: bytes) -> None:
    """The first line is a status and where to go, the rest the body."""
    line, _, body = data.partition(b"\n")
    status = 100 + int.from_bytes(line[:2], "big") % 500
    headers = [(b"Location", line)]

    def answer(request: httpx.Request) -> httpx.Response:
        assert request.url.scheme == "https"
        return httpx.Response(status, headers=headers, stream=Body(body))

    source = UrlSource("https://lists.example/", transport=httpx.MockTransport(answer))
    with contextlib.suppress(PilotError):
        assert await source.fetch() == body
        assert status == 200


def agents_seeds() -> list[bytes]:
    documents = []
    for text in LISTS:
        compact = text.replace("<", "\\u003c")
        signature = base64.b64encode(KEY.sign(f'{{"agents":{compact}}}'.encode())).decode()
        documents.append(f'{{"agents": {text}, "signature":\n "{signature}"}}'.encode())
    return [*documents, b"\x00\x64\n" + documents[0], b"https://lists.example/next\n", b"http://lists.example/\n", b""]


TARGETS = (
    Target("handshake", "messages to the handshake port", run_handshake, handshake_seeds),
    Target("agents", "signed lists of trusted agents and their servers", run_agents, agents_seeds),
)
