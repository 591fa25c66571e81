"""A recorder and a forger on the path: whatever was once sent comes again, later, elsewhere and in any order (L4-6)."""

from __future__ import annotations

import pytest

from pilot.protocol import beacon
from tests.tunnel.fakes import BEACON, Address, Host
from tests.tunnel.real import RealNetwork

ATTACKER: Address = ("203.0.113.66", 6666)


def frames_to(network: RealNetwork, host: Host) -> list[bytes]:
    """Every frame that was sent to the host, directly or by relay, as one who listens everywhere would have it."""
    found = []
    for _, _, target, data in network.log:
        if target == host.address:
            found.append(data[5:] if data[0] == beacon.RELAY_DELIVER else data)
    return [frame for frame in found if frame[:3] == b"PIL"]


def replay(network: RealNetwork, frames: list[bytes], host: Host, *, relayed: bool) -> None:
    for frame in frames:
        if relayed:
            network.send(beacon.wrap_deliver(2, frame), BEACON, host.address)
        else:
            network.send(frame, ATTACKER, host.address)


def numbered(network: RealNetwork, a: Host, b: Host, count: int, prefix: bytes) -> None:
    """`count` datagrams each way, a quarter of a second apart."""
    for n in range(count):
        a.send(b, prefix + b" a %d" % n)
        b.send(a, prefix + b" b %d" % n)
        network.run(0.25)


def expected(count: int, prefix: bytes, name: bytes) -> list[bytes]:
    return [prefix + b" %s %d" % (name, n) for n in range(count)]


@pytest.mark.parametrize("relayed", [False, True], ids=["from elsewhere", "by relay"])
@pytest.mark.parametrize("between", ["nothing", "a rekey", "three rekeys", "a restart of it", "a restart of the peer"])
def test_recorded_frames_are_refused_for_ever(between: str, relayed: bool) -> None:
    """Nothing of an earlier time, session or life is delivered again or moves an address; the pair talks on."""
    network = RealNetwork()
    a, b = network.pair()
    numbered(network, a, b, 5, b"old")
    for _ in range({"a rekey": 1, "three rekeys": 3}.get(between, 0)):
        assert a.tunnel.rekey(b.node, network.now)
        network.run(5.0)
        numbered(network, a, b, 5, b"between")
    if between == "a restart of it":
        b = network.restart(b)
    elif between == "a restart of the peer":
        a = network.restart(a)
    network.run(1.0)
    numbered(network, a, b, 12, b"new")
    recorded = frames_to(network, b)
    assert len([frame for frame in recorded if frame[:4] == b"PILS"]) > 10
    before = b.received()
    address = b.peer(a).address
    for _ in range(3):
        replay(network, recorded, b, relayed=relayed)
        network.run(0.05)
    network.run(2.0)
    assert b.received() == before
    assert b.peer(a).address == address == a.address
    b.datapath.inbox.clear()
    a.datapath.inbox.clear()
    numbered(network, a, b, 8, b"after")
    assert b.received() == expected(8, b"after", b"a")
    assert a.received() == expected(8, b"after", b"b")


def test_a_storm_of_old_key_exchanges_stops_nothing() -> None:
    """Every key exchange frame ever sent, twice a second for a minute, from elsewhere and by relay."""
    network = RealNetwork()
    a, b = network.pair()
    for _ in range(4):
        assert a.tunnel.rekey(b.node, network.now)
        network.run(4.0)
        numbered(network, a, b, 4, b"between")
    recorded = [frame for frame in frames_to(network, b) if frame[:4] in (b"PILA", b"PILK")]
    assert len(set(recorded)) >= 5
    session = b.session(a)
    b.datapath.inbox.clear()
    sent = []
    for n in range(120):
        replay(network, recorded, b, relayed=bool(n % 2))
        sent.append(b"during %d" % n)
        a.send(b, sent[-1])
        b.send(a, b"heard")
        network.run(0.5)
    assert b.received() == sent
    assert b.session(a) is session
    assert b.peer(a).address == a.address


def test_frames_of_one_node_do_not_open_as_anothers() -> None:
    """The sender in the header is authenticated: with another id, or sent back to its author, a frame is noise."""
    network = RealNetwork()
    a, b = network.pair()
    c = network.host(3)
    network.run(0.5)
    c.send(b, b"from c")
    network.run(1.0)
    numbered(network, a, b, 5, b"old")
    recorded = [frame for frame in frames_to(network, b) if frame[:4] == b"PILS"]
    before = [host.received() for host in (a, b, c)]
    for frame in recorded:
        for sender in (1, 2, 3, 4):
            changed = frame[:4] + sender.to_bytes(4, "big") + frame[8:]
            for host in (a, b, c):
                network.send(changed, ATTACKER, host.address)
        network.run(0.1)
    assert [host.received() for host in (a, b, c)] == before
    for host in (a, b, c):
        host.datapath.inbox.clear()
    numbered(network, a, b, 5, b"after")
    assert b.received() == expected(5, b"after", b"a")


@pytest.mark.parametrize("kind", ["PILS", "PILA", "PILK"])
def test_a_storm_of_forged_frames_stops_nothing(kind: str) -> None:
    """Right sender, random rest, a hundred a second for a minute: the session stays and carries everything."""
    network = RealNetwork()
    a, b = network.pair()
    numbered(network, a, b, 5, b"old")
    session = b.session(a)
    b.datapath.inbox.clear()
    sent = []
    for n in range(60):
        for _ in range(100):
            frame = kind.encode() + (1).to_bytes(4, "big") + network.random.randbytes(128)
            network.send(frame, ATTACKER, b.address)
        sent.append(b"during %d" % n)
        a.send(b, sent[-1])
        b.send(a, b"heard")
        network.run(1.0)
    assert b.received() == sent
    assert b.session(a) is session
    assert b.peer(a).address == a.address


def test_a_wrong_endpoint_from_the_registry_gives_no_session_to_who_sits_there() -> None:
    """The registry leads a dial to the attacker; without the registered identity it gets neither session nor packet."""
    from pilot.tunnel import Resolved
    from tests.tunnel.probe import Probe

    network = RealNetwork()
    a, b = network.host(1), network.host(2)
    mallory = Probe(network, 9)
    network.run(2.0)
    network.registry[2] = network.registry[2].__class__(network.registry[2].key, Resolved(mallory.address))
    mallory.node = 2
    network.drop = lambda data, source, target: b.address in (source, target)
    a.send(b, b"secret")
    for _ in range(20):
        network.run(1.0)
        mallory.send(mallory.pila(), a)
        mallory.send(mallory.pilk(), a)
    assert "PILS" not in mallory.take()
    assert a.peer(b).session is None
