"""Errors of expressions, worded as the official compiler does: message, place, line, caret (plugin policy, L11)."""

from __future__ import annotations

import re


class CompileError(ValueError):
    """An expression that cannot be compiled; the text is the one of the official compiler where that is known."""


class ExpressionError(Exception):
    """An expression that failed while it was evaluated; the text is the one of the official engine."""


class Failure(Exception):  # noqa: N818 - never leaves the package
    """A failure at run time before its place is known: only the message."""


MAX_MESSAGE_LENGTH = 2_000
"""Characters of a message: some quote values, which can be long."""


_NO_TEXT = re.compile("[\ud800-\udfff]")


def clipped(message: str) -> str:
    """The message, cut where it is too long."""
    message = _NO_TEXT.sub("\ufffd", message)
    return message if len(message) <= MAX_MESSAGE_LENGTH else f"{message[:MAX_MESSAGE_LENGTH]}..."


def located(message: str, source: str, at: int) -> str:
    """The message with line, column and the line itself, its place marked; `at` counts characters from 0."""
    message, at = clipped(message), min(at, len(source))
    start = source.rfind("\n", 0, at) + 1
    end = source.find("\n", start)
    line = source[start:] if end < 0 else source[start:end]
    if not line:
        return message
    column = at - start
    line = line.replace("\t", " ")
    return f"{message} ({source.count(chr(10), 0, at) + 1}:{column + 1})\n | {line}\n | {'.' * column}^"
