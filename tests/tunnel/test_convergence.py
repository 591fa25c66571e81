"""Both ends of a pair must end up with one key, whatever the network and the moment do (wire.md 6, DESIGN 4)."""

from __future__ import annotations

from random import Random

import pytest

from tests.tunnel.fakes import BEACON, Host, Network


def agree(a: Host, b: Host) -> bool:
    """Whether both send under the same two X25519 keys."""
    mine, theirs = a.datapath.peer(b.node), b.datapath.peer(a.node)
    if mine is None or theirs is None or mine.session is None or theirs.session is None:
        return False
    slot_a = a.tunnel._core.get(b.node).current
    slot_b = b.tunnel._core.get(a.node).current
    assert slot_a.session is mine.session
    assert slot_b.session is theirs.session
    return mine.session.peer_x25519 == slot_b.pair.public and theirs.session.peer_x25519 == slot_a.pair.public


def settle(network: Network, a: Host, b: Host, seconds: int) -> None:
    """A clean network and a little traffic both ways."""
    network.loss = network.duplication = network.jitter = 0.0
    network.drop = lambda data, source, target: False
    for _ in range(seconds):
        a.send(b, b"settling")
        b.send(a, b"settling")
        network.run(1.0)


def assert_whole(network: Network, a: Host, b: Host) -> None:
    """Both directions carry every packet, under one key."""
    assert agree(a, b)
    for number in range(3):
        a.send(b, b"a%d" % number)
        b.send(a, b"b%d" % number)
        network.run(0.2)
    assert b.received()[-3:] == [b"a0", b"a1", b"a2"]
    assert a.received()[-3:] == [b"b0", b"b1", b"b2"]


@pytest.mark.parametrize("seed", range(120))
def test_first_contact_from_both_sides_at_once(seed: int) -> None:
    network = Network(seed)
    a, b = network.host(1), network.host(2)
    network.run(0.2)
    network.loss, network.duplication, network.jitter = 0.4, 0.2, 0.3
    chance = Random(seed)
    network.call(network.now + chance.random() * 0.1, lambda now: a.send(b))
    network.call(network.now + chance.random() * 0.1, lambda now: b.send(a))
    network.run(9.0)
    settle(network, a, b, 6)
    assert_whole(network, a, b)


@pytest.mark.parametrize("lost", range(6))
@pytest.mark.parametrize("both", [False, True])
def test_one_lost_frame_of_a_crossing(lost: int, both: bool) -> None:
    network = Network(lost)
    a, b = network.host(1), network.host(2)
    network.run(0.2)
    seen: list[bytes] = []

    def drop(data: bytes, source: object, target: object) -> bool:
        if b"PILA" not in data or source == BEACON:
            return False
        seen.append(data)
        return len(seen) - 1 == lost

    network.drop = drop
    a.send(b)
    if both:
        b.send(a)
    network.run(5.0)
    a.send(b)
    b.send(a)
    network.run(0.5)
    assert_whole(network, a, b)


@pytest.mark.parametrize("seed", range(120))
def test_rekeys_from_both_sides_under_loss(seed: int) -> None:
    network = Network(seed)
    a, b = network.pair()
    chance = Random(seed)
    network.loss, network.duplication, network.jitter = 0.3, 0.2, 0.3
    for _ in range(8):
        side, other = (a, b) if chance.random() < 0.5 else (b, a)
        side.tunnel.rekey(other.node, network.now)
        if chance.random() < 0.5:
            other.tunnel.rekey(side.node, network.now)
        for _ in range(4):
            a.send(b)
            b.send(a)
            network.run(chance.random() * 2)
    settle(network, a, b, 20)
    assert_whole(network, a, b)


@pytest.mark.parametrize("seed", range(120))
def test_restarts_and_forgetting_under_loss(seed: int) -> None:
    network = Network(seed)
    a, b = network.pair()
    chance = Random(seed)
    network.loss, network.duplication, network.jitter = 0.3, 0.2, 0.3
    for _ in range(5):
        what = chance.randrange(5)
        if what == 0:
            a = network.restart(a)
        elif what == 1:
            b = network.restart(b)
        elif what == 2:
            a.tunnel.forget(b.node, network.now)
        elif what == 3:
            b.tunnel.reset_path(a.node, network.now)
        else:
            b.tunnel.rekey(a.node, network.now)
        for _ in range(4):
            if chance.random() < 0.7:
                a.send(b)
            if chance.random() < 0.7:
                b.send(a)
            network.run(chance.random() * 3)
    settle(network, a, b, 40)
    assert_whole(network, a, b)


def test_an_answered_rekey_ends_on_one_new_key() -> None:
    network = Network()
    a, b = network.pair()
    before = a.session(b), b.session(a)
    assert a.tunnel.rekey(2, network.now)
    network.run(1.0)
    assert a.session(b) is not before[0]
    assert b.session(a) is not before[1]
    assert a.tunnel._core.get(2).cycle is None
    assert a.tunnel._core.get(2).trial is None
    assert b.tunnel._core.get(1).trial is None
    assert_whole(network, a, b)


def test_a_crossing_makes_one_session_and_one_pair_on_each_side() -> None:
    network = Network()
    a, b = network.host(1), network.host(2)
    network.run(0.2)
    a.send(b)
    b.send(a)
    pairs = a.tunnel._core.get(2).pair, b.tunnel._core.get(1).pair
    network.run(0.2)
    pairs = a.tunnel._core.get(2).pair, b.tunnel._core.get(1).pair
    network.run(2.0)
    assert (a.tunnel._core.get(2).pair, b.tunnel._core.get(1).pair) == pairs
    assert len(a.topics("tunnel.established")) == 1
    assert len(b.topics("tunnel.established")) == 1
    assert_whole(network, a, b)
