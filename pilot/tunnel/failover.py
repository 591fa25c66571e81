"""From a direct path that has died to the relay, sooner than its silence shows, at both ends (tunnel, L5).

Source: wire.md 11.3. A path may die one way only. The end that hears nothing gives it up after 8 s and sends by relay;
the other one, which hears everything, would notice that much later. So a relayed frame of a peer that is believed to be
direct is taken for a hint: the peer is pinged directly, and without a pong the path is given up. So is an address that
a frame has just brought: its source may be forged, and what nobody answers from there must not be flooded.

A 1.18.0 peer gives a path up with the third frame in a row that it sends without hearing anything, once it has heard
nothing directly for 8 s. What we send by relay interrupts the row. A burst of pings does not: it has read all of them
before it has answered the last ones. (Observed: 16 suffice, 8 do not always.)
"""

from __future__ import annotations

from collections.abc import Callable

from pilot.tunnel.state import PATH_PROBE, Core, PeerState
from pilot.tunnel.upgrades import UPGRADE_PORT, Upgrades


class Failover:
    """Checks of direct paths in doubt; `died` hears of those that are none. And calls to peers still on a dead one."""

    def __init__(self, core: Core, upgrades: Upgrades, died: Callable[[PeerState, float], None]) -> None:
        self._core = core
        self._upgrades = upgrades
        self._died = died

    def heard_relayed(self, state: PeerState, now: float) -> None:
        """A frame of a peer that is not relayed here came by relay: has our way to it died, or its way to us?"""
        if now >= state.check.after and not self._running(state, fatal=True):
            self._start(state, now)

    def moved(self, state: PeerState, now: float) -> None:
        """A frame came directly from another address than before, which is the peer's now; a check starts anew."""
        check, settings = state.check, self._core.settings
        if now - check.moves_since >= settings.address_moves_seconds:
            check.moves, check.moves_since = 0, now
        check.moves += 1
        if check.moves > settings.address_moves:
            self._core.count("address_flapping")
            self._core.timers.cancel(("check", state.node))
            self._died(state, now)
        else:
            self._start(state, now)

    def rekeyed(self, state: PeerState, now: float) -> None:
        """A new key may have brought another address along, which nothing else will report."""
        wanted, state.check.wanted = state.check.wanted, False
        if wanted and state.peer is not None and not state.peer.relay:
            self.moved(state, now)

    def unanswered(self, state: PeerState, now: float) -> None:
        """Nothing has come directly for some time; a peer that has merely nothing to say answers pings."""
        if now >= state.check.asked + self._core.settings.ask_spacing_seconds and not self._running(state):
            state.check.asked = now
            self._begin(state, now, fatal=False)
            # Not at once: the datapath is in the middle of sending a frame.
            self._core.timers.set(("check", state.node), now, lambda at: self._next(state, at))

    def call_over(self, state: PeerState, since: float, step: int = 0) -> None:
        """Ping the peer by relay at the set times after `since`, our last direct frame to it, unless it is heard.

        One of ours takes that for a hint, one that runs 1.18.0 answers too much at once (see above).
        """
        settings = self._core.settings
        if step < len(settings.call_over_seconds):
            due = since + settings.call_over_seconds[step]
            self._core.timers.set(("call over", state.node), due, lambda at: self._call(state, since, step, at))

    def _call(self, state: PeerState, since: float, step: int, now: float) -> None:
        peer = state.peer
        if peer is None or not peer.relay or peer.last_heard > since:
            return
        self._core.count("peers_called_over")
        for _ in range(self._core.settings.call_over_pings):
            self._core.datapath.send_control(peer, 0, UPGRADE_PORT, 0, 0, PATH_PROBE, now)
        self.call_over(state, since, step + 1)

    def _running(self, state: PeerState, *, fatal: bool = False) -> bool:
        return ("check", state.node) in self._core.timers and (state.check.fatal or not fatal)

    def _start(self, state: PeerState, now: float) -> None:
        """Begin a check, or anew if one is running: its next ping is due soon."""
        running = self._running(state)
        self._begin(state, now, fatal=True)
        if not running:
            self._next(state, now)

    def _begin(self, state: PeerState, now: float, *, fatal: bool) -> None:
        check, settings = state.check, self._core.settings
        check.fatal = fatal
        check.since, check.left = now, settings.check_pings
        if fatal:
            check.after = now + settings.check_spacing_seconds

    def _next(self, state: PeerState, now: float) -> None:
        """Send the next ping, or judge: where 30 % of all frames are lost, two such verdicts in a hundred are wrong."""
        check, peer, settings = state.check, state.peer, self._core.settings
        if peer is None or peer.relay or self._upgrades.answered(state, check.since):
            return
        if check.left == 0:
            if check.fatal:
                self._core.count("paths_unanswered")
                self._died(state, now)
        elif self._upgrades.ping(state, now):
            check.left -= 1
            wait = settings.upgrade_spacing_seconds if check.left else settings.check_wait_seconds
            self._core.timers.set(("check", state.node), now + wait, lambda at: self._next(state, at))
