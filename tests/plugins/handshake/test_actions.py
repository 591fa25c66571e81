"""The operator's actions, the poll schedule, and the life of the plugin: start, crash, restart, stop."""

from __future__ import annotations

import asyncio
import json
import logging
import time

import pytest

from pilot.coreapi import (
    BusyError,
    InvalidValueError,
    PeerNotFoundError,
    RegistryError,
    ServiceNotReadyError,
    TrustMatch,
    is_plugin_healthy,
    reset_plugin_recovered_panic_count_for_test,
)
from pilot.plugins.handshake import HandshakeService, RequestOutcome
from pilot.plugins.handshake.mailbox import MailboxPoller
from pilot.plugins.handshake.message import MessageType
from pilot.plugins.handshake.outbound import MAX_ERRANDS
from pilot.plugins.handshake.records import TrustRecord
from pilot.testing import run
from pilot.testing.coreapi import SERVICE_CHECKS
from tests.plugins.fakes import Identity, Network, eventually, published, settle
from tests.plugins.handshake.helpers import Answered, Asked, Box, FakeHost, Record, Stage, message, poll
from tests.plugins.handshake.test_receiving import Inbox, send


@pytest.fixture(autouse=True)
def no_panics():
    reset_plugin_recovered_panic_count_for_test()
    yield
    assert is_plugin_healthy("handshake")


# ---- actions --------------------------------------------------------------------------------------------------------


async def test_where_a_request_goes() -> None:
    stage = Stage()
    async with Inbox(stage, 1) as inbox, stage.service(2) as service:
        assert await service.request(1, "hi") is RequestOutcome.SENT
        assert (inbox.messages[0].type, inbox.messages[0].justification) == (MessageType.REQUEST, "hi")
        stage.registry.add(3)  # known to the registry, but nobody listens
        assert await service.request(3, "relay me") is RequestOutcome.RELAYED
        assert stage.registry.boxes[3].requests == [Asked(2, "relay me")]
        assert list(service.outgoing()) == [1, 3]
        with pytest.raises(PeerNotFoundError):
            await service.request(4)
        stage.registry.down = True
        with pytest.raises(RegistryError) as refused:
            await service.request(5)
        assert "could not be asked directly either" in refused.value.__notes__[0]
        assert list(service.outgoing()) == [1, 3]


async def test_a_request_that_still_waits_in_the_mailbox_is_no_failure(monkeypatch) -> None:
    stage = Stage()
    async with stage.service(2) as service:

        async def refuse(peer_id: int, justification: str = "") -> None:
            raise RegistryError("registry x refused request_handshake: handshake request already pending from node 2")

        stage.hosts[2].registry.request_handshake = refuse
        assert await service.request(3) is RequestOutcome.RELAYED


def test_one_request_to_a_node_at_a_time() -> None:
    async def scenario():
        stage = Stage()
        stage.registry.add(1)
        async with stage.service(2) as service:
            stage.network.nodes.add(1)
            stage.network.silent.add((1, 444))
            first = asyncio.create_task(service.request(1))
            await settle()
            assert await service.request(1) is RequestOutcome.IN_FLIGHT
            first.cancel()
            with pytest.raises(asyncio.CancelledError):
                await first
            assert list(service.outgoing()) == [1]  # it may have been delivered

    run(scenario())


@pytest.mark.parametrize("bad", [0, -1, 0xFFFFFFFE, 1 << 32, True, "1", None])
async def test_node_ids_that_cannot_be(bad) -> None:
    stage = Stage()
    async with stage.service(2) as service:
        for action in (service.request, service.approve, service.reject, service.revoke):
            with pytest.raises(InvalidValueError):
                await action(bad)


async def test_texts_that_are_too_long() -> None:
    stage = Stage()
    stage.registry.add(1)
    async with stage.service(2) as service:
        with pytest.raises(InvalidValueError, match="shorten"):
            await service.request(1, "x" * 1000)
        await send(stage, 1, message(1, 2))
        with pytest.raises(InvalidValueError, match="shorten"):
            await service.reject(1, "x" * 1000)
        assert (service.outgoing(), len(service.pending())) == ({}, 1)


