from collections.abc import Callable

from typing_extensions import disjoint_base

from pilot._fast.port import DatagramPort, FrameSink

@disjoint_base
class Recorder(FrameSink):
    hook: Callable[[bytes, tuple[str, int], float], object] | None
    def __init__(self, hook: Callable[[bytes, tuple[str, int], float], object] | None = None) -> None: ...
    @property
    def datagrams(self) -> list[tuple[bytes, tuple[str, int], float]]: ...
    @property
    def batches(self) -> list[float]: ...

def transmit(port: DatagramPort, data: bytes, segment: int, address: tuple[str, int] | None) -> int: ...
def congested(port: DatagramPort) -> bool: ...
