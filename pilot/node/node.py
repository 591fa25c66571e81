"""`Node`: a Pilot Protocol node inside this process, the object users hold (L9)."""

from __future__ import annotations

import asyncio
import dataclasses
import random as random_module
import time
from typing import TYPE_CHECKING, Any, Self, TypeVar, overload

from pilot._fast.errors import BusyError, ClosedError, InvalidValueError
from pilot._fast.udp import UdpPort
from pilot.coreapi import RestartPolicy
from pilot.node.config import NodeConfig
from pilot.node.listener import serving
from pilot.node.runtime import Runtime, open_udp_port
from pilot.node.stats import NodeStats, PeerStats
from pilot.node.streams import check_timeout

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from contextlib import AbstractAsyncContextManager
    from random import Random
    from types import TracebackType

    from typing_extensions import Buffer

    from pilot._fast.addr import Addr
    from pilot._fast.eventbus import EventBus
    from pilot._fast.peer import Peer
    from pilot._fast.port import DatagramPort
    from pilot.coreapi import Service
    from pilot.node.datagrams import DatagramInbox
    from pilot.node.directory import Directory
    from pilot.node.identity import LocalIdentity
    from pilot.node.listener import Listener
    from pilot.node.networks import Memberships
    from pilot.node.services import ServiceSource
    from pilot.node.stream import Stream
    from pilot.node.streams import NodeStreams, Target

__all__ = ["Node"]

PING_PAYLOAD = b"pilot ping"

S = TypeVar("S")