async def test_approval_is_told_both_ways() -> None:
    stage = Stage()
    async with Inbox(stage, 1) as inbox, stage.service(2) as service:
        assert not await service.approve(1)
        await send(stage, 1, message(1, 2))
        events = published(stage.deps[2])
        assert await service.approve(1)
        assert events.take() == [
            ("handshake.approved", {"peer_node_id": 1}),
            ("trust.changed", {"peer_node_id": 1, "state": "granted", "reason": "approved"}),
        ]
        await eventually(lambda: inbox.messages and stage.registry.boxes[1].responses == [Answered(2, True)])
        assert (inbox.messages[0].type, service.trusted()[0].mutual) == (MessageType.ACCEPT, False)


async def test_nobody_is_approved_under_another_key_than_asked() -> None:
    stage = Stage()
    stage.registry.add(1)
    async with stage.service(2) as service:
        await send(stage, 1, message(1, 2))
        stage.registry.records[1] = Record(Identity(9).public_key)
        with pytest.raises(InvalidValueError, match="another key"):
            await service.approve(1)
        assert (service.trusted(), service.pending()) == ([], [])
        stage.registry.boxes[2] = Box([Asked(1, "through the mailbox")])
        await poll(service)
        assert await service.approve(1)
        assert service.trusted()[0].public_key == Identity(9).public_key


async def test_a_request_that_waits_in_the_mailbox_can_be_approved_at_once() -> None:
    stage = Stage()
    stage.registry.add(1)
    async with stage.service(2) as service:
        stage.registry.boxes[2] = Box([Asked(1, "waits")])
        service._life.mailbox._last -= 10
        assert await service.approve(1)


async def test_rejection_is_told_both_ways_even_unasked() -> None:
    stage = Stage()
    async with Inbox(stage, 1) as inbox, stage.service(2) as service:
        events = published(stage.deps[2], "handshake.rejected")
        assert not await service.reject(1, "no thanks")
        assert events.take() == [("handshake.rejected", {"peer_node_id": 1, "reason": "no thanks"})]
        await eventually(lambda: inbox.messages and stage.registry.boxes[1].responses == [Answered(2, False)])
        assert (inbox.messages[0].type, inbox.messages[0].reason) == (MessageType.REJECT, "no thanks")


async def test_revocation_is_told_and_the_registry_is_asked_until_it_does() -> None:
    stage = Stage()
    async with Inbox(stage, 1) as inbox, stage.service(2, auto_approve=True) as service:
        with pytest.raises(PeerNotFoundError, match="node 1 was not trusted"):
            await service.revoke(1)
        await send(stage, 1, message(1, 2))
        await eventually(lambda: stage.registry.pairs and inbox.messages)
        stage.registry.down = True
        events = published(stage.deps[2])
        await service.revoke(1)
        assert events.take() == [
            ("trust.revoked", {"peer_node_id": 1}),
            ("trust.changed", {"peer_node_id": 1, "state": "revoked", "reason": "local"}),
        ]
        await eventually(lambda: inbox.messages[-1].type == MessageType.REVOKE and stage.hosts[2].dropped == [1])
        assert inbox.messages[-1].reason == "trust revoked"
        await settle()
        assert stage.registry.pairs
        stage.registry.down = False
        stage.deps[2].events.publish("node.reregistered", {"address": ""})
        await eventually(lambda: not stage.registry.pairs)
        await eventually(lambda: stage.hosts[2].dropped == [1, 1])  # the registry had vouched for it until then
        assert not service._book.withdrawals
        assert not service.is_trusted_peer(1)


@pytest.mark.parametrize("restart", ["node", "plugin"])
async def test_a_revocation_the_registry_has_missed_is_told_after_a_restart(tmp_path, restart) -> None:
    """Even when the cooldown is over by then: the registry would vouch for the peer at the gate for ever."""
    stage = Stage()
    late = [0.0]
    options = {"state_dir": tmp_path, "wall": lambda: time.time() + late[0]}
    async with Inbox(stage, 1), stage.service(2, auto_approve=True, **options) as service:
        await send(stage, 1, message(1, 2))
        await eventually(lambda: stage.registry.pairs)
        stage.registry.down = True
        await service.revoke(1)
        late[0] = 1000.0
        service._life.ledger.sweep()
        if restart == "plugin":
            await service.stop()
            await service.start(stage.deps[2])
            stage.registry.down = False
            stage.deps[2].events.publish("node.reregistered", {"address": ""})
            await eventually(lambda: not stage.registry.pairs)
    assert bool(stage.registry.pairs) is (restart == "node")
    stage.registry.down = False
    async with stage.service(2, **options) as service:
        stage.deps[2].events.publish("node.registered", {"address": ""})
        await eventually(lambda: not service._book.withdrawals)
        assert not stage.registry.pairs
        service._life.ledger.sweep()
        assert service._book.revoked == {}


