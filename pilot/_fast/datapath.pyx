"""The datapath: datagrams in, frames opened in place, packets to their streams, and
everything out again in bursts (_fast, L2-7).

The only object that sees every packet. What needs a decision rather than speed (key exchange, paths, liveness) is
handed to the control plane, `pilot.tunnel`. Source: wire.md sections 3, 7-11; DESIGN section 3.
"""
import hashlib
import logging
import random as random_module

from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.ref cimport PyObject
from libc.math cimport INFINITY
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

from pilot._fast._endian cimport load32, load64, store32
from pilot._fast.egress cimport WAY_CURRENT, WAY_DIRECT, Egress
from pilot._fast.mux cimport Bucket, Mux
from pilot._fast.netaddr cimport netaddr, netaddr_equal, netaddr_from_python, netaddr_known, netaddr_to_python
from pilot._fast.packet cimport (
    FLAG_ACK,
    PACKET_OK,
    PROTOCOL_CONTROL,
    PROTOCOL_DATAGRAM,
    PROTOCOL_STREAM,
    decode_packet,
    packet,
)
from pilot._fast.peer cimport MAX_STASHED_FRAMES, Peer
from pilot._fast.port cimport DatagramPort, FrameSink
from pilot._fast.seal cimport (
    ACCEPT,
    AUTH_FAILURE,
    FRAME_HEADER,
    MALFORMED,
    OUTSIDE_WINDOW,
    REPLAY,
    SEAL_OVERHEAD,
    TOO_MANY_PREFIXES,
    Session,
    verdict,
)
from pilot._fast.stream cimport StreamCore
from pilot._fast.table cimport Table
from pilot._fast.timers cimport TimerEntry, TimerHeap

from pilot._fast.errors import PathError
from pilot._fast.mux import MuxSettings
from pilot._fast.seal import Verdict

log = logging.getLogger("pilot.datapath")

cdef double PENDING_SECONDS = 120.0
cdef double STASH_SECONDS = 1.0
cdef double REJECT_REPORT_SPACING = 0.05
cdef double SWEEP = 15.0
cdef double DIRECT_SILENCE = 8.0

cdef enum:
    MIN_FRAME = 4
    MAX_PEERS = 65536
    UNKNOWN_SESSIONS_PER_SECOND = 64
    MAX_RELAY_FLAGGED = 4096
    REKEY_BYTES_LOG2 = 38               # half of 2^39: RFC 9001's bound holds for both directions together


class _Ignore:
    """The control plane of a closed datapath: takes every call and does nothing."""

    def __getattr__(self, name: str) -> object:
        return self

    def __call__(self, *args: object) -> None:
        return None


cdef object IGNORE = _Ignore()


cdef class Sweeper(TimerEntry):
    """The datapath's own entry in the node's heap."""


cdef class ControlTimer(TimerEntry):
    """The control plane's entry in the node's heap."""


