from collections.abc import Callable, Mapping
from typing import NamedTuple

from typing_extensions import disjoint_base

from pilot._fast.port import DatagramPort

__all__ = ["Offloads", "UdpPort", "UdpStats"]

class Offloads(NamedTuple):
    gso: bool
    gro: bool
    recvmmsg: bool

class UdpStats(NamedTuple):
    datagrams_in: int
    bytes_in: int
    batches_in: int
    turns: int
    datagrams_out: int
    bytes_out: int
    batches_out: int
    receive_calls: int
    send_calls: int
    truncated: int
    unanswerable: int
    overflow: int
    would_block: int
    queued: int
    dropped: int
    gso_fallbacks: int
    too_big: int
    send_errors: Mapping[str, int]
    reports: Mapping[str, int]
    @property
    def segments_per_batch_in(self) -> float: ...
    @property
    def segments_per_batch_out(self) -> float: ...

@disjoint_base
class UdpPort(DatagramPort):
    on_congested: Callable[[], object] | None
    on_drained: Callable[[], object] | None
    def __init__(
        self,
        *,
        host: str = "",
        port: int = 0,
        gso: bool = True,
        gro: bool = True,
        recvmmsg: bool = True,
        buffer_bytes: int = ...,
        clock: Callable[[], float] | None = None,
    ) -> None: ...
    @property
    def address(self) -> tuple[str, int]: ...
    @property
    def receive_buffer_bytes(self) -> int: ...
    @property
    def offloads(self) -> Offloads: ...
    @property
    def traffic_bytes(self) -> int: ...
    @property
    def closed(self) -> bool: ...
    def fileno(self) -> int: ...
    def socket_fileno(self) -> int: ...
    def close(self) -> None: ...
    def stats(self) -> UdpStats: ...
    def take_mtu_reports(self) -> list[tuple[tuple[str, int] | None, int]]: ...
    def on_readable(self) -> None: ...
    def on_writable(self) -> None: ...
