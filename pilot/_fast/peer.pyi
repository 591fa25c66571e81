from typing_extensions import disjoint_base

from pilot._fast.budget import Share
from pilot._fast.congestion import Congestion
from pilot._fast.seal import Session
from pilot._fast.timers import TimerEntry

@disjoint_base
class Peer(TimerEntry):
    session: Session | None
    relay: bool
    watched: bool
    misses: int
    first_sent: float
    last_sent: float
    last_heard: float
    last_heard_direct: float
    last_used: float
    auth_failures: int
    replays: int
    outside: int
    address: tuple[str, int] | None
    segment_bytes: int
    @property
    def node(self) -> int: ...
    @property
    def reading(self) -> Share | None: ...
    @property
    def writing(self) -> Share | None: ...
    @property
    def is_self(self) -> bool: ...
    @property
    def previous(self) -> Session | None: ...
    @property
    def open_streams(self) -> int: ...
    @property
    def pending_packets(self) -> int: ...
    @property
    def path(self) -> Congestion: ...
    @property
    def srtt(self) -> float: ...
    @property
    def congestion_window(self) -> int: ...
    @property
    def pacing_rate(self) -> float: ...
    @property
    def in_flight(self) -> int: ...
