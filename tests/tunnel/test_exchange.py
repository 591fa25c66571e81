"""Key exchange with a peer under the test's hand: wire.md 6 and 7.4, the kx scenarios, checklist 5-13, section 19."""

from __future__ import annotations

import pytest

from pilot.tunnel import ContactState, Resolved, TunnelSettings
from tests.reference import frames
from tests.tunnel.fakes import BEACON, Network, kinds
from tests.tunnel.probe import Probe, met, node_and_probe

ATTACKER = ("203.0.113.66", 6666)

# ------------------------------------------------------------------------------------ PILA received


def test_first_pila_direct() -> None:
    _, host, probe = node_and_probe()
    probe.send(probe.pila(), host)
    assert probe.take() == ["PILA"]
    assert host.topics("tunnel.established") == [{"authenticated": True, "relay": False, "rekeyed": False}]
    assert host.topics("tunnel.peer_added") == [{"peer_node_id": 9}]
    assert host.ready == [9]
    probe.send(probe.sealed(host, b"hello"), host)
    assert host.received() == [b"hello"]
    assert host.session(probe).authenticated


def test_first_pila_by_relay() -> None:
    network, host, probe = node_and_probe()
    probe.relay(probe.pila(), host)
    assert probe.take() == ["deliver PILA"]
    assert host.topics("tunnel.established") == [{"authenticated": True, "relay": True, "rekeyed": False}]
    assert host.peer(probe).relay
    assert host.peer(probe).address is None
    host.send(probe, b"x")
    network.run(0.1)
    assert probe.take() == ["deliver PILS"]


def test_a_direct_copy_behind_the_relayed_one_gives_the_address() -> None:
    network, host, probe = node_and_probe()
    network.send(b"\x06" + (9).to_bytes(4, "big") + probe.pila(), BEACON, host.address)
    network.run(0.05)
    probe.send(probe.pila(), host)
    assert host.peer(probe).address == probe.address
    assert not host.peer(probe).relay
    assert probe.take() == ["deliver PILA"]


def test_a_trusted_peer_is_named_in_the_event() -> None:
    _, host, probe = node_and_probe()
    host.trusted.add(9)
    probe.send(probe.pila(), host)
    assert host.topics("tunnel.established")[0]["peer_node_id"] == 9


def test_a_proved_new_key_resends_the_last_datagrams() -> None:
    network, host, probe = met()
    host.send(probe, b"read")
    network.run(0.1)
    probe.send(probe.sealed(host, b"heard"), host)
    for number in range(6):
        host.send(probe, b"%d" % number)
    network.run(0.1)
    probe.take()
    probe.new_key(2)
    probe.send(probe.pila(), host, settle=0.05)
    # Unlike 1.18.0 nothing goes out again before the peer has shown that it has the key and can read.
    assert probe.take() == ["PILA", "PILS"]
    assert host.topics("tunnel.desync_salvage") == []
    probe.send(probe.sealed(host, b"proof"), host, settle=0.05)
    assert probe.take() == ["PILS"] * 4
    opened = [probe.opened(host, data) for data in probe.seen]
    assert [o.plaintext[34:] for o in opened] == [b"2", b"3", b"4", b"5"]
    assert host.topics("tunnel.established") == [{"authenticated": True, "relay": False, "rekeyed": True}]
    assert host.topics("tunnel.desync_salvage") == [{"peer_node_id": 9, "replayed": 4}]


def test_what_was_sent_before_the_peer_was_last_heard_is_not_sent_again() -> None:
    network, host, probe = met()
    host.send(probe, b"question")
    network.run(0.1)
    probe.send(probe.sealed(host, b"answer"), host)
    probe.take()
    probe.new_key(2)
    probe.send(probe.pila(), host)
    probe.send(probe.sealed(host, b"proof"), host)
    assert probe.take() == ["PILA", "PILS"]
    assert host.topics("tunnel.desync_salvage") == []


def test_weakness_replayed_old_pila_changes_nothing() -> None:
    _, host, probe = met()
    old = probe.pila()
    probe.new_key(2)
    probe.send(probe.pila(), host)
    probe.send(probe.sealed(host), host)
    session = host.session(probe)
    host.events.clear()
    probe.take()
    probe.send(old, host, source=ATTACKER)
    assert probe.take() == []
    assert host.events == []
    assert host.session(probe) is session
    assert host.peer(probe).address == probe.address


