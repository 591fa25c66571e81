"""`PolicyManager` and `PolicyRunner`: the rules of networks, as the node that asks them sees them (L10)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["PolicyActivity", "PolicyEventType", "PolicyManager", "PolicyProvider", "PolicyRunner"]


class PolicyEventType(StrEnum):
    """What a policy is evaluated for. Plain strings of the same text are accepted everywhere. Source: seed."""

    CONNECT = "connect"
    """A peer opens a stream to this node."""
    DIAL = "dial"
    """This node opens a stream to a peer."""
    DATAGRAM = "datagram"
    """A datagram goes out or comes in."""
    JOIN = "join"
    """A peer has joined the network."""
    LEAVE = "leave"
    """A peer has left the network."""
    CYCLE = "cycle"
    """The network's periodic maintenance."""


@runtime_checkable
class PolicyRunner(Protocol):
    """The running policy of one network. Nothing here waits.

    Source: seed `coreapi.PolicyRunner`, services.md 9 and 10.5.
    """

    @property
    def network_id(self) -> int:
        """The network, 1..65535."""
        ...

    def has_member(self, peer_node_id: int) -> bool:
        """Whether the runner tracks the peer: then its verdict counts for that peer in every network."""
        ...

    def evaluate_port_gate(
        self,
        event_type: PolicyEventType | str,
        port: int,
        peer_node_id: int,
        payload_size: int,
        direction: str,
        local_tags: Sequence[str],
        node_info_tags: Sequence[str],
    ) -> bool:
        """Whether a connect, dial or datagram event may go on; side effects of matching rules happen before it returns.

        `direction` is `in` or `out` and matters for datagrams only. An evaluation that fails denies, unless the policy
        says `fail_closed: false`.
        """
        ...

    def evaluate_actions(self, event_type: PolicyEventType | str, ctx: Mapping[str, Any]) -> None:
        """Runs the actions of a cycle, join or leave event over the variables in `ctx`; verdicts are ignored."""
        ...

    def status(self) -> dict[str, Any]:
        """Network, peer count, cycle number and settings, as JSON-compatible values (services.md 9.8)."""
        ...

    def peer_list(self) -> list[dict[str, Any]]:
        """The tracked peers, oldest first (services.md 9.8)."""
        ...

    def force_cycle(self) -> dict[str, Any]:
        """Runs a cycle now; returns what it did (services.md 9.8)."""
        ...

    def reconcile_now(self) -> None:
        """Compares the tracked peers with the network's members soon, without waiting for the next regular time."""
        ...

    def policy_json(self) -> bytes:
        """The policy document as held in memory."""
        ...

    def stop(self) -> None:
        """Ends the runner's timers and tasks. May be repeated."""
        ...


@runtime_checkable
class PolicyManager(Protocol):
    """Owns the policy runners, one per network at most; the node asks it at its gates.

    Source: seed `coreapi.PolicyManager`, services.md 10.5.

    `start` and `stop` are about single runners, so no object can be a `Service` and a manager at once: a service offers
    its manager as the property `policy_manager` (`PolicyProvider`).
    """

    def start(self, network_id: int, policy_json: Buffer) -> PolicyRunner:
        """Compiles `policy_json` and runs it for the network; a runner there already is replaced and then stopped.

        Raises:
            InvalidValueError: the document is refused; the message begins `parse policy: ` or `compile policy: `.
        """
        ...

    def stop(self, network_id: int) -> None:
        """Stops the runner of the network; nothing happens where there is none."""
        ...

    def get(self, network_id: int) -> PolicyRunner | None:
        """The runner of the network, None where there is none."""
        ...

    def all(self) -> list[PolicyRunner]:
        """The running runners, a list of its own."""
        ...

    def stop_all(self) -> None:
        """Stops every runner."""
        ...

    def load_persisted(self) -> None:
        """Restores the peers that runners tracked before a restart from disk, as far as they are still known."""
        ...


@runtime_checkable
class PolicyActivity(Protocol):
    """What a `PolicyManager` may offer beside: it tells whether it has runners. Optional, and not in the seed.

    The node asks such a manager about no stream or datagram while there is no runner; one without this always.
    """

    def on_activity(self, changed: Callable[[], object]) -> None:
        """Has `changed` called, on the loop, as soon as `all` lists a first runner, and as soon as it lists none.

        There is one such function at a time: the node's.
        """
        ...


@runtime_checkable
class PolicyProvider(Protocol):
    """A service that brings a policy manager: the node wires it before anything starts."""

    @property
    def policy_manager(self) -> PolicyManager:
        """The manager, the same object for the service's whole life."""
        ...
