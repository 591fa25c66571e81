"""The control plane in one object: what datapath and node call, and which part answers (tunnel, L4-5)."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from pilot.tunnel.address import OwnAddress
from pilot.tunnel.beacons import Beacons
from pilot.tunnel.exchange import Exchange
from pilot.tunnel.gates import Gates
from pilot.tunnel.interfaces import (
    Address,
    ContactState,
    DatapathLike,
    PeerLike,
    Resolved,
    TunnelHooks,
    TunnelIdentity,
    VerdictLike,
)
from pilot.tunnel.liveness import Liveness
from pilot.tunnel.mtu import PROBE_PORT, PathMtu
from pilot.tunnel.paths import Paths
from pilot.tunnel.settings import TunnelSettings
from pilot.tunnel.state import Core, CycleKind, PeerState
from pilot.tunnel.upgrades import UPGRADE_PORT

PING_PORT = 0xFFFE
"""Source port of the node's own pings (`probe_path`)."""


class Tunnel:
    """Key exchange, paths, liveness and beacon of one node; implements `ControlPlane` for the datapath.

    Sans-IO: every method takes `now` (monotonic seconds), returns at once and does its sending through the datapath.
    `random` is the only source of randomness and of key material: `SystemRandom`, or a seeded `Random` in a simulation.
    Call `attach` first, then `start`. Nothing here raises on what the network sends.
    """

    def __init__(
        self,
        identity: TunnelIdentity,
        hooks: TunnelHooks,
        *,
        settings: TunnelSettings | None = None,
        random: Random,
    ) -> None:
        self._core = core = Core(identity, hooks, settings or TunnelSettings(), random)
        self._exchange = Exchange(core, installed=self._installed, gave_up=self._gave_up)
        self._gates = Gates(core, self._exchange)
        self._mtu = PathMtu(core)
        self._address = OwnAddress(core)
        self._paths = Paths(core, self._exchange, moved=self._mtu.restart, doubted=self._address.doubted)
        self._liveness = Liveness(core, self._paths)
        self._beacons = Beacons(core, self._address, self._paths.introduced)
        self._pings: dict[int, tuple[int, float, Callable[[float], None]]] = {}

    # ------------------------------------------------------------------------------------ for the node

    @property
    def settings(self) -> TunnelSettings:
        """The settings in force."""
        return self._core.settings

    @property
    def counters(self) -> dict[str, int]:
        """What was dropped, refused or decided, by name; only ever grows."""
        return self._core.counters

    @property
    def observed_host(self) -> str:
        """The public IP address the beacon sees, empty while not known for certain."""
        return self._address.observed

    def attach(self, datapath: DatapathLike) -> None:
        """Work on this datapath. Call once, before anything else."""
        self._core.datapath = datapath
        datapath.relay_only = self._core.settings.relay_only

    def start(self, now: float) -> None:
        """Start the periodic sweeps."""
        settings = self._core.settings
        self._every("keepalives", settings.keepalive_sweep_seconds, self._liveness.sweep_keepalives, now)
        self._every("watchdog", settings.watchdog_sweep_seconds, self._liveness.sweep_watchdog, now)
        self._every("upgrades", settings.upgrade_seconds, self._paths.sweep_upgrades, now)
        self._every("forget", settings.forget_sweep_seconds, self._liveness.sweep_forgotten, now)

    def stop(self, now: float) -> None:
        """Stop every timer and drop all key material; the tunnel is of no further use."""
        for state in self._core.peers():
            self.forget(state.node, now)
        self._pings.clear()
        self._core.clear()
        self._core.own_node = 0

    def registered(self, node: int, now: float) -> None:
        """The registry gave us this node id: announce it to the beacon, and start what waited for it.

        With another id than before all sessions end, since it is part of every frame.
        """
        core = self._core
        if core.own_node not in (0, node):
            for state in core.peers():
                self.forget(state.node, now)
            core.clear_strangers()
        core.own_node = core.datapath.own_node = node
        self._beacons.registered(now)
        for state in core.peers():
            if state.wanted:
                state.wanted = False
                self.contact(state.node, now)

    def set_beacons(self, configured: list[Address], discovered: list[Address], now: float) -> None:
        """Pick the beacon from the configured ones and the registry's list. Call at start and every 60 s."""
        self._beacons.select(configured, discovered, now)

    def set_lan_addresses(self, hosts: list[str]) -> None:
        """The private IPv4 addresses of this host, for peers on the same LAN."""
        self._paths.own_lan = tuple(hosts)

    def local_address(self, host: str, now: float) -> None:
        """The source address the system would use towards the beacon, as found by the node about once a second."""
        self._address.local(host, now)

    def discover(self, now: float) -> None:
        """Announce this node to the beacon out of turn, after a suspend or a new registration."""
        self._address.discover(now)

    def contact(self, node: int, now: float) -> ContactState:
        """Start whatever is missing for a session with `node` (resolve, punch, key exchange); idempotent.

        Makes the datapath's `Peer`. Ends with `hooks.session_ready` or `hooks.contact_failed`, unless the state
        returned is READY, or COOLING: given up seconds ago, nothing is done.
        """
        return self._paths.contact(node, now)

    def resolved(
        self, node: int, found: Resolved | None, failure: str | None, now: float, *, unreachable: bool = False
    ) -> None:
        """The answer to `hooks.resolve`. `unreachable`: there was no answer, so the last known endpoint may serve."""
        self._paths.resolved(node, found, failure, unreachable, now)

    def key_found(self, node: int, key: bytes | None, failed: bool, now: float) -> None:
        """The answer to `hooks.lookup_key`: the registered key or None; `failed` if the registry was not reached."""
        self._exchange.identities.found(node, key, failed, now)

    def forget(self, node: int, now: float) -> None:
        """Remove the peer with all its state; its streams end."""
        self._paths.forget(node)
        self._core.remove(node)
        self._exchange.identities.forget(node)

    def reset_path(self, node: int, now: float) -> bool:
        """Start over with the path to `node`, keeping the session; False without such a peer or if done lately."""
        state = self._core.get(node)
        return state is not None and self._paths.reset(state, "request", now)

    def rekey(self, node: int, now: float) -> bool:
        """Ask `node` for a session under a new key; whether a rekey is under way now."""
        state = self._core.get(node)
        if state is None or state.current is None:
            return False
        self._exchange.rekey(state, now)
        return state.cycle is not None and state.cycle.kind is CycleKind.REKEY

    def probe_path(
        self, node: int, payload: bytes, now: float, answered: Callable[[float], None], *, direct: bool = False
    ) -> bool:
        """Ping `node` once; `answered(rtt_seconds)` is called if the pong comes. False without session or free slot.

        At most `ping_cap` are under way; the oldest is forgotten for a new one. A private node may stay silent.
        """
        state = self._core.get(node)
        if state is None or state.peer is None or state.current is None or not payload:
            return False
        token = self._core.random.getrandbits(32)
        if len(self._pings) >= self._core.settings.ping_cap:
            del self._pings[next(iter(self._pings))]
        self._pings[token] = (node, now, answered)
        if self._core.datapath.send_control(state.peer, 0, PING_PORT, 0, token, payload, now, direct=direct):
            return True
        self._pings.pop(token, None)
        return False

    def describe(self, peer: PeerLike | int) -> str:
        """Which step a dial to the peer waits for: "resolve", "key exchange" or "ready"."""
        state = self._core.get(peer if isinstance(peer, int) else peer.node)
        if state is not None and state.current is not None:
            return ContactState.READY.value
        if state is not None and (state.cycle is not None or not state.resolving):
            return ContactState.EXCHANGING.value
        return ContactState.RESOLVING.value

    # -------------------------------------------------------------------------------- for the datapath

    def key_exchange_untrusted(self, frame: bytes, source: Address | None, relayed_by: int | None, now: float) -> None:
        """A PILA or PILK; `relayed_by` is the unverified sender of a relay header, `source` then is None."""
        self._exchange.receive_untrusted(frame, source, relayed_by, now)

    def beacon_message_untrusted(self, message: bytes, source: Address, now: float) -> None:
        """A beacon message other than RelayDeliver."""
        self._beacons.receive_untrusted(message, source, now)

    def unknown_session(self, node: int, source: Address | None, relayed_by: int | None, now: float) -> None:
        """A PILS of a node without session."""
        self._exchange.unknown_session(node, source, relayed_by, now)

    def rejected(self, peer: PeerLike, verdict: VerdictLike, now: float) -> None:
        """A PILS of the peer did not open, or came twice."""
        state = self._core.get(peer.node)
        if state is not None:
            self._gates.rejected(state, peer, verdict, now)

    def session_wanted(self, peer: PeerLike, now: float) -> None:
        """A packet waits for a session."""
        self._paths.contact(peer.node, now)

    def heard(self, peer: PeerLike, direct: bool, now: float) -> None:
        """A frame of a watched peer was decrypted, or one that came another way than frames to the peer go."""
        state = self._core.get(peer.node)
        if state is not None:
            if direct:
                self._paths.heard_directly(state, now)
            elif not peer.relay:
                self._paths.heard_relayed(state, now)
            self._liveness.heard(state, now)
            self._exchange.heard(state)
            self._exchange.sessions.heard(state, now)

    def path_changed(self, peer: PeerLike, reason: str, now: float) -> None:
        """The datapath changed the path: "blackhole", "direct", "address" or "relayed"."""
        state = self._core.get(peer.node)
        if state is not None:
            self._paths.path_changed(state, reason, now)

    def pong(self, peer: PeerLike, seq: int, port: int, payload: bytes, now: float) -> None:
        """An answered ping."""
        state = self._core.get(peer.node)
        if state is None:
            return
        if port == PROBE_PORT:
            self._mtu.pong(state, peer, seq, len(payload), now)
        elif port == UPGRADE_PORT:
            self._paths.upgrades.pong(state, seq, now)
        elif port == PING_PORT and seq in self._pings and self._pings[seq][0] == peer.node:
            _, sent, answered = self._pings.pop(seq)
            answered(now - sent)

    def send_failed(self, peer: PeerLike, error: int, size: int, now: float) -> None:
        """The system refused a datagram of `size` bytes to the peer, with a positive errno."""
        state = self._core.get(peer.node)
        if state is not None:
            self._mtu.send_failed(state, peer, error, size, now)
            self._paths.send_failed(state, peer, error, now)

    def rekey_due(self, peer: PeerLike, now: float) -> None:
        """The key has served long enough."""
        state = self._core.get(peer.node)
        if state is not None:
            self._exchange.rekey(state, now)

    def full_segments_lost(self, peer: PeerLike, now: float) -> None:
        """Full-size segments vanish while smaller packets pass."""
        state = self._core.get(peer.node)
        if state is not None:
            self._mtu.lost(state, peer, now)

    def unanswered(self, peer: PeerLike, now: float) -> None:
        """Frames have gone directly to the peer for 4 s and none has come back that way; after 8 s it is relayed."""
        state = self._core.get(peer.node)
        if state is not None:
            self._paths.unanswered(state, now)

    def dial_needs_relay(self, peer: PeerLike, now: float) -> bool:
        """A SYN went unanswered three times: whether the next ones go by relay."""
        state = self._core.get(peer.node)
        return state is not None and self._paths.dial_needs_relay(state, peer, now)

    def handle_timer(self, now: float) -> None:
        """Run what is due."""
        self._core.timers.run(now, self._core.settings.timers_per_call)

    def publish(self, topic: str, payload: dict[str, object]) -> None:
        """Pass an event of the hot path on."""
        self._core.hooks.publish(topic, payload)

    # --------------------------------------------------------------------------------------- internals

    def _every(self, name: str, seconds: float, sweep: Callable[[float], None], now: float) -> None:
        def run(at: float) -> None:
            self._core.timers.set(name, at + seconds, run)
            sweep(at)

        self._core.timers.set(name, now + seconds, run)

    def _installed(self, state: PeerState, now: float) -> None:
        self._mtu.session_installed(state, now)
        self._paths.session_installed(state, now)

    def _gave_up(self, state: PeerState, now: float) -> None:
        """No answer to a key exchange: if the peer is in use and silent, doubt its path."""
        peer = state.peer
        if peer is None or self._core.idle(peer, now):
            return
        quiet = self._core.settings.same_key_silence_seconds
        if state.current is not None and peer.last_heard and now - peer.last_heard < quiet:
            return
        if self._paths.reset(state, "gave up", now):
            payload: dict[str, object] = {"peer_node_id": state.node, "reason": "rekey_gave_up"}
            self._core.hooks.publish("tunnel.path_suspect", payload)
