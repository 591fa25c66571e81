"""A running node: opens its parts in order, and closes them in the opposite one, also when only some are open (L9)."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import ipaddress
import logging
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Final, Self

from pilot._fast.datapath import Datapath
from pilot._fast.errors import ClosedError, PilotError, RegistryError
from pilot._fast.eventbus import EventBus
from pilot._fast.interfaces import lan_addresses, local_address_towards
from pilot._fast.mux import MuxSettings
from pilot._fast.stream import StreamState
from pilot._fast.udp import UdpPort
from pilot.coreapi import Deps
from pilot.node.callbacks import Callbacks
from pilot.node.config import parse_endpoint, parse_listen
from pilot.node.contacts import Contacts
from pilot.node.directory import Advertisement, Directory, DirectoryOptions, RegistryClient, RegistryTls
from pilot.node.echo import ECHO_PORT, EchoService
from pilot.node.facilities import Facilities
from pilot.node.home import Home
from pilot.node.identity import IDENTITY_NAME, LocalIdentity
from pilot.node.last_resort import LastResort
from pilot.node.listener import serving
from pilot.node.network_file import NetworkFile
from pilot.node.networks import Memberships
from pilot.node.policy import PolicyGate
from pilot.node.polling import BusyPoll
from pilot.node.receive_watch import TICK_SECONDS, Received, ReceiveWatch
from pilot.node.scheduler import Scheduler
from pilot.node.services import NodeServices
from pilot.node.state import StateDirectory
from pilot.node.streams import NodeStreams
from pilot.node.tags import NodeTags
from pilot.node.tasks import Tasks
from pilot.node.topics import STRANGER_TOPICS
from pilot.node.trust import TrustGate
from pilot.node.wiring import Hooks, literal_address
from pilot.protocol.endpoints import join_endpoint
from pilot.tunnel import Tunnel, TunnelSettings
from pilot.tunnel.settings import BASE_SEGMENT_BYTES, FRAME_OVERHEAD_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from random import Random

    from pilot._fast.addr import Addr
    from pilot._fast.port import DatagramPort
    from pilot.coreapi import RestartPolicy
    from pilot.node.config import NodeConfig
    from pilot.node.services import ServiceSource

__all__ = ["Runtime", "open_udp_port"]

STOP_SECONDS: Final = 5.0
"""How long the streams have to end in order when the node stops; then they are reset."""
DEREGISTER_SECONDS: Final = 1.0
BEACON_LIST_SECONDS: Final = 60.0
BEACON_LIST_JITTER_SECONDS: Final = 10.0
"""The first time comes after a random part of this, so that a fleet does not ask in step (rendezvous.md 7.5)."""
ADDRESS_SECONDS: Final = 1.0
"""How often the own source address is compared (wire.md 12.5)."""
NETWORKS_SECONDS: Final = 2.0
"""How long the start waits for the first answer about the own networks."""
DEAF_UPTIME_SECONDS: Final = 1800.0
"""A node younger than this is not ended for being deaf."""
MAX_MISSED_WHEN_DEAF: Final = 4
"""Heartbeats in a row the registry has not taken: beyond, it is the whole network that is away."""

_log = logging.getLogger("pilot.node")


def open_udp_port(config: NodeConfig) -> UdpPort:
    """The real datagram port: one UDP socket, dual-stack where IPv6 exists and no address is named."""
    host, port = parse_listen(config.listen)
    return UdpPort(host=host, port=port, gso=config.gso, gro=config.gro, recvmmsg=config.recvmmsg)


class Runtime:
    """Everything a node is made of while it runs. Made by `start`, ended by `stop`."""

    home: Home
    identity: LocalIdentity
    port: DatagramPort
    datapath: Datapath
    tunnel: Tunnel
    directory: Directory
    contacts: Contacts
    gate: TrustGate
    networks: Memberships
    tags: NodeTags
    policy: PolicyGate
    streams: NodeStreams
    services: NodeServices

    def __init__(
        self,
        config: NodeConfig,
        *,
        open_port: Callable[[NodeConfig], DatagramPort],
        clock: Callable[[], float],
        random: Random,
        trust: Callable[[int], bool],
        identity: LocalIdentity | None,
        wall: Callable[[], float],
        services: Sequence[ServiceSource],
        restart_policy: RestartPolicy,
    ) -> None:
        self.config = config
        self.clock = clock
        self._wall = wall
        self._given_identity = identity
        self._open_port = open_port
        self._random = random
        self.callbacks = Callbacks(trust)
        self._service_sources = services
        self._restart_policy = restart_policy
        self._loop = asyncio.get_running_loop()
        self._stack = AsyncExitStack()
        self._tasks = Tasks(self._loop)
        self._scheduler = Scheduler(self._loop, clock)
        self.events = EventBus(clock=clock, wall=wall)
        self.events.limit(*STRANGER_TOPICS)
        self._hooks = Hooks(self._tasks, clock, self.events, self.callbacks.mailbox_filled)
        self._beacons: list[tuple[str, int]] = []
        self.started_at = clock()
        self.on_deaf: Callable[[], object] = lambda: None
        """Called once when nothing is received any more and the node is to end."""

    @classmethod
    async def start(cls, config: NodeConfig, **parts: Any) -> Self:
        """A node that is registered and answers. Failed or cancelled, nothing of it is left running.

        Raises what `Node.start` raises.
        """
        runtime = cls(config, **parts)
        try:
            await runtime._open()
        except BaseException:
            await runtime._stack.aclose()
            raise
        return runtime

    async def stop(self) -> None:
        """Ends services, listeners, streams, registration and tunnels, in this order; bounded in time."""
        self.events.publish(
            "daemon.shutting_down",
            {
                "known_peers": len(self.datapath.peers()),
                "open_connections": self.datapath.mux.live,
                "uptime_seconds": int(self.clock() - self.started_at),
            },
        )
        await self._stack.aclose()

    # --------------------------------------------------------------------------------------------- start

    async def _open(self) -> None:
        self._stack.callback(self.events.close)
        self._open_state()
        self._open_underlay()
        self._compose()
        await self._select_beacons()
        if self.config.echo:  # open before anybody can find this node
            echo = EchoService(lambda node: node == self.identity.node_id or self.gate.serves(node))
            await self._stack.enter_async_context(serving(self.streams.listen, ECHO_PORT, echo.handle))
        self._stack.push_async_callback(self._close_directory)
        self._stack.push_async_callback(self._end_streams)
        self._stack.push_async_callback(self.streams.close)
        await self._start_services()
        await self.directory.start()
        self._tasks.spawn(self._watch_beacons())
        self._tasks.spawn(self._watch_address())
        self._tasks.spawn(self._watch_receiving())
        self._tasks.spawn(self.networks.run())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(NETWORKS_SECONDS):
                await self.networks.synced()

    def _open_state(self) -> None:
        self._state = state = self._stack.enter_context(StateDirectory(self.config.state_dir))
        self.identity = self._given_identity or LocalIdentity.load_or_create(state.file(IDENTITY_NAME))

    def _open_underlay(self) -> None:
        self.port = port = self._open_port(self.config)
        self._stack.callback(port.close)
        if not isinstance(port, UdpPort):
            return  # a virtual port delivers by itself
        on_readable = port.on_readable
        if self.config.busy_poll_us:
            polling = BusyPoll(self._loop, port, self.clock, self.config.busy_poll_us * 1e-6)
            self._stack.callback(polling.stop)
            on_readable = polling.on_readable
        self._loop.add_reader(port.fileno(), on_readable)
        self._stack.callback(self._loop.remove_reader, port.fileno())

    def _compose(self) -> None:
        config, clock = self.config, self.clock
        self.tunnel = tunnel = Tunnel(self.identity, self._hooks, settings=self._tunnel_settings(), random=self._random)
        self.datapath = datapath = Datapath(
            self.port,
            tunnel,
            clock=clock,
            scheduler=self._scheduler,
            settings=MuxSettings(
                syn_rate=config.syn_rate,
                source_syn_rate=config.peer_syn_rate,
                source_syn_burst=config.peer_syn_burst,
                max_streams_per_port=config.streams_per_port,
                receive_limit=min(MuxSettings().receive_limit, config.stream_bytes),
                max_receive_limit=config.stream_bytes,
                send_limit=min(MuxSettings().send_limit, config.stream_bytes),
                max_send_limit=config.stream_bytes,
                congestion=config.congestion,
                memory_budget=config.memory_bytes,
            ),
            random=self._random,
        )
        self._stack.callback(datapath.close)
        tunnel.attach(datapath)
        self._watch_port()
        self._scheduler.attach(datapath)
        self._stack.callback(self._scheduler.stop)
        tunnel.start(clock())
        self._stack.callback(lambda: tunnel.stop(clock()))
        self.contacts = Contacts(self._loop, datapath, tunnel, clock)
        self._stack.callback(self.contacts.close)
        self._stack.push_async_callback(self._tasks.stop)
        self.directory = self._make_directory()
        self.gate = TrustGate(
            is_public=lambda: self.directory.public,
            is_trusted=self.callbacks.is_trusted,
            find_peer=datapath.peer,
            check_trust=self.directory.check_trust,
            spawn=self._tasks.spawn,
            clock=clock,
        )
        datapath.mux.gate = self.gate
        datapath.mux.publish = self.events.publish
        datapath.mux.wanted = self.events.wanted
        self._compose_policies()
        hooks = self._hooks
        hooks.tunnel, hooks.contacts, hooks.directory, hooks.gate = tunnel, self.contacts, self.directory, self.gate
        self.home = Home(self._loop, self._forked)
        self._stack.callback(self.home.leave)
        self.streams = NodeStreams(
            config, self.home, datapath, tunnel, self.contacts, self.directory, self.gate, self.policy
        )

    def _compose_policies(self) -> None:
        self.tags = tags = NodeTags(self.directory.lookup, self._tasks.spawn, self.clock)
        self.networks = Memberships(
            self.directory,
            tags,
            NetworkFile(self._state, self._wall),
            node_id=lambda: self.identity.node_id,
            publish=self.events.publish,
            changed=self._policies_changed,
            random=self._random,
            auto_join=self.config.join_list(),
        )
        self.policy = PolicyGate(self.networks, tags, self.events)
        self._policies_changed()

    def _policies_changed(self) -> None:
        """The datapath asks the gate only while there is something to decide."""
        self.datapath.mux.policy = self.policy if self.policy.needed else None

    async def _start_services(self) -> None:
        """Before the registration, so that nobody is refused by a service that is still starting (services.md 0.3)."""
        facilities = Facilities(
            state_dir=self._state.path,
            registry=self.directory,
            networks=self.networks,
            service=lambda name: self.services.registry.service(name),
            add_trust_source=self.callbacks.add_trust_source,
            on_mailbox=self.callbacks.on_mailbox,
            drop_tunnel=self._drop_tunnel,
            add_counter=self.callbacks.add_counter,
            clock=self.clock,
            wall=self._wall,
            random=self._random,
        )
        self.services = NodeServices(self._service_sources, facilities)
        self.policy.use(self.services.policies, self._policies_changed)
        deps = Deps(
            streams=self.streams,
            identity=self.identity,
            resolver=self.directory,
            events=self.events,
            logger=_log,
            trust=self.services.trust,
        )
        self._stack.push_async_callback(self.services.stop)
        await self.services.start(deps, self._restart_policy, self.clock)

    def _drop_tunnel(self, node: int) -> None:
        self.gate.forget(node)
        self.tunnel.forget(node, self.clock())

    def _tunnel_settings(self) -> TunnelSettings:
        settings = TunnelSettings(
            relay_only=self.config.relay_only, probe_mtu=self.config.max_segment_bytes > BASE_SEGMENT_BYTES
        )
        buffer_bytes = settings.receive_buffer_bytes
        if isinstance(self.port, UdpPort):
            buffer_bytes = self.port.receive_buffer_bytes
        # The tunnel probes up to an eighth of the receive buffer: a smaller buffer is how it is told a smaller segment.
        wanted = 8 * (self.config.max_segment_bytes + FRAME_OVERHEAD_BYTES)
        return dataclasses.replace(settings, receive_buffer_bytes=min(buffer_bytes, wanted))

    def _watch_port(self) -> None:
        """Where the loop watches the socket itself, it is told when to watch for writing; drained, sending goes on."""
        port = self.port
        if isinstance(port, UdpPort):
            if port.fileno() == port.socket_fileno():
                port.on_congested = lambda: self._loop.add_writer(port.fileno(), port.on_writable)
            port.on_drained = self._port_drained

    def _port_drained(self) -> None:
        port = self.port
        if isinstance(port, UdpPort) and port.fileno() == port.socket_fileno():
            self._loop.remove_writer(port.fileno())
        self.datapath.port_writable()

    def _make_directory(self) -> Directory:
        config = self.config
        host, port = parse_endpoint("registry", config.registry)
        tls = None
        if config.registry_tls:
            tls = RegistryTls(None if config.registry_tls == "system" else config.registry_tls)
        options = DirectoryOptions(
            public=config.public,
            hostname=config.hostname,
            owner=config.email or f"{self.identity.public_key[:6].hex()}@nodes.pilotprotocol.network",
            on_registered=self._registered,
            publish=self.events.publish,
            wall=self._wall,
            jitter=self._random.random,
        )
        client = RegistryClient(host, port, tls=tls, jitter=self._random.random)
        return Directory(client, self.identity, self._advertise, options)

    def _registered(self, node_id: int, addr: Addr) -> None:
        """The registry has given this node its id, for the first time or again."""
        again = self.events.node_id != 0
        self.events.node_id = node_id
        self.tunnel.registered(node_id, self.clock())
        who = {"address": str(addr), "node_id": node_id}
        if again:
            self.events.publish("node.reregistered", {"address": str(addr)})
            self.events.publish("agent.registered", {**who, "reregistered": True})
            self.networks.sync_soon()
        else:
            endpoint = self._endpoint()
            self.events.publish("node.registered", {"address": str(addr), "endpoint": endpoint})
            self.events.publish("agent.registered", {**who, "endpoint": endpoint})

    def _advertise(self) -> Advertisement:
        """Where this node says it is: the configured endpoint, else what the beacon sees, else the own address."""
        port = self._bound_address()[1]
        lan: tuple[str, ...] = ()
        if not self.config.relay_only and _is_unspecified(self._bound_address()[0]):
            with contextlib.suppress(OSError):
                addresses = lan_addresses()
                self.tunnel.set_lan_addresses(addresses)
                lan = tuple(join_endpoint(address, port) for address in addresses)
        return Advertisement(self._endpoint(), lan, self.config.relay_only)

    def _endpoint(self) -> str:
        host = self.tunnel.observed_host or self._local_host()
        return self.config.endpoint or join_endpoint(host, self._bound_address()[1])

    def _bound_address(self) -> tuple[str, int]:
        address: tuple[str, int] = self.port.address
        return address

    def _local_host(self) -> str:
        """The source address of what is sent to the beacon, or to the registry where there is no beacon."""
        host = self._bound_address()[0]
        if not _is_unspecified(host):
            return host
        towards = self.datapath.beacon or parse_endpoint("registry", self.config.registry)
        try:
            return local_address_towards(*towards)
        except (OSError, PilotError):  # no route, or the registry is only known by name
            return "0.0.0.0"

    # ---------------------------------------------------------------------------------------- background

    async def _select_beacons(self) -> None:
        """Fixes the configured beacons' addresses; a name that is unknown at present is tried again every minute."""
        endpoints = [parse_endpoint("beacon", text) for text in self.config.beacon_list()]
        found = [await literal_address(endpoint) for endpoint in endpoints]
        self._beacons = [address for address in found if address is not None]
        if len(self._beacons) < len(endpoints):
            _log.warning("the address of %d beacons is unknown", len(endpoints) - len(self._beacons))
        self.tunnel.set_beacons(self._beacons, [], self.clock())

    async def _watch_beacons(self) -> None:
        await asyncio.sleep(self._random.random() * BEACON_LIST_JITTER_SECONDS)
        while self.config.beacon != "none":
            try:
                listed = [beacon.endpoint for beacon in await self.directory.beacon_list()]
                self.tunnel.set_beacons(self._beacons, listed, self.clock())
                if len(self._beacons) < len(self.config.beacon_list()):
                    await self._select_beacons()
            except RegistryError as error:
                _log.debug("the registry's list of beacons is not to be had: %s", error)
            except ClosedError:  # the node stops, and the directory before the tasks
                return
            await asyncio.sleep(BEACON_LIST_SECONDS)

    async def _watch_address(self) -> None:
        while True:
            await asyncio.sleep(ADDRESS_SECONDS)
            if self.datapath.beacon is not None:
                self.tunnel.local_address(self._local_host(), self.clock())

    async def _watch_receiving(self) -> None:
        last = self._last_resort().take if self.config.end_when_deaf else None
        watch = ReceiveWatch(self._received, self._announce, self.events.publish, self.clock, last)
        while True:
            await asyncio.sleep(TICK_SECONDS)
            watch.tick()

    def _last_resort(self) -> LastResort:
        def ready() -> bool:
            """A start helps only where the registry is there, and does not where this one is young."""
            heard = self.directory.missed_heartbeats <= MAX_MISSED_WHEN_DEAF
            return heard and self.clock() - self.started_at >= DEAF_UPTIME_SECONDS

        return LastResort(
            self._state, ready=ready, publish=self.events.publish, end=lambda: self.on_deaf(), wall=self._wall
        )

    def _received(self) -> Received:
        counters = self.datapath.counters
        frames = counters["frames_received"]
        if isinstance(self.port, UdpPort):
            datagrams = self.port.stats().datagrams_in
        else:
            datagrams = frames + counters["frames_rejected"] + counters["datagrams_ignored"]
        return Received(frames, datagrams, counters["frames_sent"], self.streams.dial_timeouts)

    def _announce(self, reason: str) -> None:
        """Tells beacon and registry where this node is, as if it had just started."""
        self.tunnel.discover(self.clock())
        self.directory.reregister(f"nothing is received ({reason})")

    # ---------------------------------------------------------------------------------------------- stop

    async def _end_streams(self) -> None:
        """A FIN on every stream; those whose peers have not answered in time are reset."""
        cores = [core for core in self.datapath.mux.all_streams() if core.state < StreamState.TIME_WAIT]
        for core in cores:
            core.close()
        waiting = [core.owner._ended for core in cores if core.owner is not None]
        if waiting:
            await asyncio.wait(waiting, timeout=STOP_SECONDS)
        for core in self.datapath.mux.all_streams():
            core.abort()
        self.datapath.end_of_iteration()

    async def _close_directory(self) -> None:
        try:
            temporary = self.config.state_dir is None and self._given_identity is None
            if temporary and self.directory.registration is not None:
                # Nobody can come back with this key: the name need not stay taken for half an hour.
                with contextlib.suppress(PilotError, TimeoutError):
                    async with asyncio.timeout(DEREGISTER_SECONDS):
                        await self.directory.deregister()
        finally:
            await self.directory.stop()

    def _forked(self) -> None:
        """In a forked child: no packet may leave, no key may stay. The loop is the parent's: it is left alone."""
        self._scheduler.stop()
        if isinstance(self.port, UdpPort):
            self.port.close()
        for peer in self.datapath.peers():
            self.datapath.drop_session(peer)


def _is_unspecified(host: str) -> bool:
    return ipaddress.ip_address(host.partition("%")[0]).is_unspecified