async def test_a_report_under_way_does_not_outlive_a_revocation() -> None:
    """The registry is slow to take the grant's report, quick to take the revocation."""
    stage = Stage()
    async with Inbox(stage, 1) as inbox, stage.service(2, auto_approve=True) as service:
        calls, go = stage.hosts[2].registry, asyncio.Event()
        report = calls.report_trust

        async def slow(peer_id: int) -> None:
            await go.wait()
            await report(peer_id)

        calls.report_trust = slow
        await send(stage, 1, message(1, 2))
        await eventually(lambda: service.is_trusted_peer(1))
        await service.revoke(1)
        await eventually(lambda: not service._book.withdrawals)
        go.set()
        await settle()
        await eventually(lambda: not service._life._errands._tasks)
        assert stage.registry.pairs == set()
        assert MessageType.ACCEPT not in [received.type for received in inbox.messages]


async def test_trust_that_begins_while_its_end_is_told_is_reported() -> None:
    stage = Stage()
    async with stage.service(2, auto_approve=True) as service:
        service._book.trust(TrustRecord(1, b"", 1, True))
        calls, go = stage.hosts[2].registry, asyncio.Event()
        revoke = calls.revoke_trust

        async def slow(peer_id: int) -> None:
            await go.wait()
            await revoke(peer_id)

        calls.revoke_trust = slow
        await service.revoke(1)
        await settle()
        await send(stage, 1, message(1, 2))
        await eventually(lambda: stage.registry.pairs)
        go.set()
        await eventually(lambda: not service._life._errands._tasks)
        assert stage.registry.pairs == {frozenset({1, 2})}


def test_who_is_revoked_while_trust_is_being_reported_is_not_reported() -> None:
    async def scenario():
        stage = Stage()
        async with stage.service(2) as service:
            for node in range(1, 200):
                if node != 2:
                    service._book.trust(TrustRecord(node, b"", 1, True))
            stage.deps[2].events.publish("node.reregistered", {"address": ""})
            await eventually(lambda: stage.registry.pairs)
            await service.revoke(199)
            await asyncio.sleep(60)
            assert frozenset({2, 198}) in stage.registry.pairs
            assert frozenset({2, 199}) not in stage.registry.pairs

    run(scenario())


def test_a_revocation_returns_when_the_tunnel_has_ended() -> None:
    async def scenario():
        stage = Stage()
        loop = asyncio.get_running_loop()
        async with Inbox(stage, 1), stage.service(2) as service:
            service._book.trust(TrustRecord(1, b"", 1, True))
            await service.revoke(1)
            assert stage.hosts[2].dropped == [1]
            stage.network.silent.add((1, 444))
            for cancelled in (False, True):
                before = loop.time()
                service._book.trust(TrustRecord(1, b"", 1, True))
                revoking = asyncio.create_task(service.revoke(1))
                await asyncio.sleep(1)
                if cancelled:
                    revoking.cancel()
                    await asyncio.sleep(10)
                await asyncio.wait([revoking])
                assert loop.time() - before < 16
                assert not service.is_trusted_peer(1)
            assert stage.hosts[2].dropped == [1] * 3

    run(scenario())


def test_a_stop_in_the_middle_of_a_revocation_ends_the_tunnel() -> None:
    async def scenario():
        stage = Stage()
        async with Inbox(stage, 1), stage.service(2) as service:
            stage.network.silent.add((1, 444))
            service._book.trust(TrustRecord(1, b"", 1, True))
            revoking = asyncio.create_task(service.revoke(1))
            await settle()
            assert stage.hosts[2].dropped == []
        await revoking
        assert stage.hosts[2].dropped == [1]

    run(scenario())


async def test_waiting_for_trust() -> None:
    stage = Stage()
    async with stage.service(2, auto_approve=True) as service:
        assert await service.wait_for_trust(2, 0)
        assert not await service.wait_for_trust(1, 0)
        assert not await service.wait_for_trust(1, 0.01)
        waiting = [asyncio.create_task(service.wait_for_trust(1, 60)) for _ in range(1024)]
        await settle()
        with pytest.raises(BusyError):
            await service.wait_for_trust(1, 60)
        waiting.pop().cancel()
        await send(stage, 1, message(1, 2))
        assert all(await asyncio.gather(*waiting))
        assert service._life.ledger._waiters == {}
        late = asyncio.create_task(service.wait_for_trust(7, 60))
        await settle()
    with pytest.raises(ServiceNotReadyError, match="has stopped"):
        await late


