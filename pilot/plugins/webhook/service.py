"""`WebhookService`: posts every event of its node to a URL that can be set and cleared at run time (plugin, L11).

Source: services.md 8.1.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, Self

from pilot.coreapi import InvalidValueError, PilotError, Service
from pilot.coreapi.files import private_directory, read_limited, write_atomically
from pilot.plugins.webhook.delivery import Counters, Delivery
from pilot.plugins.webhook.poster import HttpPoster, check_url

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable
    from pathlib import Path

    from pilot.coreapi import Deps
    from pilot.plugins.webhook.poster import Poster

__all__ = ["WebhookHost", "WebhookService", "WebhookStats"]

URL_FILE: Final = "webhook_url"
MAX_FILE_BYTES: Final = 8192
DRAIN_SECONDS: Final = 4.0
"""For events that still wait when a URL is given up; the registry cancels a stop after 4.5 s."""


class WebhookHost(Protocol):
    """What the plugin takes from its node beyond `Deps`."""

    @property
    def state_dir(self) -> Path | None:
        """Where `webhook_url` is kept; None: nowhere."""
        ...

    @property
    def clock(self) -> Callable[[], float]:
        """Monotonic seconds."""
        ...

    @property
    def add_counter(self) -> Callable[[str, Callable[[], int]], None]:
        """Shows a number among the node's counters."""
        ...


@dataclass(frozen=True, slots=True)
class WebhookStats:
    """Events since the service was made, over all its URLs."""

    delivered: int
    failed: int
    """Refused, out of tries, too big, or left when the webhook was stopped."""
    queue_dropped: int
    """Lost because 1024 were waiting."""
    circuit_skips: int
    """Not tried because the receiver had failed five times in a row."""


class WebhookService(Service):
    """Delivers events from the moment it starts, the node's registration is the first, while it has a URL.

    `url` wins over the file `webhook_url` in the state directory. With a `secret` every request carries an HMAC over
    its body. `tls` replaces the default context of https (for a private CA, or a client certificate). `open_poster`
    is for tests and for other transports.
    """

    name = "webhook"
    order = 90

    def __init__(
        self,
        *,
        url: str | None = None,
        secret: str | bytes = b"",
        state_dir: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
        tls: ssl.SSLContext | None = None,
        open_poster: Callable[[str], Poster] | None = None,
    ) -> None:
        """Does nothing yet.

        Raises:
            InvalidValueError: the URL may not be used.
            PilotError: there is a URL, but the package httpx is missing.
        """
        if url:
            check_url(url)
        self._url = url
        self._secret = secret.encode() if isinstance(secret, str) else bytes(secret)
        self._file = state_dir / URL_FILE if state_dir is not None else None
        self._clock = clock
        self._open_poster = open_poster or (lambda url: HttpPoster(check_url(url), tls=tls))
        self._counters = Counters()
        self._deps: Deps | None = None
        self._delivery: Delivery | None = None

    @classmethod
    def for_node(
        cls,
        facilities: WebhookHost,
        *,
        url: str | None = None,
        secret: str | bytes = b"",
        tls: ssl.SSLContext | None = None,
    ) -> Self:
        """The service of one node, its counters `webhook_queue_dropped` and `webhook_circuit_skips` among the node's.

        Raises what the constructor raises.
        """
        made = cls(url=url, secret=secret, state_dir=facilities.state_dir, clock=facilities.clock, tls=tls)
        facilities.add_counter("webhook_queue_dropped", lambda: made._counters.queue_dropped)
        facilities.add_counter("webhook_circuit_skips", lambda: made._counters.circuit_skips)
        return made

    @property
    def url(self) -> str:
        """Where events go, an empty string: nowhere. It may hold a secret: do not log it."""
        return self._url or ""

    def stats(self) -> WebhookStats:
        """What became of events so far."""
        return WebhookStats(**vars(self._counters))

    async def start(self, deps: Deps) -> None:
        """Delivers to the given or the saved URL, or waits for one to be set. A saved one that is unusable is logged.

        Raises:
            PilotError: there is a URL, but the package httpx is missing.
        """
        if self._url is None:
            self._url = self._saved(deps)
        self._deps = deps
        self._open()

    async def stop(self) -> None:
        """Delivers what waits, for 4 s at most. Cancelled, it gives up the rest at once."""
        self._deps = None
        await self._give_up()

    async def set_url(self, url: str) -> None:
        """Sends events to `url` from now on, with numbers from 1, and remembers it in the state directory.

        Returns when the URL before has got what waited for it, or 4 s have passed. Cancelled, the new URL stays.

        Raises:
            InvalidValueError: the URL may not be used; nothing has changed.
            PilotError: httpx is missing, or the file cannot be written; nothing has changed.
        """
        check_url(url)
        self._save(url)
        await self._change(url)

    async def clear_url(self) -> None:
        """Sends nothing from now on and removes the file. Returns as `set_url` does.

        Raises:
            PilotError: the file cannot be removed; nothing has changed.
        """
        self._save("")
        await self._change("")

    # ------------------------------------------------------------------------------------------ inside

    async def _change(self, url: str) -> None:
        self._url = url
        old, self._delivery = self._delivery, None
        self._open()
        if old is not None:
            await old.finish(DRAIN_SECONDS)

    def _open(self) -> None:
        deps = self._deps
        if self._url and deps is not None:
            self._delivery = Delivery(
                self._open_poster(self._url),
                self._secret,
                deps.events,
                counters=self._counters,
                clock=self._clock,
                logger=deps.logger,
            )

    async def _give_up(self) -> None:
        old, self._delivery = self._delivery, None
        if old is not None:
            await old.finish(DRAIN_SECONDS)

    def _saved(self, deps: Deps) -> str:
        if self._file is None:
            return ""
        try:
            url = read_limited(self._file, MAX_FILE_BYTES).decode("utf-8").strip()
            if url:
                check_url(url)
        except FileNotFoundError:
            return ""
        except (InvalidValueError, UnicodeDecodeError, OSError) as error:
            deps.logger.error("the URL in %s is not used, set it again: %s", self._file, error)
            return ""
        return url

    def _save(self, url: str) -> None:
        if self._file is None:
            return
        try:
            if url:
                private_directory(self._file.parent)
                write_atomically(self._file, url.encode())
            else:
                self._file.unlink(missing_ok=True)
        except OSError as error:
            raise PilotError(f"the webhook URL cannot be kept in {self._file}: {error}") from error
