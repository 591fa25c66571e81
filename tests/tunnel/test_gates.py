"""Rejected frames: forged, repeated and outside the window (wire.md 7.3, 19)."""

from __future__ import annotations

from pilot._fast.seal import Verdict
from tests.tunnel.fakes import Host, Network, kinds
from tests.tunnel.probe import Probe, met


def forged(probe: Probe, counter: int) -> bytes:
    return b"PILS" + probe.node.to_bytes(4, "big") + b"evil" + counter.to_bytes(8, "big") + bytes(60)


def hear(probe: Probe, host: Host) -> None:
    probe.send(probe.sealed(host), host, settle=0.0)


def test_weakness_forged_frames_do_not_end_a_session_in_use() -> None:
    network, host, probe = met()
    session = host.session(probe)
    for number in range(100):
        for _ in range(10):
            probe.send(forged(probe, number), host, source=("203.0.113.9", 1), settle=0.0)
        hear(probe, host)
        network.run(0.2)
    assert host.session(probe) is session
    assert "gate_rekeys" not in host.tunnel.counters
    assert "PILA" not in probe.take()


def test_weakness_one_duplicate_on_an_old_session_does_nothing() -> None:
    network, host, probe = met()
    frame = probe.sealed(host)
    probe.send(frame, host)
    network.run(82.0)
    probe.take()
    probe.send(frame, host)
    network.run(1.0)
    assert probe.take() == []
    assert host.session(probe).received == 2


def test_weakness_five_bad_tags_do_not_drop_a_session() -> None:
    network, host, probe = met()
    session = host.session(probe)
    network.run(5.0)
    probe.take()
    for number in range(5):
        probe.send(forged(probe, number), host, settle=0.0)
    network.run(0.5)
    assert host.session(probe) is session
    assert probe.take() == []


def test_sustained_rejects_ask_for_a_new_key_and_keep_the_session() -> None:
    network, host, probe = met()
    session = host.session(probe)
    network.run(5.0)
    probe.take()
    for number in range(8):
        probe.send(forged(probe, number), host, settle=0.2)
    assert sorted(probe.take()) == ["PILA", "PILK", "deliver PILA", "deliver PILK"]
    assert host.session(probe) is session
    announced = next(data for data in probe.seen if data[:4] == b"PILA")[8:40]
    assert announced != host.tunnel._core.get(9).current.pair.public
    probe.send(probe.sealed(host, b"still here", counter=50), host, settle=0.0)
    network.run(0.1)


def test_the_answer_to_that_brings_the_new_session() -> None:
    network, host, probe = met()
    old = host.session(probe)
    network.run(5.0)
    for number in range(8):
        probe.send(forged(probe, number), host, settle=0.2)
    probe.send(probe.pila(), host)
    assert host.session(probe) is not old
    probe.counter = 0
    probe.send(probe.sealed(host, b"new"), host)
    assert host.received()[-1] == b"new"
    assert host.tunnel._core.get(9).cycle is None


def test_rekeys_that_do_not_help_become_rare() -> None:
    network, host, probe = met()
    network.run(5.0)
    start = network.now
    host.peer(probe).open_streams = 1
    for number in range(1200):
        probe.send(forged(probe, number), host, settle=0.5)
    assert host.session(probe).established_at < start
    announced = {data[-128:-96] for _, data in network.sent(host, start) if b"PILA" in data[:13]}
    assert 3 <= len(announced) <= 10
    assert host.topics("tunnel.rekey_gave_up")


def test_rejects_far_apart_are_no_run() -> None:
    network, host, probe = met()
    network.run(5.0)
    for number in range(20):
        probe.send(forged(probe, number), host, settle=0.1)
        network.run(31.0)
    assert "gate_rekeys" not in host.tunnel.counters


def test_replays_need_a_longer_run() -> None:
    network, host, probe = met()
    frame = probe.sealed(host)
    probe.send(frame, host)
    network.run(5.0)
    for _ in range(15):
        probe.send(frame, host, settle=0.1)
    assert "gate_rekeys" not in host.tunnel.counters
    for _ in range(3):
        probe.send(frame, host, settle=0.1)
    assert host.tunnel.counters["gate_rekeys"] == 1


def test_too_many_prefixes_rekey_at_once() -> None:
    network, host, probe = met()
    start = network.now
    host.tunnel.rejected(host.peer(probe), Verdict.TOO_MANY_PREFIXES, network.now)
    assert kinds(network.sent(host, start))[:2] == ["PILA", "PILK"]
    host.tunnel.rekey_due(host.peer(probe), network.now)
    assert len(network.sent(host, start)) == 4


def test_a_peer_that_lost_the_session_and_kept_its_key_gets_on() -> None:
    """wire.md 16: after its drop gate a stock peer sends PILA and PILK, the same key, counter from 1, new prefix."""
    network, host, probe = met()
    session = host.session(probe)
    network.run(2.0)
    probe.send(probe.pila(), host, settle=0.0)
    probe.send(probe.pilk(), host)
    assert "PILA" in probe.take()
    assert host.session(probe) is session
    probe.counter, probe.prefix = 0, b"\1\2\3\4"
    probe.send(probe.sealed(host, b"again"), host)
    assert host.received()[-1] == b"again"


def test_a_node_that_lost_the_session_makes_its_peer_rekey() -> None:
    """Checklist 15: a new key pair instead of a counter from 1 under the old one."""
    network = Network()
    a, b = network.pair()
    before = b.session(a).peer_x25519
    a.tunnel.forget(2, network.now)
    b.send(a, b"lost")
    network.run(1.0)
    assert b.session(a).peer_x25519 != before
    b.send(a, b"found")
    network.run(0.5)
    assert a.received()[-1] == b"found"
