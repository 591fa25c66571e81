"""Keepalives, the watchdog for silent peers, and forgetting (tunnel, L5; wire.md 12.1-12.3, 12.7)."""

from __future__ import annotations

from pilot.tunnel.interfaces import PeerLike
from pilot.tunnel.paths import Paths
from pilot.tunnel.state import PATH_PROBE, Core, PeerState


class Liveness:
    """The periodic sweeps over all peers."""

    def __init__(self, core: Core, paths: Paths) -> None:
        self._core = core
        self._paths = paths

    def sweep_keepalives(self, now: float) -> None:
        """Send a keepalive to every peer in use to which nothing went for 25 s."""
        for state in self._core.peers():
            peer = state.peer
            if peer is None or state.current is None or self._core.idle(peer, now):
                continue
            if now - max(peer.last_sent, state.current.session.established_at) >= self._core.settings.keepalive_seconds:
                self._core.datapath.send_control(peer, 0, 0, 0, 0, b"", now, zero_destination=True)

    def sweep_watchdog(self, now: float) -> None:
        """Probe peers in use that were silent for 55 s, and reset the path of those that stay silent."""
        for state in self._core.peers():
            peer = state.peer
            if peer is None or state.current is None or now < state.watchdog_after:
                continue
            if state.watchdog_probes == 0 and self._core.idle(peer, now):
                continue
            silent = now - max(peer.last_heard, state.current.session.established_at)
            if silent >= self._core.settings.watchdog_silence_seconds:
                self._suspect(state, peer, silent, now)

    def heard(self, state: PeerState, now: float) -> None:
        """A frame of the peer was decrypted: if it was being probed, its path is fine."""
        if state.watchdog_probes:
            self._core.hooks.publish(
                "tunnel.path_recovered",
                {
                    "peer_node_id": state.node,
                    "silent_for_seconds": int(now - state.silent_since),
                    "probes_sent": state.watchdog_probes,
                },
            )
            self._end(state)

    def sweep_forgotten(self, now: float) -> None:
        """Remove peers without stream and without a frame either way for 5 min, with all their state."""
        for state in self._core.peers():
            peer = state.peer
            if peer is None or peer.open_streams or peer.pending_packets or state.cycle is not None or state.resolving:
                continue
            if now - max(peer.last_sent, peer.last_heard, state.created) >= self._core.settings.forget_seconds:
                self._paths.forget(state.node)
                self._core.remove(state.node)

    def _suspect(self, state: PeerState, peer: PeerLike, silent: float, now: float) -> None:
        settings = self._core.settings
        if state.watchdog_probes < settings.watchdog_probes:
            if state.watchdog_probes == 0:
                state.silent_since = now - silent
                self._core.watch(state, "watchdog", True)
            state.watchdog_probes += 1
            self._core.datapath.send_control(peer, 0, 0, 0, 0, PATH_PROBE, now)
            return
        self._core.hooks.publish(
            "tunnel.path_suspect",
            {"peer_node_id": state.node, "silent_for_seconds": int(silent), "probes_sent": state.watchdog_probes},
        )
        self._end(state)
        state.watchdog_after = now + settings.watchdog_cooldown_seconds
        self._paths.reset(state, "watchdog", now)

    def _end(self, state: PeerState) -> None:
        state.watchdog_probes = 0
        self._core.watch(state, "watchdog", False)
