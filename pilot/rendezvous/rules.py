"""Checks of the JSON documents a network may carry: managed rules and expression policies (rendezvous room, L8).

The registry stores and serves them; daemons carry them out. Source: rendezvous.md 6.2.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

from pilot._fast.errors import InvalidValueError, RegistryError
from pilot.protocol.registry import decode_body_untrusted

MAX_DOCUMENT_BYTES: Final = 64 * 1024
POLICY_VERSION: Final = 1
MAX_LINKS: Final = 100_000

_DURATION: Final = re.compile(
    r"(?:(\d{1,9}(?:\.\d{1,9})?)h)?(?:(\d{1,9}(?:\.\d{1,9})?)m)?(?:(\d{1,9}(?:\.\d{1,9})?)s)?", re.ASCII
)


def expr_policy_untrusted(value: object) -> str:
    """An expression policy (JSON text or object) as compact JSON, "" for none; `RegistryError` when it is unusable."""
    document = _document_untrusted(value, "expr_policy")
    if document is None:
        return ""
    if document.get("version") != POLICY_VERSION:
        raise RegistryError(f"invalid expr_policy: version {POLICY_VERSION} is required")
    rules = document.get("rules")
    if not isinstance(rules, list) or not rules:
        raise RegistryError("invalid expr_policy: at least one rule is required")
    return _compact(document)


def managed_rules_untrusted(value: object) -> str:
    """Managed rules (JSON text or object) as compact JSON, "" for none; `RegistryError` when they are unusable."""
    document = _document_untrusted(value, "rules")
    if document is None:
        return ""
    links = _count_untrusted(document.get("links"))
    if links < 1:
        raise RegistryError("invalid rules: links must be at least 1")
    if _seconds_untrusted(document.get("cycle")) < 60:
        raise RegistryError("invalid rules: cycle must be a duration of at least 1m")
    for name in ("prune", "fill"):
        if not 0 <= _count_untrusted(document.get(name, 0)) <= links:
            raise RegistryError(f"invalid rules: {name} must be in 0..links")
    if document.get("prune_by", "score") not in ("score", "age", "activity"):
        raise RegistryError("invalid rules: prune_by must be score, age or activity")
    if document.get("fill_how", "random") != "random":
        raise RegistryError("invalid rules: fill_how must be random")
    return _compact(document)


def _document_untrusted(value: object, what: str) -> dict[str, Any] | None:
    if value is None or value == "" or (isinstance(value, str) and value.strip() == "null"):
        return None
    if isinstance(value, str):
        if len(value) > MAX_DOCUMENT_BYTES:
            raise RegistryError(f"{what} too long (max {MAX_DOCUMENT_BYTES} bytes)")
        try:
            return decode_body_untrusted(value.encode())
        except InvalidValueError:
            raise RegistryError(f"invalid {what}: a JSON object is required") from None
    if not isinstance(value, dict):
        raise RegistryError(f"invalid {what}: a JSON object is required")
    return value


def _compact(document: dict[str, Any]) -> str:
    text = json.dumps(document, separators=(",", ":"))
    if len(text) > MAX_DOCUMENT_BYTES:
        raise RegistryError(f"document too long (max {MAX_DOCUMENT_BYTES} bytes)")
    return text


def _count_untrusted(value: object) -> int:
    """A whole number in 0..`MAX_LINKS`, else -1."""
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not 0 <= value <= MAX_LINKS
        or value != int(value)
    ):
        return -1
    return int(value)


def _seconds_untrusted(value: object) -> float:
    """A Go duration of hours, minutes and seconds (``1h30m``) in seconds, else -1."""
    match = _DURATION.fullmatch(value) if isinstance(value, str) and value else None
    if match is None:
        return -1.0
    hours, minutes, seconds = (float(part or 0) for part in match.groups())
    return hours * 3600 + minutes * 60 + seconds
