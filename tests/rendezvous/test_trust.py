"""Trust pairs and the handshake mailbox (rendezvous.md 5), without sockets."""

from __future__ import annotations

import pytest

from pilot.rendezvous import trust
from tests.rendezvous.helpers import Identity, World


def trusted(world: World, a: Identity, b: Identity) -> bool:
    return bool(world.ok({"type": "check_trust", "node_id": a.node_id, "peer_id": b.node_id})["trusted"])


def test_one_side_makes_and_one_side_ends_a_pair(world: World) -> None:
    a, b = world.join(), world.join()
    assert not trusted(world, a, b)
    for _ in range(2):
        assert world.ok(b.request("report_trust", peer_id=a.node_id)) == {"type": "report_trust_ok"}
    assert trusted(world, a, b)
    assert trusted(world, b, a)
    assert world.ok(a.request("revoke_trust", peer_id=b.node_id)) == {"type": "revoke_trust_ok"}
    assert not trusted(world, a, b)
    assert world.error(b.request("revoke_trust", peer_id=a.node_id)) == "no trust pair between 2 and 1"


def test_a_node_may_trust_itself(world: World) -> None:
    a = world.join()
    world.ok(a.request("report_trust", peer_id=a.node_id))
    assert trusted(world, a, a)
    world.ok(a.request("revoke_trust", peer_id=a.node_id))
    assert not trusted(world, a, a)


def test_both_must_be_registered_and_the_reporter_signs(world: World) -> None:
    a, b = world.join(), world.join()
    assert world.error(a.request("report_trust", peer_id=9)) == "node 9: node not found"
    forged = {**a.request("report_trust", peer_id=b.node_id), "node_id": b.node_id, "peer_id": a.node_id}
    assert world.error(forged) == "signature verification failed"


def test_a_shared_network_counts_as_trust(world: World) -> None:
    a, b = world.join(), world.join()
    network = world.admin("create_network", name="team", join_rule="open")["network_id"]
    for node in (a, b):
        world.ok(node.request("join_network", network_id=network, token=""))
    assert trusted(world, a, b)
    world.ok(b.request("leave_network", network_id=network))
    assert not trusted(world, a, b)


def test_pairs_of_one_reporter_are_capped(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust, "MAX_TRUST_PER_NODE", 2)
    a, b, c, d = (world.join() for _ in range(4))
    world.ok(a.request("report_trust", peer_id=b.node_id))
    world.ok(a.request("report_trust", peer_id=c.node_id))
    assert world.error(a.request("report_trust", peer_id=d.node_id)).startswith("too many trust pairs")
    world.ok(d.request("report_trust", peer_id=a.node_id))
    world.ok(b.request("revoke_trust", peer_id=a.node_id))
    world.ok(b.request("report_trust", peer_id=c.node_id))
    assert trusted(world, a, d)


# --------------------------------------------------------------------------------------------- mailbox


def test_accepted_handshake(world: World) -> None:
    a, b = world.join(), world.join()
    sent = world.ok(a.request("request_handshake", to_node_id=b.node_id, justification="hello"))
    assert sent["status"] == "delivered"
    stamp = int(world.clock.wall())
    polled = world.ok(b.request("poll_handshakes"))
    assert polled["requests"] == [{"from_node_id": 1, "justification": "hello", "timestamp": stamp}]
    assert polled["responses"] == []
    assert world.ok(b.request("poll_handshakes"))["requests"] == []
    world.clock.now += 20
    answered = world.ok(b.request("respond_handshake", peer_id=a.node_id, accept=True))
    assert answered == {"type": "respond_handshake_ok", "accept": True, "peer_id": 1}
    assert trusted(world, a, b)
    assert world.ok(a.request("poll_handshakes")) == {
        "type": "poll_handshakes_ok",
        "requests": [],
        "responses": [{"from_node_id": 2, "accept": True, "timestamp": stamp + 20}],
    }
    assert world.ok(a.request("poll_handshakes"))["responses"] == []


