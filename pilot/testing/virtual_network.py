"""`virtual_network`: a simulated network for tests that are not async themselves (testing)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

from pilot.node import Node
from pilot.testing.loop import VirtualLoop
from pilot.testing.nat import Nat, NatType
from pilot.testing.world import World

__all__ = ["VirtualNetwork", "virtual_network"]

T = TypeVar("T")


class VirtualNetwork:
    """Comes from `virtual_network`. Virtual time goes on in `run`, and while a node starts or stops."""

    def __init__(self, runner: asyncio.Runner, world: World) -> None:
        self._runner = runner
        self.world = world
        """The machines, links and the rendezvous behind it; see docs/TESTING.md."""

    def node(self, name: str, *, nat: Nat | NatType | None = None, **settings: Any) -> Node:
        """A started node with that hostname; `settings` are parameters of `Node`, and it is public unless told
        otherwise. It stops at the end of the block. Raises what `Node.start` raises.
        """
        machine = self.world.machine(name, nat=nat, **{"hostname": name, **settings})
        return self._runner.run(machine.start())

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Runs `coroutine` to its end, in virtual time, and returns its result.

        Raises what it raises, and `StuckError` when it waits for what can never happen.
        """
        return self._runner.run(coroutine)


@contextlib.contextmanager
def virtual_network(seed: int | str = 0, *, rtt: float = 0.01, **link: Any) -> Iterator[VirtualNetwork]:
    """A network of real nodes in virtual time: a minute of traffic takes milliseconds, and `seed` decides everything.

    `rtt` is in seconds; `link` describes the links further, as `Network` takes them (`loss=0.02`, `rate=...`). At the
    end the nodes stop and the invariants are checked; what fails carries the seed in a note.
    """
    try:
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            world = runner.run(_world(seed, delay=rtt / 2, **link))
            try:
                yield VirtualNetwork(runner, world)
            except BaseException as error:
                runner.run(world.__aexit__(type(error), error, error.__traceback__))
                raise
            runner.run(world.__aexit__(None, None, None))
    except BaseException as error:
        error.add_note(f"simulation seed: {seed!r}")
        raise


async def _world(seed: int | str, **link: Any) -> World:
    return await World(seed, **link).__aenter__()
