"""A compiled expression (plugin policy, L11; services.md 9.5, 9.6)."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from pilot.plugins.policy.expression.checker import check
from pilot.plugins.policy.expression.errors import ExpressionError, located
from pilot.plugins.policy.expression.evaluator import closures
from pilot.plugins.policy.expression.folding import fold
from pilot.plugins.policy.expression.parser import parse_untrusted
from pilot.plugins.policy.expression.run import Closure, Run
from pilot.plugins.policy.expression.types import BOOL, Type
from pilot.plugins.policy.expression.values import go_type


class Program:
    """An expression, compiled; call it with the values of its variables. It keeps nothing between two calls.

    `monotonic` measures how long an evaluation takes, `now` is the wall clock of `now()` and `since()`, in Unix
    seconds; both can be replaced.
    """

    __slots__ = ("_closure", "_slots", "_wants_bool", "monotonic", "now", "text")

    def __init__(
        self,
        text: str,
        closure: Closure,
        slots: int,
        *,
        wants_bool: bool,
        monotonic: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.text = text
        self.monotonic = monotonic
        self.now = now
        self._closure = closure
        self._slots = slots
        self._wants_bool = wants_bool

    def __call__(self, env: Mapping[str, Any]) -> Any:
        """Return the value, a bool unless another type was wanted; a variable that is not in `env` is nil.

        Lists of texts are given as tuples, or as lists where the variable is declared LIST_OF_STRING.

        Raises:
            ExpressionError: it failed, or took longer than 100 ms, or used more than its share of memory; the text is
                the one of the official engine (services.md 9.6).
        """
        run = Run(env, self._slots, self.monotonic, self.now)
        try:
            value = self._closure(run)
        except RecursionError:
            raise ExpressionError("expression panic: values nested too deeply") from None
        if value is True or value is False or not self._wants_bool:
            return value
        if value is None:
            return False
        raise ExpressionError(located(f"invalid operation: bool({go_type(value)})", self.text, 0))

    def __repr__(self) -> str:
        return f"<Program {self.text[:80]!r}>"


def compile_expression(
    text: str,
    variables: Mapping[str, Type],
    *,
    want: Type = BOOL,
    monotonic: Callable[[], float] = time.monotonic,
    now: Callable[[], float] = time.time,
) -> Program:
    """Return the program of an expression that may use `variables` and gives a value of type `want` (ANY: any).

    Raises:
        CompileError: it is no expression, its types do not fit, it uses another name, or it is too large; the text is
            the one of the official compiler (services.md 9.3, 9.5).
    """
    tree = parse_untrusted(text)
    check(tree, text, variables, want)
    closure, slots = closures(tree, text, fold(tree, text))
    return Program(text, closure, slots, wants_bool=want is BOOL, monotonic=monotonic, now=now)
