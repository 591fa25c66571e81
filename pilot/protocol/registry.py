"""Registry messages as both ends see them: frames, envelopes, ids, keys and signed challenges (protocol room, L8).

A message is a 4-byte big-endian length and one JSON object. Nothing here does I/O. Source: rendezvous.md 2 and 3.1.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from pilot._fast.errors import InvalidValueError

Message = dict[str, Any]

HEADER_BYTES: Final = 4
MAX_FRAME_BYTES: Final = 64 * 1024 * 1024
"""What a client accepts as an answer; a server may allow requests much less. Stays below the preamble `PILT`."""
BACKBONE: Final = 0
RESERVED_NODE_IDS: Final = frozenset({0, 0xFFFFFFFE, 0xFFFFFFFF})
"""None, the dashboard's beacon probe, and broadcast: never the id of a node."""
MAX_NODE_ID: Final = 0xFFFFFFFD
MAX_NETWORK_ID: Final = 0xFFFF
MAX_JUSTIFICATION_BYTES: Final = 1024
PUBLIC_KEY_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
ADMIN_PROOF_SECONDS: Final = 300
"""How far the `timestamp` of a signed administrative request may be from the server's wall clock."""

_U32: Final = 0xFFFFFFFF


# ------------------------------------------------------------------------------------------------ frames


