from typing_extensions import disjoint_base

@disjoint_base
class Congestion:
    @property
    def cwnd(self) -> int: ...
    @property
    def in_flight(self) -> int: ...
    @property
    def srtt(self) -> float: ...
    @property
    def min_rtt(self) -> float: ...

@disjoint_base
class Cubic(Congestion):
    @property
    def ssthresh(self) -> int: ...
