"""Conformance suites for whoever implements a part of `coreapi`: one for each interface (testing).

Each suite is a tuple of checks, plain async functions that raise `AssertionError`; docs/TESTING.md shows how to run
them. They hold for what the contract says, not for how this library does it.
"""

from pilot.testing.coreapi.directory import (
    IDENTITY_CHECKS,
    RESOLVER_CHECKS,
    TRUST_CHECKS,
    ResolverUnderTest,
    TrustUnderTest,
)
from pilot.testing.coreapi.events import EVENT_BUS_CHECKS
from pilot.testing.coreapi.policies import POLICY_MANAGER_CHECKS
from pilot.testing.coreapi.services import SERVICE_CHECKS, node_deps
from pilot.testing.coreapi.streams import STREAMS_CHECKS, StreamsUnderTest

__all__ = [
    "EVENT_BUS_CHECKS",
    "IDENTITY_CHECKS",
    "POLICY_MANAGER_CHECKS",
    "RESOLVER_CHECKS",
    "SERVICE_CHECKS",
    "STREAMS_CHECKS",
    "TRUST_CHECKS",
    "ResolverUnderTest",
    "StreamsUnderTest",
    "TrustUnderTest",
    "node_deps",
]
