"""Key exchange: when to send PILA and PILK, what to do with received ones, retransmits and giving up (tunnel, L4).

Source: wire.md section 6, with the weak spots of section 19 closed:

- A PILK installs nothing, ever. It is the request for our PILA, and the peer's signed PILA makes the session.
- An address is taken from a PILA only when it brings a new key (a copy of that very exchange counts with it), never
  from one that repeats the session's key.
- Answers to frames without session leave no trace but a key pair, are limited per sender, per IP and in total, and in
  relay-only mode go by relay only.

Our answer to a PILA leaves before the packets that waited for the session, so that the peer can read them; 1.18.0 sends
it last. A cycle's retransmits stop at the peer's PILA; those of a rekey only when the new session has proved itself,
since the PILA that answers cannot be told from an old one.
"""

from __future__ import annotations

from collections.abc import Callable

from pilot.tunnel.frames import FrameError, Pila, parse_exchange_untrusted
from pilot.tunnel.identities import Identities
from pilot.tunnel.interfaces import Address, PeerLike
from pilot.tunnel.limits import Spacing, TokenBucket, TokenBuckets
from pilot.tunnel.sessions import Sessions, Standing
from pilot.tunnel.state import Arrival, Core, Cycle, CycleKind, PeerState

Notice = Callable[[PeerState, float], None]


