"""When frames that do not open lead to a new key (tunnel, L4; wire.md 7.3, 19).

Anybody can send forged or repeated frames with a peer's id, so rejects alone never end a session here. They cause a
rekey, with the request that makes the peer send its PILA, when nothing of the peer has opened for some seconds although
frames keep coming: that is what a peer looks like that holds another key. The session stays until the new one works.
"""

from __future__ import annotations

from pilot.tunnel.exchange import Exchange
from pilot.tunnel.interfaces import PeerLike, VerdictLike
from pilot.tunnel.state import Core, PeerState


class Gates:
    """Counts runs of rejects per peer and starts rekeys."""

    def __init__(self, core: Core, exchange: Exchange) -> None:
        self._core = core
        self._exchange = exchange

    def rejected(self, state: PeerState, peer: PeerLike, verdict: VerdictLike, now: float) -> None:
        """A PILS of the peer was not accepted."""
        settings = self._core.settings
        if verdict.name == "MALFORMED" or state.current is None:
            return
        if verdict.name == "TOO_MANY_PREFIXES":
            self._exchange.rekey(state, now)
            return
        if state.last_reject < peer.last_heard or now - state.last_reject > settings.gate_gap_seconds:
            state.rejects = 0
        if state.rejects == 0:
            state.rejects_since = now
        state.rejects += 1
        state.last_reject = now
        needed = settings.gate_replays if verdict.name == "REPLAY" else settings.gate_rejects
        quiet = now - max(peer.last_heard, state.current.session.established_at)
        if (
            state.rejects >= needed
            and now - state.rejects_since >= settings.gate_run_seconds
            and quiet >= settings.gate_quiet_seconds
        ):
            state.rejects = 0
            self._core.count("gate_rekeys")
            self._exchange.rekey(state, now)
