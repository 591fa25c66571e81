"""`Manager`: the runners of a node, one per network at most, and what they remember (plugin policy, L11).

Source: services.md 9.1, 9.8 and 10.5.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from pilot.coreapi import InvalidValueError, PolicyRunner, ServiceNotReadyError
from pilot.plugins.policy.compiled import CompiledPolicy, load_policy_in_thread_untrusted, load_policy_untrusted
from pilot.plugins.policy.managed import ManagedRunner, parse_rules_untrusted
from pilot.plugins.policy.peers import PeerTable, read_table_untrusted
from pilot.plugins.policy.runner import Runner
from pilot.plugins.policy.timestamps import SECOND_NS
from pilot.plugins.policy.watch import Surroundings

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["Manager"]
MAX_NETWORK_ID: Final = 0xFFFF
PARSING: Final = "parse policy"
COMPILING: Final = "compile policy"


class _Application:
    """A document on its way to become the policy of a network."""

    def __init__(self, network_id: int) -> None:
        self.network_id = network_id
        self.overtaken = False
        """Whether something else has been decided for the network since."""


class Manager:
    """Implements `pilot.coreapi.PolicyManager` and `PolicyActivity`, and does the same for managed networks.

    It lives as long as its service; runners run between `open` and `close`.
    """

    def __init__(self) -> None:
        self._around: Surroundings | None = None
        self._runners: dict[int, Runner] = {}
        self._managed: dict[int, ManagedRunner] = {}
        self._files: Mapping[str, bytes] = {}
        self._tables: dict[str, PeerTable] = {}
        self._applications: set[_Application] = set()
        self._compiling = asyncio.Lock()
        self._activity: Callable[[], object] = lambda: None

    def open(self, around: Surroundings) -> None:
        """From now on runners can be started."""
        self._around = around
        self._compiling = asyncio.Lock()

    def close(self) -> None:
        """Stops every runner; none can be started from now on."""
        self.stop_all()
        self._tables.clear()
        self._around = None

    # -- runners

    def start(self, network_id: int, policy_json: Buffer) -> Runner:
        """Compiles `policy_json` and runs it in place of what ran there; the peers tracked so far keep their ages.

        Compiling holds the event loop up, 1 ms for a usual rule and 150 ms for the longest: `apply` does not.

        Raises:
            InvalidValueError: the document is refused, or this can be no network with a policy.
            ServiceNotReadyError: the plugin does not run.
        """
        around = self._ready(network_id)
        policy = load_policy_untrusted(bytes(policy_json), PARSING, COMPILING, wall=around.wall)
        self._overtake(network_id)
        return self._run(network_id, policy, around)

    async def apply(self, network_id: int, policy_json: Buffer, *, replace: bool = True) -> Runner | None:
        """`start` with everything that takes long in a thread; what runs for the network meanwhile goes on.

        Documents are compiled one after the other and take effect in the order of the calls. Returns None, and the
        document is not used, where `start` or `stop` of the network was called meanwhile; with `replace` false, also
        where anything runs for it by then. Cancelled, nothing has changed. Raises what `start` raises.
        """
        around = self._ready(network_id)
        data, application = bytes(policy_json), _Application(network_id)
        self._applications.add(application)
        try:
            async with self._compiling:
                policy = await load_policy_in_thread_untrusted(data, PARSING, COMPILING, wall=around.wall)
                await self._read_ahead(_file_name(network_id), network_id, around)
        finally:
            self._applications.discard(application)
        if around is not self._around:
            raise ServiceNotReadyError("the policy plugin was stopped while the document was compiled")
        if application.overtaken or not (replace or self.is_free(network_id)):
            return None
        return self._run(network_id, policy, around)

    def _run(self, network_id: int, policy: CompiledPolicy, around: Surroundings) -> Runner:
        runner = Runner(policy, self._table(_file_name(network_id), network_id, around), around)
        runner.start()
        before = self._runners.get(network_id)
        self._runners[network_id] = runner
        if before is not None:
            before.stop()
        elif len(self._runners) == 1:
            self._activity()
        around.deps.logger.info("the policy of network %d runs", network_id)
        return runner

    def stop(self, network_id: int) -> None:
        """Stops the runner of the network; what it knows about peers is kept for the next one."""
        self._overtake(network_id)
        runner = self._runners.pop(network_id, None)
        if runner is not None:
            runner.stop()
            if not self._runners:
                self._activity()

    def _overtake(self, network_id: int) -> None:
        """What is being compiled for the network comes too late."""
        for application in self._applications:
            application.overtaken |= application.network_id == network_id

    def on_activity(self, changed: Callable[[], object]) -> None:
        """Has `changed` called when the first runner has come and when the last one has gone."""
        self._activity = changed

    def is_free(self, network_id: int) -> bool:
        """Whether nothing runs for the network, neither a policy nor the rules of a managed one."""
        return network_id not in self._runners and network_id not in self._managed

    def get(self, network_id: int) -> Runner | None:
        """The runner of the network, None where there is none."""
        return self._runners.get(network_id)

    def all(self) -> list[PolicyRunner]:
        """The running runners."""
        return list(self._runners.values())

    def running(self) -> list[Runner]:
        """The same, as this plugin knows them."""
        return list(self._runners.values())

    @property
    def suppressed(self) -> int:
        """Events and log lines that the present runners left out because there were too many."""
        return sum(runner.suppressed for runner in self._runners.values())

    def stop_all(self) -> None:
        """Stops every runner, those of managed networks too."""
        for network_id in [*self._runners, *(application.network_id for application in self._applications)]:
            self.stop(network_id)
        for network_id in list(self._managed):
            self.stop_managed(network_id)

    def load_persisted(self) -> None:
        """Reads the state files: runners that start later go on with the peers in them. Blocks."""
        if self._around is not None:
            self.restore(self._around.store.read_all())

    def restore(self, files: Mapping[str, bytes]) -> None:
        """The same with the content of the files."""
        self._files = files

    # -- managed networks

    def start_managed(self, network_id: int, rules: object) -> ManagedRunner:
        """Runs the rules of a managed network (services.md 9.9) in place of what ran there. Raises as `start`."""
        around = self._ready(network_id)
        parsed = parse_rules_untrusted(rules)
        self.stop_managed(network_id)
        table = self._table(f"managed_{network_id}.json", network_id, around)
        runner = self._managed[network_id] = ManagedRunner(parsed, table, around)
        runner.start()
        return runner

    def stop_managed(self, network_id: int) -> None:
        """Stops the rules of a managed network."""
        runner = self._managed.pop(network_id, None)
        if runner is not None:
            runner.stop()

    def managed(self, network_id: int) -> ManagedRunner | None:
        """What runs for a managed network, None where nothing does."""
        return self._managed.get(network_id)

    def all_managed(self) -> list[ManagedRunner]:
        """What runs for managed networks."""
        return list(self._managed.values())

    # -- state

    def _ready(self, network_id: int) -> Surroundings:
        if self._around is None:
            raise ServiceNotReadyError("the policy plugin does not run: start its node first")
        if not 0 < network_id <= MAX_NETWORK_ID:
            raise InvalidValueError(f"network {network_id!r} can have no policy: it must be in 1..{MAX_NETWORK_ID}")
        return self._around

    def _table(self, name: str, network_id: int, around: Surroundings) -> PeerTable:
        """What is known about the peers of the network: from an earlier runner, from disk, or nothing."""
        table = self._tables.get(name)
        if table is None:
            table = self._tables[name] = self._reading(name, network_id, around)()
        return table

    async def _read_ahead(self, name: str, network_id: int, around: Surroundings) -> None:
        """Reads a state file, which may be long, in a thread, before `_table` needs it."""
        if name in self._files and name not in self._tables:
            table = await asyncio.to_thread(self._reading(name, network_id, around))
            if around is self._around:  # else it may be older than what is read next
                self._tables.setdefault(name, table)

    def _reading(self, name: str, network_id: int, around: Surroundings) -> Callable[[], PeerTable]:
        """What reads a state file as it is now; any thread may call it."""
        log, now, wall, data = around.deps.logger, around.clock(), around.wall(), self._files.get(name)

        def read() -> PeerTable:
            if data is not None:
                try:
                    return read_table_untrusted(data, network_id, now, wall)
                except InvalidValueError as error:
                    log.warning("%s is not used: %s", name, error)
            return PeerTable(network_id, int(wall * SECOND_NS))

        return read


def _file_name(network_id: int) -> str:
    return f"policy_{network_id}.json"
