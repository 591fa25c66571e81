"""What the data exchange takes from the node beyond `Deps` (plugin dataexchange, L11)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

__all__ = ["Host"]


class Host(Protocol):
    """A node's private directory, its clocks and its counters."""

    @property
    def state_dir(self) -> Path | None:
        """Where inbox and received files go; None: nothing is written."""
        ...

    @property
    def clock(self) -> Callable[[], float]:
        """Monotonic seconds."""
        ...

    @property
    def wall(self) -> Callable[[], float]:
        """Unix seconds."""
        ...

    @property
    def add_counter(self) -> Callable[[str, Callable[[], int]], None]:
        """Adds a number to the node's statistics."""
        ...
