"""Fuzz targets of the data exchange and the event stream: what peers send to services, and answer to clients."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import hashlib
import json
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pilot.coreapi import Addr, PilotError
from pilot.plugins.dataexchange import DataExchangeClient, DataExchangeService, FrameType, Limits, filestream
from pilot.plugins.dataexchange.filestream import Init, Kind
from pilot.plugins.dataexchange.frames import Tags, encode_frame, encode_tagged, encode_trace, header_untrusted
from pilot.plugins.eventstream import EventStreamClient, EventStreamService
from pilot.plugins.eventstream.frames import encode_event
from tests.fuzz.driver import Target, chunks, joined
from tests.fuzz.registry import loop
from tests.plugins.fakes import Network

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "services.json").read_text())
BOB = Addr(0, 2)
CONTENT = bytes(range(256)) * 3
DIGEST = hashlib.sha256(CONTENT).digest()


# ---- data exchange --------------------------------------------------------------------------------------------------


@functools.cache
def directory() -> Path:
    """Where the service stores what it takes; emptied after every input. One thread does it: a pool grows by chance."""
    loop().set_default_executor(ThreadPoolExecutor(1))
    made = Path(tempfile.mkdtemp(prefix="pilot-fuzz-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


def run_dataexchange(data: bytes) -> None:
    """Streams to the service: every answer is one, nothing is stored elsewhere, no memory stays taken."""
    place = directory()
    loop().run_until_complete(exchange(place, chunks(data)))


async def exchange(place: Path, streams: list[bytes]) -> None:
    network = Network()
    service = DataExchangeService(received=place / "in", limits=Limits(frame_bytes=1 << 16, received_bytes=1 << 20))
    await service.start(network.deps(2))
    messages, files = service.messages(), service.files()
    for data in streams[:8]:
        judge(await answers(await network.deps(1).streams.dial(BOB, 1001), data))
    assert service._budget.used == 0
    assert service._server is not None
    assert not service._server._tasks
    await service.stop()
    async for file in files:
        assert file.path.parent == place / "in"
        assert file.path.name.isprintable()
        assert not file.path.name.startswith(".")
        assert file.path.stat().st_size == file.size
    async for message in messages:
        assert len(message.data) <= 1 << 16
    assert {path.name for path in place.iterdir()} == {"in"}
    shutil.rmtree(place / "in")


async def answers(stream: Any, data: bytes) -> bytes:
    """What comes back for `data` and the end of the stream."""
    got = bytearray()

    async def read() -> None:
        with contextlib.suppress(ConnectionError):
            while chunk := await stream.read():
                got.extend(chunk)

    reading = asyncio.ensure_future(read())
    with contextlib.suppress(PilotError):
        await stream.write(data)
        stream.outgoing.ended = True
        stream.outgoing.wake()
    await asyncio.wait_for(reading, 10.0)
    await stream.close()
    return bytes(got)


def judge(got: bytes) -> None:
    """Every answer is whole and of a kind that answers are."""
    while got:
        number, length = header_untrusted(got[:8])
        payload, got = got[8 : 8 + length], got[8 + length :]
        assert len(payload) == length
        if number == FrameType.TEXT:
            assert payload.startswith((b"ACK ", b"ERR "))
        elif number == FrameType.JSON:
            assert json.loads(payload)["inner_ack"]
        else:
            assert number == FrameType.FILESTREAM
            assert payload[0] in (Kind.ACK, Kind.INIT_ACK, Kind.COMPLETE, Kind.ABORT)


def dataexchange_seeds() -> list[bytes]:
    sent = [b"".join(map(bytes.fromhex, one["sent"])) for one in VECTORS["dataexchange_port_1001"]["exchanges"]]
    tagged = encode_tagged(Tags("id", "r"), FrameType.TRACE, encode_trace(4, 5, b"abc"))
    transfer = DIGEST[:16]
    whole = filestream.encode_init(transfer, Init(len(CONTENT), DIGEST, 256, "../x\x1b.txt"))
    for offset in (512, 0, 256, 0):
        whole += filestream.chunk_header(transfer, offset, 256) + CONTENT[offset : offset + 256]
    whole += filestream.done(transfer)
    return [
        *(joined([one]) for one in sent),
        joined([encode_frame(10, tagged), whole]),
        joined([whole[:700], whole]),
    ]


def run_sending(data: bytes) -> None:
    """A lying receiver: the client ends with an error of its kind or a confirmed file, and believes no wrong sizes."""
    for number, said in enumerate(chunks(data)[:4]):
        loop().run_until_complete(sending(said, number))


async def sending(said: bytes, number: int) -> None:
    network = Network()
    deps, listener = network.deps(1), await network.deps(2).streams.listen(1001)

    async def lie() -> None:
        async for stream in listener:
            with contextlib.suppress(PilotError):
                await stream.write(said)
                stream.outgoing.ended = True
                stream.outgoing.wake()

    lying = asyncio.ensure_future(lie())
    client = DataExchangeClient(deps.streams)
    steps: list[int] = []
    with contextlib.suppress(PilotError, EOFError):
        if number % 2:
            await client.send_message(BOB, "hello")
        else:
            sent = await client.send_file(BOB, CONTENT, name="x", progress=lambda done, total: steps.append(done))
            assert 0 <= sent.resumed_at <= len(CONTENT)
    assert all(0 <= done <= len(CONTENT) for done in steps)
    await listener.close()
    await lying


def sending_seeds() -> list[bytes]:
    transfer = DIGEST[:16]
    good = filestream.init_ack(transfer, 0) + filestream.ack(transfer, len(CONTENT)) + filestream.complete(transfer)
    text = encode_frame(FrameType.TEXT, b"ACK TEXT 5 bytes")
    old = encode_frame(FrameType.TEXT, b"ERR UNKNOWN(7) save failed: x")
    refused = filestream.complete(transfer, "no") + filestream.abort(transfer, "no")
    parts = [good, text, filestream.init_ack(transfer, 700) + filestream.complete(transfer), old, refused, old + text]
    return [joined([part, part]) for part in parts]


# ---- event stream ---------------------------------------------------------------------------------------------------


def run_events(data: bytes) -> None:
    """Streams to the broker, and a broker's to a client: subscribers get whole events, and the broker keeps nothing."""
    parts = chunks(data)[:6]
    loop().run_until_complete(broker(parts))
    for said in parts[:2]:
        loop().run_until_complete(subscriber(said))


