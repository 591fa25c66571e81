"""What the tests of the expression language share: the variables of rules, and one way to ask."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pilot.plugins.policy.expression import (
    FLOAT,
    INT,
    LIST_OF_STRING,
    CompileError,
    ExpressionError,
    Type,
    compile_expression,
)

CONNECT: dict[str, Type] = {
    **dict.fromkeys(["port", "peer_id", "network_id", "members"], INT),
    **dict.fromkeys(["peer_age_s", "sender_rating"], FLOAT),
    **dict.fromkeys(["peer_tags", "local_tags"], LIST_OF_STRING),
}
CYCLE: dict[str, Type] = {
    **dict.fromkeys(["peer_id", "network_id", "members", "peer_count", "cycle_num", "trusted_count"], INT),
    "peer_age_s": FLOAT,
    **dict.fromkeys(["peer_tags", "local_tags"], LIST_OF_STRING),
}
VALUES: dict[str, Any] = {
    "port": 2,
    "peer_id": 9,
    "members": 3,
    "peer_tags": ("x", "y"),
    "local_tags": (),
    "peer_age_s": 10.5,
    "network_id": 1,
}


def outcome(text: str, values: Mapping[str, Any] = VALUES, variables: Mapping[str, Type] = CONNECT) -> bool | str:
    """The value, or the text of the error after C: (compiling) or R: (running)."""
    try:
        program = compile_expression(text, variables)
    except CompileError as error:
        return f"C: {error}"
    try:
        value: bool = program(values)
    except ExpressionError as error:
        return f"R: {error}"
    return value
