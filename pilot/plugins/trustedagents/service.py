"""`TrustedAgentsService`: the node's `TrustChecker`, kept up to date (plugin trustedagents, L11).

Source: services.md 7. Unlike 1.18.0 no list and no key are built in: both are the user's to name.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, Self

from pilot.coreapi import InvalidValueError, PilotError, Service, TrustMatch, recover_plugin
from pilot.plugins.trustedagents.document import AgentList, parse_untrusted
from pilot.plugins.trustedagents.sources import FileSource, Source, UrlSource

if TYPE_CHECKING:
    import os
    import ssl
    from random import Random

    from pilot.coreapi import Deps

__all__ = ["TrustedAgentsHost", "TrustedAgentsService"]

NAME: Final = "trustedagents"
FIRST_SECONDS: Final = 30.0
"""A URL is first asked after a random part of this, so that a fleet does not ask in step."""
REFRESH_SECONDS: Final = 3600.0
REFRESH_JITTER: Final = 0.1
KEY_BYTES: Final = 32


class TrustedAgentsHost(Protocol):
    """What the plugin takes from its node beyond `Deps`."""

    @property
    def random(self) -> Random:
        """Spreads the refreshes."""
        ...

    @property
    def add_counter(self) -> Callable[[str, Callable[[], int]], None]:
        """Shows a number in the node's statistics."""
        ...


class TrustedAgentsService(Service):
    """Tells whose handshakes are accepted unasked: a `TrustChecker`, and `is_trusted_with_key` for pinned keys.

    The list comes from `file` or from `url` (HTTPS) and must be signed by `key`: raw Ed25519, 32 bytes, or their
    base64. Without any of the three nobody is on it. A file is read after the start, a URL within 30 s of it, both then
    every hour; when that fails the list before stays.

    Raises:
        InvalidValueError: the source or the key is missing, or cannot be used.
        PilotError: `url` is given and the package httpx is missing.
    """

    name = NAME
    order = 50

    def __init__(
        self,
        host: TrustedAgentsHost,
        *,
        file: str | os.PathLike[str] | None = None,
        url: str | None = None,
        key: bytes | str | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._host = host
        self._source = _source(file, url, tls)
        self._key = _key(key)
        if (self._source is None) is not (self._key is None):
            raise InvalidValueError("a list of trusted agents needs both a source (file or url) and a verifier key")
        self._agents = AgentList()
        self._task: asyncio.Task[None] | None = None
        host.add_counter("trusted_agents", lambda: len(self._agents))

    @classmethod
    def for_node(
        cls,
        facilities: TrustedAgentsHost,
        *,
        file: str | os.PathLike[str] | None = None,
        url: str | None = None,
        key: bytes | str | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> Self:
        """The service of a node with these facilities. Raises what the class raises."""
        return cls(facilities, file=file, url=url, key=key, tls=tls)

    async def start(self, deps: Deps) -> None:
        """Starts the refreshes; a restart keeps the list of the life before."""
        if self._source is not None:
            self._task = asyncio.create_task(self._refresh_for_ever(deps), name=f"pilot {NAME} refresh")

    async def stop(self) -> None:
        """Ends the refreshes. The list stays."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    def is_trusted(self, node_id: int) -> TrustMatch:
        """Whether `node_id` is on the list, whatever key may be pinned there."""
        return self._agents.find(node_id)

    def is_trusted_with_key(self, node_id: int, key: bytes) -> TrustMatch:
        """Whether `node_id` is on the list, and `key` (raw, 32 bytes) the one pinned there if any is."""
        return self._agents.find_with_key(node_id, key)

    @property
    def agents(self) -> AgentList:
        """The present list."""
        return self._agents

    async def refresh(self) -> int:
        """Loads the list now; how many are on it. Cancelled or failed, the list before stays.

        Raises:
            InvalidValueError: what came is no list signed by the key, or there is no source.
            PilotError, OSError: it could not be had; a `TimeoutError` is an `OSError`.
        """
        if self._source is None or self._key is None:
            raise InvalidValueError("there is no source of trusted agents: give the service file or url, and key")
        data = await self._source.fetch()
        try:
            self._agents = parse_untrusted(data, self._key)
        except InvalidValueError as error:
            raise InvalidValueError(f"trusted agents of {self._source!r}: {error}") from None
        return len(self._agents)

    async def _refresh_for_ever(self, deps: Deps) -> None:
        pause = 0.0 if isinstance(self._source, FileSource) else FIRST_SECONDS * self._host.random.random()
        while True:
            await asyncio.sleep(pause)
            pause = REFRESH_SECONDS * (1 + REFRESH_JITTER * self._host.random.random())
            with recover_plugin(NAME, "refresh", deps.events):
                await self._refresh_logged(deps)

    async def _refresh_logged(self, deps: Deps) -> None:
        try:
            count = await self.refresh()
        except (PilotError, OSError) as error:
            deps.logger.warning("the list of trusted agents stays as it is (%d): %s", len(self._agents), error)
        else:
            deps.logger.info("%d trusted agents", count)


def _source(file: str | os.PathLike[str] | None, url: str | None, tls: ssl.SSLContext | None) -> Source | None:
    if file is not None and url is not None:
        raise InvalidValueError("trusted agents come from a file or from a url, not from both")
    if file is not None:
        return FileSource(Path(file))
    return UrlSource(url, tls=tls) if url is not None else None


def _key(key: bytes | str | None) -> bytes | None:
    if key is None:
        return None
    try:
        raw = base64.b64decode(key, validate=True) if isinstance(key, str) else bytes(key)
    except (binascii.Error, ValueError):
        raw = b""
    if len(raw) != KEY_BYTES:
        raise InvalidValueError("the verifier key of trusted agents is no Ed25519 key: give 32 bytes or their base64")
    return raw
