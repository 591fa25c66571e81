"""Static types of the expression language and the names Go gives them (plugin policy, L11)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import TypeAlias


class Kind(Enum):
    """What a type is; types of one kind differ in their element type at most."""

    ANY = auto()
    NIL = auto()
    BOOL = auto()
    INT = auto()
    INT64 = auto()
    UINT8 = auto()
    FLOAT = auto()
    STRING = auto()
    ARRAY = auto()
    MAP = auto()
    FUNCTION = auto()
    TIME = auto()
    DURATION = auto()
    LOCATION = auto()
    MONTH = auto()
    WEEKDAY = auto()


@dataclass(frozen=True, slots=True)
class Type:
    """A static type: its kind, its name in Go, and the type of its elements if it has any.

    `function` are parameters and result of a method or function value.
    """

    kind: Kind
    go: str
    element: Type | None = None
    function: Signature | None = None

    def __str__(self) -> str:
        """The name compiler messages use for an operand: a location is shown without its pointer."""
        if self.kind is Kind.NIL:
            return "unknown"
        return self.go.removeprefix("*")

    @property
    def of(self) -> Type:
        """The element type; ANY where nothing is known."""
        return self.element or ANY

    @property
    def argument(self) -> str:
        """The name in complaints of functions that check their arguments themselves."""
        return "%!s(<nil>)" if self.kind is Kind.NIL else self.go


ANY = Type(Kind.ANY, "unknown")
INTERFACE = Type(Kind.ANY, "interface {}")
"""What a map holds: no more is known of it than of ANY, but messages name it so."""
NIL = Type(Kind.NIL, "nil")
BOOL = Type(Kind.BOOL, "bool")
INT = Type(Kind.INT, "int")
INT64 = Type(Kind.INT64, "int64")
UINT8 = Type(Kind.UINT8, "uint8")
FLOAT = Type(Kind.FLOAT, "float64")
STRING = Type(Kind.STRING, "string")
TIME = Type(Kind.TIME, "time.Time")
DURATION = Type(Kind.DURATION, "time.Duration")
LOCATION = Type(Kind.LOCATION, "*time.Location")
MONTH = Type(Kind.MONTH, "time.Month")
WEEKDAY = Type(Kind.WEEKDAY, "time.Weekday")
LIST_OF_STRING = Type(Kind.ARRAY, "[]string", STRING)
BYTES = Type(Kind.ARRAY, "[]uint8", UINT8)
MAP = Type(Kind.MAP, "map[string]interface {}", INTERFACE)


def array(element: Type = INTERFACE) -> Type:
    """The type of a list the expression makes itself: Go's `[]any`, with what is known of its elements."""
    return Type(Kind.ARRAY, "[]interface {}", element)


ARRAY = array()
GROUPS = Type(Kind.MAP, "map[interface {}][]interface {}", ARRAY)
ANY_MAP = Type(Kind.MAP, "map[interface {}]interface {}", INTERFACE)

Signature: TypeAlias = tuple[tuple[Type, ...], Type]
"""Parameters and result of a function."""


def function_type(parameters: tuple[Type, ...], result: Type, receiver: str = "") -> Type:
    """The type of a function as a value; `receiver` is what Go lists before the parameters of a method."""
    shown = ", ".join([receiver, *(p.go for p in parameters)] if receiver else [p.go for p in parameters])
    return Type(Kind.FUNCTION, f"func({shown}) {result.go}", None, (parameters, result))


ANY_FUNCTION = Type(Kind.FUNCTION, "func(...interface {}) (interface {}, error)")

INTEGERS = frozenset({Kind.INT, Kind.INT64, Kind.UINT8})
NUMBERS = INTEGERS | {Kind.FLOAT}
NUMERIC_KINDS = NUMBERS | {Kind.DURATION, Kind.MONTH, Kind.WEEKDAY}
"""What Go stores as a number, whatever it is called."""


def comparable(left: Type, right: Type) -> bool:
    """Return whether == may stand between the two."""
    kinds = {left.kind, right.kind}
    if kinds & {Kind.ANY, Kind.NIL} or kinds <= NUMBERS:
        return True
    if left.kind is not right.kind:
        return False
    return left.kind is Kind.ARRAY or left.go == right.go
