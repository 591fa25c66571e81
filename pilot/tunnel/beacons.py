"""The beacon as seen from the tunnel socket: which one, registration with it, and what it may tell us (tunnel, L5).

Source: wire.md 10, 12.4, 13. Punch commands and notices count only from exactly the selected beacon.
"""

from __future__ import annotations

from collections.abc import Callable

from pilot._fast.errors import InvalidValueError
from pilot.protocol import beacon
from pilot.tunnel.address import OwnAddress
from pilot.tunnel.frames import PUNCH
from pilot.tunnel.interfaces import Address
from pilot.tunnel.limits import TokenBucket
from pilot.tunnel.paths import usable_beacons
from pilot.tunnel.state import Core

PUNCHES = 3
"""Identical punches per command (wire.md 10)."""


def fnv1a32(data: bytes) -> int:
    """The 32-bit FNV-1a hash."""
    value = 0x811C9DC5
    for byte in data:
        value = (value ^ byte) * 0x01000193 & 0xFFFFFFFF
    return value


class Beacons:
    """Selection, Discover schedule and incoming beacon messages. `introduced` hears where a punch command points."""

    def __init__(self, core: Core, address: OwnAddress, introduced: Callable[[Address, float], None]) -> None:
        self._core = core
        self._address = address
        self._introduced = introduced
        self._notified_at = -core.settings.notify_seconds
        self._punches = TokenBucket(core.settings.punch_rate, core.settings.punch_rate, 0.0)

    def registered(self, now: float) -> None:
        """Announce the node at once, again shortly after, then periodically."""
        settings = self._core.settings
        self._announce(now, always=True)
        jitter = self._core.random.random() * settings.discover_jitter_seconds
        self._core.timers.set("discover", now + settings.discover_seconds - jitter, self._periodic)

    def select(self, configured: list[Address], discovered: list[Address], now: float) -> None:
        """Pick one beacon by the hash of the own key; announce the node to it if it is another one than before."""
        candidates = list(dict.fromkeys([*configured, *usable_beacons(discovered)]))
        index = fnv1a32(self._core.identity.public_key) % len(candidates) if candidates else 0
        picked = candidates[index] if candidates else None
        if picked != self._core.datapath.beacon:
            self._core.datapath.beacon = picked
            self._address.restart_baselines()
            self._announce(now, always=False)

    def receive_untrusted(self, message: bytes, source: Address, now: float) -> None:
        """A beacon message other than RelayDeliver, from anywhere."""
        core = self._core
        kind = message[0] if message else 0
        if core.own_node == 0 or kind not in (beacon.DISCOVER_REPLY, beacon.PUNCH_COMMAND, beacon.NOTIFY):
            return
        if source != core.datapath.beacon:
            core.count("beacon_wrong_source")
            core.warn("beacon message from %s, which is not the selected beacon, ignored", source, now)
            return
        if kind == beacon.NOTIFY:
            self._notified(message, now)
            return
        try:
            endpoint = beacon.parse_endpoint_untrusted(message)
        except InvalidValueError:
            return
        if kind == beacon.DISCOVER_REPLY:
            self._address.replied(endpoint[0], now)
        elif endpoint[1] and not core.datapath.relay_only and self._punches.take(now):
            for _ in range(PUNCHES):
                core.datapath.send_frame(PUNCH, endpoint)
            self._introduced(endpoint, now)

    def _announce(self, now: float, *, always: bool) -> None:
        """Discover; once more shortly after (`always`), and ever more slowly while the beacon has not answered.

        Until the beacon knows this node nobody reaches it behind a NAT.
        """
        self._address.answered = False
        self._address.discover(now)
        spacing = self._core.settings.discover_again_seconds
        self._core.timers.set("discover again", now + spacing, lambda at: self._repeat(at, spacing, always))

    def _repeat(self, now: float, spacing: float, always: bool) -> None:
        if not always and self._address.answered:
            return
        self._address.discover(now)
        later = 2.0 * spacing
        if later < self._core.settings.discover_seconds:
            self._core.timers.set("discover again", now + later, lambda at: self._repeat(at, later, False))

    def _periodic(self, now: float) -> None:
        self._address.discover(now)
        self._core.timers.set("discover", now + self._core.settings.discover_seconds, self._periodic)

    def _notified(self, message: bytes, now: float) -> None:
        """A notice of a handshake in the mailbox: poll now, or once the spacing allows."""
        if message[1:2] != bytes((beacon.NOTIFY_HANDSHAKE,)) or "notified" in self._core.timers:
            return
        due = self._notified_at + self._core.settings.notify_seconds
        if now >= due:
            self._poll(now)
        else:
            self._core.timers.set("notified", due, self._poll)

    def _poll(self, now: float) -> None:
        self._notified_at = now
        self._core.hooks.poll_handshakes()
