from typing_extensions import disjoint_base

from pilot._fast.port import DatagramPort

class SilentPort(DatagramPort): ...

@disjoint_base
class Egress:
    control: object
    own_node: int
    relay_only: bool
    @property
    def waiting_peers(self) -> int: ...
    @property
    def frames_sent(self) -> int: ...
    @property
    def bytes_sent(self) -> int: ...
    @property
    def refused(self) -> int: ...
    @property
    def bursts_given_up(self) -> int: ...
