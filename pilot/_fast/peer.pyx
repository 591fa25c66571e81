"""One remote node as the datapath sees it: session, path, liveness, congestion state, waiting packets (_fast, L4-6)."""
from collections import deque

from pilot._fast.bbr cimport Bbr
from pilot._fast.congestion cimport Cubic, Unlimited
from pilot._fast.netaddr cimport (
    netaddr,
    netaddr_clear,
    netaddr_equal,
    netaddr_from_python,
    netaddr_known,
    netaddr_to_python,
)
from pilot._fast.timers cimport TimerEntry

from pilot._fast.errors import InvalidValueError

cdef enum:
    MAX_SEGMENT = 65437             # 65,507 bytes of UDP payload less tunnel frame and packet header


cdef class Peer(TimerEntry):
    """State shared between the datapath (which updates it per packet) and the tunnel (which decides about it).

    Made by `Datapath.add_peer`. Times are monotonic seconds, 0.0 = never. `segment_bytes` is the largest stream
    payload the current path is known to carry; it falls back to 1152 whenever the path changes.
    """

    def __cinit__(self, node: int, is_self: bool = False, congestion: str = "bbr") -> None:
        self.node = node
        self.is_self = is_self
        self.segment = BASE_SEGMENT
        self.path = Unlimited() if is_self else Cubic() if congestion == "cubic" else Bbr()
        self.pending = []
        self.stash = []
        self.blocked = deque()
        netaddr_clear(&self.direct)
        if is_self:
            self.segment = MAX_SEGMENT
            self.path.set_segment(MAX_SEGMENT)

    @property
    def address(self) -> tuple[str, int] | None:
        """The peer's direct underlay address, or None while none is known."""
        return netaddr_to_python(&self.direct)

    @address.setter
    def address(self, value: tuple[str, int] | None) -> None:
        cdef netaddr before = self.direct
        netaddr_from_python(&self.direct, value)
        if not self.relayed and netaddr_known(&before) and not netaddr_equal(&before, &self.direct):
            self.path_replaced()

    @property
    def relay(self) -> bool:
        """True while frames to the peer go through the beacon. Setting it another way replaces the path."""
        return self.relayed

    @relay.setter
    def relay(self, value: bool) -> None:
        if self.relayed != value:
            self.relayed = value
            self.path_replaced()

    @property
    def segment_bytes(self) -> int:
        """Largest stream payload sent in one packet on the current path."""
        return self.segment

    @segment_bytes.setter
    def segment_bytes(self, value: int) -> None:
        if not 1 <= value <= MAX_SEGMENT:
            raise InvalidValueError(f"segment size {value!r} is not in 1..{MAX_SEGMENT}")
        self.segment = value
        self.path.set_segment(value)

    @property
    def pending_packets(self) -> int:
        """Packets that wait for a session."""
        return len(self.pending)

    @property
    def srtt(self) -> float:
        """Smoothed round-trip time of the current path in seconds, 0.0 before the first sample."""
        return self.path.srtt

    @property
    def congestion_window(self) -> int:
        """Bytes of stream payload that may be in flight to this peer."""
        return self.path.cwnd

    @property
    def pacing_rate(self) -> float:
        """Bytes of stream payload a second that leave at most, 0.0 where sending is not paced."""
        return self.path.pacing_rate

    @property
    def in_flight(self) -> int:
        """Bytes of stream payload in flight to this peer, over all streams."""
        return self.path.in_flight

    cdef void path_replaced(self) noexcept:
        """Nothing learnt about the old path holds for the new one."""
        if not self.is_self:
            self.segment = BASE_SEGMENT
            self.path.set_segment(BASE_SEGMENT)
        self.path.reset()

    def __repr__(self) -> str:
        way = "self" if self.is_self else "relay" if self.relayed else str(self.address)
        return f"<Peer {self.node} by {way} session={self.session!r}>"
