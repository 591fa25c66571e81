"""Tests of a plugin without a network: real nodes in virtual time, and the conformance suite."""

import pytest
from greeter import Greeter

from pilot.testing import virtual_network
from pilot.testing.coreapi import SERVICE_CHECKS, node_deps


def test_greeting():
    with virtual_network(seed=7, rtt=0.05, loss=0.02) as net:  # a minute of traffic takes milliseconds
        alice = net.node("alice")
        net.node("bob", services=[Greeter()])

        async def greeting():
            async with await alice.dial("bob", 1500) as stream:
                return await stream.readexactly(3)

        assert net.run(greeting()) == b"hi\n"


@pytest.mark.parametrize("check", SERVICE_CHECKS, ids=lambda check: check.__name__)
def test_the_greeter_keeps_the_contract(check):
    with virtual_network() as net:
        net.run(check(Greeter, node_deps(net.node("host"))))


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__, "-q"]))
