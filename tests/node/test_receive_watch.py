"""The watch for silence: when it acts, how often, and when it says that the silence is over (wire.md 12.6) (L9)."""

from __future__ import annotations

from typing import Any

from pilot.node.receive_watch import TICK_SECONDS, Received, ReceiveWatch


class Stage:
    """A watch whose node the test plays."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.seen = Received(0, 0, 0, 0)
        self.told: list[tuple[str, dict[str, Any]]] = []
        self.recoveries: list[str] = []
        self.watch = ReceiveWatch(
            lambda: self.seen,
            self.recoveries.append,
            lambda topic, payload: self.told.append((topic, payload)),
            lambda: self.now,
        )

    def ticks(self, count: int, *, heard: int = 0, raw: int = 0, sent: int = 0, dials: int = 0) -> None:
        for _ in range(count):
            self.now += TICK_SECONDS
            frames, datagrams, total, timeouts = self.seen
            self.seen = Received(frames + heard, datagrams + heard + raw, total + sent, timeouts + dials)
            self.watch.tick()


def test_silence_while_much_is_sent() -> None:
    stage = Stage()
    stage.ticks(5, raw=1, sent=10)
    assert stage.told == []
    stage.ticks(1, sent=10)
    payload = {
        "reason": "rx_silence",
        "silent_for_seconds": 180,
        "pkts_sent_during_silence": 60,
        "dial_timeouts": 0,
        "raw_rx_age_seconds": 30,
        "attempt": 1,
    }
    assert stage.told == [("tunnel.rx_silence", payload)]
    stage.ticks(20, sent=10)
    assert stage.recoveries == ["rx_silence"] * 3, "three times, then it is left alone"
    assert [told[1]["attempt"] for told in stage.told] == [1, 2, 3]
    stage.told.clear()
    stage.ticks(1, heard=1)
    assert stage.told == [("tunnel.rx_recovered", {"silent_for_seconds": 810, "soft_attempts": 3})]
    stage.ticks(6, sent=10)
    assert stage.told[1][1]["attempt"] == 1, "another silence, another three"


def test_a_quiet_node_is_not_wedged() -> None:
    stage = Stage()
    stage.ticks(100, raw=1)
    stage.ticks(1, sent=29)
    assert stage.told == []
    stage.ticks(1, sent=1)
    assert len(stage.told) == 1


def test_an_ordinary_life() -> None:
    stage = Stage()
    stage.ticks(100, heard=3, sent=100)
    assert (stage.told, stage.recoveries) == ([], [])


def test_dials_without_answer() -> None:
    stage = Stage()
    stage.ticks(3, heard=1, dials=1)
    assert stage.told == []
    stage.ticks(1, heard=1, dials=1)
    assert stage.recoveries == ["dial_timeouts"]
    assert stage.told[0][1]["dial_timeouts"] == 4
    stage.ticks(3, dials=1)
    assert len(stage.recoveries) == 1, "four more are needed"
    stage.ticks(1, dials=1)
    assert len(stage.recoveries) == 2
    stage.seen = stage.seen._replace(dial_timeouts=0)
    stage.ticks(1)
    stage.ticks(3, dials=1)
    assert len(stage.recoveries) == 2
    stage.ticks(1, dials=1)
    assert len(stage.recoveries) == 3, "counted from the dial that got through"
