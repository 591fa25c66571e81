"""`TrustBook`: who is trusted, who asks, whom this node asked, who was revoked (plugin handshake, L11).

Source: services.md 1.3, 1.4 and 1.6. All times are unix seconds.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Final

__all__ = ["PendingRequest", "TrustBook", "TrustRecord"]

MAX_PENDING: Final = 256
MAX_PENDING_PER_SOURCE: Final = 16
MAX_OUTGOING: Final = 4096
MAX_WITHDRAWALS: Final = 4096
MAX_DISTRUSTED: Final = 16384
"""Of nodes the user has revoked so many are remembered, the latest: as many as can be trusted unasked."""
MAX_GRANTED_UNASKED: Final = 16384
"""So many trusted nodes, and nobody is trusted any more without this node's user having a say."""
REQUEST_SECONDS: Final = 30 * 86400
"""Requests in either direction are forgotten after this."""
COOLDOWN_SECONDS: Final = 300
"""After a revocation late approvals of the same node are ignored for so long."""


@dataclass(frozen=True, slots=True)
class TrustRecord:
    """A node this one trusts."""

    node_id: int
    public_key: bytes
    """Raw Ed25519 key when trust began, 32 bytes; empty where it was not known."""
    approved_at: int
    mutual: bool
    """Whether this node had asked for it."""
    network: int = 0
    """The network both share, where that was the reason."""


@dataclass(frozen=True, slots=True)
class PendingRequest:
    """A node that waits for this one's decision."""

    node_id: int
    public_key: bytes
    """Raw key it claims, or that the registry has; empty where neither is known."""
    justification: str
    received_at: int
    source: int
    """The node the request came from, which may be another one that passed it on."""


@dataclass(slots=True)
class TrustBook:
    """The tables. Changing one is its owner's business; what is here keeps their bounds."""

    trusted: dict[int, TrustRecord] = field(default_factory=dict)
    pending: dict[int, PendingRequest] = field(default_factory=dict)
    outgoing: dict[int, int] = field(default_factory=dict)
    """When each node was asked."""
    revoked: dict[int, int] = field(default_factory=dict)
    """Until when late approvals of each node are ignored. It stays while the registry has the pair: see `withdraw`."""
    withdrawals: dict[int, None] = field(default_factory=dict)
    """The nodes, oldest first, whom the registry has yet to pair with this one no more."""
    distrusted: dict[int, int] = field(default_factory=dict)
    """When the user took trust back from each node, oldest first: what others say of it does not bring that back."""

    def trust(self, record: TrustRecord) -> None:
        """Enters `record`; requests in either direction are settled by it, and so is an earlier revocation."""
        self.distrusted.pop(record.node_id, None)
        self.trusted[record.node_id] = record
        self.pending.pop(record.node_id, None)
        self.outgoing.pop(record.node_id, None)
        self.revoked.pop(record.node_id, None)
        self.withdrawals.pop(record.node_id, None)

    def withdraw(self, node_id: int) -> None:
        """Enters that the registry has to forget the pair with `node_id`: until then it vouches for it at the gate."""
        self.withdrawals[node_id] = None
        if len(self.withdrawals) > MAX_WITHDRAWALS:
            del self.withdrawals[next(iter(self.withdrawals))]

    def distrust(self, node_id: int, now: int) -> None:
        """Enters that the user has taken trust back; where there is no room the oldest entry is forgotten."""
        self.distrusted.pop(node_id, None)
        self.distrusted[node_id] = now
        if len(self.distrusted) > MAX_DISTRUSTED:
            del self.distrusted[next(iter(self.distrusted))]

    def add_pending(self, request: PendingRequest) -> bool:
        """Enters a request in place of an earlier one of the same node; False when there is no room.

        A full table drops the oldest request of the source that has most, if that is more than one: a few sources do
        not keep everybody else out.
        """
        others = [known for node, known in self.pending.items() if node != request.node_id]
        sources = Counter(known.source for known in others)
        if sources[request.source] >= MAX_PENDING_PER_SOURCE:
            return False
        if len(others) >= MAX_PENDING:
            greediest, requests = sources.most_common(1)[0]
            if requests <= sources[request.source] + 1:
                return False
            del self.pending[next(known.node_id for known in others if known.source == greediest)]
        self.pending.pop(request.node_id, None)
        self.pending[request.node_id] = request
        return True

    def add_outgoing(self, node_id: int, now: int) -> None:
        """Enters that `node_id` was asked; where there is no room the oldest is forgotten."""
        self.outgoing.pop(node_id, None)
        if len(self.outgoing) >= MAX_OUTGOING:
            del self.outgoing[min(self.outgoing, key=self.outgoing.__getitem__)]
        self.outgoing[node_id] = now

    def cooling(self, node_id: int, now: float) -> bool:
        """Whether `node_id` was revoked so lately that its approvals are ignored."""
        return now < self.revoked.get(node_id, 0)

    def sweep(self, now: float) -> bool:
        """Forgets old requests and past revocations; whether anything was."""
        before = len(self.pending), len(self.outgoing), len(self.revoked)
        oldest = now - REQUEST_SECONDS
        self.pending = {node: request for node, request in self.pending.items() if request.received_at >= oldest}
        self.outgoing = {node: at for node, at in self.outgoing.items() if at >= oldest}
        self.revoked = {node: until for node, until in self.revoked.items() if until > now or node in self.withdrawals}
        return before != (len(self.pending), len(self.outgoing), len(self.revoked))
