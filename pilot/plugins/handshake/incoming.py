"""What requests, accepts, rejections and revocations of others lead to, direct or relayed (plugin handshake, L11).

Source: services.md 1.3 and 1.5.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pilot.plugins.handshake.checks import find_record
from pilot.plugins.handshake.message import MessageType, printable

if TYPE_CHECKING:
    from collections.abc import Callable

    from pilot.coreapi import Deps
    from pilot.plugins.handshake.checks import Checked
    from pilot.plugins.handshake.grants import Grants
    from pilot.plugins.handshake.host import HandshakeHost, RelayedRequest, RelayedResponse
    from pilot.plugins.handshake.ledger import Ledger
    from pilot.plugins.handshake.outbound import Errands, Outbound

__all__ = ["Incoming"]


class Incoming:
    """Decides, enters the decision into the ledger and has the others told."""

    def __init__(
        self,
        deps: Deps,
        host: HandshakeHost,
        ledger: Ledger,
        grants: Grants,
        outbound: Outbound,
        errands: Errands,
        settled: Callable[[int], None],
        withdraw: Callable[[int], None],
    ) -> None:
        """`settled` is told whose answer is awaited no more, `withdraw` whom the registry has to pair no more."""
        self._identity = deps.identity
        self._log = deps.logger
        self._registry = host.registry
        self._ledger = ledger
        self._grants = grants
        self._outbound = outbound
        self._errands = errands
        self._settled = settled
        self._withdraw = withdraw

    # ----------------------------------------------------------------------------------------- direct

    async def handle(self, checked: Checked) -> bool:
        """Acts on a message that passed all checks; one of an unknown type is ignored.

        Returns whether the tunnel has to end, once the sender knows that its message has arrived.
        """
        match checked.message.type:
            case MessageType.REQUEST:
                await self._request(checked)
            case MessageType.ACCEPT:
                self._accept(checked)
            case MessageType.REJECT:
                self._reject(checked)
            case MessageType.REVOKE:
                return self._revoke(checked)
            case unknown:
                self._log.debug("a handshake message of type %r is ignored", unknown)
        return False

    async def _request(self, checked: Checked) -> None:
        message, ledger = checked.message, self._ledger
        node, key = message.node_id, message.public_key
        shared = await self._shared_networks(checked.networks if checked.bound else frozenset())
        justification = printable(message.justification)
        ledger.received(node, justification)
        if (known := ledger.book.trusted.get(node)) is not None:
            if known.public_key in (b"", key):
                if checked.bound and not known.public_key:
                    ledger.note_key(node, key)
                self._errands.spawn("accept", self._outbound.tell_accepted(node))
                return
            if not checked.bound:
                self._log.debug("a request in the name of node %d with another key is dropped", node)
                return
            ledger.key_changed(node)
        grant = self._grants.direct(node, key, shared, bound=checked.bound)
        if grant is not None:
            ledger.grant(node, key, grant)
            self._settled(node)
            self._errands.spawn("grant", self._outbound.tell_granted(node))
        elif not self._may_ask(checked) or not ledger.wait_for_user(node, key, justification, source=checked.source):
            self._log.debug("a request of node %d, from node %d, is dropped: too many wait", node, checked.source)

    def _may_ask(self, checked: Checked) -> bool:
        """Whether the request may take the place of one that waits: nobody may change another's key there."""
        known = self._ledger.book.pending.get(checked.message.node_id)
        return checked.bound or known is None or known.public_key == checked.message.public_key

    def _accept(self, checked: Checked) -> None:
        message, ledger = checked.message, self._ledger
        node = message.node_id
        if node not in ledger.book.outgoing or ledger.book.cooling(node, ledger.now()):
            self._log.debug("an acceptance of node %d is dropped: it was not asked", node)
            return
        ledger.trust(node, message.public_key, mutual=True)
        self._settled(node)
        self._errands.spawn("report", self._outbound.report(node))

    def _reject(self, checked: Checked) -> None:
        self._rejected(checked.message.node_id, printable(checked.message.reason))

    def _revoke(self, checked: Checked) -> bool:
        node, book = checked.message.node_id, self._ledger.book
        known = book.trusted.get(node)
        if known is None and node not in book.pending and node not in book.outgoing:
            return False
        if not checked.bound and known is not None and known.public_key not in (b"", checked.message.public_key):
            self._log.debug("a revocation in the name of node %d with another key is dropped", node)
            return False
        trusted = self._ledger.revoked_by_peer(node)
        self._settled(node)
        if trusted:
            self._withdraw(node)
        return True

    async def _shared_networks(self, networks: frozenset[int]) -> frozenset[int]:
        """Those of `networks` this node is a member of."""
        if not networks:
            return networks
        own = await find_record(self._registry, self._identity.node_id)
        return networks & frozenset(own.networks) if own is not None else frozenset()

    def _rejected(self, node: int, reason: str) -> None:
        if self._ledger.forget_outgoing(node):
            self._log.debug("node %d does not want to be trusted: %s", node, reason or "it gives no reason")
        self._settled(node)

    # ---------------------------------------------------------------------------------------- relayed

    async def relayed_request(self, request: RelayedRequest) -> None:
        """A request out of the mailbox: the registry has verified its sender, but it carries no key."""
        node, ledger = request.from_node_id, self._ledger
        if node in ledger.book.trusted:
            self._errands.spawn("accept", self._outbound.tell_accepted_relayed(node))
            return
        record = await find_record(self._registry, node)
        shared = await self._shared_networks(frozenset(record.networks if record is not None else ()) - {0})
        key = (record.public_key if record is not None else None) or b""
        if node in ledger.book.trusted:  # meanwhile
            return
        grant = self._grants.relayed(node, shared)
        if grant is not None:
            ledger.grant(node, key, grant)
            self._settled(node)
            self._errands.spawn("grant", self._outbound.tell_granted_relayed(node))
        elif not ledger.wait_for_user(node, key, printable(request.justification), source=node, relayed=True):
            self._log.debug("a request of node %d is dropped: too many wait", node)

    async def relayed_response(self, response: RelayedResponse) -> None:
        """An answer out of the mailbox; an approval counts only for a node that was asked, and not after a revocation.

        The approver's own calls have made the pair known; the report here is for a registry's client that remembers
        having been refused, and comes first so that whoever waits for trust can dial at once.
        """
        node = response.from_node_id
        if not response.accept:
            self._rejected(node, "")
            return
        if not self._awaits(node):
            self._log.debug("an approval of node %d is dropped: it was not asked", node)
            return
        record = await find_record(self._registry, node)
        await self._outbound.report_ahead(node)
        if self._awaits(node):
            self._ledger.trust(node, (record.public_key if record is not None else None) or b"", mutual=True)
            self._settled(node)
        elif node not in self._ledger.book.trusted:  # it has refused meanwhile
            self._withdraw(node)

    def _awaits(self, node: int) -> bool:
        book = self._ledger.book
        return node in book.outgoing and not book.cooling(node, self._ledger.now())
