"""Secure channels over streams in memory: both ends, cancellation anywhere, hostile peers, the service."""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from pilot.coreapi import (
    Addr,
    BusyError,
    ClosedError,
    InvalidValueError,
    PilotError,
    ResetError,
    ServiceRegistry,
    plugin_panic_count,
    reset_plugin_health,
)
from pilot.plugins.secure import Authentication, ReplayCache, SecureChannel, SecureService
from pilot.plugins.secure import channel as channel_module
from pilot.plugins.secure.handshake import exchange
from pilot.plugins.secure.records import Opener, Role, Sealer
from tests.plugins.fakes import Identity, Network, Stream, eventually, settle, stream_pair
from tests.plugins.secure.test_records import vector


async def channels(capacity: int = 65536, **options: Any) -> tuple[SecureChannel, SecureChannel, Stream, Stream]:
    """Client, server, and the streams below them."""
    ours, theirs = stream_pair(capacity=capacity)
    accepting = asyncio.create_task(SecureChannel.accept(theirs, **options))
    client = await SecureChannel.connect(ours)
    return client, await accepting, ours, theirs


def proofs(node: int, peer: int, **options: Any) -> Authentication:
    return Authentication(Identity(node), peer_key=Identity(peer).public_key, **options)


async def authenticated(client: Authentication, server: Authentication) -> tuple[Any, Any]:
    """What `connect` of node 1 and `accept` of node 2 came to: channels or errors."""
    ours, theirs = stream_pair()
    found = await asyncio.gather(
        SecureChannel.connect(ours, auth=client, timeout=1),
        SecureChannel.accept(theirs, auth=server, timeout=1),
        return_exceptions=True,
    )
    return found[0], found[1]


# ------------------------------------------------------------------------------------------------- talk


async def test_vectors_on_the_wire() -> None:
    ours, theirs = stream_pair()
    private = X25519PrivateKey.from_private_bytes(vector("client_private"))
    connecting = asyncio.create_task(SecureChannel.connect(ours, private_key=private))
    assert await theirs.readexactly(32) == vector("client_hello")
    await theirs.write(vector("server_hello") + vector("server_first_record"))
    client = await connecting
    assert await client.read() == b"world"
    await client.write(b"hello")
    assert await theirs.read() == vector("client_first_record")

    ours, theirs = stream_pair()
    private = X25519PrivateKey.from_private_bytes(vector("server_private"))
    await ours.write(vector("client_hello") + vector("client_first_record"))
    server = await SecureChannel.accept(theirs, private_key=private)
    assert await server.readexactly(5) == b"hello"
    await server.write(b"world")
    assert await ours.read() == vector("server_hello") + vector("server_first_record")


@pytest.mark.parametrize("capacity", [50, 65536])
async def test_bytes_go_both_ways_and_end(capacity: int) -> None:
    client, server, *_ = await channels(capacity)
    data = random.Random(1).randbytes(200_000)

    async def answer() -> None:
        async with server:
            async for chunk in server:
                await server.write(chunk)

    async def ask() -> bytes:
        back = b""
        sending = asyncio.create_task(client.write(data))
        while len(back) < len(data):
            back += await client.read(7777)
        await sending
        await client.drain()
        return back

    answering = asyncio.create_task(answer())
    assert await ask() == data
    assert client.written == server.written == len(data)
    await client.close()
    await answering
    assert (client.remote_addr, client.remote_port) == (Addr(0, 2), 1000)
    assert (server.remote_addr, server.local_addr, server.local_port) == (Addr(0, 1), Addr(0, 2), 1000)


async def test_end_of_stream_and_of_this_end() -> None:
    client, server, *_ = await channels()
    await client.write(b"abc")
    await client.write(b"")
    await client.close()
    await client.close()
    with pytest.raises(ClosedError):
        await client.write(b"x")
    with pytest.raises(ClosedError):
        await client.read()
    with pytest.raises(asyncio.IncompleteReadError) as caught:
        await server.readexactly(5)
    assert caught.value.partial == b"abc"
    assert await server.read() == b""
    await server.close()


async def test_an_empty_record_is_no_end() -> None:
    client, server, ours, _ = await channels()
    await ours.write(client._sealer.seal(b""))
    await client.write(b"x")
    assert await server.read() == b"x"


