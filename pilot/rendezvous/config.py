"""Settings of the rendezvous server and every limit a stranger meets (rendezvous room, L8 server side)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

DEFAULT_REGISTRY_PORT: Final = 9000
DEFAULT_BEACON_PORT: Final = 9001

# Tables a stranger can grow. Each refuses (or forgets the oldest, where its text says so) at the cap.
MAX_IDENTITIES: Final = 4_000_000
"""Node ids ever given out, live or not: an id is remembered for its key for ever."""
MAX_OWNER_CHARS: Final = 320
MAX_VERSION_CHARS: Final = 64
MAX_LAN_ADDRS: Final = 16
MAX_TRUST_PER_NODE: Final = 10_000
"""Trust pairs that one node may have reported."""
MAX_INBOX: Final = 100
"""Handshake requests, answers and network invites waiting for one node."""
MAX_SEEN_REQUESTS: Final = 1_000
"""Polled but unanswered handshake requests kept for one node; the oldest is forgotten."""
MAX_MAILBOX_ROWS: Final = 1_000_000
MAX_NETWORKS: Final = 10_000
MAX_NETWORK_MEMBERS: Final = 100_000
MAX_NETWORKS_PER_NODE: Final = 1_024
MAX_BEACONS: Final = 1_024
AUDIT_ENTRIES: Final = 1_000
MAX_PENDING_CHANGES: Final = 100_000
"""Changes that wait for a failing store before every request is refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of the registry port; rates per second, times in seconds, `math.inf` for none.

    The defaults are those of the reference server (rendezvous.md 2.5) where it names one. Sources inside `exempt`
    (CIDR texts) skip all the rates. Nodes behind one address share its budget: tests use `Limits.relaxed()`.
    """

    max_connections: int = 1_100_000
    max_connections_per_ip: int = 8_192
    accept_rate: float = 1_000.0
    accept_pacing: float = 60.0
    idle_timeout: float = 300.0
    frame_timeout: float = 30.0
    write_timeout: float = 30.0
    max_request_bytes: int = 1024 * 1024
    max_unread_bytes: int = 256 * 1024 * 1024
    grace: float = 5.0
    delay_above: float = 100.0
    close_above: float = 500.0
    total_rate: float = 1_000.0
    ip_rate: float = 100.0
    ip_burst: float = 500.0
    ip_table: int = 50_000
    new_node_rate: float = 10.0
    new_node_burst: float = 600.0
    exempt: tuple[str, ...] = ()
    max_nodes: int = 1_000_000

    @classmethod
    def relaxed(cls) -> Limits:
        """No rate limits: for tests and for a whole fleet behind one address."""
        return cls(
            max_connections_per_ip=1_100_000,
            accept_rate=math.inf,
            delay_above=math.inf,
            close_above=math.inf,
            total_rate=math.inf,
            ip_rate=math.inf,
            new_node_rate=math.inf,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BeaconLimits:
    """Limits of the beacon port (rendezvous.md 7); rates per second, times in seconds, `math.inf` for none.

    `punch_exempt` names source IPs (or ``*``) that skip the punch rates; `relay_rate` and `discover_rate` count
    datagrams per source endpoint in windows of a second.
    """

    capacity: int = 500_000
    lifetime: float = 600.0
    sweep_interval: float = 60.0
    punch_rate: float = 10.0
    punch_rate_per_ip: float = 1.0
    punch_exempt: tuple[str, ...] = ()
    relay_rate: float = 4_000.0
    discover_rate: float = 20.0
    source_table: int = 100_000

    @classmethod
    def relaxed(cls) -> BeaconLimits:
        """No rate limits: for tests and for a whole fleet behind one address."""
        return cls(punch_exempt=("*",), relay_rate=math.inf, discover_rate=math.inf)


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsConfig:
    """TLS 1.3 on the registry port. Without files a self-signed certificate is made, for clients that pin it.

    With a store on disk the generated pair is kept beside it (``<store>.crt`` and ``<store>.key``, 0600), so that the
    fingerprint survives a restart; with an in-memory store it lives as long as the server.
    """

    cert_file: str | None = None
    key_file: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RendezvousConfig:
    """Everything `Rendezvous` needs to know; port 0 means any free one.

    `advertise_beacon` (``host:port``) is what `beacon_list` and lookups of relay-only nodes show; without it the list
    is empty, and the host is that on which the asking node reached the registry. `clock` is monotonic, `wall_clock`
    unix time. Two known switches are set the safe way: `require_signed_registration` (1.18.0 always signs), and
    `owner_rebind`, with which a new key takes over the id of a reaped node that gave the same owner, an e-mail address
    nobody checked (rendezvous.md 4.3 rule 4). Without it the new key gets a new id.
    """

    host: str = "127.0.0.1"
    registry_port: int = DEFAULT_REGISTRY_PORT
    beacon_port: int = DEFAULT_BEACON_PORT
    store: str = ":memory:"
    admin_token: str | None = field(default=None, repr=False)
    tls: TlsConfig | None = None
    advertise_beacon: str | None = None
    limits: Limits = field(default_factory=Limits)
    beacon_limits: BeaconLimits = field(default_factory=BeaconLimits)
    stale_after: float = 1_800.0
    reap_interval: float = 10.0
    require_signed_registration: bool = True
    owner_rebind: bool = False
    clock: Callable[[], float] = time.monotonic
    wall_clock: Callable[[], float] = time.time
