"""The syntax tree of an expression; `at` is where a node's errors are reported (plugin policy, L11)."""

from __future__ import annotations

from dataclasses import dataclass, field

from pilot.plugins.policy.expression.types import ANY, Type


@dataclass(slots=True, eq=False)
class Node:
    """The base: place in the source (character offset) and, after the check, the static type."""

    at: int
    type: Type = field(default=ANY, init=False)
    depth: int = field(default=1, init=False)


@dataclass(slots=True, eq=False)
class Constant(Node):
    """nil, a bool, an int, a float, a text or bytes."""

    value: bool | int | float | str | bytes | None


@dataclass(slots=True, eq=False)
class Name(Node):
    """A variable, a `let` name, a function as a value, or `$env`."""

    name: str
    is_local: bool = field(default=False, init=False)


@dataclass(slots=True, eq=False)
class Pointer(Node):
    """`#`, `#acc` or `#index` inside a predicate."""

    name: str


@dataclass(slots=True, eq=False)
class Unary(Node):
    """An operator before its operand."""

    operator: str
    operand: Node


@dataclass(slots=True, eq=False)
class Binary(Node):
    """An operator between two operands."""

    operator: str
    left: Node
    right: Node


@dataclass(slots=True, eq=False)
class Chain(Node):
    """A chain of members with `?.` in it: nil as soon as one of those bases is nil."""

    body: Node


@dataclass(slots=True, eq=False)
class Member(Node):
    """`base.name` or `base[index]`; `is_optional` for `?.`."""

    base: Node
    index: Node
    is_optional: bool
    is_callee: bool = field(default=False, init=False)


@dataclass(slots=True, eq=False)
class Slice(Node):
    """`base[start:stop]`."""

    base: Node
    start: Node | None
    stop: Node | None


@dataclass(slots=True, eq=False)
class Call(Node):
    """A call of a method, of one of the extra functions, or of what a variable holds."""

    callee: Node
    arguments: list[Node]


@dataclass(slots=True, eq=False)
class Builtin(Node):
    """A call of a function of the language; predicates are the second argument."""

    name: str
    arguments: list[Node]


@dataclass(slots=True, eq=False)
class Predicate(Node):
    """The body of a predicate, evaluated once per element."""

    body: Node


@dataclass(slots=True, eq=False)
class Conditional(Node):
    """`a ? b : c` or `if a {b} else {c}`."""

    condition: Node
    then: Node
    otherwise: Node


@dataclass(slots=True, eq=False)
class Let(Node):
    """`let name = value; body`."""

    name: str
    value: Node
    body: Node


@dataclass(slots=True, eq=False)
class Sequence(Node):
    """`a; b`: the value of the last."""

    steps: list[Node]


@dataclass(slots=True, eq=False)
class ListNode(Node):
    """`[a, b]`."""

    items: list[Node]


@dataclass(slots=True, eq=False)
class MapNode(Node):
    """`{key: value}`."""

    pairs: list[tuple[Node, Node]]


def children(node: Node) -> list[Node]:
    """Return the nodes directly below."""
    match node:
        case Unary(operand=below) | Chain(body=below) | Predicate(body=below):
            return [below]
        case Binary():
            return [node.left, node.right]
        case Member():
            return [node.base, node.index]
        case Slice():
            return [part for part in (node.base, node.start, node.stop) if part is not None]
        case Call():
            return [node.callee, *node.arguments]
        case Builtin(arguments=below_it) | Sequence(steps=below_it) | ListNode(items=below_it):
            return below_it
        case Conditional():
            return [node.condition, node.then, node.otherwise]
        case Let():
            return [node.value, node.body]
        case MapNode():
            return [part for pair in node.pairs for part in pair]
    return []
