"""Installing sessions, and which of two may send while the newer one has proved nothing (tunnel, L4).

A PILA has no freshness: a recorded one is as good as new, and its sender address means nothing. Yet it must be obeyed
at once, because a peer that restarted can read nothing but the new key. So a PILA that changes the key of a session
puts the two on *trial*. The new session sends from the first moment; both receive.

- The first frame that opens under the new key proves it. Pairs of ours meet a peer key only once (keys.py), so no
  recorded frame can open under a new session. The replaced peer key is *superseded*: refused for an hour.
- A frame under the old key, later than what may have been under way, while the new key has opened nothing, shows that
  the peer still uses the old one: the old session sends again, from the address it had, and the datapath repeats the
  last packets. The new one goes on receiving, so a rekey whose answer was lost still ends well: the first frame under
  it moves us forward. If none comes for half a minute, the key is refused for two minutes.
- A PILA that names the old key again also moves us back (a stock peer that lost patience sends that); forward moves
  only a frame, since the PILA that began the trial can be replayed for ever.
- To get an answer from a peer that says nothing by itself, both sessions are pinged a few times.
- Another new key during a trial takes the place of the unproved session, never of the proved one: a chain of recorded
  PILAs cannot push the live session out.

What a replayed PILA still achieves: about a second in which our frames are sealed under a key the peer has left.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

from pilot._fast.addr import Addr
from pilot._fast.packet import Packet
from pilot._fast.seal import Session
from pilot.tunnel.interfaces import Address, PeerLike
from pilot.tunnel.keys import KeyPair, RefusedKeys
from pilot.tunnel.state import PATH_PROBE, Core, PeerState, Slot, Trial

CONTROL = 3
TRIAL_MARGIN_SECONDS = 5.0


class Standing(Enum):
    """How the key in a verified PILA relates to what is held."""

    NEW = "no session yet"
    CHANGED = "another key than the session's"
    SAME = "the session's key"
    RETURNED = "the key the session on trial has replaced"
    REFUSED = "a key the peer has left"


class Sessions:
    """Sessions of all peers; `proved` is called when a replaced session's successor has shown that it works."""

    def __init__(self, core: Core, proved: Callable[[PeerState], None]) -> None:
        self._core = core
        self._proved = proved
        self.refused = RefusedKeys(core.settings.refused_nodes, core.settings.refused_keys_per_node)

    def fresh_pair(self, state: PeerState) -> KeyPair:
        """The pair to announce when a session is to be made: the announced one while unused, else a new one."""
        if state.pair is None or not state.pair.unused:
            state.pair = KeyPair.generate(self._core.random)
        return state.pair

    def standing(self, state: PeerState, key: bytes, now: float) -> Standing:
        """What a verified PILA with this X25519 key means."""
        current, trial = state.current, state.trial
        if current is not None and current.pair is state.pair and current.session.peer_x25519 == key:
            return Standing.SAME
        if trial is not None and state.pair in (trial.old.pair, trial.fresh.pair):
            if key == trial.old.session.peer_x25519:
                return Standing.RETURNED if current is trial.fresh else Standing.SAME
            if key == trial.fresh.session.peer_x25519:
                return Standing.SAME
        if self.refused.refuses(state.node, key, now):
            return Standing.REFUSED
        return Standing.NEW if current is None else Standing.CHANGED

    def derive_untrusted(self, state: PeerState, key: bytes, now: float) -> Slot:
        """A session with the peer's key, not installed yet; a low-order point is a `FrameError` and changes nothing."""
        pair = state.pair
        if pair is None or not pair.fits(key):
            pair = KeyPair.generate(self._core.random)
        secret = pair.session_key_untrusted(key)
        state.pair = pair
        session = Session(
            secret,
            self._core.own_node,
            state.node,
            self._core.random.randbytes(4),
            now,
            authenticated=True,
            peer_x25519=key,
        )
        return Slot(session, pair)

    def install(self, state: PeerState, peer: PeerLike, slot: Slot, old_address: Address | None, now: float) -> None:
        """Make `slot` the session, on trial if it replaces another.

        `old_address` is where the peer was before the PILA that brought the key.
        """
        datapath, settings = self._core.datapath, self._core.settings
        self._expire_late(state, now)
        old = state.current
        if state.trial is not None:
            old, old_address = state.trial.old, state.trial.old_address
            if state.current is state.trial.fresh:
                # What is replaced is kept for receiving, and that must be the proved session.
                datapath.install_session(peer, old.session, now)
            self._close_trial(state)
        state.current, state.unproved_over = slot, None
        if old is None:
            datapath.install_session(peer, slot.session, now)
            return
        # A margin beyond the trial: its timer, not the datapath, decides when the old session is gone.
        keep = settings.keep_previous_seconds + TRIAL_MARGIN_SECONDS
        until = now + settings.keep_previous_seconds
        received = old.session.received
        trial = state.trial = Trial(slot, old, now, until, received, old_address, peer.address, peer.last_heard)
        self._core.watch(state, "trial", True)
        self._core.timers.set(("trial", state.node), until, lambda at: self._expire(state, at))
        # Frames that arrived before their key are opened inside this call, and one of them may be the proof.
        datapath.install_session(peer, slot.session, now, keep_previous=keep)
        if state.trial is trial:
            self._ping(state, now)

    def heard(self, state: PeerState, now: float) -> None:
        """A frame of the peer was decrypted: see under which key."""
        self._expire_late(state, now)
        trial = state.trial
        if trial is not None:
            in_use = trial.old.session.received > trial.old_received
            trial.old_received = trial.old.session.received
            if trial.fresh.session.received > 0:
                self._prove(state, trial, now)
            elif in_use and now - trial.since >= self._core.settings.in_flight_seconds:
                self.step_back(state, now)
        elif state.unproved_over is not None and state.current is not None and state.current.session.received > 0:
            self._supersede(state, state.unproved_over, now)
            state.unproved_over = None
            self._core.watch(state, "proof", False)

    def step_back(self, state: PeerState, now: float) -> None:
        """Let the session that was replaced send again; the one on trial keeps receiving for its proof."""
        self._expire_late(state, now)
        trial, peer = state.trial, state.peer
        if trial is None or peer is None or state.current is not trial.fresh:
            return
        settings = self._core.settings
        # Not if it was heard where it is taken to be now, or the registry has named another place meanwhile.
        untouched = peer.last_heard_direct <= trial.since and peer.address == trial.fresh_address
        if trial.old_address is not None and untouched:
            peer.address = trial.old_address
        state.current = trial.old
        keep = settings.keep_unproved_seconds
        self._core.datapath.install_session(peer, trial.old.session, now, keep_previous=keep + TRIAL_MARGIN_SECONDS)
        trial.until = now + keep
        self._core.timers.set(("trial", state.node), trial.until, lambda at: self._expire(state, at))
        self._core.count("session_stepped_back")

    def forget_announced(self, state: PeerState) -> None:
        """A rekey came to nothing: announce the pair of the session again."""
        if state.current is not None:
            state.pair = state.current.pair

    def _prove(self, state: PeerState, trial: Trial, now: float) -> None:
        self._close_trial(state)
        if state.current is not trial.fresh and state.peer is not None:
            state.current = trial.fresh
            keep = self._core.settings.keep_previous_seconds
            self._core.datapath.install_session(state.peer, trial.fresh.session, now, keep_previous=keep)
        self._supersede(state, trial.old.session.peer_x25519, now)
        self._salvage(state, trial, now)
        self._proved(state)

    def _salvage(self, state: PeerState, trial: Trial, now: float) -> None:
        """Send again what the peer may have been unable to read since it was last heard under its old key.

        Unlike 1.18.0, which does so as soon as the new key is announced: until then it may be a recorded one, and a
        peer that has to look up our key first cannot read what comes.
        """
        if state.peer is not None and trial.fresh.session.peer_x25519 != trial.old.session.peer_x25519:
            count = self._core.datapath.resend_datagrams(state.peer, trial.heard_at, now)
            if count:
                self._core.hooks.publish("tunnel.desync_salvage", {"peer_node_id": state.node, "replayed": count})

    def _expire_late(self, state: PeerState, now: float) -> None:
        """A process that was held up finds the trial over before its timer has run: its other session may be wiped."""
        if state.trial is not None and now >= state.trial.until:
            self._expire(state, now)

    def _expire(self, state: PeerState, now: float) -> None:
        """The trial ends without proof: what sends now stays."""
        trial = state.trial
        if trial is None:
            return
        self._close_trial(state)
        old_key, fresh_key = trial.old.session.peer_x25519, trial.fresh.session.peer_x25519
        if state.current is trial.old:
            if fresh_key != old_key:
                self.refused.add(state.node, fresh_key, now + self._core.settings.failed_key_seconds)
            if state.cycle is None:
                self.forget_announced(state)
        elif fresh_key != old_key:
            state.unproved_over = old_key
            self._core.watch(state, "proof", True)

    def _close_trial(self, state: PeerState) -> None:
        state.trial = None
        self._core.watch(state, "trial", False)
        self._core.timers.cancel(("trial", state.node))
        self._core.timers.cancel(("proof", state.node))

    def _supersede(self, state: PeerState, key: bytes, now: float) -> None:
        if state.current is not None and state.current.session.peer_x25519 != key:
            self.refused.add(state.node, key, now + self._core.settings.superseded_seconds)

    def _ping(self, state: PeerState, now: float) -> None:
        """Ask for a frame under the session on trial, and from the second time on under the old one too."""
        self._expire_late(state, now)
        trial, peer = state.trial, state.peer
        if trial is None or peer is None:
            return
        for slot in (trial.fresh, trial.old) if trial.pings else (trial.fresh,):
            if slot is state.current:
                self._core.datapath.send_control(peer, 0, 0, 0, 0, PATH_PROBE, now)
            else:
                own, remote = Addr(0, self._core.own_node), Addr(0, state.node)
                packet = Packet(0, CONTROL, own, remote, 0, 0, payload=PATH_PROBE).encode()
                # The peer that still uses the old key is where it was, not where the PILA came from.
                address = self._core.route(peer)
                if address is not None and slot is trial.old and trial.old_address is not None:
                    address = trial.old_address
                self._core.transmit(slot.session.seal(packet), state.node, address)
        trial.pings += 1
        times = self._core.settings.proof_ping_seconds
        if trial.pings < len(times):
            later = trial.since + times[trial.pings]
            self._core.timers.set(("proof", state.node), later, lambda at: self._ping(state, at))
