"""Handlers of the node directory: register, heartbeat, lookup, resolve, names, tags, keys (rendezvous room, L8).

Source: rendezvous.md 4. Error texts are the known server's, unmasked.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

from pilot._fast.errors import InvalidValueError, RegistryError
from pilot.protocol import registry as wire
from pilot.protocol.names import hostname_untrusted, tags_untrusted
from pilot.rendezvous.config import MAX_IDENTITIES, MAX_OWNER_CHARS, MAX_VERSION_CHARS
from pilot.rendezvous.endpoints import lan_addrs_untrusted, stored_endpoint_untrusted
from pilot.rendezvous.registry import Fields, Handler, Registry, Request, address_text, verify
from pilot.rendezvous.state import NEXT_NODE_ID
from pilot.rendezvous.store import NodeRow

PROTOCOL_VERSION: Final = 1
KEY_EXPIRY_WARNING_SECONDS: Final = 86_400
MAX_KEY_LIFETIME_SECONDS: Final = 10 * 365 * 86_400


# ---------------------------------------------------------------------------------------- registration


def register(registry: Registry, request: Request) -> Fields:
    """Bind the key in the request to a node id, the same one as ever, and store where the node is."""
    if not request.text("public_key"):
        raise RegistryError("registration requires public_key")
    try:
        public_key = wire.public_key_untrusted(request.text("public_key"))
    except InvalidValueError as error:
        raise RegistryError(f"invalid public key: {error}") from None
    signed = _registration_is_signed(registry, request, public_key)
    owner = request.text("owner")
    if len(owner) > MAX_OWNER_CHARS:
        raise RegistryError(f"owner too long (max {MAX_OWNER_CHARS} characters)")
    caller = request.caller
    endpoint = stored_endpoint_untrusted(request.text("listen_addr"), caller.host, caller.port)
    node = _identified(registry, request, public_key, owner, signed)
    node = dataclasses.replace(
        node,
        signed=node.signed or signed,
        endpoint=endpoint,
        lan_addrs=lan_addrs_untrusted(request.fields.get("lan_addrs")),
        relay_only=request.flag("relay_only"),
        version=_version_untrusted(request.text("version")) or node.version,
    )
    registry.state.put_node(node, registry.now())
    return {
        "node_id": node.node_id,
        "address": address_text(wire.BACKBONE, node.node_id),
        "network_id": wire.BACKBONE,
        "public_key": request.text("public_key"),
        "observed_addr": endpoint,
        "protocol_version": PROTOCOL_VERSION,
        **_requested_hostname(registry, request, node),
    }


def _version_untrusted(text: str) -> str:
    """What may be shown to others of a version text; "" when it is unusable."""
    return text[:MAX_VERSION_CHARS] if text.isprintable() else ""


def _registration_is_signed(registry: Registry, request: Request, public_key: bytes) -> bool:
    signature = request.text("signature")
    if signature:
        try:
            verify(public_key, signature, wire.challenge_text(request.fields))
        except RegistryError as error:
            raise RegistryError(f"registration: {error}") from None
        return True
    if registry.config.require_signed_registration:
        raise RegistryError("registration: signature required")
    known = registry.state.nodes.get(registry.state.by_key.get(public_key, 0))
    if known is not None and known.signed:
        raise RegistryError(f"node {known.node_id}: unsigned registration cannot modify a signature-verified key")
    return False


def _identified(registry: Registry, request: Request, public_key: bytes, owner: str, signed: bool) -> NodeRow:
    """The record to register under, by the five rules of rendezvous.md 4.3; nothing but ids changes here."""
    state = registry.state
    known = state.nodes.get(state.by_key.get(public_key, 0))
    if known is not None and known.live:
        if not known.owner and owner and owner not in state.by_owner:
            return dataclasses.replace(known, owner=owner)
        return known
    limits = registry.config.limits
    if len(state.last_seen) >= limits.max_nodes:
        raise RegistryError("registry full")
    fresh = NodeRow(0, public_key, owner, key_created=registry.config.wall_clock())
    if known is not None:
        return dataclasses.replace(
            fresh, node_id=known.node_id, owner=known.owner or owner, signed=known.signed or signed
        )
    namesake = state.nodes.get(state.by_owner.get(owner, 0)) if owner else None
    if namesake is not None and namesake.live:
        raise RegistryError(
            f'owner "{owner}" is already bound to node {namesake.node_id} with a different key; '
            "use recover_identity to rotate the key"
        )
    if not registry.new_nodes.take(request.caller.host, registry.now()):
        raise RegistryError(f"rate limited: too many registrations from {request.caller.host}")
    if namesake is not None and registry.config.owner_rebind:
        _drop_relations(registry, namesake.node_id)
        return dataclasses.replace(fresh, node_id=namesake.node_id)
    if len(state.nodes) >= MAX_IDENTITIES:
        raise RegistryError("registry full")
    if state.next_id(NEXT_NODE_ID) > wire.MAX_NODE_ID:
        raise RegistryError("node ID space exhausted")
    return dataclasses.replace(fresh, node_id=state.take_id(NEXT_NODE_ID))


def _drop_relations(registry: Registry, node_id: int) -> None:
    """End all that others granted to the id: an owner's e-mail address proves nothing, so a new key starts without it.

    The known server resets the memberships only. An honest node loses nothing: it reports its trust pairs again.
    """
    state = registry.state
    for member in state.memberships_of(node_id):
        state.delete_member(member)
    for pair in state.trust_of(node_id):
        state.delete_trust(pair)
    for invite in list(state.invites.get(node_id, {}).values()):
        state.delete_invite(invite)
    for mail in list(state.requests.get(node_id, {}).values()):
        state.delete_request(mail)
    for decision in list(state.decisions.get(node_id, {}).values()):
        state.delete_decision(decision)


def _requested_hostname(registry: Registry, request: Request, node: NodeRow) -> Fields:
    name = request.text("hostname")
    if not name:
        return {"hostname": node.hostname} if node.hostname else {}
    try:
        return {"hostname": _name_node(registry, node, name)}
    except (InvalidValueError, RegistryError) as error:
        return {"hostname_error": str(error)}


def deregister(registry: Registry, request: Request) -> Fields:
    """End a registration at the node's wish; an unknown node is as gone as it wants to be."""
    node = registry.state.live_node(request.node_id())
    if node is None:
        return {}
    registry.require_signature_or_admin(request, node)
    state = registry.state
    for member in state.memberships_of(node.node_id):
        state.delete_member(member)
    for invite in list(state.invites.get(node.node_id, {}).values()):
        state.delete_invite(invite)
    for invite in [i for box in state.invites.values() for i in box.values() if i.inviter == node.node_id]:
        state.delete_invite(invite)
    registry.end_registration(node)
    return {}


