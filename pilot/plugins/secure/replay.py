"""The nonces of authentication frames that have been accepted (plugin policy, L11). Source: services.md 5.4."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from pilot.coreapi import PilotError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["MAX_NONCES", "MAX_NONCES_PER_NODE", "NONCE_SECONDS", "ReplayCache"]

MAX_NONCES: Final = 100_000
MAX_NONCES_PER_NODE: Final = 10_000
"""So that one authenticated node cannot keep all others out."""
NONCE_SECONDS: Final = 3600.0


class ReplayCache:
    """Remembers nonces for an hour. One for all channels of a node.

    Only nonces of frames whose signature held get here, so that strangers cannot fill it.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._nonces: OrderedDict[bytes, tuple[float, int]] = OrderedDict()
        self._per_node: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._nonces)

    def add(self, node_id: int, nonce: bytes) -> None:
        """Remembers `nonce` of `node_id`.

        Raises:
            PilotError: `auth nonce replay detected`, or `auth replay cache full`; it is not remembered then.
        """
        now = self._clock()
        self._expire(now)
        if nonce in self._nonces:
            raise PilotError("auth nonce replay detected")
        of_node = self._per_node.get(node_id, 0)
        if len(self._nonces) >= MAX_NONCES or of_node >= MAX_NONCES_PER_NODE:
            raise PilotError(f"auth replay cache full: node {node_id} has authenticated {of_node} times in an hour")
        self._nonces[nonce] = now + NONCE_SECONDS, node_id
        self._per_node[node_id] = of_node + 1

    def _expire(self, now: float) -> None:
        while self._nonces:
            nonce, (until, node_id) = next(iter(self._nonces.items()))
            if now < until:
                return
            del self._nonces[nonce]
            self._per_node[node_id] -= 1
            if not self._per_node[node_id]:
                del self._per_node[node_id]
