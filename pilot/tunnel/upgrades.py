"""From the relay back to the direct path, once that is proven to be open both ways (tunnel, L5).

Source: wire.md 7.6, 11.4. That the peer's frames arrive directly says nothing about ours: a firewall may let only one
way through, and whoever follows it too soon loses everything for the 8 s after which a dead path is given up. So a peer
is probed by direct pings while the relay stays in use. A pong, whichever way it comes, proves our way; a direct frame
proves the peer's.

A 1.18.0 peer answers pings as well, but goes direct with the third direct frame since it was relayed, however far apart
they are and proof or not: where only our way is open that costs it such a failover (observed: 9 s). So an attempt is a
punch and a single probe, if that much. Whoever hears the other one directly sends several: a peer of ours because of
that probe, we because of its own or of the five that a 1.18.0 peer sends every 15 s. Attempts in vain back off.
"""

from __future__ import annotations

from collections.abc import Callable

from pilot.tunnel.state import PATH_PROBE, Core, PeerState, Upgrade

UPGRADE_PORT = 0xFFFC
"""Source port of the probes: their answers come back to it."""


class Upgrades:
    """Probes of the direct path, and the decision. `probed` hears when a peer still relayed has got the last one."""

    def __init__(self, core: Core, probed: Callable[[PeerState, float], None]) -> None:
        self._core = core
        self._probed = probed

    def possible(self, state: PeerState, now: float) -> bool:
        """Whether the peer is relayed and in use; a relay-only node never leaves the relay."""
        peer = state.peer
        if peer is None or not peer.relay or state.current is None or self._core.idle(peer, now):
            return False
        return not self._core.datapath.relay_only

    def due(self, state: PeerState, now: float) -> bool:
        """Whether an attempt without news is possible and not held back; the next one then is, for twice as long.

        A peer that was not heard since the path died may not have given it up: on one that is open one way our probes
        would keep it from doing so.
        """
        upgrade, settings = state.upgrade, self._core.settings
        if now < upgrade.not_before or upgrade.left or state.peer is None or not self.possible(state, now):
            return False
        if state.peer.last_heard <= upgrade.died and now < upgrade.died + settings.upgrade_seconds:
            return False
        self._hold_back(upgrade, now)
        return True

    def attempt(self, state: PeerState, now: float) -> None:
        """Send a single probe to the peer's address, soon; a punch was asked for just now.

        Not if the last one was answered: it is the peer's way that is shut, and the peer who notices when it is not.
        Except, in the long run, for one who cannot look us up and so makes no attempts.
        """
        upgrade = state.upgrade
        shut = self.answered(state, upgrade.died) and upgrade.spacing < self._core.settings.upgrade_max_seconds
        if upgrade.left == 0 and not shut:
            upgrade.left = 1
            self._later(state, now + self._core.settings.upgrade_punch_seconds)

    def heard_directly(self, state: PeerState, now: float) -> None:
        """A frame of a relayed peer came directly: if our way is not known to be open yet, ask at once."""
        upgrade = state.upgrade
        if self._commit(state, now) or now < upgrade.reply_after or not self.possible(state, now):
            return
        upgrade.reply_after = now + self._core.settings.upgrade_reply_seconds
        upgrade.left = self._core.settings.upgrade_probes
        self._next(state, now)

    def ping(self, state: PeerState, now: float) -> bool:
        """Ping the peer directly, whatever its path; False without session or address, and in a relay-only node."""
        peer, probes = state.peer, state.upgrade.probes
        if peer is None or peer.address is None or self._core.datapath.relay_only:
            return False
        token = self._core.random.getrandbits(32)
        probes[token] = peer.address, now
        if len(probes) > 2 * self._core.settings.upgrade_probes:
            del probes[next(iter(probes))]
        return self._core.datapath.send_control(peer, 0, UPGRADE_PORT, 0, token, PATH_PROBE, now, direct=True)

    def pong(self, state: PeerState, token: int, now: float) -> None:
        """A ping answer to `UPGRADE_PORT`, by either way: what we send to the probed address arrives."""
        address, sent = state.upgrade.probes.get(token, (None, 0.0))
        if address is not None and now - sent <= self._core.settings.upgrade_fresh_seconds:
            state.upgrade.answered, state.upgrade.address = now, address
            self._commit(state, now)

    def answered(self, state: PeerState, since: float) -> bool:
        """Whether a direct ping to where the peer is now was answered since then."""
        upgrade = state.upgrade
        at = state.peer.address if state.peer is not None else None
        return at is not None and upgrade.answered > 0.0 and upgrade.answered >= since and upgrade.address == at

    def relayed(self, state: PeerState, now: float) -> None:
        """The direct path has died: one that had lasted is tried again soon, another not before its time."""
        upgrade, settings = state.upgrade, self._core.settings
        upgrade.died = now
        upgrade.answered = 0.0
        upgrade.probes.clear()
        upgrade.left = 0
        self._core.timers.cancel(("upgrade", state.node))
        if now - upgrade.committed >= settings.upgrade_lasting_seconds:
            upgrade.lift()
        else:
            if now >= upgrade.not_before:
                self._hold_back(upgrade, now)
            upgrade.reply_after = upgrade.not_before

    def _hold_back(self, upgrade: Upgrade, now: float) -> None:
        settings = self._core.settings
        upgrade.spacing = min(max(settings.upgrade_seconds, 2 * upgrade.spacing), settings.upgrade_max_seconds)
        upgrade.not_before = now + upgrade.spacing

    def _later(self, state: PeerState, due: float) -> None:
        self._core.timers.set(("upgrade", state.node), due, lambda at: self._next(state, at))

    def _next(self, state: PeerState, now: float) -> None:
        """One probe. All of them are sent, proven or not: a 1.18.0 peer goes direct with the third."""
        upgrade = state.upgrade
        upgrade.left = upgrade.left - 1 if self.ping(state, now) else 0
        if upgrade.left:
            self._later(state, now + self._core.settings.upgrade_spacing_seconds)
        elif state.peer is not None and state.peer.relay:
            self._probed(state, now)

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