def heartbeat(registry: Registry, request: Request) -> Fields:
    """The node lives. An unknown id or a wrong key is answered so that the daemon registers again at once."""
    node = registry.require_node(request.node_id())
    registry.require_signature(request, node)
    now = registry.config.wall_clock()
    if node.key_expires and now >= node.key_expires:
        raise RegistryError(f"node {node.node_id}: key expired at {rfc3339(node.key_expires)}")
    registry.state.touch(node.node_id, registry.now())
    reply: Fields = {"time": int(now)}
    if node.key_expires and node.key_expires - now <= KEY_EXPIRY_WARNING_SECONDS:
        reply["key_expiry_warning"] = True
    return reply


# ------------------------------------------------------------------------------------------- questions


def lookup(registry: Registry, request: Request) -> Fields:
    """Who a node is: key, name, tags and networks for anyone, the endpoint of public nodes only."""
    node = registry.require_node(request.node_id())
    reply: Fields = {
        "node_id": node.node_id,
        "address": address_text(wire.BACKBONE, node.node_id),
        "networks": registry.state.networks_with(node.node_id),
        "public_key": wire.public_key_text(node.public_key),
        "public": node.public,
        "last_seen_unix": registry.last_seen_unix(node.node_id),
        "key_generation": node.rotations,
    }
    if node.hostname:
        reply["hostname"] = node.hostname
    if node.tags:
        reply["tags"] = list(node.tags)
    if node.version:
        reply["version"] = node.version
    if node.public:
        address = registry.beacon_address(request.caller) if node.relay_only else node.endpoint
        reply |= {"real_addr": address, "endpoint": address}
        if node.relay_only:
            reply["relay_only"] = True
    return reply


