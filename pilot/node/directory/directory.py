"""`Directory`: keeps this node registered, and answers where and who other nodes are, with caches (L8).

Source: reference rendezvous.md, sections 4.3 to 4.11 and 8; official timing where nothing better is known.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Awaitable, Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeVar

from pilot._fast.addr import Addr
from pilot._fast.errors import PeerNotFoundError, RegistryError
from pilot.coreapi import PeerInfo
from pilot.node.directory import answers
from pilot.node.directory.answers import Endpoint, JoinedNetwork, Location, NodeRecord, Registration
from pilot.node.directory.cache import NEGATIVE_SECONDS, AnswerCache
from pilot.node.directory.client import RegistryClient, RegistryRefusedError
from pilot.node.directory.network_calls import NetworkCalls
from pilot.node.directory.quiet import QuietLog
from pilot.node.identity import LocalIdentity
from pilot.protocol.names import hostname_untrusted
from pilot.protocol.registry import Message, public_key_text

__all__ = ["Advertisement", "Directory", "DirectoryOptions"]

HEARTBEAT_SECONDS = 60.0
START_JITTER_SECONDS = 5.0
MAX_MISSED_HEARTBEATS = 3
FIRST_PAUSE = 0.1
LAST_PAUSE = 30.0
FRESH_SECONDS = 60.0
STALE_SECONDS = 3600.0
TRUST_SECONDS = 3.0
ANSWER_LIMIT_SECONDS = 8.0
SUSPEND_SECONDS = 30.0
"""The wall clock running ahead of the loop's by more than this between two heartbeats means the machine slept."""

REGISTER_AT_ONCE = ("node not found", "signature verification failed")

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

_log = logging.getLogger("pilot.directory")


@dataclass(frozen=True, slots=True)
class Advertisement:
    """Where this node says it is, at the moment of a registration: `host:port` texts of its UDP socket."""

    listen_addr: str
    lan_addrs: tuple[str, ...] = ()
    relay_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectoryOptions:
    """What a `Directory` says about its node and whom it tells what.

    Raises:
        InvalidValueError: `hostname` cannot be a name.
    """

    public: bool = False
    hostname: str = ""
    owner: str = ""
    """The account e-mail address; left out when empty."""
    version: str = ""
    start_attempts: int = 5
    """Dials at the start before giving up: 5 take about 5 s, the official daemon's 10 about 40 s."""
    trusted_peers: Callable[[], Iterable[int]] = tuple
    """Gives the ids of the nodes this one trusts, to be reported after each registration."""
    on_registered: Callable[[int, Addr], None] | None = None
    """Called with id and address after every registration, in the loop; the id may be another than before."""
    publish: Callable[[str, dict[str, object]], object] | None = None
    """Takes the events `agent.heartbeat`, `key.rotated` and `tunnel.host_resumed`."""
    wall: Callable[[], float] = time.time
    jitter: Callable[[], float] = random.random

    def __post_init__(self) -> None:
        if self.hostname:
            hostname_untrusted(self.hostname)


