"""`NodeStreams`: dialing, listening and datagrams by name or address, the node's `coreapi.Streams` (L9)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from pilot._fast.addr import Addr
from pilot._fast.errors import ClosedError, InvalidValueError, PeerNotFoundError, RefusedError
from pilot.node.datagrams import DatagramInbox, Datagrams
from pilot.node.listener import Listener
from pilot.node.stream import Stream

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from pilot._fast.datapath import Datapath
    from pilot._fast.peer import Peer
    from pilot.coreapi import PeerResolver
    from pilot.node.config import NodeConfig
    from pilot.node.contacts import Contacts
    from pilot.node.home import Home
    from pilot.node.policy import PolicyGate
    from pilot.node.trust import TrustGate
    from pilot.tunnel import Tunnel

__all__ = ["NodeStreams", "Target", "check_timeout"]

Target = Addr | str
"""An address, its text, or the hostname of a node."""

MAX_PORT: Final = 65535


class NodeStreams:
    """Opens streams, listens for them and sends datagrams, a `coreapi.Streams`."""

    def __init__(
        self,
        config: NodeConfig,
        home: Home,
        datapath: Datapath,
        tunnel: Tunnel,
        contacts: Contacts,
        resolver: PeerResolver,
        gate: TrustGate,
        policy: PolicyGate,
    ) -> None:
        self._config = config
        self._home = home
        self._datapath = datapath
        self._tunnel = tunnel
        self._contacts = contacts
        self._resolver = resolver
        self._gate = gate
        self._policy = policy
        self._closed = False
        self.dial_timeouts = 0
        """Dials in a row, up to now, that no peer answered."""
        self._listeners: set[Listener] = set()
        self._inboxes = Datagrams()
        datapath.mux.on_datagram = self._inboxes.deliver

    async def find(self, target: Target) -> Addr:
        """The address of `target`; names are asked of the directory, addresses are not checked.

        Raises:
            PeerNotFoundError: nobody has that name, or its owner does not show it to this node.
            RegistryError: the directory was needed and could not be asked.
            InvalidValueError: it is neither an address nor a name.
        """
        self._check()
        if isinstance(target, Addr):
            return _unicast(target)
        if not isinstance(target, str):
            raise InvalidValueError(f"{target!r} is no peer: give a hostname, an address like 0:0000.0000.0002 or Addr")
        if ":" in target:
            return _unicast(Addr.parse(target))
        return Addr(0, await self._resolver.resolve_hostname(target))

    async def dial(self, dst: Target, port: int, *, timeout: float | None = None) -> Stream:
        """A stream to `port` (1..65535) of `dst`, established, within `timeout` seconds (None: `dial_timeout`).

        Cancelled, the half-open stream is reset and its port is free; the peer may have accepted a stream that it sees
        reset.

        Raises:
            PeerNotFoundError: the directory has no such node or does not show it to this one.
            RefusedError: the peer answered that nobody listens there, or the policy of a network denies it.
            TimeoutError: the peer did not answer; the message says which step was waited for.
            PathError: no path to the peer works.
            RegistryError: the directory was needed and could not be asked.
            ClosedError: the node is closed.
            BusyError: no local port or place for another stream is free, or the node belongs to another loop.
            InvalidValueError: the port or the target cannot be used.
        """
        self._check()
        check_port(port, lowest=1)
        progress = _Progress(dst)
        limit = self._config.dial_timeout if timeout is None else check_timeout(timeout)
        try:
            async with asyncio.timeout(limit) as scope:
                return await self._dial(dst, port, progress)
        except RefusedError:
            self.dial_timeouts = 0
            raise
        except TimeoutError as error:
            self.dial_timeouts += 1
            if not scope.expired():
                raise
            raise TimeoutError(
                f"{dst} port {port} could not be reached within {limit:g} s (step: {self._step(progress)})"
            ) from error.__cause__

    async def _dial(self, dst: Target, port: int, progress: _Progress) -> Stream:
        progress.addr = addr = await self.find(dst)
        if addr.node != self._datapath.own_node:
            await self._policy.check_dial(addr, port)
        try:
            progress.peer = peer = await self.reach(addr.node)
        except PeerNotFoundError as error:
            if addr.network == 0:
                raise
            raise PeerNotFoundError(f"{addr} cannot be reached: {error}") from None  # the directory knows node ids only
        self._check()
        stream = Stream(self._datapath.mux.dial(peer, addr, port), self._home)
        await stream._until_open()
        self.dial_timeouts = 0
        return stream

    async def reach(self, node: int) -> Peer:
        """The tunnel's entry of `node`, with a session; the node may call back from now on. See `Contacts.reach`."""
        self._gate.dialed(node)
        return await self._contacts.reach(node)

    def _step(self, progress: _Progress) -> str:
        """What a dial that ran out of time was waiting for."""
        if progress.addr is None:
            return "resolve"
        if progress.peer is None:
            return self._tunnel.describe(progress.addr.node)
        return "SYN relay" if progress.peer.relay else "SYN direct"

    async def listen(self, port: int) -> Listener:
        """A listener on `port` (0 chooses a free ephemeral one), open when this returns. Does not wait.

        Raises:
            BusyError: somebody listens on the port already, or the node belongs to another loop.
            ClosedError: the node is closed.
            InvalidValueError: the port is out of range.
        """
        self._check()
        check_port(port, lowest=0)
        listener = Listener(
            self._datapath.mux, self._home, self._own_addr, port, self._config.backlog, self._listeners.discard
        )
        self._listeners.add(listener)
        return listener

    def _check(self) -> None:
        self._home.check()
        if self._closed:
            raise ClosedError("the node is stopping: start it again, or another one")

    def _own_addr(self) -> Addr:
        return Addr(0, self._datapath.own_node)

    async def send_datagram(self, dst: Target, port: int, data: Buffer) -> None:
        """Sends one datagram; returns when it has been handed to the tunnel. It can be lost, repeated or reordered.

        The first one to a peer waits for the key exchange, `dial_timeout` at most. Cancelled, it may or may not have
        been sent.

        Raises:
            RefusedError: the policy of a network denies it.
            PeerNotFoundError, PathError, RegistryError, TimeoutError, ClosedError, BusyError: as `dial`.
            InvalidValueError: the port is out of range, or `data` is empty or too long for one datagram.
        """
        self._check()
        check_port(port, lowest=0)
        progress = _Progress(dst)
        try:
            async with asyncio.timeout(self._config.dial_timeout) as scope:
                progress.addr = await self.find(dst)
                if progress.addr.node != self._datapath.own_node:
                    await self._policy.check_datagram(progress.addr, port, memoryview(data).nbytes)
                peer = await self._contacts.reach(progress.addr.node)
        except TimeoutError:
            if not scope.expired():
                raise
            raise TimeoutError(f"no datagram could be sent to {dst} in time (step: {self._step(progress)})") from None
        self._datapath.mux.send_datagram(peer, progress.addr, port, memoryview(data).cast("B"))

    def datagrams(self, port: int) -> DatagramInbox:
        """Collects the datagrams to `port` from now on: `async for datagram in node.datagrams(port)`.

        Every inbox of a port gets its own copy. A full one drops the oldest and counts it in `dropped`.

        Raises:
            InvalidValueError: the port is out of range.
            BusyError: the node belongs to another loop or thread.
            ClosedError: the node is closed.
        """
        self._check()
        check_port(port, lowest=0)
        inbox = DatagramInbox(port, self._config.datagram_queue, self._home, self._inboxes)
        self._inboxes.add(inbox)
        return inbox

    async def close(self) -> None:
        """Closes listeners and inboxes; nothing is accepted, dialed or sent any more."""
        self._closed = True
        for listener in list(self._listeners):
            await listener.close()
        self._inboxes.close()


class _Progress:
    """How far a dial has come, for the message when it ran out of time."""

    __slots__ = ("addr", "dst", "peer")

    def __init__(self, dst: Target) -> None:
        self.dst = dst
        self.addr: Addr | None = None
        self.peer: Peer | None = None


def _unicast(addr: Addr) -> Addr:
    """`addr`, unless it is the zero or a broadcast address: `InvalidValueError`."""
    if addr.node == 0 or addr.is_broadcast:
        raise InvalidValueError(f"{addr} is the address of no single node (zero or broadcast): name one node")
    return addr


def check_timeout(timeout: float) -> float:
    """`timeout`, unless it is no number of seconds, or a negative one: `InvalidValueError`."""
    if not isinstance(timeout, int | float) or not timeout >= 0:
        raise InvalidValueError(f"timeout {timeout!r} cannot be used: give seconds, 0 or more, or None")
    return timeout


def check_port(port: int, *, lowest: int) -> None:
    """Raises `InvalidValueError` unless `port` is a whole number in `lowest`..65535."""
    if not isinstance(port, int) or isinstance(port, bool) or not lowest <= port <= MAX_PORT:
        raise InvalidValueError(f"port {port!r} is out of range: use {lowest} to {MAX_PORT}")
