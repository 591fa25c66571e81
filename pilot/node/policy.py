"""`PolicyGate`: what the policies of networks let in and out, asked for each SYN and datagram (L9).

Source: services.md 9.7. A policy runner is consulted for the network a packet is addressed in, and every other runner
that tracks the peer; each is asked, and one that denies is enough. Where none is consulted the network's static list of
ports decides.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from pilot._fast.errors import RefusedError
from pilot.coreapi import PolicyActivity, PolicyEventType
from pilot.node.directory.quiet import QuietLog

if TYPE_CHECKING:
    from collections.abc import Callable

    from pilot._fast.addr import Addr
    from pilot._fast.eventbus import EventBus
    from pilot.coreapi import PolicyManager, PolicyRunner
    from pilot.node.networks import Memberships
    from pilot.node.tags import NodeTags

__all__ = ["PolicyGate"]

_log = logging.getLogger("pilot.node")


class PolicyGate:
    """Both ways. Inward it answers at once, for the datapath; outward it may ask the registry for the peer's tags.

    A peer whose tags are not known yet is kept out without a verdict while the registry is asked about it; its
    retransmission 250 ms later finds the answer. So an outage of the registry opens nothing.
    """

    def __init__(self, memberships: Memberships, tags: NodeTags, events: EventBus) -> None:
        self._memberships = memberships
        self._tags = tags
        self._events = events
        self._quiet = QuietLog(_log)
        self.manager: PolicyManager | None = None

    def use(self, manager: PolicyManager | None, changed: Callable[[], object]) -> None:
        """Asks the runners of `manager` from now on; `changed` is called when `needed` may be another for it."""
        if manager is not None and isinstance(manager, PolicyActivity):
            manager.on_activity(changed)
        self.manager = manager
        changed()

    @property
    def needed(self) -> bool:
        """Whether there is anything to decide; the datapath is spared a call per packet where there is not."""
        return self._memberships.restricted or self._has_runners()

    def _has_runners(self) -> bool:
        """A manager that does not tell when it gets runners may have some at any time."""
        if self.manager is None:
            return False
        return not isinstance(self.manager, PolicyActivity) or bool(self.manager.all())

    def admit_syn(self, network: int, node: int, port: int) -> bool:
        """Whether `node` may open a stream to `port`, addressed in `network`; publishes `syn.port_rejected` if not."""
        return self._admit(PolicyEventType.CONNECT, "syn.port_rejected", network, node, port, 0)

    def admit_datagram(self, network: int, node: int, port: int, size: int) -> bool:
        """Whether a datagram from `node` to `port` is taken; publishes `datagram.port_rejected` if not."""
        return self._admit(PolicyEventType.DATAGRAM, "datagram.port_rejected", network, node, port, size)

    async def check_dial(self, addr: Addr, port: int) -> None:
        """Returns when this node may open a stream to `port` of `addr`.

        Raises:
            RefusedError: a policy denies it.
            RegistryError: the peer's tags are needed and cannot be had.
            ClosedError: the node has stopped.
        """
        if not await self._permits(PolicyEventType.DIAL, addr, port, 0):
            raise _refused(addr, port)

    async def check_datagram(self, addr: Addr, port: int, size: int) -> None:
        """Returns when this node may send a datagram to `port` of `addr`; publishes `datagram.port_rejected` if not.

        Raises what `check_dial` raises.
        """
        if not await self._permits(PolicyEventType.DATAGRAM, addr, port, size):
            payload = {"direction": "out", "dst_node_id": addr.node, "dst_port": port, "network": addr.network}
            self._events.publish("datagram.port_rejected", payload)
            raise _refused(addr, port)

    def _admit(self, kind: PolicyEventType, topic: str, network: int, node: int, port: int, size: int) -> bool:
        runners = self._consulted(network, node)
        if not runners:
            admitted = self._listed(network, port)
        else:
            tags = self._tags.get(node)
            if tags is None:
                return False
            admitted = self._evaluate(runners, kind, port, node, size, "in", tags)
        if not admitted and self._events.wanted(topic):
            self._events.publish(topic, {"src_node_id": node, "dst_port": port, "network": network})
        return admitted

    async def _permits(self, kind: PolicyEventType, addr: Addr, port: int, size: int) -> bool:
        if not self._consulted(addr.network, addr.node):
            return self._listed(addr.network, port)
        tags = await self._tags.learn(addr.node)
        # Asked again: a policy may have come or gone meanwhile.
        runners = self._consulted(addr.network, addr.node)
        if not runners:
            return self._listed(addr.network, port)
        return self._evaluate(runners, kind, port, addr.node, size, "out", tags)

    def _consulted(self, network: int, node: int) -> list[PolicyRunner]:
        if self.manager is None:
            return []
        return [runner for runner in self.manager.all() if runner.network_id == network or self._tracks(runner, node)]

    def _tracks(self, runner: PolicyRunner, node: int) -> bool:
        try:
            return runner.has_member(node)
        except Exception as error:
            self._failed(runner, error)
            return True  # whoever cannot tell has a say

    def _evaluate(
        self,
        runners: list[PolicyRunner],
        kind: PolicyEventType,
        port: int,
        node: int,
        size: int,
        direction: str,
        tags: tuple[str, ...],
    ) -> bool:
        """Asks every one of them: the actions of each take place, whatever the others say."""
        verdicts = []
        for runner in runners:
            own_tags = self._memberships.own_tags(runner.network_id)
            try:
                verdicts.append(runner.evaluate_port_gate(kind, port, node, size, direction, own_tags, tags))
            except Exception as error:
                self._failed(runner, error)
                verdicts.append(False)
        return all(verdicts)

    def _listed(self, network: int, port: int) -> bool:
        ports = self._memberships.allowed_ports(network)
        return ports is not None and (not ports or port in ports)

    def _failed(self, runner: PolicyRunner, error: Exception) -> None:
        self._quiet.warning("policy", "the policy of network %d failed, which denies: %r", runner.network_id, error)


def _refused(addr: Addr, port: int) -> RefusedError:
    return RefusedError(
        f"port {port} not allowed by network {addr.network} policy: {addr} was not contacted; "
        "the network's administrators decide which ports its members may use"
    )