class Directory(NetworkCalls):
    """The registry as one node sees it: a `coreapi.PeerResolver` that also keeps the node itself registered.

    ``async with Directory(client, identity, advertise) as directory`` registers and starts a task that sends heartbeats
    and registers anew when the registry has lost the node, stopped answering for a while, or `reregister` was called.
    That task never raises into anybody else's; what goes wrong in it is logged under `pilot.directory`. The client
    belongs to the directory and is closed with it: make new ones to start again.

    Answers are cached for a minute. While the registry cannot be reached, where a node is and what it is called may be
    up to an hour old, and failures are repeated for 3 s, so nobody waits in a row. Each question is answered or given
    up within 8 s. For errors and cancellation of the plain calls see `RegistryCalls`; cancelling a cached question
    (`resolve`, `locate`, `lookup`, `peer_key`, `resolve_hostname`, `check_trust`) only stops the waiting.
    """

    def __init__(
        self,
        client: RegistryClient,
        identity: LocalIdentity,
        advertise: Callable[[], Advertisement],
        options: DirectoryOptions | None = None,
    ) -> None:
        self._options = options or DirectoryOptions()
        super().__init__(client, identity, self._options.wall)
        self._advertise = advertise
        self._public, self._hostname = self._options.public, self._options.hostname
        self._registration: Registration | None = None
        self._active = False
        # What the registry has still to be told. At first the visibility too when private: an earlier run's "public"
        # would outlive the restart (rendezvous.md 4.8).
        self._todo = {"visibility"}
        self._changing = asyncio.Lock()
        self._wanted = asyncio.Event()
        self._pause = FIRST_PAUSE
        self._missed = 0
        self._drift: float | None = None
        self._task: asyncio.Task[None] | None = None
        self._quiet = QuietLog(_log)
        self._locations = self._cache(self._ask_location, FRESH_SECONDS, STALE_SECONDS)
        self._records = self._cache(self._ask_record, FRESH_SECONDS, STALE_SECONDS)
        self._trust = self._cache(self._ask_trust, TRUST_SECONDS, 0.0)
        self._names = self._cache(self._ask_hostname, FRESH_SECONDS, STALE_SECONDS)

    # ------------------------------------------------------------------------------------------ lifecycle

    async def start(self) -> Registration:
        """Registers this node and starts the heartbeats; on failure or cancellation nothing is left running.

        Raises:
            RegistryError: the registry cannot be reached, or refuses the registration.
        """
        try:
            await self._client.connect(self._options.start_attempts)
            registration = await self.register()
        except BaseException:
            await self.stop()
            raise
        self._task = asyncio.get_running_loop().create_task(self._live(), name="pilot directory")
        return registration

    async def stop(self) -> None:
        """Ends the heartbeats and closes the client. The registration is left to expire. May be repeated.

        Requests under way raise `ClosedError`.
        """
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None
        for cache in (self._locations, self._records, self._trust, self._names):
            await cache.close()
        await self._client.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.stop()

    # --------------------------------------------------------------------------------- this node's record

    @property
    def registration(self) -> Registration | None:
        """What the registry answered last, None before the first registration and after `deregister`."""
        return self._registration

    @property
    def hostname(self) -> str:
        """The name this node wants; `unconfirmed` holds "hostname" while the registry has not granted it."""
        return self._hostname

    @property
    def public(self) -> bool:
        """Whether this node wants to be seen by strangers."""
        return self._public

    @property
    def unconfirmed(self) -> frozenset[str]:
        """What the registry has yet to take: any of "visibility", "hostname", "trust". Repeated with each heartbeat."""
        return frozenset(self._todo)

    async def register(self) -> Registration:
        """Registers this node now and tells its visibility, its hostname and whom it trusts.

        What of the latter fails is logged and repeated with the heartbeats. A registration that is cancelled may have
        reached the registry.

        Raises:
            RegistryError: the registry cannot be asked, refuses, or gives an unusable answer.
        """
        async with self._changing:
            self._active = True
            return await self._register()

    def reregister(self, reason: str) -> None:
        """Has the background task register this node at once, or after a pause if that happened a moment ago."""
        if self._active and not self._wanted.is_set():
            self._quiet.warning("reregister", "registering again at %s: %s", self.address, reason)
            self._wanted.set()

    def reconnect(self) -> None:
        """Has the registry asked over new connections from now on, open questions included: the own address changed."""
        self._client.reconnect()

    async def heartbeat(self) -> None:
        """Tells the registry that this node lives; the background task does so every minute.

        Raises:
            RegistryError: the registry cannot be asked or refuses.
        """
        answer = await self._client.request(self._sign({"type": "heartbeat", "node_id": self._own_id()}))
        if answer.get("key_expiry_warning") is True:
            self._quiet.warning("expiry", "the key of this node expires within a day at registry %s", self.address)

    async def deregister(self) -> None:
        """Ends the registration and the heartbeats; `register` begins both again, under the same id.

        Raises:
            RegistryError: the registry cannot be asked or refuses; the heartbeats go on.
        """
        async with self._changing:
            await self._ask_signed("deregister", answers.nothing, node_id=self._own_id())
            self._active = False
            self._wanted.clear()
            self._registration = None

    async def set_visibility(self, public: bool) -> None:
        """Shows this node to strangers or hides it. Cancelled or failed, the earlier wish is told again.

        Raises:
            RegistryError: the registry cannot be asked or refuses.
        """
        async with self._changing:
            with self._told_again_on_failure("visibility"):
                await self._tell_visibility(public)
            self._public = public

    async def set_hostname(self, name: str) -> None:
        """Names this node, and frees its former name. Cancelled or failed, the earlier name is told again.

        Raises:
            InvalidValueError: `name` is no hostname (1 to 63 of `a-z 0-9 -`).
            RegistryError: somebody else has the name, or the registry cannot be asked.
        """
        await self._change_hostname(hostname_untrusted(name))

    async def clear_hostname(self) -> None:
        """Gives this node's name up. Raises what `set_hostname` raises."""
        await self._change_hostname("")

    async def rotate_key(self) -> bytes:
        """Replaces this node's key; returns the new public key. Node id, trust and open tunnels stay.

        The registry decides: until it has taken the new key the identity file is not touched. When its answer is lost,
        or the call is cancelled, this node goes on with the old key and asks which one is valid before it registers the
        next time, which then happens at once. Blocks for the fsync of the key files: a thread would leave a cancelled
        rotation half done.

        Raises:
            RegistryError: the registry refused, or the outcome is not known yet.
            BusyError: an earlier rotation is not settled yet.
            OSError: a key file could not be written.
        """
        async with self._changing:
            node_id = self._own_id()
            new_key = self._identity.begin_rotation()
            try:
                await self._ask_signed(
                    "rotate_key", answers.nothing, node_id=node_id, new_public_key=public_key_text(new_key)
                )
                self._commit_rotation(node_id)
            except RegistryRefusedError:
                # It may have refused the repeat of a request that it had carried out: the key it has tells.
                with contextlib.suppress(RegistryError):
                    await self._settle_rotation()
                if self._identity.public_key != new_key:
                    raise
            finally:
                self._forget(node_id)
                if self._identity.rotation is not None:
                    self.reregister("the outcome of a key rotation is not known")
            return new_key

    # ---------------------------------------------------------------------------------------- other nodes

    async def resolve(self, node_id: int, *, max_age: float | None = None) -> PeerInfo:
        """Where and who a node is, as `coreapi.PeerResolver.resolve`; at most `max_age` seconds old if that is given.

        `pub_key` and `hostname` are missing when the registry tells where the node is but not who.
        """
        location, record = await asyncio.gather(
            self.locate(node_id, max_age=max_age), self.lookup(node_id, max_age=max_age), return_exceptions=True
        )
        if isinstance(location, BaseException):
            raise location
        if isinstance(record, BaseException):
            if not isinstance(record, PeerNotFoundError | RegistryError):
                raise record
            record = NodeRecord(node_id)
        return PeerInfo(
            node_id,
            Addr(0, node_id),
            endpoint=location.endpoint,
            pub_key=record.public_key,
            public=record.public,
            hostname=record.hostname,
            relay_only=location.relay_only,
        )

    async def locate(self, node_id: int, *, max_age: float | None = None) -> Location:
        """Where a node is: endpoint, local addresses, whether it is relay-only. Raises what `resolve` raises."""
        return await self._locations.get(node_id, max_age)

    def lan_addrs(self, node_id: int) -> tuple[Endpoint, ...]:
        """The local addresses from the last `resolve` or `locate` of the node, if it was within the last minute."""
        location = self._locations.peek(node_id)
        return location.lan_addrs if location else ()

    async def lookup(self, node_id: int, *, max_age: float | None = None) -> NodeRecord:
        """Who a node is: key, visibility, name, tags and networks; of private nodes too on most registries.

        Raises:
            PeerNotFoundError: there is no such node.
            RegistryError: the registry cannot be asked, or gives an unusable answer.
        """
        return await self._records.get(node_id, max_age)

    async def peer_key(self, node_id: int, *, max_age: float = FRESH_SECONDS) -> bytes | None:
        """The public key the registry has for a node, None if it has none; for pinning the key a peer shows.

        Strangers can make a node ask this, so neither keys nor failures younger than 3 s are asked for again, however
        small `max_age` is. Errors tell "unknown" from "could not ask":

        Raises:
            PeerNotFoundError: the registry knows no such node.
            RegistryError: the registry could not be asked; nothing is known.
        """
        record = await self._records.get(node_id, max(max_age, NEGATIVE_SECONDS))
        return record.public_key

    async def resolve_hostname(self, name: str) -> int:
        """The id of the node with that name, as `coreapi.PeerResolver.resolve_hostname`."""
        return await self._names.get(name)

    async def check_trust(self, peer_id: int) -> bool:
        """Whether the registry has trust between this node and `peer_id`, or a network both are in; kept for 3 s.

        Raises:
            RegistryError: the registry could not be asked: do not take it for a yes.
        """
        return await self._trust.get(peer_id)

    async def report_trust(self, peer_id: int) -> None:
        """As the plain call; what is cached about the peer is dropped."""
        await super().report_trust(peer_id)
        self._forget(peer_id)

    async def revoke_trust(self, peer_id: int) -> None:
        """As the plain call; what is cached about the peer is dropped."""
        await super().revoke_trust(peer_id)
        self._forget(peer_id)

    async def join_network(self, network_id: int, token: str = "") -> JoinedNetwork:
        """As the plain call; what is cached about this node is dropped."""
        joined = await super().join_network(network_id, token)
        self._forget(joined.addr.node)
        return joined

    async def leave_network(self, network_id: int) -> None:
        """As the plain call; what is cached about this node is dropped."""
        await super().leave_network(network_id)
        self._forget(self._own_id())

    # --------------------------------------------------------------------------------------- registration

    async def _register(self) -> Registration:
        """The sequence of rendezvous.md 4.4; the caller holds the lock."""
        await self._settle_rotation()
        public_key = public_key_text(self._identity.public_key)
        registration = await self._ask_signed(
            "register", answers.registration_untrusted, **self._register_fields(public_key)
        )
        before, rotation = self._identity.node_id, self._identity.rotation
        if rotation is not None and rotation.node_id == registration.node_id:
            self._identity.abandon_rotation()  # the registry knows the node by the present key
        self._identity._registered(registration.node_id, registration.addr)
        self._registration = registration
        self._missed = 0
        self._forget(registration.node_id)
        if before not in (0, registration.node_id):
            _log.warning("registry %s gave node %d another id: %d", self.address, before, registration.node_id)
        self._todo.add("trust")
        if self._public:
            self._todo.add("visibility")
        if self._hostname:
            self._todo.add("hostname")
        self._call_on_registered(registration)
        await self._tell_rest()
        return registration

    def _register_fields(self, public_key: str) -> Message:
        where = self._advertise()
        fields: Message = {"listen_addr": where.listen_addr, "public_key": public_key}
        optional = {"owner": self._options.owner, "version": self._options.version, "lan_addrs": list(where.lan_addrs)}
        fields |= {name: value for name, value in optional.items() if value}
        if where.relay_only:
            fields["relay_only"] = True
        return fields

    def _call_on_registered(self, registration: Registration) -> None:
        if self._options.on_registered is None:
            return
        try:
            self._options.on_registered(registration.node_id, registration.addr)
        except Exception:
            _log.exception("on_registered failed")

    async def _tell_rest(self) -> None:
        """Tells what the registry does not know yet; what it refuses or cannot be told stays for the next heartbeat."""
        steps: tuple[tuple[str, Callable[[], Awaitable[None]]], ...] = (
            ("visibility", lambda: self._tell_visibility(self._public)),
            ("hostname", lambda: self._tell_hostname(self._hostname)),
            ("trust", self._tell_trust),
        )
        for name, tell in steps:
            if name not in self._todo:
                continue
            try:
                await tell()
            except RegistryRefusedError as refusal:
                self._quiet.warning(name, "%s is tried again with each heartbeat: %s", name, refusal)
            except RegistryError as error:
                self._quiet.warning("rest", "the registration is completed with a later heartbeat: %s", error)
                return

    async def _tell_visibility(self, public: bool) -> None:
        await self._ask_signed("set_visibility", answers.nothing, node_id=self._own_id(), public=public)
        self._todo.discard("visibility")

    async def _tell_hostname(self, name: str) -> None:
        await self._ask_signed("set_hostname", answers.nothing, node_id=self._own_id(), hostname=name)
        self._todo.discard("hostname")

    async def _tell_trust(self) -> None:
        """Reports every trusted peer; one the registry does not know (yet) will report the pair itself."""
        for peer_id in self._options.trusted_peers():
            with contextlib.suppress(RegistryRefusedError):
                await super().report_trust(peer_id)
        self._todo.discard("trust")

    async def _change_hostname(self, name: str) -> None:
        async with self._changing:
            with self._told_again_on_failure("hostname"):
                await self._tell_hostname(name)
            self._hostname = name

    @contextlib.contextmanager
    def _told_again_on_failure(self, what: str) -> Iterator[None]:
        """After a refusal the registry still has what it had; after anything else it may have either."""
        try:
            yield
        except RegistryRefusedError:
            raise
        except BaseException:
            self._todo.add(what)
            raise

    async def _settle_rotation(self) -> None:
        """Finds out which key the registry has when a rotation, in this run or an earlier one, ended unanswered."""
        rotation = self._identity.rotation
        if rotation is None:
            return
        try:
            record = await self._client.ask(
                {"type": "lookup", "node_id": rotation.node_id},
                lambda answer: answers.node_record_untrusted(answer, rotation.node_id),
            )
        except RegistryRefusedError:
            return  # it does not know the node (any more): registering with the present key may tell
        if record.public_key == rotation.public_key:
            self._commit_rotation(rotation.node_id)
            _log.warning("registry %s had taken the new key of node %d; using it", self.address, rotation.node_id)
        elif record.public_key == self._identity.public_key:
            self._identity.abandon_rotation()

    def _commit_rotation(self, node_id: int) -> None:
        self._identity.commit_rotation()
        self._publish("key.rotated", node_id=node_id, public_key=public_key_text(self._identity.public_key))

    def _publish(self, topic: str, **payload: object) -> None:
        if self._options.publish is not None:
            self._options.publish(topic, payload)

    # ----------------------------------------------------------------------------------------- background

    async def _live(self) -> None:
        """Heartbeats at a fixed phase, registrations when wanted."""
        loop = asyncio.get_running_loop()
        next_beat = loop.time() + HEARTBEAT_SECONDS + START_JITTER_SECONDS * self._options.jitter()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(next_beat):
                    await self._wanted.wait()
            try:
                if self._wanted.is_set():
                    await self._register_again()
                else:
                    next_beat += HEARTBEAT_SECONDS * (1 + (loop.time() - next_beat) // HEARTBEAT_SECONDS)
                    await self._beat()
            except Exception:
                _log.exception("the background task of the directory met an error")

    async def _register_again(self) -> None:
        """One attempt after a pause; the pause doubles with each until a heartbeat succeeds."""
        self._wanted.clear()
        await asyncio.sleep(self._pause * (1.0 + self._options.jitter()))
        self._pause = min(2 * self._pause, LAST_PAUSE)
        async with self._changing:
            if not self._active:
                return
            try:
                await self._register()
            except RegistryError as error:
                self._quiet.warning("register", "registering again failed, trying on: %s", error)
                self._wanted.set()

    @property
    def missed_heartbeats(self) -> int:
        """Heartbeats in a row, up to now, that the registry has not taken; one is sent every 60 s."""
        return self._missed

    async def _beat(self) -> None:
        if not self._active:
            return
        self._check_clocks()
        try:
            await self.heartbeat()
        except RegistryError as error:
            self._missed += 1
            self._quiet.warning("heartbeat", "%s (%d in a row)", error, self._missed)
            unknown = isinstance(error, RegistryRefusedError) and any(t in error.text for t in REGISTER_AT_ONCE)
            if unknown or self._missed >= MAX_MISSED_HEARTBEATS:
                self.reregister("it does not know this node" if unknown else "it did not take the last heartbeats")
            return
        self._missed = 0
        self._pause = FIRST_PAUSE
        self._publish("agent.heartbeat", address=str(self._identity.address), node_id=self._identity.node_id)
        if self._todo:
            async with self._changing:
                await self._tell_rest()

    def _check_clocks(self) -> None:
        drift = self._options.wall() - asyncio.get_running_loop().time()
        if self._drift is not None and drift - self._drift > SUSPEND_SECONDS:
            self._publish("tunnel.host_resumed", gap_seconds=int(drift - self._drift))
            self.reregister("the machine was suspended, or its clock was set")
        self._drift = drift

    # ------------------------------------------------------------------------------------------- questions

    def _cache(self, ask: Callable[[K], Awaitable[V]], fresh: float, stale: float) -> AnswerCache[K, V]:
        return AnswerCache(
            ask,
            fresh=fresh,
            stale=stale,
            limit=ANSWER_LIMIT_SECONDS,
            too_slow=self._too_slow,
            check_loop=self._client.check_loop,
        )

    def _too_slow(self) -> RegistryError:
        return RegistryError(
            f"registry {self.address} gave no answer within {ANSWER_LIMIT_SECONDS:g} s: it may be overloaded or cut off"
        )

    async def _ask_location(self, node_id: int) -> Location:
        try:
            return await super()._ask_location(node_id)
        except RegistryRefusedError as refusal:
            if "requester" in refusal.text:
                self.reregister("it does not know this node")
            raise

    def _forget(self, node_id: int) -> None:
        self._locations.forget(node_id)
        self._records.forget(node_id)
        self._trust.forget(node_id)