def encode_frame(message: Mapping[str, Any]) -> bytes:
    """`message` on the wire: length and JSON with sorted keys.

    `InvalidValueError` above `MAX_FRAME_BYTES` and for numbers that are not finite.
    """
    try:
        body = json.dumps(message, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    except ValueError as error:
        raise InvalidValueError(f"a registry message cannot be written as JSON: {error}") from None
    if len(body) > MAX_FRAME_BYTES:
        raise InvalidValueError(f"a registry message of {len(body)} bytes is over the limit of {MAX_FRAME_BYTES}")
    return len(body).to_bytes(HEADER_BYTES, "big") + body


def frame_length_untrusted(header: bytes, limit: int = MAX_FRAME_BYTES) -> int:
    """How many bytes follow the 4-byte `header`; `InvalidValueError` above `limit` (the connection must be closed)."""
    length = int.from_bytes(header, "big")
    if len(header) != HEADER_BYTES or length > limit:
        raise InvalidValueError(f"a registry frame announces {length} bytes, over the limit of {limit}")
    return length


def decode_body_untrusted(body: bytes) -> Message:
    """The JSON object in `body`; `InvalidValueError` when it is anything else (the connection must be closed).

    Half surrogate pairs become U+FFFD, as in Go, so every string can be stored and sent on.
    """
    try:
        message = json.loads(body.decode("utf-8"), parse_float=_finite, parse_constant=_finite)
        if b"\\u" in body:
            text = json.dumps(message, ensure_ascii=False)
            clean = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            message = message if clean == text else json.loads(clean)
    except (ValueError, RecursionError):
        raise InvalidValueError("a registry frame does not hold valid JSON") from None
    if not isinstance(message, dict):
        raise InvalidValueError("a registry frame does not hold a JSON object")
    return message


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is not a JSON number")
    return value


# --------------------------------------------------------------------------------------------- envelopes


def ok_reply(request_type: str, fields: Mapping[str, Any]) -> Message:
    """A success answer to a request of type `request_type`."""
    return {**fields, "type": f"{request_type}_ok"}


def error_reply(text: str) -> Message:
    """A failure answer with the words `text`."""
    return {"type": "error", "error": text}


def reply_error_untrusted(reply: Mapping[str, Any]) -> str | None:
    """Why `reply` is a failure, in the registry's words, or None for success (rendezvous.md 2.1, acceptance rule)."""
    if "error" in reply:
        return str(reply["error"])
    if reply and "type" not in reply:
        return "malformed response"
    return None


# --------------------------------------------------------------------------------------- ids and keys


def id_untrusted(value: object, highest: int = _U32) -> int:
    """`value` as an id; 0 when it is not a number, negative or above `highest`. Fractions are cut, as doubles are."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0
    if not 0 <= value <= highest:
        return 0
    return int(value)


def public_key_text(key: bytes) -> str:
    """A raw 32-byte key as the registry writes it."""
    return base64.b64encode(key).decode("ascii")


def public_key_untrusted(text: object) -> bytes:
    """The 32 raw bytes of a base64 public key; `InvalidValueError` says what is wrong with it."""
    if not isinstance(text, str) or len(text) > 64:
        raise InvalidValueError("a public key is 44 base64 characters")
    try:
        key = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidValueError(f"a public key is 44 base64 characters: {error}") from None
    if len(key) != PUBLIC_KEY_BYTES:
        raise InvalidValueError(f"a public key is {PUBLIC_KEY_BYTES} bytes, not {len(key)}")
    return key


# ------------------------------------------------------------------------------------------- signatures


class Challenge(NamedTuple):
    """How the text to sign is made from a request: `label`, then each field, joined by colons; and who signs."""

    label: str
    fields: tuple[str, ...]
    signer: str = "node_id"


CHALLENGES: Final[Mapping[str, Challenge]] = {
    "register": Challenge("register", ("listen_addr", "public_key"), "public_key"),
    "heartbeat": Challenge("heartbeat", ("node_id",)),
    "resolve": Challenge("resolve", ("requester_id", "node_id"), "requester_id"),
    "set_visibility": Challenge("set_visibility", ("node_id",)),
    "set_hostname": Challenge("set_hostname", ("node_id",)),
    "set_tags": Challenge("set_tags", ("node_id",)),
    "report_trust": Challenge("report_trust", ("node_id", "peer_id")),
    "revoke_trust": Challenge("revoke_trust", ("node_id", "peer_id")),
    "request_handshake": Challenge("handshake", ("from_node_id", "to_node_id"), "from_node_id"),
    "poll_handshakes": Challenge("poll_handshakes", ("node_id",)),
    "respond_handshake": Challenge("respond", ("node_id", "peer_id")),
    "join_network": Challenge("join_network", ("node_id", "network_id")),
    "leave_network": Challenge("leave_network", ("node_id", "network_id")),
    "invite_to_network": Challenge("invite", ("inviter_id", "network_id", "target_node_id"), "inviter_id"),
    "poll_invites": Challenge("poll_invites", ("node_id",)),
    "respond_invite": Challenge("respond_invite", ("node_id", "network_id")),
    "rotate_key": Challenge("rotate", ("node_id", "new_public_key")),
    "deregister": Challenge("deregister", ("node_id",)),
    "set_key_expiry": Challenge("set_key_expiry", ("node_id",)),
    "punch": Challenge("punch", ("node_a", "node_b"), "requester_id"),
    "submit_badge": Challenge("submit_badge", ("node_id", "badge")),
    "enroll_recovery": Challenge("enroll_recovery", ("node_id", "commitment")),
    "lookup": Challenge("lookup", ("requester_id", "node_id"), "requester_id"),
    "resolve_hostname": Challenge("resolve_hostname", ("requester_id",), "requester_id"),
    "list_nodes": Challenge("list_nodes", ("requester_id", "network_id"), "requester_id"),
    "list_networks": Challenge("list_networks", ("requester_id",), "requester_id"),
    "check_trust": Challenge("check_trust", ("node_id", "peer_id")),
}
"""Every signed request of rendezvous.md 3.1; the last five are proofs that a server may ask for, 1.18.0 sends none."""

_TEXT_FIELDS: Final = frozenset({"listen_addr", "public_key", "new_public_key", "badge", "commitment"})


def challenge_text(request: Mapping[str, Any]) -> str:
    """The text whose UTF-8 bytes are signed for `request`; `InvalidValueError` when its type is never signed.

    Missing ids count as 0 and missing texts as empty, which is how a server reads them.
    """
    challenge = CHALLENGES.get(str(request.get("type")))
    if challenge is None:
        raise InvalidValueError(f"requests of type {request.get('type')!r} carry no signature")
    parts = [challenge.label]
    for field in challenge.fields:
        value = request.get(field)
        if field in _TEXT_FIELDS:
            parts.append(value if isinstance(value, str) else "")
        else:
            parts.append(str(id_untrusted(value)))
    return ":".join(parts)


def admin_challenge_text(request: Mapping[str, Any]) -> str:
    """The text a network owner or admin signs to prove an administrative call without a token; an extension of ours.

    Known servers believe the bare `node_id` of such a call (rendezvous.md 3.2). Ours wants the member's signature over
    everything in the request but the signature, with a `timestamp` in unix seconds that bounds replay.
    """
    body = json.dumps({k: v for k, v in request.items() if k != "signature"}, sort_keys=True, separators=(",", ":"))
    return f"network_admin:{hashlib.sha256(body.encode()).hexdigest()}"


def sign(key: Ed25519PrivateKey, text: str) -> str:
    """The base64 signature of `text`."""
    return base64.b64encode(key.sign(text.encode())).decode("ascii")


def sign_request(request: Message, key: Ed25519PrivateKey) -> Message:
    """`request` with its `signature` field made by `key`; `InvalidValueError` when its type is never signed."""
    return {**request, "signature": sign(key, challenge_text(request))}


def signature_untrusted(text: object) -> bytes:
    """The 64 raw bytes of a base64 signature, or `InvalidValueError`."""
    if not isinstance(text, str) or len(text) > 128:
        raise InvalidValueError("a signature is 88 base64 characters")
    try:
        signature = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidValueError(f"a signature is 88 base64 characters: {error}") from None
    if len(signature) != SIGNATURE_BYTES:
        raise InvalidValueError(f"a signature is {SIGNATURE_BYTES} bytes, not {len(signature)}")
    return signature


def signature_is_valid(public_key: bytes, signature: bytes, text: str) -> bool:
    """Whether `signature` (64 bytes) was made over `text` by the owner of `public_key` (32 bytes)."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, text.encode())
    except (InvalidSignature, ValueError):
        return False
    return True
