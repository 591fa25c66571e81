"""How large a segment the path to a peer carries: padded control pings, one outstanding per path (tunnel, L5).

Source: DESIGN section 4. A ping is echoed with its payload by nearly every peer, so a ping as long as a full data
segment asks both directions at once. No answer means that the size stays, never that the path is broken. Sizes are
tried upwards; a size that fails is tried again later, ever more rarely. A change of path, EMSGSIZE, or full-size
segments that vanish while small packets pass bring the peer back to 1152 bytes at once.
"""

from __future__ import annotations

import errno

from pilot.tunnel.interfaces import Address, PeerLike
from pilot.tunnel.paths import is_loopback
from pilot.tunnel.settings import BASE_SEGMENT_BYTES, FRAME_OVERHEAD_BYTES, MAX_FRAME_BYTES, RELAY_OVERHEAD_BYTES
from pilot.tunnel.state import Core, MtuSearch, PeerState

PROBE_PORT = 0xFFFD
"""Source port of the probes: their answers come back to it."""

LINK_MTUS = (1500, 9000)
"""Ethernet, plain and with jumbo frames."""

LOOPBACK_SEGMENTS = (8902, 32_698, MAX_FRAME_BYTES - FRAME_OVERHEAD_BYTES)
"""What is tried on this host: each step takes a round trip of microseconds."""

IPV4_HEADERS, IPV6_HEADERS = 28, 48
"""IP and UDP headers."""


class PathMtu:
    """Size searches for all peers."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def session_installed(self, state: PeerState, now: float) -> None:
        """Start searching; on the path that is known already, what was found still holds."""
        if state.peer is None:
            return
        if state.mtu.path != self._path(state.peer):
            self.restart(state, now)
        elif state.mtu.probe == 0 and ("mtu", state.node) not in self._core.timers:
            self._soon(state, now)

    def restart(self, state: PeerState, now: float) -> None:
        """The path changed: back to 1152 bytes, and search from there."""
        self._abandon(state)
        if state.peer is not None:
            state.mtu = MtuSearch(path=self._path(state.peer))
            if state.peer.segment_bytes > BASE_SEGMENT_BYTES:
                state.peer.segment_bytes = BASE_SEGMENT_BYTES
            self._soon(state, now)

    def pong(self, state: PeerState, peer: PeerLike, seq: int, length: int, now: float) -> bool:
        """A ping answer to `PROBE_PORT`; whether it belongs to the outstanding probe."""
        search = state.mtu
        if search.probe == 0 or seq != search.token or length != search.probe:
            return False
        peer.segment_bytes = search.probe
        self._abandon(state)
        self._advance(state, now)
        return True

    def send_failed(self, state: PeerState, peer: PeerLike, error: int, size: int, now: float) -> None:
        """The system refused a datagram of `size` bytes to the peer; only EMSGSIZE matters here."""
        if error != errno.EMSGSIZE:
            return
        payload = size - FRAME_OVERHEAD_BYTES
        if state.mtu.probe and payload >= state.mtu.probe:
            self._failed(state, now)
        elif payload > BASE_SEGMENT_BYTES:
            self.lost(state, peer, now)

    def lost(self, state: PeerState, peer: PeerLike, now: float) -> None:
        """Segments of the present size do not arrive any more: fall back, and try that size again later."""
        if peer.segment_bytes <= BASE_SEGMENT_BYTES:
            return
        failed = peer.segment_bytes
        peer.segment_bytes = BASE_SEGMENT_BYTES
        self._abandon(state)
        state.mtu.probe = failed
        self._failed(state, now)

    def ladder(self, peer: PeerLike) -> list[int]:
        """The segment sizes worth trying on the peer's current path, ascending."""
        datapath, settings = self._core.datapath, self._core.settings
        address = self._core.route(peer)
        relay = address is None
        towards = address or datapath.beacon
        if towards is None:
            return []
        largest = min(settings.receive_buffer_bytes // 8, MAX_FRAME_BYTES) - FRAME_OVERHEAD_BYTES
        if not relay and is_loopback(towards[0]):
            sizes = list(LOOPBACK_SEGMENTS)
        else:
            headers = (IPV6_HEADERS if ":" in towards[0] else IPV4_HEADERS) + FRAME_OVERHEAD_BYTES
            # Behind the beacon lies a second path, and jumbo frames on both are not worth the probes.
            sizes = [LINK_MTUS[0] - headers - RELAY_OVERHEAD_BYTES] if relay else [mtu - headers for mtu in LINK_MTUS]
        return sorted({min(size, largest) for size in sizes if min(size, largest) > BASE_SEGMENT_BYTES})

    def _soon(self, state: PeerState, now: float) -> None:
        """Search from the next timer run: the caller may be in the middle of sending a packet."""
        self._core.timers.set(("mtu", state.node), now, lambda at: self._advance(state, at))

    def _path(self, peer: PeerLike) -> Address | str:
        return self._core.route(peer) or "relay"

    def _advance(self, state: PeerState, now: float) -> None:
        """Probe the next size, if there is one; a peer that is quiet now is probed when it no longer is."""
        peer, search = state.peer, state.mtu
        if peer is None or state.current is None or not self._core.settings.probe_mtu:
            return
        size = next((s for s in self.ladder(peer) if s > peer.segment_bytes), 0)
        if size == 0:
            return
        if search.ceiling and size >= search.ceiling:
            self._later(state, now)
            return
        quiet = now - max(peer.last_heard, state.current.session.established_at)
        if quiet > self._core.settings.mtu_quiet_seconds:
            due = now + self._core.settings.mtu_quiet_retry_seconds
            self._core.timers.set(("mtu", state.node), due, lambda at: self._advance(state, at))
            return
        search.probe = size
        search.token = self._core.random.getrandbits(32)
        search.tries = 0
        self._probe(state, now)

    def _probe(self, state: PeerState, now: float) -> None:
        peer, search, settings = state.peer, state.mtu, self._core.settings
        if peer is None or search.probe == 0:
            return
        if search.tries >= settings.mtu_tries:
            self._failed(state, now)
            return
        search.tries += 1
        # Before the send: an EMSGSIZE may come back from inside it and replaces this timer.
        self._core.timers.set(
            ("mtu", state.node), now + settings.mtu_timeout_seconds, lambda at: self._probe(state, at)
        )
        self._core.datapath.send_control(peer, 0, PROBE_PORT, 0, search.token, bytes(search.probe), now)

    def _failed(self, state: PeerState, now: float) -> None:
        """The outstanding size does not pass: keep what works, and try again after a while."""
        search = state.mtu
        search.ceiling = search.probe
        self._abandon(state)
        self._later(state, now)

    def _later(self, state: PeerState, now: float) -> None:
        search, settings = state.mtu, self._core.settings
        search.retry_seconds = min(
            max(settings.mtu_retry_seconds, 2 * search.retry_seconds), settings.mtu_retry_max_seconds
        )
        due = now + search.retry_seconds
        self._core.timers.set(("mtu", state.node), due, lambda at: self._again(state, at))

    def _again(self, state: PeerState, now: float) -> None:
        """Try what failed before."""
        state.mtu.ceiling = 0
        self._advance(state, now)

    def _abandon(self, state: PeerState) -> None:
        state.mtu.probe = 0
        self._core.timers.cancel(("mtu", state.node))
