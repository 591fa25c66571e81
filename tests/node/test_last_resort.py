"""A node that stays deaf: when it ends, when it does not, and what it remembers over restarts (L9)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pilot.node.last_resort import EXIT_CODE, FILE_NAME, LastResort, Silence
from pilot.node.receive_watch import TICK_SECONDS, Received, ReceiveWatch
from pilot.node.state import StateDirectory

SILENCE = Silence("rx_silence", 270, 40, 3, 0)


class Stage:
    """A last resort, and what it did."""

    def __init__(self, directory: Path | None) -> None:
        self.now, self.ready, self.ends = 1e9, True, 0
        self.told: list[tuple[str, dict[str, Any]]] = []
        self.resort = LastResort(
            StateDirectory(directory),
            ready=lambda: self.ready,
            publish=lambda topic, payload: self.told.append((topic, payload)),
            end=self.end,
            wall=lambda: self.now,
        )

    def end(self) -> None:
        self.ends += 1


def test_it_ends_the_node_and_says_so(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    assert stage.resort.take(SILENCE)
    assert stage.ends == 1
    payload = {
        "reason": "rx_silence",
        "silent_for_seconds": 270,
        "pkts_sent_during_silence": 40,
        "soft_attempts": 3,
        "dial_timeouts": 0,
        "exit_code": EXIT_CODE,
    }
    assert stage.told == [("tunnel.rx_wedged_exit", payload)]


def test_not_before_it_is_ready(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    stage.ready = False
    assert not stage.resort.take(SILENCE)
    assert (stage.ends, stage.told, list(tmp_path.iterdir())) == (0, [], [])


def test_three_times_in_two_hours(tmp_path: Path) -> None:
    for life in range(3):
        stage = Stage(tmp_path)
        stage.now += life * 2400
        assert stage.resort.take(SILENCE)
        assert stage.ends == 1
    stage = Stage(tmp_path)
    stage.now += 7199
    assert stage.resort.take(SILENCE)
    assert stage.ends == 0
    payload = {"reason": "rx_silence", "recent_exits": 3, "window_seconds": 7200, "silent_for_seconds": 270}
    assert stage.told == [("tunnel.rx_wedge_restart_loop", payload)]
    stage.now += 1
    assert stage.resort.take(SILENCE)
    assert stage.ends == 1, "the first is two hours ago"


@pytest.mark.parametrize("content", ["{", "5", '["x", null, 1e99]', "[]"])
def test_a_file_that_tells_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE_NAME).write_text(content)
    stage = Stage(tmp_path)
    assert stage.resort.take(SILENCE)
    assert stage.ends == 1


def test_without_a_place_to_note_it_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError("disk full")

    stage = Stage(tmp_path)
    monkeypatch.setattr(StateDirectory, "write_json", full)
    assert stage.resort.take(SILENCE)
    assert stage.ends == 0, "it could end for ever"


def test_an_ephemeral_node_ends_too() -> None:
    stage = Stage(None)
    assert stage.resort.take(SILENCE)
    assert stage.ends == 1


def test_the_watch_asks_after_the_third_attempt_until_it_is_dealt_with() -> None:
    now, sent, heard = 0.0, 0, 0
    asked: list[Silence] = []

    def last(silence: Silence) -> bool:
        asked.append(silence)
        return len(asked) % 3 == 0

    watch = ReceiveWatch(
        lambda: Received(heard, heard, sent, 0), lambda _: None, lambda _topic, _payload: None, lambda: now, last
    )
    for _ in range(8):  # three attempts, at 180, 210 and 240 s
        now, sent = now + TICK_SECONDS, sent + 10
        watch.tick()
    assert asked == []
    for _ in range(10):
        now, sent = now + TICK_SECONDS, sent + 10
        watch.tick()
    assert [(silence.reason, silence.seconds, silence.sent, silence.attempts) for silence in asked] == [
        ("rx_silence", 270, 90, 3),
        ("rx_silence", 300, 100, 3),
        ("rx_silence", 330, 110, 3),
    ]
    heard += 1
    for _ in range(12):
        now, sent = now + TICK_SECONDS, sent + 10
        watch.tick()
    assert len(asked) == 6, "another silence"
