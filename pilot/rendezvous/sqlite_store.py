"""The built-in store: one SQLite file in WAL mode, a commit is on disk when it returns (rendezvous room, L8)."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

from pilot._fast.errors import BusyError, InvalidValueError
from pilot.rendezvous.store import ROW_TYPES, Change, Row

SCHEMA_VERSION: Final = 1
MEMORY: Final = ":memory:"

T = TypeVar("T")

_COLUMN_TYPES: Final = {"int": "INTEGER", "bool": "INTEGER", "float": "REAL", "bytes": "BLOB", "str": "TEXT"}


class SqliteStore:
    """A `Store` in the SQLite file `path`, or in memory for ``:memory:``.

    The file is created 0600 and locked for this process; `commit` returns after fsync (``synchronous=FULL``), so a
    process killed at any moment loses nothing it was told is stored. Blocking calls run in one thread of its own; in
    memory nothing blocks and there is no thread.
    """

    def __init__(self, path: str = MEMORY) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None
        self._executor: ThreadPoolExecutor | None = None
        if path != MEMORY:
            self._executor = ThreadPoolExecutor(1, thread_name_prefix="pilot-rendezvous-store")

    async def load(self) -> Sequence[Row]:
        """Open or create the file and return every row; see `Store.load`. If cancelled, call `close`."""
        return await self._run(self._load)

    async def commit(self, changes: Sequence[Change]) -> None:
        """Apply `changes` in one transaction; raises `sqlite3.Error`, with nothing stored, when the disk refuses.

        If cancelled the transaction may still complete.
        """
        await self._run(self._commit, changes)

    async def close(self) -> None:
        """Close the file and end the thread. Safe to call twice."""
        await self._run(self._close)
        if self._executor is not None:
            self._executor.shutdown()
            self._executor = None

    async def _run(self, function: Callable[..., T], *args: Any) -> T:
        if self._executor is None:
            return function(*args)
        return await asyncio.get_running_loop().run_in_executor(self._executor, function, *args)

    def _load(self) -> list[Row]:
        try:
            self._connection = connection = self._open()
            return [row for kind in ROW_TYPES for row in _read(connection, kind)]
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                raise BusyError(f"the store {self._path!r} is in use by another process; stop that one first") from None
            raise InvalidValueError(f"the store {self._path!r} cannot be opened: {error}") from None
        except (sqlite3.DatabaseError, OSError) as error:
            raise InvalidValueError(f"the store {self._path!r} cannot be used: {error}") from None

    def _open(self) -> sqlite3.Connection:
        if self._path != MEMORY:
            # SQLite gives its side files the mode of the main file, so that one is made first, for the owner only.
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False, timeout=0.5)
        self._connection = connection
        connection.execute("PRAGMA locking_mode=EXCLUSIVE")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("BEGIN IMMEDIATE")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version not in (0, SCHEMA_VERSION):
            raise InvalidValueError(
                f"the store {self._path!r} has format {version}; this server reads {SCHEMA_VERSION}"
            )
        for kind in ROW_TYPES:
            connection.execute(_create_statement(kind))
        connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        connection.execute("COMMIT")
        return connection

    def _commit(self, changes: Sequence[Change]) -> None:
        connection = self._connection
        if connection is None:
            raise sqlite3.ProgrammingError("the store is closed")
        connection.execute("BEGIN IMMEDIATE")
        try:
            for change in changes:
                if change.row is None:
                    connection.execute(_DELETE[change.kind], change.key)
                else:
                    connection.execute(_UPSERT[change.kind], _values(change.row))
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


# -------------------------------------------------------------------------------------- rows and SQL


def _create_statement(kind: type[Row]) -> str:
    fields = dataclasses.fields(kind)
    columns = [f"{f.name} {_COLUMN_TYPES.get(str(f.type), 'TEXT')} NOT NULL" for f in fields]
    keys = ", ".join(f.name for f in fields[: kind.KEYS])
    return f"CREATE TABLE IF NOT EXISTS {kind.TABLE} ({', '.join(columns)}, PRIMARY KEY ({keys})) WITHOUT ROWID"


def _upsert_statement(kind: type[Row]) -> str:
    return f"INSERT OR REPLACE INTO {kind.TABLE} VALUES ({', '.join('?' * len(dataclasses.fields(kind)))})"


def _delete_statement(kind: type[Row]) -> str:
    keys = " AND ".join(f"{f.name} = ?" for f in dataclasses.fields(kind)[: kind.KEYS])
    return f"DELETE FROM {kind.TABLE} WHERE {keys}"


_UPSERT: Final = {kind: _upsert_statement(kind) for kind in ROW_TYPES}
_DELETE: Final = {kind: _delete_statement(kind) for kind in ROW_TYPES}


def _values(row: Row) -> list[Any]:
    values = [getattr(row, field.name) for field in dataclasses.fields(row)]
    return [json.dumps(value) if isinstance(value, tuple) else value for value in values]


def _read(connection: sqlite3.Connection, kind: type[Row]) -> list[Row]:
    fields = dataclasses.fields(kind)
    columns = ", ".join(field.name for field in fields)
    bools = [at for at, field in enumerate(fields) if str(field.type) == "bool"]
    lists = [at for at, field in enumerate(fields) if str(field.type).startswith("tuple")]
    rows: list[Row] = []
    for record in connection.execute(f"SELECT {columns} FROM {kind.TABLE}"):
        values = list(record)
        for at in bools:
            values[at] = bool(values[at])
        for at in lists:
            values[at] = tuple(json.loads(values[at]))
        rows.append(kind(*values))
    return rows
