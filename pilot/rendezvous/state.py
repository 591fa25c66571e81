"""The registry's tables in memory, with their indexes; every change also goes to the journal (rendezvous room, L8)."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator
from typing import Final, TypeVar

from pilot.protocol.registry import BACKBONE
from pilot.rendezvous.journal import Journal
from pilot.rendezvous.store import (
    CounterRow,
    DecisionRow,
    InviteRow,
    MemberRow,
    NetworkRow,
    NodeRow,
    RequestRow,
    Row,
    TrustRow,
)

NEXT_NODE_ID: Final = "next_node_id"
NEXT_NETWORK_ID: Final = "next_network_id"
CREATED: Final = "created"

K = TypeVar("K")
R = TypeVar("R", bound=Row)


class State:
    """All the registry knows. Rows are immutable: a change is a new row given to one of the `put_*` methods.

    `last_seen` (monotonic seconds, live nodes only, the longest unseen first) is the only table that is not stored.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self.counters: dict[str, int] = {}
        self.nodes: dict[int, NodeRow] = {}
        self.by_key: dict[bytes, int] = {}
        self.by_owner: dict[str, int] = {}
        self.by_hostname: dict[str, int] = {}
        self.last_seen: OrderedDict[int, float] = OrderedDict()
        self.trust: dict[tuple[int, int], TrustRow] = {}
        self.trust_reported: Counter[int] = Counter()
        self.trusted_peers: dict[int, set[int]] = {}
        self.requests: dict[int, dict[int, RequestRow]] = {}
        self.decisions: dict[int, dict[int, DecisionRow]] = {}
        self.mailbox_rows = 0
        self.networks: dict[int, NetworkRow] = {}
        self.network_names: dict[str, int] = {}
        self.members: dict[int, dict[int, MemberRow]] = {}
        self.networks_of: dict[int, set[int]] = {}
        self.invites: dict[int, dict[int, InviteRow]] = {}

    def load(self, rows: Iterable[Row], now: float, unix_time: int) -> None:
        """Fill the tables with stored `rows`; nodes that were live count as seen `now`."""
        for row in rows:
            match row:
                case CounterRow():
                    self.counters[row.name] = row.value
                case NodeRow():
                    self._index_node(row, now)
                case TrustRow():
                    self._index_trust(row)
                case RequestRow():
                    self._index_mail(self.requests, row.target, row.requester, row)
                case DecisionRow():
                    self._index_mail(self.decisions, row.requester, row.responder, row)
                case NetworkRow():
                    self._index_network(row)
                case MemberRow():
                    self._index_member(row)
                case InviteRow():
                    self.invites.setdefault(row.target, {})[row.network_id] = row
        if CREATED not in self.counters:
            self._count(CREATED, unix_time)

    # ------------------------------------------------------------------------------------------- counters

    @property
    def created(self) -> int:
        """When the store was made, in unix seconds."""
        return self.counters[CREATED]

    def next_id(self, counter: str) -> int:
        """The id that `take_id` would give out."""
        return self.counters.get(counter, 1)

    def take_id(self, counter: str) -> int:
        """A new id from `counter`; ids start at 1 and are never given out twice."""
        taken = self.next_id(counter)
        self._count(counter, taken + 1)
        return taken

    def _count(self, counter: str, value: int) -> None:
        self.counters[counter] = value
        self._journal.put(CounterRow(counter, value))

    # ---------------------------------------------------------------------------------------------- nodes

    def live_node(self, node_id: int) -> NodeRow | None:
        """The node, or None when it is unknown, reaped or deregistered."""
        node = self.nodes.get(node_id)
        return node if node is not None and node.live else None

    def put_node(self, row: NodeRow, now: float) -> None:
        """Store `row` if it says anything new; a live node is seen `now`."""
        if self.nodes.get(row.node_id) != row:
            self._index_node(row, now)
            self._journal.put(row)
        elif row.live:
            self.touch(row.node_id, now)

    def touch(self, node_id: int, now: float) -> None:
        """The live node `node_id` was heard of `now`."""
        self.last_seen[node_id] = now
        self.last_seen.move_to_end(node_id)

    def _index_node(self, row: NodeRow, now: float) -> None:
        old = self.nodes.get(row.node_id)
        if old is not None:
            _forget(self.by_key, old.public_key, row.node_id)
            _forget(self.by_hostname, old.hostname, row.node_id)
            if old.owner != row.owner:
                _forget(self.by_owner, old.owner, row.node_id)
        self.nodes[row.node_id] = row
        self.by_key[row.public_key] = row.node_id
        if row.live and row.hostname:
            self.by_hostname[row.hostname] = row.node_id
        if row.owner and (row.live or self.live_node(self.by_owner.get(row.owner, 0)) is None):
            self.by_owner[row.owner] = row.node_id
        if row.live:
            self.touch(row.node_id, now)
        else:
            self.last_seen.pop(row.node_id, None)

    # ---------------------------------------------------------------------------------------------- trust

    def is_trusted(self, a: int, b: int) -> bool:
        """Whether the two nodes trust each other or share a network other than the backbone."""
        if (min(a, b), max(a, b)) in self.trust:
            return True
        return not self.networks_of.get(a, frozenset()).isdisjoint(self.networks_of.get(b, frozenset()))

    def put_trust(self, row: TrustRow) -> None:
        """Add a trust pair."""
        self._index_trust(row)
        self._journal.put(row)

    def _index_trust(self, row: TrustRow) -> None:
        self.trust[row.low, row.high] = row
        self.trust_reported[row.reporter] += 1
        self.trusted_peers.setdefault(row.low, set()).add(row.high)
        self.trusted_peers.setdefault(row.high, set()).add(row.low)

    def delete_trust(self, row: TrustRow) -> None:
        """Remove a trust pair."""
        del self.trust[row.low, row.high]
        self.trust_reported[row.reporter] -= 1
        if not self.trust_reported[row.reporter]:
            del self.trust_reported[row.reporter]
        for node_id, peer_id in {(row.low, row.high), (row.high, row.low)}:
            self.trusted_peers[node_id].discard(peer_id)
            if not self.trusted_peers[node_id]:
                del self.trusted_peers[node_id]
        self._journal.delete(row)

    def trust_of(self, node_id: int) -> list[TrustRow]:
        """Every pair `node_id` is in."""
        peers = self.trusted_peers.get(node_id, ())
        return [self.trust[min(node_id, peer), max(node_id, peer)] for peer in peers]

    # -------------------------------------------------------------------------------------------- mailbox

    def put_request(self, row: RequestRow) -> None:
        """Leave or change a handshake request."""
        self._index_mail(self.requests, row.target, row.requester, row)
        self._journal.put(row)

    def put_decision(self, row: DecisionRow) -> None:
        """Leave an answer to a handshake request."""
        self._index_mail(self.decisions, row.requester, row.responder, row)
        self._journal.put(row)

    def delete_request(self, row: RequestRow) -> None:
        """Forget a handshake request."""
        self._drop_mail(self.requests, row.target, row.requester)
        self._journal.delete(row)

    def delete_decision(self, row: DecisionRow) -> None:
        """Forget an answer."""
        self._drop_mail(self.decisions, row.requester, row.responder)
        self._journal.delete(row)

    def _index_mail(self, boxes: dict[int, dict[int, R]], owner: int, sender: int, row: R) -> None:
        box = boxes.setdefault(owner, {})
        self.mailbox_rows += sender not in box
        box[sender] = row

    def _drop_mail(self, boxes: dict[int, dict[int, R]], owner: int, sender: int) -> None:
        box = boxes[owner]
        del box[sender]
        self.mailbox_rows -= 1
        if not box:
            del boxes[owner]

    # ------------------------------------------------------------------------------------------- networks

    def put_network(self, row: NetworkRow) -> None:
        """Add or change a network."""
        self._index_network(row)
        self._journal.put(row)

    def _index_network(self, row: NetworkRow) -> None:
        old = self.networks.get(row.network_id)
        if old is not None:
            _forget(self.network_names, old.name, row.network_id)
        self.networks[row.network_id] = row
        self.network_names[row.name] = row.network_id
        self.members.setdefault(row.network_id, {})

    def delete_network(self, row: NetworkRow) -> None:
        """Remove a network with its memberships and invites."""
        for member in list(self.members[row.network_id].values()):
            self.delete_member(member)
        for invite in [i for box in self.invites.values() for i in box.values() if i.network_id == row.network_id]:
            self.delete_invite(invite)
        del self.members[row.network_id]
        del self.networks[row.network_id]
        _forget(self.network_names, row.name, row.network_id)
        self._journal.delete(row)

    def networks_with(self, node_id: int) -> list[int]:
        """The networks of a live node, the backbone first."""
        return [BACKBONE, *sorted(self.networks_of.get(node_id, ()))]

    def put_member(self, row: MemberRow) -> None:
        """Add or change a membership."""
        self._index_member(row)
        self._journal.put(row)

    def _index_member(self, row: MemberRow) -> None:
        self.members.setdefault(row.network_id, {})[row.node_id] = row
        self.networks_of.setdefault(row.node_id, set()).add(row.network_id)

    def delete_member(self, row: MemberRow) -> None:
        """Remove a membership."""
        del self.members[row.network_id][row.node_id]
        networks = self.networks_of[row.node_id]
        networks.discard(row.network_id)
        if not networks:
            del self.networks_of[row.node_id]
        self._journal.delete(row)

    def memberships_of(self, node_id: int) -> Iterator[MemberRow]:
        """The memberships of a node; a snapshot, so they may be deleted on the way."""
        for network_id in list(self.networks_of.get(node_id, ())):
            yield self.members[network_id][node_id]

    def put_invite(self, row: InviteRow) -> None:
        """Add or change an invite."""
        self.invites.setdefault(row.target, {})[row.network_id] = row
        self._journal.put(row)

    def delete_invite(self, row: InviteRow) -> None:
        """Remove an invite."""
        box = self.invites[row.target]
        del box[row.network_id]
        if not box:
            del self.invites[row.target]
        self._journal.delete(row)


def _forget(index: dict[K, int], key: K, node_id: int) -> None:
    if index.get(key) == node_id:
        del index[key]
