"""Group commit: changes are recorded at once and made durable together, many per fsync (rendezvous room, L8)."""

from __future__ import annotations

import asyncio
import logging

from pilot._fast.errors import RegistryError
from pilot.rendezvous.config import MAX_PENDING_CHANGES
from pilot.rendezvous.store import Change, Key, Row, Store

logger = logging.getLogger("pilot.rendezvous")


class Journal:
    """Changes on their way to a `Store`.

    `put` and `delete` never wait; `durable` returns when everything recorded before the call is stored. While the store
    fails the changes are kept and tried again by the next `durable`, the newest change of a row only.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._pending: dict[tuple[type[Row], Key], Change] = {}
        self._recorded = 0
        self._stored = 0
        self._flush: asyncio.Task[bool] | None = None
        self._failing = False

    @property
    def is_blocked(self) -> bool:
        """True when so many changes wait for a failing store that no more may be made."""
        return len(self._pending) > MAX_PENDING_CHANGES

    def put(self, row: Row) -> None:
        """Record that `row` is now the row at its key."""
        self._record(Change(type(row), row.key, row))

    def delete(self, row: Row) -> None:
        """Record that the row at the key of `row` is gone."""
        self._record(Change(type(row), row.key, None))

    def _record(self, change: Change) -> None:
        self._pending[change.kind, change.key] = change
        self._recorded += 1

    async def durable(self) -> None:
        """Wait until every change recorded so far is stored; returns at once when there is none.

        Raises `RegistryError` when the store failed. If cancelled the changes are stored all the same.
        """
        wanted = self._recorded
        while self._stored < wanted:
            if self._flush is None:
                self._flush = asyncio.create_task(self._commit())
            if not await asyncio.shield(self._flush):
                raise RegistryError("cannot store the change, try again later")

    async def _commit(self) -> bool:
        batch, self._pending = self._pending, {}
        recorded = self._recorded
        try:
            await self._store.commit(list(batch.values()))
        except Exception as error:
            # Rows changed meanwhile are newer than those of the batch that failed.
            self._pending = batch | self._pending
            if not self._failing:
                logger.error("the store failed, changes wait until it works again: %s", error)
            self._failing = True
            return False
        finally:
            self._flush = None
        if self._failing:
            logger.warning("the store works again")
        self._failing = False
        self._stored = recorded
        return True