def test_wrong_identity_is_asked_once_more_and_dropped() -> None:
    network, host, probe = met()
    network.run(10.0)
    host.lookups.clear()
    impostor = Probe(network, 66)
    impostor.node = 9
    for _ in range(3):
        probe.send(impostor.pila(), host, source=ATTACKER)
    assert host.lookups == [9]
    assert host.events == []
    assert probe.take() == []
    assert impostor.take() == []
    probe.send(probe.sealed(host, b"still"), host)
    assert host.received()[-1] == b"still"


def test_a_new_registered_key_is_believed_after_asking() -> None:
    network, host, probe = met()
    network.run(10.0)
    host.lookups.clear()
    other = Probe(network, 66)
    other.node = 9
    network.registry[9].key = other.identity.public_key().public_bytes_raw()
    probe.send(other.pila(), host)
    assert host.lookups == [9]
    assert host.topics("tunnel.established")[-1]["rekeyed"] is True


def test_unregistered_pila() -> None:
    network, host, _ = node_and_probe()
    stranger = Probe(network, 8, registered=False)
    stranger.send(stranger.pila(), host)
    assert stranger.take() == []
    assert host.events == []
    assert host.datapath.peers() == []


def test_a_failed_lookup_is_remembered_for_three_seconds() -> None:
    network, host, probe = node_and_probe()
    network.registry_up = False
    for _ in range(4):
        probe.send(probe.pila(), host, settle=0.2)
    assert host.lookups == [9]
    network.registry_up = True
    network.run(3.0)
    probe.send(probe.pila(), host)
    assert host.lookups == [9, 9]
    assert probe.take() == ["PILA"]


def test_long_pila() -> None:
    _, host, probe = node_and_probe()
    probe.send(probe.pila() + b"zz", host)
    assert probe.take() == ["PILA"]


@pytest.mark.parametrize("cut", [0, 4, 8, 40, 135])
def test_short_pila(cut: int) -> None:
    _, host, probe = node_and_probe()
    probe.send(probe.pila()[:cut], host)
    assert probe.take() == []
    assert host.lookups == []


def test_low_order_point() -> None:
    _, host, probe = met()
    session = host.session(probe)
    probe.send(frames.encode_pila(9, bytes(32), probe.identity), host)
    assert probe.take() == []
    assert host.session(probe) is session
    assert host.events == []
    assert host.tunnel.counters["pila_low_order"] == 1


def test_the_beacon_is_no_direct_address() -> None:
    _, host, probe = node_and_probe()
    probe.send(probe.pila(), host, source=BEACON)
    assert host.peer(probe).address is None
    probe.relay(probe.pila(), host)
    assert host.peer(probe).address is None


def test_bad_signature() -> None:
    _, host, probe = node_and_probe()
    frame = bytearray(probe.pila())
    frame[-1] ^= 1
    probe.send(bytes(frame), host)
    assert probe.take() == []
    assert host.events == []


def test_same_key_keeps_session_counter_and_window() -> None:
    network, host, probe = met()
    session = host.session(probe)
    network.run(2.0)
    frame = probe.sealed(host)
    probe.send(frame, host)
    probe.send(probe.pila(), host)
    assert host.session(probe) is session
    probe.send(frame, host)
    assert session.received == 2
    assert host.topics("tunnel.established") == [{"authenticated": True, "relay": False, "rekeyed": False}]


def test_duplicate_within_250_ms_has_no_effect() -> None:
    _, host, probe = node_and_probe()
    probe.send(probe.pila(), host, settle=0.05)
    probe.send(probe.pila(), host, settle=0.05)
    assert len(host.topics("tunnel.established")) == 1
    assert probe.take() == ["PILA"]


def test_same_key_is_answered_only_after_silence_and_once_a_second() -> None:
    network, host, probe = met()
    probe.send(probe.pila(), host)
    assert probe.take() == []
    network.run(6.5)
    probe.take()
    for _ in range(5):
        probe.send(probe.pila(), host, settle=0.3)
    assert probe.take().count("PILA") == 2


def test_weakness_same_key_pila_moves_no_address() -> None:
    network, host, probe = met()
    network.run(2.0)
    probe.send(probe.pila(), host, source=ATTACKER)
    host.send(probe, b"x")
    network.run(0.1)
    assert probe.take() == ["PILS"]
    assert host.peer(probe).address == probe.address


def test_a_relayed_pila_leaves_a_known_address_alone() -> None:
    _, host, probe = met()
    probe.new_key(2)
    probe.relay(probe.pila(), host)
    assert host.peer(probe).address == probe.address
    assert not host.peer(probe).relay
    # The known address may be dead, so the answer takes both ways.
    assert {"PILA", "deliver PILA"} <= set(probe.take())


# ------------------------------------------------------------------------------------ PILK received


