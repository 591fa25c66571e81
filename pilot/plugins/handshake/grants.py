"""Who is trusted without asking the user, and why (plugin handshake, L11). Source: services.md 1.3.

Unlike 1.18.0 no network and no list of agents gives trust back that the user has revoked; `auto_approve`, the user's
own word that every request is accepted, does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pilot.coreapi import TrustMatch
from pilot.plugins.handshake.host import KeyedTrustChecker
from pilot.plugins.handshake.records import MAX_GRANTED_UNASKED

if TYPE_CHECKING:
    from collections.abc import Collection

    from pilot.coreapi import TrustChecker
    from pilot.plugins.handshake.records import TrustBook

__all__ = ["Grant", "Grants"]


@dataclass(frozen=True, slots=True)
class Grant:
    """A reason to trust."""

    reason: str
    """As `handshake.auto_approved` names it."""
    mutual: bool = False
    network: int = 0
    agent: str = ""
    """The name on the list of trusted agents."""
    announced: bool = True
    """Whether `handshake.auto_approved` is published."""
    suffix: str = ""
    """What `trust.changed` adds to the reason."""

    @property
    def changed_reason(self) -> str:
        """The reason as `trust.changed` names it."""
        return self.reason + self.suffix


class Grants:
    """Decides on requests."""

    def __init__(self, book: TrustBook, agents: TrustChecker | None, *, auto_approve: bool) -> None:
        self._book = book
        self._agents = agents
        self._auto_approve = auto_approve

    def direct(self, node_id: int, key: bytes, shared: Collection[int], *, bound: bool) -> Grant | None:
        """The first reason that holds for a request from the node itself, signed with `key`.

        `bound` says whether the registry has that key for the node; `shared` are the networks both are members of.
        """
        if not bound:
            return self._if_room(Grant("auto_approve")) if self._auto_approve else None
        if node_id in self._book.outgoing:
            return Grant("mutual", mutual=True)
        if shared and not self._is_distrusted(node_id):
            return self._if_room(Grant("same_network", network=min(shared)))
        if agent := self._agent(node_id, key):
            return self._if_room(Grant("trusted_agent", agent=agent.name))
        return self._if_room(Grant("auto_approve")) if self._auto_approve else None

    def relayed(self, node_id: int, shared: Collection[int]) -> Grant | None:
        """The first that holds for a request out of the mailbox, which carries no key: no pin can match."""
        if node_id in self._book.outgoing:
            return Grant("mutual", mutual=True, announced=False)
        if shared and not self._is_distrusted(node_id):
            return self._if_room(Grant("same_network", network=min(shared), announced=False))
        if agent := self._agent(node_id, b""):
            return self._if_room(Grant("trusted_agent", agent=agent.name, suffix="_relayed"))
        return self._if_room(Grant("auto_approve", suffix="_relayed")) if self._auto_approve else None

    def _agent(self, node_id: int, key: bytes) -> TrustMatch:
        if self._agents is None or self._is_distrusted(node_id):
            return TrustMatch()
        if isinstance(self._agents, KeyedTrustChecker):
            return self._agents.is_trusted_with_key(node_id, key)
        return self._agents.is_trusted(node_id)

    def _is_distrusted(self, node_id: int) -> bool:
        return node_id in self._book.distrusted

    def _if_room(self, grant: Grant) -> Grant | None:
        return grant if len(self._book.trusted) < MAX_GRANTED_UNASKED else None
