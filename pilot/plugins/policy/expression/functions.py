"""The functions of the language: names, parameters and results (plugin policy, L11; services.md 9.5)."""

from __future__ import annotations

from pilot.plugins.policy.expression.types import (
    ANY,
    ARRAY,
    BOOL,
    DURATION,
    FLOAT,
    INT,
    INT64,
    INTERFACE,
    LIST_OF_STRING,
    LOCATION,
    MONTH,
    STRING,
    TIME,
    WEEKDAY,
    Kind,
    Signature,
    Type,
)

PREDICATES = {
    **dict.fromkeys(["all", "none", "any", "one", "filter", "map", "find", "findIndex"], (2, 2)),
    **dict.fromkeys(["findLast", "findLastIndex", "groupBy"], (2, 2)),
    **dict.fromkeys(["count", "sum"], (1, 2)),
    **dict.fromkeys(["sortBy", "reduce"], (2, 3)),
}
"""Functions whose second argument is evaluated per element, with the least and greatest number of arguments."""

BOOL_PREDICATES = frozenset(
    {"all", "none", "any", "one", "filter", "find", "findIndex", "findLast", "findLastIndex", "count"}
)

_ITEMS = (
    ARRAY,
    Type(Kind.ARRAY, "[]float64", FLOAT),
    LIST_OF_STRING,
    Type(Kind.ARRAY, "[]int", INT),
)

EXTRA_FUNCTIONS: dict[str, Signature] = {
    "has_tag": ((LIST_OF_STRING, STRING), BOOL),
    "duration": ((STRING,), FLOAT),
    "since": ((FLOAT,), FLOAT),
}
"""What the policy engine adds; its `duration` replaces the one of the language."""

SIGNATURES: dict[str, tuple[Signature, ...]] = {
    "type": (((ANY,), STRING),),
    "string": (((ANY,), STRING),),
    "trim": (((STRING,), STRING), ((STRING, STRING), STRING)),
    "trimPrefix": (((STRING, STRING), STRING), ((STRING,), STRING)),
    "trimSuffix": (((STRING, STRING), STRING), ((STRING,), STRING)),
    "upper": (((STRING,), STRING),),
    "lower": (((STRING,), STRING),),
    "split": (((STRING, STRING), LIST_OF_STRING), ((STRING, STRING, INT), LIST_OF_STRING)),
    "splitAfter": (((STRING, STRING), LIST_OF_STRING), ((STRING, STRING, INT), LIST_OF_STRING)),
    "replace": (((STRING, STRING, STRING, INT), STRING), ((STRING, STRING, STRING), STRING)),
    "repeat": (((STRING, INT), STRING),),
    "join": (
        ((ARRAY, STRING), STRING),
        ((ARRAY,), STRING),
        ((LIST_OF_STRING, STRING), STRING),
        ((LIST_OF_STRING,), STRING),
    ),
    **dict.fromkeys(["indexOf", "lastIndexOf"], (((STRING, STRING), INT),)),
    **dict.fromkeys(["hasPrefix", "hasSuffix"], (((STRING, STRING), BOOL),)),
    "toJSON": (((ANY,), STRING),),
    "fromJSON": (((STRING,), INTERFACE),),
    "toBase64": (((STRING,), STRING),),
    "fromBase64": (((STRING,), STRING),),
    "duration": (((STRING,), DURATION),),
    "timezone": (((STRING,), LOCATION),),
    "sort": tuple((parameters, ARRAY) for items in _ITEMS for parameters in ((items, STRING), (items,))),
    **dict.fromkeys(["bitand", "bitor", "bitxor", "bitnand", "bitshl", "bitshr", "bitushr"], (((INT, INT), INT),)),
    "bitnot": (((INT,), INT),),
}
"""Functions with fixed parameters; a complaint names those of the last variant."""

CHECKED = frozenset(
    {"len", "abs", "ceil", "floor", "round", "int", "float", "max", "min", "mean", "median", "now", "date"}
    | {"first", "last", "get", "take", "keys", "values", "toPairs", "fromPairs", "reverse", "uniq", "concat", "flatten"}
)
"""Functions that check what they are given themselves."""

BUILTINS = frozenset(SIGNATURES) | CHECKED | frozenset(PREDICATES)

METHODS: dict[Kind, dict[str, Signature]] = {
    Kind.TIME: {
        **dict.fromkeys(["Year", "Day", "Hour", "Minute", "Second", "Nanosecond", "YearDay"], ((), INT)),
        **dict.fromkeys(["Unix", "UnixMilli", "UnixMicro", "UnixNano"], ((), INT64)),
        "ISOWeek": ((), INT),
        "Zone": ((), STRING),
        "Month": ((), MONTH),
        "Weekday": ((), WEEKDAY),
        "Location": ((), LOCATION),
        **dict.fromkeys(["UTC", "Local"], ((), TIME)),
        "In": ((LOCATION,), TIME),
        **dict.fromkeys(["Before", "After", "Equal"], ((TIME,), BOOL)),
        "Compare": ((TIME,), INT),
        **dict.fromkeys(["IsZero", "IsDST"], ((), BOOL)),
        "Add": ((DURATION,), TIME),
        "Sub": ((TIME,), DURATION),
        "AddDate": ((INT, INT, INT), TIME),
        **dict.fromkeys(["Truncate", "Round"], ((DURATION,), TIME)),
        "Format": ((STRING,), STRING),
        "String": ((), STRING),
    },
    Kind.DURATION: {
        **dict.fromkeys(["Hours", "Minutes", "Seconds"], ((), FLOAT)),
        **dict.fromkeys(["Milliseconds", "Microseconds", "Nanoseconds"], ((), INT64)),
        "Abs": ((), DURATION),
        **dict.fromkeys(["Truncate", "Round"], ((DURATION,), DURATION)),
        "String": ((), STRING),
    },
    Kind.LOCATION: {"String": ((), STRING)},
    Kind.MONTH: {"String": ((), STRING)},
    Kind.WEEKDAY: {"String": ((), STRING)},
}
"""Methods of times and the like, without those for raw bytes; of two values the first counts."""
