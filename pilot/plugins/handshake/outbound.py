"""`Outbound`: messages to peers and reports to the registry, what of it may wait as errands (plugin handshake, L11).

Source: services.md 1.1, 1.4 and 1.5.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final

from pilot.coreapi import Addr, ClosedError, PilotError, recover_plugin
from pilot.plugins.handshake.message import Message, MessageType, encode, signed_text

if TYPE_CHECKING:
    from pilot.coreapi import Deps
    from pilot.plugins.handshake.host import HandshakeHost

__all__ = ["HANDSHAKE_PORT", "Errands", "Outbound"]

HANDSHAKE_PORT: Final = 444
DIAL_SECONDS: Final = 8.0
"""A private peer that does not trust this node answers nothing at all; the mailbox is next."""
SEND_SECONDS: Final = 15.0
"""For dialing and the peer's acknowledgment together."""
VARIANT_SECONDS: Final = 1200.0
"""A peer that was told nothing for so long has forgotten how the last signature was spelled."""
MAX_SPELLINGS: Final = 4096
MAX_ERRANDS: Final = 256
STOP_SECONDS: Final = 1.0

Errand = Coroutine[Any, Any, object]


class Errands:
    """Tasks of the plugin that hardly anybody waits for: bounded in number, each guarded, all gone after `stop`."""

    def __init__(self, plugin: str, deps: Deps) -> None:
        self._plugin = plugin
        self._deps = deps
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = False

    def spawn(self, op: str, errand: Errand) -> asyncio.Task[None] | None:
        """The task that runs `errand`; None, and it does not run, when there are too many or all are cancelled."""
        if self._stopping or len(self._tasks) >= MAX_ERRANDS:
            errand.close()
            self._deps.logger.debug("%s is left out: %d errands are under way", op, len(self._tasks))
            return None

        async def guarded() -> None:
            with recover_plugin(self._plugin, op, self._deps.events):
                await errand

        task = asyncio.create_task(guarded(), name=f"pilot {self._plugin} {op}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def stop(self) -> None:
        """Gives what is under way a second to end, then cancels it and waits for that."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=STOP_SECONDS)
        self._stopping = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


class Outbound:
    """Tells peers and the registry what this node has decided."""

    def __init__(
        self, deps: Deps, host: HandshakeHost, trusts: Callable[[int], bool], withdraw: Callable[[int], None]
    ) -> None:
        """`trusts` says whether a node is trusted, `withdraw` has the registry forget a pair that is not any more."""
        self._deps = deps
        self._trusts = trusts
        self._withdraw = withdraw
        self._registry = host.registry
        self._drop_tunnel = host.drop_tunnel
        self._clock = host.clock
        self._wall: Callable[[], float] = host.wall
        self._spellings: OrderedDict[int, tuple[int, float]] = OrderedDict()

    def message(self, node_id: int, kind: MessageType, *, justification: str = "", reason: str = "") -> bytes:
        """A signed message to `node_id`, spelled unlike the last ones to it.

        Raises:
            InvalidValueError: its text is too long for one segment.
        """
        identity = self._deps.identity
        message = Message(
            kind,
            identity.node_id,
            identity.public_key,
            identity.sign(signed_text(identity.node_id, node_id)),
            int(self._wall()),
            justification,
            reason,
        )
        return encode(message, self._next_variant(node_id))

    def _next_variant(self, node_id: int) -> int:
        now = self._clock()
        count, at = self._spellings.pop(node_id, (-1, now))
        count = count + 1 if now - at < VARIANT_SECONDS else 0
        self._spellings[node_id] = count, now
        if len(self._spellings) > MAX_SPELLINGS:
            self._spellings.popitem(last=False)
        return count

    async def send(self, node_id: int, data: bytes) -> None:
        """Delivers one message over a stream of its own; returns when the peer's node has it, or closes.

        Cancelled, it may have arrived.

        Raises:
            PilotError, TimeoutError: the peer could not be reached, or did not acknowledge it.
        """
        async with asyncio.timeout(SEND_SECONDS):
            stream = await self._deps.streams.dial(Addr(0, node_id), HANDSHAKE_PORT, timeout=DIAL_SECONDS)
            async with stream:
                await stream.write(data)
                with contextlib.suppress(ClosedError):  # it has read the message and closed before it acknowledged
                    await stream.drain()

    # --------------------------------------------------------------------------------------- errands

    async def tell_accepted(self, node_id: int) -> None:
        """Sends accept once more to a node that is trusted already."""
        await self._try("tell", node_id, self.send(node_id, self.message(node_id, MessageType.ACCEPT)))

    async def tell_accepted_relayed(self, node_id: int) -> None:
        """Answers a node that is trusted already through the mailbox once more."""
        await self._while_trusted(node_id, self._respond_accepted)

    async def tell_granted(self, node_id: int) -> None:
        """Makes the pair known, so that each may find the other, and sends accept."""
        await self._while_trusted(node_id, self._report, self.tell_accepted)

    async def tell_approved(self, node_id: int) -> None:
        """The same, and the answer through the mailbox, whichever way the request came."""
        await self._while_trusted(node_id, self._report, self._tell_accepted_both_ways)

    async def tell_granted_relayed(self, node_id: int) -> None:
        """Makes the pair known and answers through the mailbox."""
        await self._while_trusted(node_id, self._report, self._respond_accepted)

    async def report(self, node_id: int) -> None:
        """Makes the pair known, if the node is trusted."""
        await self._while_trusted(node_id, self._report)

    async def _while_trusted(self, node_id: int, *steps: Callable[[int], Errand]) -> None:
        """The steps, which have the registry pair the two, until trust ends: then the pair is taken back.

        A revocation may have told the registry before they did.
        """
        if not self._trusts(node_id):
            return
        try:
            for step in steps:
                if self._trusts(node_id):
                    await step(node_id)
        finally:
            if not self._trusts(node_id):
                self._withdraw(node_id)

    async def tell_rejected(self, node_id: int, data: bytes) -> None:
        """Sends the rejection `data` both ways."""
        await asyncio.gather(self.respond(node_id, accept=False), self._try("tell", node_id, self.send(node_id, data)))

    async def tell_revoked(self, node_id: int) -> None:
        """Sends revoke and ends the tunnel, also when cancelled."""
        data = self.message(node_id, MessageType.REVOKE, reason="trust revoked")
        try:
            await self._try("tell", node_id, self.send(node_id, data))
        finally:
            self._drop_tunnel(node_id)

    async def report_ahead(self, node_id: int) -> None:
        """Makes the pair known for trust that is about to begin."""
        await self._report(node_id)

    async def _report(self, node_id: int) -> None:
        await self._try("report trust in", node_id, self._registry.report_trust(node_id))

    async def _respond_accepted(self, node_id: int) -> None:
        await self.respond(node_id, accept=True)

    async def _tell_accepted_both_ways(self, node_id: int) -> None:
        await asyncio.gather(self._respond_accepted(node_id), self.tell_accepted(node_id))

    async def withdraw(self, node_id: int) -> bool:
        """Takes the pair back at the registry; whether it is gone there."""
        return await self._try("withdraw trust in", node_id, self._registry.revoke_trust(node_id))

    async def respond(self, node_id: int, *, accept: bool) -> None:
        """Answers through the mailbox; that it knows of no request, which came directly then, is fine."""
        await self._try("answer", node_id, self._respond(node_id, accept))

    async def _respond(self, node_id: int, accept: bool) -> None:
        await self._registry.respond_handshake(node_id, accept)

    async def _try(self, what: str, node_id: int, attempt: Errand) -> bool:
        try:
            await attempt
        except (PilotError, TimeoutError) as error:
            self._deps.logger.debug("could not %s node %d: %s", what, node_id, error)
            return False
        return True
