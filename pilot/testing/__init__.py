"""Simulated networks for tests: whole nodes in one thread, in virtual time, decided by a seed (testing).

`simulate(seed, scenario)` runs `await scenario(world)`, `with virtual_network(...) as net` is the same for tests that
are not async, `loopback_nodes` has real sockets; docs/TESTING.md says how. `pilot.testing.campaign` runs thousands of
random worlds, `pilot.testing.coreapi` has conformance suites for plugins.
"""

from pilot.testing.invariants import InvariantError, Watch
from pilot.testing.loop import StuckError, VirtualLoop, run
from pilot.testing.loopback import loopback_nodes
from pilot.testing.nat import Nat, NatType
from pilot.testing.network import Host, Link, Network, VirtualPort
from pilot.testing.rendezvous import VirtualRendezvous
from pilot.testing.virtual_network import VirtualNetwork, virtual_network
from pilot.testing.world import Machine, World, simulate

__all__ = [
    "Host",
    "InvariantError",
    "Link",
    "Machine",
    "Nat",
    "NatType",
    "Network",
    "StuckError",
    "VirtualLoop",
    "VirtualNetwork",
    "VirtualPort",
    "VirtualRendezvous",
    "Watch",
    "World",
    "loopback_nodes",
    "run",
    "simulate",
    "virtual_network",
]
