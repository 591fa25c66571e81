"""From the relay back to the direct path, once that is proven to be open both ways (tunnel, L5).

Source: wire.md 7.6, 11.4. That the peer's frames arrive directly says nothing about ours: a firewall may let only one
way through, and whoever follows it too soon loses everything for the 8 s after which a dead path is given up. So a peer
is probed by direct pings while the relay stays in use. A pong, whichever way it comes, proves our way; a direct frame
proves the peer's. A 1.18.0 peer answers pings as well, but goes direct after three direct frames, proof or not: where
only our way is open each attempt costs it such a failover. Attempts therefore back off.
"""

from __future__ import annotations

from collections.abc import Callable

from pilot.tunnel.state import PATH_PROBE, Core, PeerState

UPGRADE_PORT = 0xFFFC
"""Source port of the probes: their answers come back to it."""


class Upgrades:
    """Probes of the direct path, and the decision. `stranded` hears of a peer that may answer on a way that is shut."""

    def __init__(self, core: Core, stranded: Callable[[PeerState, float], None]) -> None:
        self._core = core
        self._stranded = stranded

    def possible(self, state: PeerState, now: float) -> bool:
        """Whether the peer is relayed, in use, and not being probed; a relay-only node never leaves the relay."""
        peer = state.peer
        if peer is None or not peer.relay or state.current is None or self._core.idle(peer, now):
            return False
        return not self._core.datapath.relay_only and state.upgrade.left == 0

    def due(self, state: PeerState, now: float) -> bool:
        """Whether an attempt without news is possible and not held back; the next one then is, for twice as long.

        A peer that was not heard since the path died may not have given it up: on one that is open one way our probes
        would keep it from doing so.
        """
        upgrade, settings = state.upgrade, self._core.settings
        if now < upgrade.not_before or state.peer is None or not self.possible(state, now):
            return False
        if state.peer.last_heard <= upgrade.died and now < upgrade.died + settings.upgrade_seconds:
            return False
        upgrade.spacing = min(max(settings.upgrade_seconds, 2 * upgrade.spacing), settings.upgrade_max_seconds)
        upgrade.not_before = now + upgrade.spacing
        return True

    def probe(self, state: PeerState, now: float) -> None:
        """Send the first probe to the peer's address, and the others after it."""
        state.upgrade.left = self._core.settings.upgrade_probes
        state.upgrade.since = now
        self._next(state, now)

    def heard_directly(self, state: PeerState, now: float) -> None:
        """A frame of a relayed peer came directly: if our way is not known to be open yet, ask at once."""
        upgrade = state.upgrade
        if self._commit(state, now) or now < upgrade.reply_after or not self.possible(state, now):
            return
        upgrade.reply_after = now + self._core.settings.upgrade_reply_seconds
        self.probe(state, now)

    def pong(self, state: PeerState, token: int, now: float) -> None:
        """A ping answer to `UPGRADE_PORT`, by either way: what we send to the probed address arrives."""
        if token in state.upgrade.probes:
            state.upgrade.answered, state.upgrade.address = now, state.upgrade.probes[token]
            self._commit(state, now)

    def relayed(self, state: PeerState, now: float) -> None:
        """The direct path has died: one that had lasted is tried again soon, another not before its time."""
        upgrade, settings = state.upgrade, self._core.settings
        upgrade.died = now
        upgrade.answered = 0.0
        upgrade.probes.clear()
        if now - upgrade.committed >= settings.upgrade_lasting_seconds:
            upgrade.lift()
        else:
            upgrade.reply_after = upgrade.not_before

    def _next(self, state: PeerState, now: float) -> None:
        """One probe. All of them are sent, proven or not: a 1.18.0 peer goes direct with the third."""
        peer, upgrade, settings = state.peer, state.upgrade, self._core.settings
        if peer is None or peer.address is None or self._core.datapath.relay_only:
            upgrade.left = 0
            return
        token = self._core.random.getrandbits(32)
        upgrade.probes[token] = peer.address
        if len(upgrade.probes) > 2 * settings.upgrade_probes:
            del upgrade.probes[next(iter(upgrade.probes))]
        upgrade.left -= 1
        if not self._core.datapath.send_control(peer, 0, UPGRADE_PORT, 0, token, PATH_PROBE, now, direct=True):
            upgrade.left = 0
        elif upgrade.left:
            self._core.timers.set(
                ("upgrade", state.node), now + settings.upgrade_spacing_seconds, lambda at: self._next(state, at)
            )
        else:
            later = now + settings.stranded_seconds
            self._core.timers.set(("upgrade", state.node), later, lambda at: self._look_back(state, now, at))

    def _look_back(self, state: PeerState, sent: float, now: float) -> None:
        """A peer that has got our probes, and was not heard since the last one, may have left the relay too soon."""
        peer, upgrade = state.peer, state.upgrade
        if peer is not None and peer.relay and upgrade.answered >= upgrade.since and peer.last_heard < sent:
            self._stranded(state, now)

    def _commit(self, state: PeerState, now: float) -> bool:
        """Leave the relay if both ways were seen to be open just now; whether that is so."""
        peer, upgrade = state.peer, state.upgrade
        fresh = now - self._core.settings.upgrade_fresh_seconds
        if peer is None or not peer.relay or self._core.datapath.relay_only or upgrade.address != peer.address:
            return False
        if min(upgrade.answered, peer.last_heard_direct) <= max(fresh, 0.0):
            return False
        upgrade.committed, upgrade.answered = now, 0.0
        self._core.datapath.use_direct(peer, now)
        return True
