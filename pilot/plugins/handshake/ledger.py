"""`Ledger`: the trust book with what every change of it brings along: events, the file, who waits (handshake, L11).

Source: services.md 1.3, 1.4 and 8.2. Every change is made in one step, without waiting for anybody.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from pilot.coreapi import BusyError, ServiceNotReadyError
from pilot.plugins.handshake.records import COOLDOWN_SECONDS, PendingRequest, TrustBook, TrustRecord

if TYPE_CHECKING:
    from pilot.coreapi import EventBus
    from pilot.plugins.handshake.file import TrustFile
    from pilot.plugins.handshake.grants import Grant

__all__ = ["Ledger"]

MAX_WAITERS: Final = 1024


class Ledger:
    """Owns the book of one life of the plugin."""

    def __init__(self, book: TrustBook, file: TrustFile, events: EventBus, wall: Callable[[], float]) -> None:
        self.book = book
        self._file = file
        self._events = events
        self._wall = wall
        self._waiters: dict[int, set[asyncio.Future[None]]] = {}

    def now(self) -> int:
        """Unix seconds."""
        return int(self._wall())

    # ------------------------------------------------------------------------------------------ trust

    def trust(self, node_id: int, public_key: bytes, *, mutual: bool, network: int = 0) -> None:
        """Enters trust without an event: what an accepted request of this node does."""
        self.book.trust(TrustRecord(node_id, public_key, self.now(), mutual, network))
        self._file.changed()
        for waiter in self._waiters.pop(node_id, ()):
            if not waiter.done():
                waiter.set_result(None)

    def grant(self, node_id: int, public_key: bytes, grant: Grant) -> None:
        """Trust that the user was not asked for."""
        self.trust(node_id, public_key, mutual=grant.mutual, network=grant.network)
        payload = {"peer_node_id": node_id, "reason": grant.reason, **({"agent": grant.agent} if grant.agent else {})}
        if grant.announced:
            self._events.publish("handshake.auto_approved", payload)
        self._events.publish("trust.changed", {**payload, "state": "granted", "reason": grant.changed_reason})

    def approve(self, request: PendingRequest, public_key: bytes) -> None:
        """The user's yes."""
        self.trust(request.node_id, public_key, mutual=False)
        self._events.publish("handshake.approved", {"peer_node_id": request.node_id})
        self._events.publish(
            "trust.changed", {"peer_node_id": request.node_id, "state": "granted", "reason": "approved"}
        )

    def note_key(self, node_id: int, public_key: bytes) -> None:
        """Completes a record that came through the mailbox."""
        record = self.book.trusted[node_id]
        self.book.trusted[node_id] = dataclasses.replace(record, public_key=public_key)
        self._file.changed()

    # ------------------------------------------------------------------------------------- end of trust

    def revoke(self, node_id: int, *, automatic: bool) -> None:
        """Trust is taken back; for five minutes late approvals count for nothing.

        Where the user does it, and not something `automatic`, only the user gives it again.
        """
        del self.book.trusted[node_id]
        if not automatic:
            self.book.distrust(node_id, self.now())
        self.book.revoked[node_id] = self.now() + COOLDOWN_SECONDS
        self.book.withdraw(node_id)
        self._file.changed()
        self._events.publish("trust.revoked", {"peer_node_id": node_id})
        self._publish_revoked(node_id, "local")

    def revoked_by_peer(self, node_id: int) -> bool:
        """The peer takes its trust back, and so does this node; whether it had trusted the peer."""
        trusted = self.book.trusted.pop(node_id, None) is not None
        self.book.pending.pop(node_id, None)
        self.book.outgoing.pop(node_id, None)
        self._file.changed()
        self._events.publish("trust.revoked_by_peer", {"peer_node_id": node_id})
        self._publish_revoked(node_id, "by_peer")
        return trusted

    def key_changed(self, node_id: int) -> None:
        """Trust was in another key."""
        del self.book.trusted[node_id]
        self._file.changed()
        self._publish_revoked(node_id, "key_changed")

    def _publish_revoked(self, node_id: int, reason: str) -> None:
        self._events.publish("trust.changed", {"peer_node_id": node_id, "state": "revoked", "reason": reason})

    # ----------------------------------------------------------------------------------------- requests

    def received(self, node_id: int, justification: str) -> None:
        """A request came directly."""
        self._events.publish("handshake.received", {"peer_node_id": node_id, "justification": justification})

    def wait_for_user(
        self, node_id: int, public_key: bytes, justification: str, *, source: int, relayed: bool = False
    ) -> bool:
        """Enters a pending request; False when there is no room. One out of the mailbox brings no event."""
        if not self.book.add_pending(PendingRequest(node_id, public_key, justification, self.now(), source)):
            return False
        self._file.changed()
        if not relayed:
            self._events.publish("handshake.pending", {"peer_node_id": node_id, "justification": justification})
        return True

    def reject(self, node_id: int, reason: str) -> bool:
        """The user's no, published in any case; whether the node had asked."""
        had_asked = self.book.pending.pop(node_id, None) is not None
        self._file.changed()
        self._events.publish("handshake.rejected", {"peer_node_id": node_id, "reason": reason})
        return had_asked

    def asked(self, node_id: int) -> None:
        """This node asks `node_id`, whatever it did before: a revocation stays only for the registry to hear of."""
        if node_id in self.book.withdrawals and node_id in self.book.revoked:
            self.book.revoked[node_id] = self.now()
        else:
            self.book.revoked.pop(node_id, None)
        self.book.distrusted.pop(node_id, None)
        self.book.add_outgoing(node_id, self.now())
        self._file.changed()

    def forget_pending(self, node_id: int) -> None:
        """A request that must not be approved any more."""
        if self.book.pending.pop(node_id, None) is not None:
            self._file.changed()

    def forget_outgoing(self, node_id: int) -> bool:
        """A request of this node is settled, or never went out; whether there was one."""
        if self.book.outgoing.pop(node_id, None) is None:
            return False
        self._file.changed()
        return True

    def sweep(self) -> None:
        """Forgets what is too old."""
        if self.book.sweep(self.now()):
            self._file.changed()

    # ------------------------------------------------------------------------------------------ waiting

    async def wait(self, node_id: int, timeout: float) -> bool:
        """True as soon as `node_id` is trusted, False after `timeout` seconds.

        Raises:
            BusyError: too many calls wait already.
            ServiceNotReadyError: the plugin stops meanwhile.
        """
        if node_id in self.book.trusted:
            return True
        if timeout <= 0:
            return False
        if sum(map(len, self._waiters.values())) >= MAX_WAITERS:
            raise BusyError(f"{MAX_WAITERS} calls wait for trust already: wait for the event trust.changed instead")
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.setdefault(node_id, set()).add(waiter)
        try:
            async with asyncio.timeout(timeout):
                await waiter
        except TimeoutError:
            return node_id in self.book.trusted
        finally:
            waiting = self._waiters.get(node_id)
            if waiting is not None:
                waiting.discard(waiter)
                if not waiting:
                    del self._waiters[node_id]
        return True

    def end_waiting(self) -> None:
        """Those who wait hear that the plugin stops."""
        for waiters in self._waiters.values():
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_exception(ServiceNotReadyError("the handshake service has stopped"))
