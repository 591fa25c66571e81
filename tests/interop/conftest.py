"""Fixtures of the interoperation suite: namespace, rendezvous, official daemons and probes (see README.md here).

All tests below this directory are marked `interop`. They are skipped, with the reason printed, where there is no root,
no `ip`, or no way to the wheel; with PILOT_INTEROP=required in the environment that is a failure instead.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, NoReturn

import pytest

from tests.interop import netns
from tests.interop.netns import Namespace
from tests.interop.official import OfficialDaemon, Programs, fetch, official_daemon
from tests.interop.probe import Probe
from tests.interop.rendezvous import Running, our_rendezvous

HERE = Path(__file__).parent

StartDaemon = Callable[..., Awaitable[OfficialDaemon]]
StartProbe = Callable[..., Awaitable[Probe]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.interop)


def unavailable(reason: str) -> NoReturn:
    """Skip with a reason, or fail with it where the suite is required."""
    if os.environ.get("PILOT_INTEROP") == "required":
        pytest.fail(f"interop suite required, but {reason}", pytrace=False)
    pytest.skip(f"interop: {reason}")


def pytest_runtest_setup() -> None:
    """Ends every test of this directory in one place, so that pytest's summary has one line for all of them."""
    if reason := netns.missing():
        unavailable(reason)


@pytest.fixture(scope="session")
def programs() -> Programs:
    """The official programs, fetched outside the namespace."""
    try:
        return fetch()
    except (RuntimeError, OSError) as error:
        unavailable(str(error))


@pytest.fixture(scope="session")
def namespace(programs: Programs) -> Iterator[Namespace]:
    """The namespace of this test process, with only loopback in it."""
    namespace = Namespace()
    yield namespace
    namespace.close()


@pytest.fixture(scope="module", autouse=True)
def inside(namespace: Namespace) -> Iterator[None]:
    """Every test of this directory runs with its sockets in the namespace."""
    with namespace.entered():
        yield


@pytest.fixture
def filtering() -> None:
    """Ask for this to use `namespace.cut` or `namespace.lose`."""
    if not netns.can_filter():
        unavailable("no `nft` program (package nftables)")


@pytest.fixture
async def rendezvous(namespace: Namespace) -> AsyncIterator[Running]:
    """Our rendezvous, empty, on a host of its own."""
    async with our_rendezvous(namespace.new_host()) as running:
        yield running


@pytest.fixture
async def start_daemon(
    programs: Programs, namespace: Namespace, rendezvous: Running, tmp_path: Path
) -> AsyncIterator[StartDaemon]:
    """Return a function that starts an official daemon by name; all are stopped, and their logs judged, after the test.

    `await start_daemon("alice", public=True, expect=(...))`: `expect` names log lines the test causes on purpose.
    """
    async with AsyncExitStack() as daemons:

        async def start(name: str, *, expect: Sequence[str] = (), **options: Any) -> OfficialDaemon:
            settings = {
                "registry": rendezvous.registry,
                "beacon": rendezvous.beacon,
                "host": namespace.new_host(),
                "hostname": name,
                **options,
            }
            daemon = OfficialDaemon(programs, namespace, tmp_path / name, **settings)
            return await daemons.enter_async_context(official_daemon(daemon, expect=expect))

        yield start


@pytest.fixture
async def start_probe(namespace: Namespace, rendezvous: Running) -> AsyncIterator[StartProbe]:
    """Return a function that starts a registered plain-Python probe."""
    async with AsyncExitStack() as probes:

        async def start() -> Probe:
            return await probes.enter_async_context(Probe(rendezvous.registry, namespace.new_host()))

        yield start