async def broker(streams: list[bytes]) -> None:
    network = Network(capacity=1 << 20)
    service = EventStreamService()
    await service.start(network.deps(2))
    watching = await EventStreamClient(network.deps(3).streams).subscribe(BOB)
    for data in streams:
        await answers(await network.deps(1).streams.dial(BOB, 1002), data)
    assert service._budget.used == 0
    assert service._count("subscribers") <= 1
    for _ in range(service._count("published")):
        event = await asyncio.wait_for(anext(watching), 10.0)
        assert encode_event(*event)
    await service.stop()
    with contextlib.suppress(ConnectionError):
        assert [event async for event in watching] == []
    await watching.close()


async def subscriber(said: bytes) -> None:
    network = Network()
    listener = await network.deps(2).streams.listen(1002)
    subscription = await EventStreamClient(network.deps(1).streams).subscribe(BOB, "t")
    stream = await listener.accept()
    stream.outgoing.capacity = len(said)
    await stream.write(said)
    await stream.close()
    with contextlib.suppress(PilotError, EOFError):
        async for event in subscription:
            assert encode_event(*event) in said
    await subscription.close()
    await listener.close()


def events_seeds() -> list[bytes]:
    writes = [case["write"] for case in VECTORS["eventstream_port_1002"]["cases"] if "write" in case]
    captured = [bytes.fromhex("".join([one] if isinstance(one, str) else one)) for one in writes]
    flood = encode_event("t") + encode_event("t", b"x") * 20
    return [*(joined([one]) for one in captured), joined(captured), joined([flood, encode_event("ä" * 512)])]


TARGETS = (
    Target("dataexchange", "streams to the data exchange", run_dataexchange, dataexchange_seeds),
    Target("sending", "a lying receiver of messages and files", run_sending, sending_seeds),
    Target("events", "streams to and from an event broker", run_events, events_seeds),
)
