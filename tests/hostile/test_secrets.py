"""Secrets stay where they are: not in logs, events, errors, representations or core files; wiped at the end (L4-12)."""

from __future__ import annotations

import base64
import gc
import json
import logging
import os
import resource
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from pilot._fast.errors import PilotError
from pilot._fast.seal import Session
from pilot.node import Node
from pilot.node.echo import ECHO_PORT
from pilot.rendezvous import RendezvousConfig
from pilot.tunnel.keys import KeyPair
from tests.node.conftest import StartNode


class Everything(logging.Handler):
    """Keeps the text of every record, tracebacks included."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.setFormatter(logging.Formatter("%(name)s %(message)s"))
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(self.format(record) + repr(record.args))


def key_pairs(node: Node) -> list[KeyPair]:
    core = node._running().tunnel._core
    found = {
        id(pair): pair for state in core.peers() for pair in (state.pair, state.current and state.current.pair) if pair
    }
    return list(found.values())


def sessions(node: Node) -> list[Session]:
    return [peer.session for peer in node._running().datapath.peers() if peer.session is not None]


def secrets_of(node: Node) -> list[bytes]:
    """The identity's seed, the X25519 halves, the AES keys."""
    found = [node.identity._private_key.private_bytes_raw()]
    for pair in key_pairs(node):
        assert pair._private is not None
        found.append(pair._private.private_bytes_raw())
        found += [pair.session_key_untrusted(public) for public in list(pair._met)]
    assert len(found) >= 3
    return found


def assert_absent(secrets: Iterable[bytes], texts: Iterable[str], where: str) -> None:
    """No text holds a secret in any of the forms bytes are written in."""
    everything = "\n".join(texts)
    assert everything, f"nothing was looked at in {where}"
    for secret in secrets:
        for form in (secret.hex(), secret.hex().upper(), repr(secret)[2:-1], str(list(secret))[1:-1]):
            assert form not in everything, where
        text = base64.b64encode(secret).decode().rstrip("=")
        # The file's form is base64 of seed and public key: all but the last character of the seed's.
        assert text[:-1] not in everything, where


def test_the_search_finds_every_form() -> None:
    secret = bytes(range(40, 72))
    for text in (secret.hex(), f"x {secret!r}", base64.b64encode(secret + bytes(32)).decode(), f"{[*secret]}"):
        with pytest.raises(AssertionError):
            assert_absent([secret], ["before", text], "the text")


async def test_no_secret_is_written_anywhere(start_node: StartNode, tmp_path: Path) -> None:
    """Logs at DEBUG, all events, statistics, errors and the representation of every object of ours in use."""
    handler = Everything()
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    logging.getLogger("pilot").setLevel(logging.DEBUG)
    logging.getLogger("pilot").debug("a record, so that there is one")
    try:
        alice = await start_node("alice", state_dir=tmp_path / "alice")
        bob = await start_node("bob")
        with alice.events.subscribe("*") as events:
            async with await alice.dial("bob", ECHO_PORT) as stream:
                await stream.write(b"hello")
                await stream.readexactly(5)
            errors = []
            for call in (alice.dial("nobody", 7), alice.dial("bob", 9), alice.ping("nobody")):
                try:
                    await call
                except PilotError as error:
                    errors.append(f"{error!r} {error}")
            assert len(errors) == 3
            heard = []
            while (event := events.get_nowait()) is not None:
                heard.append(f"{event!r} {dict(event.payload)}")
        secrets = secrets_of(alice) + secrets_of(bob)
        seen = [f"{alice.stats()!r} {alice.stats()}"]
        for thing in gc.get_objects():
            if str(type(thing).__module__).startswith("pilot"):
                seen.append(repr(thing))
        assert any("Session" in text for text in seen)
        assert any("KeyPair" in text for text in seen)
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
        logging.getLogger("pilot").setLevel(logging.NOTSET)
    assert_absent(secrets, handler.texts, "the log")
    assert_absent(secrets, heard, "events")
    assert_absent(secrets, errors, "errors")
    assert_absent(secrets, seen, "representations")
    files = {path: path.read_bytes() for path in (tmp_path / "alice").rglob("*") if path.is_file()}
    holding = [p for p, data in files.items() if base64.b64encode(secrets[0])[:-2] in data or secrets[0] in data]
    assert [path.stat().st_mode & 0o777 for path in holding] == [0o600]


async def test_keys_are_wiped_when_the_node_stops(start_node: StartNode) -> None:
    alice, bob = await start_node("alice"), await start_node("bob")
    await alice.ping("bob")
    pairs, held = key_pairs(alice), sessions(alice)
    assert pairs
    assert held
    await alice.stop()
    assert all(pair._private is None for pair in pairs)
    for session in held:
        with pytest.raises(ValueError, match="wiped"):
            session.seal(b"x")
    assert await bob.ping("bob") >= 0


def test_tokens_are_not_in_representations() -> None:
    config = RendezvousConfig(admin_token="a very secret token")
    assert "very secret" not in repr(config)
    assert "very secret" not in str(config)


@pytest.mark.skipif(not Path("/proc/self/limits").exists(), reason="reads the limits of another process in /proc")
def test_the_command_leaves_no_core_file() -> None:
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]

    def allow() -> None:
        resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))

    command = [sys.executable, "-m", "pilot.cli", "rendezvous", "--port", "0", "--beacon-port", "0", "--json"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, preexec_fn=allow, env={**os.environ, "NO_COLOR": "1"}
    ) as server:
        try:
            assert server.stdout is not None
            ready: dict[str, Any] = json.loads(server.stdout.readline())
            assert ready["registry"]
            limits = Path(f"/proc/{server.pid}/limits").read_text()
        finally:
            server.terminate()
    [line] = [line for line in limits.splitlines() if line.startswith("Max core file size")]
    assert line.split()[4] == "0"
