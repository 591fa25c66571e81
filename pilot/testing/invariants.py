"""What must hold in every simulated run: nonces, table caps, memory, and nothing left of a stopped node (testing).

What streams carried is checked by who wrote and read it (`pilot.testing.traffic`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from pilot._fast.mux import MuxSettings
from pilot.node.tags import MAX_LOOKUPS, MAX_NODES

if TYPE_CHECKING:
    from pilot.node import Node
    from pilot.testing.network import Address, Network

__all__ = ["InvariantError", "Watch", "tables"]

RELAY: Final = 0x05
RELAY_HEADER_BYTES: Final = 9
NONCE = slice(8, 20)
MAX_VIOLATIONS: Final = 20
STOCK_WINDOW_BYTES: Final = 512 * 4096
"""A receiver never holds to less than this: older builds may send so much (DESIGN section 4)."""
SEGMENT_SLACK: Final = 2 * 65_536
"""A limit in bytes is looked at before a segment is taken, which may be this long at each end."""
SMALLEST_RING_BYTES: Final = 4096
"""Every stream may have so much in each direction, whatever the budget says."""
TASK_CAP: Final = 1024
WAITING_CAP: Final = 4096


class InvariantError(AssertionError):
    """Something that must hold in every run did not."""


@dataclass(slots=True)
class _Life:
    """One run of a node, as long as it is watched."""

    name: str
    runtime: Any
    cores: dict[int, Any] = field(default_factory=dict)


class Watch:
    """Collects violations; taps the network for nonces and samples every running node's tables and buffers."""

    def __init__(self, network: Network) -> None:
        self.violations: list[str] = []
        self.frames = 0
        self.samples = 0
        self._network = network
        self._nonces: dict[bytes, bytes] = {}
        self._lives: dict[int, _Life] = {}
        network.taps.append(self._frame)

    def violated(self, what: str) -> None:
        """Notes that something did not hold."""
        if len(self.violations) < MAX_VIOLATIONS:
            self.violations.append(f"[{self._network.loop.time():.3f}] {what}")

    # ---- nonces ----------------------------------------------------------------------------------------

    def _frame(self, now: float, source: Address, target: Address, data: bytes) -> None:
        """Both directions of a pair and all its sessions may share one key (wire.md 5), so no nonce may come twice.

        The beacon passes frames on under another header, and a frame may be sent twice as it is; both are the same
        bytes. That two prefixes of 32 random bits meet by chance is not to be expected in a run.
        """
        at = RELAY_HEADER_BYTES if data[:1] == b"\x05" else 0
        if data[at : at + 4] != b"PILS":
            return
        self.frames += 1
        frame = data[at:] if at else data
        known = self._nonces.setdefault(frame[NONCE], frame[-16:])
        if known != frame[-16:]:
            self.violated(f"nonce {frame[NONCE].hex()} was used twice by {source} (node {frame[4:8].hex()})")

    # ---- nodes -----------------------------------------------------------------------------------------

    def started(self, name: str, node: Node) -> None:
        """A node has started."""
        self._lives[id(node)] = _Life(name, node._runtime)

    def ending(self, node: Node) -> None:
        """A node is about to stop: its streams are remembered."""
        self._remember(self._lives[id(node)])

    def ended(self, name: str, node: Node) -> None:
        """A node has stopped: nothing may be left of it."""
        life = self._lives.pop(id(node))
        runtime = life.runtime
        mux = runtime.datapath.mux
        if mux.live or mux.all_streams():
            self.violated(f"{name} has stopped with {mux.live} live streams, {len(mux.all_streams())} in its table")
        for core in life.cores.values():
            if core.state != 5:
                self.violated(f"{name} has stopped, and its stream {core!r} is in state {core.state!r}")
        if runtime._tasks._running:
            self.violated(f"{name} has stopped with {len(runtime._tasks._running)} background tasks")
        if runtime.datapath.peers():
            self.violated(f"{name} has stopped with {len(runtime.datapath.peers())} peers")

    def sample(self) -> None:
        """Looks at tables and buffers of every running node."""
        self.samples += 1
        for life in self._lives.values():
            for what, size, cap in tables(life.runtime):
                if size > cap:
                    self.violated(f"{life.name}: {what} holds {size}, its cap is {cap}")
            self._remember(life)
            self._memory(life)

    def _remember(self, life: _Life) -> None:
        for core in life.runtime.datapath.mux.all_streams():
            life.cores[id(core)] = core

    def _memory(self, life: _Life) -> None:
        """Each stream within its windows, out-of-order bytes included; all rings within the node's budgets."""
        config = life.runtime.config
        receive_cap = max(config.stream_bytes, STOCK_WINDOW_BYTES) + SEGMENT_SLACK
        mux = life.runtime.datapath.mux
        for core in mux.all_streams():
            unread = core.readable + core.held
            if unread > receive_cap:
                self.violated(f"{life.name}: {core!r} holds {unread} unread bytes, its cap is {receive_cap}")
            if core.unacknowledged > config.stream_bytes + SEGMENT_SLACK:
                self.violated(f"{life.name}: {core!r} holds {core.unacknowledged} bytes to send")
        cap = config.memory_bytes + len(life.cores) * SMALLEST_RING_BYTES
        for what, used in (("receive", mux.budget.used), ("send", mux.send_budget.used)):
            if used > cap:
                self.violated(f"{life.name}: {what} buffers take {used} bytes, the budget is {config.memory_bytes}")


def tables(runtime: Any) -> Iterator[tuple[str, int, int]]:
    """Every table of a node that others can fill: its name, how much is in it, its cap."""
    tunnel, datapath = runtime.tunnel, runtime.datapath
    settings, core, exchange = tunnel.settings, tunnel._core, tunnel._exchange
    identities = exchange.identities
    yield "tunnel peers", core.peer_count(), settings.max_peers
    yield "tunnel strangers", len(core._strangers), settings.max_strangers
    yield "tunnel timers", len(core.timers), 16 + 8 * (settings.max_peers + settings.max_strangers)
    yield "exchange sources", len(exchange._sources), settings.bucket_cap
    yield "exchange relay senders", len(exchange._relayed), settings.bucket_cap
    yield "unknown senders", len(exchange._unknown), settings.bucket_cap
    yield "unknown sources", len(exchange._unknown_sources), settings.bucket_cap
    yield "cached keys", len(identities._keys), settings.identity_cap
    yield "key lookups", len(identities._looking), settings.lookup_cap
    yield "waiting key exchanges", identities._waiting_count, settings.waiting_cap
    yield "refused keys", len(exchange.sessions.refused), settings.refused_nodes * settings.refused_keys_per_node
    yield "endpoints", len(tunnel._paths._endpoints), settings.endpoint_cap
    yield "path resets", len(tunnel._paths._resets), settings.max_peers
    yield "pings", len(tunnel._pings), settings.ping_cap
    yield "datapath peers", len(datapath.peers()), 65_536
    yield "streams", len(datapath.mux.all_streams()), MuxSettings().max_streams
    yield "background tasks", len(runtime._tasks._running), TASK_CAP
    yield "tags of nodes", len(runtime.tags._known), MAX_NODES
    yield "questions about tags", len(runtime.tags._asked), MAX_LOOKUPS
    yield "waiting dials", len(runtime.contacts._waiting), WAITING_CAP
    for peer in datapath.peers():
        yield f"packets waiting for node {peer.node}", peer.pending_packets, 1024
