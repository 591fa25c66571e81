"""One HTTP request of a webhook: to a checked and pinned address, no redirect, no proxy, 5 seconds (plugin, L11)."""

from __future__ import annotations

import asyncio
import ipaddress
from typing import TYPE_CHECKING, Final, Protocol

from pilot.coreapi import InvalidValueError, PilotError
from pilot.plugins.webhook.addresses import Resolve, allowed_addresses, check_host, resolve

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping
    from types import ModuleType

    import httpx

__all__ = ["TRY_SECONDS", "HttpPoster", "Poster", "check_url"]

TRY_SECONDS: Final = 5.0
"""For one request: resolving, connecting and the head of the answer."""
MAX_URL_CHARS: Final = 2048
MAX_ANSWER_BYTES: Final = 65536
"""Of an answer's body, which is thrown away; a longer one costs the connection, not memory."""
BODY_SECONDS: Final = 1.0
USER_AGENT: Final = "pilot-webhook"


class Poster(Protocol):
    """Sends bodies to one place."""

    async def post(self, body: bytes, headers: Mapping[str, str]) -> int:
        """The status of the answer, whatever it is, within `TRY_SECONDS`. Cancelled, the request may have arrived.

        Raises:
            InvalidValueError: the place must not be sent to.
            OSError: no answer, a `TimeoutError` among them.
        """
        ...

    async def close(self) -> None:
        """Ends its connections."""
        ...


def check_url(url: str) -> httpx.URL:
    """`url`, parsed, if a webhook may have it: http or https, with a host that may be sent to.

    Raises:
        InvalidValueError: it is none, or may not be used.
        PilotError: the package httpx is missing.
    """
    http = _httpx()
    if len(url) > MAX_URL_CHARS:
        raise InvalidValueError(f"the webhook URL has {len(url)} characters, {MAX_URL_CHARS} are the limit")
    try:
        parsed: httpx.URL = http.URL(url)
    except http.InvalidURL as error:
        raise InvalidValueError(f"the webhook URL cannot be used: {error}") from None
    if parsed.scheme not in ("http", "https"):
        raise InvalidValueError(f'URL must use http or https scheme, got "{parsed.scheme}"')
    if not parsed.raw_host:
        raise InvalidValueError("the webhook URL has no host: write http://HOST/... or https://HOST/...")
    if parsed.port is not None and not 1 <= parsed.port <= 65535:
        raise InvalidValueError(f"the webhook URL has port {parsed.port}: write one of 1 to 65535")
    check_host(parsed.raw_host.decode("ascii"))
    return parsed


class HttpPoster:
    """A `Poster` over httpx that keeps its connection between requests.

    The host is resolved before each request and refused if any of its addresses is forbidden; the request's URL then
    carries the address itself, with the name in `Host` and, for TLS, as the name to ask for and to verify.
    """

    def __init__(
        self,
        url: httpx.URL,
        *,
        lookup: Resolve = resolve,
        tls: ssl.SSLContext | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        http = _httpx()
        self._url = url
        self._host = url.raw_host.decode("ascii")
        self._lookup = lookup
        self._failures = (http.HTTPError, http.StreamError)
        self._unreachable = (http.ConnectError, http.ConnectTimeout)
        self._timeout = http.Timeout
        self._client: httpx.AsyncClient = http.AsyncClient(
            verify=tls if tls is not None else True,
            transport=transport,
            follow_redirects=False,
            trust_env=False,  # a proxy would resolve the name again
            headers={"User-Agent": USER_AGENT, "Accept-Encoding": "identity"},
        )

    def __repr__(self) -> str:
        """Without path, query and user, which may be secret."""
        return f"<webhook {self._url.scheme}://{self._url.netloc.decode('ascii')}>"

    async def post(self, body: bytes, headers: Mapping[str, str]) -> int:
        """See `Poster.post`."""
        async with asyncio.timeout(TRY_SECONDS):
            response = await self._answer(body, headers)
        await self._skip(response)
        return response.status_code

    async def _answer(self, body: bytes, headers: Mapping[str, str]) -> httpx.Response:
        """The head of the answer from the first address that takes a connection."""
        port = self._url.port or (443 if self._url.scheme == "https" else 80)
        addresses = await allowed_addresses(self._host, port, self._lookup)
        timeout = self._timeout(TRY_SECONDS, connect=TRY_SECONDS / len(addresses))
        failure: Exception | None = None
        for address in addresses:
            request = self._client.build_request(
                "POST",
                self._url.copy_with(host=address),
                content=body,
                headers={"Host": self._url.netloc.decode("ascii"), "Content-Type": "application/json", **headers},
                timeout=timeout,
                extensions={} if _is_address(self._host) else {"sni_hostname": self._host},
            )
            try:
                return await self._client.send(request, stream=True)
            except self._failures as error:
                failure = error
                if not isinstance(error, self._unreachable):
                    break
        raise ConnectionError(f"{type(failure).__name__}: {failure}") from failure

    async def _skip(self, response: httpx.Response) -> None:
        """Reads the answer's body, for a moment, so that the connection can be used again; the status is known."""
        size = 0
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for chunk in response.aiter_raw():
                    size += len(chunk)
                    if size > MAX_ANSWER_BYTES:
                        return
        except (*self._failures, TimeoutError):
            return
        finally:
            await response.aclose()

    async def close(self) -> None:
        """Ends its connections."""
        await self._client.aclose()


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _httpx() -> ModuleType:
    try:
        import httpx
    except ImportError as error:
        raise PilotError("the webhook plugin needs httpx: pip install 'pilot-asyncio[plugins]'") from error
    return httpx
