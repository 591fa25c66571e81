"""JSON read and written as Go's library does it: its complaints, its order of keys, its escapes (plugin policy, L11).

Reading keeps what Go's decoder cares about: repeated keys, their order, and numbers as they were written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias

from pilot.coreapi import InvalidValueError
from pilot.plugins._gojson import go_number, go_text
from pilot.plugins.policy.expression.lexer import quoted

__all__ = ["MAX_DEPTH", "Node", "Number", "Object", "encode", "parse_untrusted"]

MAX_DEPTH: Final = 100
"""Levels of lists and objects in each other. Go stops at 10000; nothing meaningful comes near either."""


class Number(str):
    """A number as it was written."""

    __slots__ = ()


class Object(list[tuple[str, Any]]):
    """An object: keys and values in the order they were written, repeated ones included."""

    __slots__ = ()


Node: TypeAlias = "bool | str | Number | Object | list[Any] | None"
"""What a JSON text consists of."""

_SPACE: Final = re.compile(r"[ \t\r\n]*")
# Possessive only where a single character class repeats: of groups Python before 3.11.5 may not take the last one back.
_STRING: Final = re.compile(r'"((?:[^"\\\x00-\x1f]++|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4})*)"')
_STRING_START: Final = re.compile(r'"(?:[^"\\\x00-\x1f]++|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4})*')
_HEX: Final = re.compile(r"[0-9a-fA-F]{0,4}")
_INTEGER: Final = re.compile(r"-?(?:0|[1-9][0-9]*)")
_DIGITS: Final = re.compile(r"[0-9]+")
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_LITERALS: Final = {"t": ("true", True), "f": ("false", False), "n": ("null", None)}


def parse_untrusted(data: bytes) -> Node:
    """The one JSON value in `data`. Bytes that are no UTF-8 become U+FFFD, each of them, as in Go.

    Raises:
        InvalidValueError: it is no JSON; the message is the one of Go's decoder.
    """
    # Every undecodable byte stays one surrogate, so that a complaint can name it.
    return _Parser(data.decode("utf-8", "surrogateescape")).document()


class _Parser:
    """A recursive descent over the text; its depth is bounded."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._depth = 0

    def document(self) -> Node:
        node = self._value()
        if self._next():
            raise self._bad("after top-level value")
        return node

    def _next(self) -> str:
        """Skips white space; the character there, "" at the end."""
        match = _SPACE.match(self._text, self._at)
        assert match is not None  # it may be empty
        self._at = match.end()
        return self._text[self._at : self._at + 1]

    def _bad(self, where: str, *, in_token: bool = False) -> InvalidValueError:
        """The error about the present character. Inside a number, literal or escape Go takes the end for a space."""
        char = self._text[self._at : self._at + 1]
        if char:
            byte = char.encode("utf-8", "surrogateescape")[0]
        elif in_token:
            byte = ord(" ")
        else:
            return InvalidValueError("unexpected end of JSON input")
        return InvalidValueError(f"invalid character {_quoted_byte(byte)} {where}")

    def _value(self) -> Node:
        char = self._next()
        if char == "{":
            return self._nested(self._object)
        if char == "[":
            return self._nested(self._array)
        if char == '"':
            return self._string()
        if char in _LITERALS:
            return self._literal(*_LITERALS[char])
        if char == "-" or (char and char in "0123456789"):
            return self._number()
        raise self._bad("looking for beginning of value")

    def _nested(self, read: Callable[[], Node]) -> Node:
        if self._depth == MAX_DEPTH:
            raise self._bad("exceeded max depth")
        self._depth += 1
        self._at += 1
        node = read()
        self._at += 1
        self._depth -= 1
        return node

    def _object(self) -> Object:
        pairs = Object()
        if self._next() == "}":
            return pairs
        while True:
            if self._next() != '"':
                raise self._bad("looking for beginning of object key string")
            key = self._string()
            if self._next() != ":":
                raise self._bad("after object key")
            self._at += 1
            pairs.append((key, self._value()))
            char = self._next()
            if char == "}":
                return pairs
            if char != ",":
                raise self._bad("after object key:value pair")
            self._at += 1

    def _array(self) -> list[Any]:
        items: list[Any] = []
        if self._next() == "]":
            return items
        while True:
            items.append(self._value())
            char = self._next()
            if char == "]":
                return items
            if char != ",":
                raise self._bad("after array element")
            self._at += 1

    def _string(self) -> str:
        match = _STRING.match(self._text, self._at)
        if match is None:
            raise self._bad_string()
        self._at = match.end()
        text: str = json.loads(match.group()) if "\\" in match.group() else match.group(1)
        return _SURROGATE.sub("\ufffd", text)

    def _bad_string(self) -> InvalidValueError:
        start = _STRING_START.match(self._text, self._at)
        assert start is not None  # there is a quote
        self._at = start.end()
        if self._text[self._at : self._at + 1] != "\\":
            return self._bad("in string literal")
        self._at += 1
        if self._text[self._at : self._at + 1] != "u":
            return self._bad("in string escape code", in_token=True)
        digits = _HEX.match(self._text, self._at + 1)
        assert digits is not None  # it may be empty
        self._at = digits.end()
        return self._bad(r"in \u hexadecimal character escape", in_token=True)

    def _literal(self, word: str, value: bool | None) -> bool | None:
        for expected in word:
            if self._text[self._at : self._at + 1] != expected:
                raise self._bad(f"in literal {word} (expecting {_quoted_byte(ord(expected))})", in_token=True)
            self._at += 1
        return value

    def _number(self) -> Number:
        start = self._at
        integer = _INTEGER.match(self._text, start)
        if integer is None:
            self._at += 1
            raise self._bad("in numeric literal", in_token=True)
        self._at = integer.end()
        if self._text[self._at : self._at + 1] == ".":
            self._at += 1
            self._digits("after decimal point in numeric literal")
        if self._text[self._at : self._at + 1] in ("e", "E"):
            self._at += 1
            if self._text[self._at : self._at + 1] in ("+", "-"):
                self._at += 1
            self._digits("in exponent of numeric literal")
        return Number(self._text[start : self._at])

    def _digits(self, where: str) -> None:
        digits = _DIGITS.match(self._text, self._at)
        if digits is None:
            raise self._bad(where, in_token=True)
        self._at = digits.end()


