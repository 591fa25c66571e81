"""`HandshakeService`: what others see of the plugin, the operator's actions among it (plugin handshake, L11).

What another plugin may use of it, by a Protocol of its own (`facilities.service("handshake")` gives the object):

    trusted() -> list[TrustRecord]                 # node_id, public_key, approved_at (unix seconds), mutual, network
    distrusted() -> dict[int, int]                 # whom the operator has revoked, and when: what acts by itself
                                                   # asks none of them
    is_trusted_peer(node_id) -> bool
    async request(node_id, justification="") -> RequestOutcome
    async revoke(node_id, automatic=True) -> None

Source: services.md 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from pilot.coreapi import InvalidValueError, Service, ServiceNotReadyError
from pilot.plugins.handshake.checks import RESERVED_NODE_IDS
from pilot.plugins.handshake.file import TrustFile
from pilot.plugins.handshake.life import NAME, Life, RequestOutcome
from pilot.plugins.handshake.message import MAX_NODE_ID
from pilot.plugins.handshake.outbound import HANDSHAKE_PORT

if TYPE_CHECKING:
    from pilot.coreapi import Deps
    from pilot.plugins.handshake.host import HandshakeHost
    from pilot.plugins.handshake.records import PendingRequest, TrustBook, TrustRecord

__all__ = ["HandshakeService"]


class HandshakeService(Service):
    """Trust between this node and others: who asks, who is accepted, and the trust gate's answers.

    Calls come from the node's loop. `approve` and `reject` return when the decision is made and kept; telling goes on
    in the background, and what of it fails is logged: a peer that was not reached learns of it through the mailbox.
    """

    name = NAME
    order = 60

    def __init__(self, host: HandshakeHost, *, auto_approve: bool = False) -> None:
        self._host = host
        self._auto_approve = auto_approve
        self._book: TrustBook | None = None
        self._life: Life | None = None
        host.add_trust_source(self.is_trusted_peer)
        host.on_mailbox(self._on_mailbox)
        host.add_counter("handshake_pending", lambda: len(self._book.pending) if self._book else 0)
        host.add_counter("handshake_trusted", lambda: len(self._book.trusted) if self._book else 0)
        host.add_counter("handshake_messages_dropped", lambda: self._life.dropped if self._life else 0)

    @classmethod
    def for_node(cls, facilities: HandshakeHost, *, auto_approve: bool = False) -> Self:
        """The service of a node with these facilities. `auto_approve`: every request is accepted."""
        return cls(facilities, auto_approve=auto_approve)

    # ------------------------------------------------------------------------------------------- life

    async def start(self, deps: Deps) -> None:
        """Reads `trust.json`, opens port 444 and starts polling. A restart keeps the trust of the life before.

        Raises:
            InvalidValueError: `trust.json` is damaged; it is left as it is.
            OSError: it cannot be read.
            BusyError: somebody listens on the port already.
        """
        file = TrustFile(self._host.state_dir, deps.logger)
        if self._book is None:
            self._book = await file.load(self._host.wall())
        listener = await deps.streams.listen(HANDSHAKE_PORT)
        self._life = Life(deps, self._host, self._book, file, listener, auto_approve=self._auto_approve)
        self._life.begin()

    async def stop(self) -> None:
        """Closes the port, ends a poll in order, writes the file. Trust holds on until the node has stopped."""
        life, self._life = self._life, None
        if life is not None:
            await life.end()

    def _running(self) -> Life:
        if self._life is None:
            raise ServiceNotReadyError("the handshake service does not run: start the node first")
        return self._life

    def _on_mailbox(self) -> None:
        if self._life is not None:
            self._life.mailbox.notice()

    # ----------------------------------------------------------------------------------------- questions

    def is_trusted_peer(self, node_id: int) -> bool:
        """Whether `node_id` is trusted. Answers at once; also while the plugin is being restarted."""
        return self._book is not None and node_id in self._book.trusted

    def trusted(self) -> list[TrustRecord]:
        """The trusted nodes. Raises `ServiceNotReadyError` while the plugin does not run."""
        return list(self._running().ledger.book.trusted.values())

    def pending(self) -> list[PendingRequest]:
        """The requests that wait for a decision; `refresh` first asks the mailbox for more.

        Raises `ServiceNotReadyError` while the plugin does not run.
        """
        return list(self._running().ledger.book.pending.values())

    def outgoing(self) -> dict[int, int]:
        """The nodes this one has asked and when (unix seconds). Raises `ServiceNotReadyError` as the others."""
        return dict(self._running().ledger.book.outgoing)

    def distrusted(self) -> dict[int, int]:
        """The nodes whose trust `revoke` took back for good, and when (unix seconds), until `approve` or `request`.

        Raises `ServiceNotReadyError` as the others.
        """
        return dict(self._running().ledger.book.distrusted)

    async def refresh(self) -> None:
        """Takes what is there out of the registry's mailbox. That it cannot be asked is logged.

        It is read every 2 s at most, so this may take as long.
        Cancelling it loses nothing: the poll goes on.

        Raises:
            ServiceNotReadyError: the plugin does not run.
        """
        await self._running().mailbox.refresh()

    async def wait_for_trust(self, node_id: int, timeout: float) -> bool:
        """True as soon as `node_id` is trusted, at once for this node itself, False after `timeout` seconds.

        Cancelling it changes nothing.

        Raises:
            BusyError: too many calls wait already.
            ServiceNotReadyError: the plugin does not run, or stops meanwhile.
        """
        life = self._running()
        if node_id == life.deps.identity.node_id:
            return True
        return await life.ledger.wait(node_id, timeout)

    # ------------------------------------------------------------------------------------------- actions

    async def request(self, node_id: int, justification: str = "") -> RequestOutcome:
        """Asks `node_id` to trust this node: directly, and where that fails through the registry's mailbox.

        Returns when the request is there; the answer may come at any time (`wait_for_trust`). Cancelled, it may have
        been delivered, and an acceptance then counts.

        Raises:
            InvalidValueError: no such node id can be, or `justification` is too long (some 700 bytes fit).
            PeerNotFoundError: the registry knows no such node.
            RegistryError: the peer could not be reached directly, and the registry not asked.
            ServiceNotReadyError: the plugin does not run, or the node is not registered yet.
        """
        return await self._running().request(_checked_id(node_id), justification)

    async def approve(self, node_id: int) -> bool:
        """Accepts the request of `node_id`; False when it has not asked.

        Cancelled, the request may still wait.

        Raises:
            InvalidValueError: no such node id can be, or the node has another key than it asked with: the request is
                forgotten, the node has to ask again.
            ServiceNotReadyError: the plugin does not run.
        """
        return await self._running().approve(_checked_id(node_id))

    async def reject(self, node_id: int, reason: str = "") -> bool:
        """Refuses the request of `node_id`, who is told `reason`; whether it had asked (it is told anyway).

        Cancelled, the request may still wait.

        Raises:
            InvalidValueError: no such node id can be, or `reason` is too long (some 700 bytes fit).
            ServiceNotReadyError: the plugin does not run.
        """
        return await self._running().reject(_checked_id(node_id), reason)

    async def revoke(self, node_id: int, *, automatic: bool = False) -> None:
        """Trusts `node_id` no more; it is told, its tunnel with all streams ends, the registry forgets the pair.

        From then on its requests wait for `approve`, also where both share a network or it is on the list of trusted
        agents, until it is trusted or asked (`request`) again. Not so where something `automatic` revokes, like a
        policy; nor with `auto_approve`, which accepts every request.

        Returns when the tunnel has ended: as soon as the peer was told, after 15 s if it does not answer. For five
        minutes approvals of it are ignored. Cancelled, trust has ended, and the rest goes on in the background.

        Raises:
            InvalidValueError: no such node id can be.
            PeerNotFoundError: it was not trusted.
            ServiceNotReadyError: the plugin does not run.
        """
        await self._running().revoke(_checked_id(node_id), automatic=automatic)


def _checked_id(node_id: int) -> int:
    if not isinstance(node_id, int) or isinstance(node_id, bool) or not 0 < node_id <= MAX_NODE_ID:
        raise InvalidValueError(f"{node_id!r} is no node id: give a number in 1..4294967293")
    if node_id in RESERVED_NODE_IDS:
        raise InvalidValueError(f"{node_id} is reserved and no node's id")
    return node_id