def test_pilk_is_answered_with_a_pila_and_installs_nothing() -> None:
    _, host, probe = met()
    session = host.session(probe)
    probe.new_key(2)
    probe.send(probe.pilk(), host)
    assert probe.take() == ["PILA"]
    assert host.session(probe) is session
    assert host.events == []


def test_a_lone_pilk_starts_no_retransmits() -> None:
    network, host, probe = met()
    probe.send(probe.pilk(), host)
    probe.take()
    network.run(20.0)
    assert "PILA" not in probe.take()
    assert host.topics("tunnel.rekey_gave_up") == []


def test_weakness_pilk_of_an_unknown_identity() -> None:
    network, host, _ = node_and_probe()
    stranger = Probe(network, 8, registered=False)
    stranger.send(stranger.pilk(), host)
    assert stranger.take() == []
    assert host.events == []
    assert host.datapath.peers() == []


def test_weakness_pilk_with_the_registry_down() -> None:
    network, host, probe = node_and_probe()
    network.registry_up = False
    probe.send(probe.pilk(), host, settle=10.0)
    assert probe.take() == []
    assert host.events == []
    assert host.datapath.peers() == []


@pytest.mark.parametrize("by_relay", [False, True])
def test_pilk_without_known_address(by_relay: bool) -> None:
    _, host, probe = node_and_probe()
    for _ in range(3):
        (probe.relay if by_relay else probe.send)(probe.pilk(), host)
    assert probe.take() == []
    assert host.datapath.peers() == []


@pytest.mark.parametrize("by_relay", [False, True])
def test_burst_of_pilks(by_relay: bool) -> None:
    network, host, probe = node_and_probe()
    probe.relay(probe.pila(), host)
    network.run(2.0)
    probe.take()
    for _ in range(12):
        (probe.relay if by_relay else probe.send)(probe.pilk(), host, settle=0.0)
    network.run(0.15)
    assert probe.take() == ["deliver PILA"] * 5


def test_strict_mode() -> None:
    _, host, probe = node_and_probe(settings=TunnelSettings(probe_mtu=False, strict=True))
    probe.send(probe.pila(), host)
    probe.send(probe.pilk(), host)
    probe.send(b"PILS" + (9).to_bytes(4, "big") + bytes(28), host)
    assert probe.take() == []
    assert host.lookups == []
    host.trusted.add(9)
    probe.send(probe.pila(), host)
    assert probe.take() == ["PILA"]


def test_strict_mode_hears_the_answer_to_its_own_exchange() -> None:
    network, host, probe = node_and_probe(settings=TunnelSettings(probe_mtu=False, strict=True))
    host.send(probe)
    network.run(0.1)
    probe.take()
    probe.send(probe.pila(), host)
    assert "PILS" in probe.take()


# ----------------------------------------------------------------------------------- unknown session


def test_unknown_session_is_answered_on_its_path_and_by_relay() -> None:
    network, host, probe = node_and_probe()
    garbage = b"PILS" + (9).to_bytes(4, "big") + bytes(28)
    probe.send(garbage, host)
    assert sorted(probe.take()) == ["PILA", "PILK", "deliver PILA", "deliver PILK"]
    probe.send(garbage, host)
    assert probe.take() == []
    network.run(3.0)
    probe.send(garbage, host)
    assert len(probe.take()) == 4
    assert host.datapath.peers() == []
    probe.send(probe.pila(), host)
    assert probe.take() == ["PILA"]
    probe.send(probe.sealed(host, b"now"), host)
    assert host.received() == [b"now"]


def test_unknown_session_by_relay_is_answered_by_relay() -> None:
    _, host, probe = node_and_probe()
    probe.relay(b"PILS" + (9).to_bytes(4, "big") + bytes(28), host)
    assert probe.take() == ["deliver PILA", "deliver PILK"]


def test_pils_minimum_length() -> None:
    _, host, probe = node_and_probe()
    probe.send(b"PILS" + (9).to_bytes(4, "big") + bytes(27), host)
    assert probe.take() == []


def test_weakness_unknown_answers_are_limited_per_ip_and_in_total() -> None:
    network, host, _ = node_and_probe()
    start = network.now
    for node in range(100, 400):
        network.send(b"PILS" + node.to_bytes(4, "big") + bytes(28), ATTACKER, host.address)
    network.run(0.5)
    assert len([1 for target, _ in network.sent(host, start) if target == ATTACKER]) == 2 * 5
    start = network.now
    for node in range(400, 700):
        message = b"\x06" + node.to_bytes(4, "big") + b"PILS" + node.to_bytes(4, "big") + bytes(28)
        network.send(message, BEACON, host.address)
    network.run(0.1)
    assert len(network.sent(host, start)) <= 2 * 18


