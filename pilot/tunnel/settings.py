"""Every number the tunnel control plane decides by, each with its reason, all injectable (tunnel, L4-5)."""

from __future__ import annotations

from dataclasses import dataclass

BASE_SEGMENT_BYTES = 1152
"""Stream payload every path is taken to carry, and the most stock nodes send (wire.md 9)."""

FRAME_OVERHEAD_BYTES = 70
"""Packet header (34) and PILS frame (36) around a payload (wire.md 4)."""

RELAY_OVERHEAD_BYTES = 9
"""What a relay wrap adds on the way to the beacon (wire.md 9)."""

MAX_FRAME_BYTES = 65_498
"""Largest frame that can still be wrapped for the relay (wire.md 9)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TunnelSettings:
    """Times in seconds, rates per second, caps in entries. Numbers without a comment on their source are ours."""

    # What kind of node this is
    relay_only: bool = False
    """Never show the own address: nothing is sent directly, punch commands are ignored (wire.md 11.5)."""
    strict: bool = False
    """Drop key exchanges of nodes neither trusted nor contacted by us, before any verification (wire.md 6.2)."""

    # Key exchange (wire.md 6)
    retransmit_seconds: float = 4.0
    """Gap between the key exchanges of a cycle; stock nodes ask for no less (wire.md 6.4)."""
    exchange_attempts: int = 6
    """Key exchanges of a cycle before it is given up: the first and five more (wire.md 6.4)."""
    cooldown_seconds: float = 5.0
    """No new cycle for a peer that just was given up (wire.md 6.4)."""
    duplicate_seconds: float = 0.25
    """A PILA that repeats the key of a session this young is a copy of the one that made it (wire.md 6.2)."""
    same_key_silence_seconds: float = 6.0
    """A PILA that repeats a held key is answered only when the peer was silent for this long (wire.md 6.2)."""
    same_key_spacing_seconds: float = 1.0
    """At most one such answer per peer in this time (wire.md 6.2)."""
    exchange_rate: float = 5.0
    """PILA and PILK handled per source IP, and per sender in a relay header (wire.md 6.2)."""
    exchange_burst: int = 5
    """Size of the bucket that fills at `exchange_rate` (wire.md 6.2)."""
    total_exchange_rate: float = 500.0
    """PILA and PILK handled over all sources: bounds the signatures and ECDH a flood can make us compute."""
    bucket_cap: int = 4096
    """Sources tracked by each rate limit; a stranger beyond it is refused (wire.md 6.2)."""
    bucket_idle_seconds: float = 10.0
    """A source unheard for this long gives its bucket up when the table is full (wire.md 6.2)."""
    max_peers: int = 16_384
    """Peers that verified strangers may add by contacting us (wire.md 14)."""
    max_strangers: int = 1024
    """Key pairs kept for senders that are no peers: the oldest goes, and its late answer makes a new one."""

    # Answers to frames without session (wire.md 7.4)
    unknown_spacing_seconds: float = 3.0
    """At most one answer per claimed sender in this time (wire.md 7.4)."""
    unknown_rate: float = 2.0
    """Such answers per source IP: the frame is unauthenticated and the answer five times its size (wire.md 19)."""
    unknown_relay_rate: float = 16.0
    """Such answers through the beacon over all claimed relay senders, since that claim costs nothing."""

    # Identities (wire.md 6.2, 6.5)
    identity_cap: int = 16_384
    """Registered keys cached, least recently used forgotten."""
    waiting_cap: int = 256
    """PILAs that wait for a registry answer, over all peers."""
    waiting_per_node: int = 4
    """PILAs of one claimed node that wait: its direct and relayed copies, and two forged ones."""
    lookup_cap: int = 256
    """Registry lookups under way."""
    lookup_seconds: float = 10.0
    """A lookup unanswered for this long is taken for failed, and its PILAs are dropped."""
    lookup_failed_seconds: float = 3.0
    """No new lookup of a node whose lookup just failed, or whose key was just confirmed (wire.md 6.2)."""

    # Sessions
    keep_previous_seconds: float = 15.0
    """A replaced session still receives for this long, and may win its place back (sessions.py)."""
    keep_unproved_seconds: float = 30.0
    """A session that lost against its predecessor still receives for this long: seven retransmits of its owner."""
    in_flight_seconds: float = 1.0
    """Frames under the replaced key within this time were merely under way; later ones show that it is in use."""
    proof_ping_seconds: tuple[float, ...] = (0.0, 1.0, 3.0, 7.0)
    """When a session that replaced another is pinged, after its installation, to get a frame under it back."""
    superseded_seconds: float = 3600.0
    """How long an X25519 key the peer has replaced is refused (a replayed PILA)."""
    failed_key_seconds: float = 120.0
    """How long a key is refused that never proved itself while its predecessor was in use."""
    refused_keys_per_node: int = 16
    """Refused keys remembered per peer, the ones that end first forgotten."""
    refused_nodes: int = 4096
    """Peers with refused keys, the oldest forgotten."""

    # Drop gates (wire.md 7.3, 19)
    gate_rejects: int = 5
    """Rejects in a row before the key is doubted (wire.md 7.3)."""
    gate_replays: int = 16
    """The same for replays, which a network that duplicates packets makes as well."""
    gate_run_seconds: float = 1.0
    """The rejects must spread over this time: one burst proves nothing."""
    gate_quiet_seconds: float = 3.0
    """A session that decrypted something this lately is not doubted (wire.md 19)."""
    gate_gap_seconds: float = 30.0
    """Rejects further apart than this belong to different runs."""
    rekey_spacing_seconds: float = 3.0
    """Time between rekeys of a peer (wire.md 6.1), doubled with each that did not help."""
    rekey_spacing_max_seconds: float = 300.0
    """Where that doubling ends."""

    # Paths (wire.md 11)
    resolve_cache_seconds: float = 60.0
    """A resolve answer this young is used again (wire.md 11.1)."""
    endpoint_seconds: float = 3600.0
    """A last known endpoint is used for this long when the registry is unreachable (wire.md 11.1)."""
    endpoint_cap: int = 4096
    """Endpoints remembered, the oldest forgotten."""
    contact_cap: int = 4096
    """Peers whose resolve answer is waited for."""
    send_errors: int = 3
    """Unreachable errors in a row that move a peer to the relay (wire.md 11.3)."""
    check_pings: int = 6
    """Direct pings, `upgrade_spacing_seconds` apart, to a peer that is direct here and has sent something by relay."""
    check_wait_seconds: float = 1.0
    """For how long the last of them may remain unanswered before the path is given up."""
    check_spacing_seconds: float = 5.0
    """A relayed frame starts a check at most this often; below the 8 s after which either end gives a path up."""
    address_moves: int = 4
    """So often may a direct peer change its address in `address_moves_seconds`; then it is relayed. Whoever can forge
    source addresses has what we send go elsewhere for 2 s each time."""
    address_moves_seconds: float = 60.0
    """Period in which these are counted."""
    ask_spacing_seconds: float = 2.0
    """Time between two series of pings that, after 4 s of direct silence, let a quiet peer show that it is there."""
    call_over_seconds: tuple[float, ...] = (1.0, 8.3, 8.8)
    """A peer unheard this long after our last direct frame is called over to the relay: at once if it hears as little
    as we do, else after the 8 s for which a 1.18.0 peer must have heard nothing directly."""
    call_over_pings: int = 16
    """Pings of such a call (failover.py)."""
    upgrade_seconds: float = 15.0
    """Time between attempts to get a relayed peer back to a direct path (wire.md 11.4), doubled with each in vain."""
    upgrade_max_seconds: float = 300.0
    """Where that doubling ends: every third may cost a 1.18.0 peer some ten seconds (upgrades.py)."""
    first_upgrade_seconds: float = 1.0
    """The first of them to a peer met by relay: both ends have a session by then, and know where to punch."""
    search_seconds: tuple[float, ...] = (1.0, 3.0, 5.0, 6.0, 7.0, 8.0)
    """Gaps between the looks for a peer whose path died: over the 30 s in which a beacon keeps an old address."""
    search_jitter_seconds: float = 0.5
    """A random part of this is added: both ends search, and beacons want 0.1 s between two punch requests."""
    search_spacing_seconds: float = 60.0
    """Time between such searches for one peer."""
    search_attempts: int = 3
    """Attempts in a search after news of where the peer is: the other end may not have been ready for the first."""
    upgrade_probes: int = 5
    """Direct probes to a peer that is heard directly; three of them move a 1.18.0 peer (wire.md 11.4)."""
    upgrade_punch_seconds: float = 0.4
    """When the only probe to another one follows the punch request: the peer's NAT has to be open by then."""
    upgrade_spacing_seconds: float = 0.2
    """Time between those probes (wire.md 11.4)."""
    upgrade_fresh_seconds: float = 5.0
    """Both ways must have been seen to be open within this time, which round trip and lost probes may take."""
    upgrade_reply_seconds: float = 5.0
    """A relayed peer that is heard directly is probed at most this often; below the 8 s after which an end that is
    direct already and hears nothing directly gives up."""
    upgrade_lasting_seconds: float = 60.0
    """A direct path that died sooner after it was chosen counts as an attempt in vain."""
    introduction_seconds: float = 2.0
    """A punch command within this time answers the own punch request, unless the peer was heard directly since."""
    introduction_cap: int = 256
    """Punch requests whose answer is waited for, the oldest forgotten."""
    reset_spacing_seconds: float = 30.0
    """At most one path reset per peer and reason in this time (wire.md 6.4)."""

    # Liveness (wire.md 12)
    idle_seconds: float = 120.0
    """A peer without stream and without application packet for this long is idle (wire.md 12.1)."""
    keepalive_seconds: float = 25.0
    """A peer in use to which nothing was sent for this long gets a keepalive (wire.md 12.2)."""
    keepalive_sweep_seconds: float = 5.0
    """How often that is looked at (wire.md 12.2)."""
    watchdog_sweep_seconds: float = 10.0
    """How often silent peers are looked for, and the time between their probes (wire.md 12.3)."""
    watchdog_silence_seconds: float = 55.0
    """Silence after which a peer in use is probed (wire.md 12.3)."""
    watchdog_probes: int = 3
    """Unanswered probes before the path is reset (wire.md 12.3)."""
    watchdog_cooldown_seconds: float = 120.0
    """No further watchdog action for a peer whose path was reset (wire.md 12.3)."""
    forget_seconds: float = 300.0
    """A peer without stream and without frame either way for this long is forgotten (wire.md 12.7)."""
    forget_sweep_seconds: float = 15.0
    """How often that is looked at (wire.md 12.7)."""

    # Beacon (wire.md 12.4, 12.5)
    discover_seconds: float = 25.0
    """Time between Discovers. 1.18.0 waits 60 s (wire.md 12.4), but a router may forget a quiet mapping after 30 s, as
    Linux does, and then nothing that is relayed comes in."""
    discover_again_seconds: float = 1.6
    """The second Discover after a registration: the first may have been lost (wire.md 12.4)."""
    discover_jitter_seconds: float = 5.0
    """The first one comes earlier by a random part of this, so that a fleet does not march in step (wire.md 12.4)."""
    reply_seconds: float = 2.0
    """A DiscoverReply later than this after the Discover is not believed (wire.md 12.5)."""
    confirm_seconds: float = 30.0
    """At most one confirming Discover in this time (wire.md 12.5)."""
    notify_seconds: float = 1.0
    """Mailbox polls on the beacon's word are at least this far apart (wire.md 10)."""
    punch_rate: float = 20.0
    """Punch commands obeyed per second: the beacon names addresses, and we send there."""
    recovery_spacing_seconds: float = 10.0
    """Least time between two recoveries from a changed own address (wire.md 12.5)."""
    recovery_spacing_max_seconds: float = 120.0
    """Where the doubling of that time ends for a changed local address (wire.md 12.5)."""
    observed_spacing_seconds: float = 60.0
    """Least time between two recoveries from a changed public address (wire.md 12.5)."""
    observed_spacing_max_seconds: float = 3600.0
    """Where the doubling of that time ends (wire.md 12.5)."""
    recovery_ping_seconds: tuple[float, ...] = (1.0, 3.0)
    """When peers not heard since are pinged again from the new address (wire.md 12.5)."""
    recovery_discover_seconds: tuple[float, ...] = (6.0, 12.0, 18.0, 24.0, 31.0)
    """Discovers after a recovery: beacons take one address update per 30 s, and when is not known (wire.md 12.5)."""

    # Path MTU
    probe_mtu: bool = True
    """Whether larger segments than 1152 bytes are tried at all."""
    receive_buffer_bytes: int = 212_992
    """Receive buffer of the socket as the port reports it; a segment takes at most an eighth of it."""
    mtu_timeout_seconds: float = 1.0
    """An unanswered probe is repeated after this time; a late answer still counts."""
    mtu_tries: int = 3
    """Probes of one size before the path is taken not to carry it."""
    mtu_quiet_seconds: float = 4.0
    """Only a peer heard this lately is probed: unanswered probes of a quiet one would count as a blackhole (8 s)."""
    mtu_quiet_retry_seconds: float = 15.0
    """When a quiet peer is looked at again."""
    mtu_retry_seconds: float = 60.0
    """Time until a failed size is tried again, doubled with each failure."""
    mtu_retry_max_seconds: float = 3600.0
    """Where that doubling ends."""

    # Everything
    timers_per_call: int = 256
    """Timers run per call, so that a crowd of them does not keep packets waiting."""
    warning_seconds: float = 10.0
    """One warning of a kind in this time; a stranger can cause them."""
    ping_cap: int = 64
    """Pings of the node (`Tunnel.probe_path`) under way."""
