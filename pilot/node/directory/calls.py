"""The registry's calls as typed, signed requests of one node: stateless, one method per call (L8).

Source: reference rendezvous.md, sections 3.1 and 4 to 7.
"""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeVar

from pilot._fast.addr import Addr
from pilot._fast.errors import InvalidValueError, PeerNotFoundError, RegistryError
from pilot.node.directory import answers
from pilot.node.directory.answers import Beacon, Location, Mailbox, NodeRecord
from pilot.node.directory.client import RegistryClient, RegistryRefusedError
from pilot.node.identity import LocalIdentity
from pilot.protocol.names import hostname_untrusted, tags_untrusted
from pilot.protocol.registry import (
    MAX_JUSTIFICATION_BYTES,
    RESERVED_NODE_IDS,
    Message,
    challenge_text,
)

__all__ = ["RegistryCalls"]

T = TypeVar("T")

# Older servers say only "request failed" to most refusals, newer ones to some, private targets among them.
_NOT_THERE = ("not found", "request failed")
_NOT_SHOWN = ("is private", "resolve denied", "request failed")


class RegistryCalls:
    """What one node can ask its registry.

    Every method raises `RegistryError` when the registry cannot be asked, refuses or gives an unusable answer, and
    `ClosedError` after the client was closed; "Raises" lists what comes on top. A cancelled call closes its connection;
    whether the registry has carried it out is then unknown, and all of them may be repeated.
    """

    def __init__(self, client: RegistryClient, identity: LocalIdentity) -> None:
        self._client = client
        self._identity = identity

    @property
    def address(self) -> str:
        """The registry's address, as messages show it."""
        return self._client.address

    def address_in(self, network_id: int) -> Addr:
        """This node's address in a network. Raises `RegistryError` while it is not registered."""
        return Addr(network_id, self._own_id())

    async def set_tags(self, tags: Iterable[str]) -> tuple[str, ...]:
        """Replaces this node's tags (at most 10 of 1-32 characters `a-z 0-9 -`); returns them as the registry has them.

        Raises:
            InvalidValueError: a tag cannot be used.
        """
        wanted = list(tags_untrusted(list(tags)))
        return await self._ask_signed("set_tags", answers.tags_answer_untrusted, node_id=self._own_id(), tags=wanted)

    async def report_trust(self, peer_id: int) -> None:
        """Tells that this node trusts `peer_id`; either side's word lets both resolve each other."""
        await self._ask_signed("report_trust", answers.nothing, node_id=self._own_id(), peer_id=peer_id)

    async def revoke_trust(self, peer_id: int) -> None:
        """Takes the trust between the two nodes back; that there is none (any more) is fine."""
        try:
            await self._ask_signed("revoke_trust", answers.nothing, node_id=self._own_id(), peer_id=peer_id)
        except RegistryRefusedError as refusal:
            if "no trust pair" not in refusal.text:
                raise

    async def request_handshake(self, peer_id: int, justification: str = "") -> None:
        """Leaves a request to be trusted in the mailbox of a node that cannot be reached directly.

        Raises:
            InvalidValueError: the justification is longer than 1024 bytes.
            PeerNotFoundError: there is no such node.
        """
        if len(justification.encode()) > MAX_JUSTIFICATION_BYTES:
            raise InvalidValueError(f"a justification takes at most {MAX_JUSTIFICATION_BYTES} bytes: shorten it")
        try:
            await self._ask_signed(
                "request_handshake",
                answers.nothing,
                from_node_id=self._own_id(),
                to_node_id=peer_id,
                justification=justification,
            )
        except RegistryRefusedError as refusal:
            raise (self._no_node(peer_id) if f"node {peer_id}: node not found" in refusal.text else refusal) from None

    async def poll_handshakes(self) -> Mailbox:
        """Empties this node's mailbox. What a cancelled or failed poll took out is lost; requesters ask again."""
        return await self._ask_signed("poll_handshakes", answers.mailbox_untrusted, node_id=self._own_id())

    async def respond_handshake(self, peer_id: int, accept: bool) -> bool:
        """Answers a request through the mailbox; accepting creates the trust too. False: it knows no such request."""
        try:
            await self._ask_signed(
                "respond_handshake", answers.nothing, node_id=self._own_id(), peer_id=peer_id, accept=accept
            )
        except RegistryRefusedError as refusal:
            if "no pending" not in refusal.text:
                raise
            return False
        return True

    async def beacon_list(self) -> tuple[Beacon, ...]:
        """The beacons the registry knows, at most 64."""
        return await self._client.ask({"type": "beacon_list"}, answers.beacons_untrusted)

    # ------------------------------------------------------------------------------ what a subclass caches

    async def _ask_location(self, node_id: int) -> Location:
        self._check_node(node_id)
        try:
            return await self._ask_signed(
                "resolve",
                lambda answer: answers.location_untrusted(answer, node_id),
                requester_id=self._own_id(),
                node_id=node_id,
            )
        except RegistryRefusedError as refusal:
            if "requester" in refusal.text:  # it is this node that the registry does not know
                raise
            if any(text in refusal.text for text in _NOT_SHOWN):
                raise PeerNotFoundError(
                    f"registry {self.address} does not tell this node where {Addr(0, node_id)} is: it is private, so "
                    f"one must trust the other or both share a network (registry: {refusal.text})"
                ) from None
            raise (self._no_node(node_id) if "not found" in refusal.text else refusal) from None

    async def _ask_record(self, node_id: int) -> NodeRecord:
        self._check_node(node_id)
        return await self._finding(
            self._no_node(node_id),
            self._ask_proven("lookup", lambda answer: answers.node_record_untrusted(answer, node_id), node_id=node_id),
        )

    async def _ask_hostname(self, name: str) -> int:
        unknown = PeerNotFoundError(f"no node named {name!r} at registry {self.address}")
        try:
            hostname_untrusted(name)
        except InvalidValueError:  # nobody can have such a name
            raise unknown from None
        return await self._finding(
            unknown, self._ask_proven("resolve_hostname", answers.found_name_untrusted, hostname=name)
        )

    async def _ask_trust(self, peer_id: int) -> bool:
        return await self._client.ask(
            self._sign({"type": "check_trust", "node_id": self._own_id(), "peer_id": peer_id}),
            answers.trusted_untrusted,
        )

    # ------------------------------------------------------------------------------------------- requests

    def _own_id(self) -> int:
        if self._identity.node_id == 0:
            raise RegistryError(f"this node is not registered at registry {self.address}: start it first")
        return self._identity.node_id

    def _sign(self, message: Message) -> Message:
        signature = self._identity.sign(challenge_text(message).encode())
        return {**message, "signature": base64.b64encode(signature).decode()}

    async def _ask_signed(self, kind: str, parse: Callable[[Message], T], **fields: Any) -> T:
        return await self._client.ask(self._sign({"type": kind, **fields}), parse)

    async def _ask_proven(self, kind: str, parse: Callable[[Message], T], **fields: Any) -> T:
        """Asks with a proof of who asks, which shows private nodes to their friends and satisfies strict servers."""
        message = {"type": kind, **fields}
        if self._identity.node_id:
            message = self._sign({**message, "requester_id": self._identity.node_id})
        return await self._client.ask(message, parse)

    async def _finding(self, unknown: PeerNotFoundError, request: Awaitable[T]) -> T:
        """The result of `request`; `unknown` where the registry says that there is no such node."""
        try:
            return await request
        except RegistryRefusedError as refusal:
            raise (unknown if any(text in refusal.text for text in _NOT_THERE) else refusal) from None

    def _no_node(self, node_id: int) -> PeerNotFoundError:
        return PeerNotFoundError(f"no node {Addr(0, node_id)} at registry {self.address}")

    def _check_node(self, node_id: int) -> None:
        if not 0 <= node_id <= 0xFFFFFFFF:
            raise InvalidValueError(f"{node_id!r} is no node id: it must be in 1..4294967293")
        if node_id in RESERVED_NODE_IDS:
            raise self._no_node(node_id)
