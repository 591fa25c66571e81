"""Handlers of networks and membership: create, join, leave, invite, list (rendezvous room, L8).

Source: rendezvous.md 4.10 and 6.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

from pilot._fast.errors import RegistryError
from pilot.protocol.names import network_name_untrusted
from pilot.protocol.registry import BACKBONE, MAX_NETWORK_ID
from pilot.rendezvous.config import MAX_INBOX, MAX_NETWORK_MEMBERS, MAX_NETWORKS, MAX_NETWORKS_PER_NODE
from pilot.rendezvous.directory import rfc3339
from pilot.rendezvous.registry import (
    MAX_TOKEN_CHARS,
    Fields,
    Handler,
    Registry,
    Request,
    address_text,
    token_digest,
    token_matches,
)
from pilot.rendezvous.rules import expr_policy_untrusted, managed_rules_untrusted
from pilot.rendezvous.state import NEXT_NETWORK_ID
from pilot.rendezvous.store import InviteRow, MemberRow, NetworkRow, NodeRow

OWNER: Final = "owner"
ADMIN: Final = "admin"
MEMBER: Final = "member"
JOIN_RULES: Final = ("open", "token", "invite")
INVITE_SECONDS: Final = 30 * 86_400
MEMBER_LIST_CACHE_SECONDS: Final = 1.0
MEMBER_LIST_CACHE_FROM: Final = 64
"""Member lists of at least this length are kept for a second: every member with a policy engine asks every five."""


def require_network(registry: Registry, request: Request) -> NetworkRow:
    """The network the request names, other than the backbone."""
    network_id = request.network_id()
    network = registry.state.networks.get(network_id)
    if network is None:
        raise RegistryError(f"network {network_id}: network not found")
    return network


def require_enterprise(network: NetworkRow) -> None:
    """Refuse unless the network has the enterprise flag."""
    if not network.enterprise:
        raise RegistryError("enterprise feature: requires enterprise network")


def record(registry: Registry, request: Request, network_id: int, node_id: int, details: str = "") -> None:
    """Note an administrative change in the audit log."""
    registry.audit.append(
        {
            "timestamp": rfc3339(registry.config.wall_clock()),
            "action": request.kind,
            "network_id": network_id,
            "node_id": node_id,
            "details": details,
        }
    )


# ------------------------------------------------------------------------------------ networks as such


def create_network(registry: Registry, request: Request) -> Fields:
    """A new network; a `node_id` other than 0 (what the official command sends) becomes its owner."""
    registry.require_admin(request)
    state = registry.state
    name = network_name_untrusted(request.fields.get("name"))
    rule = request.text("join_rule") or "open"
    enterprise = request.flag("enterprise")
    token = request.text("token")
    own_admin_token = request.text("network_admin_token")
    if rule not in JOIN_RULES:
        raise RegistryError(f"invalid join rule: one of {', '.join(JOIN_RULES)} is required")
    if rule == "token" and not token:
        raise RegistryError("token networks require a token")
    if max(len(token), len(own_admin_token)) > MAX_TOKEN_CHARS:
        raise RegistryError(f"token too long (max {MAX_TOKEN_CHARS} characters)")
    if rule == "invite" and not enterprise:
        raise RegistryError("enterprise feature: invite-only networks require the enterprise flag")
    rules = managed_rules_untrusted(request.fields.get("rules"))
    policy = expr_policy_untrusted(request.fields.get("expr_policy"))
    if name in state.network_names:
        raise RegistryError(f'network "{name}" already exists')
    creator = request.node_id()
    if creator and state.live_node(creator) is None:
        raise RegistryError(f"node {creator} not registered")
    if len(state.networks) >= MAX_NETWORKS or state.next_id(NEXT_NETWORK_ID) > MAX_NETWORK_ID:
        raise RegistryError("too many networks")
    network = NetworkRow(
        state.take_id(NEXT_NETWORK_ID),
        name,
        rule,
        token_digest(token),
        token_digest(own_admin_token),
        enterprise,
        registry.unix_time(),
        rules=rules,
        expr_policy=policy,
    )
    state.put_network(network)
    if creator:
        state.put_member(MemberRow(network.network_id, creator, OWNER))
    record(registry, request, network.network_id, creator, name)
    reply: Fields = {"network_id": network.network_id, "name": name, "enterprise": enterprise}
    return reply | ({"managed": True} if rules else {})


def list_networks(registry: Registry, request: Request) -> Fields:
    """Every network, the backbone first; member counts for the global admin token only."""
    state = registry.state
    counts = registry.is_admin(request)
    backbone: Fields = {
        "id": BACKBONE,
        "name": "backbone",
        "join_rule": "open",
        "enterprise": False,
        "created": state.created,
    }
    if counts:
        backbone["members"] = len(state.last_seen)
    entries = [backbone]
    for network in state.networks.values():
        entry: Fields = {
            "id": network.network_id,
            "name": network.name,
            "join_rule": network.join_rule,
            "enterprise": network.enterprise,
            "created": network.created,
        }
        if counts:
            entry["members"] = len(state.members[network.network_id])
        if network.enterprise:
            entry |= {"max_members": network.max_members, "description": network.description}
        if network.rules:
            entry |= {"managed": True, "rules": json.loads(network.rules)}
        if network.expr_policy:
            entry["has_expr_policy"] = True
        entries.append(entry)
    return {"networks": entries}


# -------------------------------------------------------------------------------------------- members


def join_network(registry: Registry, request: Request) -> Fields:
    """Make the caller a member of an open network, or of a token network whose token it knows."""
    node = registry.require_node(request.node_id())
    registry.require_signature_or_admin(request, node)
    if request.network_id() == BACKBONE:
        raise RegistryError("cannot join the backbone network")
    network = require_network(registry, request)
    if network.join_rule == "invite":
        raise RegistryError("invite-only networks require invite_to_network + respond_invite flow")
    if node.node_id in registry.state.members[network.network_id]:
        raise RegistryError(f"node {node.node_id} already in network {network.network_id}")
    if network.join_rule == "token" and not token_matches(network.token_digest, request.text("token")):
        raise RegistryError(f"invalid token for network {network.network_id}")
    add_member(registry, network, node.node_id)
    reply: Fields = {
        "network_id": network.network_id,
        "address": address_text(network.network_id, node.node_id),
    }
    if network.rules:
        reply["rules"] = json.loads(network.rules)
    if network.expr_policy:
        reply["expr_policy"] = json.loads(network.expr_policy)
    return reply


def add_member(registry: Registry, network: NetworkRow, node_id: int) -> None:
    """Add a member if the network and the node have room for one more membership."""
    state = registry.state
    limit = min(network.max_members or MAX_NETWORK_MEMBERS, MAX_NETWORK_MEMBERS)
    if len(state.members[network.network_id]) >= limit:
        raise RegistryError("network membership limit reached")
    if len(state.networks_of.get(node_id, ())) >= MAX_NETWORKS_PER_NODE:
        raise RegistryError(f"too many networks for node {node_id} (max {MAX_NETWORKS_PER_NODE})")
    state.put_member(MemberRow(network.network_id, node_id, MEMBER))


def leave_network(registry: Registry, request: Request) -> Fields:
    """End the caller's membership."""
    node = registry.require_node(request.node_id())
    registry.require_signature_or_admin(request, node)
    if request.network_id() == BACKBONE:
        raise RegistryError("cannot leave the backbone network")
    network = require_network(registry, request)
    member = registry.state.members[network.network_id].get(node.node_id)
    if member is None:
        raise RegistryError(f"node {node.node_id} is not a member of network {network.network_id}")
    if network.enterprise and member.role == OWNER:
        raise RegistryError("the owner cannot leave: transfer ownership first")
    registry.state.delete_member(member)
    return {"network_id": network.network_id}


