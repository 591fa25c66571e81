"""Path-MTU search by padded pings (DESIGN 4)."""

from __future__ import annotations

import errno

import pytest

from pilot.tunnel import Resolved, TunnelSettings
from tests.tunnel.fakes import BEACON, Host, Network
from tests.tunnel.probe import Probe

PROBING = TunnelSettings()


def pair(mtu: int = 1500, settings: TunnelSettings = PROBING) -> tuple[Network, Host, Host]:
    network = Network(settings=settings)
    network.mtu = 9000
    limit = mtu

    def too_big(data: bytes, source: object, target: object) -> bool:
        return len(data) + 28 > limit

    network.drop = too_big
    a, b = network.pair()
    network.run(4.0)
    return network, a, b


def probes(network: Network, host: Host, since: float = 0.0) -> list[int]:
    """Sizes of the padded datagrams a host has sent."""
    return [len(data) for _, data in network.sent(host, since) if len(data) > 1300 and data[:4] == b"PILS"]


def test_ethernet() -> None:
    _, a, b = pair(1500)
    assert a.peer(b).segment_bytes == 1402
    assert b.peer(a).segment_bytes == 1402


def test_jumbo_frames() -> None:
    _, a, b = pair(9000)
    assert a.peer(b).segment_bytes == 8902


def test_a_small_path_stays_at_the_base() -> None:
    network, a, b = pair(1400)
    assert a.peer(b).segment_bytes == 1152
    assert probes(network, a).count(1472) >= 3
    b.send(a, b"alive")
    network.run(0.1)
    assert a.received()[-1] == b"alive"


def test_probe_is_a_ping_of_segment_size() -> None:
    network = Network()
    host = network.host(1, settings=PROBING)
    probe = Probe(network)
    network.run(3.0)
    probe.send(probe.pila(), host)
    probe.take()
    (data,) = [data for data in probe.seen if data[:4] == b"PILS"]
    assert len(data) == 1402 + 70
    plain = probe.opened(host, data).plaintext
    assert plain[:2] == b"\x10\x03"
    assert len(plain) == 1402 + 34
    assert plain[18:20] == b"\0\0"


@pytest.mark.parametrize(("buffer", "largest"), [(212_992, 26_554), (4 << 20, 65_428), (65_536, 8122)])
def test_loopback(buffer: int, largest: int) -> None:
    network = Network(settings=TunnelSettings(receive_buffer_bytes=buffer))
    a, b = network.host(1, start=False), network.host(2, start=False)
    for host in (a, b):
        del network.hosts[host.address]
        host.address = ("127.0.0.1", 4000 + host.node)
        network.hosts[host.address] = host
        network.registry[host.node].found = Resolved(host.address)
        host.start()
    network.run(1.0)
    a.send(b)
    network.run(3.0)
    assert a.peer(b).segment_bytes == largest
    assert max(probes(network, a)) + 9 <= 65_507


def test_ipv6_and_relay_sizes() -> None:
    network, a, b = pair()
    mtu, peer = a.tunnel._mtu, a.peer(b)
    assert mtu.ladder(peer) == [1402, 8902]
    peer.address = ("2001:db8::1", 4000)
    assert mtu.ladder(peer) == [1382, 8882]
    peer.relay = True
    assert mtu.ladder(peer) == [1393]
    a.datapath.beacon = ("2001:db8::100", 9001)
    assert mtu.ladder(peer) == [1373]
    a.datapath.beacon, peer.relay, peer.address = None, False, None
    assert mtu.ladder(peer) == []
    assert BEACON
    assert network


def test_relayed_pairs_probe_the_relay() -> None:
    network = Network(settings=PROBING)
    a, b = network.host(1), network.host(2)
    network.registry[2].found = Resolved(BEACON, relay_only=True)
    network.run(0.5)
    a.send(b)
    network.run(3.0)
    assert a.peer(b).segment_bytes == 1393
    assert max(len(data) for _, data in network.sent(a)) == 1472


def test_one_probe_outstanding() -> None:
    network = Network(settings=PROBING)
    network.latency = 0.4
    network.mtu = 9000
    a, b = network.host(1), network.host(2)
    network.run(3.0)
    start = network.now
    a.send(b)
    network.run(1.5)
    assert len(set(probes(network, a, start))) == 1


def test_a_late_answer_counts() -> None:
    network = Network(settings=PROBING)
    network.latency = 0.9
    a, b = network.host(1), network.host(2)
    network.run(5.0)
    a.send(b)
    network.run(12.0)
    assert a.peer(b).segment_bytes == 1402


