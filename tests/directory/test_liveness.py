"""Staying registered while the registry forgets, stalls, dies and comes back (L8)."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from pilot._fast.addr import Addr
from pilot._fast.errors import BusyError, ClosedError, PeerNotFoundError, RegistryError
from pilot.node.directory import Advertisement, Directory, DirectoryOptions, RegistryClient, RegistryRefusedError
from pilot.node.directory import directory as directory_module
from pilot.node.identity import LocalIdentity
from pilot.protocol.registry import public_key_text
from pilot.rendezvous import Limits, Rendezvous, RendezvousConfig
from tests.directory.fake import QUICK, Message, ScriptedRegistry, error, ok


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """A heartbeat every 10 ms and hardly any pause before a registration."""
    monkeypatch.setattr(directory_module, "HEARTBEAT_SECONDS", 0.01)
    monkeypatch.setattr(directory_module, "START_JITTER_SECONDS", 0.0)
    monkeypatch.setattr(directory_module, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(directory_module, "LAST_PAUSE", 0.01)


async def until(what: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not what():  # noqa: ASYNC110 - what is waited for sits in the object under test
            await asyncio.sleep(0.002)


# --------------------------------------------------------------------------------------------- heartbeats


@pytest.mark.usefixtures("fast")
async def test_heartbeats_are_sent_and_nothing_else(fake: ScriptedRegistry) -> None:
    fake.behave()
    async with fake.directory(public=True, hostname="alice", trusted_peers=lambda: [7, 8]):
        assert [r["type"] for r in fake.requests] == [
            "register", "set_visibility", "set_hostname", "report_trust", "report_trust",
        ]  # fmt: skip
        await fake.asked("heartbeat", 5)
        assert sum(fake.kinds().values()) - fake.kinds()["heartbeat"] == 5


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("text", ["node 1: node not found", "signature verification failed"])
async def test_a_lost_registration_is_repeated_at_once_with_all_that_belongs_to_it(
    fake: ScriptedRegistry, text: str
) -> None:
    fake.behave()
    fake.answers["heartbeat"] = [error(text), ok("heartbeat", time=1)]
    async with fake.directory(public=True, hostname="alice", trusted_peers=lambda: [7]):
        await fake.asked("report_trust", 2)
    kinds = fake.kinds()
    assert (kinds["register"], kinds["set_visibility"], kinds["set_hostname"]) == (2, 2, 2)
    assert [r["type"] for r in fake.requests].index("heartbeat") == 4


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("answer", [error("request failed"), ConnectionError(), b"\xff\xff\xff\xff"])
async def test_other_failures_must_come_three_times(fake: ScriptedRegistry, answer: Any) -> None:
    fake.behave()
    good = ok("heartbeat", time=1)
    twice = 2 * (2 if isinstance(answer, Exception) else 1)  # a request without an answer is repeated
    fake.answers["heartbeat"] = [answer] * twice + [good] + [answer] * twice + [good]
    async with fake.directory():
        await until(lambda: len(fake.answers["heartbeat"]) == 1)
        await fake.asked("heartbeat", fake.kinds()["heartbeat"] + 2)
        assert fake.kinds()["register"] == 1
        fake.answers["heartbeat"] = answer
        await fake.asked("register", 2)
        fake.answers["heartbeat"] = good


@pytest.mark.usefixtures("fast")
async def test_registrations_are_tried_on_with_growing_pauses_until_one_works(
    fake: ScriptedRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    fake.behave()
    async with fake.directory() as directory:
        good = fake.answers["register"]
        fake.answers["register"] = error("registry full")
        directory.reregister("a test")
        await fake.asked("register", 6)
        assert directory._pause > 0.001
        fake.answers["register"] = good
        beats = fake.kinds()["heartbeat"]
        await fake.asked("heartbeat", beats + 2)
        await until(lambda: directory._pause == 0.001)
    warnings = [r.getMessage() for r in caplog.records if "registering again failed" in r.getMessage()]
    assert len(warnings) == 1, "one a minute is enough"


async def test_reregister_asks_once_however_often_it_is_called(
    fake: ScriptedRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory_module, "FIRST_PAUSE", 0.01)
    fake.behave()
    async with fake.directory() as directory:
        for _ in range(10):
            directory.reregister("the path changed")
        await fake.asked("register", 2)
        await asyncio.sleep(0.05)
        assert fake.kinds()["register"] == 2


@pytest.mark.usefixtures("fast")
async def test_the_present_wishes_are_told_again_not_the_first(fake: ScriptedRegistry) -> None:
    fake.behave()
    peers = [7]
    where = ["127.0.0.1:4000"]
    async with fake.directory(
        hostname="alice", trusted_peers=lambda: peers, advertise=lambda: Advertisement(where[0])
    ) as directory:
        await directory.set_hostname("bob")
        await directory.set_visibility(True)
        peers.append(9)
        where[0] = "127.0.0.1:5000"
        fake.requests.clear()
        directory.reregister("a test")
        await fake.asked("report_trust", 2)
    sent = {r["type"]: r for r in fake.requests}
    assert sent["register"]["listen_addr"] == "127.0.0.1:5000"
    assert sent["set_hostname"]["hostname"] == "bob"
    assert sent["set_visibility"]["public"] is True
    assert [r["peer_id"] for r in fake.requests if r["type"] == "report_trust"] == [7, 9]


@pytest.mark.usefixtures("fast")
async def test_what_could_not_be_told_is_told_with_the_next_heartbeat(fake: ScriptedRegistry) -> None:
    fake.behave()
    fake.answers["set_visibility"] = [ConnectionError(), ConnectionError(), ok("set_visibility")]
    async with fake.directory(public=True, hostname="alice", trusted_peers=lambda: [7]) as directory:
        await until(lambda: not directory.unconfirmed)
    assert fake.kinds()["set_hostname"] == fake.kinds()["report_trust"] == fake.kinds()["register"] == 1


async def test_peers_the_registry_does_not_know_do_not_stop_the_others(fake: ScriptedRegistry) -> None:
    fake.behave()
    fake.answers["report_trust"] = lambda r: error("node not found") if r["peer_id"] == 7 else ok("report_trust")
    async with fake.directory(trusted_peers=lambda: [7, 8, 9]) as directory:
        assert fake.kinds()["report_trust"] == 3
        assert directory.unconfirmed == frozenset()


@pytest.mark.usefixtures("fast")
async def test_a_suspended_machine_registers_again(fake: ScriptedRegistry) -> None:
    fake.behave()
    clock = [0.0]
    loop = asyncio.get_running_loop()
    async with fake.directory(wall=lambda: loop.time() + clock[0]):
        await fake.asked("heartbeat", 3)
        assert fake.kinds()["register"] == 1
        clock[0] += 600
        await fake.asked("register", 2)


@pytest.mark.usefixtures("fast")
async def test_the_background_task_survives_a_bug(fake: ScriptedRegistry, caplog: pytest.LogCaptureFixture) -> None:
    fake.behave()
    broken = True

    def clock() -> float:
        return 1 / 0 if broken else 0.0

    async with fake.directory(wall=clock):
        await until(lambda: "met an error" in caplog.text)
        broken = False
        await fake.asked("heartbeat")


@pytest.mark.usefixtures("fast")
async def test_an_expiring_key_is_worth_one_warning(fake: ScriptedRegistry, caplog: pytest.LogCaptureFixture) -> None:
    fake.behave()
    fake.answers["heartbeat"] = ok("heartbeat", time=1, key_expiry_warning=True)
    async with fake.directory():
        await fake.asked("heartbeat", 4)
    assert caplog.text.count("expires within a day") == 1


# ---------------------------------------------------------------------------------------- start and stop


async def test_a_start_that_fails_leaves_nothing(fake: ScriptedRegistry) -> None:
    fake.answers["register"] = error("registry full")
    directory = fake.directory()
    with pytest.raises(RegistryRefusedError, match="registry full"):
        await directory.start()
    with pytest.raises(ClosedError):
        await directory.register()
    await until(lambda: len(asyncio.all_tasks()) <= 1)


@pytest.mark.parametrize(
    "lie",
    [
        {"node_id": 1, "address": "0:0000.0000.0002"},
        {"node_id": 0, "address": "0:0000.0000.0000"},
        {"address": "0:0000.0000.0001"},
    ],
)
async def test_a_registration_that_cannot_be_true_is_refused(fake: ScriptedRegistry, lie: Message) -> None:
    fake.answers["register"] = ok("register", **lie)
    directory = fake.directory()
    with pytest.raises(RegistryError, match="unusable answer to 'register'"):
        await directory.start()
    assert directory._identity.node_id == 0


async def test_a_cancelled_start_leaves_nothing(fake: ScriptedRegistry) -> None:
    fake.answers["register"] = None
    directory = fake.directory()
    task = asyncio.create_task(directory.start())
    await fake.asked("register")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(ClosedError):
        await directory.register()


async def test_stop_during_a_registration(fake: ScriptedRegistry) -> None:
    fake.behave()
    directory = fake.directory()
    await directory.start()
    fake.answers["register"] = None
    directory.reregister("a test")
    await fake.asked("register", 2)
    async with asyncio.timeout(5):
        await directory.stop()
    await until(lambda: not any(t.get_name() == "pilot directory" for t in asyncio.all_tasks()))


async def test_only_what_is_known_is_sent(fake: ScriptedRegistry) -> None:
    fake.behave()
    async with fake.directory():
        assert set(fake.requests[0]) == {"type", "listen_addr", "public_key", "signature"}
    fake.requests.clear()
    everything = Advertisement("127.0.0.1:4000", ("10.0.0.1:4000",), relay_only=True)
    async with fake.directory(advertise=lambda: everything, owner="a@example.com", version="0.1.0"):
        sent = fake.requests[0]
        assert (sent["owner"], sent["version"], sent["lan_addrs"]) == ("a@example.com", "0.1.0", ["10.0.0.1:4000"])
        assert sent["relay_only"] is True


# -------------------------------------------------------------------------------- an unreachable registry


async def test_answers_outlive_the_registry(fake: ScriptedRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.behave()
    async with fake.directory() as directory:
        info = await directory.resolve(7)
        assert await directory.resolve_hostname("bob") == 7
        await fake.shut()
        assert await directory.resolve(7) == info
        assert await directory.resolve(7, max_age=0) == info
        assert await directory.resolve_hostname("bob") == 7
        with pytest.raises(RegistryError, match="cannot be reached"):
            await directory.resolve(8)
        with pytest.raises(RegistryError, match="cannot be reached"):
            await directory.peer_key(8)
        with pytest.raises(RegistryError, match="cannot be reached"):
            await directory.check_trust(7)


async def test_unknown_and_failed_are_told_apart_and_both_kept_for_a_moment(fake: ScriptedRegistry) -> None:
    fake.behave()
    fake.answers["lookup"] = [
        error("node 7: node not found"),
        error("request failed"),
        error("rate limited"),
        b"\0" * 9,
    ]
    async with fake.directory() as directory:
        for node_id, kind in ((7, PeerNotFoundError), (8, PeerNotFoundError), (9, RegistryError), (10, RegistryError)):
            for _ in range(3):
                with pytest.raises(kind):
                    await directory.peer_key(node_id, max_age=0)
        assert fake.kinds()["lookup"] == 4


async def test_a_key_is_not_asked_for_twice_within_three_seconds(fake: ScriptedRegistry) -> None:
    fake.behave()
    async with fake.directory() as directory:
        for _ in range(10):
            assert await directory.peer_key(7, max_age=0) == bytes(32)
        assert fake.kinds()["lookup"] == 1


async def test_a_node_without_a_key(fake: ScriptedRegistry) -> None:
    fake.behave()
    fake.answers["lookup"] = ok("lookup", node_id=7)
    async with fake.directory() as directory:
        assert await directory.peer_key(7) is None


async def test_resolve_lives_without_lookup_but_not_without_an_endpoint(fake: ScriptedRegistry) -> None:
    fake.behave()
    fake.answers["lookup"] = error("node 7: node not found")
    async with fake.directory() as directory:
        info = await directory.resolve(7)
        assert (info.endpoint, info.pub_key) == (("192.0.2.1", 4000), None)
        fake.answers["resolve"] = ok("resolve", node_id=8)
        assert (await directory.resolve(8)).endpoint is None
        fake.answers["resolve"] = ok("resolve", node_id=5, real_addr="192.0.2.1:4000")
        with pytest.raises(RegistryError, match="asked about node 9 and told about node 5"):
            await directory.resolve(9)


async def test_silence_is_given_up_after_the_limit(fake: ScriptedRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory_module, "ANSWER_LIMIT_SECONDS", 0.05)
    fake.behave()
    fake.answers["resolve"] = None
    async with fake.directory() as directory:
        with pytest.raises(RegistryError, match=r"gave no answer within 0\.05 s"):
            await directory.resolve(7)


@pytest.mark.usefixtures("fast")
async def test_a_registry_that_forgot_this_node_is_told_when_it_says_so(fake: ScriptedRegistry) -> None:
    fake.behave()
    fake.answers["resolve"] = error("resolve denied: requester node 1 is not registered")
    async with fake.directory() as directory:
        with pytest.raises(RegistryRefusedError):
            await directory.resolve(7)
        await fake.asked("register", 2)


async def test_proofs_of_the_asker_come_along(fake: ScriptedRegistry) -> None:
    fake.behave()
    async with fake.directory() as directory:
        await directory.lookup(7)
        await directory.resolve_hostname("bob")
    for kind in ("lookup", "resolve_hostname"):
        (sent,) = (r for r in fake.requests if r["type"] == kind)
        assert sent["requester_id"] == 1
        assert sent["signature"]


@pytest.mark.usefixtures("fast")
async def test_a_server_that_lost_everything_gets_everything_again(caplog: pytest.LogCaptureFixture) -> None:
    """The node id changes, nothing raises, names and trust are there again."""
    config = RendezvousConfig(registry_port=0, beacon_port=0, limits=Limits.relaxed())
    first = Rendezvous(config)
    await first.start()
    host, port = first.registry_address
    told: list[tuple[int, Addr]] = []

    def make(options: DirectoryOptions) -> Directory:
        client = RegistryClient(host, port, options=QUICK)
        return Directory(client, LocalIdentity.generate(), lambda: Advertisement("127.0.0.1:4000"), options)

    other = make(DirectoryOptions())
    await other.start()
    async with make(
        DirectoryOptions(public=True, hostname="alice", on_registered=lambda *news: told.append(news))
    ) as directory:
        assert told == [(2, Addr(0, 2))]
        await other.stop()
        await first.stop()
        await until(lambda: directory._missed > 0)
        async with Rendezvous(dataclasses.replace(config, registry_port=port)):
            await until(lambda: len(told) > 1 and not directory.unconfirmed)
            assert told[-1] == (1, Addr(0, 1))
            assert "gave node 2 another id: 1" in caplog.text
            assert await directory.resolve_hostname("alice") == 1
            assert (await directory.resolve(1)).public


# ---------------------------------------------------------------------------------------------- rotation


def key_of(fake: ScriptedRegistry, key: bytes) -> None:
    fake.answers["lookup"] = lambda r: ok("lookup", node_id=r["node_id"], public_key=public_key_text(key))


async def test_a_refused_rotation_changes_nothing(fake: ScriptedRegistry, tmp_path: Path) -> None:
    fake.behave()
    fake.answers["rotate_key"] = error("request failed")
    identity = LocalIdentity.load_or_create(tmp_path / "identity.json")
    before = (tmp_path / "identity.json").read_bytes()
    key_of(fake, identity.public_key)
    async with fake.directory(identity) as directory:
        with pytest.raises(RegistryRefusedError, match="request failed"):
            await directory.rotate_key()
        assert identity.rotation is None
    assert os.listdir(tmp_path) == ["identity.json"]
    assert (tmp_path / "identity.json").read_bytes() == before


async def test_a_lost_answer_and_a_refused_repeat_still_end_with_the_new_key(fake: ScriptedRegistry) -> None:
    fake.behave()
    taken: list[str] = []

    def rotate(request: Message) -> Any:
        taken.append(request["new_public_key"])
        return ConnectionError() if len(taken) == 1 else error("signature verification failed")

    fake.answers["rotate_key"] = rotate
    fake.answers["lookup"] = lambda r: ok("lookup", node_id=r["node_id"], public_key=taken[-1])
    identity = LocalIdentity.generate()
    async with fake.directory(identity) as directory:
        assert public_key_text(await directory.rotate_key()) == taken[-1] == public_key_text(identity.public_key)
        assert len(taken) == 2


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("accepted", [True, False])
async def test_an_unknown_outcome_is_settled_before_the_next_registration(
    fake: ScriptedRegistry, accepted: bool
) -> None:
    fake.behave()
    fake.answers["rotate_key"] = ConnectionError()
    identity = LocalIdentity.generate()
    old = identity.public_key
    async with fake.directory(identity) as directory:
        key_of(fake, old)
        lookup = fake.answers["lookup"]
        fake.answers["lookup"] = ConnectionError()
        with pytest.raises(RegistryError):
            await directory.rotate_key()
        assert identity.rotation is not None
        new = identity.rotation.public_key
        with pytest.raises(BusyError):
            await directory.rotate_key()
        key_of(fake, new)
        fake.answers["lookup"] = fake.answers["lookup"] if accepted else lookup
        await until(lambda: identity.rotation is None)
        assert identity.public_key == (new if accepted else old)
        await fake.asked("register", 2)
        assert fake.requests[-1]["type"] != "rotate_key"


@pytest.mark.usefixtures("fast")
async def test_a_cancelled_rotation_is_settled_in_the_background(fake: ScriptedRegistry) -> None:
    fake.behave()
    fake.answers["rotate_key"] = None
    identity = LocalIdentity.generate()
    async with fake.directory(identity) as directory:
        task = asyncio.create_task(directory.rotate_key())
        await fake.asked("rotate_key")
        assert identity.rotation is not None
        new = identity.rotation.public_key
        key_of(fake, new)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: identity.public_key == new)
        await fake.asked("register", 2)
        registered = [r["public_key"] for r in fake.requests if r["type"] == "register"]
        assert registered[-1] == public_key_text(new)


# ------------------------------------------------------------------------------------------ cancellation


@pytest.mark.parametrize(
    ("kind", "call"),
    [
        ("set_hostname", lambda d: d.set_hostname("bob")),
        ("set_visibility", lambda d: d.set_visibility(True)),
        ("report_trust", lambda d: d.report_trust(7)),
        ("poll_handshakes", lambda d: d.poll_handshakes()),
        ("set_tags", lambda d: d.set_tags(["a"])),
        ("resolve", lambda d: d.resolve(7)),
        ("lookup", lambda d: d.lookup(7)),
        ("deregister", lambda d: d.deregister()),
        ("register", lambda d: d.register()),
        ("list_nodes", lambda d: d.list_by_network(3)),
    ],
)
async def test_cancelling_any_call_leaves_the_directory_usable(
    fake: ScriptedRegistry, kind: str, call: Callable[[Directory], Awaitable[object]]
) -> None:
    fake.behave()
    async with fake.directory() as directory:
        good = fake.answers.get(kind)
        before = fake.kinds()[kind]
        fake.answers[kind] = None
        task = asyncio.ensure_future(call(directory))
        await fake.asked(kind, before + 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        fake.answers[kind] = good or error("no")
        await directory.heartbeat()
        await directory.register()
        assert (await directory.resolve(9)).node_id == 9


@pytest.mark.usefixtures("fast")
async def test_a_cancelled_change_is_undone_with_the_next_heartbeat(fake: ScriptedRegistry) -> None:
    fake.behave()
    async with fake.directory(hostname="alice") as directory:
        good, fake.answers["set_hostname"] = fake.answers["set_hostname"], None
        task = asyncio.create_task(directory.set_hostname("bob"))
        await fake.asked("set_hostname", 2)
        fake.answers["set_hostname"] = good
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await fake.asked("set_hostname", 3)
        assert [r["hostname"] for r in fake.requests if r["type"] == "set_hostname"] == ["alice", "bob", "alice"]


async def test_a_stranger_cannot_flood_the_log(fake: ScriptedRegistry, caplog: pytest.LogCaptureFixture) -> None:
    fake.behave()
    fake.answers["heartbeat"] = error("evil\nline" + "x" * 10_000)
    async with fake.directory() as directory:
        for _ in range(50):
            await directory._beat()
    records = [r for r in caplog.records if r.levelno >= logging.WARNING and r.name == "pilot.directory"]
    assert len(records) <= 2
    assert all("\n" not in r.getMessage() and len(r.getMessage()) < 500 for r in records)
