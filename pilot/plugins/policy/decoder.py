"""A policy document out of JSON, filled in as Go's decoder fills its structs (plugin policy, L11).

What a document means when keys repeat, differ in case or have the wrong type is what that decoder makes of it; the
whole network has to agree. So: keys match without regard to case; null leaves a field alone; a repeated object or list
is decoded over what is there; after a value of the wrong type decoding goes on, and the first such is reported.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar

from pilot.coreapi import InvalidValueError
from pilot.plugins.policy.gojson import Node, Number, Object, parse_untrusted

__all__ = ["RawAction", "RawDocument", "RawRule", "decode_document_untrusted"]

T = TypeVar("T")

_FOLDED: Final = str.maketrans(
    {chr(c): chr(c + 32) for c in range(ord("A"), ord("Z") + 1)} | {"\u017f": "s", "\u212a": "k"}
)
"""Equality without regard to case reaches two letters outside ASCII: the long s and the Kelvin sign."""
_MAX_INT: Final = (1 << 63) - 1
_EXACT: Final = 1 << 53
_ANY_MAP: Final = "map[string]interface {}"


class _Slice(Generic[T]):
    """A list that is decoded over: what was cut off stays behind its end, and is found there when it grows again."""

    def __init__(self) -> None:
        self._items: list[T] = []
        self._length = 0

    def __iter__(self) -> Any:
        return iter(self._items[: self._length])

    def element(self, index: int, make: Callable[[], T]) -> T:
        if index == len(self._items):
            self._items.append(make())
        self._length = max(self._length, index + 1)
        return self._items[index]

    def cut(self, length: int) -> None:
        self._length = length
        if length == 0:
            self._items = []


@dataclass(slots=True)
class RawAction:
    """An action as it stands in the document."""

    type: str = ""
    params: dict[str, Any] | None = None


@dataclass(slots=True)
class RawRule:
    """A rule as it stands in the document."""

    name: str = ""
    on: str = ""
    match: str = ""
    actions: _Slice[RawAction] = field(default_factory=_Slice)


@dataclass(slots=True)
class RawDocument:
    """A document as it stands, well-typed but not validated."""

    version: int = 0
    default_verdict: str = ""
    fail_closed: bool | None = None
    config: dict[str, Any] | None = None
    rules: _Slice[RawRule] = field(default_factory=_Slice)


def decode_document_untrusted(data: bytes) -> RawDocument:
    """The document in `data`, read with Go's rules.

    Raises:
        InvalidValueError: no JSON, or a value of the wrong type; the message is the one of Go's decoder.
    """
    node = parse_untrusted(data)
    document = RawDocument()
    decoder = _Decoder()
    decoder.fill(node, document, _DOCUMENT)
    if decoder.error:
        raise InvalidValueError(decoder.error)
    return document


@dataclass(frozen=True, slots=True)
class _Struct:
    """A Go struct: its name in complaints and what fills each of its fields."""

    name: str
    fields: dict[str, Callable[[_Decoder, Node, Any], None]]

    @property
    def type(self) -> str:
        return f"policylang.{self.name}"


class _Decoder:
    """Fills objects from nodes, and remembers the first value that did not fit, with the place it was found at."""

    def __init__(self) -> None:
        self.error = ""
        self._struct = ""
        self._path: list[str] = []

    def fill(self, node: Node, target: Any, struct: _Struct) -> None:
        if node is None:
            return
        if not isinstance(node, Object):
            self.misfit(_kind(node), struct.type)
            return
        outer = self._struct
        for key, value in node:
            name = key.translate(_FOLDED)
            if name in struct.fields:
                self._struct = struct.name
                self._path.append(name)
                struct.fields[name](self, value, target)
                self._path.pop()
                self._struct = outer

    def misfit(self, kind: str, type_: str) -> None:
        place = f"struct field {self._struct}.{'.'.join(self._path)} of" if self._path else "value of"
        self.error = self.error or f"json: cannot unmarshal {kind} into Go {place} type {type_}"

    def text(self, node: Node, before: str, type_: str = "string") -> str:
        if isinstance(node, str) and not isinstance(node, Number):
            return node
        if node is not None:
            self.misfit(_kind(node), type_)
        return before

    def boolean(self, node: Node, before: bool | None) -> bool | None:
        if node is None or isinstance(node, bool):
            return node
        self.misfit(_kind(node), "bool")
        return before

    def integer(self, node: Node, before: int) -> int:
        if node is None:
            return before
        if not isinstance(node, Number):
            self.misfit(_kind(node), "int")
        elif not node.removeprefix("-").isdigit() or len(node) > 20 or not -_MAX_INT - 1 <= int(node) <= _MAX_INT:
            self.misfit(f"number {node}", "int")
        else:
            return int(node)
        return before

    def mapping(self, node: Node, before: dict[str, Any] | None) -> dict[str, Any] | None:
        if node is None:
            return None
        if not isinstance(node, Object):
            self.misfit(_kind(node), _ANY_MAP)
            return before
        merged = {} if before is None else before
        for key, value in node:
            merged[key] = self.plain(value)
        return merged

    def plain(self, node: Any) -> Any:
        """The value where Go takes anything: numbers are 64-bit floats, whole ones given as int."""
        if isinstance(node, Number):
            return self._float(node)
        if isinstance(node, Object):
            return {key: self.plain(value) for key, value in node}
        return [self.plain(item) for item in node] if isinstance(node, list) else node

    def _float(self, number: Number) -> int | float | None:
        value = float(number)
        if not math.isfinite(value):
            self.misfit(f"number {number}", "float64")
            return None
        return int(value) if value.is_integer() and abs(value) <= _EXACT and str(value) != "-0.0" else value

    def list(self, node: Node, target: _Slice[T], make: Callable[[], T], struct: _Struct) -> None:
        if node is None:
            target.cut(0)
        elif isinstance(node, Object) or not isinstance(node, list):
            self.misfit(_kind(node), f"[]{struct.type}")
        else:
            for index, item in enumerate(node):
                self.fill(item, target.element(index, make), struct)
            target.cut(len(node))


def _kind(node: Node) -> str:
    if isinstance(node, bool):
        return "bool"
    if isinstance(node, Number):
        return "number"
    if isinstance(node, str):
        return "string"
    return "object" if isinstance(node, Object) else "array"


def _setter(name: str, read: Callable[..., Any], *more: Any) -> Callable[[_Decoder, Node, Any], None]:
    def fill(decoder: _Decoder, node: Node, target: Any) -> None:
        setattr(target, name, read(decoder, node, getattr(target, name), *more))

    return fill


def _elements(name: str, make: Callable[[], Any], struct: _Struct) -> Callable[[_Decoder, Node, Any], None]:
    def fill(decoder: _Decoder, node: Node, target: Any) -> None:
        decoder.list(node, getattr(target, name), make, struct)

    return fill


_ACTION: Final = _Struct(
    "Action",
    {
        "type": _setter("type", _Decoder.text, "policylang.ActionType"),
        "params": _setter("params", _Decoder.mapping),
    },
)
_RULE: Final = _Struct(
    "Rule",
    {
        "name": _setter("name", _Decoder.text),
        "on": _setter("on", _Decoder.text),
        "match": _setter("match", _Decoder.text),
        "actions": _elements("actions", RawAction, _ACTION),
    },
)
_DOCUMENT: Final = _Struct(
    "PolicyDocument",
    {
        "version": _setter("version", _Decoder.integer),
        "default_verdict": _setter("default_verdict", _Decoder.text),
        "fail_closed": _setter("fail_closed", _Decoder.boolean),
        "config": _setter("config", _Decoder.mapping),
        "rules": _elements("rules", RawRule, _RULE),
    },
)