def _quoted_byte(byte: int) -> str:
    """A byte in single quotes, as complaints show it: Go takes it for a code point of its own."""
    if byte == ord('"'):
        return "'\"'"
    return r"'\''" if byte == ord("'") else f"'{quoted(chr(byte))[1:-1]}'"


# ---- writing --------------------------------------------------------------------------------------------------------


def encode(value: object, indent: str = "", *, _margin: str = "\n") -> str:
    """`value` as Go's `json.Marshal` writes it, with `indent` as `json.MarshalIndent` does.

    `value` is made of None, booleans, numbers, text, sequences and mappings whose keys are text; the order of keys is
    the caller's.
    """
    if isinstance(value, str):
        return go_text(value)
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, int | float):
        return str(value) if isinstance(value, int) else go_number(value)
    inner = _margin + indent if indent else ""
    outer = _margin if indent else ""
    if isinstance(value, Mapping):
        colon = ": " if indent else ":"
        items = [f"{encode(k)}{colon}{encode(v, indent, _margin=inner)}" for k, v in value.items()]
        return _joined(items, "{}", inner, outer)
    if isinstance(value, Sequence):
        return _joined([encode(item, indent, _margin=inner) for item in value], "[]", inner, outer)
    raise TypeError(f"{value!r} has no JSON form")


def _joined(items: list[str], brackets: str, inner: str, outer: str) -> str:
    if not items:
        return brackets
    return brackets[0] + inner + ("," + inner).join(items) + outer + brackets[1]
