"""Regular expressions of `matches`: RE2, as in the official engine, so linear in time (plugin policy, L11).

`re` of the standard library backtracks: a policy could stop a node with one pattern. Go's `regexp` and the library
`google-re2` are the same engine with the same syntax; what differs is settled here: messages, and the few things RE2
knows and Go does not.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import re2  # type: ignore[import-untyped, unused-ignore]

from pilot.plugins.policy.expression.errors import Failure
from pilot.plugins.policy.expression.limits import (
    MAX_PATTERN_LENGTH,
    MAX_PATTERN_MEMORY,
    MAX_PATTERNS_CACHED,
)

_GO_MESSAGES = {
    "missing ]": "missing closing ]",
    "missing )": "missing closing )",
    "invalid perl operator": "invalid or unsupported Perl syntax",
    "no argument for repetition operator": "missing argument to repetition operator",
    "invalid repetition size": "invalid repeat count",
    "bad repetition operator": "invalid nested repetition operator",
    "invalid named capture group": "invalid named capture",
    "invalid character class": "invalid character class",
}

_OPTIONS = re2.Options()
_OPTIONS.log_errors = False
_OPTIONS.never_nl = False
_OPTIONS.max_mem = MAX_PATTERN_MEMORY


@lru_cache(MAX_PATTERNS_CACHED)
def pattern_untrusted(text: str) -> Any:
    """Return the compiled pattern; its `search(text)` finds or gives None. Threads may call it.

    Raises:
        Failure: RE2 refuses it, or it is longer than MAX_PATTERN_LENGTH.
    """
    if len(text) > MAX_PATTERN_LENGTH:
        raise Failure(f"error parsing regexp: expression too large: pattern of {len(text)} characters")
    if (at := _any_byte(text)) is not None:
        raise Failure(f"error parsing regexp: invalid escape sequence: `\\{text[at + 1]}`")
    try:
        return re2.compile(text, _OPTIONS)
    except re2.error as error:
        raise Failure(_go_message(error)) from None


@lru_cache(MAX_PATTERNS_CACHED)
def linear_pattern(text: str) -> Any:
    """Return a pattern of ours, which a stranger's layout has a part in; it is matched in linear time all the same.

    Raises:
        ValueError: it would take more than MAX_PATTERN_MEMORY.
    """
    try:
        return re2.compile(text, _OPTIONS)
    except re2.error as error:
        raise ValueError(str(error)) from None


def _any_byte(text: str) -> int | None:
    r"""Where `\C`, which Go does not know, stands outside of `\Q...\E`."""
    at = 0
    while (at := text.find("\\", at)) >= 0:
        if text[at + 1 : at + 2] == "Q":
            end = text.find("\\E", at)
            if end < 0:
                return None
            at = end
        elif text[at + 1 : at + 2] == "C":
            return at
        at += 2
    return None


def _go_message(error: Exception) -> str:
    raw = error.args[0]
    text = raw.decode("utf-8", "replace") if isinstance(raw, bytes) else str(raw)
    kind, separator, fragment = text.partition(": ")
    if text.startswith("trailing \\"):
        return "error parsing regexp: trailing backslash at end of expression: ``"
    if text.startswith("pattern too large"):
        return "error parsing regexp: expression too large"
    kind = _GO_MESSAGES.get(kind, kind)
    return f"error parsing regexp: {kind}: `{fragment}`" if separator else f"error parsing regexp: {kind}"