def list_nodes(registry: Registry, request: Request) -> Fields:
    """The members of a network, for anyone; of the backbone, for the global admin token."""
    if request.network_id() == BACKBONE:
        if not registry.is_admin(request):
            raise RegistryError("listing backbone nodes is not permitted (use lookup with a specific node_id)")
        state = registry.state
        return {
            "nodes": [_member_entry(registry, request, BACKBONE, node_id, None) for node_id in sorted(state.last_seen)]
        }
    network = require_network(registry, request)
    cached = registry.member_lists.get(network.network_id)
    if cached is not None and registry.now() - cached[0] < MEMBER_LIST_CACHE_SECONDS:
        return {"nodes": cached[1]}
    registry.member_lists.pop(network.network_id, None)
    members = registry.state.members[network.network_id]
    nodes = [
        _member_entry(registry, request, network.network_id, node_id, member)
        for node_id, member in sorted(members.items())
    ]
    if len(nodes) >= MEMBER_LIST_CACHE_FROM:
        registry.member_lists[network.network_id] = (registry.now(), nodes)
    return {"nodes": nodes}


def _member_entry(
    registry: Registry, request: Request, network_id: int, node_id: int, member: MemberRow | None
) -> Fields:
    entry: Fields = {"node_id": node_id, "address": address_text(network_id, node_id)}
    if member is not None and member.role:
        entry["role"] = member.role
    if member is not None and member.tags:
        entry["member_tags"] = list(member.tags)
    node = registry.state.live_node(node_id)
    if node is None:
        return entry | {"offline": True}
    return entry | _shown_node(registry, request, node)