def test_emsgsize_of_the_probe_fails_it_at_once() -> None:
    network = Network(settings=PROBING)
    network.mtu = 1300
    a, b = network.pair()
    assert a.peer(b).segment_bytes == 1152
    assert a.tunnel._core.get(2).mtu.probe == 0
    assert a.tunnel._core.get(2).mtu.ceiling == 1402


def test_emsgsize_of_data_falls_back() -> None:
    network, a, b = pair()
    a.tunnel.send_failed(a.peer(b), errno.EMSGSIZE, 1402 + 70, network.now)
    assert a.peer(b).segment_bytes == 1152
    a.tunnel.send_failed(a.peer(b), errno.EMSGSIZE, 1152 + 70, network.now)
    assert a.peer(b).segment_bytes == 1152


def test_a_shrunk_path_falls_back_and_recovers_later() -> None:
    network, a, b = pair()
    a.tunnel.full_segments_lost(a.peer(b), network.now)
    assert a.peer(b).segment_bytes == 1152
    network.run(30.0)
    assert a.peer(b).segment_bytes == 1152
    for _ in range(50):
        b.send(a)
        network.run(2.0)
    assert a.peer(b).segment_bytes == 1402


def test_failed_sizes_are_tried_ever_more_rarely() -> None:
    network, a, b = pair(1400)
    a.peer(b).open_streams = b.peer(a).open_streams = 1
    start = network.now
    for _ in range(1000):
        b.send(a)
        network.run(2.0)
    times = [at - start for at, source, _, data in network.log if source == a.address and len(data) == 1472]
    times = [at for at in times if at > 0]
    assert len(times) == 3 * 5
    assert times[3] - times[0] < times[6] - times[3] < times[9] - times[6]


def test_failing_probes_do_not_move_a_quiet_peer_to_the_relay() -> None:
    network, a, b = pair(1400)
    a.peer(b).open_streams = b.peer(a).open_streams = 1
    moved: list[str] = []
    a.tunnel.path_changed = lambda peer, reason, now: moved.append(reason)  # type: ignore[method-assign]
    network.run(1200.0)
    assert len(probes(network, a)) > 3
    assert moved == []


def test_a_change_of_path_starts_over() -> None:
    network, a, b = pair()
    b.send(a)
    network.run(0.1)
    a.tunnel.path_changed(a.peer(b), "address", network.now)
    assert a.peer(b).segment_bytes == 1152
    network.run(5.0)
    assert a.peer(b).segment_bytes == 1402


def test_a_rekey_keeps_what_is_known() -> None:
    network, a, b = pair()
    start = network.now
    a.tunnel.rekey(2, network.now)
    network.run(3.0)
    assert a.peer(b).segment_bytes == 1402
    assert 1472 not in probes(network, a, start)


def test_probing_can_be_switched_off() -> None:
    network = Network(settings=TunnelSettings(probe_mtu=False))
    a, b = network.pair()
    network.run(5.0)
    assert probes(network, a) == []
    assert a.peer(b).segment_bytes == 1152


def test_a_foreign_pong_changes_nothing() -> None:
    network, a, b = pair(1400)
    b.send(a)
    network.run(0.1)
    a.tunnel._mtu.restart(a.tunnel._core.get(2), network.now)
    network.run(0.01)
    search = a.tunnel._core.get(2).mtu
    assert search.probe == 1402
    for seq, length in ((search.token ^ 1, 1402), (search.token, 1401)):
        a.tunnel.pong(a.peer(b), seq, 0xFFFD, bytes(length), network.now)
    a.tunnel.pong(a.peer(b), search.token, 7, bytes(1402), network.now)
    assert a.peer(b).segment_bytes == 1152
    a.tunnel.pong(a.peer(b), search.token, 0xFFFD, bytes(1402), network.now)
    assert a.peer(b).segment_bytes == 1402


def test_node_pings() -> None:
    network, a, b = pair()
    answers: list[float] = []
    assert a.tunnel.probe_path(2, b"ping", network.now, answers.append)
    network.run(0.5)
    assert answers == [pytest.approx(0.04)]
    assert not a.tunnel.probe_path(77, b"ping", network.now, answers.append)
    assert not a.tunnel.probe_path(2, b"", network.now, answers.append)
    b.answers_pings = False
    for _ in range(100):
        a.tunnel.probe_path(2, b"ping", network.now, answers.append)
    assert len(a.tunnel._pings) == a.tunnel.settings.ping_cap
