"""The records of a name server: five minutes each, limited per table and node, kept in a file (plugin policy, L11).

Source: services.md 6.1. The limits, and that a name belongs to its node while it lives, are our additions.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Hashable
from datetime import UTC, datetime
from typing import Any, Final, Generic, NamedTuple, TypeVar

from pilot.coreapi import Addr, InvalidValueError
from pilot.plugins.nameserver.lines import ServiceRecord, check_name

__all__ = ["LIFE_SECONDS", "MAX_RECORDS", "MAX_RECORDS_PER_NODE", "Records"]

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

LIFE_SECONDS: Final = 300.0
MAX_RECORDS: Final = 10_000
"""Of one kind."""
MAX_RECORDS_PER_NODE: Final = 64
"""Of one kind, registered by one node."""


class _Entry(NamedTuple, Generic[V]):
    value: V
    owner: int
    """The node that registered it; 0: not known any more."""
    created: float


class _Table(Generic[K, V]):
    """Records of one kind, the oldest first."""

    def __init__(self) -> None:
        self.entries: dict[K, _Entry[V]] = {}
        self._per_owner: Counter[int] = Counter()

    def get(self, key: K, now: float) -> _Entry[V] | None:
        """The entry, unless it has expired."""
        entry = self.entries.get(key)
        return entry if entry is not None and now < entry.created + LIFE_SECONDS else None

    def put(self, key: K, value: V, owner: int, now: float) -> None:
        """Adds or replaces a record. Raises `InvalidValueError` when there is no room."""
        old = self.entries.get(key)
        if old is None and len(self.entries) >= MAX_RECORDS:
            raise InvalidValueError("too many records")
        if (old is None or old.owner != owner) and owner and self._per_owner[owner] >= MAX_RECORDS_PER_NODE:
            raise InvalidValueError(f"too many records of one node (max {MAX_RECORDS_PER_NODE})")
        if old is not None:
            self.remove(key)
        self.entries[key] = _Entry(value, owner, now)
        self._per_owner[owner] += 1

    def remove(self, key: K) -> None:
        owner = self.entries.pop(key).owner
        self._per_owner[owner] -= 1
        if not self._per_owner[owner]:
            del self._per_owner[owner]

    def expired(self, now: float) -> list[K]:
        """What is to be removed."""
        keys = []
        for key, entry in self.entries.items():
            if now < entry.created + LIFE_SECONDS:
                break
            keys.append(key)
        return keys


class Records:
    """What a name server knows. Times are monotonic seconds, given with each call and never going back."""

    def __init__(self) -> None:
        self._names: _Table[str, Addr] = _Table()
        self._networks: _Table[str, int] = _Table()
        self._services: _Table[tuple[int, int, Addr], str] = _Table()
        self._ports: dict[tuple[int, int], set[Addr]] = {}
        self.changed = False
        """Since the flag was last set to False."""

    def __len__(self) -> int:
        return sum(len(table.entries) for table in (self._names, self._networks, self._services))

    def address(self, name: str, now: float) -> Addr | None:
        """The address of an A record."""
        entry = self._names.get(name, now)
        return entry.value if entry else None

    def network(self, name: str, now: float) -> int | None:
        """The id of an N record."""
        entry = self._networks.get(name, now)
        return entry.value if entry else None

    def services(self, net_id: int, port: int, now: float) -> list[ServiceRecord]:
        """The S records of a port in a network, by name."""
        found = []
        for addr in self._ports.get((net_id, port), ()):
            entry = self._services.get((net_id, port, addr), now)
            if entry is not None:
                found.append(ServiceRecord(entry.value, addr, port))
        return sorted(found)

    def put_address(self, name: str, addr: Addr, owner: int, now: float) -> None:
        """Adds or renews an A record.

        Raises:
            InvalidValueError: another node has the name, or there is no room.
        """
        old = self._names.get(name, now)
        if old is not None and old.owner != owner:
            raise InvalidValueError(f'name "{name}" is registered by another node')
        self._names.put(name, addr, owner, now)
        self.changed = True

    def put_network(self, name: str, net_id: int, owner: int, now: float) -> None:
        """Adds or replaces an N record, whosever it was. Raises `InvalidValueError` when there is no room."""
        self._networks.put(name, net_id, owner, now)
        self.changed = True

    def put_service(self, name: str, addr: Addr, net_id: int, port: int, owner: int, now: float) -> None:
        """Adds an S record, or renews it under the new name. Raises `InvalidValueError` when there is no room."""
        self._services.put((net_id, port, addr), name, owner, now)
        self._ports.setdefault((net_id, port), set()).add(addr)
        self.changed = True

    def sweep(self, now: float) -> None:
        """Removes what has expired."""
        for table in (self._names, self._networks):
            for name in table.expired(now):
                table.remove(name)
                self.changed = True
        for net_id, port, addr in self._services.expired(now):
            self._services.remove((net_id, port, addr))
            self._ports[net_id, port].discard(addr)
            if not self._ports[net_id, port]:
                del self._ports[net_id, port]
            self.changed = True

    # -------------------------------------------------------------------------------------- file

    def dump(self, now: float, wall: float) -> bytes:
        """The state file: three lists, the oldest records first."""

        def created(entry: _Entry[Any]) -> str:
            return datetime.fromtimestamp(wall - (now - entry.created), UTC).isoformat(timespec="milliseconds")

        state = {
            "a_records": [
                {"name": name, "address": str(entry.value), "created_at": created(entry)}
                for name, entry in self._names.entries.items()
            ],
            "n_records": [
                {"name": name, "network_id": entry.value, "created_at": created(entry)}
                for name, entry in self._networks.entries.items()
            ],
            "s_records": [
                {
                    "name": entry.value,
                    "address": str(addr),
                    "network_id": net_id,
                    "port": port,
                    "created_at": created(entry),
                }
                for (net_id, port, addr), entry in self._services.entries.items()
            ],
        }
        return json.dumps(state, indent=2).encode()

    @classmethod
    def load(cls, data: bytes, now: float, wall: float) -> Records:
        """The records of a state file, without those that have expired or cannot be understood.

        Raises:
            InvalidValueError: it is no JSON object.
        """
        try:
            state = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise InvalidValueError(f"the state of the name server is no JSON: {error}") from None
        if not isinstance(state, dict):
            raise InvalidValueError("the state of the name server is no JSON object")
        records = cls()
        for key, put in (
            ("a_records", records._load_address),
            ("n_records", records._load_network),
            ("s_records", records._load_service),
        ):
            rows = state.get(key)
            for created, row in _living(rows if isinstance(rows, list) else [], now, wall):
                try:
                    put(row, created)
                except (KeyError, TypeError, ValueError):
                    continue
        records.changed = False
        return records

    def _load_address(self, row: dict[str, Any], created: float) -> None:
        addr = Addr.parse(_text(row["address"]))
        self.put_address(check_name(_text(row["name"])), addr, addr.node, created)

    def _load_network(self, row: dict[str, Any], created: float) -> None:
        self.put_network(check_name(_text(row["name"])), _u16(row["network_id"]), 0, created)

    def _load_service(self, row: dict[str, Any], created: float) -> None:
        addr = Addr.parse(_text(row["address"]))
        name = check_name(_text(row["name"]))
        self.put_service(name, addr, _u16(row["network_id"]), _u16(row["port"]), addr.node, created)


def _living(rows: list[Any], now: float, wall: float) -> list[tuple[float, dict[str, Any]]]:
    """Those that have not expired, the oldest first, with their monotonic time; times of the future become now."""
    found = []
    for row in rows:
        try:
            age = max(0.0, wall - datetime.fromisoformat(row["created_at"]).timestamp())
        except (KeyError, TypeError, ValueError, OverflowError, OSError):
            continue
        if age < LIFE_SECONDS:
            found.append((now - age, row))
    return sorted(found, key=lambda item: item[0])


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _u16(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 65535:
        raise TypeError
    return value
