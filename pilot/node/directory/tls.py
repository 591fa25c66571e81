"""How a registry connection is protected: TLS with a pinned certificate or with the system's roots (L8)."""

from __future__ import annotations

import hashlib
import hmac
import re
import ssl
from dataclasses import dataclass

from pilot._fast.errors import InvalidValueError

__all__ = ["RegistryTls"]

_FINGERPRINT = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class RegistryTls:
    """TLS to the registry. Source: reference rendezvous.md, section 2.4.

    With a `fingerprint`, the SHA-256 of the server's leaf certificate in DER form as hex digits (colons and upper case
    are taken too), exactly that certificate is accepted and nothing else of it is looked at, so it may be self-signed.
    Without one the system's roots and the host name decide.

    Raises:
        InvalidValueError: the fingerprint is no SHA-256.
    """

    fingerprint: str | None = None

    def __post_init__(self) -> None:
        if self.fingerprint is None:
            return
        digits = self.fingerprint.replace(":", "").lower()
        if not _FINGERPRINT.fullmatch(digits):
            raise InvalidValueError(
                f"registry fingerprint {self.fingerprint!r} is no SHA-256: give the 64 hex digits the server prints"
            )
        object.__setattr__(self, "fingerprint", digits)

    def context(self) -> ssl.SSLContext:
        """A client context. With a pin its own checks are off, so `verify` must be called before anything is sent."""
        if self.fingerprint is None:
            return ssl.create_default_context()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context

    def verify(self, certificate: bytes | None) -> bool:
        """Whether the leaf `certificate` (DER) is the pinned one; True without a pin, the context has checked then."""
        if self.fingerprint is None:
            return True
        return hmac.compare_digest(hashlib.sha256(certificate or b"").hexdigest(), self.fingerprint)
