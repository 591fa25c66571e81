"""What the tunnel asks of its node: registry questions as bounded tasks, outcomes to waiting dials, events (L9)."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
from typing import TYPE_CHECKING, Any, Final

from pilot._fast.errors import ClosedError, PeerNotFoundError, PilotError, RegistryError
from pilot._fast.netaddr import normalise
from pilot.tunnel import Resolved

if TYPE_CHECKING:
    from collections.abc import Callable

    from pilot._fast.eventbus import EventBus
    from pilot.node.contacts import Contacts
    from pilot.node.directory import Directory
    from pilot.node.tasks import Tasks
    from pilot.node.trust import TrustGate
    from pilot.tunnel import Tunnel

__all__ = ["Hooks", "literal_address"]

LOCATION_SECONDS: Final = 1.0
"""An answer this young saves the tunnel's question: the dial has just asked the same."""

_log = logging.getLogger("pilot.node")


class Hooks:
    """The tunnel's `TunnelHooks`. The tunnel bounds how many questions are open, so the tasks here are bounded too."""

    tunnel: Tunnel
    contacts: Contacts
    directory: Directory
    gate: TrustGate

    def __init__(
        self, tasks: Tasks, clock: Callable[[], float], events: EventBus, mailbox_filled: Callable[[], None]
    ) -> None:
        self._tasks = tasks
        self._clock = clock
        self._events = events
        self._mailbox_filled = mailbox_filled

    def lookup_key(self, node: int) -> None:
        """Asks the registry for the key of `node`."""
        self._tasks.spawn(self._lookup_key(node))

    def resolve(self, node: int) -> None:
        """Asks the registry where `node` is."""
        self._tasks.spawn(self._resolve(node))

    def is_trusted(self, node: int) -> bool:
        """Whether `node` is trusted, from what is known here."""
        return self.gate.trusts(node)

    def publish(self, topic: str, payload: dict[str, object]) -> None:
        """Puts an event on the node's bus."""
        self._events.publish(topic, payload)

    def session_ready(self, node: int) -> None:
        """A dial that waits for `node` goes on."""
        self.contacts.session_ready(node)

    def contact_failed(self, node: int, reason: str) -> None:
        """A dial that waits for `node` fails."""
        self.contacts.contact_failed(node, reason)

    def poll_handshakes(self) -> None:
        """Tells whoever handles handshakes: a poll empties the mailbox, so nobody else may."""
        self._mailbox_filled()

    def address_changed(self, reason: str, previous: str, current: str, peers_notified: int) -> None:
        """Tells the registry the new address, and then whoever subscribed."""
        self.directory.reconnect()
        _log.info("own address changed from %s to %s (%s), %d peers told", previous, current, reason, peers_notified)
        payload: dict[str, object] = {
            "reason": reason,
            "previous": previous,
            "current": current,
            "peers_notified": peers_notified,
        }
        self._tasks.spawn(self._register_address(payload))

    async def _register_address(self, payload: dict[str, object]) -> None:
        try:
            await self.directory.register()
            registered = True
        except RegistryError as error:
            _log.debug("the new address could not be registered at once: %s", error)
            self.directory.reregister("the own address changed")
            registered = False
        except ClosedError:  # the node stops, and the directory before the tasks
            return
        self._events.publish("tunnel.addr_changed", {**payload, "registry_ok": registered})

    async def _lookup_key(self, node: int) -> None:
        key: bytes | None = None
        failed = False
        try:
            key = await self.directory.peer_key(node)
        except PeerNotFoundError:
            _log.debug("the registry knows no node %d that asks for a key exchange", node)
        except PilotError as error:
            _log.debug("the key of node %d could not be looked up: %s", node, error)
            failed = True
        self.tunnel.key_found(node, key, failed, self._clock())

    async def _resolve(self, node: int) -> None:
        try:
            # The tunnel has a cache of its own: when it asks, it wants to know where the node is by now.
            location = await self.directory.locate(node, max_age=LOCATION_SECONDS)
            address = await literal_address(location.endpoint) if location.endpoint else None
            found = Resolved(address, location.lan_addrs, location.relay_only)
        except PilotError as error:
            self.contacts.resolve_failed(node, error)
            unreachable = isinstance(error, RegistryError)
            self.tunnel.resolved(node, None, str(error), self._clock(), unreachable=unreachable)
        else:
            self.tunnel.resolved(node, found, None, self._clock())


async def literal_address(endpoint: tuple[str, int]) -> tuple[str, int] | None:
    """`endpoint` with an IP address in place of a name, IPv4 where there is one; None when the name is unknown."""
    host, port = endpoint
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        try:
            found: list[Any] = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_DGRAM)
        except (OSError, UnicodeError):
            _log.debug("the name %r in an endpoint could not be resolved", host)
            return None
        addresses = [address for entry in found if (address := normalise(entry[4][:2])) is not None]
        return min(addresses, key=lambda address: ":" in address[0], default=None)
    return normalise(endpoint)
