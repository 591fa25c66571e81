"""Simulated networks for tests: whole nodes in one thread, in virtual time, decided by a seed (testing).

`simulate(seed, scenario)` runs `await scenario(world)`; docs/TESTING.md says how. `pilot.testing.campaign` runs
thousands of random worlds.
"""

from pilot.testing.invariants import InvariantError, Watch
from pilot.testing.loop import StuckError, VirtualLoop, run
from pilot.testing.nat import Nat, NatType
from pilot.testing.network import Host, Link, Network, VirtualPort
from pilot.testing.rendezvous import VirtualRendezvous
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
    "VirtualPort",
    "VirtualRendezvous",
    "Watch",
    "World",
    "run",
    "simulate",
]
