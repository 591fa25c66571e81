"""Where frames to a peer go: first contact, punching, relay, when to try direct again, and path reset (tunnel, L5).

Source: wire.md 11 and 12.3. A peer registered as relay-only is never punched or probed, and as relay-only node we never
send anything direct, punches included. A path reset keeps the session, as builds newer than 1.18.0 do.
"""

from __future__ import annotations

import errno
import ipaddress
from collections.abc import Callable, Iterable

from pilot.protocol import beacon
from pilot.protocol.endpoints import ip_of, is_public
from pilot.tunnel.exchange import Exchange
from pilot.tunnel.failover import Failover
from pilot.tunnel.interfaces import Address, ContactState, PeerLike, Resolved
from pilot.tunnel.limits import Spacing
from pilot.tunnel.state import Core, CycleKind, PeerState
from pilot.tunnel.upgrades import Upgrades

UNREACHABLE = frozenset({errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH})


class Paths:
    """Path decisions for all peers; `moved` hears of every change of a path made here, `doubted` of one that died."""

    def __init__(
        self,
        core: Core,
        exchange: Exchange,
        moved: Callable[[PeerState, float], None],
        doubted: Callable[[float], None],
    ) -> None:
        self._core = core
        self._doubted = doubted
        self._exchange = exchange
        self._moved = moved
        self.upgrades = Upgrades(core, self._probed)
        self._failover = Failover(core, self.upgrades, self._gone)
        self._endpoints: dict[int, tuple[Resolved, float]] = {}
        self._resets = Spacing(core.settings.reset_spacing_seconds, core.settings.max_peers)
        self._resolving = 0
        self._introductions: dict[int, tuple[str, float]] = {}
        self.own_lan: tuple[str, ...] = ()

    # ----------------------------------------------------------------------------------- first contact

    def contact(self, node: int, now: float) -> ContactState:
        """Make sure that a session with `node` is there or under way."""
        state, peer = self._core.peer(node, now)
        if state.current is not None:
            return ContactState.READY
        if state.cycle is not None:
            return ContactState.EXCHANGING
        if now < state.cooldown_until:
            return ContactState.COOLING
        if self._core.own_node == 0:
            state.wanted = True
            return ContactState.RESOLVING
        self._exchange.identities.prefetch(node, now)
        if peer.address is not None or peer.relay:
            self._exchange.begin(state, CycleKind.FIRST, now)
            return ContactState.EXCHANGING
        cached = self._cached(node, now, self._core.settings.resolve_cache_seconds)
        if cached is not None:
            self._set_out(state, peer, cached, now)
            return ContactState.EXCHANGING
        self._resolve(state)
        return ContactState.RESOLVING

    def resolved(self, node: int, found: Resolved | None, failure: str | None, unreachable: bool, now: float) -> None:
        """The answer to `hooks.resolve`."""
        state = self._core.get(node)
        if state is None or state.peer is None:
            return
        if state.resolving:
            state.resolving = False
            self._resolving -= 1
        before = self._cached(node, now, self._core.settings.endpoint_seconds)
        if found is not None:
            self._remember(node, found, now)
        elif unreachable:
            found = self._cached(node, now, self._core.settings.endpoint_seconds)
        wanted, state.upgrade_wanted = state.upgrade_wanted, False
        searched, state.search_wanted = state.search_wanted, False
        if state.reset_pending:
            state.reset_pending = False
            self._set_out(state, state.peer, found, now)
        elif state.current is None and state.cycle is None:
            if found is not None:
                self._set_out(state, state.peer, found, now)
            else:
                self._core.hooks.contact_failed(node, failure or "the registry does not say where it is")
        elif found is not None and (wanted or searched):
            if state.peer.relay and self._has_moved(state.peer, before, found):
                state.peer.address = self._neighbour(found) or found.address
                state.search_attempts = self._core.settings.search_attempts
            if wanted or state.search_attempts:
                state.search_attempts = max(0, state.search_attempts - 1)
                self._upgrade(state, state.peer, found, now)
            elif found.address is not None and not found.relay_only:
                self._punch(node, found.address, now)

    def _has_moved(self, peer: PeerLike, before: Resolved | None, found: Resolved) -> bool:
        """Whether the registry names another place than before; where it was not asked before, than it was heard at.

        Heard from, only the host tells: behind a NAT another port than the registered one is the right one.
        """
        if found.address is None or found.relay_only:
            return False
        if before is not None:
            return before.address != found.address
        return peer.address is not None and peer.address[0] != found.address[0]

    def forget(self, node: int) -> None:
        """The peer is about to be removed; its endpoint stays cached for a registry outage."""
        state = self._core.get(node)
        if state is not None and state.resolving:
            state.resolving = False
            self._resolving -= 1

    def _resolve(self, state: PeerState) -> None:
        if state.resolving:
            return
        if self._resolving >= self._core.settings.contact_cap:
            self._core.hooks.contact_failed(state.node, "too many peers are being resolved")
            return
        state.resolving = True
        self._resolving += 1
        self._core.hooks.resolve(state.node)

    def _set_out(self, state: PeerState, peer: PeerLike, found: Resolved | None, now: float) -> None:
        """Choose the path by what the registry said and send the first key exchange (wire.md 11.1)."""
        core = self._core
        if found is not None and (found.relay_only or found.address == core.datapath.beacon is not None):
            peer.address = None
            core.flag_relay(peer)
        elif found is not None:
            neighbour = self._neighbour(found)
            if neighbour is None and found.address is not None:
                self._punch(state.node, found.address, now)
            if neighbour or found.address:
                peer.address = neighbour or found.address
            elif peer.address is None:
                core.flag_relay(peer)
        if peer.address is None and not peer.relay:
            core.hooks.contact_failed(state.node, "it has no address, and there is no beacon to relay")
            return
        self._moved(state, now)
        if state.current is None:
            self._exchange.begin(state, CycleKind.FIRST, now)
        else:
            self._exchange.begin(state, CycleKind.REFRESH, now, request=True)

    def _neighbour(self, found: Resolved) -> Address | None:
        """The peer's address in a /24 we are in too, unless it is on this very host (wire.md 11.1, 3)."""
        if found.address is not None and is_loopback(found.address[0]):
            return None
        for host, port in found.lan:
            if is_private_ipv4(host) and any(same_24(host, own) for own in self.own_lan):
                return host, port
        return None

    def _punch(self, node: int, registered: Address, now: float) -> None:
        """Have the beacon introduce us; it tells each side the other's address."""
        datapath = self._core.datapath
        if datapath.beacon is not None and not datapath.relay_only:
            self._introductions.pop(node, None)
            self._introductions[node] = registered[0], now
            if len(self._introductions) > self._core.settings.introduction_cap:
                del self._introductions[next(iter(self._introductions))]
            datapath.send_frame(beacon.encode_punch_request(self._core.own_node, node), datapath.beacon)

    def introduced(self, endpoint: Address, now: float) -> None:
        """A punch command says at which address the beacon hears somebody, without saying whom.

        A NAT may have given the peer another port than the registered one, which is its local port. The oldest own
        request for a peer on that host is taken for the question; a wrong guess costs some probes, which nobody else
        can read, and lasts until the next attempt. What was heard from the peer itself counts for more.
        """
        since = now - self._core.settings.introduction_seconds
        for node, (host, asked) in list(self._introductions.items()):
            if asked < since:
                del self._introductions[node]
            elif host == endpoint[0]:
                del self._introductions[node]
                state = self._core.get(node)
                peer = state.peer if state is not None else None
                if peer is not None and (
                    peer.last_heard_direct == 0.0 or (peer.relay and peer.last_heard_direct < since)
                ):
                    news, peer.address = peer.address != endpoint, endpoint
                    if state is not None and news:
                        self._sighted(state, peer, now)
                return

    def _remember(self, node: int, found: Resolved, now: float) -> None:
        self._endpoints.pop(node, None)
        self._endpoints[node] = (found, now)
        if len(self._endpoints) > self._core.settings.endpoint_cap:
            del self._endpoints[next(iter(self._endpoints))]

    def _cached(self, node: int, now: float, age: float) -> Resolved | None:
        found, at = self._endpoints.get(node, (None, 0.0))
        return found if now - at < age else None

    # -------------------------------------------------------------------------------- direct and relay

    def path_changed(self, state: PeerState, reason: str, now: float) -> None:
        """The datapath moved the peer by itself."""
        if reason in ("relayed", "blackhole"):
            self._core.hooks.publish("tunnel.relay_activated", {"peer_node_id": state.node})
        if reason == "blackhole":
            self._lost(state, now)
        elif reason == "address":
            self._failover.moved(state, now)
        self._moved(state, now)

    def send_failed(self, state: PeerState, peer: PeerLike, error: int, now: float) -> None:
        """A send to the peer was answered "unreachable": three in a row move it to the relay (wire.md 11.3)."""
        if error not in UNREACHABLE or peer.relay:
            return
        if peer.last_heard > state.last_send_error:
            state.send_errors = 0
        state.send_errors += 1
        state.last_send_error = now
        if state.send_errors >= self._core.settings.send_errors and self._core.flag_relay(peer):
            state.send_errors = 0
            self._lost(state, now)
            self._moved(state, now)

    def unanswered(self, state: PeerState, now: float) -> None:
        """The peer is about to be taken for one that no longer hears us: ask it."""
        self._failover.unanswered(state, now)

    def dial_needs_relay(self, state: PeerState, peer: PeerLike, now: float) -> bool:
        """A SYN went unanswered three times: relay from here, if there is one; whether frames go by relay now."""
        if not peer.relay and self._core.flag_relay(peer):
            self.upgrades.relayed(state, now)
            if peer.last_heard_direct > 0.0:
                self._search(state, now)
            self._moved(state, now)
        return peer.relay

    def _gone(self, state: PeerState, now: float) -> None:
        """A check has found that nothing we send directly arrives: relay, if there is one."""
        if state.peer is not None and self._core.flag_relay(state.peer):
            self._lost(state, now)
            self._moved(state, now)
            self.session_installed(state, now)

    def _lost(self, state: PeerState, now: float) -> None:
        """A direct path was given up: key exchanges start over by relay, the peer is called over and searched for."""
        self.upgrades.relayed(state, now)
        self._exchange.restart_attempts(state)
        self._failover.call_over(state, now)
        self._search(state, now)

    def _probed(self, state: PeerState, now: float) -> None:
        """A 1.18.0 peer may have left the relay because of the last probe, and answer on a way that is shut."""
        self._failover.call_over(state, now, 1)

    # ------------------------------------------------------------------------------------------ search

    def _search(self, state: PeerState, now: float) -> None:
        """A direct path has died. One of the two may be elsewhere now: ask where we are, and soon where the peer is."""
        self._doubted(now)
        if state.node in self._endpoints:
            found, at = self._endpoints[state.node]
            self._endpoints[state.node] = found, min(at, now - self._core.settings.resolve_cache_seconds)
        if now >= state.search_after:
            state.search_after = now + self._core.settings.search_spacing_seconds
            self._search_later(state, 0, now)

    def _search_later(self, state: PeerState, step: int, now: float) -> None:
        settings = self._core.settings
        if step < len(settings.search_seconds):
            gap = settings.search_seconds[step] + self._core.random.random() * settings.search_jitter_seconds
            self._core.timers.set(("search", state.node), now + gap, lambda at: self._look(state, step, at))

    def _look(self, state: PeerState, step: int, now: float) -> None:
        """Ask registry and beacon where the peer is now: who moved may not have told them before.

        Only news lead to an attempt. On a path that is open one way the probes would arrive, and so keep the other end
        from giving it up.
        """
        peer = state.peer
        if peer is None or not peer.relay:
            return
        if self.upgrades.possible(state, now):
            state.search_wanted = True
            self._resolve(state)
        self._search_later(state, step + 1, now)

    def _sighted(self, state: PeerState, peer: PeerLike, now: float) -> None:
        """The beacon hears a peer elsewhere than it was thought to be: if it is searched for, that is worth a try."""
        if ("search", state.node) in self._core.timers and self.upgrades.possible(state, now):
            state.search_attempts = self._core.settings.search_attempts - 1
            self.upgrades.attempt(state, now)

    # ----------------------------------------------------------------------------------------- upgrade

    def sweep_upgrades(self, now: float) -> None:
        """Every 15 s: try to get relayed peers in use back to a direct path (wire.md 11.4), ever more rarely."""
        for state in self._core.peers():
            if self.upgrades.due(state, now):
                self._attempt(state, now)

    def heard_directly(self, state: PeerState, now: float) -> None:
        """A frame came directly from a peer whose frames are relayed; one registered as relay-only stays so."""
        known = self._cached(state.node, now, self._core.settings.endpoint_seconds)
        if known is None or not known.relay_only:
            self.upgrades.heard_directly(state, now)

    def heard_relayed(self, state: PeerState, now: float) -> None:
        """A frame of a peer whose frames go directly came by relay."""
        self._failover.heard_relayed(state, now)

    def session_installed(self, state: PeerState, now: float) -> None:
        """A peer met by relay is tried directly before the next sweep."""
        self._failover.rekeyed(state, now)
        if state.peer is not None and state.peer.relay and state.peer.last_heard_direct == 0.0:
            later = now + self._core.settings.first_upgrade_seconds
            self._core.timers.set(("first upgrade", state.node), later, lambda at: self._attempt(state, at))

    def _attempt(self, state: PeerState, now: float) -> None:
        peer = state.peer
        if peer is None or not self.upgrades.possible(state, now):
            return
        cached = self._cached(state.node, now, self._core.settings.resolve_cache_seconds)
        if cached is not None:
            self._upgrade(state, peer, cached, now)
        else:
            state.upgrade_wanted = True
            self._resolve(state)

    def _upgrade(self, state: PeerState, peer: PeerLike, found: Resolved, now: float) -> None:
        datapath = self._core.datapath
        if found.relay_only or found.address in (None, datapath.beacon) or not peer.relay or datapath.relay_only:
            return
        if peer.address is None or now - peer.last_heard_direct > self._core.settings.resolve_cache_seconds:
            peer.address = self._neighbour(found) or found.address
        self._punch(state.node, found.address, now)
        self.upgrades.attempt(state, now)

    # ------------------------------------------------------------------------------------------- reset

    def reset(self, state: PeerState, reason: str, now: float) -> bool:
        """Start over with the peer's path: resolve, punch, key exchange; the session stays. False if done lately."""
        peer = state.peer
        if peer is None or not self._resets.allow((state.node, reason), now):
            return False
        state.upgrade.lift()
        self._endpoints.pop(state.node, None)
        self._exchange.identities.forget(state.node)
        self._exchange.lift_limits(state)
        self._exchange.identities.prefetch(state.node, now)
        state.reset_pending = True
        self._core.count("path_resets")
        self._resolve(state)
        return True


def is_loopback(host: str) -> bool:
    """Whether a literal IP address is this host."""
    return ipaddress.ip_address(host).is_loopback


def is_private_ipv4(host: str) -> bool:
    """Whether a literal address is a private or link-local IPv4 one; anything malformed is not."""
    try:
        address = ipaddress.IPv4Address(host)
    except ValueError:
        return False
    return (address.is_private or address.is_link_local) and not address.is_loopback and not address.is_unspecified


def same_24(host: str, other: str) -> bool:
    """Whether two IPv4 addresses share their first three bytes."""
    return host.rpartition(".")[0] == other.rpartition(".")[0]


def usable_beacons(discovered: Iterable[Address]) -> list[Address]:
    """The registry's beacons in the order all nodes use: sorted, without those that mean nothing outside their host."""
    usable = []
    for host, port in sorted(set(discovered)):
        address = ip_of(host)
        if address is not None and is_public(address):
            usable.append((host, port))
    return usable
