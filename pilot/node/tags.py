"""`NodeTags`: what other nodes call themselves, at hand for gates that cannot wait (L9).

Source: services.md 9.4 (`peer_tags`).
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from pilot._fast.errors import PeerNotFoundError, PilotError
from pilot.node.directory.quiet import QuietLog

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable
    from typing import Any

    from pilot.node.directory import Member, NodeRecord

__all__ = ["NodeTags"]

FRESH_SECONDS: Final = 60.0
"""Older ones are asked for again, and still serve until the answer comes."""
RETRY_SECONDS: Final = 3.0
MAX_NODES: Final = 4096
"""Nodes whose tags are kept; the longest unrefreshed is forgotten."""
MAX_LOOKUPS: Final = 16
"""Registry questions that strangers may have under way."""

_log = logging.getLogger("pilot.node")


class NodeTags:
    """A bounded table of tags, filled by member lists and, for whoever is in none, by the registry."""

    def __init__(
        self,
        lookup: Callable[[int], Awaitable[NodeRecord]],
        spawn: Callable[[Coroutine[Any, Any, None]], object],
        clock: Callable[[], float],
    ) -> None:
        self._lookup = lookup
        self._spawn = spawn
        self._clock = clock
        self._known: OrderedDict[int, tuple[float, tuple[str, ...]]] = OrderedDict()
        self._asked: dict[int, float] = {}
        self._quiet = QuietLog(_log)

    def get(self, node_id: int) -> tuple[str, ...] | None:
        """The tags of a node at once; None while they are not known. Has the registry asked where that is due."""
        now = self._clock()
        known = self._known.get(node_id)
        if known is None or now - known[0] >= FRESH_SECONDS:
            self._ask(node_id, now)
        return None if known is None else known[1]

    def peek(self, node_id: int) -> tuple[str, ...]:
        """The tags of a node as far as they are known; nobody is asked."""
        known = self._known.get(node_id)
        return () if known is None else known[1]

    async def learn(self, node_id: int) -> tuple[str, ...]:
        """The tags of a node, asked for if they are not known; those of an unknown node are none.

        Raises:
            RegistryError: the registry was needed and could not be asked.
            ClosedError: the node has stopped.
        """
        if node_id in self._known:
            return self.get(node_id) or ()
        try:
            tags = (await self._lookup(node_id)).tags
        except PeerNotFoundError:
            tags = ()
        self._put(node_id, tags)
        return tags

    def take(self, members: Iterable[Member]) -> None:
        """Remembers what a member list says."""
        for member in members:
            self._put(member.node_id, member.node_tags)

    def _put(self, node_id: int, tags: tuple[str, ...]) -> None:
        self._known[node_id] = self._clock(), tags
        self._known.move_to_end(node_id)
        if len(self._known) > MAX_NODES:
            self._known.popitem(last=False)

    def _ask(self, node_id: int, now: float) -> None:
        if len(self._asked) >= MAX_LOOKUPS:
            self._asked = {node: until for node, until in self._asked.items() if until > now}
        if self._asked.get(node_id, now) > now or len(self._asked) >= MAX_LOOKUPS:
            return
        self._asked[node_id] = float("inf")
        self._spawn(self._answer(node_id))

    async def _answer(self, node_id: int) -> None:
        again = self._clock()
        try:
            tags = (await self._lookup(node_id)).tags
        except PeerNotFoundError:
            self._put(node_id, ())
        except PilotError as error:
            again = self._clock() + RETRY_SECONDS
            self._quiet.warning("tags", "the tags of a node that policies ask for are not to be had: %s", error)
        else:
            self._put(node_id, tags)
        finally:
            self._asked[node_id] = again
