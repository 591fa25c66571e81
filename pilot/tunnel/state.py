"""What the tunnel keeps per peer, and what all its parts share (tunnel, L4-5)."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from random import Random

from pilot._fast.seal import Session
from pilot.tunnel.interfaces import Address, DatapathLike, PeerLike, TunnelHooks, TunnelIdentity
from pilot.tunnel.keys import KeyPair
from pilot.tunnel.limits import Spacing
from pilot.tunnel.settings import TunnelSettings
from pilot.tunnel.timers import Timers

_log = logging.getLogger("pilot.tunnel")

PATH_PROBE = b"pathprobe.v1"
"""Payload of the pings that ask a silent peer for a sign of life (wire.md 12.3)."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """Where a frame came from: the underlay address, or else the sender id a relay header claims."""

    source: Address | None
    relayed_by: int | None


@dataclass(frozen=True, slots=True)
class Slot:
    """A session and the own key pair it was made with."""

    session: Session
    pair: KeyPair


@dataclass(slots=True)
class Trial:
    """A session that replaced another and has to prove itself (see sessions.py)."""

    fresh: Slot
    old: Slot
    since: float
    until: float
    """When it ends without proof; the datapath keeps the receiving session a little longer."""
    old_received: int
    old_address: Address | None
    fresh_address: Address | None
    """Where the peer was taken to be when the new session was installed."""
    heard_at: float
    """When the peer was last heard before."""
    pings: int = 0


class CycleKind(Enum):
    """Why key exchanges are being sent to a peer until it answers."""

    FIRST = "no session"
    REKEY = "a new key, the session stays until it proves itself"
    REFRESH = "the same key, to a peer that has gone silent"


@dataclass(slots=True)
class Cycle:
    """A key exchange under way and its retransmits (wire.md 6.4)."""

    kind: CycleKind
    attempts: int


@dataclass(slots=True)
class MtuSearch:
    """What is known about the size of the current path."""

    path: Address | str = ""
    """Where the frames went when the search began: an address, or "relay"."""
    probe: int = 0
    """Payload bytes of the outstanding probe, 0 without one."""
    token: int = 0
    tries: int = 0
    ceiling: int = 0
    """Smallest size that failed, 0 when none did."""
    retry_seconds: float = 0.0


@dataclass(slots=True)
class Check:
    """A direct path in doubt (see failover.py)."""

    since: float = 0.0
    """When the check began."""
    left: int = 0
    """Pings that are still to be sent."""
    fatal: bool = False
    """Whether the path is given up if none is answered."""
    after: float = 0.0
    """No check because of a relayed frame until then."""
    asked: float = 0.0
    """When a check because of silence last began."""
    wanted: bool = False
    """A key exchange has brought another address."""
    moves: int = 0
    """Addresses the peer has had in the period that began at `moves_since`."""
    moves_since: float = 0.0


@dataclass(slots=True)
class Upgrade:
    """What is known about the direct path to a relayed peer (see upgrades.py)."""

    probes: dict[int, tuple[Address, float]] = field(default_factory=dict)
    """Where and when the latest direct pings went, by the number that their pongs repeat."""
    left: int = 0
    """Probes of the attempt under way that are still to be sent."""
    answered: float = 0.0
    """When the last pong to a direct probe came."""
    address: Address | None = None
    """Where that probe had gone."""
    committed: float = 0.0
    """When the peer last left the relay."""
    died: float = 0.0
    """When the direct path was last given up."""
    not_before: float = 0.0
    """No attempt without news until then."""
    spacing: float = 0.0
    reply_after: float = 0.0
    """No attempt because a direct frame came until then."""

    def lift(self) -> None:
        """Let the next attempt come soon."""
        self.not_before = self.spacing = self.reply_after = 0.0


@dataclass(slots=True)
class PeerState:
    """One remote node as the control plane sees it. `peer` is None for a mere sender of frames we cannot read."""

    node: int
    created: float
    peer: PeerLike | None = None
    pair: KeyPair | None = None
    """The own pair that is announced to this peer; a session may still be on an older one."""
    current: Slot | None = None
    trial: Trial | None = None
    unproved_over: bytes | None = None
    """Peer key whose session ran out while its successor had proved nothing; superseded as soon as it does."""
    cycle: Cycle | None = None
    cooldown_until: float = 0.0
    wanted: bool = False
    """A session was asked for before this node was registered."""
    resolving: bool = False
    reset_pending: bool = False
    upgrade_wanted: bool = False
    search_after: float = 0.0
    """When the next search for a lost direct path may begin."""
    search_wanted: bool = False
    search_attempts: int = 0
    """How many of the next looks are attempts: there was news of where the peer is."""
    rekey_after: float = 0.0
    rekey_spacing: float = 0.0
    rejects: int = 0
    rejects_since: float = 0.0
    last_reject: float = 0.0
    same_key_answer: float = 0.0
    send_errors: int = 0
    last_send_error: float = 0.0
    watchdog_probes: int = 0
    silent_since: float = 0.0
    watchdog_after: float = 0.0
    mtu: MtuSearch = field(default_factory=MtuSearch)
    upgrade: Upgrade = field(default_factory=Upgrade)
    check: Check = field(default_factory=Check)
    watch: set[str] = field(default_factory=set)


class Core:
    """Identity, settings, timers, the datapath and the table of peer states: what every part of the tunnel works on."""

    datapath: DatapathLike

    def __init__(self, identity: TunnelIdentity, hooks: TunnelHooks, settings: TunnelSettings, random: Random) -> None:
        self.identity = identity
        self.hooks = hooks
        self.settings = settings
        self.random = random
        self.timers = Timers(lambda deadline: self.datapath.set_control_deadline(deadline))
        self.own_node = 0
        self.counters: dict[str, int] = {}
        self._states: dict[int, PeerState] = {}
        self._strangers: dict[int, PeerState] = {}
        self._warnings = Spacing(settings.warning_seconds, cap=64)

    def get(self, node: int) -> PeerState | None:
        """The state of a peer or stranger, if there is one."""
        return self._states.get(node) or self._strangers.get(node)

    def peers(self) -> Iterator[PeerState]:
        """The states of all peers, safe against changes under way."""
        return iter(list(self._states.values()))

    def stranger(self, node: int, now: float) -> PeerState:
        """The state of `node`, made without a peer if there is none; the oldest stranger makes room."""
        state = self.get(node)
        if state is None:
            if len(self._strangers) >= self.settings.max_strangers:
                self._discard(self._strangers.pop(next(iter(self._strangers))))
            state = self._strangers[node] = PeerState(node, now)
        return state

    def peer(self, node: int, now: float) -> tuple[PeerState, PeerLike]:
        """The state of `node` as a peer, and its datapath entry; both made if there are none."""
        state = self._strangers.pop(node, None) or self._states.get(node) or PeerState(node, now)
        if state.peer is None:
            state.peer = self.datapath.add_peer(node)
        self._states[node] = state
        return state, state.peer

    def peer_count(self) -> int:
        """How many peers there are, strangers not counted."""
        return len(self._states)

    def remove(self, node: int) -> None:
        """Forget `node` with all its state and timers, here and in the datapath."""
        state = self._states.pop(node, None) or self._strangers.pop(node, None)
        if state is not None:
            self._discard(state)
            if state.peer is not None:
                self.datapath.remove_peer(node)

    def clear_strangers(self) -> None:
        """Drop the key pairs announced to nodes that are no peers."""
        for state in self._strangers.values():
            self._discard(state)
        self._strangers.clear()

    def clear(self) -> None:
        """Drop every state and timer."""
        for state in self.peers():
            self.remove(state.node)
        self.clear_strangers()
        self.timers.clear()

    def _discard(self, state: PeerState) -> None:
        for name in PEER_TIMERS:
            self.timers.cancel((name, state.node))
        if state.pair is not None:
            state.pair.wipe()
        state.pair = state.current = state.trial = state.cycle = None

    def watch(self, state: PeerState, reason: str, on: bool) -> None:
        """Have `heard` called for every decrypted frame of the peer while any reason for it is on."""
        (state.watch.add if on else state.watch.discard)(reason)
        if state.peer is not None:
            state.peer.watched = bool(state.watch)

    def route(self, peer: PeerLike) -> Address | None:
        """The peer's direct address if frames to it go there, None if they go by relay."""
        if self.datapath.relay_only or (peer.relay and self.datapath.beacon is not None):
            return None
        return peer.address

    def transmit(self, frame: bytes, node: int, address: Address | None) -> None:
        """Send a ready frame to an address, or by relay when that is None (see `route`)."""
        if address is not None:
            self.datapath.send_frame(frame, address)
        else:
            self.datapath.send_relayed(frame, node)

    def flag_relay(self, peer: PeerLike) -> bool:
        """Send the peer's frames by relay from now on; False without a beacon."""
        if self.datapath.beacon is None:
            return False
        if not peer.relay:
            peer.relay = True
            self.hooks.publish("tunnel.relay_activated", {"peer_node_id": peer.node})
        return True

    def idle(self, peer: PeerLike, now: float) -> bool:
        """Whether nobody uses the peer: no stream, nothing queued, no application packet lately (wire.md 12.1)."""
        return (
            peer.open_streams == 0 and peer.pending_packets == 0 and now - peer.last_used >= self.settings.idle_seconds
        )

    def count(self, name: str) -> None:
        """Count something worth knowing and not worth a log line."""
        self.counters[name] = self.counters.get(name, 0) + 1

    def warn(self, message: str, argument: object, now: float) -> None:
        """Log a warning, unless one of the same kind was logged lately."""
        if self._warnings.allow(message, now):
            _log.warning(message, argument)


PEER_TIMERS = ("exchange", "proof", "trial", "upgrade", "first upgrade", "search", "mtu", "call over", "check")
"""Names of the timers a peer may have: ("exchange", node) and so on."""
