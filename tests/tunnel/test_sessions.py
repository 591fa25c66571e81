"""Replaced sessions: proof, stepping back, replayed PILAs, refused keys (wire.md 19, sessions.py)."""

from __future__ import annotations

import pytest

from tests.tunnel.fakes import Host, Network, kind, kinds

ATTACKER = ("203.0.113.66", 6666)


def pilas(network: Network, host: Host) -> list[bytes]:
    """The different PILAs a host has sent directly, in order."""
    found = [data for _, data in network.sent(host) if data[:4] == b"PILA"]
    return list(dict.fromkeys(found))


def replay(network: Network, frame: bytes, target: Host) -> None:
    network.send(frame, ATTACKER, target.address)


def chatter(network: Network, a: Host, b: Host, seconds: float, step: float = 0.25) -> None:
    """Traffic both ways for a while; every packet is numbered by its time."""
    end = network.now + seconds
    while network.now < end:
        a.send(b, b"%.2f" % network.now)
        b.send(a, b"%.2f" % network.now)
        network.run(step)


def amnesiac(network: Network) -> tuple[Host, Host, bytes]:
    """A pair in which the second node has forgotten that the first one once used the key of the PILA returned."""
    a, b = network.pair()
    old = pilas(network, a)[0]
    a = network.restart(a)
    network.run(0.1)
    a.send(b)
    network.run(1.0)
    b = network.restart(b)
    network.run(0.1)
    b.send(a)
    network.run(1.0)
    chatter(network, a, b, 5.0)
    a.datapath.inbox.clear()
    b.datapath.inbox.clear()
    return a, b, old


def test_a_superseded_key_is_refused() -> None:
    network = Network()
    a, b = network.pair()
    old = pilas(network, a)[0]
    a.tunnel.rekey(b.node, network.now)
    network.run(1.0)
    session = b.session(a)
    replay(network, old, b)
    network.run(1.0)
    assert b.session(a) is session
    assert b.peer(a).address == a.address
    assert b.peer(a).previous is not session
    assert b.tunnel.counters["pila_refused_key"] == 1
    assert network.sent(b, network.now - 1.0) == []


def test_a_same_key_replay_moves_no_address() -> None:
    network = Network()
    a, b = network.pair()
    session = b.session(a)
    network.run(10.0)
    replay(network, pilas(network, a)[0], b)
    network.run(1.0)
    assert b.peer(a).address == a.address
    assert b.session(a) is session


def test_a_forgotten_old_key_does_not_cut_a_live_session() -> None:
    network = Network()
    a, b, old = amnesiac(network)
    live = b.session(a)
    start = network.now
    replay(network, old, b)
    chatter(network, a, b, 10.0)
    assert b.tunnel.counters["session_stepped_back"] == 1
    assert b.session(a) is live
    assert b.peer(a).address == a.address
    lost = [at for at in (start + 0.25 * n for n in range(40)) if b"%.2f" % at not in a.received()]
    assert all(at < start + 1.3 for at in lost)
    assert [at for at in (start + 0.25 * n for n in range(40)) if b"%.2f" % at not in b.received()] == []


@pytest.mark.parametrize("named", [None, ("203.0.113.99", 4000)])
def test_a_step_back_leaves_an_address_the_registry_has_named_meanwhile(named: tuple[str, int] | None) -> None:
    """Both by relay; the new key comes from the attacker's address, and does not hold."""
    network = Network()
    a, b, old = amnesiac(network)
    network.drop = lambda data, source, target: source in (a.address, b.address) and target in (a.address, b.address)
    for host, other in ((a, b), (b, a)):
        host.peer(other).relay = True
    replay(network, old, b)
    network.run(0.05)
    assert b.tunnel._core.get(a.node).trial is not None
    assert b.peer(a).address == ATTACKER
    if named is not None:
        b.peer(a).address = named
    chatter(network, a, b, 3.0)
    assert b.tunnel.counters["session_stepped_back"] == 1
    assert b.peer(a).address == (named or a.address)


def test_the_same_old_key_again_and_again_does_no_more() -> None:
    network = Network()
    a, b, old = amnesiac(network)
    live = b.session(a)
    replay(network, old, b)
    chatter(network, a, b, 5.0)
    a.datapath.inbox.clear()
    start = network.now
    for _ in range(100):
        replay(network, old, b)
        chatter(network, a, b, 1.0)
    assert b.session(a) is live
    assert len(a.received()) >= 400
    assert b.peer(a).address == a.address
    assert network.now - start > 90


def test_a_chain_of_old_keys_does_not_push_the_live_session_out() -> None:
    network = Network()
    a, b = network.pair()
    for _ in range(3):
        a = network.restart(a)
        network.run(0.1)
        a.send(b)
        network.run(1.0)
    old = pilas(network, a)[:-1]
    assert len(old) == 3
    b = network.restart(b)
    network.run(0.1)
    b.send(a)
    network.run(1.0)
    chatter(network, a, b, 2.0)
    live = b.session(a)
    for frame in old:
        replay(network, frame, b)
        network.run(0.1)
    chatter(network, a, b, 5.0)
    assert b.session(a) is live
    assert live.received > 0


def test_a_silent_receiver_brings_its_session_back_by_pongs() -> None:
    network = Network()
    a, b, old = amnesiac(network)
    live = b.session(a)
    replay(network, old, b)
    for _ in range(20):
        b.send(a, b"download")
        network.run(0.25)
    assert b.session(a) is live