async def test_one_reader_and_one_writer() -> None:
    client, _, *_ = await channels(capacity=100)
    reading = asyncio.create_task(client.read())
    writing = asyncio.create_task(client.write(bytes(1000)))
    await settle()
    with pytest.raises(BusyError, match="read from"):
        await client.readexactly(1)
    with pytest.raises(BusyError, match="write to"):
        await client.write(b"x")
    for task in (reading, writing):
        task.cancel()
    await asyncio.wait([reading, writing])
    for wrong in (client.read(0), client.readexactly(-1)):
        with pytest.raises(InvalidValueError):
            await wrong


async def test_leaving_by_an_exception_resets() -> None:
    client, server, ours, _ = await channels()
    with pytest.raises(KeyError):
        async with client:
            raise KeyError
    assert ours.was_reset
    with pytest.raises(ResetError):
        await server.read()


async def test_deadlines_lose_nothing() -> None:
    client, server, *_ = await channels(capacity=100)
    loop = asyncio.get_running_loop()
    server.set_read_deadline(loop.time() - 1)
    await client.write(b"abc")
    client.set_write_deadline(loop.time() - 1)
    with pytest.raises(TimeoutError):
        await client.write(bytes(1000))
    server.set_deadline(None)
    client.set_deadline(None)
    reading = asyncio.create_task(server.readexactly(3 + 1000))
    await client.drain()
    assert client.written == 1000 + 3
    assert await reading == b"abc" + bytes(1000)


# ----------------------------------------------------------------------------------------- cancellation


async def test_cancelled_reads_and_writes_anywhere_keep_both_ends_in_step() -> None:
    """Tasks are cancelled at random; what `written` says has been taken arrives, once and in order."""
    rng = random.Random(5)
    client, server, *_ = await channels(capacity=61)
    data = rng.randbytes(30_000)
    got = bytearray()

    async def impatient(make: Any) -> Any:
        task = asyncio.create_task(make())
        for _ in range(rng.randrange(12)):
            await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            return await task
        return None

    async def write() -> None:
        while client.written < len(data):
            size = rng.choice((1, 30, 500, 3000))
            await impatient(lambda: client.write(data[client.written : client.written + size]))  # noqa: B023
        await client.drain()

    async def read() -> None:
        while len(got) < len(data):
            got.extend(await impatient(lambda: server.read(rng.choice((1, 100, 5000)))) or b"")

    async with asyncio.timeout(20):
        await asyncio.gather(write(), read())
    assert bytes(got) == data


async def test_close_completes_the_record_a_cancelled_write_left() -> None:
    client, server, *_ = await channels(capacity=100)
    writing = asyncio.create_task(client.write(bytes(1000)))
    await settle()
    writing.cancel()
    await asyncio.wait([writing])
    assert client.written == 1000
    reading = asyncio.create_task(server.readexactly(1000))
    await client.close()
    assert await reading == bytes(1000)
    assert await server.read() == b""


async def test_close_does_not_wait_for_ever_and_tears_no_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel_module, "CLOSE_SECONDS", 0.05)
    client, server, ours, _ = await channels(capacity=100)
    writing = asyncio.create_task(client.write(bytes(1000)))
    await settle()
    writing.cancel()
    await asyncio.wait([writing])
    await client.close()
    assert ours.was_reset
    with pytest.raises(ResetError):
        await server.read()


async def test_a_cancelled_close_resets() -> None:
    client, _, ours, _ = await channels(capacity=100)
    writing = asyncio.create_task(client.write(bytes(1000)))
    await settle()
    writing.cancel()
    await asyncio.wait([writing])
    closing = asyncio.create_task(client.close())
    await settle()
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert ours.was_reset


@pytest.mark.parametrize("end", ["connect", "accept"])
async def test_a_cancelled_handshake_resets_the_stream(end: str) -> None:
    ours, _ = stream_pair()
    opening = asyncio.create_task(getattr(SecureChannel, end)(ours))
    await settle()
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert ours.was_reset


# --------------------------------------------------------------------------------------- authentication


