"""`NameClient`: asks a name server and registers with it (plugin, L11). Source: services.md 6.1."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from pilot.coreapi import Addr, InvalidValueError, RegistryError
from pilot.plugins.nameserver.lines import (
    MAX_MESSAGE_BYTES,
    PORT,
    Request,
    ServiceRecord,
    address_answer_untrusted,
    check_name,
    net_id_answer_untrusted,
    parse_records_untrusted,
    parse_services_untrusted,
    request_text,
)

if TYPE_CHECKING:
    from pilot.coreapi import Stream, Streams

__all__ = ["NameClient"]

ANSWER_SECONDS: Final = 10.0
MORE_SECONDS: Final = 1.0
"""For more of an answer of several lines, where a server leaves the stream open after it."""


class NameClient:
    """Talks to one name server. Every call opens a stream, asks, and ends within `timeout` seconds.

    Cancelled, a registration may or may not have been made; nothing else is left behind. All calls raise:

        PeerNotFoundError: the name is not registered, or the directory does not know the server.
        RegistryError: the server refuses, in its words, or gave an unusable answer.
        InvalidValueError: a name, network or port that no record can have.
        TimeoutError: no answer in time.
        RefusedError, ResetError, PathError, ClosedError: the stream failed, as `Streams.dial` and `Stream.read` say.
    """

    def __init__(self, streams: Streams, server: Addr, *, port: int = PORT, timeout: float = ANSWER_SECONDS) -> None:
        """`streams` are those of a node or of a plugin's `Deps`."""
        self._streams = streams
        self._server = server
        self._port = port
        self._timeout = timeout

    async def query_a(self, name: str) -> Addr:
        """The address of the node that registered `name`, in any case of letters."""
        request = Request("QUERY", "A", name=check_name(name))
        (address,) = parse_records_untrusted(await self._ask(request), request)
        return address_answer_untrusted(address)

    async def query_n(self, name: str) -> int:
        """The id of the network that somebody registered as `name`; anybody may."""
        request = Request("QUERY", "N", name=check_name(name))
        (net_id,) = parse_records_untrusted(await self._ask(request), request)
        return net_id_answer_untrusted(net_id)

    async def query_s(self, net_id: int, port: int) -> list[ServiceRecord]:
        """The services on `port` in a network, an empty list where there are none."""
        request = Request("QUERY", "S", net_id=_u16("network", net_id), port=_u16("port", port, 1))
        return parse_services_untrusted(await self._ask(request), request)

    async def register_a(self, name: str, address: Addr) -> None:
        """Registers `name` for `address`, which must be one of this node, for 5 minutes."""
        await self._register(Request("REGISTER", "A", name=check_name(name), address=address))

    async def register_n(self, name: str, net_id: int) -> None:
        """Registers `name` for a network, for 5 minutes."""
        await self._register(Request("REGISTER", "N", name=check_name(name), net_id=_u16("network", net_id)))

    async def register_s(self, name: str, address: Addr, net_id: int, port: int) -> None:
        """Registers a service of this node under `name`, for 5 minutes; it replaces the name before."""
        net_id, port = _u16("network", net_id), _u16("port", port, 1)
        await self._register(Request("REGISTER", "S", check_name(name), address, net_id, port))

    async def _register(self, request: Request) -> None:
        parse_records_untrusted(await self._ask(request), request)

    async def _ask(self, request: Request) -> bytes:
        try:
            async with asyncio.timeout(self._timeout) as limit:
                async with await self._streams.dial(self._server, self._port, timeout=self._timeout) as stream:
                    await stream.write(request_text(request).encode())
                    answer = await self._read_untrusted(
                        stream, whole=request.command == "QUERY" and request.kind == "S"
                    )
                    limit.reschedule(None)  # closing has a bound of its own
        except TimeoutError as error:
            text = f"the name server {self._server} has not answered within {self._timeout:g} s"
            raise TimeoutError(f"{text}: {error}" if str(error) else text) from error
        return answer

    async def _read_untrusted(self, stream: Stream, whole: bool) -> bytes:
        """The first bytes of an answer, or all of it: up to the end of the stream, or a second of silence."""
        answer = await stream.read(MAX_MESSAGE_BYTES)
        if not answer:
            raise RegistryError(f"the name server {self._server} ended the stream without an answer")
        while whole:
            try:
                more = await asyncio.wait_for(stream.read(MAX_MESSAGE_BYTES), MORE_SECONDS)
            except TimeoutError:
                break
            if not more:
                break
            answer += more
            if len(answer) > MAX_MESSAGE_BYTES:
                raise RegistryError(f"the name server {self._server} does not end its answer")
        return answer


def _u16(what: str, value: int, least: int = 0) -> int:
    if not least <= value <= 65535:
        raise InvalidValueError(f"{what} {value} cannot be: {least} to 65535")
    return value
