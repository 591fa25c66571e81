"""The registry without its sockets: state, request fields, who may do what (rendezvous room, L8 server side).

Handlers live in `directory`, `trust`, `networks`, `roles` and `admin`; `dispatch` finds them. All of it is synchronous
and sees one request at a time, so no handler can be interrupted halfway.
"""

from __future__ import annotations

import hashlib
import hmac
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from pilot._fast.addr import Addr
from pilot._fast.errors import InvalidValueError, RegistryError
from pilot.protocol import registry as wire
from pilot.protocol.endpoints import join_endpoint
from pilot.rendezvous.config import AUDIT_ENTRIES, RendezvousConfig
from pilot.rendezvous.limits import Bucket, IpBuckets
from pilot.rendezvous.state import State
from pilot.rendezvous.store import NetworkRow, NodeRow

Fields = dict[str, Any]
MAX_TOKEN_CHARS: Final = 1_024


class Caller(NamedTuple):
    """Where a request came from, and the local address it reached; IPv4-mapped addresses as IPv4."""

    host: str
    port: int
    local_host: str


class Request:
    """One request with typed access to its fields; a field of a wrong type counts as missing (rendezvous.md 2.1)."""

    __slots__ = ("caller", "fields", "kind")

    def __init__(self, fields: Mapping[str, Any], caller: Caller) -> None:
        self.fields = fields
        self.caller = caller
        self.kind = self.text("type")

    def node_id(self, name: str = "node_id") -> int:
        """A node id, 0 when missing."""
        return wire.id_untrusted(self.fields.get(name))

    def network_id(self) -> int:
        """The network id, 0 when missing."""
        return wire.id_untrusted(self.fields.get("network_id"), wire.MAX_NETWORK_ID)

    def text(self, name: str) -> str:
        """A text, "" when missing."""
        value = self.fields.get(name)
        return value if isinstance(value, str) else ""

    def flag(self, name: str) -> bool:
        """True only for JSON true."""
        return self.fields.get(name) is True


Handler = Callable[["Registry", Request], Fields]


