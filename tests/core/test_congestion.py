"""Congestion control on a virtual network: random loss, a neighbour's CUBIC, pacing, windows that grow (L7)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from pilot._fast.bbr import Bbr
from pilot._fast.congestion import Cubic
from pilot._fast.mux import MuxSettings
from tests.core.virtual import READ, WRITE, Link, Network, VirtualNode, join, pair

LONG_FAT = {"delay": 0.01, "rate": 25e6, "queue": 500_000, "mtu": 1500}
"""20 ms and one bandwidth-delay product of queue, as the link of bench/wan.py, at a fifth of its rate."""
SHARED = {"delay": 0.01, "rate": 12.5e6, "mtu": 1500}
SEGMENT = 1402


class Sink:
    """Reads whatever comes, unless it has stopped."""

    def __init__(self) -> None:
        self.core: Any = None
        self.got = 0
        self.stopped = False

    def _on_stream(self, core: Any) -> None:
        self.core = core
        core.owner = self
        core.interest = READ

    def _on_wake(self, events: int) -> None:
        while not self.stopped and (data := self.core.read(1 << 20)):
            self.got += len(data)
        self.core.interest = READ


class Source:
    """Writes as much as the stream takes, as long as it is open."""

    def __init__(self, node: VirtualNode, other: VirtualNode) -> None:
        node.peer(other).segment_bytes = SEGMENT
        self.core = node.dial(other, 7)
        self.core.owner = self
        self.core.interest = WRITE

    def _on_wake(self, events: int) -> None:
        while self.core.write(bytes(65536)):
            pass
        self.core.interest = WRITE


@dataclass
class Flow:
    """One endless transfer: the sender's view of its peer, and what has arrived."""

    node: VirtualNode
    other: VirtualNode
    sink: Sink
    source: Source

    @property
    def path(self) -> Any:
        return self.node.peer(self.other).path


def flow(network: Network, a: VirtualNode, b: VirtualNode) -> Flow:
    sink = Sink()
    b.listen(7, owner=sink)
    return Flow(a, b, sink, Source(a, b))


def alone(settings: MuxSettings | None = None, *, seed: int = 1, **link: Any) -> tuple[Network, Flow]:
    network, a, b = pair(seed, settings, **(LONG_FAT | link))
    network.logging = False
    return network, flow(network, a, b)


def together(queue: int, *kinds: str, seed: int = 1) -> tuple[Network, list[Flow]]:
    """Senders of those kinds, half a second apart, each with a receiver of its own behind one bottleneck."""
    network = Network(seed, queue=queue, **SHARED)
    network.logging = False
    bottleneck = Link(queue=queue, **SHARED)
    flows: list[Flow] = []
    for number, kind in enumerate(kinds):
        a = VirtualNode(network, 10 + number, MuxSettings(congestion=kind))
        b = VirtualNode(network, 50 + number)
        join(a, b)
        network.links[(a.address[0], b.address[0])] = bottleneck
        flows.append(flow(network, a, b))
        network.run(0.5)
    return network, flows


def share(network: Network, one: Flow, seconds: float) -> float:
    """What arrives in the next `seconds`, as a share of what the link carries, headers included."""
    before = one.sink.got
    network.run(seconds)
    return (one.sink.got - before) / seconds / network.link(one.node.address[0], one.other.address[0]).rate


class TestLoss:
    @pytest.mark.parametrize(("loss", "least"), [(0.0, 0.85), (0.01, 0.8), (0.05, 0.7), (0.1, 0.6)])
    def test_random_loss_is_no_congestion(self, loss: float, least: float) -> None:
        network, one = alone(loss=loss)
        network.run(2.0)
        assert share(network, one, 1.0) > least
        assert one.path.filled

    def test_cubic_takes_it_for_congestion(self) -> None:
        network, one = alone(MuxSettings(congestion="cubic"), loss=0.01)
        assert isinstance(one.path, Cubic)
        network.run(2.0)
        assert share(network, one, 1.0) < 0.2

    def test_cubic_fills_a_clean_path(self) -> None:
        network, one = alone(MuxSettings(congestion="cubic"))
        network.run(2.0)
        assert share(network, one, 1.0) > 0.8

    def test_an_outage_teaches_nothing_about_the_path(self) -> None:
        network, one = alone()
        network.run(2.0)
        network.dark = True
        network.run(3.0)
        network.dark = False
        network.run(4.0)
        assert share(network, one, 1.0) > 0.8

    def test_reordering_is_no_loss(self) -> None:
        network, one = alone(reorder=0.05)
        network.run(2.0)
        assert share(network, one, 1.0) > 0.7
        stats = one.source.core.stats()
        assert stats.retransmissions * SEGMENT < 0.1 * stats.acknowledged


