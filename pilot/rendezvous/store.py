"""What the registry keeps for ever, and the interface of a store that keeps it (rendezvous room, L8 server side).

The server holds all of it in memory and writes through: a change is a whole row or the absence of one, so a store needs
no reads but the one at start, and repeating a change does no harm. One server owns a store at a time. Heartbeat times,
beacon endpoints and caches are not here: they refill by themselves (rendezvous.md 11).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import ClassVar, NamedTuple, Protocol

Key = tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """A record of one table; the first `KEYS` fields are its primary key."""

    TABLE: ClassVar[str]
    KEYS: ClassVar[int]

    @property
    def key(self) -> Key:
        """The values of the primary key."""
        return tuple(getattr(self, field.name) for field in fields(self)[: self.KEYS])


@dataclass(frozen=True, slots=True)
class CounterRow(Row):
    """A number that only grows: next node id, next network id; and the time the store was made."""

    TABLE: ClassVar[str] = "counters"
    KEYS: ClassVar[int] = 1
    name: str
    value: int


@dataclass(frozen=True, slots=True)
class NodeRow(Row):
    """A node id for ever bound to a key and owner; the other fields mean something only while `live`.

    `previous_key` makes a repeated rotation recognisable; times are unix seconds, 0 for never.
    """

    TABLE: ClassVar[str] = "nodes"
    KEYS: ClassVar[int] = 1
    node_id: int
    public_key: bytes
    owner: str = ""
    live: bool = True
    signed: bool = False
    endpoint: str = ""
    lan_addrs: tuple[str, ...] = ()
    relay_only: bool = False
    public: bool = False
    hostname: str = ""
    tags: tuple[str, ...] = ()
    version: str = ""
    key_created: float = 0.0
    key_rotated: float = 0.0
    key_expires: float = 0.0
    rotations: int = 0
    previous_key: bytes = b""


@dataclass(frozen=True, slots=True)
class TrustRow(Row):
    """Two nodes that trust each other, `low` <= `high`; `reporter` said so first."""

    TABLE: ClassVar[str] = "trust"
    KEYS: ClassVar[int] = 2
    low: int
    high: int
    reporter: int


@dataclass(frozen=True, slots=True)
class RequestRow(Row):
    """A handshake request left for `target`; once polled only the fact remains, until it is answered."""

    TABLE: ClassVar[str] = "handshake_requests"
    KEYS: ClassVar[int] = 2
    target: int
    requester: int
    justification: str
    timestamp: int
    polled: bool = False


@dataclass(frozen=True, slots=True)
class DecisionRow(Row):
    """An answer left for `requester` by `responder`."""

    TABLE: ClassVar[str] = "handshake_decisions"
    KEYS: ClassVar[int] = 2
    requester: int
    responder: int
    accept: bool
    timestamp: int


@dataclass(frozen=True, slots=True)
class NetworkRow(Row):
    """A network other than the backbone. Tokens are kept as SHA-256 digests, empty for none."""

    TABLE: ClassVar[str] = "networks"
    KEYS: ClassVar[int] = 1
    network_id: int
    name: str
    join_rule: str
    token_digest: bytes = field(repr=False)
    admin_token_digest: bytes = field(repr=False)
    enterprise: bool
    created: int
    max_members: int = 0
    allowed_ports: tuple[int, ...] = ()
    description: str = ""
    rules: str = ""
    expr_policy: str = ""


@dataclass(frozen=True, slots=True)
class MemberRow(Row):
    """A node in a network, with its role there ("" when the network has none) and the tags its admins gave it."""

    TABLE: ClassVar[str] = "members"
    KEYS: ClassVar[int] = 2
    network_id: int
    node_id: int
    role: str
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class InviteRow(Row):
    """An invitation of `target` to a network, not yet answered."""

    TABLE: ClassVar[str] = "invites"
    KEYS: ClassVar[int] = 2
    target: int
    network_id: int
    inviter: int
    timestamp: int


ROW_TYPES: tuple[type[Row], ...] = (
    CounterRow,
    NodeRow,
    TrustRow,
    RequestRow,
    DecisionRow,
    NetworkRow,
    MemberRow,
    InviteRow,
)


class Change(NamedTuple):
    """The row of `kind` at `key` is now `row`, or gone when that is None."""

    kind: type[Row]
    key: Key
    row: Row | None


class Store(Protocol):
    """Durable storage for the registry: one unit of work in, everything out at start.

    `SqliteStore` is the one built in; the shape (whole rows, one transaction per call, no reads) is such that an
    asyncpg store is an upsert and a delete statement per table.
    """

    async def load(self) -> Sequence[Row]:
        """Open the store, taking it for this process alone, and return every row, in any order.

        Raises `BusyError` when another process has it and `InvalidValueError` when it cannot be used.
        """

    async def commit(self, changes: Sequence[Change]) -> None:
        """Make all of `changes` durable, or none. Called by one task at a time.

        Any exception means that nothing, or everything, was stored; the caller will repeat the changes. If cancelled
        likewise.
        """

    async def close(self) -> None:
        """Give the store back. Safe to call twice, and after a failed `load`."""