class Registry:
    """State and rules that handlers share. `beacon_port` is set once the beacon is bound."""

    def __init__(self, config: RendezvousConfig, state: State) -> None:
        self.config = config
        self.state = state
        self.beacon_port = 0
        self.beacons: dict[int, tuple[str, float]] = {}
        self.audit: deque[Fields] = deque(maxlen=AUDIT_ENTRIES)
        self.new_nodes = IpBuckets(config.limits.new_node_rate, config.limits.new_node_burst, config.limits.ip_table)
        self.member_lists: dict[int, tuple[float, list[Fields]]] = {}
        self.error_log = Bucket(1.0, 10.0)
        self._admin_digest = token_digest(config.admin_token or "")

    # ----------------------------------------------------------------------------------------------- time

    def now(self) -> float:
        """Monotonic seconds."""
        return self.config.clock()

    def unix_time(self) -> int:
        """Wall-clock seconds."""
        return int(self.config.wall_clock())

    def last_seen_unix(self, node_id: int) -> int:
        """When the live node was last heard of, in wall-clock seconds."""
        return int(self.config.wall_clock() - (self.now() - self.state.last_seen[node_id]))

    # ---------------------------------------------------------------------------------------------- nodes

    def require_node(self, node_id: int) -> NodeRow:
        """The live node, or the refusal whose exact words make a daemon register again (rendezvous.md 4.4)."""
        node = self.state.live_node(node_id)
        if node is None:
            raise RegistryError(f"node {node_id}: node not found")
        return node

    def beacon_address(self, caller: Caller) -> str:
        """The beacon as `caller` can reach it."""
        return self.config.advertise_beacon or join_endpoint(caller.local_host, self.beacon_port)

    def reap(self, limit: int = 10_000) -> int:
        """End the registration of at most `limit` nodes not heard of for `stale_after`; returns how many."""
        self.member_lists.clear()
        horizon = self.now() - self.config.stale_after
        reaped = 0
        while reaped < limit and self.state.last_seen:
            node_id, seen = next(iter(self.state.last_seen.items()))
            if seen >= horizon:
                break
            self.end_registration(self.state.nodes[node_id])
            reaped += 1
        return reaped

    def end_registration(self, node: NodeRow) -> None:
        """The node is live no more: name, tags and endpoint go, id, key, owner and relations stay."""
        self.state.put_node(
            NodeRow(node.node_id, node.public_key, node.owner, live=False, signed=node.signed), self.now()
        )

    # ------------------------------------------------------------------------------------- authentication

    def require_signature(self, request: Request, signer: NodeRow) -> None:
        """Refuse unless the request carries a signature by the stored key of `signer`."""
        verify(signer.public_key, request.fields.get("signature"), wire.challenge_text(request.fields))

    def require_signature_or_admin(self, request: Request, signer: NodeRow) -> None:
        """Refuse unless signed by `signer` or accompanied by the global admin token."""
        if not self.is_admin(request):
            self.require_signature(request, signer)

    def is_admin(self, request: Request) -> bool:
        """Whether the request carries the global admin token."""
        return bool(self.config.admin_token) and _matches(self._admin_digest, request)

    def require_admin(self, request: Request) -> None:
        """Refuse unless the request carries the global admin token."""
        if not self.config.admin_token:
            raise RegistryError("network creation is disabled")
        if not self.is_admin(request):
            raise RegistryError("invalid admin token")

    def require_role(self, request: Request, network: NetworkRow, *roles: str) -> None:
        """Refuse unless by the global token, the network's own, or a *signed* request of a member with one of `roles`.

        A deliberate difference: the known server takes the bare `node_id` of an owner for proof, so anyone who knows it
        may administer the network (rendezvous.md 3.2). Here that member signs `admin_challenge_text`.
        """
        if self.is_admin(request):
            return
        if network.admin_token_digest and _matches(network.admin_token_digest, request):
            return
        if request.text("admin_token"):
            raise RegistryError("invalid admin token")
        node_id = request.node_id()
        if not node_id:
            raise RegistryError("rbac: node_id required for role-based authorization")
        self._require_fresh_proof(request, self.require_node(node_id))
        member = self.state.members[network.network_id].get(node_id)
        if member is None or not member.role:
            raise RegistryError(f"rbac: node {node_id} has no role in network {network.network_id}")
        if member.role not in roles:
            raise RegistryError(f'rbac: node {node_id} has role "{member.role}", requires one of [{" ".join(roles)}]')

    def _require_fresh_proof(self, request: Request, signer: NodeRow) -> None:
        timestamp = wire.id_untrusted(request.fields.get("timestamp"), 1 << 53)
        if request.text("signature") and abs(self.unix_time() - timestamp) > wire.ADMIN_PROOF_SECONDS:
            raise RegistryError("the signature requires a timestamp close to the registry's clock")
        verify(signer.public_key, request.fields.get("signature"), wire.admin_challenge_text(request.fields))


def verify(public_key: bytes, signature: object, text: str) -> None:
    """Refuse, in the registry's words, unless `signature` (base64) is one over `text` by `public_key`."""
    if signature is None or signature == "":
        raise RegistryError("signature required for authenticated node")
    try:
        raw = wire.signature_untrusted(signature)
    except InvalidValueError as error:
        raise RegistryError(f"invalid signature encoding: {error}") from None
    if not wire.signature_is_valid(public_key, raw, text):
        raise RegistryError("signature verification failed")


def token_digest(token: str) -> bytes:
    """What is kept and compared of a token; empty for none."""
    return hashlib.sha256(token.encode()).digest() if token else b""


def token_matches(digest: bytes, token: str) -> bool:
    """Whether `token` has this digest, in constant time; an empty digest matches nothing."""
    return bool(digest) and len(token) <= MAX_TOKEN_CHARS and hmac.compare_digest(digest, token_digest(token))


def _matches(digest: bytes, request: Request) -> bool:
    return token_matches(digest, request.text("admin_token"))


def address_text(network_id: int, node_id: int) -> str:
    """The overlay address of a node in a network, as text."""
    return str(Addr(network_id, node_id))
