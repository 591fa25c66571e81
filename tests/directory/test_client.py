"""The connection pool against a registry that misbehaves in every way it can (L8)."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
import ssl
import struct

import pytest

from pilot._fast.errors import ClosedError, InvalidValueError, RegistryError
from pilot.node.directory import ClientOptions, RegistryClient, RegistryRefusedError, RegistryTls
from pilot.node.directory import client as client_module
from pilot.rendezvous import Limits, Rendezvous, RendezvousConfig, TlsConfig
from tests.directory.fake import QUICK, ScriptedRegistry, error, frame, ok

PING = {"type": "ping"}
PONG = ok("ping", n=1)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


# --------------------------------------------------------------------------------------------------- pool


async def test_connections_are_opened_when_needed_and_rotate_first_in_first_out(fake: ScriptedRegistry) -> None:
    fake.answers["ping"] = PONG
    client = fake.client()
    assert await client.request(PING) == PONG
    assert len(fake.connections) == 1
    for _ in range(11):
        await client.request(PING)
    assert fake.used == [0, 1, 2, 3] * 3
    await client.close()


async def test_one_request_at_a_time_per_connection(fake: ScriptedRegistry) -> None:
    gate = asyncio.Event()

    async def wait(_: object) -> dict[str, object]:
        await gate.wait()
        return PONG

    fake.answers["ping"] = wait
    client = fake.client()
    tasks = [asyncio.create_task(client.request(PING)) for _ in range(9)]
    await fake.asked("ping", 4)
    await asyncio.sleep(0.02)
    assert len(fake.requests) == 4
    gate.set()
    assert await asyncio.gather(*tasks) == [PONG] * 9
    assert len(fake.connections) == 4
    await client.close()


async def test_too_many_waiting_requests_are_refused_at_once(
    fake: ScriptedRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "MAX_WAITING", 3)
    fake.answers["ping"] = None
    client = fake.client(dataclasses.replace(QUICK, pool_size=1))
    tasks = [asyncio.create_task(client.request(PING)) for _ in range(3)]
    await fake.asked("ping")
    with pytest.raises(RegistryError, match="3 requests wait"):
        await client.request(PING)
    await client.close()
    for task in tasks:
        with pytest.raises(ClosedError):
            await task


# ---------------------------------------------------------------------------------------------- transport


async def test_a_connection_that_died_while_idle_is_replaced_unnoticed(fake: ScriptedRegistry) -> None:
    fake.answers["ping"] = PONG
    client = fake.client(dataclasses.replace(QUICK, pool_size=1))
    await client.request(PING)
    fake.hang_up()
    await asyncio.sleep(0.02)
    assert await client.request(PING) == PONG
    assert (len(fake.connections), len(fake.requests)) == (2, 2)
    await client.close()


async def test_a_request_without_an_answer_is_repeated_once(fake: ScriptedRegistry) -> None:
    fake.answers["ping"] = [ConnectionError(), PONG]
    client = fake.client()
    assert await client.request(PING) == PONG
    assert fake.used == [0, 1]
    await client.close()


async def test_a_reconnect_repeats_requests_under_way_and_opens_new_connections(fake: ScriptedRegistry) -> None:
    """A connection from a former address is silent: nobody waits for its time limit, which is half a minute."""
    fake.answers["ping"] = [None, PONG]
    client = fake.client()
    stuck = asyncio.create_task(client.request(PING))
    await fake.asked("ping")
    client.reconnect()
    assert await stuck == PONG
    assert fake.used == [0, 1]
    for _ in range(3):
        await client.request(PING)
    client.reconnect()
    await client.request(PING)
    assert fake.used == [0, 1, 2, 3, 4, 5]
    await client.close()


async def test_a_second_failure_is_reported(fake: ScriptedRegistry) -> None:
    fake.answers["ping"] = ConnectionError()
    client = fake.client()
    with pytest.raises(RegistryError, match=rf"registry 127.0.0.1:{fake.port} gave no answer to 'ping'"):
        await client.request(PING)
    assert len(fake.requests) == 2
    fake.answers["ping"] = PONG
    assert await client.request(PING) == PONG
    await client.close()


async def test_silence_is_a_transport_failure(fake: ScriptedRegistry) -> None:
    fake.answers["ping"] = None
    client = fake.client(dataclasses.replace(QUICK, answer_timeout=0.3))
    with pytest.raises(RegistryError, match=r"nothing came within 0\.3 s"):
        await client.request(PING)
    assert len(fake.requests) == 2
    await client.close()


@pytest.mark.parametrize("half", [b"\0", b"\0\0\0\5", frame(PONG)[:-1]], ids=["length", "no body", "all but a byte"])
async def test_half_a_frame_never_becomes_an_answer(fake: ScriptedRegistry, half: bytes) -> None:
    fake.answers["ping"] = half
    client = fake.client(dataclasses.replace(QUICK, answer_timeout=0.02))
    with pytest.raises(RegistryError, match="gave no answer"):
        await client.request(PING)
    await client.close()


async def test_an_answer_in_single_bytes(fake: ScriptedRegistry) -> None:
    async def dribble(_: object) -> None:
        for byte in frame(PONG):
            fake.connections[-1].write(bytes([byte]))
            await asyncio.sleep(0)

    fake.answers["ping"] = dribble
    client = fake.client()
    assert await client.request(PING) == PONG
    await client.close()


async def test_an_unreachable_registry_is_named_with_advice() -> None:
    port = free_port()
    client = RegistryClient("127.0.0.1", port, options=QUICK)
    with pytest.raises(RegistryError, match=rf"registry 127.0.0.1:{port} cannot be reached \(.*; 3 attempts\): check"):
        await client.request(PING)
    await client.close()


async def test_the_dial_is_repeated_until_the_registry_is_there() -> None:
    fake = ScriptedRegistry()
    fake.port = free_port()
    fake.answers["ping"] = PONG
    client = fake.client(dataclasses.replace(QUICK, dial_pauses=(0.02,) * 200))
    task = asyncio.create_task(client.request(PING))
    await asyncio.sleep(0.05)
    assert not task.done()
    async with fake:
        assert await task == PONG
        await client.close()


@pytest.mark.parametrize("host", ["a" * 70, "\0"])
async def test_names_that_do_not_resolve(host: str) -> None:
    client = RegistryClient(host, 9000, options=dataclasses.replace(QUICK, dial_pauses=()))
    with pytest.raises(RegistryError, match="cannot be reached"):
        await client.connect()
    await client.close()


@pytest.mark.parametrize(("host", "port"), [("", 9000), ("localhost", 0), ("localhost", 65536), ("localhost", -1)])
async def test_addresses_that_cannot_be(host: str, port: int) -> None:
    with pytest.raises(InvalidValueError, match="needs a host and a port"):
        RegistryClient(host, port)


def test_ipv6_addresses_are_written_in_brackets() -> None:
    assert RegistryClient("::1", 9000).address == "[::1]:9000"


@pytest.mark.parametrize("options", [{"pool_size": 0}, {"pool_size": 65}, {"max_answer_bytes": 0x50494C54}])
def test_options_have_bounds(options: dict[str, int]) -> None:
    with pytest.raises(InvalidValueError, match="a registry client needs"):
        ClientOptions(**options)


async def test_connect_opens_one_connection_with_its_own_number_of_attempts(fake: ScriptedRegistry) -> None:
    fake.answers["ping"] = PONG
    client = fake.client()
    await client.connect(1)
    await fake.connected(1)
    await client.close()
    unreachable = RegistryClient("127.0.0.1", free_port(), options=QUICK)
    with pytest.raises(RegistryError, match=r"\(.*; 1 attempts\)"):
        await unreachable.connect(1)
    await unreachable.close()


# ------------------------------------------------------------------------------------------ hostile answers

GARBAGE = {
    "wrong length": b"\0\0\0\2" + frame(PONG)[4:],
    "length over the cap": struct.pack(">I", 4 * 1024 * 1024 + 1),
    "greatest length": b"\xff\xff\xff\xff",
    "binary preamble": b"PILT\x01",
    "a TLS alert": b"\x15\x03\x03\x00\x02\x02\x32",
    "HTTP": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "empty body": frame(b""),
    "no JSON": frame(b"pong"),
    "bad UTF-8": frame(b'{"type": "\xff"}'),
    "no object": frame([1]),
    "null": frame(None),
    "deep": frame(b"[" * 100_000),
    "deep inside": frame(b'{"type":"ping_ok","x":' + b"[" * 50_000 + b"]" * 50_000 + b"}"),
    "NaN": frame(b'{"type":"ping_ok","n":NaN}'),
    "a number of 5000 digits": frame(b'{"type":"ping_ok","n":' + b"9" * 5000 + b"}"),
    "no type": frame({"node_id": 1}),
    "nothing": frame({}),
    "two answers": frame(PONG) + frame(PONG),
    "one byte too many": frame(PONG) + b"\0",
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
async def test_garbage_is_a_registry_error_and_ends_the_connection(fake: ScriptedRegistry, garbage: bytes) -> None:
    fake.answers["ping"] = [garbage, PONG]
    client = fake.client(dataclasses.replace(QUICK, pool_size=1))
    with pytest.raises(RegistryError, match=rf"registry 127.0.0.1:{fake.port} gave an unusable answer to 'ping'"):
        await client.request(PING)
    assert len(fake.requests) == 1, "garbage is not worth a repeat"
    assert await client.request(PING) == PONG
    assert fake.used == [0, 1]
    await client.close()


async def test_the_size_limit_counts(fake: ScriptedRegistry) -> None:
    answer = ok("ping", fill="x" * 1000)
    fake.answers["ping"] = answer
    size = len(frame(answer)) - 4
    for limit, fits in ((size, True), (size - 1, False)):
        client = fake.client(dataclasses.replace(QUICK, max_answer_bytes=limit))
        if fits:
            assert await client.request(PING) == answer
        else:
            with pytest.raises(RegistryError, match="over the limit"):
                await client.request(PING)
        await client.close()


async def test_bytes_nobody_asked_for_end_the_connection(fake: ScriptedRegistry) -> None:
    fake.answers["ping"] = [PONG, ok("ping", n=2)]
    client = fake.client(dataclasses.replace(QUICK, pool_size=1))
    await client.request(PING)
    fake.connections[0].write(frame(ok("ping", n="a lie")))
    await asyncio.sleep(0.02)
    assert (await client.request(PING))["n"] == 2
    assert fake.used == [0, 1]
    await client.close()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("node 5: node not found", "node 5: node not found"),
        ("a\nb\x1b[31mc\u202e", "a?b?[31mc?"),
        ("x" * 5000, "x" * 200 + "..."),
        ("\ud800", "\ufffd"),
        (7, "7"),
        (None, "None"),
        ({"a": [1]}, "{'a': [1]}"),
    ],
)
async def test_refusals_carry_the_words_of_the_registry_made_harmless(
    fake: ScriptedRegistry, text: object, shown: str
) -> None:
    fake.answers["ping"] = {"type": "ping_ok", "error": text}
    client = fake.client(dataclasses.replace(QUICK, pool_size=1))
    with pytest.raises(RegistryRefusedError) as caught:
        await client.request(PING)
    assert caught.value.text == shown
    assert str(caught.value) == f"registry 127.0.0.1:{fake.port} refused 'ping': {shown}"
    fake.answers["ping"] = PONG
    await client.request(PING)
    assert len(fake.connections) == 1, "a refusal is an answer: the connection is kept"
    await client.close()


# ---------------------------------------------------------------------------------- cancellation and close


async def test_a_cancelled_request_leaves_no_connection_out_of_step(fake: ScriptedRegistry) -> None:
    release = asyncio.Event()

    async def late(request: dict[str, object]) -> dict[str, object]:
        if request["n"] == 0:
            await release.wait()
        return ok("ping", n=request["n"])

    fake.answers["ping"] = late
    client = fake.client(dataclasses.replace(QUICK, pool_size=1))
    task = asyncio.create_task(client.request({**PING, "n": 0}))
    await fake.asked("ping")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    release.set()
    for n in (1, 2, 3):
        assert (await client.request({**PING, "n": n}))["n"] == n
    assert fake.used == [0, 1, 1, 1]
    await client.close()


async def test_cancelling_a_waiting_request_costs_no_connection(fake: ScriptedRegistry) -> None:
    gate = asyncio.Event()

    async def wait(_: object) -> dict[str, object]:
        await gate.wait()
        return PONG

    fake.answers["ping"] = wait
    client = fake.client(dataclasses.replace(QUICK, pool_size=1))
    first, second, third = (asyncio.create_task(client.request(PING)) for _ in range(3))
    await fake.asked("ping")
    second.cancel()
    gate.set()
    assert await first == await third == PONG
    assert second.cancelled()
    assert len(fake.connections) == 1
    await client.close()


async def test_cancelling_a_dial_gives_the_place_back(fake: ScriptedRegistry) -> None:
    client = RegistryClient(
        "127.0.0.1", free_port(), options=dataclasses.replace(QUICK, pool_size=1, dial_pauses=(60,))
    )
    for _ in range(3):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await client.request(PING)
    await client.close()


async def test_close_ends_requests_under_way_with_closed_error(fake: ScriptedRegistry) -> None:
    fake.answers["ping"] = None
    client = fake.client(dataclasses.replace(QUICK, pool_size=2))
    tasks = [asyncio.create_task(client.request(PING)) for _ in range(6)]
    await fake.asked("ping", 2)
    await client.close()
    for task in tasks:
        with pytest.raises(ClosedError, match=rf"the client of registry 127.0.0.1:{fake.port} is closed"):
            await task
    await client.close()
    with pytest.raises(ClosedError):
        await client.request(PING)
    assert len(fake.requests) == 2


async def test_close_ends_a_dial_that_is_repeated() -> None:
    client = RegistryClient("127.0.0.1", free_port(), options=dataclasses.replace(QUICK, dial_pauses=(3600.0,)))
    task = asyncio.create_task(client.request(PING))
    await asyncio.sleep(0.05)
    async with asyncio.timeout(5):
        await client.close()
        with pytest.raises(ClosedError):
            await task


async def test_the_first_error_text_wins_over_the_type(fake: ScriptedRegistry) -> None:
    fake.answers["ping"] = error("no")
    client = fake.client()
    with pytest.raises(RegistryRefusedError, match="refused 'ping': no"):
        await client.request(PING)
    await client.close()


# ---------------------------------------------------------------------------------------------------- TLS


def tls_server() -> Rendezvous:
    return Rendezvous(RendezvousConfig(registry_port=0, beacon_port=0, tls=TlsConfig(), limits=Limits.relaxed()))


def tls_client(server: Rendezvous, tls: RegistryTls | None) -> RegistryClient:
    host, port = server.registry_address
    return RegistryClient(host, port, tls=tls, options=dataclasses.replace(QUICK, answer_timeout=2.0))


async def test_a_pinned_certificate_is_accepted_in_any_notation() -> None:
    async with tls_server() as server:
        assert server.tls_fingerprint is not None
        digits = server.tls_fingerprint
        for text in (digits, digits.upper(), ":".join(digits[i : i + 2] for i in range(0, 64, 2))):
            client = tls_client(server, RegistryTls(text))
            assert (await client.request({"type": "beacon_list"}))["beacons"] == []
            await client.close()


async def test_another_certificate_than_the_pinned_one_ends_the_connection_unused() -> None:
    async with tls_server() as server:
        client = tls_client(server, RegistryTls("0" * 64))
        with pytest.raises(RegistryError, match="another certificate than the pinned one"):
            await client.request({"type": "beacon_list"})
        await client.close()


async def test_system_trust_refuses_a_self_signed_certificate() -> None:
    async with tls_server() as server:
        client = tls_client(server, RegistryTls())
        with pytest.raises(RegistryError, match=r"is not trusted \(.*\); give the fingerprint"):
            await client.request({"type": "beacon_list"})
        await client.close()


async def test_plain_and_tls_do_not_mix(fake: ScriptedRegistry) -> None:
    fake.answers["ping"] = PONG
    async with tls_server() as server:
        plain = tls_client(server, None)
        with pytest.raises(RegistryError, match="TLS"):
            await plain.request(PING)
        await plain.close()
    pinned = fake.client(dataclasses.replace(QUICK, dial_timeout=0.1), tls=RegistryTls("0" * 64))
    with pytest.raises(RegistryError, match="cannot be reached"):
        await pinned.request(PING)
    await pinned.close()


@pytest.mark.parametrize("text", ["", "0" * 63, "0" * 65, "g" * 64, "system"])
def test_fingerprints_are_checked(text: str) -> None:
    with pytest.raises(InvalidValueError, match="is no SHA-256"):
        RegistryTls(text)


def test_the_pin_is_compared_with_the_certificate_itself() -> None:
    import hashlib

    tls = RegistryTls(hashlib.sha256(b"certificate").hexdigest())
    assert tls.verify(b"certificate")
    assert not tls.verify(b"another")
    assert not tls.verify(None)
    assert tls.context().verify_mode is ssl.CERT_NONE
    assert RegistryTls().context().verify_mode is ssl.CERT_REQUIRED
    assert RegistryTls().context().check_hostname
