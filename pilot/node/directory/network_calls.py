"""The registry's calls about networks: members, joining and leaving, policies and tags (L8).

Source: reference rendezvous.md, sections 4.10 and 6.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from pilot._fast.errors import InvalidValueError
from pilot.coreapi import PeerInfo
from pilot.node.directory import answers
from pilot.node.directory.answers import JoinedNetwork, Member, NetworkInfo, NetworkLimits
from pilot.node.directory.calls import RegistryCalls
from pilot.node.directory.client import RegistryClient
from pilot.node.identity import LocalIdentity
from pilot.protocol.names import tags_untrusted
from pilot.protocol.registry import BACKBONE, MAX_NETWORK_ID, Message, admin_challenge_text

__all__ = ["NetworkCalls"]

T = TypeVar("T")


class NetworkCalls(RegistryCalls):
    """What one node can ask its registry about networks; errors and cancellation as in `RegistryCalls`.

    Every method that takes a `network_id` raises `InvalidValueError` when it is not in 0..65535.

    The calls for administrators take the registry's or the network's admin token. Without one they are signed by this
    node, which a `pilot rendezvous` takes for what its role in the network allows; other registries refuse that.
    """

    def __init__(self, client: RegistryClient, identity: LocalIdentity, wall: Callable[[], float] = time.time) -> None:
        super().__init__(client, identity)
        self._wall = wall

    async def list_networks(self) -> tuple[NetworkInfo, ...]:
        """All networks, the backbone among them."""
        return await self._ask_proven("list_networks", answers.networks_untrusted)

    async def list_by_network(self, network_id: int) -> list[PeerInfo]:
        """The members of a network, as `coreapi.PeerResolver.list_by_network`."""
        return await self._list_nodes(network_id, lambda answer: answers.members_untrusted(answer, network_id))

    async def list_members(self, network_id: int) -> list[Member]:
        """The members of a network with their tags, those that are offline included."""
        return await self._list_nodes(network_id, answers.network_members_untrusted)

    async def join_network(self, network_id: int, token: str = "") -> JoinedNetwork:
        """Makes this node a member of a network that is open, or protected by `token`."""
        _check_network(network_id)
        addr = self.address_in(network_id)
        return await self._ask_signed(
            "join_network",
            lambda answer: answers.joined_untrusted(answer, addr),
            node_id=addr.node,
            network_id=network_id,
            token=token,
            inviter_id=0,
        )

    async def leave_network(self, network_id: int) -> None:
        """Ends this node's membership."""
        _check_network(network_id)
        await self._ask_signed("leave_network", answers.nothing, node_id=self._own_id(), network_id=network_id)

    async def network_limits(self, network_id: int) -> NetworkLimits:
        """The static policy of a network: the ports its members may use, and how many they may be."""
        return await self._ask_about(network_id, "get_network_policy", answers.network_limits_untrusted)

    async def expr_policy(self, network_id: int) -> str:
        """The text of a network's expression policy, empty without one."""
        return await self._ask_about(network_id, "get_expr_policy", answers.expr_policy_untrusted)

    async def set_expr_policy(self, network_id: int, text: str, *, admin_token: str = "") -> None:
        """Gives a network another expression policy; an empty text clears it. For administrators.

        The registry looks at little more than the version: whether the policy can be used is for the caller to check.
        """
        await self._administer(network_id, "set_expr_policy", answers.nothing, admin_token, expr_policy=text)

    async def member_tags(self, network_id: int, node_id: int) -> tuple[str, ...]:
        """The tags that the network's administrators have given to a member."""
        return await self._ask_about(
            network_id, "get_member_tags", answers.tags_answer_untrusted, target_node_id=node_id
        )

    async def set_member_tags(
        self, network_id: int, node_id: int, tags: Iterable[str], *, admin_token: str = ""
    ) -> tuple[str, ...]:
        """Replaces the tags of a member; returns them as the registry has them. For administrators.

        Raises:
            InvalidValueError: a tag cannot be used (at most 10 of 1-32 characters `a-z 0-9 -`).
        """
        wanted = list(tags_untrusted(list(tags)))
        parse = answers.tags_answer_untrusted
        return await self._administer(
            network_id, "set_member_tags", parse, admin_token, target_node_id=node_id, tags=wanted
        )

    # ------------------------------------------------------------------------------------------- requests

    async def _list_nodes(self, network_id: int, parse: Callable[[Message], T]) -> T:
        _check_network(network_id)
        return await self._ask_proven("list_nodes", parse, network_id=network_id)

    async def _ask_about(self, network_id: int, kind: str, parse: Callable[[Message], T], **fields: Any) -> T:
        _check_network(network_id)
        return await self._client.ask({"type": kind, "network_id": network_id, **fields}, parse)

    async def _administer(
        self, network_id: int, kind: str, parse: Callable[[Message], T], admin_token: str, **fields: Any
    ) -> T:
        _check_network(network_id)
        message = {"type": kind, "network_id": network_id, **fields}
        if admin_token:
            message["admin_token"] = admin_token
        else:
            message |= {"node_id": self._own_id(), "timestamp": int(self._wall())}
            signature = self._identity.sign(admin_challenge_text(message).encode())
            message["signature"] = base64.b64encode(signature).decode()
        return await self._client.ask(message, parse)


def _check_network(network_id: int) -> None:
    if not BACKBONE <= network_id <= MAX_NETWORK_ID:
        raise InvalidValueError(f"{network_id!r} is no network id: it must be in {BACKBONE}..{MAX_NETWORK_ID}")
