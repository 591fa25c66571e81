"""The trust gate of a private node: who is admitted to what, for how long, and how much a stranger can make it ask."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from pilot._fast.errors import RegistryError
from pilot.node import trust
from pilot.node.trust import TrustGate


class Stage:
    """A gate with everything around it in the test's hands."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.public = False
        self.trusted: set[int] = set()
        self.streams: dict[int, int] = {}
        self.vouched: set[int] = set()
        self.asked: list[int] = []
        self.registry_down = False
        self.tasks: list[asyncio.Task[None]] = []
        self.gate = TrustGate(
            is_public=lambda: self.public,
            is_trusted=self.trusted.__contains__,
            find_peer=self.find_peer,
            check_trust=self.check_trust,
            spawn=lambda coroutine: self.tasks.append(asyncio.ensure_future(coroutine)),
            clock=lambda: self.now,
        )

    def find_peer(self, node: int) -> Any:
        return SimpleNamespace(open_streams=self.streams[node]) if node in self.streams else None

    async def check_trust(self, node: int) -> bool:
        self.asked.append(node)
        await asyncio.sleep(0)
        if self.registry_down:
            raise RegistryError("down")
        return node in self.vouched

    async def settled(self) -> None:
        await asyncio.gather(*self.tasks)

    def admitted(self, node: int) -> list[bool]:
        """To a stream, a ping, a datagram, a service."""
        gate = self.gate
        return [gate.admit_syn(node, 1), gate.admit_ping(node), gate.admit_datagram(node), gate.serves(node)]


@pytest.fixture
def stage() -> Stage:
    return Stage()


async def test_public_admits_everybody_and_asks_nobody(stage: Stage) -> None:
    stage.public = True
    assert stage.admitted(5) == [True] * 4
    assert stage.asked == []


async def test_stranger_is_asked_about_once_and_denied(stage: Stage) -> None:
    assert stage.admitted(5) == [False] * 4
    await stage.settled()
    assert stage.admitted(5) == [False] * 4
    assert stage.asked == [5]
    stage.now += trust.DENIED_SECONDS
    stage.admitted(5)
    await stage.settled()
    assert stage.asked == [5, 5]


async def test_registry_vouches_for_a_while(stage: Stage) -> None:
    stage.vouched.add(5)
    assert stage.admitted(5) == [False] * 4
    await stage.settled()
    assert stage.admitted(5) == [True] * 4
    stage.vouched.clear()
    stage.now += trust.VOUCHED_SECONDS
    assert stage.admitted(5) == [False] * 4


async def test_no_answer_is_no(stage: Stage) -> None:
    stage.registry_down = True
    stage.vouched.add(5)
    stage.admitted(5)
    await stage.settled()
    assert stage.admitted(5) == [False] * 4


async def test_trusted_and_connected(stage: Stage) -> None:
    stage.trusted.add(5)
    assert stage.admitted(5) == [True] * 4
    stage.streams[6] = 1
    assert stage.admitted(6) == [True, True, True, False]
    stage.streams[6] = 0
    assert stage.admitted(6) == [False] * 4


async def test_dialed_may_answer_for_five_minutes_but_send_no_datagrams(stage: Stage) -> None:
    stage.gate.dialed(5)
    assert stage.admitted(5) == [True, True, False, False]
    stage.now += trust.REPLY_WINDOW_SECONDS
    assert stage.admitted(5) == [False] * 4


async def test_everything_a_stranger_can_fill_is_bounded(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust, "MAX_DIALED", 10)
    monkeypatch.setattr(trust, "MAX_ANSWERS", 10)
    for node in range(1, 1000):
        stage.gate.dialed(node)
        stage.gate.admit_ping(node + 5000)
    assert len(stage.gate._dialed) == 10
    assert len(stage.asked) == 0
    assert len(stage.tasks) == trust.MAX_CHECKS
    await stage.settled()
    assert len(stage.gate._answers) == 10
    assert stage.gate._checking == {}


async def test_one_that_is_forgotten_is_a_stranger_at_once(stage: Stage) -> None:
    stage.vouched.add(5)
    assert stage.admitted(5) == [False] * 4
    await stage.settled()
    stage.gate.dialed(5)
    assert stage.admitted(5) == [True] * 4
    stage.gate.forget(5)
    assert stage.admitted(5) == [False] * 4
    stage.now += trust.DENIED_SECONDS
    assert not stage.gate.admit_syn(5, 1)  # asks the registry
    stage.gate.forget(5)  # whose answer is an old one now
    await stage.settled()
    assert not stage.gate.admit_syn(5, 1)
    stage.gate.dialed(5)
    assert stage.gate.admit_syn(5, 1)


async def test_a_slow_answer_from_before_a_revocation_is_not_that_to_a_later_question(stage: Stage) -> None:
    answers = []

    async def ask(node: int) -> bool:
        answers.append(asyncio.get_running_loop().create_future())
        return bool(await answers[-1])

    stage.gate._check_trust = ask
    assert not stage.gate.admit_syn(5, 1)
    await asyncio.sleep(0)
    stage.gate.forget(5)
    stage.now += trust.DENIED_SECONDS
    assert not stage.gate.admit_syn(5, 1)
    await asyncio.sleep(0)
    answers[0].set_result(True)
    await stage.tasks[0]
    assert not stage.gate.admit_syn(5, 1)
    answers[1].set_result(False)
    await stage.settled()
    assert len(answers) == 2
    assert not stage.gate.admit_syn(5, 1)