cdef class Datapath(FrameSink):
    """Joins a datagram port, the peers and their sessions, and the streams of one node. Sans-IO: the port does the I/O.

    `control` is the control plane (CONTRACT: `pilot.tunnel.Tunnel`); `scheduler` has `arm(deadline)` and `soon()`.
    After `soon()` the caller runs `end_of_iteration()` once per loop iteration; when `next_deadline()` has come,
    `handle_timer(now)`.
    """
    cdef readonly DatagramPort port
    cdef readonly Mux mux
    cdef Egress egress
    cdef TimerHeap timers
    cdef object control
    cdef object clock
    cdef Table peers_by_node
    cdef Peer last_peer
    cdef Peer self_peer
    cdef Sweeper sweeper
    cdef ControlTimer control_timer
    cdef Bucket unknown_bucket
    cdef readonly uint64_t received_frames
    cdef readonly uint64_t rejected_frames
    cdef readonly uint64_t ignored

    def __init__(self, DatagramPort port not None, control: object, *, clock: object, scheduler: object = None,
                 settings: object = None, random: object = None) -> None:
        now = clock()
        self.port = port
        self.control = control
        self.clock = clock
        self.timers = TimerHeap()
        self.egress = Egress(port, control)
        self.mux = Mux(self.egress, self.timers, clock, scheduler, settings or MuxSettings(),
                       random or random_module.SystemRandom(), now)
        self.peers_by_node = Table()
        self.sweeper = Sweeper()
        self.control_timer = ControlTimer()
        self.unknown_bucket = Bucket(UNKNOWN_SESSIONS_PER_SECOND, UNKNOWN_SESSIONS_PER_SECOND, now)
        self.timers.schedule(self.sweeper, now + SWEEP)
        port.attach(self)

    # ---- datagrams in --------------------------------------------------------------------------------------------

    cdef void on_datagram(self, uint8_t *data, size_t length, const netaddr *source, double now) noexcept:
        self.mux.batch_begin()
        if length == 0:
            return
        if data[0] < 0x10:
            self.on_beacon_message(data, length, source, now)
        elif length >= MIN_FRAME:
            self.on_frame(data, length, source, False, 0, now)

    cdef void on_batch_end(self, double now) noexcept:
        self.mux.batch_end(now)

    cdef void on_beacon_message(self, uint8_t *data, size_t length, const netaddr *source, double now) noexcept:
        """RelayDeliver is unwrapped here; everything else is the control plane's. The
        relay header's sender is not trusted."""
        if data[0] == 0x06:
            if length < 5 + MIN_FRAME or not netaddr_equal(source, &self.egress.beacon) or data[5] < 0x10:
                self.ignored += 1
                return
            self.on_frame(data + 5, length - 5, source, True, load32(data + 1), now)
            return
        try:
            self.control.beacon_message_untrusted(
                PyBytes_FromStringAndSize(<char *> data, length), netaddr_to_python(source), now)
        except Exception:
            log.exception("a beacon message failed")

    cdef void on_frame(self, uint8_t *frame, size_t length, const netaddr *source, bint relayed, uint32_t relayed_by,
                       double now) noexcept:
        if memcmp(frame, b"PILS", 4) == 0:
            self.on_sealed(frame, length, source, relayed, relayed_by, now)
        elif memcmp(frame, b"PILA", 4) == 0 or memcmp(frame, b"PILK", 4) == 0:
            try:
                self.control.key_exchange_untrusted(
                    PyBytes_FromStringAndSize(<char *> frame, length if length < 512 else 512),
                    None if relayed else netaddr_to_python(source), relayed_by if relayed else None, now)
            except Exception:
                log.exception("a key exchange frame failed")
        else:
            self.ignored += 1           # PILP says nothing; PILT is never taken; the rest is noise

    cdef Peer find_peer(self, uint32_t node):
        cdef PyObject *found
        if self.last_peer is not None and self.last_peer.node == node:
            return self.last_peer
        found = self.peers_by_node.get(0, node)
        if found == NULL:
            return None
        self.last_peer = <Peer> found
        return self.last_peer

    cdef void on_sealed(self, uint8_t *frame, size_t length, const netaddr *source, bint relayed, uint32_t relayed_by,
                        double now) noexcept:
        cdef Peer peer
        cdef verdict result
        cdef uint64_t counter
        if length < SEAL_OVERHEAD:
            self.ignored += 1
            return
        counter = load64(frame + 12)
        peer = self.find_peer(load32(frame + 4))
        if peer is None or (peer.session is None and peer.previous is None):
            self.on_unknown(load32(frame + 4), peer, frame, length, source, relayed, relayed_by, now)
            return
        result = self.open_with_sessions(peer, frame, length, now)
        if result != ACCEPT:
            self.on_rejected(peer, result, counter, now)
            return
        peer.auth_failures = peer.replays = peer.outside = 0
        self.received_frames += 1
        self.on_opened(peer, frame + FRAME_HEADER, length - SEAL_OVERHEAD, source, relayed, now)

    cdef verdict open_with_sessions(self, Peer peer, uint8_t *frame, size_t length, double now) noexcept:
        """Try the current session, then the one it replaced. A failed attempt
        overwrites the frame, so it works on a copy."""
        cdef verdict result = MALFORMED
        cdef bytes copy = None
        if peer.previous is not None and now > peer.previous_until:
            peer.previous.wipe()
            peer.previous = None
        if peer.previous is not None and peer.session is not None:
            copy = PyBytes_FromStringAndSize(<char *> frame, length)
        if peer.session is not None:
            result = peer.session.open_frame(frame, length)
            if result == ACCEPT and peer.session.bytes_under_key >> REKEY_BYTES_LOG2:
                self.rekey_due(peer, now)
        if result == ACCEPT or peer.previous is None or result == REPLAY or result == OUTSIDE_WINDOW:
            return result
        if copy is not None:
            memcpy(frame, <const uint8_t *> copy, length)
        return peer.previous.open_frame(frame, length)

    cdef void rekey_due(self, Peer peer, double now) noexcept:
        try:
            self.control.rekey_due(peer, now)
        except Exception:
            log.exception("rekey_due failed for node %d", peer.node)

    cdef void on_unknown(self, uint32_t node, Peer peer, uint8_t *frame, size_t length, const netaddr *source,
                         bint relayed, uint32_t relayed_by, double now) noexcept:
        """No session: keep a few frames of a known peer for a second, and let the control plane ask for a key."""
        if peer is not None:
            if len(peer.stash) >= MAX_STASHED_FRAMES:
                peer.stash.pop(0)
            peer.stash.append((PyBytes_FromStringAndSize(<char *> frame, length),
                               netaddr_to_python(source), relayed, now))
        if not self.unknown_bucket.take(now):
            return
        try:
            self.control.unknown_session(
                node, None if relayed else netaddr_to_python(source), relayed_by if relayed else None, now)
        except Exception:
            log.exception("unknown_session failed for node %d", node)

    cdef void on_rejected(self, Peer peer, verdict result, uint64_t counter, double now) noexcept:
        self.rejected_frames += 1
        if result == AUTH_FAILURE:
            peer.auth_failures += 1
        elif result == REPLAY:
            peer.replays += 1
        elif result == OUTSIDE_WINDOW:
            peer.outside += 1
        elif result == TOO_MANY_PREFIXES:
            self.rekey_due(peer, now)
        if now - peer.reject_reported < REJECT_REPORT_SPACING:
            return
        peer.reject_reported = now
        try:
            if result == REPLAY:
                self.control.publish("security.nonce_replay", {"peer_node_id": peer.node, "counter": counter})
            self.control.rejected(peer, Verdict(result), now)
        except Exception:
            log.exception("rejected failed for node %d", peer.node)

    # ---- packets -------------------------------------------------------------------------------------------------

    cdef void on_opened(self, Peer peer, uint8_t *inner, size_t length, const netaddr *source, bint relayed,
                        double now) noexcept:
        """wire.md 7.5, in its order."""
        cdef packet p
        if decode_packet(inner, length, &p) != PACKET_OK:
            self.ignored += 1
            return
        if p.src_node != peer.node and not (
                p.src_node == 0 and p.protocol == PROTOCOL_CONTROL and p.dst_port == 0 and p.length == 0):
            self.spoofed(peer, p.src_node)
            return
        peer.last_heard = now
        peer.misses = 0
        if not relayed:
            self.heard_direct(peer, source, now)
        elif not peer.relayed and not netaddr_known(&peer.direct):
            self.egress.set_relay(peer, "relayed", now)
        elif not peer.relayed and peer.last_heard_direct > 0.0 and now - peer.last_heard_direct > DIRECT_SILENCE:
            self.egress.set_relay(peer, "blackhole", now)     # it has given the direct path up, and so do we
        if peer.watched or (peer.relayed != relayed and not (relayed and self.egress.relay_only)):
            try:
                self.control.heard(peer, not relayed, now)
            except Exception:
                log.exception("heard failed for node %d", peer.node)
        self.dispatch(&p, peer, relayed, now)

    cdef void heard_direct(self, Peer peer, const netaddr *source, double now) noexcept:
        """An authenticated frame came straight from the peer: that is its address, and this way the path works.

        The other way is not proven by it: whether to leave the relay is for the control plane to find out.
        """
        cdef bint moved = not netaddr_equal(&peer.direct, source)
        peer.last_heard_direct = now
        if netaddr_equal(source, &self.egress.beacon):
            return
        if moved:
            peer.direct = source[0]
        if moved and not peer.relayed:
            peer.path_replaced()
            self.egress.moved.append(peer)
            self.path_changed(peer, "address", now)

    cdef void path_changed(self, Peer peer, str reason, double now) noexcept:
        try:
            self.control.path_changed(peer, reason, now)
        except Exception:
            log.exception("path_changed failed for node %d", peer.node)

    cdef void spoofed(self, Peer peer, uint32_t claimed) noexcept:
        self.ignored += 1
        if self.mux.wanted is not None and not self.mux.wants("security.src_spoofed"):
            return
        try:
            self.control.publish("security.src_spoofed", {
                "authenticated_peer_hash": redact(peer.node), "claimed_src_hash": redact(claimed)})
        except Exception:
            log.exception("publish failed")

    cdef void dispatch(self, packet *p, Peer peer, bint relayed, double now) noexcept:
        if p.protocol == PROTOCOL_STREAM:
            self.mux.on_stream_packet(p, peer, now)
        elif p.protocol == PROTOCOL_DATAGRAM:
            self.mux.on_datagram_packet(p, peer, now)
        elif p.protocol == PROTOCOL_CONTROL and p.length:
            if p.flags & FLAG_ACK:
                if p.src_port == 0:
                    try:
                        self.control.pong(
                            peer, p.seq, p.dst_port, PyBytes_FromStringAndSize(<char *> p.payload, p.length), now)
                    except Exception:
                        log.exception("pong failed for node %d", peer.node)
            elif p.dst_port == 0:
                self.answer_ping(p, peer, relayed, now)

    cdef void answer_ping(self, packet *p, Peer peer, bint relayed, double now) noexcept:
        """Ping -> pong with the same payload (wire.md 7.6). A private node answers nobody it does not trust.

        A direct ping of a peer that is relayed here asks about the direct path: it is answered that way as well, and by
        relay unless it is longer than what is known to pass there.
        """
        cdef bint asks_direct = peer.relayed and not relayed
        try:
            if not peer.is_self and self.mux.gate is not None and not self.mux.gate.admit_ping(peer.node):
                return
        except Exception:
            log.exception("the trust gate failed")
            return
        if asks_direct:
            self.send_pong(p, peer, WAY_DIRECT, now)
        if not asks_direct or p.length <= peer.segment:
            self.send_pong(p, peer, WAY_CURRENT, now)

    cdef void send_pong(self, packet *p, Peer peer, int way, double now) noexcept:
        cdef packet pong
        cdef uint8_t *at = self.egress.begin(peer, p.length, now, way)
        if at == NULL:
            return
        memcpy(at, p.payload, p.length)
        pong.protocol = PROTOCOL_CONTROL
        pong.flags = FLAG_ACK
        pong.src_network, pong.src_node, pong.src_port = p.dst_network, p.dst_node, 0
        if pong.src_node == 0:
            pong.src_node = self.egress.own_node
        pong.dst_network, pong.dst_node, pong.dst_port = p.src_network, p.src_node, p.src_port
        pong.seq, pong.ack, pong.window = p.seq, p.seq + 1, 0
        self.egress.commit(&pong, now)

    cdef void deliver_looped(self, double now) noexcept:
        """Packets to ourselves: no session, no wire, the same dispatch."""
        cdef list turn
        cdef bytearray copy
        cdef packet p
        cdef int rounds = 0
        while self.egress.looped and rounds < 64:
            rounds += 1
            turn = self.egress.looped
            self.egress.looped = []
            self.mux.batch_begin()
            for inner in turn:
                copy = bytearray(inner)
                if decode_packet(copy, len(copy), &p) == PACKET_OK:
                    self.dispatch(&p, self.self_peer, True, now)
            self.mux.batch_end(now)
        if self.egress.looped:
            self.mux.schedule_soon()

    # ---- time ----------------------------------------------------------------------------------------------------

    def end_of_iteration(self) -> None:
        """Run once after the scheduler's `soon()`: the iteration's second flush, loopback packets, pending wake-ups."""
        cdef double now = self.clock()
        self.mux.soon_scheduled = False
        self.mux.flushed_this_turn = False
        self.mux.batch_begin()
        self.mux.batch_end(now)
        if self.egress.looped:
            self.deliver_looped(now)

    def next_deadline(self) -> float:
        """When `handle_timer` wants to be called next; infinity when nothing is due."""
        return self.timers.earliest()

    def handle_timer(self, now: float) -> None:
        """Run everything whose deadline has come. Calling it early or late is harmless."""
        cdef double at = now
        cdef TimerEntry entry
        self.mux.armed = INFINITY
        self.mux.batch_begin()
        while True:
            entry = self.timers.pop_due(at)
            if entry is None:
                break
            if entry is self.sweeper:
                self.timers.schedule(self.sweeper, at + SWEEP)
                self.sweep(at)
            elif entry is self.control_timer:
                try:
                    self.control.handle_timer(at)
                except Exception:
                    log.exception("the control plane's timer failed")
            elif isinstance(entry, StreamCore):
                (<StreamCore> entry).on_timer(at)
            # Else a peer whose pacing lets go: the flush at the end of the batch serves it.
        self.mux.batch_end(at)
        if self.egress.looped:
            self.mux.schedule_soon()

    cdef void sweep(self, double now) noexcept:
        """Packets that waited too long for a session are given up, and datagrams forgotten that nobody will miss."""
        cdef Peer peer
        self.egress.forget_sent(None, now)
        for peer in self.peers_by_node.values():
            if peer.pending and now - peer.pending[0][1] > PENDING_SECONDS:
                peer.pending = [item for item in peer.pending if now - item[1] <= PENDING_SECONDS]
                if not peer.pending:
                    self.egress.waiting_peers -= 1
            if peer.previous is not None and now > peer.previous_until:
                peer.previous.wipe()
                peer.previous = None

    def port_writable(self) -> None:
        """The port has drained: go on sending."""
        self.mux.flush(self.clock())
        self.mux.arm()

    def set_control_deadline(self, deadline: float) -> None:
        """When `control.handle_timer` wants to be called; infinity disarms it."""
        if deadline == INFINITY:
            self.timers.cancel(self.control_timer)
        else:
            self.timers.schedule(self.control_timer, deadline)
            if not self.mux.in_batch:
                self.mux.arm()

    # ---- peers and sessions --------------------------------------------------------------------------------------

    @property
    def own_node(self) -> int:
        """This node's id, 0 until it is registered."""
        return self.egress.own_node

    @own_node.setter
    def own_node(self, value: int) -> None:
        self.egress.own_node = value
        self.self_peer = Peer(value, True)

    @property
    def beacon(self) -> tuple[str, int] | None:
        """The selected beacon's address."""
        return netaddr_to_python(&self.egress.beacon)

    @beacon.setter
    def beacon(self, value: tuple[str, int] | None) -> None:
        netaddr_from_python(&self.egress.beacon, value)

    @property
    def relay_only(self) -> bool:
        """True: nothing is ever sent straight to a peer."""
        return self.egress.relay_only

    @relay_only.setter
    def relay_only(self, value: bool) -> None:
        self.egress.relay_only = value

    def own_peer(self) -> Peer:
        """The peer that stands for this node itself; made with the id."""
        if self.self_peer is None:
            self.own_node = 0
        return self.self_peer

    def peer(self, node: int) -> Peer | None:
        """The entry of `node`, or None."""
        return self.find_peer(node)

    def add_peer(self, node: int) -> Peer:
        """The entry of `node`, made when there is none. Raises `PathError` when 65,536 are held."""
        cdef Peer peer = self.find_peer(node)
        if peer is None:
            if self.peers_by_node.count >= MAX_PEERS:
                raise PathError(f"{MAX_PEERS} peers are held already; the table is full")
            peer = Peer(node, False, self.mux.settings.congestion)
            self.peers_by_node.put(0, node, peer)
        return peer

    def remove_peer(self, node: int) -> None:
        """Forget `node` with all its state; its streams end with `PathError`."""
        cdef Peer peer = self.find_peer(node)
        if peer is None:
            return
        self.mux.fail_streams(peer, PathError(f"node {node} was removed from this node's peers"))
        if peer.pending:
            self.egress.waiting_peers -= 1
            peer.pending = []
        self.drop_session(peer)
        self.timers.cancel(peer)
        peer.gone = True
        self.last_peer = None
        self.peers_by_node.remove(0, node)

    def peers(self) -> list[Peer]:
        """A snapshot of all peers."""
        return self.peers_by_node.values()

    def install_session(self, Peer peer not None, Session session not None, now: float, *,
                        keep_previous: float = 0.0) -> None:
        """Make `session` the peer's current one; packets that waited for it leave now, in order.

        `session` may be the one replaced before: a step back. The replaced session opens what is still on its way for
        `keep_previous` seconds. Frames that could not be opened during the last second are tried again.
        """
        cdef list stashed
        cdef netaddr source
        cdef bytearray frame
        if peer.previous is not None and peer.previous is not session:
            peer.previous.wipe()
        peer.previous = None
        if peer.session is not None and peer.session is not session:
            if keep_previous > 0.0:
                peer.previous = peer.session
                peer.previous_until = now + keep_previous
            else:
                peer.session.wipe()
        peer.session = session
        peer.generation += 1
        peer.auth_failures = peer.replays = peer.outside = 0
        peer.last_used = now
        self.flush_pending(peer, now)
        stashed, peer.stash = peer.stash, []
        for data, address, relayed, arrived in stashed:
            if now - arrived <= STASH_SECONDS:
                frame = bytearray(data)
                netaddr_from_python(&source, address)
                self.on_sealed(frame, len(frame), &source, relayed, 0, now)
        if not self.mux.in_batch:
            self.mux.schedule_soon()

    def resend_datagrams(self, Peer peer not None, since: float, now: float) -> int:
        """Send again what a peer with a new key could not read: the datagrams after `since`, of the last 5 s, at most
        4, none longer than 1152 bytes; returns how many. The salvage of wire.md 8.2; streams repair themselves.
        """
        cdef int count = self.egress.resend_datagrams(peer, since, now)
        if count and not self.mux.in_batch:
            self.mux.schedule_soon()
        return count

    cpdef flush_pending(self, Peer peer, double now):
        """Send what waited for a session."""
        cdef list waiting
        cdef bytes inner
        if not peer.pending or peer.session is None:
            return
        waiting, peer.pending = peer.pending, []
        self.egress.waiting_peers -= 1
        for inner, queued in waiting:
            if now - <double> queued <= PENDING_SECONDS:
                self.egress.send_sealed(peer, inner, now)
        self.egress.flush(now)

    def drop_session(self, Peer peer not None) -> None:
        """Forget the peer's keys."""
        if peer.session is not None:
            peer.session.wipe()
        if peer.previous is not None:
            peer.previous.wipe()
        peer.session = peer.previous = None
        peer.stash = []
        self.egress.forget_sent(peer, -INFINITY)

    def close(self) -> None:
        """Take the datapath apart: sessions wiped, streams, peers and timers dropped. Idempotent; nothing is sent."""
        cdef Peer peer
        self.port.attach(None)
        self.mux.close()
        self.egress.forget()
        for peer in self.peers_by_node.values():
            self.drop_session(peer)
            peer.pending = []
            self.timers.cancel(peer)
            self.peers_by_node.remove(0, peer.node)
        self.timers.cancel(self.sweeper)
        self.timers.cancel(self.control_timer)
        self.last_peer = self.self_peer = None
        self.control = IGNORE

    # ---- cold sends ----------------------------------------------------------------------------------------------

    def use_direct(self, peer: Peer, now: float) -> None:
        """Frames to the peer go straight to its address from now on; what its streams have under way is repaired.

        Reported to `control.path_changed` as "direct". Nothing happens if it is not relayed or has no address.
        """
        if peer.relayed and netaddr_known(&peer.direct):
            peer.relayed = False
            peer.path_replaced()
            self.egress.moved.append(peer)
            self.path_changed(peer, "direct", now)

    def send_frame(self, frame: bytes, address: tuple[str, int]) -> None:
        """One raw datagram: key exchange, punch, beacon message. Send errors are not
        reported (nothing may rely on one frame)."""
        cdef netaddr to
        netaddr_from_python(&to, address)
        self.egress.send_raw(frame, &to, self.clock())

    def send_relayed(self, frame: bytes, node: int) -> None:
        """`frame` to `node` through the selected beacon; nothing happens without one."""
        cdef uint8_t head[9]
        if not netaddr_known(&self.egress.beacon):
            return
        head[0] = 0x05
        store32(head + 1, self.egress.own_node)
        store32(head + 5, node)
        self.egress.send_raw((<char *> head)[:9] + frame, &self.egress.beacon, self.clock())

    def send_control(self, Peer peer not None, flags: int, source_port: int, port: int, seq: int, payload: bytes,
                     now: float, *, direct: bool = False, zero_destination: bool = False) -> bool:
        """A sealed control packet (protocol 3) on the peer's current path, or straight to its address with `direct`.

        Does not count as use of the peer. False when there is no session or no path. Send errors come back through
        `control.send_failed`.
        """
        cdef packet p
        cdef size_t length = len(payload)
        cdef uint8_t *at
        if peer.session is None and not peer.is_self:
            return False
        self.egress.flush(now)
        at = self.egress.begin(peer, length, now, WAY_DIRECT if direct else WAY_CURRENT)
        if at == NULL:
            return False
        memcpy(at, <const uint8_t *> payload, length)
        p.protocol = PROTOCOL_CONTROL
        p.flags = <uint8_t> flags
        p.src_network = p.dst_network = 0
        p.src_node = self.egress.own_node
        p.dst_node = 0 if zero_destination else peer.node
        p.src_port, p.dst_port = source_port, port
        p.seq, p.ack, p.window = seq & 0xFFFFFFFF, 0, 0
        self.egress.commit(&p, now)
        self.egress.flush(now)
        if self.egress.looped:
            self.mux.schedule_soon()
        return True

    @property
    def counters(self) -> dict[str, int]:
        """What happened so far, by name."""
        return {
            "frames_received": self.received_frames,
            "frames_rejected": self.rejected_frames,
            "datagrams_ignored": self.ignored,
            "frames_sent": self.egress.frames_sent,
            "bytes_sent": self.egress.bytes_sent,
            "packets_refused": self.egress.refused,
            "bursts_given_up": self.egress.bursts_given_up,
            "streams": self.mux.live,
            **self.mux.counters,
        }


cdef str redact(uint32_t node):
    """A node id as events show it: 16 hex digits of SHA-256 of its decimal text."""
    return hashlib.sha256(str(node).encode()).hexdigest()[:16]
