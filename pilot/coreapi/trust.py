"""`TrustChecker`: the list of peers whose handshakes are accepted unasked, as plugins see it (L10)."""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

__all__ = ["TrustChecker", "TrustMatch"]


class TrustMatch(NamedTuple):
    """The answer of a `TrustChecker`; false on a miss, unlike a bare tuple."""

    name: str = ""
    """The agent's display name, empty on a miss."""
    ok: bool = False
    """Whether the peer is on the list."""

    def __bool__(self) -> bool:
        return self.ok


@runtime_checkable
class TrustChecker(Protocol):
    """Tells who is on the auto-approve list; not to be confused with the peers a node has exchanged handshakes with.

    Source: seed `coreapi.TrustChecker`, services.md 7.
    """

    def is_trusted(self, node_id: int) -> TrustMatch:
        """Whether `node_id` is on the list, whatever key may be pinned there. Answers at once."""
        ...
