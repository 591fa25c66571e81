"""`Memberships`: the networks this node is in, its tags and the permitted ports there, as the registry has them (L9).

Source: services.md 9.1, 9.7, 9.8; rendezvous.md 6 and 8.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from pilot._fast.errors import ClosedError, InvalidValueError, PeerNotFoundError, PilotError, RegistryError
from pilot.node.directory import Member, NetworkInfo, NodeRecord, RegistryRefusedError
from pilot.node.directory.quiet import QuietLog
from pilot.node.network_file import Network, NetworkFile
from pilot.protocol.registry import BACKBONE, decode_body_untrusted

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator
    from random import Random
    from typing import TypeVar

    from pilot._fast.addr import Addr
    from pilot.node.directory import Directory
    from pilot.node.tags import NodeTags

    T = TypeVar("T")

__all__ = ["Member", "Memberships"]

SYNC_SECONDS: Final = 300.0
SYNC_JITTER_SECONDS: Final = 30.0
FIRST_RETRY_SECONDS: Final = 10.0
"""After a round in which something failed; doubled each time, up to `SYNC_SECONDS`."""
NOT_REFUSED: Final = ("rate limited", "node not found")
"""In refusals of a registry that is busy, or has lost this node, which registers again: another time it may agree."""
LIMITS_TRIES: Final = 3
LIMITS_PAUSE_SECONDS: Final = 0.2

_log = logging.getLogger("pilot.node")


@dataclass(frozen=True, slots=True)
class _Policies:
    """What is to be told of a network that was joined; both empty where it has none."""

    expr_policy: str = ""
    rules: str = ""


class Memberships:
    """Compared with the registry at the start, after joining and leaving, every five minutes, and on `sync_soon`.

    What was known before a restart is read from `networks.json` and holds until the registry answers. Changes are
    published: `network.joined`, `network.auto_joined`, `network.auto_join_failed`, `network.left`,
    `network.tags_changed`, `network.policy_load_failed`. The backbone (0) is left out of everything here: all nodes are
    in it, and nothing about it can be decided.
    """

    def __init__(
        self,
        directory: Directory,
        tags: NodeTags,
        file: NetworkFile,
        *,
        node_id: Callable[[], int],
        publish: Callable[[str, dict[str, object]], object],
        changed: Callable[[], object],
        random: Random,
        auto_join: Iterable[int] = (),
    ) -> None:
        """`changed` is called when `restricted` may have changed. `auto_join` are networks to join once, at the start:
        where the registry cannot be asked, each further round tries again, the next one after `FIRST_RETRY_SECONDS`.

        Raises:
            OSError: `networks.json` exists and cannot be read.
        """
        self._directory = directory
        self._tags = tags
        self._file = file
        self._node_id = node_id
        self._publish = publish
        self._changed = changed
        self._random = random
        self._auto_join = tuple(auto_join)
        self._networks = file.load()
        self._known = bool(self._networks)  # else what the first round finds is nothing new
        self._answered = False  # by the registry, which networks this node is in
        self._changing = asyncio.Lock()
        self._wanted = asyncio.Event()
        self._synced = asyncio.Event()
        self._quiet = QuietLog(_log)

    # -------------------------------------------------------------------------------------------- at once

    def ids(self) -> list[int]:
        """The networks this node is in, ascending, without the backbone."""
        return sorted(self._networks)

    def own_tags(self, network_id: int) -> tuple[str, ...]:
        """What the administrators of the network call this node; nothing where it is no member."""
        network = self._networks.get(network_id)
        return () if network is None else network.tags

    def node_tags(self, node_id: int) -> tuple[str, ...]:
        """What a node calls itself, as far as it is known: `members` has told, or it was asked about."""
        return self._tags.peek(node_id)

    def allowed_ports(self, network_id: int) -> tuple[int, ...] | None:
        """The static list of ports of a network, ascending; empty means all. None: the registry has not told yet.

        A network this node is no member of restricts nothing, once the registry has told which ones it is in.
        """
        network = self._networks.get(network_id)
        if network is not None:
            return network.ports
        return () if self._answered or network_id == BACKBONE else None

    @property
    def restricted(self) -> bool:
        """Whether any network has a list of ports, or may have one."""
        return not self._answered or any(network.ports is None or network.ports for network in self._networks.values())

    # ----------------------------------------------------------------------------------------- questions

    async def synced(self) -> None:
        """Returns when the first round of this run of the node is over; whatever changes later is published.

        Where that round failed, `ids` is what was known before the start. Cancelling it changes nothing.
        """
        await self._synced.wait()

    async def members(self, network_id: int) -> list[Member]:
        """The members of a network with their tags, this node and those that are offline included.

        Raises:
            RegistryError: the registry cannot be asked or refuses.
            InvalidValueError: it is no network id.
            ClosedError: the node has stopped.
        """
        members = await self._directory.list_members(network_id)
        self._tags.take(members)
        return members

    async def policy_text(self, network_id: int) -> str | None:
        """The text of a network's expression policy, None where it has none. Raises what `members` raises."""
        return await self._directory.expr_policy(network_id) or None

    async def set_policy_text(self, network_id: int, text: str | None, *, admin_token: str = "") -> None:
        """Stores an expression policy at the registry; None clears it. For the network's administrators.

        Without a token the request is signed by this node, which only `pilot rendezvous` takes. Nothing else happens:
        who stores a policy has also to apply it here. Raises what `members` raises.
        """
        await self._directory.set_expr_policy(network_id, text or "", admin_token=admin_token)

    # ------------------------------------------------------------------------------------------- changes

    async def join(self, network_id: int, token: str = "") -> Addr:
        """Joins a network that is open, or protected by `token`; returns this node's address there.

        Being in it already is fine. Cancelled, or when the registry's answer is lost, the next round shows the outcome.

        Raises:
            RegistryError: the registry cannot be asked, or refuses: no such network, a wrong token, by invitation only.
            InvalidValueError: it is no network id.
            ClosedError: the node has stopped.
        """
        async with self._changing:
            return await self._join(network_id, token)

    async def leave(self, network_id: int) -> None:
        """Ends this node's membership; not being in it is fine. Cancellation and errors as `join`."""
        async with self._changing:
            self._settle_auto_join(network_id)
            with self._looked_up_on_failure():
                try:
                    await self._directory.leave_network(network_id)
                except RegistryRefusedError as refusal:
                    if "not a member" not in refusal.text:
                        raise
                if self._networks.pop(network_id, None) is not None:
                    self._publish("network.left", {"network_id": network_id})
                    self._keep()

    def sync_soon(self) -> None:
        """Has the registry asked now: this node has registered again, or somebody knows that something has changed."""
        self._wanted.set()

    async def run(self) -> None:
        """The background task: rounds until it is cancelled or the directory is closed."""
        pause = FIRST_RETRY_SECONDS
        while True:
            self._wanted.clear()
            try:
                complete = await self.sync()
            except ClosedError:
                return
            except (RegistryError, PeerNotFoundError) as error:
                self._quiet.warning("sync", "the networks of this node are not to be had from the registry: %s", error)
                complete = False
            self._known = True
            self._synced.set()
            if complete:
                pause, wait = FIRST_RETRY_SECONDS, SYNC_SECONDS + SYNC_JITTER_SECONDS * self._random.random()
            else:
                pause, wait = min(2 * pause, SYNC_SECONDS), pause
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._wanted.wait()

    async def sync(self) -> bool:
        """One round: memberships, permitted ports, own tags. False when a part of it is to be tried again soon.

        Raises:
            RegistryError, PeerNotFoundError: the registry did not tell which networks this node is in, or does not know
                it any more; what was known still holds.
            ClosedError: the node has stopped.
        """
        async with self._changing:
            # Each round asks anew, since it is others who change these things.
            record = await self._directory.lookup(self._node_id(), max_age=0.0)
            complete = await self._compare(record)
            return await self._join_configured() and complete

    # ---------------------------------------------------------------------------------------- one round

    async def _compare(self, record: NodeRecord) -> bool:
        current = set(record.networks) - {BACKBONE}
        for network_id in [known for known in self._networks if known not in current]:
            del self._networks[network_id]
            self._publish("network.left", {"network_id": network_id})
        joined = sorted(current - self._networks.keys())
        self._add(joined)
        self._answered = complete = True
        for network_id in sorted(current):
            try:
                await self._refresh(network_id, told=network_id not in joined)
            except RegistryRefusedError:
                complete = False
            except RegistryError:  # an outage: the others would only wait for nothing
                complete = False
                break
        if joined and self._known:
            await self._tell_joined(joined)
        self._keep()
        return complete

    async def _refresh(self, network_id: int, *, told: bool) -> None:
        """Brings a network that is known up to date. `told`: a change of tags is published.

        Raises:
            RegistryError: its ports are not to be had; what is known holds, and where nothing is, nothing is permitted.
        """
        network = self._networks[network_id]
        try:
            network = replace(network, ports=await self._load_ports(network_id))
        except RegistryError as error:
            self._quiet.warning("limits", "the port list of network %d is not to be had: %s", network_id, error)
            had_prior = network.ports is not None
            self._publish("network.policy_load_failed", {"net_id": network_id, "had_prior": had_prior})
            raise
        tags = await self._unless_refused(self._directory.member_tags(network_id, self._node_id()), network.tags)
        if told and tags != network.tags:
            self._publish("network.tags_changed", {"network_id": network_id, "tags": list(tags) or None})
        self._networks[network_id] = replace(network, tags=tags)

    async def _load_ports(self, network_id: int) -> tuple[int, ...]:
        for _ in range(LIMITS_TRIES - 1):
            with contextlib.suppress(RegistryError):
                return (await self._directory.network_limits(network_id)).allowed_ports
            await asyncio.sleep(LIMITS_PAUSE_SECONDS)
        return (await self._directory.network_limits(network_id)).allowed_ports

    def _add(self, network_ids: Iterable[int]) -> None:
        """New networks, of which nothing is known yet: so nothing is permitted for the moment."""
        self._networks.update((network_id, Network()) for network_id in network_ids)
        self._changed()

    async def _tell_joined(self, joined: list[int]) -> None:
        """Networks that were joined elsewhere: by an accepted invitation, or while this node did not run."""
        listed = await self._unless_refused(self._directory.list_networks(), ())
        infos = {info.network_id: info for info in listed}
        for network_id in joined:
            info = infos.get(network_id, NetworkInfo(network_id, "", ""))
            policy = ""
            if info.has_expr_policy:
                policy = await self._unless_refused(self._directory.expr_policy(network_id), "")
            self._publish_joined(network_id, _Policies(policy, info.rules))

    async def _join_configured(self) -> bool:
        """Joins what is still to be joined; False when any of it is to be tried again."""
        for network_id in self._auto_join:
            try:
                if network_id not in self._networks:
                    await self._join_now(network_id, "")
                    self._publish("network.auto_joined", {"network_id": network_id})
            except (RegistryError, InvalidValueError) as error:
                if self._not_auto_joined(network_id, error):
                    continue
            self._settle_auto_join(network_id)
        return not self._auto_join

    def _settle_auto_join(self, network_id: int) -> None:
        self._auto_join = tuple(wanted for wanted in self._auto_join if wanted != network_id)

    def _not_auto_joined(self, network_id: int, error: PilotError) -> bool:
        """Tells about it; whether it is to be tried again: a definite refusal stays one."""
        refused = isinstance(error, RegistryRefusedError) and not any(text in error.text for text in NOT_REFUSED)
        again = not refused and not isinstance(error, InvalidValueError)
        message = "network %d, which this node is to join at its start, was not joined%s: %s"
        if again:
            self._quiet.warning(f"auto-join {network_id}", message, network_id, " and is tried again", error)
        else:
            _log.warning(message, network_id, "", error)
        payload = {"network_id": network_id, "error": str(error), "tried_again": again}
        self._publish("network.auto_join_failed", payload)
        return again

    async def _join(self, network_id: int, token: str) -> Addr:
        with self._looked_up_on_failure():
            return await self._join_now(network_id, token)

    async def _join_now(self, network_id: int, token: str) -> Addr:
        try:
            answer = await self._directory.join_network(network_id, token)
            addr, policies = answer.addr, _Policies(answer.expr_policy, answer.rules)
        except RegistryRefusedError as refusal:
            # Also the answer to a request that was repeated because the first answer was lost.
            if "already in network" not in refusal.text:
                raise
            addr = self._directory.address_in(network_id)
            policies = _Policies(await self._unless_refused(self._directory.expr_policy(network_id), ""))
        if network_id not in self._networks:
            self._add([network_id])
            try:
                await self._refresh(network_id, told=False)
            except RegistryError:
                self.sync_soon()
            self._publish_joined(network_id, policies)
            self._keep()
        return addr

    def _publish_joined(self, network_id: int, policies: _Policies) -> None:
        payload: dict[str, object] = {
            "network_id": network_id,
            "member_tags": list(self.own_tags(network_id)) or None,
        }
        if policies.expr_policy:
            payload["expr_policy"] = policies.expr_policy
        if policies.rules:
            with contextlib.suppress(InvalidValueError):
                payload["rules"] = decode_body_untrusted(policies.rules.encode())
        self._publish("network.joined", payload)

    async def _unless_refused(self, request: Awaitable[T], otherwise: T) -> T:
        """The answer; `otherwise` when there is none, for what is no harm to miss."""
        try:
            return await request
        except RegistryError as error:
            _log.debug("a detail of a network is not to be had: %s", error)
            return otherwise

    @contextlib.contextmanager
    def _looked_up_on_failure(self) -> Iterator[None]:
        """After a refusal the registry has what it had; after anything else it may have either: a round finds out."""
        try:
            yield
        except (RegistryRefusedError, InvalidValueError, ClosedError):
            raise
        except BaseException:
            self.sync_soon()
            raise

    def _keep(self) -> None:
        try:
            self._file.save(self._networks)
        except OSError as error:
            self._quiet.warning("file", "the networks of this node could not be kept: %s", error)
        self._changed()
