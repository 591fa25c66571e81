"""What a node does with what arrives on port 444 and in its mailbox: every check, every grant, every bound."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest

from pilot.coreapi import Addr, ResetError, TrustMatch
from pilot.plugins.handshake import life, records
from pilot.plugins.handshake.message import MessageType, parse_untrusted
from tests.plugins.fakes import Identity, eventually, published, settle
from tests.plugins.handshake.helpers import Answered, Asked, Box, Record, Stage, message, poll

CASES = json.loads((Path(__file__).parents[2] / "vectors" / "services.json").read_text())["handshake_receive_checks"]
ACCEPT, REJECT, REVOKE = MessageType.ACCEPT, MessageType.REJECT, MessageType.REVOKE


async def send(stage: Stage, source: int, data: bytes, to: int = 2, *, split: int = 0, end: bool = True) -> None:
    """Delivers `data` from node `source` and returns when it has been dealt with."""
    if source not in stage.deps:
        stage.deps[source] = stage.network.deps(source)
    stream = await stage.deps[source].streams.dial(Addr(0, to), 444)
    await stream.write(data[:split])
    await settle()
    await stream.write(data[split:])
    if end:
        await stream.close()
    await settle(60)


async def test_a_message_that_breaks_off_is_waited_for_only_so_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(life, "READ_SECONDS", 0.05)
    stage = Stage()
    async with stage.service(1), stage.service(2):
        stream = await stage.deps[1].streams.dial(Addr(0, 2), 444)
        await stream.write(message(1, 2)[:100])
        async with asyncio.timeout(5.0):
            assert await stream.read() == b"", "it is closed"
        assert dropped(stage) == 1


class Inbox:
    """What a node without the plugin gets on port 444."""

    def __init__(self, stage: Stage, node_id: int, *networks: int) -> None:
        self.messages: list[Any] = []
        self._deps = stage.network.deps(node_id)
        stage.registry.add(node_id, *networks)

    async def __aenter__(self) -> Inbox:
        self._listener = await self._deps.streams.listen(444)
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._listener.close()
        await self._task

    async def _run(self) -> None:
        async for stream in self._listener:
            self.messages.append(parse_untrusted(await stream.read()))
            await stream.close()


def dropped(stage: Stage) -> int:
    return stage.hosts[2].counters["handshake_messages_dropped"]()


# ---- checks ---------------------------------------------------------------------------------------------------------


def test_every_observed_case_is_in_the_tests_below() -> None:
    assert len(CASES["cases"]) == 10


@pytest.mark.parametrize(
    ("source", "data"),
    [
        (1, lambda: message(1, 2, timestamp=int(time.time()) - 360)),
        (1, lambda: message(1, 2, timestamp=int(time.time()) + 60)),
        (1, lambda: message(1, 2, public_key=b"")),
        (1, lambda: message(1, 2, signature=b"")),
        (1, lambda: message(1, 2, signature=bytes(64))),
        (1, lambda: message(1, 3)),
        (1, lambda: message(1, 2, key_of=7)),
        (1, lambda: message(0, 2)),
        (7, lambda: message(1, 2, ACCEPT)),
        (1, lambda: message(1, 2, ACCEPT, public_key=b"", signature=b"")),
        (1, lambda: b"{}"),
        (1, lambda: b"GET / HTTP/1.1\r\n\r\n"),
        (1, lambda: message(1, 2)[:-1]),
        (1, lambda: message(1, 2) + b"x"),
        (1, lambda: b""),
    ],
)
async def test_a_message_that_is_dropped(source, data) -> None:
    stage = Stage()
    stage.registry.add(1)
    async with stage.service(2) as service:
        events = published(stage.deps[2])
        await send(stage, source, data())
        assert dropped(stage) == 1
        assert events.take() == []
        assert service.pending() == []


async def test_the_same_message_twice_counts_once_and_a_second_request_counts_too() -> None:
    stage = Stage()
    stage.registry.add(1)
    async with stage.service(2) as service:
        events = published(stage.deps[2], "handshake.received")
        first = message(1, 2, justification="one")
        await send(stage, 1, first)
        await send(stage, 1, first)
        assert (dropped(stage), len(events.take())) == (1, 1)
        await send(stage, 1, message(1, 2, justification="two"))  # 1.18.0 takes this for a replay
        assert [request.justification for request in service.pending()] == ["two"]


async def test_a_message_that_failed_can_be_sent_again() -> None:
    stage = Stage()
    data = message(1, 2)
    stage.registry.records[1] = Record(bytes(32))
    async with stage.service(2) as service:
        await send(stage, 1, data)
        assert service.pending() == []
        stage.registry.add(1)
        await send(stage, 1, data)
        assert len(service.pending()) == 1


async def test_a_request_in_two_writes_is_read() -> None:
    stage = Stage()
    stage.registry.add(1)
    async with stage.service(2) as service:
        await send(stage, 1, message(1, 2), split=50)
        assert len(service.pending()) == 1


async def test_a_slow_sender_is_given_ten_seconds(monkeypatch) -> None:
    monkeypatch.setattr(life, "READ_SECONDS", 0.02)
    stage = Stage()
    stage.registry.add(1)
    async with stage.service(2):
        await send(stage, 1, b"{", end=False)
        await eventually(lambda: dropped(stage) == 1)


async def test_a_request_passed_on_by_another_node_shows_its_source() -> None:
    stage = Stage()
    async with stage.service(2) as service:
        await send(stage, 1, message(99, 2, justification="hi"))  # a node the registry does not know
        (request,) = service.pending()
        assert (request.node_id, request.source, request.public_key) == (99, 1, Identity(99).public_key)
        await send(stage, 5, message(99, 2, key_of=98, justification="other key"))
        assert [known.source for known in service.pending()] == [1]  # nobody changes another's key


async def test_a_peer_may_have_eight_streams_and_all_sixty_four() -> None:
    stage = Stage()
    async with stage.service(2):
        stage.deps[1] = stage.network.deps(1)
        streams = [await stage.deps[1].streams.dial(Addr(0, 2), 444) for _ in range(9)]
        await settle()
        with pytest.raises(ResetError):
            await streams[-1].read()
        for node in range(10, 18):
            stage.deps[node] = stage.network.deps(node)
            streams += [await stage.deps[node].streams.dial(Addr(0, 2), 444) for _ in range(7)]
        await settle()
        assert dropped(stage) == 1
        stage.deps[30] = stage.network.deps(30)
        one_more = await stage.deps[30].streams.dial(Addr(0, 2), 444)
        await settle()
        with pytest.raises(ResetError):
            await one_more.read()
        for stream in streams:
            stream.reset()
        await settle()
        await send(stage, 1, message(1, 2))


# ---- grants ---------------------------------------------------------------------------------------------------------


class Agents:
    """A trust checker with node 1 on it, its key pinned or not."""

    def __init__(self, pin: bytes = b"") -> None:
        self.pin = pin

    def is_trusted(self, node_id: int) -> TrustMatch:
        return TrustMatch("desk", True) if node_id == 1 else TrustMatch()

    def is_trusted_with_key(self, node_id: int, key: bytes) -> TrustMatch:
        return self.is_trusted(node_id) if self.pin in (b"", key) else TrustMatch()


class PlainAgents:
    def is_trusted(self, node_id: int) -> TrustMatch:
        return Agents().is_trusted(node_id)


KEY = Identity(1).public_key


@pytest.mark.parametrize(
    ("options", "extra", "network"),
    [
        ({"networks": (5, 4)}, {"reason": "same_network"}, 4),
        ({"agents": PlainAgents()}, {"reason": "trusted_agent", "agent": "desk"}, 0),
        ({"agents": Agents(KEY)}, {"reason": "trusted_agent", "agent": "desk"}, 0),
        ({"auto_approve": True}, {"reason": "auto_approve"}, 0),
        ({"networks": (4,), "agents": Agents(), "auto_approve": True}, {"reason": "same_network"}, 4),
    ],
)
@pytest.mark.parametrize("relayed", [False, True])
async def test_a_request_that_is_granted(options, extra, network, relayed) -> None:
    stage = Stage()
    pinned = getattr(options.get("agents"), "pin", b"")
    async with Inbox(stage, 1) as inbox, stage.service(2, **options) as service:
        stage.registry.add(1, 4, 5, 6)
        events = published(stage.deps[2])
        if relayed:
            stage.registry.boxes[2] = Box([Asked(1, "hi")])
            await poll(service)
            await settle(60)
        else:
            await send(stage, 1, message(1, 2, justification="hi"))
        if relayed and pinned:
            assert len(service.pending()) == 1  # no key is carried, so no pin can match
            return
        (record,) = service.trusted()
        assert (record.public_key, record.mutual, record.network) == (KEY, False, network)
        reason = extra["reason"] + ("_relayed" if relayed and extra["reason"] != "same_network" else "")
        expected = [
            ("handshake.received", {"peer_node_id": 1, "justification": "hi"}),
            ("handshake.auto_approved", {"peer_node_id": 1, **extra}),
            ("trust.changed", {"peer_node_id": 1, "state": "granted", **extra, "reason": reason}),
        ]
        silent = (
            {"handshake.received", *(["handshake.auto_approved"] if "same" in reason else [])} if relayed else set()
        )
        assert events.take() == [event for event in expected if event[0] not in silent]
        await eventually(lambda: frozenset({1, 2}) in stage.registry.pairs)
        if relayed:
            assert stage.registry.boxes[1].responses == [Answered(2, True)]
        else:
            await eventually(lambda: [m.type for m in inbox.messages] == [ACCEPT])
        assert service.is_trusted_peer(1)
        assert stage.hosts[2].trust_sources[0](1)


async def test_what_is_not_bound_to_the_registry_is_granted_only_where_everybody_is() -> None:
    for auto, count in ((False, 0), (True, 1)):
        stage = Stage()
        async with stage.service(2, networks=(4,), agents=Agents(), auto_approve=auto) as service:
            stage.registry.records[1] = Record(None, (0, 4))
            await send(stage, 1, message(1, 2))
            assert (len(service.trusted()), len(service.pending())) == (count, 1 - count)


async def test_a_pin_of_another_key_does_not_match() -> None:
    stage = Stage()
    stage.registry.add(1)
    async with stage.service(2, agents=Agents(bytes(32))) as service:
        await send(stage, 1, message(1, 2))
        assert len(service.pending()) == 1


async def test_not_everybody_fits_onto_the_list_of_a_node_that_approves_all(monkeypatch) -> None:
    monkeypatch.setattr("pilot.plugins.handshake.grants.MAX_GRANTED_UNASKED", 1)
    stage = Stage()
    async with stage.service(2, auto_approve=True) as service:
        await send(stage, 1, message(1, 2))
        await send(stage, 3, message(3, 2))
        assert (len(service.trusted()), len(service.pending())) == (1, 1)


async def test_both_asked() -> None:
    stage = Stage()
    async with Inbox(stage, 1) as inbox, stage.service(2) as service:
        await service.request(1, "please")
        events = published(stage.deps[2], "trust.*")
        await send(stage, 1, message(1, 2))
        assert service.trusted()[0].mutual
        assert service.outgoing() == {}
        assert events.take() == [("trust.changed", {"peer_node_id": 1, "state": "granted", "reason": "mutual"})]
        await eventually(lambda: [m.type for m in inbox.messages] == [MessageType.REQUEST, ACCEPT])


async def test_a_trusted_node_that_asks_again_hears_yes_again() -> None:
    stage = Stage()
    async with Inbox(stage, 1) as inbox, stage.service(2, auto_approve=True) as service:
        await send(stage, 1, message(1, 2, justification="one"))
        await send(stage, 1, message(1, 2, justification="two"))
        await eventually(lambda: [m.type for m in inbox.messages] == [ACCEPT, ACCEPT])
        assert inbox.messages[0].spelling != inbox.messages[1].spelling  # or 1.18.0 takes it for a replay
        assert inbox.messages[0].signature == inbox.messages[1].signature
        stage.registry.boxes[2] = Box([Asked(1, "three")])
        await poll(service)
        await eventually(lambda: stage.registry.boxes[1].responses == [Answered(2, True)])


async def test_another_key_ends_trust_only_where_the_registry_has_it() -> None:
    stage = Stage()
    stage.registry.add(1)
    async with stage.service(2, networks=(4,)) as service:
        stage.registry.add(1, 4)
        await send(stage, 1, message(1, 2))
        assert len(service.trusted()) == 1
        events = published(stage.deps[2], "trust.*")
        stage.registry.down = True
        await send(stage, 1, message(1, 2, key_of=9, justification="forged"))
        assert (len(service.trusted()), service.pending(), events.take()) == (1, [], [])
        stage.registry.down = False
        stage.registry.records[1] = Record(Identity(9).public_key)
        await send(stage, 1, message(1, 2, key_of=9, justification="rotated"))
        assert (service.trusted(), len(service.pending())) == ([], 1)
        assert events.take() == [("trust.changed", {"peer_node_id": 1, "state": "revoked", "reason": "key_changed"})]


async def test_a_record_without_a_key_is_completed() -> None:
    stage = Stage()
    async with stage.service(2, auto_approve=True) as service:
        stage.registry.boxes[2] = Box([Asked(1, "")])
        await poll(service)
        assert service.trusted()[0].public_key == b""
        stage.registry.add(1)
        await send(stage, 1, message(1, 2))
        assert service.trusted()[0].public_key == KEY


async def test_strangers_fill_no_more_than_the_pending_table() -> None:
    stage = Stage()
    async with stage.service(2) as service:
        for node in range(1000, 1000 + records.MAX_PENDING_PER_SOURCE + 2):
            await send(stage, 1, message(node, 2))
        assert len(service.pending()) == records.MAX_PENDING_PER_SOURCE
        stage.registry.boxes[2] = Box([Asked(node, "") for node in range(1, 400)])
        await poll(service)
        assert len(service.pending()) == records.MAX_PENDING
        assert stage.hosts[2].counters["handshake_pending"]() == records.MAX_PENDING


# ---- answers --------------------------------------------------------------------------------------------------------


async def test_an_acceptance_counts_once_and_only_when_asked_for() -> None:
    stage = Stage()
    async with Inbox(stage, 1), stage.service(2) as service:
        await send(stage, 1, message(1, 2, ACCEPT))
        assert service.trusted() == []
        await service.request(1)
        waiting = asyncio.create_task(service.wait_for_trust(1, 5))
        await settle()
        events = published(stage.deps[2])
        await send(stage, 1, message(1, 2, ACCEPT, reason="now"))
        assert await waiting
        (record,) = service.trusted()
        assert (record.mutual, record.public_key) == (True, KEY)
        assert events.take() == []  # as officially: no event for an accepted request of one's own
        assert frozenset({1, 2}) in stage.registry.pairs


async def test_answers_after_a_revocation_count_for_nothing_until_asked_again() -> None:
    stage = Stage()
    async with Inbox(stage, 1), stage.service(2, auto_approve=True) as service:
        await send(stage, 1, message(1, 2))
        await service.request(1)
        await service.revoke(1)
        service._book.outgoing[1] = 1  # an earlier request that nobody has answered
        await send(stage, 1, message(1, 2, ACCEPT))
        stage.registry.boxes[2] = Box(responses=[Answered(1, True)])
        await poll(service)
        assert service.trusted() == []
        await service.request(1)
        await send(stage, 1, message(1, 2, ACCEPT, reason="at last"))
        assert len(service.trusted()) == 1


@pytest.mark.parametrize("relayed", [False, True])
async def test_a_rejection_forgets_the_request(relayed) -> None:
    stage = Stage()
    async with Inbox(stage, 1), stage.service(2) as service:
        await service.request(1)
        events = published(stage.deps[2])
        if relayed:
            stage.registry.boxes[2] = Box(responses=[Answered(1, False)])
            await poll(service)
        else:
            await send(stage, 1, message(1, 2, REJECT, reason="no"))
        assert (service.outgoing(), events.take()) == ({}, [])


async def test_an_approval_and_a_request_in_one_mailbox() -> None:
    stage = Stage()
    stage.registry.add(1)
    async with stage.service(2) as service:
        stage.network.silent.add((1, 444))
        service._book.outgoing[1] = int(time.time())
        stage.registry.boxes[2] = Box([Asked(1, "me too")], [Answered(1, False)])
        await poll(service)
        assert [request.justification for request in service.pending()] == ["me too"]  # and not mutual
        service._book.outgoing[1] = int(time.time())
        stage.registry.boxes[2] = Box(responses=[Answered(1, True)])
        await poll(service)
        assert (service.trusted()[0].public_key, service.pending()) == (KEY, [])


async def test_the_peer_takes_its_trust_back() -> None:
    stage = Stage()
    stage.registry.add(1)
    async with stage.service(2, auto_approve=True) as service:
        await send(stage, 1, message(1, 2))
        await eventually(lambda: stage.registry.pairs)
        events = published(stage.deps[2])
        await send(stage, 1, message(1, 2, REVOKE, public_key=b"", signature=b""))  # 1.18.0 takes it
        await send(stage, 7, message(1, 2, REVOKE))
        assert len(service.trusted()) == 1
        stage.registry.down = True
        await send(stage, 1, message(1, 2, REVOKE, key_of=9))  # who could say whose key that is?
        assert len(service.trusted()) == 1
        stage.registry.down = False
        await send(stage, 1, message(1, 2, REVOKE, reason="trust revoked"))
        assert service.trusted() == []
        assert events.take() == [
            ("trust.revoked_by_peer", {"peer_node_id": 1}),
            ("trust.changed", {"peer_node_id": 1, "state": "revoked", "reason": "by_peer"}),
        ]
        assert stage.hosts[2].dropped == [1]
        await eventually(lambda: not stage.registry.pairs)
        await send(stage, 1, message(1, 2, REVOKE, reason="again"))
        assert events.take() == []


async def test_an_unknown_type_is_ignored_once_and_then_a_replay() -> None:
    stage = Stage()
    stage.registry.add(1)
    async with stage.service(2) as service:
        data = message(1, 2, "handshake_dance")
        await send(stage, 1, data)
        assert dropped(stage) == 0
        await send(stage, 1, data)
        assert dropped(stage) == 1
        assert (service.pending(), service.trusted()) == ([], [])
