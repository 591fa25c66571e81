"""Fuzz targets of the plugins, one entry of `TARGETS` each: what peers send to the ports plugins listen on."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from typing import Any

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from pilot.coreapi import Addr, PeerNotFoundError, PilotError, RegistryError, ResetError
from pilot.plugins.nameserver import NameClient, NameServerService
from pilot.plugins.nameserver.lines import (
    Request,
    address_answer_untrusted,
    net_id_answer_untrusted,
    parse_records_untrusted,
    parse_services_untrusted,
)
from pilot.plugins.nameserver.records import MAX_RECORDS_PER_NODE
from pilot.plugins.secure import Authentication, SecureChannel
from pilot.plugins.secure.handshake import derive_untrusted
from pilot.plugins.secure.records import Role, Sealer
from tests.fuzz.driver import Target, chunks, joined
from tests.fuzz.registry import loop
from tests.plugins.fakes import Identity, Network, stream_pair

# ---- secure channel -------------------------------------------------------------------------------------------------

KEY = bytes(range(32))
PIECES = [b"hello", b"", b"x" * 300, b"world", bytes(7)]
NOW = 1_800_000_000
OURS = X25519PrivateKey.from_private_bytes(bytes(range(32, 64)))
PEER_HELLO = X25519PrivateKey.from_private_bytes(bytes(range(64, 96))).public_key().public_bytes_raw()


@functools.cache
def records() -> list[bytes]:
    """What an honest server sends."""
    sealer = Sealer(KEY, Role.SERVER)
    return [sealer.seal(piece) for piece in PIECES]


@functools.cache
def frame() -> bytes:
    """How node 2 proves itself in a channel where it uses `PEER_HELLO`."""
    proof = Authentication(Identity(2), peer_key=bytes(32), wall=lambda: NOW, nonce=lambda: bytes(16))
    return proof.frame(PEER_HELLO)


def run_secure(data: bytes) -> None:
    """A hello, a proof, and records: nothing comes out but what the key's owner sealed, in its order."""
    hello, proof, *rest = [*chunks(data), b"", b""]
    with contextlib.suppress(PilotError):
        derive_untrusted(OURS, hello)
    loop().run_until_complete(judged(proof))
    got = loop().run_until_complete(received(b"".join(rest), 1 + len(data) % 97))
    assert b"".join(PIECES).startswith(got)


async def judged(proof: bytes) -> None:
    auth = Authentication(Identity(1), peer_key=Identity(2).public_key, wall=lambda: NOW)
    try:
        assert await auth.check_untrusted(proof, PEER_HELLO, Addr(0, 2)) == 2
    except PilotError:
        assert proof != frame()
    else:
        assert proof == frame()


async def received(data: bytes, step: int) -> bytes:
    """What a client reads when the server's end sends `data`, in pieces, and finishes."""
    ours, theirs = stream_pair(capacity=step)
    channel = SecureChannel(ours, KEY, Role.CLIENT, 1000)

    async def send() -> None:
        with contextlib.suppress(PilotError):
            await theirs.write(data)
            await theirs.close()

    sending = asyncio.ensure_future(send())
    got = bytearray()
    with contextlib.suppress(ResetError):
        async for chunk in channel:
            got += chunk
    await sending
    return bytes(got)


def secure_seeds() -> list[bytes]:
    honest = records()
    twice = [honest[0], honest[0]]
    own = Sealer(KEY, Role.CLIENT).seal(b"reflected")
    streams = [honest, honest[:2], twice, honest[1:], [own], [b"\x00\x00\x00\x0c" + bytes(12)], [b"\xff\xff\xff\xff"]]
    return [joined([PEER_HELLO, frame(), *stream]) for stream in streams] + [joined([bytes(32), bytes(92)])]


# ---- name server ----------------------------------------------------------------------------------------------------

QUESTIONS = [
    Request("QUERY", "A", name="web1"),
    Request("QUERY", "N", name="lab"),
    Request("QUERY", "S", net_id=0, port=80),
    Request("REGISTER", "N", name="lab", net_id=5),
]


def run_names(data: bytes) -> None:
    """Requests of strangers: one answer each, in its limits; the same bytes as answers of a lying server."""
    server = NameServerService(clock=lambda: 0.0)
    for number, chunk in enumerate(chunks(data)):
        answer = server.answer_untrusted(chunk, 1 + number % 2)
        assert answer.split(maxsplit=1)[0] in ("OK", "A", "N", "S", "ERR")
        assert all(line.isprintable() for line in answer.split("\n"))
        assert len(answer) < 1000 or answer.startswith("S ")
        for question in QUESTIONS:
            parse: Any = parse_services_untrusted if question.kind == "S" else parse_records_untrusted
            with contextlib.suppress(RegistryError, PeerNotFoundError):
                for value in parse(chunk, question):
                    if question.kind == "A":
                        address_answer_untrusted(value)
                    elif question.kind == "N":
                        assert 0 <= net_id_answer_untrusted(value) <= 65535
    assert len(server) <= 3 * 2 * MAX_RECORDS_PER_NODE
    loop().run_until_complete(asked(data))


async def asked(data: bytes) -> None:
    """A client whose server answers with `data`."""
    network = Network(capacity=1000)
    listener = await network.deps(1).streams.listen(53)
    client = NameClient(network.deps(2).streams, Addr(0, 1))
    asking = asyncio.ensure_future(client.query_s(0, 80))
    stream = await listener.accept()
    with contextlib.suppress(PilotError):
        await stream.read()
        await stream.write(data)
        await stream.close()
    with contextlib.suppress(RegistryError, PeerNotFoundError):
        await asking


def names_seeds() -> list[bytes]:
    lines = [
        "QUERY A web1", "query n lab", "QUERY S 0 80", "REGISTER A web1 0:0000.0000.0001", "REGISTER N lab 5",
        "REGISTER S web1 0:0000.0000.0001 0 80", "REGISTER S web2 0:0000.0000.0002 0 80", "A web1 0:0000.0000.0005",
        "N lab 5", "S web1 0:0000.0000.0005 80\nS web2 0:0000.0000.0006 80", "S", "OK", 'ERR name "web1" not found',
        'ERR network "lab" not found', "ERR too many records", "QUERY", "QUERY X y", "QUERY A a b",
    ]  # fmt: skip
    parts = [line.encode() for line in lines]
    return [joined(parts), joined(parts[3:7] + parts[:3]), *(joined([part]) for part in parts), parts[9]]


TARGETS = (
    Target("secure", "hello, proof and records of a secure channel", run_secure, secure_seeds),
    Target("names", "requests to and answers of a name server", run_names, names_seeds),
)
