"""`Life`: everything of the plugin between one start and the next stop: streams, tasks, actions (handshake, L11).

Source: services.md 1.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from pilot.coreapi import (
    ClosedError,
    InvalidValueError,
    PeerNotFoundError,
    PilotError,
    RegistryError,
    ServiceNotReadyError,
    recover_plugin,
)
from pilot.plugins.handshake.checks import Checked, Checks, find_record
from pilot.plugins.handshake.grants import Grants
from pilot.plugins.handshake.incoming import Incoming
from pilot.plugins.handshake.ledger import Ledger
from pilot.plugins.handshake.mailbox import MailboxPoller
from pilot.plugins.handshake.message import Message, MessageType, ObjectReader, parse_untrusted
from pilot.plugins.handshake.outbound import Errands, Outbound

if TYPE_CHECKING:
    from pilot.coreapi import Deps, Listener, Stream, Subscription
    from pilot.plugins.handshake.file import TrustFile
    from pilot.plugins.handshake.host import HandshakeHost
    from pilot.plugins.handshake.records import TrustBook

__all__ = ["NAME", "Life", "RequestOutcome"]

NAME: Final = "handshake"
READ_SECONDS: Final = 10.0
MAX_STREAMS: Final = 64
MAX_STREAMS_PER_PEER: Final = 8
TIDY_SECONDS: Final = 60.0
REPORT_SECONDS: Final = 0.02
"""Between the reports of trusted nodes after a registration: registries slow down whoever asks a hundred a second."""
AFTER_CRASH_SECONDS: Final = 1.0
STOP_POLL_SECONDS: Final = 2.0
"""How long a poll under way may take at the end: what it took out of the mailbox would be lost."""
FRESH_SECONDS: Final = 3.0


class RequestOutcome(StrEnum):
    """What `HandshakeService.request` did."""

    ALREADY_TRUSTED = "already_trusted"
    SENT = "sent"
    """The peer's node has the request."""
    RELAYED = "relayed"
    """The registry's mailbox has it: the peer finds it when it looks, within a minute."""
    IN_FLIGHT = "in_flight"
    """A request to the same node is being sent already."""


