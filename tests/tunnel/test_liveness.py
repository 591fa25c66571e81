"""Keepalives, watchdog, forgetting (wire.md 12; checklist 17, 19)."""

from __future__ import annotations

from itertools import pairwise

import pytest

from tests.tunnel.fakes import Network, kinds
from tests.tunnel.probe import met


def test_keepalive_every_25_to_30_seconds_until_idle() -> None:
    network, host, probe = met()
    start = host.peer(probe).last_used
    for _ in range(20):
        probe.send(probe.sealed(host, b"", protocol=3), host, settle=10.0)
    times = [at - start for at, source, target, data in network.log if source == host.address and data[:4] == b"PILS"]
    assert len(times) == 4
    assert times[0] >= 25
    assert all(25 <= later - earlier <= 30.01 for earlier, later in pairwise(times))
    assert times[-1] < 121


def test_keepalive_bytes() -> None:
    network, host, probe = met()
    network.run(31.0)
    assert probe.take()[-1] == "PILS"
    assert len(probe.seen[-1]) == 70
    plain = probe.opened(host, probe.seen[-1]).plaintext
    assert plain[:16] == bytes.fromhex("1003 0000 0000 00000001 000000000000".replace(" ", ""))
    assert plain[16:30] == bytes(14)


def test_open_streams_keep_a_peer_in_use() -> None:
    network, host, probe = met()
    host.peer(probe).open_streams = 1
    start = network.now
    network.run(400.0)
    assert len([1 for target, data in network.sent(host, start + 200) if data[:4] == b"PILS"]) >= 6
    assert host.datapath.peer(9) is not None


def silent(with_stream: bool = True) -> tuple:
    network, host, probe = met()
    host.peer(probe).open_streams = int(with_stream)
    host.datapath.beacon = None  # or the blackhole rule would have its say too
    probe.take()
    return network, host, probe, host.peer(probe).last_heard


def test_watchdog_probes_then_resets_and_keeps_the_session() -> None:
    network, host, probe, heard = silent()
    session = host.session(probe)
    network.run(97.0)
    probes = [
        round(at - heard) for at, source, _, data in network.log if source == host.address and len(data) in (82, 91)
    ]
    assert len(probes) == 3
    assert 55 <= probes[0] <= 65
    assert [later - probes[0] for later in probes] == [0, 10, 20]
    suspect = host.topics("tunnel.path_suspect")
    assert len(suspect) == 1
    assert suspect[0]["peer_node_id"] == 9
    assert suspect[0]["probes_sent"] == 3
    assert 85 <= suspect[0]["silent_for_seconds"] <= 95
    assert host.session(probe) is session
    network.run(100.0)
    assert len([s for s in host.topics("tunnel.path_suspect") if "probes_sent" in s]) == 1
    network.run(100.0)
    assert len([s for s in host.topics("tunnel.path_suspect") if "probes_sent" in s]) == 2


def test_watchdog_probe_bytes() -> None:
    network, host, probe, _ = silent()
    network.run(66.0)
    sent = [data for _, source, _, data in network.log if source == host.address]
    data = next(data for data in sent if len(data) in (82, 91))
    plain = probe.opened(host, data[9:] if data[:1] == b"\x05" else data).plaintext
    assert plain[:2] == b"\x10\x03"
    assert plain[4:16] == bytes.fromhex("000000000001000000000009")
    assert plain[16:20] == bytes(4)
    assert plain[34:] == b"pathprobe.v1"


def test_any_decrypted_frame_cures() -> None:
    network, host, probe, heard = silent()
    network.run(76.0)
    probe.send(probe.sealed(host), host)
    (recovered,) = host.topics("tunnel.path_recovered")
    assert recovered["peer_node_id"] == 9
    assert recovered["probes_sent"] == 2
    assert recovered["silent_for_seconds"] == int(network.now - 0.1 - heard)
    assert not host.peer(probe).watched
    probe.send(probe.sealed(host), host)
    assert len(host.topics("tunnel.path_recovered")) == 1
    assert host.topics("tunnel.path_suspect") == []


def test_idle_peers_are_not_probed() -> None:
    network, host, probe = met()
    heard = host.peer(probe).last_heard
    network.drop = lambda data, source, target: source == probe.address
    network.run(54.0)
    host.peer(probe).last_used = heard - 200
    network.run(60.0)
    assert not [data for _, source, _, data in network.log if source == host.address and len(data) == 82]


@pytest.mark.parametrize("stream", [False, True])
def test_forgetting(stream: bool) -> None:
    network, host, probe = met()
    network.run(130.0)
    host.peer(probe).open_streams = int(stream)
    if stream:
        host.peer(probe).last_used = 0.0
    network.run(320.0)
    assert (host.datapath.peer(9) is None) is not stream
    assert (host.tunnel._core.get(9) is None) is not stream
    if not stream:
        assert not [key for key in host.tunnel._core.timers._live if key[1:] == (9,)]
        probe.take()
        probe.send(probe.sealed(host), host)
        assert sorted(probe.take()) == ["PILA", "PILK", "deliver PILA", "deliver PILK"]


def test_two_of_our_nodes_stay_healthy_for_an_hour() -> None:
    network = Network()
    a, b = network.pair()
    a.peer(b).open_streams = b.peer(a).open_streams = 1
    session = a.session(b)
    network.run(3600.0)
    assert a.session(b) is session
    assert a.topics("tunnel.path_suspect") == []
    assert "PILA" not in kinds(network.sent(a, 1010.0))