def test_odd_use_a_accept_without_a_request_in_the_mailbox(world: World) -> None:
    a, b = world.join(), world.join()
    accept = b.request("respond_handshake", peer_id=a.node_id, accept=True)
    assert world.error(accept) == "no pending handshake request from node 1"
    assert not trusted(world, a, b)
    assert world.ok(a.request("poll_handshakes"))["responses"] == []


def test_odd_use_b_accept_twice(world: World) -> None:
    a, b = world.join(), world.join()
    world.ok(a.request("request_handshake", to_node_id=b.node_id))
    accept = b.request("respond_handshake", peer_id=a.node_id, accept=True)
    world.ok(accept)
    assert world.error(accept) == "no pending handshake request from node 1"
    assert len(world.ok(a.request("poll_handshakes"))["responses"]) == 1
    assert trusted(world, a, b)


def test_odd_use_c_reject_without_any_request(world: World) -> None:
    a, b = world.join(), world.join()
    reject = b.request("respond_handshake", peer_id=a.node_id, accept=False)
    for _ in range(2):
        assert world.ok(reject)["accept"] is False
    responses = world.ok(a.request("poll_handshakes"))["responses"]
    assert [(r["from_node_id"], r["accept"]) for r in responses] == [(2, False)]
    assert not trusted(world, a, b)


def test_pending_means_not_yet_polled(world: World) -> None:
    a, b = world.join(), world.join()
    request = a.request("request_handshake", to_node_id=b.node_id)
    world.ok(request)
    assert world.error(request) == "handshake request already pending from node 1"
    world.ok(b.request("poll_handshakes"))
    world.ok(request)
    world.ok(b.request("respond_handshake", peer_id=a.node_id, accept=False))
    world.ok(request)
    assert len(world.ok(b.request("poll_handshakes"))["requests"]) == 1


def test_requests_refused(world: World) -> None:
    a, b = world.join(), world.join()
    good = a.request("request_handshake", to_node_id=b.node_id, justification="x" * 1024)
    assert world.error({**good, "signature": ""}) == "handshake request requires signature"
    assert world.error({**good, "signature": b.request("heartbeat")["signature"]}) == (
        "handshake request signature verification failed"
    )
    assert world.error(a.request("request_handshake", to_node_id=9)) == "node 9: node not found"
    assert world.error({**good, "justification": "é" * 513}) == "justification too large: 1026 bytes (max 1024)"
    world.ok(good)


def test_caps_of_a_mailbox(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust, "MAX_INBOX", 2)
    monkeypatch.setattr(trust, "MAX_SEEN_REQUESTS", 3)
    monkeypatch.setattr(trust, "MAX_MAILBOX_ROWS", 5)
    target = world.join()
    senders = [world.join() for _ in range(8)]

    def ask(sender: Identity) -> dict[str, object]:
        return sender.request("request_handshake", to_node_id=target.node_id)

    world.ok(ask(senders[0]))
    world.ok(ask(senders[1]))
    assert world.error(ask(senders[2])) == "handshake inbox full for node 1"
    world.ok(target.request("poll_handshakes"))
    world.ok(ask(senders[2]))
    world.ok(ask(senders[3]))
    world.ok(target.request("poll_handshakes"))
    # four were polled, the oldest is forgotten
    accept = target.request("respond_handshake", peer_id=senders[0].node_id, accept=True)
    assert world.error(accept).startswith("no pending")
    world.ok(target.request("respond_handshake", peer_id=senders[1].node_id, accept=True))
    for sender in senders[4:6]:
        world.ok(sender.request("respond_handshake", peer_id=target.node_id, accept=False))
    assert world.error(senders[6].request("respond_handshake", peer_id=target.node_id, accept=False)) == (
        "handshake inbox full for node 1"
    )
    assert world.registry.state.mailbox_rows == 5
    assert world.error(ask(senders[7])).startswith("too many handshake messages")
    world.ok(target.request("poll_handshakes"))
    assert world.registry.state.mailbox_rows == 3


def test_mailboxes_survive_reaping(world: World) -> None:
    a, b = world.join(), world.join()
    world.ok(a.request("request_handshake", to_node_id=b.node_id))
    world.ok(b.request("deregister"))
    world.ok(b.registration())
    assert len(world.ok(b.request("poll_handshakes"))["requests"]) == 1