def test_errands_are_bounded() -> None:
    async def scenario():
        stage = Stage()
        async with stage.service(2) as service:
            stage.network.nodes.update(range(1000, 1400))
            stage.network.silent.update((node, 444) for node in range(1000, 1400))
            for node in range(1000, 1400):
                service._book.trusted[node] = TrustRecord(node, b"", 1, True)
                stage.registry.pairs.add(frozenset({2, node}))
                service._life.ledger._file.changed = lambda: None
                service._life.ledger.revoke(node, automatic=False)
                if not service._life._errands.spawn("revoke", service._life._finish_revocation(node)):
                    break
            assert len(service._life._errands._tasks) == MAX_ERRANDS

    run(scenario())


# ---- polling --------------------------------------------------------------------------------------------------------


class Clocked:
    """A poller in virtual time, and when it polled, in seconds from the start."""

    def __init__(self, failing: bool = False) -> None:
        loop = asyncio.get_running_loop()
        self.start = loop.time()
        self.polls: list[float] = []
        self.failing = failing
        self.poller = MailboxPoller(self.poll, loop.time, logging.getLogger("test"))

    async def poll(self) -> None:
        self.polls.append(round(asyncio.get_running_loop().time() - self.start, 3))
        if self.failing:
            raise RegistryError("down")


def test_the_poll_schedule() -> None:
    async def scenario():
        clocked = Clocked(failing=True)
        task = asyncio.create_task(clocked.poller.run())
        await asyncio.sleep(130)
        assert clocked.polls == [0, 60, 120]
        clocked.poller.expect(5)
        await asyncio.sleep(130)
        fast = clocked.polls[3:]
        assert fast[:3] == [130, 132, 134]
        assert len([at for at in fast if at <= 250]) == 60
        assert fast[-1] in (248, 250)
        clocked.poller.expect(5)
        clocked.poller.settled(5)
        await asyncio.sleep(40)
        assert clocked.polls[-1] <= 250
        clocked.poller.stop()
        await task

    run(scenario())


def test_notices_cause_three_polls_and_then_one_in_five_seconds() -> None:
    async def scenario():
        clocked = Clocked()
        task = asyncio.create_task(clocked.poller.run())
        await asyncio.sleep(100)
        clocked.polls.clear()
        for _ in range(200):
            clocked.poller.notice()
            await asyncio.sleep(0.1)
        assert clocked.polls[:3] == [100, 100.1, 100.2]
        assert len(clocked.polls) <= 8
        assert all(b - a >= 4.8 for a, b in zip(clocked.polls[3:], clocked.polls[4:], strict=False))
        clocked.poller.stop()
        await task

    run(scenario())


def test_users_cause_one_poll_in_two_seconds_and_share_one_under_way() -> None:
    async def scenario():
        clocked = Clocked()
        task = asyncio.create_task(clocked.poller.run())
        await asyncio.sleep(5)
        await asyncio.gather(*(clocked.poller.refresh() for _ in range(5)))
        assert clocked.polls == [0, 5]
        await clocked.poller.refresh()  # mail may have come meanwhile
        assert clocked.polls == [0, 5, 7]
        clocked.poller.stop()
        await clocked.poller.refresh()
        await task
        await clocked.poller.refresh()
        assert clocked.polls == [0, 5, 7]

    run(scenario())


def test_who_stops_waiting_for_a_poll_loses_no_mail() -> None:
    async def scenario():
        stage = Stage()
        async with stage.service(2) as service:
            await asyncio.sleep(5)

            async def slow() -> Box:
                await asyncio.sleep(1)
                return Box([Asked(1, "")])

            stage.hosts[2].registry.poll_handshakes = slow
            for ask in (service.refresh(), service.approve(1)):
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.4):
                        await ask
            await asyncio.sleep(1)
            assert [request.node_id for request in service.pending()] == [1]

    run(scenario())


def test_no_more_than_sixty_four_answers_are_awaited() -> None:
    async def scenario():
        poller = Clocked().poller
        for node in range(100):
            poller.expect(node)
        assert list(poller._awaited) == list(range(36, 100))

    run(scenario())


# ---- life -----------------------------------------------------------------------------------------------------------


