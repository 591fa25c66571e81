"""Everything a message must pass before it means anything (plugin handshake, L11). Source: services.md 1.2."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from pilot.coreapi import InvalidValueError, PilotError
from pilot.plugins.handshake.message import MessageType, signed_text
from pilot.plugins.handshake.replay import ReplaySet, replay_key

if TYPE_CHECKING:
    from pilot.coreapi import Identity
    from pilot.plugins.handshake.host import HandshakeHost, NodeRecord, Registry
    from pilot.plugins.handshake.message import Message

__all__ = ["Checked", "Checks", "find_record"]

MAX_AGE_SECONDS: Final = 300
MAX_AHEAD_SECONDS: Final = 30
FRESH_SECONDS: Final = 3.0
"""How old a registry's record may be that says a key is wrong: the peer may just have rotated it."""
RESERVED_NODE_IDS: Final = frozenset({0, 0xFFFFFFFE, 0xFFFFFFFF})


@dataclass(frozen=True, slots=True)
class Checked:
    """A message that passed."""

    message: Message
    source: int
    """The node it came from, authenticated by the tunnel."""
    bound: bool
    """Whether the registry has the message's key for its sender."""
    networks: frozenset[int]
    """The sender's networks as far as the registry told, the backbone left out."""


class Checks:
    """The checks of one life of the plugin."""

    def __init__(self, identity: Identity, host: HandshakeHost) -> None:
        self._identity = identity
        self._registry = host.registry
        self._wall: Callable[[], float] = host.wall
        self._clock = host.clock
        self._replays = ReplaySet()

    async def check_untrusted(self, message: Message, source: int) -> Checked:
        """The message and what is known of its sender; it was not seen before and is now.

        Raises:
            InvalidValueError: it must be dropped; the message says why.
        """
        self._check_age(message)
        key = replay_key(message, self._identity.node_id)
        self._check_replay(message, key)
        if message.node_id in RESERVED_NODE_IDS:
            raise InvalidValueError(f"{message.node_id} is no node id")
        if not message.public_key or not message.signature:
            raise InvalidValueError(f"{message.type} without public_key or signature")
        record = await self._record(message)
        bound = record is not None and record.public_key is not None
        self._check_signature(message)
        if message.type != MessageType.REQUEST and source != message.node_id:
            raise InvalidValueError(f"{message.type} of node {message.node_id} came from node {source}")
        self._check_replay(message, key)  # its twin may have been checked at the same time
        self._replays.record(key, message.node_id, self._clock())
        networks = frozenset(record.networks if record is not None else ()) - {0}
        return Checked(message, source, bound, networks)

    def sweep(self) -> None:
        """Forgets messages that are too old to be accepted anyway."""
        self._replays.sweep(self._clock())

    def _check_age(self, message: Message) -> None:
        age = self._wall() - message.timestamp
        if age > MAX_AGE_SECONDS:
            raise InvalidValueError(f"it is {age:.0f} s old, or one of the two clocks is wrong")
        if age < -MAX_AHEAD_SECONDS:
            raise InvalidValueError(f"it is from {-age:.0f} s in the future: one of the two clocks is wrong")

    def _check_replay(self, message: Message, key: bytes) -> None:
        if self._replays.seen(key, self._clock()):
            raise InvalidValueError(f"{message.type} of node {message.node_id} came before: a replay")

    async def _record(self, message: Message) -> NodeRecord | None:
        """The sender's record; None where the registry has none or cannot be asked. A key other than its fails."""
        record = await find_record(self._registry, message.node_id)
        if _has_other_key(record, message):
            record = await find_record(self._registry, message.node_id, max_age=FRESH_SECONDS)
        if _has_other_key(record, message):
            raise InvalidValueError(f"the registry has another key for node {message.node_id}")
        return record

    def _check_signature(self, message: Message) -> None:
        text = signed_text(message.node_id, self._identity.node_id)
        try:
            Ed25519PublicKey.from_public_bytes(message.public_key).verify(message.signature, text)
        except (InvalidSignature, ValueError):
            raise InvalidValueError(f"its signature is not that of node {message.node_id} for this node") from None


def _has_other_key(record: NodeRecord | None, message: Message) -> bool:
    return record is not None and record.public_key is not None and record.public_key != message.public_key


async def find_record(registry: Registry, node_id: int, *, max_age: float | None = None) -> NodeRecord | None:
    """What the registry says of a node; None where it knows none or cannot be asked."""
    try:
        return await registry.lookup(node_id, max_age=max_age)
    except PilotError:
        return None