def _shown_node(registry: Registry, request: Request, node: NodeRow) -> Fields:
    shown: Fields = {"public": node.public, "last_seen": rfc3339(registry.last_seen_unix(node.node_id))}
    if node.public:
        shown["real_addr"] = registry.beacon_address(request.caller) if node.relay_only else node.endpoint
        if node.relay_only:
            shown["relay_only"] = True
    if node.hostname:
        shown["hostname"] = node.hostname
    if node.tags:
        shown["tags"] = list(node.tags)
    if node.version:
        shown["version"] = node.version
    return shown


# -------------------------------------------------------------------------------------------- invites


def invite_to_network(registry: Registry, request: Request) -> Fields:
    """Invite a node to an invite-only network: for its owner and admins, by signature, or the admin token."""
    network = require_network(registry, request)
    require_enterprise(network)
    if network.join_rule != "invite":
        raise RegistryError("cannot invite: the network is not invite-only")
    inviter_id = request.node_id("inviter_id")
    target_id = request.node_id("target_node_id")
    if not registry.is_admin(request):
        registry.require_signature(request, registry.require_node(inviter_id))
        member = registry.state.members[network.network_id].get(inviter_id)
        if member is None:
            raise RegistryError(f"node {inviter_id} is not a member of network {network.network_id}")
        if member.role not in (OWNER, ADMIN):
            raise RegistryError(f'rbac: node {inviter_id} has role "{member.role}", requires one of [owner admin]')
    if inviter_id == target_id:
        raise RegistryError("cannot invite yourself")
    target = registry.require_node(target_id)
    if target.node_id in registry.state.members[network.network_id]:
        raise RegistryError(f"node {target.node_id} already in network {network.network_id}")
    reply: Fields = {"network_id": network.network_id, "target_node_id": target.node_id}
    waiting = _current_invites(registry, target.node_id)
    if any(invite.network_id == network.network_id for invite in waiting):
        return reply | {"status": "already_invited"}
    if len(waiting) >= MAX_INBOX:
        raise RegistryError(f"too many invites wait for node {target.node_id}")
    registry.state.put_invite(InviteRow(target.node_id, network.network_id, inviter_id, registry.unix_time()))
    record(registry, request, network.network_id, target.node_id)
    return reply


def _current_invites(registry: Registry, node_id: int) -> list[InviteRow]:
    """The invites of a node; the expired ones go."""
    horizon = registry.unix_time() - INVITE_SECONDS
    current = []
    for invite in list(registry.state.invites.get(node_id, {}).values()):
        if invite.timestamp > horizon:
            current.append(invite)
        else:
            registry.state.delete_invite(invite)
    return current


def poll_invites(registry: Registry, request: Request) -> Fields:
    """The caller's invites; asking does not clear them."""
    node = registry.require_node(request.node_id())
    registry.require_signature(request, node)
    return {
        "invites": [
            {"network_id": invite.network_id, "inviter_id": invite.inviter, "timestamp": invite.timestamp}
            for invite in _current_invites(registry, node.node_id)
        ]
    }


def respond_invite(registry: Registry, request: Request) -> Fields:
    """Take or decline an invite; it is used up either way."""
    node = registry.require_node(request.node_id())
    registry.require_signature(request, node)
    network_id = request.network_id()
    invite = next((i for i in _current_invites(registry, node.node_id) if i.network_id == network_id), None)
    if invite is None:
        raise RegistryError(f"no pending invite for node {node.node_id} to network {network_id}")
    network = require_network(registry, request)
    accept = request.flag("accept")
    if accept and node.node_id not in registry.state.members[network_id]:
        add_member(registry, network, node.node_id)
    registry.state.delete_invite(invite)
    return {"accepted": accept, "network_id": network_id}


HANDLERS: Final[Mapping[str, Handler]] = {
    "create_network": create_network,
    "list_networks": list_networks,
    "join_network": join_network,
    "leave_network": leave_network,
    "list_nodes": list_nodes,
    "invite_to_network": invite_to_network,
    "poll_invites": poll_invites,
    "respond_invite": respond_invite,
}
