"""The way out: framed in place, sealed in place, gathered into one burst of equal datagrams per peer (_fast, L4-6)."""
import logging
from collections import deque

from libc.errno cimport EMSGSIZE
from libc.math cimport INFINITY
from libc.stdint cimport uint8_t, uint16_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from pilot._fast._endian cimport store32
from pilot._fast.netaddr cimport netaddr, netaddr_clear, netaddr_equal, netaddr_known
from pilot._fast.packet cimport HEADER_BYTES, PROTOCOL_DATAGRAM, encode_header, packet
from pilot._fast.peer cimport MAX_PENDING_PACKETS, Peer
from pilot._fast.port cimport DatagramPort
from pilot._fast.seal cimport FRAME_HEADER, SEAL_OVERHEAD

cdef enum:
    SLOT_BYTES = 65536
    MAX_DATAGRAM = 65507            # UDP payload over IPv4
    MAX_BURST_FRAMES = 64           # UDP_MAX_SEGMENTS
    MAX_PENDING_PEERS = 256
    MAX_LOOPED = 4096
    BLACKHOLE_MISSES = 3
    MAX_RESENT = 4                  # datagrams that a peer gets again when it has lost the key they were sealed with
    MAX_RESENT_BYTES = 1152         # of payload; longer ones are not remembered
    MAX_SENT_LATELY = 256           # remembered for all peers together

cdef double RESEND_SECONDS = 5.0
cdef double BLACKHOLE_SILENCE = 8.0
cdef double ASK_AFTER = 4.0
# Stock nodes count every send as a miss, so three packets after a quiet spell move a healthy path to the relay.
# Misses count from a second of silence on, and only this far apart: each has given the peer time to answer.
cdef double MISS_AFTER = 1.0
cdef double MISS_SPACING = 0.25
cdef double LOG_SPACING = 60.0

log = logging.getLogger("pilot.datapath")


cdef class SilentPort(DatagramPort):
    """Swallows what a stopped node would still send."""

    cdef int transmit(self, uint8_t *data, size_t length, size_t segment, const netaddr *to) noexcept:
        return 0


cdef DatagramPort SILENT = SilentPort()