async def test_nothing_works_before_the_start_after_the_stop_or_without_a_node_id() -> None:
    stage = Stage()
    service = HandshakeService.for_node(FakeHost(stage.registry.for_node(2)))
    assert not service.is_trusted_peer(1)
    for ask in (service.trusted, service.pending, service.outgoing):
        with pytest.raises(ServiceNotReadyError):
            ask()
    with pytest.raises(ServiceNotReadyError):
        await service.request(1)
    service._on_mailbox()
    await service.stop()
    async with stage.service(2) as running:
        stage.deps[2].identity.node_id = 0
        for action in (running.request, running.approve, running.reject, running.revoke):
            with pytest.raises(ServiceNotReadyError, match="not registered"):
                await action(1)
        polls = stage.registry.polls
        await poll(running)
        assert stage.registry.polls == polls
        stage.deps[2].identity.node_id = 2


class Agents:
    def is_trusted(self, node_id: int) -> TrustMatch:
        return TrustMatch("desk", True)


async def asks_again(stage: Stage, service: HandshakeService, relayed: bool, text: str) -> None:
    if relayed:
        stage.registry.boxes[2] = Box([Asked(1, text)])
        await poll(service)
    else:
        await send(stage, 1, message(1, 2, justification=text))
    await settle()


@pytest.mark.parametrize("relayed", [False, True])
@pytest.mark.parametrize("given", [{"networks": (4,)}, {"agents": Agents()}], ids=["same_network", "trusted_agent"])
async def test_what_the_user_revokes_comes_back_by_the_users_word_alone(tmp_path, given, relayed) -> None:
    stage = Stage()
    async with Inbox(stage, 1, 4), stage.service(2, state_dir=tmp_path, **given) as service:
        await asks_again(stage, service, relayed, "first")
        assert service.is_trusted_peer(1)
        await service.revoke(1, automatic=True)
        assert service.distrusted() == {}
        await asks_again(stage, service, relayed, "after a policy")
        assert service.is_trusted_peer(1)
        await service.revoke(1)
        assert list(service.distrusted()) == [1]
    late = 90 * 86400 if relayed else 0  # a direct message of so long ago would be dropped for that
    options = {**given, "state_dir": tmp_path, "wall": lambda: time.time() + late}
    async with Inbox(stage, 1, 4), stage.service(2, **options) as service:
        service._life.ledger.sweep()
        events = published(stage.deps[2])
        await asks_again(stage, service, relayed, "please")
        assert not service.is_trusted_peer(1)
        assert [request.justification for request in service.pending()] == ["please"]
        assert {topic for topic, _ in events.take()} == (
            set() if relayed else {"handshake.received", "handshake.pending"}
        )
        await service.reject(1)
        assert list(service.distrusted()) == [1], "a no lifts nothing"
        await asks_again(stage, service, relayed, "please, please")
        assert await service.approve(1)
        assert service.distrusted() == {}
        await service.revoke(1, automatic=True)
        await asks_again(stage, service, relayed, "as before")
        assert service.is_trusted_peer(1)


async def test_who_is_asked_again_is_not_distrusted_any_more() -> None:
    stage = Stage()
    async with Inbox(stage, 1, 4), stage.service(2, networks=(4,)) as service:
        await send(stage, 1, message(1, 2))
        await service.revoke(1)
        await service.request(1)
        assert service.distrusted() == {}
        await send(stage, 1, message(1, 2, justification="me too"))
        assert service.trusted()[0].mutual


async def test_auto_approve_accepts_every_request_also_of_whom_the_user_revoked() -> None:
    stage = Stage()
    async with Inbox(stage, 1, 4), stage.service(2, networks=(4,), auto_approve=True) as service:
        await send(stage, 1, message(1, 2))
        assert service.trusted()[0].network == 4
        await service.revoke(1)
        events = published(stage.deps[2])
        await send(stage, 1, message(1, 2, justification="again"))
        assert service.is_trusted_peer(1)
        assert ("handshake.auto_approved", {"peer_node_id": 1, "reason": "auto_approve"}) in events.take()
        assert service.distrusted() == {}


async def test_a_restart_keeps_trust_and_a_new_node_reads_it(tmp_path) -> None:
    stage = Stage()
    async with stage.service(2, auto_approve=True, state_dir=tmp_path) as service:
        await send(stage, 1, message(1, 2))
        await service.stop()
        assert service.is_trusted_peer(1)  # the gate does not close because a plugin is restarted
        await service.start(stage.deps[2])
        assert len(service.trusted()) == 1
        assert len(stage.hosts[2].trust_sources) == 1
    assert json.loads((tmp_path / "trust.json").read_text())["trusted"][0]["node_id"] == 1
    async with stage.service(2, state_dir=tmp_path) as service:
        assert service.is_trusted_peer(1)
        await service.revoke(1)
        assert json.loads((tmp_path / "trust.json").read_text())["trusted"] is None  # before the call returns


