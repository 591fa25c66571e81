"""`Callbacks`: what plugins have asked to be called for; one that crashes is logged and harms nobody else (L9)."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from pilot.node.directory.quiet import QuietLog

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Callbacks"]

_log = logging.getLogger("pilot.node")


class Callbacks:
    """Of one run of a node. Strangers' packets cause these calls, so the log of crashes is limited too."""

    def __init__(self, is_trusted: Callable[[int], bool]) -> None:
        """`is_trusted` is the first that is asked whether a node is trusted."""
        self._trust_sources = [is_trusted]
        self._mailbox: list[Callable[[], None]] = []
        self._counters: dict[str, Callable[[], int]] = {}
        self._quiet = QuietLog(_log)

    def add_trust_source(self, is_trusted: Callable[[int], bool]) -> None:
        """Has `is_trusted` asked as well. One that crashes has not said yes."""
        self._trust_sources.append(is_trusted)

    def on_mailbox(self, poll: Callable[[], None]) -> None:
        """Has `poll` called when the registry's mailbox holds something for this node."""
        self._mailbox.append(poll)

    def add_counter(self, name: str, read: Callable[[], int]) -> None:
        """Has `read` called for the node's statistics. One that crashes is left out of them."""
        self._counters[name] = read

    def is_trusted(self, node: int) -> bool:
        """Whether anybody says that `node` is trusted."""
        for is_trusted in self._trust_sources:
            try:
                if is_trusted(node):
                    return True
            except Exception as error:
                self._failed("trust source", is_trusted, error)
        return False

    def mailbox_filled(self) -> None:
        """Calls those who want to know of mail."""
        for poll in self._mailbox:
            try:
                poll()
            except Exception as error:
                self._failed("mailbox callback", poll, error)

    def counters(self) -> dict[str, int]:
        """The plugins' counters at this moment."""
        found = {}
        for name, read in self._counters.items():
            try:
                found[name] = read()
            except Exception as error:
                self._failed("counter", name, error)
        return found

    def _failed(self, kind: str, callback: object, error: Exception) -> None:
        self._quiet.warning(kind, "the %s %r of a plugin crashed: %r", kind, callback, error)