async def test_both_prove_who_they_are() -> None:
    client, server = await authenticated(proofs(1, 2), proofs(2, 1))
    assert (client.peer_node_id, server.peer_node_id) == (2, 1)
    assert "authenticated as node 2" in repr(client)
    assert client.written == server.written == 0
    await client.write(b"x")
    assert await server.read() == b"x"


async def test_wrong_keys_on_either_side() -> None:
    client, server = await authenticated(proofs(1, 3), proofs(2, 1))
    assert str(client) == "auth signature verification failed"
    assert isinstance(server, ResetError)
    client, server = await authenticated(proofs(1, 2), proofs(2, 3))
    assert isinstance(client, SecureChannel)  # the client speaks last: it learns of the refusal by the reset
    assert str(server) == "auth signature verification failed"
    with pytest.raises(ResetError):
        await client.read()


async def test_an_impostor_is_told_from_the_node_of_the_stream() -> None:
    client, server = await authenticated(proofs(1, 2), proofs(9, 1))
    assert "node 9 instead of node 2" in str(client)
    assert isinstance(server, ResetError)


async def test_a_plain_and_an_authenticating_end_cannot_talk() -> None:
    ours, theirs = stream_pair()
    connecting = asyncio.create_task(SecureChannel.connect(ours, auth=proofs(1, 2), timeout=0.05))
    await SecureChannel.accept(theirs)
    with pytest.raises(TimeoutError):
        await connecting
    assert ours.was_reset


async def test_a_recorded_frame_is_refused_in_another_channel() -> None:
    """The key exchange differs, so the signature does not hold; the nonce would be known, too."""
    cache = ReplayCache(asyncio.get_running_loop().time)
    fixed = proofs(1, 2, nonce=lambda: bytes(16))
    server = proofs(2, 1, replays=cache)
    first, second = await authenticated(fixed, server)
    assert isinstance(first, SecureChannel)
    assert second.peer_node_id == 1
    _, again = await authenticated(fixed, server)
    assert str(again) == "auth nonce replay detected"
    assert len(cache) == 1


# ---------------------------------------------------------------------------------------- hostile peers


async def hostile() -> tuple[SecureChannel, Stream, Sealer, Opener, Stream]:
    """A client, the peer's stream, what the peer can seal and open with, and the client's stream."""
    ours, theirs = stream_pair()
    connecting = asyncio.create_task(SecureChannel.connect(ours))
    exchanged = await exchange(theirs, Role.SERVER)
    client = await connecting
    return client, theirs, Sealer(exchanged.key, Role.SERVER), Opener(exchanged.key, Role.CLIENT), ours


async def refused(client: SecureChannel, ours: Stream, message: str) -> None:
    with pytest.raises(ResetError, match=message):
        await client.read()
    with pytest.raises(ResetError, match=message):
        await client.write(b"x")
    assert ours.was_reset


async def test_reflected_records_are_refused() -> None:
    client, theirs, _, _, ours = await hostile()
    await client.write(b"pay me")
    await theirs.write(await theirs.read())
    await refused(client, ours, "role")


async def test_repeated_records_are_refused_and_what_came_before_is_read() -> None:
    client, theirs, sealer, _, ours = await hostile()
    record = sealer.seal(b"once")
    await theirs.write(record + record)
    assert await client.readexactly(4) == b"once"
    await refused(client, ours, "record 1 came after record 1")


async def test_a_hole_is_refused() -> None:
    client, theirs, sealer, _, ours = await hostile()
    sealer.seal(b"deleted on the way")
    await theirs.write(sealer.seal(b"x"))
    await refused(client, ours, "record 2 came after record 0")


async def test_a_torn_record_is_no_end() -> None:
    client, theirs, sealer, _, ours = await hostile()
    await theirs.write(sealer.seal(b"half")[:-1])
    await theirs.close()
    await refused(client, ours, "into a record")


@pytest.mark.parametrize("header", ["00000000", "0000000b", "01000001", "ffffffff"])
async def test_lengths_that_cannot_be(header: str) -> None:
    client, theirs, *_, ours = await hostile()
    await theirs.write(bytes.fromhex(header))
    await refused(client, ours, "is announced")


async def test_an_own_limit_for_records() -> None:
    client, server, _, theirs = await channels(max_record_bytes=100)
    await client.write(bytes(72))
    assert await server.readexactly(72) == bytes(72)
    await client.write(bytes(73))
    await refused(server, theirs, "101 bytes is announced")