class Life:
    """One run. The book outlives it."""

    def __init__(
        self,
        deps: Deps,
        host: HandshakeHost,
        book: TrustBook,
        file: TrustFile,
        listener: Listener,
        *,
        auto_approve: bool,
    ) -> None:
        self.deps = deps
        self.dropped = 0
        """Messages and streams of others that were not taken."""
        self._book = book
        self._registry = host.registry
        self._drop_tunnel = host.drop_tunnel
        self._listener = listener
        self._file = file
        self.ledger = ledger = Ledger(book, file, deps.events, host.wall)
        self.mailbox = mailbox = MailboxPoller(self._poll, host.clock, deps.logger)
        self._outbound = Outbound(deps, host, lambda node: node in book.trusted, self._withdraw)
        self._errands = Errands(NAME, deps)
        self._checks = Checks(deps.identity, host)
        grants = Grants(book, deps.trust, auto_approve=auto_approve)
        self._incoming = Incoming(
            deps, host, ledger, grants, self._outbound, self._errands, mailbox.settled, self._withdraw
        )
        self._serving: dict[asyncio.Task[None], int] = {}
        self._requesting: set[int] = set()
        self._telling_revoked: set[int] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self._polling: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Starts the tasks. Does not wait."""
        registered = self.deps.events.subscribe("node.*registered", capacity=8)
        self._polling = self._keep("poll", self.mailbox.run)
        self._tasks = [
            self._keep("accept", self._accept),
            self._keep("file", lambda: self._file.run(self._book)),
            self._keep("tidy", self._tidy),
            self._keep("report", lambda: self._report_after_registrations(registered)),
        ]

    async def end(self) -> None:
        """Ends everything that `begin` and others have started, and writes the file."""
        await self._listener.close()
        self.ledger.end_waiting()
        self.mailbox.stop()
        tasks = [*self._tasks, *self._serving]
        if self._polling is not None:
            await asyncio.wait([self._polling], timeout=STOP_POLL_SECONDS)
            tasks.append(self._polling)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self._errands.stop()
        await self._file.write(self._book)

    def _keep(self, op: str, run: Callable[[], Coroutine[Any, Any, None]]) -> asyncio.Task[None]:
        """`run()` in a task; after a crash, which is reported, it is run again."""

        async def kept() -> None:
            while True:
                with recover_plugin(NAME, op, self.deps.events):
                    await run()
                    return
                await asyncio.sleep(AFTER_CRASH_SECONDS)

        return asyncio.create_task(kept(), name=f"pilot {NAME} {op}")

    # ----------------------------------------------------------------------------------------- streams

    async def _accept(self) -> None:
        async for stream in self._listener:
            peer = stream.remote_addr.node
            if len(self._serving) >= MAX_STREAMS or Counter(self._serving.values())[peer] >= MAX_STREAMS_PER_PEER:
                self.dropped += 1
                await stream.__aexit__(ClosedError, ClosedError("too many handshakes at once"), None)  # resets it
                continue
            task = asyncio.create_task(self._serve(stream, peer), name=f"pilot {NAME} stream of node {peer}")
            self._serving[task] = peer
            task.add_done_callback(self._serving.pop)

    async def _serve(self, stream: Stream, peer: int) -> None:
        ends_tunnel = False
        with recover_plugin(NAME, "handle", self.deps.events):
            try:
                async with stream:
                    checked = await self._receive(stream, peer)
                    if checked is not None:
                        ends_tunnel = await self._incoming.handle(checked)
            finally:
                if ends_tunnel:
                    self._drop_tunnel(peer)

    async def _receive(self, stream: Stream, peer: int) -> Checked | None:
        """The message, None when it is to be dropped."""
        try:
            async with asyncio.timeout(READ_SECONDS):
                message = await _read_untrusted(stream)
            return await self._checks.check_untrusted(message, peer)
        except (PilotError, TimeoutError) as error:
            self.dropped += 1
            self.deps.logger.debug("a handshake message from node %d is dropped: %s", peer, error)
            return None

    # ----------------------------------------------------------------------------------------- mailbox

    async def _poll(self) -> None:
        """Answers come first: whoever refuses this node and then asks it has not both agreed with it."""
        if self.deps.identity.node_id == 0:
            return
        mailbox = await self._registry.poll_handshakes()
        for response in mailbox.responses:
            with recover_plugin(NAME, "relayed response", self.deps.events):
                await self._incoming.relayed_response(response)
        for request in mailbox.requests:
            with recover_plugin(NAME, "relayed request", self.deps.events):
                await self._incoming.relayed_request(request)

    # ------------------------------------------------------------------------------------------- upkeep

    async def _tidy(self) -> None:
        while True:
            await asyncio.sleep(TIDY_SECONDS)
            self.ledger.sweep()
            self._checks.sweep()
            for node in list(self._book.withdrawals):
                await self._withdraw_again(node)

    async def _report_after_registrations(self, registered: Subscription) -> None:
        """A registry that has lost its state knows nobody's trust; revocations that it has missed are told too.

        The first registration is also the first time the mailbox can be read.
        """
        async for _ in registered:
            self.mailbox.notice()
            for node in [*self._book.withdrawals, *self._book.revoked]:
                self._book.withdraw(node)
                self._errands.spawn("withdraw", self._withdraw_again(node))
            for node in list(self._book.trusted):
                await self._outbound.report(node)
                await asyncio.sleep(REPORT_SECONDS)

    def _withdraw(self, node: int) -> None:
        """Has the registry forget the pair; tried again every minute until it has. The peer hears of it first."""
        self._book.withdraw(node)
        if node not in self._telling_revoked:
            self._errands.spawn("withdraw", self._withdraw_now(node))

    async def _withdraw_again(self, node: int) -> None:
        """The registry may have vouched for the node until now."""
        if node not in self._telling_revoked and await self._withdraw_now(node):
            self._drop_tunnel(node)

    async def _withdraw_now(self, node: int) -> bool:
        """Whether the registry has forgotten the pair, and has to."""
        book = self._book
        if node not in book.withdrawals or not await self._outbound.withdraw(node):
            return False
        book.withdrawals.pop(node, None)
        if node not in book.trusted:
            return True
        await self._outbound.report(node)  # trust has begun anew meanwhile
        return False

    # ------------------------------------------------------------------------------------------ actions

    async def request(self, node: int, justification: str) -> RequestOutcome:
        """See `HandshakeService.request`."""
        self._check_registered()
        if node in self._book.trusted:
            return RequestOutcome.ALREADY_TRUSTED
        if node in self._requesting:
            return RequestOutcome.IN_FLIGHT
        data = self._outbound.message(node, MessageType.REQUEST, justification=justification)
        asked_before = node in self._book.outgoing
        self.ledger.asked(node)
        self._requesting.add(node)
        try:
            return await self._deliver(node, data, justification)
        except Exception:
            if not asked_before:
                self.ledger.forget_outgoing(node)
            raise
        finally:
            self._requesting.discard(node)

    async def _deliver(self, node: int, data: bytes, justification: str) -> RequestOutcome:
        try:
            await self._outbound.send(node, data)
        except ClosedError:
            raise
        except (PilotError, TimeoutError) as error:
            await self._relay(node, justification, error)
            self.mailbox.expect(node)
            return RequestOutcome.RELAYED
        return RequestOutcome.SENT

    async def _relay(self, node: int, justification: str, direct: Exception) -> None:
        try:
            await self._registry.request_handshake(node, justification)
        except RegistryError as error:
            if "already pending" in str(error):  # it waits in the mailbox since the last time
                return
            error.add_note(f"node {node} could not be asked directly either: {direct}")
            raise

    async def approve(self, node: int) -> bool:
        """See `HandshakeService.approve`."""
        self._check_registered()
        await self._look_for(node)
        if node not in self._book.pending:
            return False
        record = await find_record(self._registry, node, max_age=FRESH_SECONDS)
        request = self._book.pending.get(node)
        if request is None:
            return False
        key = (record.public_key if record is not None else None) or request.public_key
        if request.public_key not in (b"", key):
            self.ledger.forget_pending(node)
            raise InvalidValueError(f"node {node} has another key than it asked with: have it ask again")
        self.ledger.approve(request, key)
        self.mailbox.settled(node)
        self._errands.spawn("approve", self._outbound.tell_approved(node))
        await self._file.write(self._book)
        return True

    async def _look_for(self, node: int) -> None:
        """A request that is not here may wait in the mailbox."""
        if node not in self._book.pending:
            await self.mailbox.refresh()

    async def reject(self, node: int, reason: str) -> bool:
        """See `HandshakeService.reject`."""
        self._check_registered()
        data = self._outbound.message(node, MessageType.REJECT, reason=reason)
        await self._look_for(node)
        had_asked = self.ledger.reject(node, reason)
        self._errands.spawn("reject", self._outbound.tell_rejected(node, data))
        await self._file.write(self._book)
        return had_asked

    async def revoke(self, node: int, *, automatic: bool) -> None:
        """See `HandshakeService.revoke`."""
        self._check_registered()
        if node not in self._book.trusted:
            raise PeerNotFoundError(f"node {node} was not trusted")
        self.ledger.revoke(node, automatic=automatic)
        self.mailbox.settled(node)
        self._telling_revoked.add(node)
        telling = self._errands.spawn("revoke", self._finish_revocation(node))
        if telling is None:
            self._telling_revoked.discard(node)
            self._drop_tunnel(node)
            self._withdraw(node)
        await self._file.write(self._book)
        if telling is not None:
            await asyncio.wait([telling])

    async def _finish_revocation(self, node: int) -> None:
        """Tells the peer while it can still be found, and then the registry."""
        try:
            await self._outbound.tell_revoked(node)
        finally:
            self._telling_revoked.discard(node)
            self._withdraw(node)

    def _check_registered(self) -> None:
        if self.deps.identity.node_id == 0:
            raise ServiceNotReadyError("this node is not registered yet: start it first")


async def _read_untrusted(stream: Stream) -> Message:
    """The one message of `stream`, in however many pieces it comes.

    Raises:
        InvalidValueError: it is none, or ends before its end.
        ResetError, PathError, TimeoutError: the stream broke.
    """
    reader = ObjectReader()
    while piece := await stream.read():
        complete = reader.feed_untrusted(piece)
        if complete is not None:
            return parse_untrusted(complete)
    raise InvalidValueError("the stream ended within the message")