async def test_a_damaged_file_ends_the_start_and_stays(tmp_path) -> None:
    (tmp_path / "trust.json").write_text("nonsense")
    stage = Stage()
    with pytest.raises(InvalidValueError, match="is damaged"):
        async with stage.service(2, state_dir=tmp_path):
            pytest.fail("it must not start")
    assert (tmp_path / "trust.json").read_text() == "nonsense"
    assert (2, 444) not in stage.network.listeners


async def test_trust_is_reported_after_each_registration_and_late_revocations_too() -> None:
    stage = Stage()
    async with stage.service(2) as service:
        service._book.trust(TrustRecord(1, b"", 1, True))
        service._book.revoked[3] = int(time.time()) + 60
        stage.registry.pairs.add(frozenset({2, 3}))
        stage.deps[2].events.publish("node.reregistered", {"address": ""})
        await eventually(lambda: stage.registry.pairs == {frozenset({1, 2})})


async def test_a_crash_while_handling_ends_that_stream_only(caplog) -> None:
    stage = Stage()
    stage.registry.add(1)
    async with stage.service(2) as service:
        events = published(stage.deps[2], "plugin.*")
        lookup = stage.hosts[2].registry.lookup

        async def crash(node_id: int, *, max_age: float | None = None) -> Record:
            raise ZeroDivisionError("a defect")

        stage.hosts[2].registry.lookup = crash
        await send(stage, 1, message(1, 2))
        stage.registry.boxes[2] = Box([Asked(1, "")])
        await poll(service)
        assert [payload["op"] for _, payload in events.take()] == ["handle", "relayed request"]
        stage.hosts[2].registry.lookup = lookup
        await send(stage, 1, message(1, 2, justification="well again"))
        assert len(service.pending()) == 1


def test_a_loop_that_crashed_runs_again(caplog) -> None:
    async def scenario():
        stage = Stage()
        async with stage.service(2) as service:
            calls = stage.hosts[2].registry
            good, crashes = calls.poll_handshakes, []

            async def crash() -> Box:
                crashes.append(1)
                raise ZeroDivisionError("a defect")

            calls.poll_handshakes = crash
            await settle()
            service._on_mailbox()
            service._life.mailbox._last -= 100
            await asyncio.sleep(0.5)
            assert crashes
            calls.poll_handshakes = good
            polls = stage.registry.polls
            service._life.mailbox._last -= 100
            await asyncio.sleep(2)
            assert stage.registry.polls > polls

    run(scenario())


def test_a_stop_waits_for_a_poll_under_way_but_not_for_ever() -> None:
    async def scenario():
        loop = asyncio.get_running_loop()
        for seconds, kept in ((1.0, True), (100.0, False)):
            stage = Stage()
            async with stage.service(2) as service:
                await settle()

                async def slow(seconds: float = seconds) -> Box:
                    await asyncio.sleep(seconds)
                    return Box([Asked(1, "")])

                stage.hosts[2].registry.poll_handshakes = slow
                service._life.mailbox._last -= 100
                service._on_mailbox()
                await settle()
                before = loop.time()
                book = service._book
            assert loop.time() - before < 4
            assert bool(book.pending) is kept

    run(scenario())


def test_nothing_is_left_running() -> None:
    async def scenario():
        before = asyncio.all_tasks()
        stage = Stage()
        async with Inbox(stage, 1), stage.service(2) as service:
            stage.network.silent.add((1, 444))
            await service.reject(1)
            service._book.trust(TrustRecord(1, b"", 1, True))
            revoking = asyncio.create_task(service.revoke(1))  # its errand is cancelled, and would start another one
            await settle()
        await revoking
        await settle()
        assert asyncio.all_tasks() == before

    run(scenario())


@pytest.mark.parametrize("check", SERVICE_CHECKS, ids=lambda check: check.__name__)
async def test_conformance(check, tmp_path) -> None:
    def service() -> HandshakeService:
        return HandshakeService.for_node(FakeHost(Stage().registry.for_node(1), tmp_path))

    await check(service, Network().deps(1))