def test_relay_only_answers_unknown_sessions_by_relay() -> None:
    network, host, probe = node_and_probe(settings=TunnelSettings(probe_mtu=False, relay_only=True))
    start = network.now
    probe.send(b"PILS" + (9).to_bytes(4, "big") + bytes(28), host)
    assert probe.take() == ["deliver PILA", "deliver PILK"]
    probe.send(probe.pila(), host)
    probe.send(probe.sealed(host), host)
    host.send(probe, b"x")
    network.run(60.0)
    assert {target for target, _ in network.sent(host, start)} == {BEACON}


# -------------------------------------------------------------------------------- sending a cycle


def test_first_contact_on_the_wire() -> None:
    network, host, probe = node_and_probe()
    start = network.now
    assert host.tunnel.contact(9, network.now) is ContactState.RESOLVING
    assert host.tunnel.describe(9) == "resolve"
    network.run(0.015)
    assert kinds(network.sent(host, start)) == ["punch request", "PILA", "relay PILA"]
    assert host.tunnel.contact(9, network.now) is ContactState.EXCHANGING
    assert host.tunnel.describe(9) == "key exchange"
    network.run(0.1)
    probe.take()
    probe.send(probe.pila(), host)
    assert host.tunnel.contact(9, network.now) is ContactState.READY
    assert host.tunnel.describe(9) == "ready"
    assert host.lookups == [9]


def test_retransmits_take_both_ways_with_a_request_then_give_up() -> None:
    network, host, probe = node_and_probe()
    start = network.now
    host.send(probe)
    network.run(25.0)
    sent = [
        (round(at - start, 1), target == BEACON, data)
        for at, source, target, data in network.log
        if source == host.address and b"PIL" in data and start <= at < start + 24 and b"PILP" not in data
    ]
    times = [at for at, _, data in sent if b"PILA" in data]
    assert times == [at for at in (0.0, 4.0, 8.0, 12.0, 16.0, 20.0) for _ in range(2)]
    assert [relayed for _, relayed, data in sent if b"PILA" in data] == [False, True] * 6
    assert [at for at, relayed, data in sent if b"PILK" in data and relayed] == [4.0, 8.0, 12.0, 16.0, 20.0]
    assert host.peer(probe).relay
    assert host.topics("tunnel.rekey_gave_up") == [{"peer_node_id": 9}]
    assert host.failed == [(9, "the peer did not answer the key exchange")]
    assert host.topics("tunnel.path_suspect") == [{"peer_node_id": 9, "reason": "rekey_gave_up"}]


def test_the_reset_after_giving_up_is_spaced() -> None:
    network, host, probe = node_and_probe()
    host.send(probe)
    network.run(24.5)
    assert host.tunnel._core.get(9).cycle is not None
    network.run(24.0)
    assert len(host.topics("tunnel.rekey_gave_up")) == 2
    assert len(host.topics("tunnel.path_suspect")) == 1
    host.send(probe)
    assert host.tunnel.contact(9, network.now) is ContactState.COOLING
    network.run(6.0)
    assert host.tunnel.contact(9, network.now) is ContactState.EXCHANGING


def test_an_idle_peer_is_not_reset_after_giving_up() -> None:
    network, host, _ = node_and_probe()
    host.tunnel.contact(9, network.now)
    host.datapath.add_peer(9).last_used = network.now - 1000
    network.run(25.0)
    assert len(host.topics("tunnel.rekey_gave_up")) == 1
    assert host.topics("tunnel.path_suspect") == []


def test_every_cycle_without_session_has_its_own_pair() -> None:
    network, host, probe = node_and_probe()
    host.send(probe)
    network.run(40.0)
    keys = [data[8:40] for _, data in network.sent(host) if data[:4] == b"PILA"]
    assert len(set(keys)) == 2
    assert keys == sorted(keys, key=keys.index)


def test_a_late_answer_after_giving_up_is_taken() -> None:
    network, host, probe = node_and_probe()
    host.send(probe, b"late")
    network.run(45.0)
    probe.take()
    probe.send(probe.pila(), host)
    sealed = [data[5:] for name, data in zip(probe.take(), probe.seen, strict=True) if name == "deliver PILS"]
    assert probe.opened(host, sealed[0]).plaintext[34:] == b"late"


def test_nothing_is_exchanged_before_registration() -> None:
    network = Network()
    host = network.host(1, start=False)
    probe = Probe(network)
    host.tunnel.start(network.now)
    host.tunnel.set_beacons([BEACON], [], network.now)
    host.send(probe)
    probe.send(probe.pila(), host)
    network.run(1.0)
    assert network.sent(host) == []
    host.tunnel.registered(1, network.now)
    network.run(0.2)
    assert "PILA" in probe.take()


