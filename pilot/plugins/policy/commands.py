"""What an operator can ask of the policies of a node, in the official shapes (plugin policy, L11).

Source: services.md 9.8; ipc.md names the same replies and errors.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pilot.coreapi import InvalidValueError

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from pilot.plugins.policy.managed import ManagedRunner
    from pilot.plugins.policy.manager import Manager
    from pilot.plugins.policy.runner import Runner

__all__ = ["PolicyCommands"]


class PolicyCommands:
    """Status, cycle, reconcile, policy get and policy set. A network of 0 is the first one that something runs for."""

    def __init__(self, manager: Manager) -> None:
        self._manager = manager

    def status(self, network_id: int = 0) -> dict[str, Any]:
        """The state of a network's policy or managed rules. Raises `InvalidValueError` where nothing runs."""
        return self._any(network_id).status()

    def peers(self, network_id: int = 0) -> list[dict[str, Any]]:
        """The tracked peers of a network, oldest first. Raises `InvalidValueError` where nothing runs."""
        return self._any(network_id).peer_list()

    def cycle(self, network_id: int = 0) -> dict[str, Any]:
        """Runs a cycle now; what it did. Raises `InvalidValueError` where nothing runs."""
        return self._any(network_id).force_cycle()

    def reconcile(self, network_id: int) -> dict[str, Any]:
        """Has the members of a network looked at now; how many peers there were before.

        Raises:
            InvalidValueError: no policy runs for the network.
        """
        runner = self._manager.get(network_id)
        if runner is None:
            raise InvalidValueError("managed: no active policy runner for network")
        runner.reconcile_now()
        return {"network_id": network_id, "peers": len(runner.peer_list()), "type": "managed_reconcile_ok"}

    def get_policy(self, network_id: int) -> dict[str, Any]:
        """Which engine runs for a network, with the document if it is a policy."""
        runner = self._manager.get(network_id)
        shown: dict[str, Any] = {"network_id": network_id, "type": "managed_policy_ok"}
        if runner is not None:
            return shown | {"engine": "policy", "expr_policy": json.loads(runner.policy_json())}
        return shown | {"engine": "none" if self._manager.managed(network_id) is None else "managed"}

    async def set_policy(self, network_id: int, policy_json: Buffer) -> dict[str, Any]:
        """Applies a document here, without telling the registry; `applied` is false where a later one has overtaken it.

        Cancelled, the network has the policy it had. Raises what `PolicyManager.start` raises.
        """
        runner = await self._manager.apply(network_id, policy_json)
        return {"applied": runner is not None, "network_id": network_id, "type": "managed_policy_ok"}

    def _any(self, network_id: int) -> Runner | ManagedRunner:
        running: list[Runner | ManagedRunner] = [*self._manager.running(), *self._manager.all_managed()]
        chosen = [runner for runner in running if network_id in (0, runner.network_id)]
        if not chosen:
            raise InvalidValueError("managed: no active managed networks")
        return min(chosen, key=lambda runner: runner.network_id)