cdef class Egress:
    """Frames go out in the order they are committed. A frame for a peer without session waits in the peer's queue.

    `begin` returns where the payload belongs; the caller copies it there and calls `commit` with the header. Frames of
    one size to one address share a burst (one GSO send); a shorter one ends it. `flush` sends what is left.
    """

    def __cinit__(self, DatagramPort port, control: object) -> None:
        self.port = port
        self.control = control
        self.looped = []
        self.moved = []
        self.sent_lately = deque(maxlen=MAX_SENT_LATELY)
        netaddr_clear(&self.beacon)
        netaddr_clear(&self.target)
        self.given_up_logged = -INFINITY
        self.slot = <uint8_t *> malloc(SLOT_BYTES)
        self.scratch = <uint8_t *> malloc(SLOT_BYTES + HEADER_BYTES)
        if self.slot == NULL or self.scratch == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.slot)
        free(self.scratch)

    cdef int route(self, Peer peer, double now) noexcept:
        """1 = relay, 0 = direct, -1 = nowhere. Applies the blackhole rule (wire.md 11.3)."""
        cdef bint beacon = netaddr_known(&self.beacon)
        cdef double since
        if self.relay_only or peer.relayed or not netaddr_known(&peer.direct):
            if beacon:
                return 1
            return -1 if self.relay_only or not netaddr_known(&peer.direct) else 0
        if beacon:
            since = peer.last_heard_direct if peer.last_heard_direct > 0.0 else peer.first_sent
            if since > 0.0 and now - since > MISS_AFTER and now - peer.last_miss >= MISS_SPACING:
                peer.last_miss = now
                peer.misses += 1
                if peer.misses >= BLACKHOLE_MISSES and now - since > BLACKHOLE_SILENCE:
                    self.set_relay(peer, "blackhole", now)
                    return 1
                if peer.misses >= BLACKHOLE_MISSES and now - since > ASK_AFTER:
                    self.ask(peer, now)
        return 0

    cdef void ask(self, Peer peer, double now) noexcept:
        """It may merely have had nothing to say."""
        try:
            self.control.unanswered(peer, now)
        except Exception:
            log.exception("unanswered failed for node %d", peer.node)

    cdef void set_relay(self, Peer peer, str reason, double now) noexcept:
        peer.relayed = True
        peer.misses = 0
        peer.path_replaced()
        self.moved.append(peer)
        try:
            self.control.path_changed(peer, reason, now)
        except Exception:
            log.exception("path_changed failed for node %d", peer.node)

    cdef uint8_t *begin(self, Peer peer, size_t payload, double now, int way) noexcept:
        """Room for `payload` bytes of a packet to `peer`, or NULL when it cannot be sent now (too large, no path)."""
        cdef size_t length = HEADER_BYTES + payload + SEAL_OVERHEAD
        cdef int where
        cdef netaddr *target
        if peer.is_self or peer.session is None:
            self.sealed = False
            if length > MAX_DATAGRAM or (not peer.is_self and len(peer.pending) >= MAX_PENDING_PACKETS):
                self.refused += 1
                return NULL
            self.flush(now)
            self.current = peer
            self.begun = payload
            return self.scratch + HEADER_BYTES
        if way == WAY_DIRECT:
            where = 0 if netaddr_known(&peer.direct) and not self.relay_only else -1
        else:
            where = self.route(peer, now)
        if where < 0:
            self.refused += 1
            return NULL
        target = &self.beacon if where == 1 else &peer.direct
        if where == 1:
            length += RELAY_HEADER
        if length > MAX_DATAGRAM:
            self.refused += 1
            return NULL
        if self.used and (length > self.segment or self.used + length > MAX_DATAGRAM or self.current is not peer
                          or self.frames >= self.most_frames or not netaddr_equal(&self.target, target)):
            self.flush(now)
        if self.used == 0:
            self.segment = length
            self.most_frames = self.burst_limit(peer, now)
            self.target = target[0]
            self.current = peer
        self.sealed = True
        self.relayed = where == 1
        self.begun = payload
        return self.slot + self.used + (RELAY_HEADER if where == 1 else 0) + FRAME_HEADER + HEADER_BYTES

    cdef int burst_limit(self, Peer peer, double now) noexcept:
        """Frames of the next burst to `peer`: one where bursts are lost on the way, or where that is being tried."""
        if not self.port.segmenting:
            return MAX_BURST_FRAMES
        if peer.path.bursts.decide(now):
            self.bursts_given_up += 1
            if now >= self.given_up_logged + LOG_SPACING:
                self.given_up_logged = now
                log.warning("UDP segmentation offload is not used towards node %d: bursts are lost on the way, "
                            "single datagrams arrive", peer.node)
        return 1 if peer.path.bursts.single else MAX_BURST_FRAMES

    cdef void commit(self, packet *p, double now) noexcept:
        """Finish the frame begun: header, CRC, seal."""
        cdef uint8_t *frame
        cdef Peer peer = self.current
        cdef bytes inner
        p.length = <uint16_t> self.begun
        if not self.sealed:
            encode_header(self.scratch, p)
            inner = (<char *> self.scratch)[:HEADER_BYTES + self.begun]
            if peer.is_self:
                if len(self.looped) < MAX_LOOPED:
                    self.looped.append(inner)
            else:
                self.queue_pending(peer, inner, now)
            return
        frame = self.slot + self.used + (RELAY_HEADER if self.relayed else 0)
        encode_header(frame + FRAME_HEADER, p)
        if p.protocol == PROTOCOL_DATAGRAM and self.begun <= MAX_RESENT_BYTES:
            inner = (<char *> frame)[FRAME_HEADER:FRAME_HEADER + HEADER_BYTES + self.begun]
            self.sent_lately.append((peer, inner, now))
        self.seal(peer, frame, now)

    cdef void seal(self, Peer peer, uint8_t *frame, double now) noexcept:
        """Seal the packet at frame + FRAME_HEADER in place and take it into the burst."""
        cdef uint8_t *start = self.slot + self.used
        cdef size_t length = 0
        if self.relayed:
            start[0] = 0x05
            store32(start + 1, self.own_node)
            store32(start + 5, peer.node)
            length = RELAY_HEADER
        try:
            length += peer.session.seal_frame(frame, HEADER_BYTES + self.begun)
        except Exception:
            log.exception("sealing for node %d failed", peer.node)
            return
        self.used += length
        self.frames += 1
        peer.last_sent = now
        if peer.first_sent == 0.0:
            peer.first_sent = now
        if length < self.segment:
            self.flush(now)

    cdef void flush(self, double now) noexcept:
        """Send the burst gathered so far."""
        cdef size_t length = self.used
        cdef int status, frames = self.frames
        cdef Peer peer
        if length == 0:
            return
        self.used = 0
        self.frames = 0
        self.frames_sent += frames
        self.bytes_sent += length
        status = self.port.transmit(self.slot, length, self.segment, &self.target)
        if status < 0:
            peer = self.current
            if status == -EMSGSIZE:
                self.moved.append(peer)         # its streams repair at once, in smaller segments
            try:
                self.control.send_failed(peer, -status, self.segment, now)
            except Exception:
                log.exception("send_failed failed for node %d", peer.node)

    cdef void queue_pending(self, Peer peer, bytes inner, double now) noexcept:
        """No session yet: keep the packet in order and ask for a key exchange (wire.md 8.1)."""
        if not peer.pending:
            if self.waiting_peers >= MAX_PENDING_PEERS:
                self.refused += 1
                return
            self.waiting_peers += 1
        peer.pending.append((inner, now))
        try:
            self.control.session_wanted(peer, now)
        except Exception:
            log.exception("session_wanted failed for node %d", peer.node)

    cdef bint send_sealed(self, Peer peer, bytes inner, double now) noexcept:
        """Seal and send an inner packet that is complete already (pending queue)."""
        cdef size_t payload = len(inner) - HEADER_BYTES
        cdef uint8_t *at = self.begin(peer, payload, now, WAY_CURRENT)
        cdef uint8_t *frame
        if at == NULL or not self.sealed:
            return False
        frame = self.slot + self.used + (RELAY_HEADER if self.relayed else 0)
        memcpy(frame + FRAME_HEADER, <const uint8_t *> inner, len(inner))
        self.seal(peer, frame, now)
        return True

    cdef int resend_datagrams(self, Peer peer, double since, double now) except -1:
        """Send the last datagrams again, those after `since`; returns how many. Each is sent again once at most."""
        cdef list packets
        cdef int count = 0
        self.forget_sent(None, now)
        packets = [inner for owner, inner, sent in self.sent_lately if owner is peer and <double> sent > since]
        self.forget_sent(peer, now)
        for inner in packets[-MAX_RESENT:]:
            count += self.send_sealed(peer, <bytes> inner, now)
        if count:
            self.flush(now)
        return count

    cdef int forget_sent(self, Peer peer, double now) except -1:
        """Forget the datagrams that went to `peer`, if one is given, and those that are too old."""
        if self.sent_lately:
            self.sent_lately = deque([item for item in self.sent_lately
                                      if item[0] is not peer and now - <double> item[2] <= RESEND_SECONDS],
                                     MAX_SENT_LATELY)
        return 0

    cdef void forget(self) noexcept:
        """Nothing is sent any more: the node has stopped."""
        self.port = SILENT
        self.used = self.frames = 0
        self.looped, self.moved = [], []
        self.sent_lately.clear()
        self.current = None
        self.control = None

    cdef void send_raw(self, bytes frame, const netaddr *to, double now) noexcept:
        """One datagram as it is: key exchange, punch, beacon message."""
        self.flush(now)
        self.port.transmit(<uint8_t *> <const uint8_t *> frame, len(frame), len(frame), to)