def may_resolve(registry: Registry, requester_id: int, target: NodeRow) -> bool:
    """Whether the endpoint of `target` may be told: it is public, asks about itself, trusts or shares a network."""
    return target.public or requester_id == target.node_id or registry.state.is_trusted(requester_id, target.node_id)


def resolve(registry: Registry, request: Request) -> Fields:
    """Where a node is, for who may know."""
    requester = registry.state.live_node(request.node_id("requester_id"))
    if requester is None:
        raise RegistryError(f"resolve denied: requester node {request.node_id('requester_id')} is not registered")
    registry.require_signature(request, requester)
    target = registry.require_node(request.node_id())
    if not may_resolve(registry, requester.node_id, target):
        raise RegistryError(f"resolve denied: node {target.node_id} is private (establish mutual trust first)")
    reply: Fields = {"node_id": target.node_id, "key_age_days": _key_age_days(registry, target)}
    if target.relay_only:
        return reply | {"real_addr": registry.beacon_address(request.caller), "relay_only": True}
    reply["real_addr"] = target.endpoint
    if target.lan_addrs:
        reply["lan_addrs"] = list(target.lan_addrs)
    return reply


def resolve_hostname(registry: Registry, request: Request) -> Fields:
    """Which node has a name. A private one is "not found" but for a `requester_id` that could resolve it.

    As on the known server the `requester_id` needs no proof (`lookup` shows the same to anyone); a `signature` that
    comes with it must be right.
    """
    name = request.text("hostname")
    node = registry.state.live_node(registry.state.by_hostname.get(name, 0))
    requester = registry.state.live_node(request.node_id("requester_id"))
    if requester is not None and request.text("signature"):
        registry.require_signature(request, requester)
    if node is None or not (node.public or (requester and may_resolve(registry, requester.node_id, node))):
        raise RegistryError(f'hostname "{name[:80]}" not found')
    return {
        "node_id": node.node_id,
        "address": address_text(wire.BACKBONE, node.node_id),
        "public": node.public,
        "hostname": node.hostname,
        "last_seen_unix": registry.last_seen_unix(node.node_id),
    }


def punch(registry: Registry, request: Request) -> Fields:
    """Both endpoints of a pair, for one of them, by the rules of `resolve` (a deliberate difference)."""
    requester = registry.require_node(request.node_id("requester_id"))
    registry.require_signature(request, requester)
    ids = (request.node_id("node_a"), request.node_id("node_b"))
    if requester.node_id not in ids:
        raise RegistryError("invalid punch: the requester must be one of the two nodes")
    nodes = [registry.require_node(node_id) for node_id in ids]
    for node in nodes:
        if not may_resolve(registry, requester.node_id, node):
            raise RegistryError(f"resolve denied: node {node.node_id} is private (establish mutual trust first)")
    beacon = registry.beacon_address(request.caller)
    first, second = (beacon if node.relay_only else node.endpoint for node in nodes)
    return {"node_a": ids[0], "node_a_addr": first, "node_b": ids[1], "node_b_addr": second}


# -------------------------------------------------------------------------------------- names and tags


def set_hostname(registry: Registry, request: Request) -> Fields:
    """Give a node a name, free its old one; "" only frees. Repeating it is fine: daemons do, each minute."""
    node = registry.require_node(request.node_id())
    registry.require_signature_or_admin(request, node)
    name = _name_node(registry, node, request.text("hostname"))
    return {"node_id": node.node_id, "hostname": name}


def _name_node(registry: Registry, node: NodeRow, name: str) -> str:
    if name:
        hostname_untrusted(name)
        holder = registry.state.by_hostname.get(name, node.node_id)
        if holder != node.node_id:
            raise RegistryError(f'hostname "{name}" already in use by node {holder}')
    registry.state.put_node(dataclasses.replace(node, hostname=name), registry.now())
    return name


def set_visibility(registry: Registry, request: Request) -> Fields:
    """Show or hide the node's endpoint."""
    node = registry.require_node(request.node_id())
    registry.require_signature_or_admin(request, node)
    public = request.flag("public")
    registry.state.put_node(dataclasses.replace(node, public=public), registry.now())
    return {"node_id": node.node_id, "visibility": "public" if public else "private"}


