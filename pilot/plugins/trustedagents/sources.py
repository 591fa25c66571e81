"""Where the list comes from: a file, or a URL over HTTPS (plugin trustedagents, L11). Source: services.md 7."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Protocol

from pilot.coreapi import InvalidValueError, PilotError
from pilot.coreapi.files import read_limited
from pilot.plugins.trustedagents.document import MAX_DOCUMENT_BYTES

if TYPE_CHECKING:
    import ssl
    from pathlib import Path
    from types import ModuleType

    import httpx

__all__ = ["FileSource", "Source", "UrlSource"]

FETCH_SECONDS: Final = 30.0
MAX_REDIRECTS: Final = 5
USER_AGENT: Final = "pilot-daemon/trustedagents"
OK: Final = 200


class Source(Protocol):
    """Brings the document, unverified."""

    async def fetch(self) -> bytes:
        """At most `MAX_DOCUMENT_BYTES`. Cancelling it changes nothing.

        Raises:
            PilotError, OSError: it cannot be had; a `TimeoutError` is an `OSError`.
        """
        ...


class FileSource:
    """A file, read anew each time."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def fetch(self) -> bytes:
        """See `Source.fetch`."""
        return await asyncio.to_thread(read_limited, self._path, MAX_DOCUMENT_BYTES)

    def __repr__(self) -> str:
        return str(self._path)


class UrlSource:
    """An HTTPS URL. No proxy of the environment is used; redirects lead to HTTPS only.

    `tls` replaces the default context, for a private certificate authority. `transport` is for tests.

    Raises:
        InvalidValueError: it is no HTTPS URL.
        PilotError: the package httpx is missing.
    """

    def __init__(
        self, url: str, *, tls: ssl.SSLContext | None = None, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self._http = _httpx()
        try:
            self._url: httpx.URL = self._http.URL(url)
        except (self._http.InvalidURL, TypeError) as error:
            raise InvalidValueError(f"the URL of trusted agents cannot be used: {error}") from None
        self._check(self._url)
        self._tls = tls
        self._transport = transport

    def __repr__(self) -> str:
        """Without path, query and user, which may be secret."""
        return f"https://{self._url.host}"

    async def fetch(self) -> bytes:
        """See `Source.fetch`."""
        try:
            async with (
                asyncio.timeout(FETCH_SECONDS),
                self._http.AsyncClient(
                    verify=self._tls if self._tls is not None else True,
                    transport=self._transport,
                    timeout=FETCH_SECONDS,
                    follow_redirects=False,
                    trust_env=False,
                    headers={"User-Agent": USER_AGENT, "Accept-Encoding": "identity"},
                ) as client,
            ):
                return await self._get(client)
        except (self._http.HTTPError, self._http.StreamError, self._http.InvalidURL) as error:
            raise PilotError(f"{self!r} gave no list: {type(error).__name__}: {error}") from error

    async def _get(self, client: httpx.AsyncClient) -> bytes:
        request = client.build_request("GET", self._url)
        for _ in range(MAX_REDIRECTS + 1):
            response = await client.send(request, stream=True)
            try:
                if response.next_request is None:
                    return await self._body_untrusted(response)
                request = response.next_request
            finally:
                await response.aclose()
            self._check(request.url)
        raise PilotError(f"{self!r} redirects more than {MAX_REDIRECTS} times")

    async def _body_untrusted(self, response: httpx.Response) -> bytes:
        if response.status_code != OK:
            raise PilotError(f"{self!r} answered {response.status_code}, not {OK}")
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise PilotError(f"{self!r} sent a compressed list, though it was asked not to")
        body = bytearray()
        async for chunk in response.aiter_raw():
            body += chunk
            if len(body) > MAX_DOCUMENT_BYTES:
                raise PilotError(f"{self!r} sent more than {MAX_DOCUMENT_BYTES} bytes")
        return bytes(body)

    def _check(self, url: httpx.URL) -> None:
        if url.scheme != "https" or not url.host:
            raise InvalidValueError(f"trusted agents are fetched over HTTPS only, not from {url.scheme}://{url.host}")


def _httpx() -> ModuleType:
    try:
        import httpx
    except ImportError as error:
        raise PilotError("a URL of trusted agents needs httpx: pip install 'pilot-asyncio[plugins]'") from error
    return httpx
