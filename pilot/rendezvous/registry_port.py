"""The registry's TCP port: connections, frames, limits; one answer per request, in order (rendezvous room, L8).

Source: rendezvous.md 2. No state is kept per connection but its request count.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
import ssl
from collections import Counter
from typing import Final

from pilot._fast.errors import InvalidValueError
from pilot.protocol.beacon import Endpoint, normal_host
from pilot.protocol.registry import (
    HEADER_BYTES,
    Message,
    decode_body_untrusted,
    encode_frame,
    error_reply,
    frame_length_untrusted,
)
from pilot.rendezvous.config import Limits
from pilot.rendezvous.dispatch import answer
from pilot.rendezvous.journal import Journal
from pilot.rendezvous.limits import Bucket, Exemptions, IpBuckets, RequestPace
from pilot.rendezvous.registry import Caller, Registry

logger = logging.getLogger("pilot.rendezvous")

TLS_HANDSHAKE_SECONDS: Final = 10.0
CLOSE_SECONDS: Final = 5.0
DELAY_SECONDS: Final = 0.01
BACKLOG: Final = 1_024


class RegistryPort:
    """Serves a `Registry` over TCP or TLS. A malformed, oversized or late frame closes its connection."""

    def __init__(self, registry: Registry, journal: Journal) -> None:
        self._registry = registry
        self._journal = journal
        self._limits: Limits = registry.config.limits
        self._exempt = Exemptions(self._limits.exempt)
        self._ips = IpBuckets(self._limits.ip_rate, self._limits.ip_burst, self._limits.ip_table)
        self._total = Bucket(self._limits.total_rate, self._limits.total_rate)
        self._started = registry.now()
        self._next_accept = self._started
        self._server: asyncio.Server | None = None
        self._connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._per_ip: Counter[str] = Counter()
        self._unread_bytes = 0

    async def start(self, host: str, port: int, context: ssl.SSLContext | None) -> Endpoint:
        """Listen and return the bound (host, port); raises `OSError` when it cannot be had."""
        listener = _bind(host, port)
        try:
            address: Endpoint = listener.getsockname()[:2]
            self._server = await asyncio.start_server(
                self._accept,
                sock=listener,
                backlog=BACKLOG,
                ssl=context,
                ssl_handshake_timeout=TLS_HANDSHAKE_SECONDS if context else None,
            )
        except BaseException:
            listener.close()
            raise
        return address

    async def stop(self) -> None:
        """Close the port and every connection. Safe to call twice."""
        if self._server is None:
            return
        self._server.close()
        for task, writer in self._connections.items():
            writer.transport.abort()
            task.cancel()
        if self._connections:
            await asyncio.wait(list(self._connections))
        await self._server.wait_closed()
        self._server = None

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = writer.get_extra_info("peername")
        local = writer.get_extra_info("sockname")
        limits = self._limits
        if not peer or not local or len(self._connections) >= limits.max_connections:
            writer.transport.abort()
            return
        caller = Caller(normal_host(peer[0]), peer[1], normal_host(local[0]))
        if self._per_ip[caller.host] >= limits.max_connections_per_ip and caller.host not in self._exempt:
            writer.transport.abort()
            return
        self._per_ip[caller.host] += 1
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer, caller))
        self._connections[task] = writer
        task.add_done_callback(lambda done: self._forget(done, caller.host))

    def _forget(self, task: asyncio.Task[None], host: str) -> None:
        del self._connections[task]
        self._per_ip[host] -= 1
        if not self._per_ip[host]:
            del self._per_ip[host]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, caller: Caller) -> None:
        try:
            await self._pace_accepts()
            await self._converse(reader, writer, caller)
        except (OSError, EOFError, InvalidValueError) as error:
            logger.debug("the connection from %s ended: %s", caller.host, error)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                async with asyncio.timeout(CLOSE_SECONDS):
                    await writer.wait_closed()
            # Python before 3.11.4 fails on a TLS transport that was aborted already (stop does that).
            with contextlib.suppress(AttributeError):
                writer.transport.abort()

    async def _pace_accepts(self) -> None:
        """Spread the reconnects after a restart: excess connections wait."""
        now = self._registry.now()
        if now - self._started < self._limits.accept_pacing:
            # A second's worth may come at once.
            self._next_accept = max(self._next_accept, now - 1) + 1 / self._limits.accept_rate
            if self._next_accept > now:
                await asyncio.sleep(self._next_accept - now)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, caller: Caller) -> None:
        pace = RequestPace(self._limits, self._registry.now())
        exempt = caller.host in self._exempt
        while True:
            body = await self._read_frame(reader)
            refusal = None
            if not exempt:
                rate = pace.rate(self._registry.now())
                if rate > self._limits.close_above:
                    return
                if rate > self._limits.delay_above:
                    await asyncio.sleep(DELAY_SECONDS)
                refusal = self._rate_refusal(caller, pace)
            reply = refusal or await answer(self._registry, self._journal, decode_body_untrusted(body), caller)
            writer.write(encode_frame(reply))
            async with asyncio.timeout(self._limits.write_timeout):
                await writer.drain()

    def _rate_refusal(self, caller: Caller, pace: RequestPace) -> Message | None:
        """The known server closes the connection; an answer costs both sides less than a new connection."""
        now = self._registry.now()
        if not self._ips.take(caller.host, now):
            return error_reply(f"rate limited: too many requests from {caller.host}")
        if not pace.is_young(now) and not self._total.take(now):
            return error_reply("rate limited: the registry is busy, try again later")
        return None

    async def _read_frame(self, reader: asyncio.StreamReader) -> bytes:
        async with asyncio.timeout(self._limits.idle_timeout):
            header = await reader.readexactly(HEADER_BYTES)
        length = frame_length_untrusted(header, self._limits.max_request_bytes)
        if self._unread_bytes + length > self._limits.max_unread_bytes:
            raise InvalidValueError("too many unfinished registry frames")
        self._unread_bytes += length
        try:
            async with asyncio.timeout(self._limits.frame_timeout):
                return await reader.readexactly(length)
        finally:
            self._unread_bytes -= length


def _bind(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ipaddress.ip_address(host).version == 6 else socket.AF_INET
    except ValueError:
        raise InvalidValueError(f"the rendezvous host {host!r} is not an IP address") from None
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.setblocking(False)
        listener.bind((host, port))
    except BaseException:
        listener.close()
        raise
    return listener
