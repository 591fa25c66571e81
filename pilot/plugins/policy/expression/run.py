"""One evaluation: its variables, what it has used up, and when it has to end (plugin policy, L11; services.md 9.6)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from pilot.plugins.policy.expression.errors import ExpressionError, Failure
from pilot.plugins.policy.expression.limits import (
    MEMORY_BUDGET,
    SECONDS_PER_EVALUATION,
    STEPS_BETWEEN_CLOCK_READINGS,
    TIMED_OUT,
)
from pilot.plugins.policy.expression.values import SHORT_TEXT


class Run:
    """What the closures of one evaluation share.

    `slots` hold what `let` names and the elements predicates are at. The clock is first read after some steps: an
    evaluation without loops never does.
    """

    __slots__ = ("env", "memory", "monotonic", "now", "slots", "started", "steps")

    def __init__(
        self, env: Mapping[str, Any], slots: int, monotonic: Callable[[], float], now: Callable[[], float]
    ) -> None:
        self.env = env
        self.slots: list[Any] = [None] * slots
        self.monotonic = monotonic
        self.now = now
        self.steps = STEPS_BETWEEN_CLOCK_READINGS
        self.started: float | None = None
        self.memory = 0

    def tick(self, steps: int = 1) -> None:
        """Count steps of a loop.

        Raises:
            ExpressionError: the evaluation has taken SECONDS_PER_EVALUATION.
        """
        self.steps -= steps
        if self.steps < 0:
            self.steps = STEPS_BETWEEN_CLOCK_READINGS
            moment = self.monotonic()
            if self.started is None:
                self.started = moment
            elif moment - self.started > SECONDS_PER_EVALUATION:
                raise ExpressionError(TIMED_OUT)

    def charge(self, items: int) -> None:
        """Count elements made.

        Raises:
            Failure: MEMORY_BUDGET is used up.
        """
        self.memory += items
        if self.memory >= MEMORY_BUDGET:
            raise Failure("memory budget exceeded")
        self.tick(1 + items // 16)

    def charge_text(self, text: str) -> str:
        """Count the characters of a long text made; return it."""
        if len(text) > SHORT_TEXT:
            self.charge(len(text))
        return text


Closure: TypeAlias = Callable[[Run], Any]
