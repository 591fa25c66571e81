"""What the functions that check their arguments themselves accept, and what they give (plugin policy, L11)."""

from __future__ import annotations

from collections.abc import Mapping

from pilot.plugins.policy.expression.nodes import Builtin, Constant, Name, Node
from pilot.plugins.policy.expression.types import (
    ANY,
    ANY_MAP,
    ARRAY,
    FLOAT,
    INT,
    INTEGERS,
    INTERFACE,
    MAP,
    NUMERIC_KINDS,
    TIME,
    Kind,
    Type,
)

COUNTS = {
    **dict.fromkeys(["len", "abs", "ceil", "floor", "round", "int", "float", "first", "last"], 1),
    **dict.fromkeys(["keys", "values", "toPairs", "fromPairs", "reverse", "uniq", "flatten"], 1),
    "take": 2,
}

REFUSALS = {
    "first": "cannot get first element from {}",
    "last": "cannot get last element from {}",
    "keys": "cannot get keys from {}",
    "values": "cannot get values from {}",
    "toPairs": "cannot transform {} to pairs",
    "fromPairs": "cannot transform {} from pairs",
    "reverse": "cannot reverse {}",
    "uniq": "cannot uniq {}",
    "concat": "cannot concat {}",
    "flatten": "cannot flatten {}",
    "take": "cannot take from {}",
}

ACCEPTED: dict[str, frozenset[Kind]] = {
    "len": frozenset({Kind.ARRAY, Kind.MAP, Kind.STRING}),
    **dict.fromkeys(["abs", "ceil", "floor", "round"], NUMERIC_KINDS),
    **dict.fromkeys(["int", "float"], NUMERIC_KINDS | {Kind.STRING}),
    **dict.fromkeys(["keys", "values", "toPairs"], frozenset({Kind.MAP})),
    **dict.fromkeys(
        ["first", "last", "fromPairs", "reverse", "uniq", "concat", "flatten", "take"], frozenset({Kind.ARRAY})
    ),
}


class ArgumentError(Exception):
    """An argument that does not fit: the message, and the node it is about."""

    def __init__(self, message: str, node: Node) -> None:
        super().__init__(message)
        self.message = message
        self.node = node


def checked_result(node: Builtin, variables: Mapping[str, Type]) -> Type:
    """Return the type of the result of a call, the types of its arguments being known.

    Raises:
        ArgumentError: the arguments do not fit.
    """
    _check_count(node)
    name, arguments = node.name, node.arguments
    if name == "now":
        return TIME
    if name == "date":
        return TIME
    if name in ("max", "min", "mean", "median"):
        return _number_of(node)
    if name == "get":
        return _get(node, variables)
    for argument in arguments if name == "concat" else arguments[:1]:
        if argument.type.kind is not Kind.ANY and argument.type.kind not in ACCEPTED[name]:
            refusal = REFUSALS.get(name, f"invalid argument for {name} (type {{}})")
            raise ArgumentError(refusal.format(argument.type.argument), node)
    given = arguments[0].type
    match name:
        case "len" | "int":
            return INT
        case "ceil" | "floor" | "round" | "float":
            return FLOAT
        case "abs":
            return given
        case "first" | "last":
            return INTERFACE if given.go == ARRAY.go or given.kind is Kind.ANY else given.of
        case "take":
            if arguments[1].type.kind not in INTEGERS | {Kind.ANY}:
                raise ArgumentError(f"cannot take {arguments[1].type.argument} elements", node)
            return INTERFACE if given.kind is Kind.ANY else ARRAY if given.go == ARRAY.go else given
        case "fromPairs":
            return ANY_MAP
    return ARRAY


def _check_count(node: Builtin) -> None:
    name, given = node.name, len(node.arguments)
    expected = ""
    if name in COUNTS and given != COUNTS[name]:
        expected = str(COUNTS[name])
    elif name == "now" and (given > 1 or (given == 1 and node.arguments[0].type.kind is not Kind.LOCATION)):
        expected = "0"
    elif name in ("concat", "date") and given == 0:
        expected = "at least 1"
    elif name == "date" and given > 3:
        expected = "at most 3"
    if expected:
        raise ArgumentError(f"invalid number of arguments (expected {expected}, got {given})", node)


def _number_of(node: Builtin) -> Type:
    if not node.arguments:
        raise ArgumentError(f"not enough arguments to call {node.name}", node)
    for argument in node.arguments:
        if argument.type.kind in (Kind.ANY, Kind.ARRAY):
            return INTERFACE
        if argument.type.kind not in NUMERIC_KINDS:
            raise ArgumentError(f"invalid argument for {node.name} (type {argument.type.argument})", node)
    return node.arguments[0].type


def _get(node: Builtin, variables: Mapping[str, Type]) -> Type:
    base, key = node.arguments
    if isinstance(base, Name) and base.name == "$env" and isinstance(key, Constant):
        return variables.get(str(key.value), ANY)
    match base.type.kind:
        case Kind.ANY:
            return ANY
        case Kind.ARRAY:
            if key.type.kind not in INTEGERS | {Kind.ANY}:
                raise ArgumentError(f"non-integer slice index {key.type}", key)
            return base.type.of
        case Kind.MAP:
            if base.type.go == MAP.go and key.type.kind not in (Kind.STRING, Kind.ANY):
                raise ArgumentError(f"cannot use {key.type} to get an element from {base.type}", key)
            return base.type.of
    raise ArgumentError(f"type {base.type} does not support indexing", base)