class Node:
    """A node: a permanent address, encrypted tunnels, streams and datagrams. `async with Node(...) as node`.

    Takes a `NodeConfig`, or its settings as keyword arguments, or both (the keywords win). It is cheap to create,
    starts in `async with` (or `start`), and after it (or `stop`) nothing of it is left; then it may be started again.
    It is private unless `public=True`. It belongs to the event loop and thread that started it; many may live in one.

    `services` are the plugins it runs: names of entry points in `pilot.plugins`, `coreapi.Service` objects, classes of
    them, or functions that make one of the node's `Facilities`. None runs that is not named. One that keeps crashing is
    restarted as `restart_policy` says. Each runs from before the registration until the node stops.

    `trust` tells of a node id whether this node trusts it, at once and often; the default trusts nobody, so a private
    node is there for those alone whom it dials and whom the registry vouches for. `identity` takes the place of the
    one in `state_dir`; its registration is not ended with the node. `open_port`, `clock` (monotonic seconds), `wall`
    (unix seconds) and `random` replace the UDP socket, the clocks and the source of randomness, for virtual networks.

    Raises:
        InvalidValueError: a setting is unknown or cannot be used.
    """

    def __init__(
        self,
        config: NodeConfig | None = None,
        /,
        *,
        services: Sequence[ServiceSource] = (),
        restart_policy: RestartPolicy | None = None,
        trust: Callable[[int], bool] = lambda node_id: False,
        open_port: Callable[[NodeConfig], DatagramPort] = open_udp_port,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        random: Random | None = None,
        identity: LocalIdentity | None = None,
        **settings: Any,
    ) -> None:
        self._config = _merge(config, settings)
        self._parts = {
            "services": tuple(services),
            "restart_policy": restart_policy or RestartPolicy(),
            "trust": trust,
            "open_port": open_port,
            "clock": clock,
            "wall": wall,
            "identity": identity,
            "random": random or random_module.SystemRandom(),
        }
        self._runtime: Runtime | None = None
        self._starting = False
        self._stopping: asyncio.Task[None] | None = None
        self._closed: asyncio.Event | None = None
        self._deaf = False

    # --------------------------------------------------------------------------------------- life cycle

    async def start(self) -> None:
        """Registers at the registry and opens the tunnel socket; returns when the node can be reached.

        Failed or cancelled, nothing is left running, and no file has changed but for a new identity that was kept.

        Raises:
            RegistryError: the registry cannot be reached, or refuses the registration.
            BusyError: the node runs already, or another node uses its state directory.
            InvalidValueError: the identity file is damaged or readable by others.
            PilotError: a service failed to start; the message names it, the cause is what it raised.
            OSError: the UDP port cannot be had, or the state directory cannot be written.
        """
        if self._runtime is not None or self._starting:
            raise BusyError("the node is running already: create another Node")
        self._starting = True
        try:
            self._runtime = await Runtime.start(self._config, **self._parts)
            self._closed = asyncio.Event()
            self._deaf = False
            self._runtime.on_deaf = self._end_deaf
        finally:
            self._starting = False

    async def stop(self) -> None:
        """Ends services, listeners, streams (in order, within 5 seconds), tunnels and socket. May be repeated.

        Several callers wait for the same stop. Cancelled, it goes on in the background.

        Raises:
            BusyError: the node belongs to another loop or thread.
        """
        runtime = self._runtime
        if runtime is None:
            return
        runtime.home.check()
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._stop(runtime), name="pilot node stop")
        await asyncio.shield(self._stopping)

    async def _stop(self, runtime: Runtime) -> None:
        try:
            await runtime.stop()
        finally:
            self._runtime = self._stopping = None
            if self._closed is not None:
                self._closed.set()

    def _end_deaf(self) -> None:
        if self._runtime is not None and self._stopping is None:
            self._deaf = True
            self._stopping = asyncio.create_task(self._stop(self._runtime), name="pilot node stop")

    @property
    def deaf(self) -> bool:
        """Whether the last run has ended by itself, as the setting `end_when_deaf` has it."""
        return self._deaf

    async def closed(self) -> None:
        """Returns when the node has stopped; at once if it does not run. Cancelling it changes nothing."""
        if self._runtime is not None and self._closed is not None:
            self._runtime.home.check()
            await self._closed.wait()

    async def __aenter__(self) -> Self:
        """Starts the node."""
        await self.start()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        """Stops the node."""
        await self.stop()

    # ------------------------------------------------------------------------------------------ who it is

    @property
    def config(self) -> NodeConfig:
        """The settings."""
        return self._config

    @property
    def identity(self) -> LocalIdentity:
        """Key and address, a `coreapi.Identity`. Raises `ClosedError` while the node does not run."""
        return self._running().identity

    @property
    def node_id(self) -> int:
        """The id the registry gave this node. Raises `ClosedError` while the node does not run."""
        return self.identity.node_id

    @property
    def address(self) -> Addr:
        """The address on the backbone. Raises `ClosedError` while the node does not run."""
        return self.identity.address

    @property
    def resolver(self) -> Directory:
        """The registry as this node sees it, a `coreapi.PeerResolver`. Raises `ClosedError` while it does not run."""
        return self._running().directory

    @property
    def streams(self) -> NodeStreams:
        """Streams and datagrams as one object, a `coreapi.Streams`. Raises `ClosedError` while it does not run."""
        return self._running().streams

    @property
    def events(self) -> EventBus:
        """The node's event bus: `with node.events.subscribe("tunnel.*") as events`; ends with this run of the node.

        Raises `ClosedError` while it does not run.
        """
        return self._running().events

    @property
    def services(self) -> list[Service]:
        """The plugins in the order of their start. Raises `ClosedError` while the node does not run."""
        return self._running().services.registry.all()

    @overload
    def service(self, which: type[S]) -> S: ...

    @overload
    def service(self, which: str) -> Service: ...

    def service(self, which: type[Any] | str) -> Any:
        """A plugin of this node, started, by its name or its class: `node.service(HandshakeService)`.

        Raises:
            ServiceNotReadyError: it has not completed its start, is being restarted, or was given up.
            InvalidValueError: this node has no such service, or several of that class.
            ClosedError: the node does not run.
        """
        services = self._running().services
        return services.registry.service(which if isinstance(which, str) else services.name_of(which))

    @property
    def endpoint(self) -> tuple[str, int]:
        """The local UDP address. Raises `ClosedError` while the node does not run."""
        address: tuple[str, int] = self._running().port.address
        return address

    async def set_hostname(self, name: str) -> None:
        """Names this node; an empty name gives the present one up. Cancelled or failed, the earlier name stays wanted.

        Raises:
            InvalidValueError: it is no hostname (1 to 63 of `a-z 0-9 -`).
            RegistryError: somebody else has the name, or the registry cannot be asked.
            ClosedError, BusyError: the node does not run, or belongs to another loop or thread.
        """
        directory = self._called().directory
        await (directory.set_hostname(name) if name else directory.clear_hostname())

    async def set_public(self, public: bool) -> None:
        """Shows this node to strangers, or hides it from them. Cancelled or failed, the earlier wish is told again.

        Raises:
            InvalidValueError: `public` is neither True nor False.
            RegistryError: the registry cannot be asked or refuses.
            ClosedError, BusyError: the node does not run, or belongs to another loop or thread.
        """
        if not isinstance(public, bool):
            raise InvalidValueError(f"public={public!r} cannot be used: write True or False")
        await self._called().directory.set_visibility(public)

    async def rotate_key(self) -> bytes:
        """Replaces this node's key; returns the new public key. Node id, trust and open tunnels stay.

        Cancelled, or when the registry's answer is lost, the node goes on with the old key until it has learnt which
        one is valid.

        Raises:
            RegistryError: the registry refused, or the outcome is not known yet.
            BusyError: an earlier rotation is not settled yet, or the node belongs to another loop or thread.
            OSError: a key file could not be written.
            ClosedError: the node does not run.
        """
        return await self._called().directory.rotate_key()

    # ------------------------------------------------------------------------------------------- networks

    @property
    def networks(self) -> Memberships:
        """The networks this node is in, with tags, members and policies. Raises `ClosedError` while it does not run."""
        return self._running().networks

    async def join_network(self, network_id: int, token: str = "") -> Addr:
        """Joins a network that is open, or protected by `token`; returns this node's address there.

        Being in it already is fine. Cancelled, or when the registry's answer is lost, it may have been joined.

        Raises:
            RegistryError: the registry cannot be asked, or refuses: no such network, a wrong token, by invitation only.
            InvalidValueError: it is no network id.
            ClosedError, BusyError: the node does not run, or belongs to another loop or thread.
        """
        return await self._called().networks.join(network_id, token)

    async def leave_network(self, network_id: int) -> None:
        """Ends this node's membership in a network; not being in it is fine. Raises what `join_network` raises."""
        await self._called().networks.leave(network_id)

    # ------------------------------------------------------------------------------- streams and datagrams

    async def find(self, target: Target) -> Addr:
        """The address of a hostname, an address text or an `Addr`. See `NodeStreams.find`."""
        return await self._called().streams.find(target)

    async def dial(self, target: Target, port: int, *, timeout: float | None = None) -> Stream:
        """A stream to `port` of a hostname, an address text or an `Addr`, established. See `NodeStreams.dial`.

        Cancelled, the half-open stream is reset and its port is free.

        Raises:
            PeerNotFoundError, RefusedError, TimeoutError, PathError, RegistryError, ClosedError, BusyError,
            InvalidValueError: as `NodeStreams.dial`.
        """
        return await self._called().streams.dial(target, port, timeout=timeout)

    async def listen(self, port: int) -> Listener:
        """A listener on `port`, 0 for a free one, open when this returns. See `NodeStreams.listen`."""
        return await self._called().streams.listen(port)

    def serve(self, port: int, handler: Callable[[Stream], Awaitable[object]]) -> AbstractAsyncContextManager[Listener]:
        """Listens on `port` and runs `handler` in a task for each stream: `async with node.serve(port, handler):`.

        A stream is closed when its handler returns and reset when it raises, which ends that stream only and is logged.
        At the end of the block the port is freed, handlers that still run are cancelled and their streams reset. In one
        `async with` after the node itself it starts when the node has.
        """
        return serving(self.listen, port, handler)

    async def send_datagram(self, target: Target, port: int, data: Buffer) -> None:
        """Sends one datagram, which may be lost. See `NodeStreams.send_datagram`."""
        await self._called().streams.send_datagram(target, port, data)

    def datagrams(self, port: int) -> DatagramInbox:
        """Collects the datagrams to `port` from now on: `async for datagram in node.datagrams(port)`."""
        return self._called().streams.datagrams(port)

    async def ping(self, target: Target, *, timeout: float = 5.0) -> float:
        """The round trip to a peer in seconds, by one control packet that nearly every node answers; 0.0 for itself.

        A private node does not answer strangers. Cancelling it changes nothing.

        Raises:
            TimeoutError: no answer came within `timeout` seconds; the message says which step was waited for.
            PeerNotFoundError, PathError, RegistryError, ClosedError, BusyError, InvalidValueError: as `dial`.
        """
        runtime = self._called()
        check_timeout(timeout)
        answer: asyncio.Future[float] = runtime.home.loop.create_future()
        step = "resolve"
        try:
            async with asyncio.timeout(timeout) as scope:
                addr = await runtime.streams.find(target)
                if addr.node == runtime.identity.node_id:
                    return 0.0
                step = "key exchange"
                await runtime.streams.reach(addr.node)
                step = "ping"
                runtime.tunnel.probe_path(addr.node, PING_PAYLOAD, runtime.clock(), _settle(answer))
                return await answer
        except TimeoutError:
            if not scope.expired():
                raise
            raise TimeoutError(f"{target} did not answer within {timeout:g} s (step: {step})") from None

    # --------------------------------------------------------------------------------------------- insight

    def stats(self) -> NodeStats:
        """Tunnels, traffic and counters at this moment. Raises `ClosedError` while the node does not run."""
        runtime = self._running()
        now = runtime.clock()
        udp = runtime.port.stats() if isinstance(runtime.port, UdpPort) else None
        counters = {
            **runtime.datapath.counters,
            **runtime.tunnel.counters,
            "events_dropped": self.events.dropped,
            "events_suppressed": sum(self.events.suppressed.values()),
            **runtime.callbacks.counters(),
        }
        return NodeStats(
            uptime=now - runtime.started_at,
            peers=tuple(_peer_stats(peer, now) for peer in runtime.datapath.peers()),
            streams=counters["streams"],
            bytes_in=udp.bytes_in if udp else 0,
            bytes_out=udp.bytes_out if udp else 0,
            datagrams_in=udp.datagrams_in if udp else 0,
            datagrams_out=udp.datagrams_out if udp else 0,
            counters=counters,
        )

    def _running(self) -> Runtime:
        if self._runtime is None:
            raise ClosedError("the node does not run: use it inside 'async with node', or start it first")
        return self._runtime

    def _called(self) -> Runtime:
        """The running parts, after the check that this is the node's own loop and thread."""
        runtime = self._running()
        runtime.home.check()
        return runtime

    def __repr__(self) -> str:
        return f"<Node {self.address}>" if self._runtime is not None else "<Node not running>"


