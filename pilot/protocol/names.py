"""The rules for hostnames, network names and tags, the same for who asks and who grants (protocol room, L8).

Source: rendezvous.md 4.7, 4.8 and 6.1. The error texts are those of the registry.
"""

from __future__ import annotations

import re
from typing import Final

from pilot._fast.errors import InvalidValueError

MAX_NAME_CHARS: Final = 63
MAX_TAGS: Final = 10
MAX_TAG_CHARS: Final = 32
RESERVED_NAMES: Final = frozenset({"localhost", "backbone", "broadcast"})

_LABEL: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?", re.ASCII)


def hostname_untrusted(value: object) -> str:
    """`value` when it is a usable hostname, else `InvalidValueError` (``invalid hostname: ...``). No case folding."""
    return _name_untrusted(value, "hostname")


def network_name_untrusted(value: object) -> str:
    """`value` when it is a usable network name, else `InvalidValueError` (``invalid network name: ...``)."""
    return _name_untrusted(value, "network name")


def _name_untrusted(value: object, what: str) -> str:
    if not isinstance(value, str) or not value:
        raise InvalidValueError(f"invalid {what}: it must be 1 to {MAX_NAME_CHARS} characters of text")
    if len(value) > MAX_NAME_CHARS:
        raise InvalidValueError(f"invalid {what}: too long (max {MAX_NAME_CHARS} characters)")
    if not _LABEL.fullmatch(value):
        raise InvalidValueError(
            f"invalid {what}: {value!r} must be lowercase alphanumeric with hyphens, alphanumeric at both ends"
        )
    if value in RESERVED_NAMES:
        raise InvalidValueError(f"invalid {what}: {value!r} is reserved")
    return value


def tags_untrusted(value: object) -> tuple[str, ...]:
    """The tags in `value` (a list of texts, or None for none) without leading ``#`` and doubles, in order.

    `InvalidValueError` when there are too many or one is empty, too long or of other characters.
    """
    if value is None:
        return ()
    if not isinstance(value, list | tuple):
        raise InvalidValueError("invalid tags: a list of texts is required")
    if len(value) > MAX_TAGS:
        raise InvalidValueError(f"too many tags (max {MAX_TAGS})")
    return tuple(dict.fromkeys(_tag_untrusted(tag) for tag in value))


def _tag_untrusted(value: object) -> str:
    if not isinstance(value, str):
        raise InvalidValueError("invalid tags: a list of texts is required")
    tag = value.removeprefix("#")
    if not tag:
        raise InvalidValueError("empty tag not allowed")
    if len(tag) > MAX_TAG_CHARS:
        raise InvalidValueError(f'tag "{tag[:MAX_TAG_CHARS]}..." too long (max {MAX_TAG_CHARS} chars)')
    if not _LABEL.fullmatch(tag):
        raise InvalidValueError(f'tag "{tag}" must be lowercase alphanumeric with hyphens')
    return tag
