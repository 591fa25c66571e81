"""What an expression may cost (plugin policy, L11; services.md 9.6)."""

from __future__ import annotations

SECONDS_PER_EVALUATION = 0.1
"""Time one evaluation may take, as in the official engine."""

TIMED_OUT = "expression evaluation timed out"
"""The official text of it."""

MAX_SOURCE_LENGTH = 65_536
"""Characters of an expression; the registry takes no policy document of that size."""

MAX_NODES = 10_000
"""Nodes of the syntax tree: the limit of the official compiler."""

MAX_DEPTH = 100
"""Levels an expression may be nested; `a || b || c` is one level however long. The official compiler has no limit."""

MEMORY_BUDGET = 1_000_000
"""Elements of lists and maps, and characters of texts, that one evaluation may make: the official limit."""

STEPS_BETWEEN_CLOCK_READINGS = 64
"""Loop iterations between two looks at the clock."""

MAX_PATTERN_LENGTH = 4_096
"""Characters of a regular expression."""

MAX_PATTERNS_CACHED = 64
"""Compiled regular expressions that were not written as literals and are kept."""

MAX_PATTERN_MEMORY = 1 << 20
"""Bytes RE2 may use for one regular expression."""
