"""Who a private node answers: the trusted, the connected, the lately dialed and those the registry vouches for (L9).

Source: streams.md section 12, DESIGN section 4 (a stranger learns nothing of a private node, not even that it exists).
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from pilot._fast.errors import PilotError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from typing import Any

    from pilot._fast.peer import Peer

__all__ = ["TrustGate"]

REPLY_WINDOW_SECONDS: Final = 300.0
MAX_DIALED: Final = 4096
VOUCHED_SECONDS: Final = 60.0
"""How long the registry's yes is good: a trust that was revoked ends soon after."""
DENIED_SECONDS: Final = 3.0
"""How long its no is: a stranger that knocks again and again costs one request in this time."""
MAX_ANSWERS: Final = 4096
MAX_CHECKS: Final = 16
"""Registry questions that strangers may have under way."""

_log = logging.getLogger("pilot.node")


class TrustGate:
    """The gate the stream layer asks, at once, before it answers anything.

    A stranger's first packet is not answered while the registry is asked about it; the peer's retransmission 250 ms
    later finds the answer.
    """

    def __init__(
        self,
        *,
        is_public: Callable[[], bool],
        is_trusted: Callable[[int], bool],
        find_peer: Callable[[int], Peer | None],
        check_trust: Callable[[int], Awaitable[bool]],
        spawn: Callable[[Coroutine[Any, Any, None]], object],
        clock: Callable[[], float],
    ) -> None:
        self._is_public = is_public
        self._is_trusted = is_trusted
        self._find_peer = find_peer
        self._check_trust = check_trust
        self._spawn = spawn
        self._clock = clock
        self._dialed: OrderedDict[int, float] = OrderedDict()
        self._answers: OrderedDict[int, tuple[float, bool]] = OrderedDict()
        self._checking: dict[int, object] = {}  # each question is another object

    def dialed(self, node: int) -> None:
        """This node dials `node`: it may answer, and call back, for five minutes."""
        self._dialed[node] = self._clock()
        self._dialed.move_to_end(node)
        if len(self._dialed) > MAX_DIALED:
            self._dialed.popitem(last=False)

    def forget(self, node: int) -> None:
        """Trust in `node` has ended here: neither a dial before nor an old answer of the registry admits it."""
        self._dialed.pop(node, None)
        self._checking.pop(node, None)  # the answer to a question under way is an old one
        self._remember(node, False)

    def trusts(self, node: int) -> bool:
        """Whether `node` is trusted as far as is known without asking anybody."""
        return self._is_trusted(node) or self._vouched(node) is True

    def serves(self, node: int) -> bool:
        """Whether services of this node are for `node`: for everybody if it is public, else for those it trusts."""
        return self._is_public() or self.trusts(node)

    def admit_syn(self, node: int, port: int) -> bool:
        """Whether a stream from `node` may be answered, with an acceptance or a refusal."""
        return self._admits(node)

    def admit_ping(self, node: int) -> bool:
        """Whether a control ping from `node` is answered."""
        return self._admits(node)

    def admit_datagram(self, node: int) -> bool:
        """Whether a datagram from `node` is taken. Having dialed it is not enough: datagrams are no answers."""
        return self._is_public() or self._is_trusted(node) or self._connected(node) or self._ask_registry(node)

    def _admits(self, node: int) -> bool:
        return (
            self._is_public()
            or self._is_trusted(node)
            or self._connected(node)
            or self._lately_dialed(node)
            or self._ask_registry(node)
        )

    def _connected(self, node: int) -> bool:
        peer = self._find_peer(node)
        return peer is not None and peer.open_streams > 0

    def _lately_dialed(self, node: int) -> bool:
        at = self._dialed.get(node)
        return at is not None and self._clock() - at < REPLY_WINDOW_SECONDS

    def _vouched(self, node: int) -> bool | None:
        """What the registry said lately, None when it is to be asked."""
        answer = self._answers.get(node)
        if answer is None:
            return None
        at, trusted = answer
        return trusted if self._clock() - at < (VOUCHED_SECONDS if trusted else DENIED_SECONDS) else None

    def _ask_registry(self, node: int) -> bool:
        known = self._vouched(node)
        if known is None and node not in self._checking and len(self._checking) < MAX_CHECKS:
            self._checking[node] = question = object()
            self._spawn(self._check(node, question))
        return bool(known)

    async def _check(self, node: int, question: object) -> None:
        try:
            trusted = await self._check_trust(node)
        except PilotError as error:
            _log.debug("the registry did not say whether node %d is trusted: %s", node, error)
            trusted = False
        finally:
            current = self._checking.get(node) is question
            if current:
                del self._checking[node]
        if current:
            self._remember(node, trusted)

    def _remember(self, node: int, trusted: bool) -> None:
        self._answers[node] = self._clock(), trusted
        self._answers.move_to_end(node)
        if len(self._answers) > MAX_ANSWERS:
            self._answers.popitem(last=False)
