"""Handlers of the registry's own administration: beacons, audit log, what it does not offer (rendezvous room, L8).

Source: rendezvous.md 4.11, 6.3 and 7.4.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Final

from pilot._fast.errors import RegistryError
from pilot.protocol.endpoints import split_endpoint_untrusted
from pilot.rendezvous.config import AUDIT_ENTRIES, MAX_BEACONS
from pilot.rendezvous.networks import require_network
from pilot.rendezvous.registry import Fields, Handler, Registry, Request

BEACON_SECONDS: Final = 60.0
OWN_BEACON_ID: Final = 1


def beacon_list(registry: Registry, request: Request) -> Fields:
    """The beacons a node may use: the advertised own one and those registered within `BEACON_SECONDS`."""
    _expire_beacons(registry)
    beacons = {beacon_id: addr for beacon_id, (addr, _) in registry.beacons.items()}
    if registry.config.advertise_beacon:
        beacons.setdefault(OWN_BEACON_ID, registry.config.advertise_beacon)
    return {"beacons": [{"id": beacon_id, "addr": addr} for beacon_id, addr in sorted(beacons.items())]}


def beacon_register(registry: Registry, request: Request) -> Fields:
    """Another beacon announces itself, with the global admin token."""
    registry.require_admin(request)
    beacon_id = request.node_id("beacon_id")
    if not beacon_id:
        raise RegistryError("beacon_id required")
    addr = request.text("addr")
    if not addr:
        raise RegistryError("addr required")
    try:
        split_endpoint_untrusted(addr)
    except ValueError as error:
        raise RegistryError(f"beacon addr invalid: {error}") from None
    _expire_beacons(registry)
    if beacon_id not in registry.beacons and len(registry.beacons) >= MAX_BEACONS:
        raise RegistryError(f"too many beacons (max {MAX_BEACONS})")
    registry.beacons[beacon_id] = (addr, registry.now())
    return {"beacon_id": beacon_id}


def _expire_beacons(registry: Registry) -> None:
    horizon = registry.now() - BEACON_SECONDS
    registry.beacons = {i: beacon for i, beacon in registry.beacons.items() if beacon[1] > horizon}


def get_audit_log(registry: Registry, request: Request) -> Fields:
    """Administrative changes since start, the newest first, of one network or (0) all."""
    registry.require_admin(request)
    network_id = request.network_id()
    limit = min(request.node_id("limit") or AUDIT_ENTRIES, AUDIT_ENTRIES)
    entries = (entry for entry in reversed(registry.audit) if network_id in (0, entry["network_id"]))
    return {"entries": list(islice(entries, limit))}


def get_provision_status(registry: Registry, request: Request) -> Fields:
    """The networks made from blueprints: none, this server has no provisioning."""
    registry.require_admin(request)
    return {"networks": []}


def get_idp_config(registry: Registry, request: Request) -> Fields:
    """The identity provider: none, this server has no identity provider support."""
    registry.require_admin(request)
    return {"configured": False}


def directory_status(registry: Registry, request: Request) -> Fields:
    """How many members of a network an external directory knows: none, this server syncs with no directory."""
    registry.require_admin(request)
    network = require_network(registry, request)
    total = len(registry.state.members[network.network_id])
    return {
        "network_id": network.network_id,
        "total": total,
        "mapped": 0,
        "unmapped": total,
        "enterprise": network.enterprise,
    }


def refuse_statement(registry: Registry, request: Request) -> Fields:
    """Badges and recovery need an issuer whose key is pinned; a private deployment has none."""
    raise RegistryError(f"cannot {request.kind}: this registry has no issuer of badges or recovery statements")


HANDLERS: Final[Mapping[str, Handler]] = {
    "beacon_list": beacon_list,
    "beacon_register": beacon_register,
    "get_audit_log": get_audit_log,
    "get_provision_status": get_provision_status,
    "get_idp_config": get_idp_config,
    "directory_status": directory_status,
    "submit_badge": refuse_statement,
    "enroll_recovery": refuse_statement,
    "recover_identity": refuse_statement,
}