class Exchange:
    """Key exchanges with all peers. `installed` hears of every new session, `gave_up` of every cycle without answer."""

    def __init__(self, core: Core, *, installed: Notice, gave_up: Notice) -> None:
        settings = core.settings
        self._core = core
        self._installed = installed
        self._gave_up = gave_up
        self.sessions = Sessions(core, proved=self._proved)
        self.identities = Identities(core, verified=self._accept)
        cap, idle = settings.bucket_cap, settings.bucket_idle_seconds
        self._sources = TokenBuckets(settings.exchange_rate, settings.exchange_burst, cap, idle)
        self._relayed = TokenBuckets(settings.exchange_rate, settings.exchange_burst, cap, idle)
        self._total = TokenBucket(settings.total_exchange_rate, settings.total_exchange_rate, 0.0)
        self._unknown = Spacing(settings.unknown_spacing_seconds, cap)
        self._unknown_sources = TokenBuckets(settings.unknown_rate, settings.exchange_burst, cap, idle)
        self._unknown_relayed = TokenBucket(settings.unknown_relay_rate, settings.unknown_relay_rate, 0.0)

    # ------------------------------------------------------------------------------------------ cycles

    def begin(self, state: PeerState, kind: CycleKind, now: float, *, request: bool = False) -> bool:
        """Start sending key exchanges until the peer answers; False while that is not possible or already under way.

        The first one goes on the current path and, if that is direct, by relay too. `request` adds the PILK at once.
        """
        if state.cycle is not None or state.peer is None or self._core.own_node == 0:
            return False
        if now < state.cooldown_until:
            return False
        if kind is not CycleKind.REFRESH or state.pair is None:
            self.sessions.fresh_pair(state)
        state.cycle = Cycle(kind, attempts=1)
        if kind is CycleKind.REFRESH:
            self._core.watch(state, "refresh", True)
        self._send(state, self._core.route(state.peer), request=request, copy=True)
        self._arm(state, now)
        return True

    def rekey(self, state: PeerState, now: float) -> None:
        """Ask the peer for a session under a new key; the present one stays until that one works. Backs off."""
        if state.current is None or now < state.rekey_after:
            return
        if state.cycle is not None:
            if state.cycle.kind is not CycleKind.REFRESH:
                return
            self.finish(state)
        if self.begin(state, CycleKind.REKEY, now, request=True):
            settings = self._core.settings
            state.rekey_spacing = min(
                max(settings.rekey_spacing_seconds, 2 * state.rekey_spacing), settings.rekey_spacing_max_seconds
            )
            state.rekey_after = now + state.rekey_spacing

    def finish(self, state: PeerState) -> None:
        """End the cycle: answered, or no longer needed."""
        state.cycle = None
        self._core.watch(state, "refresh", False)
        self._core.timers.cancel(("exchange", state.node))

    def restart_attempts(self, state: PeerState) -> None:
        """The path has just moved to the relay: the attempts so far went nowhere (wire.md 6.4)."""
        if state.cycle is not None:
            state.cycle.attempts = 0

    def lift_limits(self, state: PeerState) -> None:
        """A path reset starts over: no cooldown holds. The spacing of rekeys does, as forged frames cause them."""
        state.cooldown_until = 0.0
        self._unknown.lift(state.node)

    def heard(self, state: PeerState) -> None:
        """A frame of the peer was decrypted: the session we have works."""
        if state.cycle is not None and state.cycle.kind is CycleKind.REFRESH:
            self.finish(state)

    def _arm(self, state: PeerState, now: float) -> None:
        due = now + self._core.settings.retransmit_seconds
        self._core.timers.set(("exchange", state.node), due, lambda at: self._retransmit(state, at))

    def _retransmit(self, state: PeerState, now: float) -> None:
        cycle, peer = state.cycle, state.peer
        if cycle is None or peer is None:
            return
        if cycle.attempts >= self._core.settings.exchange_attempts:
            self._give_up(state, cycle, now)
            return
        if cycle.kind is CycleKind.FIRST and cycle.attempts >= 1:
            self._core.flag_relay(peer)
        cycle.attempts += 1
        # 1.18.0 sends these by relay alone. Both ways cost little, and it may be the beacon that failed.
        address = None if self._core.datapath.relay_only else peer.address
        self._send(state, address, request=True, copy=True)
        self._arm(state, now)

    def _give_up(self, state: PeerState, cycle: Cycle, now: float) -> None:
        self.finish(state)
        if cycle.kind is CycleKind.REKEY:
            if state.trial is not None and state.current is state.trial.fresh:
                return  # answered; the peer has merely sent nothing yet
            self.sessions.forget_announced(state)
        elif cycle.kind is CycleKind.FIRST:
            if state.pair is not None:
                state.pair.spent = True
            state.cooldown_until = now + self._core.settings.cooldown_seconds
        self._core.hooks.publish("tunnel.rekey_gave_up", {"peer_node_id": state.node})
        if cycle.kind is CycleKind.FIRST:
            self._core.hooks.contact_failed(state.node, "the peer did not answer the key exchange")
        self._gave_up(state, now)

    def _proved(self, state: PeerState) -> None:
        state.rekey_after = state.rekey_spacing = 0.0
        state.rejects = 0
        if state.cycle is not None and state.current is not None and state.current.pair is state.pair:
            self.finish(state)

    # ------------------------------------------------------------------------------------------ sending

    def _send(self, state: PeerState, address: Address | None, *, request: bool, copy: bool) -> None:
        """PILA, with a PILK behind it as a request, to `address` (None: by relay), and a copy of it all by relay."""
        pair, own = state.pair, self._core.own_node
        if pair is None or own == 0:
            return
        frames = [pair.pila(own, self._core.identity)]
        if request:
            frames.append(pair.pilk(own))
        for way in (address, None) if copy and address is not None else (address,):
            for frame in frames:
                self._core.transmit(frame, state.node, way)

    def _answer(self, state: PeerState, peer: PeerLike, arrival: Arrival) -> None:
        """Our PILA on the peer's path; also by relay if the question came that way: the address may be dead."""
        address = self._core.route(peer)
        self._send(state, address, request=False, copy=address is not None and arrival.relayed_by is not None)

    # ---------------------------------------------------------------------------------------- receiving

    def receive_untrusted(self, frame: bytes, source: Address | None, relayed_by: int | None, now: float) -> None:
        """A PILA or PILK from the socket or out of a relay delivery. Cheap checks first, the registry aside."""
        core = self._core
        try:
            exchange = parse_exchange_untrusted(frame)
        except FrameError:
            core.count("exchange_malformed")
            return
        if core.own_node == 0 or exchange.node in (0, core.own_node):
            core.count("exchange_malformed")
            return
        if not self._within_rate(source, relayed_by, now):
            core.count("exchange_rate_limited")
            return
        state = core.get(exchange.node)
        if self._shut_out(exchange.node, state):
            core.count("exchange_untrusted")
            return
        arrival = Arrival(source, relayed_by)
        if isinstance(exchange, Pila):
            self.identities.submit_untrusted(exchange, arrival, now)
        elif state is not None and state.peer is not None and (state.peer.address is not None or state.peer.relay):
            self._requested(state, state.peer, arrival)
        else:
            core.count("pilk_without_address")

    def unknown_session(self, node: int, source: Address | None, relayed_by: int | None, now: float) -> None:
        """A PILS we hold no key for: send PILA and PILK back the way it came, within the limits (wire.md 7.4)."""
        core = self._core
        state = core.get(node)
        if core.own_node == 0 or node in (0, core.own_node) or self._shut_out(node, state):
            return
        if core.datapath.relay_only:
            source = None
        if self._unknown.held(node, now):
            core.count("unknown_session_limited")
            return
        within = self._unknown_sources.take(source[0], now) if source is not None else self._unknown_relayed.take(now)
        if not within or not self._unknown.allow(node, now):
            core.count("unknown_session_limited")
            return
        state = core.stranger(node, now)
        if state.current is not None:
            return
        self.sessions.fresh_pair(state)
        peer = state.peer
        known = peer is not None and (peer.address is not None or peer.relay)
        address = core.route(peer) if peer is not None and known else source
        self._send(state, address, request=True, copy=True)

    def _within_rate(self, source: Address | None, relayed_by: int | None, now: float) -> bool:
        buckets, key = (self._sources, source[0]) if source is not None else (self._relayed, relayed_by)
        return buckets.take(key, now) and self._total.take(now)

    def _shut_out(self, node: int, state: PeerState | None) -> bool:
        """Strict mode: who is neither trusted nor contacted by us is not spoken to."""
        if not self._core.settings.strict:
            return False
        ours = state is not None and (state.cycle is not None or state.current is not None or state.resolving)
        return not ours and not self._core.hooks.is_trusted(node)

    def _requested(self, state: PeerState, peer: PeerLike, arrival: Arrival) -> None:
        """A PILK: answer with our PILA to the address we know. No cycle: the peer asks again if this one is lost."""
        if state.current is None:
            self.sessions.fresh_pair(state)
        self._answer(state, peer, arrival)

    def _accept(self, pila: Pila, arrival: Arrival, now: float) -> None:
        """A PILA signed by the registered key of its node."""
        core = self._core
        state = core.stranger(pila.node, now)
        if state.peer is None and core.peer_count() >= core.settings.max_peers:
            core.count("peers_full")
            return
        standing = self.sessions.standing(state, pila.x25519, now)
        if standing is Standing.REFUSED:
            core.count("pila_refused_key")
        elif standing in (Standing.NEW, Standing.CHANGED):
            self._establish(state, pila.x25519, arrival, now)
        else:
            self._repeated(state, standing, arrival, now)

    def _establish(self, state: PeerState, key: bytes, arrival: Arrival, now: float) -> None:
        """Install a session with the peer's new key, answer it, and tell who wants to know."""
        core = self._core
        try:
            slot = self.sessions.derive_untrusted(state, key, now)
        except FrameError:
            core.count("pila_low_order")
            return
        added = state.peer is None
        state, peer = core.peer(state.node, now)
        rekeyed = state.current is not None
        old_address = peer.address
        self._learn_path(state, peer, arrival)
        self._answer(state, peer, arrival)
        if state.cycle is not None and state.cycle.kind is not CycleKind.REKEY:
            self.finish(state)
        state.cooldown_until = 0.0
        state.rejects = 0
        self.sessions.install(state, peer, slot, old_address, now)
        if added:
            core.hooks.publish("tunnel.peer_added", {"peer_node_id": state.node})
        self._publish_established(state, arrival, rekeyed)
        core.hooks.session_ready(state.node)
        self._installed(state, now)

    def _repeated(self, state: PeerState, standing: Standing, arrival: Arrival, now: float) -> None:
        """A PILA with a key we hold a session for already."""
        core, settings, peer, current = self._core, self._core.settings, state.peer, state.current
        if peer is None or current is None:
            return
        if standing is Standing.RETURNED:
            self.sessions.step_back(state, now)
        age = now - current.session.established_at
        if age < settings.duplicate_seconds:
            # The direct copy of an exchange whose relayed copy was faster still says where the peer is.
            untouched = peer.relay and peer.last_heard < current.session.established_at
            if untouched and arrival.source is not None and peer.address in (None, arrival.source):
                peer.address = arrival.source
                peer.relay = False
                self._installed(state, now)
            return
        self._publish_established(state, arrival, rekeyed=False)
        if state.cycle is not None and state.cycle.kind is CycleKind.REFRESH:
            self.finish(state)
        silent = now - max(peer.last_heard, current.session.established_at)
        if silent > settings.same_key_silence_seconds and (
            now - state.same_key_answer >= settings.same_key_spacing_seconds
        ):
            state.same_key_answer = now
            self._answer(state, peer, arrival)
        core.count("pila_same_key")

    def _learn_path(self, state: PeerState, peer: PeerLike, arrival: Arrival) -> None:
        """A PILA brought a new key: what does the way it came say about the path?"""
        if arrival.source is not None:
            if arrival.source != self._core.datapath.beacon:
                state.check.wanted = peer.address not in (None, arrival.source)
                peer.address = arrival.source
        elif peer.address is None:
            self._core.flag_relay(peer)
        elif peer.last_heard_direct == 0.0:
            # The address is the registry's word, and so far only the relay has worked (wire.md 11.3, dial).
            self._core.flag_relay(peer)

    def _publish_established(self, state: PeerState, arrival: Arrival, rekeyed: bool) -> None:
        payload: dict[str, object] = {
            "authenticated": True,
            "relay": arrival.relayed_by is not None,
            "rekeyed": rekeyed,
        }
        if self._core.hooks.is_trusted(state.node):
            payload["peer_node_id"] = state.node
        self._core.hooks.publish("tunnel.established", payload)