def test_another_node_id_ends_all_sessions() -> None:
    network, host, probe = met()
    host.tunnel.registered(77, network.now)
    assert host.datapath.peers() == []
    assert host.datapath.own_node == 77
    host.send(probe)
    network.run(0.2)
    probe.take()
    assert any(data[:8] == b"PILA\0\0\0M" for data in probe.seen)


def test_a_contact_that_cannot_be_resolved_fails() -> None:
    network, host, _ = node_and_probe()
    host.tunnel.contact(55, network.now)
    network.run(1.0)
    assert host.failed == [(55, "no such node")]


def test_a_contact_without_address_and_beacon_fails() -> None:
    network = Network(beacon=False)
    host = network.host(1)
    probe = Probe(network)
    network.registry[9].found = Resolved(None)
    host.tunnel.contact(probe.node, network.now)
    network.run(1.0)
    assert host.failed == [(9, "it has no address, and there is no beacon to relay")]


# -------------------------------------------------------------------------------------------- caps


def test_waiting_pilas_are_bounded() -> None:
    network, host, probe = node_and_probe()
    network.registry_answers = False
    for node in range(20, 400):
        other = Probe(network, 9)
        other.node = node
        network.send(other.pila(), (f"203.0.113.{node % 250}", node), host.address)
    network.run(0.1)
    identities = host.tunnel._exchange.identities
    assert identities.waiting == host.tunnel.settings.waiting_cap
    assert len(identities._looking) <= host.tunnel.settings.lookup_cap
    for number in range(10):
        network.send(probe.pila(), (f"203.0.113.{number}", 1), host.address)
    network.run(11.0)
    network.send(probe.pila(), probe.address, host.address)
    network.run(0.1)
    assert identities.waiting <= host.tunnel.settings.waiting_per_node


def test_pilas_of_one_node_that_wait_are_bounded() -> None:
    network, host, probe = node_and_probe()
    network.registry_delay = 1.0
    for number in range(20):
        network.send(probe.pila(), (f"203.0.113.{number}", 1), host.address)
    network.run(0.5)
    assert host.tunnel._exchange.identities.waiting == 4
    network.run(1.0)
    assert host.tunnel._exchange.identities.waiting == 0
    assert len(host.topics("tunnel.established")) == 1


def test_strangers_are_bounded() -> None:
    settings = TunnelSettings(probe_mtu=False, max_strangers=10, unknown_rate=1e9, exchange_burst=10_000)
    network, host, _ = node_and_probe(settings=settings)
    for node in range(100, 200):
        network.send(b"PILS" + node.to_bytes(4, "big") + bytes(28), ATTACKER, host.address)
    network.run(0.1)
    assert len(host.tunnel._core._strangers) == 10


def test_peers_that_strangers_make_are_bounded() -> None:
    settings = TunnelSettings(probe_mtu=False, max_peers=3)
    network, host, _ = node_and_probe(settings=settings)
    for node in range(20, 26):
        probe = Probe(network, node)
        probe.send(probe.pila(), host)
    assert len(host.datapath.peers()) == 3
    assert host.tunnel.counters["peers_full"] == 3


def test_the_total_rate_bounds_verification() -> None:
    settings = TunnelSettings(probe_mtu=False, total_exchange_rate=10.0)
    network, host, probe = node_and_probe(settings=settings)
    for number in range(40):
        network.send(probe.pilk(), (f"203.0.113.{number}", 1), host.address)
    network.run(0.1)
    assert host.tunnel.counters["exchange_rate_limited"] >= 29


def test_garbage_never_raises() -> None:
    network, host, probe = met()
    alive = probe.sealed(host, b"alive")
    random = network.random
    for _ in range(300):
        frame = bytearray(random.choice([probe.pila(), probe.pilk(), b"PILA", b"PILK"]))
        for _ in range(random.randrange(4)):
            frame[random.randrange(len(frame))] = random.randrange(256)
        del frame[random.randrange(len(frame) + 1) :]
        host.tunnel.key_exchange_untrusted(bytes(frame), (f"203.0.113.{random.randrange(250)}", 1), None, network.now)
        host.tunnel.key_exchange_untrusted(bytes(frame), None, random.getrandbits(32), network.now)
        host.tunnel.unknown_session(random.getrandbits(32), None, random.getrandbits(32), network.now)
        host.tunnel.beacon_message_untrusted(bytes(frame[4:]), BEACON, network.now)
        network.run(0.01)
    probe.send(alive, host)
    assert host.received()[-1] == b"alive"
