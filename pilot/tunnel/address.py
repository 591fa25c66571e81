"""The own address as the system and the beacon see it, and what to do when it changes (tunnel, L5; wire.md 12.5).

The node reports the local source address every second; the public one is what two DiscoverReplies in a row agree on,
each within two seconds of an own Discover. A change is told to the beacon and to every peer with a session, by a direct
ping (one authenticated frame moves their idea of us); then the node registers anew.
"""

from __future__ import annotations

from dataclasses import dataclass

from pilot.protocol import beacon
from pilot.protocol.endpoints import is_carrier_grade
from pilot.tunnel.state import PATH_PROBE, Core


@dataclass(slots=True)
class _Baseline:
    """One kind of own address: what was announced, and when the next change may be acted on."""

    reason: str
    least: float
    most: float
    announced: str = ""
    current: str = ""
    not_before: float = 0.0
    spacing: float = 0.0


class OwnAddress:
    """Discover messages and recoveries from a changed own address."""

    def __init__(self, core: Core) -> None:
        settings = core.settings
        self._core = core
        self._local = _Baseline(
            "local_address", settings.recovery_spacing_seconds, settings.recovery_spacing_max_seconds
        )
        self._observed = _Baseline(
            "observed_endpoint", settings.observed_spacing_seconds, settings.observed_spacing_max_seconds
        )
        self._discovered_at = -settings.reply_seconds
        self._confirmed_at = -settings.confirm_seconds
        self._candidate = ""
        self._corrected = ""
        """The last carrier-grade local address that was replaced at the registry."""
        self.answered = False
        """Whether the beacon has answered since it was last announced to anew."""
        self._recovered_at = -settings.recovery_spacing_seconds

    @property
    def observed(self) -> str:
        """The public IP address two replies agreed on, empty before."""
        return self._observed.current

    def discover(self, now: float) -> None:
        """Tell the selected beacon where we are; the answer tells us."""
        core = self._core
        if core.own_node and core.datapath.beacon is not None:
            self._discovered_at = now
            core.datapath.send_frame(beacon.encode_discover(core.own_node), core.datapath.beacon)

    def doubted(self, now: float) -> None:
        """A direct path has died: whether the address is still the same is asked now instead of within a minute."""
        if now - self._discovered_at > self._core.settings.reply_seconds:
            self.discover(now)

    def restart_baselines(self) -> None:
        """Another beacon may see another address, and be reached from another one: what is seen next is normal."""
        self._candidate = ""
        for baseline in (self._local, self._observed):
            baseline.announced = baseline.current = ""
            self._core.timers.cancel(("address", baseline.reason))

    def local(self, host: str, now: float) -> None:
        """The system would use `host` as source towards the beacon."""
        if host:
            self._seen(self._local, host, now)
            self._correct(now)

    def replied(self, host: str, now: float) -> None:
        """A DiscoverReply of the selected beacon names `host`."""
        settings = self._core.settings
        if now - self._discovered_at > settings.reply_seconds:
            return
        self.answered = True
        if host == self._candidate:
            self._seen(self._observed, host, now)
            self._correct(now)
            return
        self._candidate = host
        if now - self._confirmed_at >= settings.confirm_seconds:
            self._confirmed_at = now
            self.discover(now)

    def _correct(self, now: float) -> None:
        """A carrier-grade address was registered at the start, and a registry may have kept it: it looks public."""
        local, observed = self._local.announced, self._observed.current
        if observed not in ("", local) and local != self._corrected and is_carrier_grade(local):
            self._corrected = self._observed.announced = local
            self._recover(self._observed, now)
            self._observed.spacing = self._observed.not_before = 0.0  # it has not changed: a change is acted on at once

    def _seen(self, baseline: _Baseline, host: str, now: float) -> None:
        baseline.current = host
        if not baseline.announced:
            baseline.announced = host
        if host == baseline.announced:
            self._core.timers.cancel(("address", baseline.reason))
        elif ("address", baseline.reason) not in self._core.timers:
            due = max(baseline.not_before, self._recovered_at + self._core.settings.recovery_spacing_seconds)
            if now >= due:
                self._recover(baseline, now)
            else:
                self._core.timers.set(("address", baseline.reason), due, lambda at: self._recover(baseline, at))

    def _recover(self, baseline: _Baseline, now: float) -> None:
        core, settings = self._core, self._core.settings
        # Flapping addresses are followed ever more slowly; a change after a long calm starts afresh.
        calm = now - baseline.not_before > baseline.most
        baseline.spacing = baseline.least if calm else min(max(baseline.least, 2 * baseline.spacing), baseline.most)
        baseline.not_before = now + baseline.spacing
        previous, baseline.announced = baseline.announced, baseline.current
        self._recovered_at = now
        if baseline is self._local:
            # What the beacon saw was the old one. Until it is asked, the local one is announced.
            self._observed.current, self._observed.announced = "", baseline.current
            self._corrected = baseline.current
            self._candidate, self._confirmed_at = "", now - settings.confirm_seconds
        self.discover(now)
        for state in core.peers():
            state.upgrade.lift()  # what was shut at the old place may be open here
        notified = self._ping_peers(None, now)
        for delay in settings.recovery_ping_seconds:
            core.timers.set(("recovery ping", delay), now + delay, lambda at: self._ping_again(now, at))
        for delay in settings.recovery_discover_seconds:
            core.timers.set(("recovery discover", delay), now + delay, self.discover)
        core.hooks.address_changed(baseline.reason, previous, baseline.current, notified)

    def _ping_again(self, recovered_at: float, now: float) -> None:
        self._ping_peers(recovered_at, now)

    def _ping_peers(self, unheard_since: float | None, now: float) -> int:
        """One direct ping to every peer with a session and an address, or to those not heard directly since then.

        The beacon is asked to introduce us as well: a NAT that lets in only whom its node has written to is opened.
        """
        core = self._core
        if core.datapath.relay_only:
            return 0
        count = 0
        for state in core.peers():
            peer = state.peer
            if peer is None or state.current is None or peer.address is None:
                continue
            if unheard_since is None or peer.last_heard_direct <= unheard_since:
                if core.datapath.beacon is not None:
                    core.datapath.send_frame(
                        beacon.encode_punch_request(core.own_node, peer.node), core.datapath.beacon
                    )
                count += core.datapath.send_control(peer, 0, 0, 0, 0, PATH_PROBE, now, direct=True)
        return count
