"""Handlers that administer a network: its name, roles, policies and member tags (rendezvous room, L8).

Who may: see `Registry.require_role`. Source: rendezvous.md 6.2.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Final

from pilot._fast.errors import RegistryError
from pilot.protocol.names import network_name_untrusted, tags_untrusted
from pilot.protocol.registry import BACKBONE
from pilot.rendezvous.networks import ADMIN, MEMBER, OWNER, record, require_enterprise, require_network
from pilot.rendezvous.registry import Fields, Handler, Registry, Request
from pilot.rendezvous.rules import expr_policy_untrusted
from pilot.rendezvous.store import MemberRow, NetworkRow

MAX_POLICY_MEMBERS: Final = 10_000
MAX_POLICY_PORTS: Final = 100
MAX_DESCRIPTION_CHARS: Final = 256


def delete_network(registry: Registry, request: Request) -> Fields:
    """Remove a network, its memberships and its invites."""
    if request.network_id() == BACKBONE:
        raise RegistryError("cannot delete the backbone network")
    network = require_network(registry, request)
    registry.require_role(request, network, OWNER)
    registry.state.delete_network(network)
    registry.member_lists.pop(network.network_id, None)
    record(registry, request, network.network_id, request.node_id(), network.name)
    return {"network_id": network.network_id}


def rename_network(registry: Registry, request: Request) -> Fields:
    """Give a network another name."""
    if request.network_id() == BACKBONE:
        raise RegistryError("cannot rename the backbone network")
    network = require_network(registry, request)
    registry.require_role(request, network, OWNER, ADMIN)
    name = network_name_untrusted(request.fields.get("name"))
    if registry.state.network_names.get(name, network.network_id) != network.network_id:
        raise RegistryError(f'network "{name}" already exists')
    registry.state.put_network(dataclasses.replace(network, name=name))
    record(registry, request, network.network_id, request.node_id(), name)
    return {"network_id": network.network_id, "name": name}


def set_network_enterprise(registry: Registry, request: Request) -> Fields:
    """Switch the enterprise flag: on, the first member without an owner above it becomes owner; off, roles go."""
    registry.require_admin(request)
    network = require_network(registry, request)
    enterprise = request.flag("enterprise")
    state = registry.state
    members = list(state.members[network.network_id].values())
    has_owner = any(member.role == OWNER for member in members)
    for member in members:
        if not enterprise:
            role = ""
        elif not has_owner:
            role, has_owner = OWNER, True
        else:
            role = member.role or MEMBER
        if role != member.role:
            state.put_member(dataclasses.replace(member, role=role))
    state.put_network(dataclasses.replace(network, enterprise=enterprise))
    record(registry, request, network.network_id, 0, "on" if enterprise else "off")
    return {"network_id": network.network_id, "enterprise": enterprise}


# ---------------------------------------------------------------------------------------------- roles


def get_member_role(registry: Registry, request: Request) -> Fields:
    """The role of a member; anyone may ask."""
    network = require_network(registry, request)
    member = _target(registry, request, network)
    return {"network_id": network.network_id, "target_node_id": member.node_id, "role": member.role or MEMBER}


def promote_member(registry: Registry, request: Request) -> Fields:
    """A member becomes admin."""
    return _change_role(registry, request, MEMBER, ADMIN)


def demote_member(registry: Registry, request: Request) -> Fields:
    """An admin becomes member."""
    return _change_role(registry, request, ADMIN, MEMBER)


def _change_role(registry: Registry, request: Request, old: str, new: str) -> Fields:
    network = require_network(registry, request)
    require_enterprise(network)
    registry.require_role(request, network, OWNER)
    member = _target(registry, request, network)
    if member.role == OWNER:
        raise RegistryError("cannot change the role of the owner: transfer ownership")
    if member.role == new:
        return {"network_id": network.network_id, "target_node_id": member.node_id, "role": new}
    registry.state.put_member(dataclasses.replace(member, role=new))
    record(registry, request, network.network_id, member.node_id, f"{old} to {new}")
    return {"network_id": network.network_id, "target_node_id": member.node_id, "role": new}


def kick_member(registry: Registry, request: Request) -> Fields:
    """Remove a member; nobody removes the owner, and an admin no other admin."""
    network = require_network(registry, request)
    require_enterprise(network)
    member = _target(registry, request, network)
    registry.require_role(request, network, *((OWNER,) if member.role == ADMIN else (OWNER, ADMIN)))
    if member.role == OWNER:
        raise RegistryError("cannot kick the owner of the network")
    registry.state.delete_member(member)
    record(registry, request, network.network_id, member.node_id)
    return {"network_id": network.network_id, "target_node_id": member.node_id}


def transfer_ownership(registry: Registry, request: Request) -> Fields:
    """Another member becomes owner, the old owner admin."""
    network = require_network(registry, request)
    require_enterprise(network)
    registry.require_role(request, network, OWNER)
    heir = _member(registry, network, request.node_id("new_owner_id"))
    state = registry.state
    owner = next((m for m in state.members[network.network_id].values() if m.role == OWNER), None)
    if owner is not None:
        state.put_member(dataclasses.replace(owner, role=ADMIN))
    state.put_member(dataclasses.replace(heir, role=OWNER))
    record(registry, request, network.network_id, heir.node_id)
    old_owner = owner.node_id if owner is not None else 0
    return {"network_id": network.network_id, "old_owner": old_owner, "new_owner": heir.node_id}


def _target(registry: Registry, request: Request, network: NetworkRow) -> MemberRow:
    return _member(registry, network, request.node_id("target_node_id"))


def _member(registry: Registry, network: NetworkRow, node_id: int) -> MemberRow:
    member = registry.state.members[network.network_id].get(node_id)
    if member is None:
        raise RegistryError(f"node {node_id} is not a member of network {network.network_id}")
    return member


# ------------------------------------------------------------------------------------------- policies


def get_network_policy(registry: Registry, request: Request) -> Fields:
    """The limits of a network, all empty for the backbone; anyone may ask."""
    if request.network_id() == BACKBONE:
        return {"network_id": BACKBONE, "max_members": 0, "allowed_ports": [], "description": ""}
    return _policy(require_network(registry, request))


def set_network_policy(registry: Registry, request: Request) -> Fields:
    """Change the limits that the request names."""
    network = require_network(registry, request)
    require_enterprise(network)
    registry.require_role(request, network, OWNER, ADMIN)
    changes: Fields = {}
    if "max_members" in request.fields:
        changes["max_members"] = _whole_untrusted(request.fields["max_members"], "max_members", 0, MAX_POLICY_MEMBERS)
    if "allowed_ports" in request.fields:
        changes["allowed_ports"] = _ports_untrusted(request.fields["allowed_ports"])
    if "description" in request.fields:
        changes["description"] = request.text("description")
        if len(changes["description"]) > MAX_DESCRIPTION_CHARS:
            raise RegistryError(f"description too long (max {MAX_DESCRIPTION_CHARS} characters)")
    network = dataclasses.replace(network, **changes)
    registry.state.put_network(network)
    record(registry, request, network.network_id, request.node_id())
    return _policy(network)


def _policy(network: NetworkRow) -> Fields:
    return {
        "network_id": network.network_id,
        "max_members": network.max_members,
        "allowed_ports": list(network.allowed_ports),
        "description": network.description,
    }


def _ports_untrusted(value: object) -> tuple[int, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise RegistryError("invalid allowed_ports: a list of ports is required")
    if len(value) > MAX_POLICY_PORTS:
        raise RegistryError(f"too many allowed_ports (max {MAX_POLICY_PORTS})")
    return tuple(_whole_untrusted(port, "allowed_ports", 1, 0xFFFF) for port in value)


def _whole_untrusted(value: object, what: str, lowest: int, highest: int) -> int:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not lowest <= value <= highest or value != int(value):  # type: ignore[operator, call-overload]
        raise RegistryError(f"invalid {what}: a whole number in {lowest}..{highest} is required")
    return int(value)  # type: ignore[call-overload, no-any-return]


def get_expr_policy(registry: Registry, request: Request) -> Fields:
    """The expression policy of a network, if it has one; anyone may ask."""
    if request.network_id() == BACKBONE:
        return {"network_id": BACKBONE}
    network = require_network(registry, request)
    reply: Fields = {"network_id": network.network_id}
    return reply | ({"expr_policy": json.loads(network.expr_policy)} if network.expr_policy else {})


def set_expr_policy(registry: Registry, request: Request) -> Fields:
    """Set or clear the expression policy of a network."""
    network = require_network(registry, request)
    registry.require_role(request, network, OWNER, ADMIN)
    policy = expr_policy_untrusted(request.fields.get("expr_policy"))
    registry.state.put_network(dataclasses.replace(network, expr_policy=policy))
    record(registry, request, network.network_id, request.node_id(), "" if policy else "cleared")
    return {"network_id": network.network_id} | ({} if policy else {"cleared": True})


# ---------------------------------------------------------------------------------------- member tags


def set_member_tags(registry: Registry, request: Request) -> Fields:
    """Replace the tags that a network's admins give to a member."""
    network = require_network(registry, request)
    registry.require_role(request, network, OWNER, ADMIN)
    member = _target(registry, request, network)
    tags = tags_untrusted(request.fields.get("tags"))
    registry.state.put_member(dataclasses.replace(member, tags=tags))
    record(registry, request, network.network_id, member.node_id, " ".join(tags))
    return {"network_id": network.network_id, "target_node_id": member.node_id, "tags": list(tags)}


def get_member_tags(registry: Registry, request: Request) -> Fields:
    """The tags of one member, or with target 0 of all that have some; anyone may ask."""
    network = require_network(registry, request)
    target = request.node_id("target_node_id")
    if target:
        member = _target(registry, request, network)
        return {"network_id": network.network_id, "target_node_id": target, "tags": list(member.tags)}
    members = registry.state.members[network.network_id].values()
    tagged = {str(member.node_id): list(member.tags) for member in members if member.tags}
    return {"network_id": network.network_id, "members": tagged}


HANDLERS: Final[Mapping[str, Handler]] = {
    "delete_network": delete_network,
    "rename_network": rename_network,
    "set_network_enterprise": set_network_enterprise,
    "get_member_role": get_member_role,
    "promote_member": promote_member,
    "demote_member": demote_member,
    "kick_member": kick_member,
    "transfer_ownership": transfer_ownership,
    "get_network_policy": get_network_policy,
    "set_network_policy": set_network_policy,
    "get_expr_policy": get_expr_policy,
    "set_expr_policy": set_expr_policy,
    "set_member_tags": set_member_tags,
    "get_member_tags": get_member_tags,
}