def set_tags(registry: Registry, request: Request) -> Fields:
    """Replace the node's tags."""
    node = registry.require_node(request.node_id())
    registry.require_signature_or_admin(request, node)
    tags = tags_untrusted(request.fields.get("tags"))
    registry.state.put_node(dataclasses.replace(node, tags=tags), registry.now())
    return {"node_id": node.node_id, "tags": list(tags)}


# ------------------------------------------------------------------------------------------------ keys


def rotate_key(registry: Registry, request: Request) -> Fields:
    """Replace the node's key at the wish of the old one. A repeat of the last rotation is answered as the first was."""
    if not request.text("new_public_key"):
        raise RegistryError("rotate_key requires new_public_key")
    try:
        new_key = wire.public_key_untrusted(request.text("new_public_key"))
    except InvalidValueError as error:
        raise RegistryError(f"invalid new_public_key: {error}") from None
    if not request.text("signature"):
        raise RegistryError("rotate_key requires a valid signature")
    node = registry.require_node(request.node_id())
    is_repeat = new_key == node.public_key and bool(node.previous_key)
    verify(
        node.previous_key if is_repeat else node.public_key,
        request.text("signature"),
        wire.challenge_text(request.fields),
    )
    if not is_repeat:
        if registry.state.by_key.get(new_key, node.node_id) != node.node_id:
            raise RegistryError("invalid new_public_key: already registered by another node")
        rotated = dataclasses.replace(
            node,
            public_key=new_key,
            previous_key=node.public_key,
            key_rotated=registry.config.wall_clock(),
            rotations=node.rotations + 1,
        )
        registry.state.put_node(rotated, registry.now())
    return {
        "node_id": node.node_id,
        "address": address_text(wire.BACKBONE, node.node_id),
        "public_key": request.text("new_public_key"),
    }


def get_key_info(registry: Registry, request: Request) -> Fields:
    """Age and history of a node's key."""
    node = registry.require_node(request.node_id())
    reply: Fields = {
        "node_id": node.node_id,
        "created_at": rfc3339(node.key_created),
        "rotate_count": node.rotations,
        "key_age_days": _key_age_days(registry, node),
    }
    if node.key_rotated:
        reply["rotated_at"] = rfc3339(node.key_rotated)
    if node.key_expires:
        reply["expires_at"] = rfc3339(node.key_expires)
    return reply


def set_key_expiry(registry: Registry, request: Request) -> Fields:
    """Set or clear ("never") when the key of a member of an enterprise network ends."""
    node = registry.require_node(request.node_id())
    registry.require_signature_or_admin(request, node)
    state = registry.state
    if not any(state.networks[member.network_id].enterprise for member in state.memberships_of(node.node_id)):
        raise RegistryError("enterprise feature: requires enterprise network")
    text = request.text("expires_at")
    expires = 0.0 if text == "never" else _expiry_untrusted(text)
    if expires and not 0 < expires - registry.config.wall_clock() <= MAX_KEY_LIFETIME_SECONDS:
        raise RegistryError("invalid expires_at: it must be in the future and within 10 years")
    state.put_node(dataclasses.replace(node, key_expires=expires), registry.now())
    return {"node_id": node.node_id, "expires_at": text}


def _expiry_untrusted(text: str) -> float:
    try:
        time = datetime.fromisoformat(text[:64])
        if time.tzinfo is None:
            raise ValueError("no time zone")
        return time.timestamp()
    except (ValueError, OverflowError):
        raise RegistryError("invalid expires_at: an RFC 3339 time or 'never' is required") from None


def _key_age_days(registry: Registry, node: NodeRow) -> int:
    return max(0, int(registry.config.wall_clock() - (node.key_rotated or node.key_created)) // 86_400)


def rfc3339(unix_time: float) -> str:
    """A time of the wall clock as the registry writes it, to the second, UTC."""
    return datetime.fromtimestamp(int(unix_time), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


HANDLERS: Final[Mapping[str, Handler]] = {
    "register": register,
    "deregister": deregister,
    "heartbeat": heartbeat,
    "lookup": lookup,
    "resolve": resolve,
    "resolve_hostname": resolve_hostname,
    "punch": punch,
    "set_hostname": set_hostname,
    "set_visibility": set_visibility,
    "set_tags": set_tags,
    "rotate_key": rotate_key,
    "get_key_info": get_key_info,
    "set_key_expiry": set_key_expiry,
}