class TestQueue:
    def test_no_queue_stands(self) -> None:
        """Paced at the delivery rate: the round trip stays near that of the empty path."""
        network, one = alone()
        network.run(3.0)
        worst = 0.0
        for _ in range(20):
            network.run(0.1)
            worst = max(worst, one.path.srtt)
        assert worst < 0.028
        assert one.path.min_rtt == pytest.approx(0.02, rel=0.05)

    def test_a_short_queue_is_not_flooded(self) -> None:
        network, one = alone(queue=120_000)
        network.run(3.0)
        lost = network.lost
        assert share(network, one, 2.0) > 0.68
        assert network.lost - lost < 0.01 * 2 * 20e6 / SEGMENT

    def test_sending_is_spread_over_the_round_trip(self) -> None:
        """No burst of more than a few milliseconds at the estimated rate."""
        network, one = alone()
        network.run(3.0)
        link = network.link(one.node.address[0], one.other.address[0])
        most = 0.0
        for _ in range(300):
            network.run(0.001)
            most = max(most, link.busy_until - network.now)
        assert 0.0 < most < 0.012

    def test_a_short_path_is_not_paced(self) -> None:
        network, one = alone(delay=0.0001)
        network.run(0.5)
        assert one.path.pacing_rate == 0.0
        assert share(network, one, 0.5) > 0.7


class TestNeighbours:
    @pytest.mark.parametrize("queue", [60_000, 250_000, 500_000, 1_500_000])
    def test_beside_cubic(self, queue: int) -> None:
        """Neither crowds the other out, from a quarter of the bandwidth-delay product of queue to six times it."""
        network, (ours, cubic) = together(queue, "bbr", "cubic")
        before = ours.sink.got, cubic.sink.got
        network.run(20.0)
        shares = [(one.sink.got - start) / 20e6 for one, start in zip((ours, cubic), before, strict=True)]
        assert sum(shares) > 10
        assert min(shares) > 0.25 * sum(shares)

    @pytest.mark.parametrize("queue", [60_000, 250_000, 1_500_000])
    def test_two_of_a_kind(self, queue: int) -> None:
        network, (first, second) = together(queue, "bbr", "bbr")
        before = first.sink.got, second.sink.got
        network.run(20.0)
        shares = [(one.sink.got - start) / 20e6 for one, start in zip((first, second), before, strict=True)]
        assert sum(shares) > 10
        assert min(shares) > 0.3 * sum(shares)

    def test_streams_of_one_peer_share_the_path_evenly(self) -> None:
        network, a, b = pair(1, MuxSettings(), **LONG_FAT)
        network.logging = False
        sinks: list[Sink] = []

        class Acceptor:
            def _on_stream(self, core: Any) -> None:
                sinks.append(Sink())
                sinks[-1]._on_stream(core)

        b.listen(7, backlog=64, owner=Acceptor())
        sources = [Source(a, b) for _ in range(20)]
        network.run(4.0)
        assert len(sinks) == len(sources)
        assert min(sink.got for sink in sinks) > 0.5 * max(sink.got for sink in sinks)


class TestWindows:
    def test_both_ends_grow_to_the_path(self) -> None:
        settings = MuxSettings(send_limit=1 << 17, receive_limit=2 << 20)
        network, one = alone(settings)
        network.run(3.0)
        assert share(network, one, 1.0) > 0.8

    def test_settings_bound_them(self) -> None:
        settings = MuxSettings(send_limit=1 << 17, max_send_limit=1 << 18)
        network, one = alone(settings)
        network.run(2.0)
        assert one.source.core.unacknowledged <= 1 << 18
        assert share(network, one, 1.0) * 25e6 <= (1 << 18) / 0.02

    def test_a_reader_that_stops_bounds_memory_to_its_window(self) -> None:
        network, one = alone()
        network.run(2.0)
        one.sink.stopped = True
        network.run(5.0)
        held = one.sink.core.readable
        assert 0 < held <= MuxSettings().max_receive_limit
        assert one.other.mux.budget.used <= 2 * MuxSettings().max_receive_limit
        assert one.source.core.error() is None
        one.sink.stopped = False
        one.sink._on_wake(READ)
        assert share(network, one, 2.0) > 0.4

    def test_a_reader_that_lags_is_given_no_more(self) -> None:
        network, one = alone()
        one.sink.stopped = True
        network.run(5.0)
        assert one.sink.core.readable <= MuxSettings().receive_limit


class TestModel:
    def test_the_default(self) -> None:
        _, one = alone()
        assert isinstance(one.path, Bbr)

    def test_what_it_learns(self) -> None:
        network, one = alone()
        network.run(3.0)
        assert one.path.bandwidth == pytest.approx(23.6e6, rel=0.05)
        bdp = one.path.bandwidth * one.path.min_rtt
        assert bdp < one.path.cwnd < 2.5 * bdp

    def test_it_follows_a_path_that_becomes_narrower_and_wider(self) -> None:
        network, one = alone()
        network.run(2.0)
        link = network.link(one.node.address[0], one.other.address[0])
        link.rate = 2.5e6
        network.run(4.0)
        assert share(network, one, 1.0) > 0.7
        assert one.path.bandwidth < 4e6
        link.rate = 25e6
        network.run(4.0)
        assert share(network, one, 1.0) > 0.64

    def test_a_new_path_is_learnt_anew(self) -> None:
        network, one = alone()
        network.run(2.0)
        one.node.peer(one.other).relay = True
        assert (one.path.bandwidth, one.path.filled, one.path.pacing_rate) == (0.0, False, 0.0)
        assert one.path.min_rtt == float("inf")