def _merge(config: NodeConfig | None, settings: dict[str, Any]) -> NodeConfig:
    if config is not None and not isinstance(config, NodeConfig):
        raise InvalidValueError(f"{config!r} is no NodeConfig: give one, or settings as keyword arguments")
    known = {setting.name for setting in dataclasses.fields(NodeConfig)}
    for name in settings:
        if name not in known:
            raise InvalidValueError(f"{name!r} is no setting of a node; there are: {', '.join(sorted(known))}")
    return dataclasses.replace(config or NodeConfig(), **settings)


def _settle(answer: asyncio.Future[float]) -> Callable[[float], None]:
    def answered(seconds: float) -> None:
        if not answer.done():
            answer.set_result(seconds)

    return answered


def _peer_stats(peer: Peer, now: float) -> PeerStats:
    session = peer.session
    direct = peer.address is not None and not peer.relay
    return PeerStats(
        node_id=peer.node,
        path="direct" if direct else "relay" if peer.relay else "none",
        endpoint=peer.address if direct else None,
        encrypted=session is not None,
        authenticated=session is not None and session.authenticated,
        rtt=peer.srtt or None,
        segment_bytes=peer.segment_bytes,
        open_streams=peer.open_streams,
        silence=now - peer.last_heard if peer.last_heard else None,
    )
