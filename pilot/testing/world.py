"""Whole nodes on the simulated network, in virtual time: start, stop, crash, restart (testing, L12)."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable, Coroutine
from random import Random
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pilot._fast.errors import ClosedError
from pilot.node import Node
from pilot.node.identity import LocalIdentity
from pilot.testing.invariants import InvariantError, Watch
from pilot.testing.loop import VirtualLoop, run
from pilot.testing.nat import Nat, NatType
from pilot.testing.network import Host, Network, VirtualPort
from pilot.testing.rendezvous import VirtualRendezvous

__all__ = ["Machine", "World", "simulate"]

T = TypeVar("T")

STOP_SECONDS: Final = 30.0
"""Virtual seconds in which a node must have stopped, whatever the network does."""
SAMPLE_SECONDS: Final = 2.0

_log = logging.getLogger("pilot.testing")


class Machine:
    """A host that can run one node at a time. Comes from `World.machine`."""

    def __init__(self, world: World, name: str, host: Host, settings: dict[str, Any]) -> None:
        self.world = world
        self.name = name
        self.host = host
        self.settings = settings
        self.lives = 0
        self.keys = 0
        self.trusted: set[int] = set()
        """Whom a private node trusts, beside those it dials."""
        self._node: Node | None = None
        self._port: VirtualPort | None = None
        self._door = 0
        self._tasks: set[asyncio.Task[Any]] = set()
        self._identity: LocalIdentity | None = None

    @property
    def node(self) -> Node:
        """The running node. Raises `ClosedError` when there is none."""
        if self._node is None:
            raise ClosedError(f"no node runs on {self.name}: start it first")
        return self._node

    @property
    def running(self) -> bool:
        """Whether a node runs here."""
        return self._node is not None

    async def start(self, *, keep_key: bool = True) -> Node:
        """Starts a node, under the key of the one before unless `keep_key` is False. Raises what `Node.start` raises.

        Every life has its own randomness: a restarted node repeats no session key.
        """
        assert self._node is None, f"{self.name} runs already"
        self.lives += 1
        if self._identity is None or not keep_key:
            self.keys += 1
            seed = hashlib.sha256(f"{self.world.seed} {self.name} key {self.keys}".encode()).digest()
            self._identity = LocalIdentity(Ed25519PrivateKey.from_private_bytes(seed))
        door = self.world.rendezvous.open_door(self.host)
        node = Node(
            registry=f"{self.world.rendezvous.host.address}:{door}",
            beacon=self.world.rendezvous.beacon_address,
            identity=self._identity,
            open_port=self._open_port,
            clock=self.host.clock,
            wall=self.host.wall,
            random=Random(f"{self.world.seed} {self.name} life {self.lives}"),
            trust=self.trusted.__contains__,
            **{"public": True, **self.settings},
        )
        try:
            await node.start()
        except BaseException:
            self.world.rendezvous.close_door(door)
            raise
        self._node, self._door = node, door
        self.world.watch.started(self.name, node)
        return node

    def _open_port(self, config: object) -> VirtualPort:
        self._port = self.host.open_port()
        return self._port

    def spawn(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Runs `coroutine` as a program of this machine: a crash cancels it."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def stop(self) -> None:
        """Stops the node in order, and checks that nothing of it is left."""
        node, door = self._node, self._door
        if node is not None:
            self._node = None
            await self._end(node, door)

    def crash(self) -> None:
        """The machine dies in the middle of whatever it does: not one more byte leaves it. `start` brings it back."""
        node, port, door = self._node, self._port, self._door
        if node is None or port is None:
            return
        self._node = None
        port.close()
        self.world.network.unlisten(self.world.rendezvous.host, door)
        tasks = sorted(self._tasks, key=lambda task: task.get_name())
        for task in tasks:
            task.cancel()
        # What is left of the node in this process is cleared away; nobody outside can tell.
        self.world._in_background(self._end(node, door))

    async def restart(self, *, keep_key: bool = True) -> Node:
        """`crash` and `start`."""
        self.crash()
        return await self.start(keep_key=keep_key)

    async def _end(self, node: Node, door: int) -> None:
        watch = self.world.watch
        watch.ending(node)
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await node.stop()
        except TimeoutError:
            watch.violated(f"{self.name} did not stop within {STOP_SECONDS:g} s")
        self.world.rendezvous.close_door(door)
        watch.ended(self.name, node)


class World:
    """Machines, network and rendezvous of one simulated run; `simulate` makes one. Everything follows from `seed`.

    `async with` starts the rendezvous, and at the end stops every node and raises `InvariantError` if anything that
    must hold did not.
    """

    def __init__(self, seed: int | str = 0, **link: Any) -> None:
        self.seed = seed
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop), "a World lives on a VirtualLoop: use simulate(seed, scenario)"
        self.loop = loop
        self.random = Random(f"world {seed}")
        self.network = Network(loop, seed, **link)
        self.watch = Watch(self.network)
        self.machines: list[Machine] = []
        self.story = ""
        """What a random scenario says of itself, for messages."""
        self.stream_bytes = 0
        self.expected_errors: set[str] = set()
        """Loggers whose errors are no violation: what a test has crash on purpose, `pilot.plugin.<name>` say."""
        self._background: set[asyncio.Task[None]] = set()

    def machine(self, name: str = "", *, nat: Nat | NatType | None = None, **settings: Any) -> Machine:
        """A machine with a public address, or behind a NAT of its own (a type) or one it shares (a box).

        `settings` are those of `NodeConfig`; nodes are public unless told otherwise.
        """
        if isinstance(nat, NatType):
            nat = self.network.nat(nat)
        machine = Machine(self, name or f"node{len(self.machines) + 1}", self.network.host(nat=nat), settings)
        self.machines.append(machine)
        return machine

    async def __aenter__(self) -> Self:
        self.rendezvous = VirtualRendezvous(self.network)
        self.loop.set_exception_handler(self._unhandled)
        self._log_handler = _Errors(self.watch.violated, self.expected_errors)
        logging.getLogger("pilot").addHandler(self._log_handler)
        self._sampler = self.loop.create_task(self._sample())
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        try:
            self.watch.sample()
            for machine in self.machines:
                await machine.stop()
            while self._background:
                await asyncio.wait(self._background)
        finally:
            self._sampler.cancel()
            await asyncio.wait([self._sampler])
            self.rendezvous.close()
            logging.getLogger("pilot").removeHandler(self._log_handler)
        if exc is None:
            left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            if left:
                self.watch.violated(f"{len(left)} tasks are left, one of them {left[0]!r}")
        if self.watch.violations:
            raise InvariantError("; ".join(self.watch.violations)) from exc

    async def _sample(self) -> None:
        while True:
            await asyncio.sleep(SAMPLE_SECONDS)
            self.watch.sample()

    def _in_background(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = self.loop.create_task(coroutine)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def _unhandled(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.watch.violated(f"{context.get('message')}: {context.get('exception')!r}")


class _Errors(logging.Handler):
    """What the library logs as an error is a defect of its own."""

    def __init__(self, violated: Callable[[str], None], expected: set[str]) -> None:
        super().__init__(logging.ERROR)
        self._violated = violated
        self._expected = expected

    def emit(self, record: logging.LogRecord) -> None:
        if record.name in self._expected:
            return
        error = record.exc_info[1] if record.exc_info else None
        self._violated(f"logged: {record.getMessage()} {error!r}" if error else f"logged: {record.getMessage()}")


def simulate(seed: int | str, scenario: Callable[[World], Coroutine[Any, Any, T]], **link: Any) -> T:
    """Runs `scenario(world)` in virtual time and checks the invariants; what fails carries the seed in a note.

    `link` describes the links, as `Network` takes them.
    """

    async def main() -> T:
        async with World(seed, **link) as world:
            return await scenario(world)

    try:
        return run(main())
    except BaseException as error:
        error.add_note(f"simulation seed: {seed!r}")
        raise
