"""Requests to third parties, an HTTP service say, signed by a node: the envelope, made and checked (protocol).

Source: services.md 11 (request signing). A verifier learns which node sent the body, when, and for whom; that an
envelope is used once only is for the verifier to see to, by its `nonce`.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from pilot._fast.addr import Addr
from pilot._fast.errors import InvalidValueError

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["FRESH_SECONDS", "RequestEnvelope", "verify_request_untrusted"]

FRESH_SECONDS: Final = 300
"""How far the time of an envelope may be from the verifier's, either way."""
NONCE_BYTES: Final = 8
MAX_ENVELOPE_CHARS: Final = 256

_AUDIENCE: Final = re.compile(r"[a-z0-9.-]{1,64}", re.ASCII)
_ENVELOPE: Final = re.compile(
    r"pilot-req-v1\|([0-9a-f]{4})([0-9a-f]{8})\|(0|[1-9][0-9]{0,17})\|([0-9a-f]{16})\|([0-9a-f]{64})\|([a-z0-9.-]{1,64})",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class RequestEnvelope:
    """What is signed: who sends which body to whom, and when. `str` gives its text.

    Raises:
        InvalidValueError: the audience, the nonce or the digest cannot be used.
    """

    addr: Addr
    timestamp: int
    """Unix seconds."""
    nonce: bytes
    """8 random bytes."""
    body_sha256: bytes
    audience: str
    """Who is meant, a host name for example: 1 to 64 of `a-z 0-9 . -`."""

    def __post_init__(self) -> None:
        if not _AUDIENCE.fullmatch(self.audience):
            raise InvalidValueError(f"audience {self.audience!r} cannot be used: write 1 to 64 of a-z 0-9 . -")
        if len(self.nonce) != NONCE_BYTES or len(self.body_sha256) != 32 or self.timestamp < 0:
            raise InvalidValueError("a request envelope needs 8 bytes of nonce, 32 of digest and a time after 1970")

    def __str__(self) -> str:
        sender = f"{self.addr.network:04x}{self.addr.node:08x}"
        return "|".join(
            ("pilot-req-v1", sender, str(self.timestamp), self.nonce.hex(), self.body_sha256.hex(), self.audience)
        )


def verify_request_untrusted(
    envelope: str, signature: bytes, body: Buffer, *, audience: str, public_key: bytes, now: float
) -> RequestEnvelope:
    """The envelope, when `public_key` has signed it over just this `body` for just this `audience`, lately.

    `now` is in unix seconds. The key is that of the node the envelope names: look it up by `addr.node`.

    Raises:
        InvalidValueError: it is none of that; the message says what, and holds nothing of the body.
    """
    match = _ENVELOPE.fullmatch(envelope) if len(envelope) <= MAX_ENVELOPE_CHARS else None
    if match is None:
        raise InvalidValueError("the request envelope is malformed: pilot-req-v1 and five fields are required")
    network, node, timestamp, nonce, digest, meant = match.groups()
    found = RequestEnvelope(
        Addr(int(network, 16), int(node, 16)), int(timestamp), bytes.fromhex(nonce), bytes.fromhex(digest), meant
    )
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, envelope.encode())
    except (InvalidSignature, ValueError):
        raise InvalidValueError(f"the request is not signed by the key of {found.addr}") from None
    if meant != audience:
        raise InvalidValueError(f"the request is for {meant!r}, not for {audience!r}")
    if not hmac.compare_digest(hashlib.sha256(body).digest(), found.body_sha256):
        raise InvalidValueError(f"the request of {found.addr} was signed over another body")
    if abs(now - found.timestamp) > FRESH_SECONDS:
        raise InvalidValueError(
            f"the request of {found.addr} is {now - found.timestamp:.0f} s old, over {FRESH_SECONDS}: is a clock wrong?"
        )
    return found