async def test_who_has_not_proved_who_it_is_gets_no_memory() -> None:
    ours, theirs = stream_pair()
    accepting = asyncio.create_task(SecureChannel.accept(theirs, auth=proofs(2, 1), timeout=1))
    await exchange(ours, Role.CLIENT)
    await ours.write((121).to_bytes(4, "big"))
    with pytest.raises(ResetError, match="121 bytes is announced"):
        await accepting
    assert theirs.was_reset
    client, server = await authenticated(proofs(1, 2), proofs(2, 1))
    await client.write(bytes(60_000))  # afterwards records may be large
    assert await server.readexactly(60_000) == bytes(60_000)


async def test_an_announced_record_takes_no_memory() -> None:
    client, theirs, *_ = await hostile()
    await theirs.write((16 << 20).to_bytes(4, "big") + bytes(1000))
    reading = asyncio.create_task(client.read())
    await settle()
    assert len(client._incoming) == 1004
    reading.cancel()
    await asyncio.wait([reading])


@pytest.mark.parametrize("hello", [b"", b"short", bytes(32), b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n"])
async def test_what_is_no_client(hello: bytes) -> None:
    ours, theirs = stream_pair()
    accepting = asyncio.create_task(SecureChannel.accept(theirs, auth=proofs(2, 1), timeout=1))
    await ours.write(hello)
    await ours.close()
    with pytest.raises((PilotError, asyncio.IncompleteReadError)):
        await accepting
    assert theirs.was_reset


async def test_silence_ends_a_handshake() -> None:
    ours, _ = stream_pair()
    with pytest.raises(TimeoutError):
        await SecureChannel.connect(ours, timeout=0.02)
    assert ours.was_reset


# ---------------------------------------------------------------------------------------------- service


async def echo(channel: SecureChannel) -> None:
    async for chunk in channel:
        if chunk == b"crash":
            raise ZeroDivisionError
        await channel.write(chunk)


async def test_the_service_serves_authenticated_channels() -> None:
    reset_plugin_health("secure")
    network = Network()
    client, server = network.deps(1), network.deps(2)
    registry = ServiceRegistry()
    registry.register(SecureService(echo))
    await registry.start_all(server)

    async def call(auth: Authentication) -> SecureChannel:
        return await SecureChannel.connect(await client.streams.dial(Addr(0, 2), 443), auth=auth)

    async with await call(proofs(1, 2)) as channel:
        await channel.write(b"ping")
        assert await channel.readexactly(4) == b"ping"

    async with await call(proofs(3, 2)) as channel:  # node 1 claims to be node 3
        with pytest.raises(ResetError):
            await channel.read()
    stream = await client.streams.dial(Addr(0, 2), 443)
    await stream.write(bytes(32))
    await stream.close()
    await settle(50)
    assert plugin_panic_count("secure") == 0

    crashing = await call(proofs(1, 2))
    await crashing.write(b"crash")
    with pytest.raises(ResetError):
        await crashing.read()
    assert plugin_panic_count("secure") == 1

    waiting = await call(proofs(1, 2))
    stopping = asyncio.create_task(registry.stop_all())
    await settle()
    await waiting.close()
    await stopping
    assert not network.listeners
    reset_plugin_health("secure")


async def test_the_service_without_authentication_is_limited_per_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pilot.plugins.secure.service.MAX_CHANNELS_PER_PEER", 1)
    monkeypatch.setattr("pilot.plugins.secure.service.STOP_SECONDS", 0.05)
    network = Network()
    client, server = network.deps(1), network.deps(2)
    service = SecureService(echo, port=1443, authenticate=False)
    await service.start(server)
    first = await SecureChannel.connect(await client.streams.dial(Addr(0, 2), 1443))
    with pytest.raises((PilotError, asyncio.IncompleteReadError)):
        await SecureChannel.connect(await client.streams.dial(Addr(0, 2), 1443))
    await first.write(b"still here")
    assert await first.readexactly(10) == b"still here"
    await service.stop()
    await service.stop()
    with pytest.raises(ResetError):
        await first.read()
    await eventually(lambda: not network.listeners)