def test_a_receiver_that_answers_nothing_rekeys() -> None:
    network = Network()
    a, b, old = amnesiac(network)
    a.answers_pings = b.answers_pings = False
    replay(network, old, b)
    for _ in range(60):
        b.send(a, b"%.2f" % network.now)
        network.run(0.25)
    assert a.received()[-1] == b"%.2f" % (network.now - 0.25)


def test_a_restarted_peer_is_followed_at_once() -> None:
    network = Network()
    a, b = network.pair()
    old = b.session(a)
    a = network.restart(a)
    network.run(0.1)
    a.send(b, b"back")
    network.run(0.3)
    assert b.received()[-1] == b"back"
    assert b.session(a) is not old
    b.send(a, b"welcome")
    network.run(0.1)
    assert a.received()[-1] == b"welcome"
    assert b.topics("tunnel.established")[-1]["rekeyed"] is True
    assert b.tunnel._core.get(1).trial is None


def test_a_process_that_was_held_up_uses_no_session_that_has_run_out() -> None:
    """Its timers are late: the datapath has wiped the replaced session when the ping under it is due (seed 459)."""
    network = Network()
    a, b = network.pair()
    network.drop = lambda data, source, target: source == b.address and "PILA" not in kind(data)
    b = network.restart(b)
    b.tunnel.contact(a.node, network.now)
    network.run(0.1)
    assert a.tunnel._core.get(b.node).trial is not None
    later = network.now + 60.0
    a.datapath.receive(b"PILS" + b.node.to_bytes(4, "big") + bytes(40), b.address, later)
    a.tunnel.handle_timer(later)
    assert a.tunnel._core.get(b.node).trial is None


def test_frames_under_way_at_a_rekey_do_not_step_back() -> None:
    network = Network()
    a, b = network.pair()
    network.jitter = 0.3
    for _ in range(20):
        a.send(b)
        network.run(0.01)
    a.tunnel.rekey(b.node, network.now)
    for _ in range(200):
        a.send(b, b"%.3f" % network.now)
        network.run(0.01)
    network.run(1.0)
    assert b.tunnel.counters.get("session_stepped_back", 0) == 0
    assert len(set(b.received())) == 202


def test_the_replaced_session_still_receives() -> None:
    network = Network()
    a, b = network.pair()
    late: list[bytes] = []
    network.drop = lambda data, source, target: data[:4] == b"PILS" and not late and bool(late.append(data) or True)
    a.send(b, b"late")
    network.drop = lambda data, source, target: False
    a.tunnel.rekey(b.node, network.now)
    network.run(0.5)
    network.send(late[0], a.address, b.address)
    network.run(0.1)
    assert b.received()[-1] == b"late"


def test_a_key_that_never_proves_itself_is_refused_for_a_while() -> None:
    network = Network()
    a, b, old = amnesiac(network)
    replay(network, old, b)
    chatter(network, a, b, 35.0)
    assert b.tunnel._core.get(1).trial is None
    refused = b.tunnel.counters.get("pila_refused_key", 0)
    replay(network, old, b)
    chatter(network, a, b, 1.0)
    assert b.tunnel.counters["pila_refused_key"] == refused + 1


def test_an_unproved_session_supersedes_only_when_something_opens() -> None:
    network = Network()
    a, b = network.pair()
    network.drop = lambda data, source, target: source == b.address and b"PILS" in data[:13]
    key = a.session(b).peer_x25519
    b.tunnel.rekey(a.node, network.now)
    network.run(20.0)
    state = a.tunnel._core.get(2)
    assert state.trial is None
    assert not a.tunnel._exchange.sessions.refused.refuses(2, key, network.now)
    network.drop = lambda data, source, target: False
    b.send(a)
    network.run(0.5)
    assert a.tunnel._exchange.sessions.refused.refuses(2, key, network.now)


@pytest.mark.parametrize("gap", [0.0, 0.5, 2.0])
def test_the_old_key_named_again_moves_back_at_once(gap: float) -> None:
    network = Network()
    a, b, old = amnesiac(network)
    live = b.session(a)
    replay(network, old, b)
    network.run(0.1 + gap)
    replay(network, pilas(network, a)[-1], b)
    network.run(0.1)
    assert b.session(a) is live


def test_no_pair_meets_a_peer_key_twice() -> None:
    network = Network()
    a, b = network.pair()
    met: set[tuple[bytes, bytes]] = set()
    for _ in range(6):
        a.tunnel.forget(b.node, network.now)
        network.run(1.0)
        a.send(b)
        network.run(1.0)
        state = b.tunnel._core.get(1)
        key = (state.current.pair.public, state.current.session.peer_x25519)
        assert key not in met
        met.add(key)
    assert len(met) == 6


def test_secrets_are_not_in_reprs() -> None:
    network = Network()
    a, _ = network.pair()
    pair = a.tunnel._core.get(2).pair
    private = pair._private.private_bytes_raw().hex()
    assert private not in repr(pair)
    assert private not in repr(a.tunnel._core.get(2))


def test_stop_wipes_keys() -> None:
    network = Network()
    a, b = network.pair()
    pair = a.tunnel._core.get(2).pair
    a.tunnel.stop(network.now)
    assert pair._private is None
    assert a.datapath.peers() == []
    assert kinds(network.sent(a, network.now)) == []
    network.run(100.0)
    assert kinds(network.sent(a, network.now - 100.0)) == []
    assert b.peer(a).session is not None
