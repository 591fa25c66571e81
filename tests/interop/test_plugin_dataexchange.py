"""Data exchange and event stream with the official daemon on our rendezvous: both ways, interrupted, resumed."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import sys
from pathlib import Path
from typing import Any

import pytest

from pilot.coreapi import PilotError
from pilot.node import Node
from pilot.plugins.dataexchange import DataExchangeService, FileProgress, FrameType, Limits
from pilot.plugins.eventstream import EventStreamService
from tests.interop.conftest import StartDaemon
from tests.interop.ipc import eventually
from tests.interop.netns import Namespace
from tests.interop.official import AFTER_STREAM_RESET, OfficialDaemon
from tests.interop.ours import our_node
from tests.interop.rendezvous import Running

BIG = 64 << 20


class Cut(Exception):  # noqa: N818
    """What ends a transfer in the middle."""


@pytest.fixture
async def bob(start_daemon: StartDaemon) -> OfficialDaemon:
    return await start_daemon("bob", public=True)


def exchange(node: Node) -> DataExchangeService:
    service = node.service("dataexchange")
    assert isinstance(service, DataExchangeService)
    return service


def events(node: Node) -> EventStreamService:
    service = node.service("eventstream")
    assert isinstance(service, EventStreamService)
    return service


def stored(daemon: OfficialDaemon, place: str) -> list[Path]:
    """What the daemon has in `inbox` or `received`, in the order it came."""
    found = [path for path in (daemon.directory / ".pilot" / place).iterdir() if path.is_file()]
    return sorted(found, key=lambda path: path.stem[-6:])


@pytest.fixture
def big(tmp_path: Path) -> Path:
    path = tmp_path / "big.bin"
    path.write_bytes(random.Random(7).randbytes(BIG))
    return path


# ---- messages -------------------------------------------------------------------------------------------------------


async def test_messages_to_the_daemon(bob: OfficialDaemon, namespace: Namespace, rendezvous: Running) -> None:
    async with our_node(namespace, rendezvous, services=[DataExchangeService()]) as node:
        client = exchange(node).client
        answer = await client.send_message("bob", "hällo", message_id="m-1", reply_to="r-0")
        assert (answer.ok, answer.text) == (True, "ACK TEXT 6 bytes")
        again = await client.send_message("bob", "hällo", message_id="m-1", reply_to="r-0")
        assert (again.ok, again.duplicate) == (True, True)
        assert (await client.send_message("bob", b"\0\xff")).text == "ACK BINARY 2 bytes"
        assert (await client.send_message("bob", "{}", kind=FrameType.JSON)).text == "ACK JSON 2 bytes"
        first, second, third = [json.loads(path.read_text()) for path in stored(bob, "inbox")]
        wanted = {"data": "hällo", "from": str(node.address), "message_id": "m-1", "reply_to": "r-0", "type": "TEXT"}
        assert first == {**first, **wanted}
        assert (second["data_b64"], third["type"]) == ("AP8=", "JSON")
        large = await client.send_message("bob", "x" * 3_000_000)
        assert large.text == "ACK TEXT 3000000 bytes"


async def test_messages_of_the_daemon(bob: OfficialDaemon, namespace: Namespace, rendezvous: Running) -> None:
    async with our_node(namespace, rendezvous, "ours", services=[DataExchangeService()]) as node:
        with exchange(node).messages() as messages:
            for kind in ("text", "json", "binary"):
                sent = await bob.ctl("send-message", "ours", "--data", '{"a":1}', "--type", kind)
                assert "ACK" in json.dumps(sent), sent
                message = await asyncio.wait_for(anext(messages), 10.0)
                assert (message.kind, message.text) == (kind.upper(), '{"a":1}')
                assert message.sender.node == bob.node_id
                assert len(message.tags.message_id) == 32


# ---- files ----------------------------------------------------------------------------------------------------------


async def test_file_to_the_daemon_interrupted_and_resumed(
    bob: OfficialDaemon, namespace: Namespace, rendezvous: Running, big: Path
) -> None:
    def cut(done: int, total: int) -> None:
        if done > BIG // 4:
            raise Cut

    async with our_node(namespace, rendezvous, services=[DataExchangeService()]) as node:
        client = exchange(node).client
        with pytest.raises(Cut):
            await client.send_file("bob", big, progress=cut)
        sent = await client.send_file("bob", big)
    assert BIG // 4 <= sent.resumed_at < BIG
    assert sent.streamed
    [path] = stored(bob, "received")
    assert hashlib.sha256(path.read_bytes()).digest() == sent.sha256
    assert path.name.startswith("big-")


async def test_file_of_the_daemon_interrupted_and_resumed(
    start_daemon: StartDaemon, namespace: Namespace, rendezvous: Running, big: Path, tmp_path: Path
) -> None:
    bob = await start_daemon("bob", public=True, expect=AFTER_STREAM_RESET)
    progress: list[FileProgress] = []
    service = DataExchangeService(received=tmp_path / "in", keep_names=True, on_progress=progress.append)
    async with our_node(namespace, rendezvous, "ours", services=[service]) as node:
        sending = asyncio.ensure_future(bob.ctl_raw("--json", "send-file", "ours", str(big)))
        await eventually(lambda: bool(progress) and progress[-1].done > BIG // 4, 30.0)
        await service.stop()  # the daemon sees its stream reset
        await sending
        [partial] = (tmp_path / "in" / ".partial").glob(f"{progress[-1].transfer_id.hex()}-*")
        there = partial.stat().st_size
        assert BIG // 4 < there < BIG
    again = DataExchangeService(received=tmp_path / "in", keep_names=True)
    async with our_node(namespace, rendezvous, "again", services=[again]) as node:
        files = exchange(node).files()
        sent = await bob.ctl("send-file", "again", str(big))
        file = await asyncio.wait_for(anext(files), 10.0)
        assert file.resumed_at == there, sent
        assert file.path == tmp_path / "in" / "big.bin"
        assert file.path.read_bytes() == big.read_bytes()


async def test_files_that_are_refused(
    bob: OfficialDaemon, namespace: Namespace, rendezvous: Running, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"x" * 100)
    service = DataExchangeService(received=tmp_path / "in", limits=Limits(received_bytes=99))
    async with our_node(namespace, rendezvous, "ours", services=[service]) as node:
        code, output, errors = await bob.ctl_raw("--json", "send-file", "ours", str(tmp_path / "file"))
        assert code != 0
        assert "quota exceeded: need 100, 99 of 99 available" in output + errors
        with pytest.raises(PilotError, match="receiver disk quota exceeded"):
            await exchange(node).client.send_file("bob", Huge(), name="huge")  # type: ignore[arg-type]


class Huge(bytes):
    """Bytes that claim to be more than the daemon takes; none of them is ever sent."""

    def __len__(self) -> int:
        return 3 << 30


# ---- the command ----------------------------------------------------------------------------------------------------


async def command(namespace: Namespace, rendezvous: Running, home: Path, *words: str) -> asyncio.subprocess.Process:
    """`pilot ...` in the namespace, with settings of its own."""
    settings = {
        "PILOT_REGISTRY": rendezvous.registry,
        "PILOT_BEACON": rendezvous.beacon,
        "PILOT_LISTEN": f"{namespace.new_host()}:0",
        "XDG_CONFIG_HOME": str(home),
        "XDG_STATE_HOME": str(home),
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    return await asyncio.create_subprocess_exec(
        *namespace.command(sys.executable, "-P", "-m", "pilot.cli", *words),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=os.environ | settings,
    )


async def test_pilot_send_and_recv(
    bob: OfficialDaemon, namespace: Namespace, rendezvous: Running, tmp_path: Path
) -> None:
    source, inbox = tmp_path / "report.pdf", tmp_path / "in"
    source.write_bytes(random.Random(3).randbytes(1_000_000))
    inbox.mkdir()
    digest = hashlib.sha256(source.read_bytes()).hexdigest()

    sending = await command(namespace, rendezvous, tmp_path / "home", "send", str(source), "bob", "--json")
    output, errors = await sending.communicate()
    sent = json.loads(output)
    assert sending.returncode == 0, errors
    assert sent == {**sent, "ok": True, "bytes": 1_000_000, "resumed_at": 0, "sha256": digest}
    assert sent["peer"] == str(bob.address)
    assert stored(bob, "received")[0].read_bytes() == source.read_bytes()

    options = ("--public", "--hostname", "ours", "--ephemeral")
    receiving = await command(namespace, rendezvous, tmp_path / "home", "recv", str(inbox), *options)
    assert receiving.stderr is not None
    assert await receiving.stderr.readline() == b"ready: pilot send FILE ours\n"
    await bob.ctl("send-file", "ours", str(source))
    output, errors = await receiving.communicate()
    assert receiving.returncode == 0, errors
    assert output.decode() == f"{inbox}/report.pdf\n"
    assert errors.decode() == f"{inbox}/report.pdf from {bob.address}, 1,000,000 bytes\n"
    assert (inbox / "report.pdf").read_bytes() == source.read_bytes()


# ---- events ---------------------------------------------------------------------------------------------------------


async def test_events_at_the_daemons_broker(bob: OfficialDaemon, namespace: Namespace, rendezvous: Running) -> None:
    async with our_node(namespace, rendezvous, services=[EventStreamService()]) as node:
        client = events(node).client
        async with await client.subscribe("bob", "news") as news, await client.subscribe("bob") as everything:
            await asyncio.sleep(0.2)  # a subscription is not answered
            await client.publish("bob", "news", "hällo")
            await client.publish("bob", "other", b"x" * 100_000)
            event = await asyncio.wait_for(anext(news), 10.0)
            assert (event.topic, event.text) == ("news", "hällo")
            assert (await asyncio.wait_for(anext(everything), 10.0)).topic == "news"
            assert len((await asyncio.wait_for(anext(everything), 10.0)).payload) == 100_000
            await news.publish("from-a-subscriber", b"y")
            assert (await asyncio.wait_for(anext(everything), 10.0)).topic == "from-a-subscriber"


async def test_the_daemon_at_our_broker(bob: OfficialDaemon, namespace: Namespace, rendezvous: Running) -> None:
    async with our_node(namespace, rendezvous, "ours", services=[EventStreamService()]) as node:
        with node.events.subscribe("pubsub.*") as told:
            reading = asyncio.ensure_future(bob.ctl("subscribe", "ours", "*", "--count", "2", "--timeout", "10s"))
            event = await asyncio.wait_for(anext(told), 10.0)
            assert (event.topic, event.payload["topic"]) == ("pubsub.subscribed", "*")
            async with await events(node).client.subscribe(node.address, "news") as news:
                await bob.ctl("publish", "ours", "news", "--data", "from bob")
                got = await asyncio.wait_for(anext(news), 10.0)
                assert (got.topic, got.text) == ("news", "from bob")
                events(node).broadcast("mine", "from us")
                seen: Any = json.dumps(await reading)
                assert "from bob" in seen
                assert "from us" in seen
