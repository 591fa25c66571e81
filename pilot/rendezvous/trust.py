"""Handlers of trust pairs and the handshake mailbox (rendezvous room, L8). Source: rendezvous.md 5."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Final

from pilot._fast.errors import RegistryError
from pilot.protocol.registry import MAX_JUSTIFICATION_BYTES
from pilot.rendezvous.config import MAX_INBOX, MAX_MAILBOX_ROWS, MAX_SEEN_REQUESTS, MAX_TRUST_PER_NODE
from pilot.rendezvous.registry import Fields, Handler, Registry, Request
from pilot.rendezvous.store import DecisionRow, NodeRow, RequestRow, TrustRow


def report_trust(registry: Registry, request: Request) -> Fields:
    """Add the pair; one side suffices, twice does no harm, and a node may name itself (1.18.0 does)."""
    node = _signer(registry, request, "node_id")
    peer = registry.require_node(request.node_id("peer_id"))
    _trust(registry, node.node_id, peer.node_id)
    return {}


def revoke_trust(registry: Registry, request: Request) -> Fields:
    """Remove the pair; one side suffices."""
    node = _signer(registry, request, "node_id")
    peer_id = request.node_id("peer_id")
    pair = registry.state.trust.get((min(node.node_id, peer_id), max(node.node_id, peer_id)))
    if pair is None:
        raise RegistryError(f"no trust pair between {node.node_id} and {peer_id}")
    registry.state.delete_trust(pair)
    return {}


def check_trust(registry: Registry, request: Request) -> Fields:
    """Whether two nodes trust each other or share a network; anyone may ask."""
    return {"trusted": registry.state.is_trusted(request.node_id(), request.node_id("peer_id"))}


def request_handshake(registry: Registry, request: Request) -> Fields:
    """Leave a request in the mailbox of a node that cannot be reached directly."""
    if not request.text("signature"):
        raise RegistryError("handshake request requires signature")
    try:
        sender = _signer(registry, request, "from_node_id")
    except RegistryError as error:
        if str(error) == "signature verification failed":
            raise RegistryError("handshake request signature verification failed") from None
        raise
    target = registry.require_node(request.node_id("to_node_id"))
    justification = request.text("justification")
    size = len(justification.encode())
    if size > MAX_JUSTIFICATION_BYTES:
        raise RegistryError(f"justification too large: {size} bytes (max {MAX_JUSTIFICATION_BYTES})")
    box = registry.state.requests.get(target.node_id, {})
    earlier = box.get(sender.node_id)
    if earlier is not None and not earlier.polled:
        raise RegistryError(f"handshake request already pending from node {sender.node_id}")
    if sum(not row.polled for row in box.values()) >= MAX_INBOX:
        raise RegistryError(f"handshake inbox full for node {target.node_id}")
    _require_mailbox_room(registry)
    if earlier is not None:
        registry.state.delete_request(earlier)  # its successor goes to the end of the box, the oldest is at the front
    registry.state.put_request(RequestRow(target.node_id, sender.node_id, justification, registry.unix_time()))
    return {"status": "delivered"}


def poll_handshakes(registry: Registry, request: Request) -> Fields:
    """Hand out and empty the caller's mailbox; of a request the fact that it was made stays until it is answered."""
    node = _signer(registry, request, "node_id")
    state = registry.state
    waiting = [row for row in state.requests.get(node.node_id, {}).values() if not row.polled]
    decisions = list(state.decisions.get(node.node_id, {}).values())
    for row in waiting:
        state.put_request(dataclasses.replace(row, justification="", polled=True))
    for decision in decisions:
        state.delete_decision(decision)
    for row in list(state.requests.get(node.node_id, {}).values())[:-MAX_SEEN_REQUESTS]:
        state.delete_request(row)
    return {
        "requests": [
            {"from_node_id": row.requester, "justification": row.justification, "timestamp": row.timestamp}
            for row in waiting
        ],
        "responses": [
            {"from_node_id": row.responder, "accept": row.accept, "timestamp": row.timestamp} for row in decisions
        ],
    }


def respond_handshake(registry: Registry, request: Request) -> Fields:
    """Queue a decision for the requester; accepting needs a request in the mailbox and makes the pair."""
    node = _signer(registry, request, "node_id")
    peer = registry.require_node(request.node_id("peer_id"))
    accept = request.flag("accept")
    state = registry.state
    asked = state.requests.get(node.node_id, {}).get(peer.node_id)
    if accept and asked is None:
        raise RegistryError(f"no pending handshake request from node {peer.node_id}")
    box = state.decisions.get(peer.node_id, {})
    if node.node_id not in box:
        if len(box) >= MAX_INBOX:
            raise RegistryError(f"handshake inbox full for node {peer.node_id}")
        _require_mailbox_room(registry)
    if accept:
        _trust(registry, node.node_id, peer.node_id)
    if asked is not None:
        state.delete_request(asked)
    state.put_decision(DecisionRow(peer.node_id, node.node_id, accept, registry.unix_time()))
    return {"accept": accept, "peer_id": peer.node_id}


def _signer(registry: Registry, request: Request, field: str) -> NodeRow:
    node = registry.require_node(request.node_id(field))
    registry.require_signature(request, node)
    return node


def _trust(registry: Registry, reporter: int, peer: int) -> None:
    pair = (min(reporter, peer), max(reporter, peer))
    if pair in registry.state.trust:
        return
    if registry.state.trust_reported[reporter] >= MAX_TRUST_PER_NODE:
        raise RegistryError(f"too many trust pairs reported by node {reporter} (max {MAX_TRUST_PER_NODE})")
    registry.state.put_trust(TrustRow(*pair, reporter))


def _require_mailbox_room(registry: Registry) -> None:
    if registry.state.mailbox_rows >= MAX_MAILBOX_ROWS:
        raise RegistryError("too many handshake messages wait in this registry")


HANDLERS: Final[Mapping[str, Handler]] = {
    "report_trust": report_trust,
    "revoke_trust": revoke_trust,
    "check_trust": check_trust,
    "request_handshake": request_handshake,
    "poll_handshakes": poll_handshakes,
    "respond_handshake": respond_handshake,
}
