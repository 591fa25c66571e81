"""The types of the plugin contract: exported names, documentation, and what implements them (L10)."""

from __future__ import annotations

import dataclasses
import inspect

import pytest

from pilot import coreapi
from pilot._fast.addr import Addr
from pilot._fast.errors import PeerNotFoundError
from pilot.node.directory import Directory, RegistryClient
from pilot.node.identity import LocalIdentity
from pilot.node.listener import Listener
from pilot.node.stream import Stream

PROTOCOLS = [
    coreapi.EventBus,
    coreapi.Identity,
    coreapi.Listener,
    coreapi.PeerResolver,
    coreapi.PolicyActivity,
    coreapi.PolicyManager,
    coreapi.PolicyProvider,
    coreapi.PolicyRunner,
    coreapi.Service,
    coreapi.Stream,
    coreapi.Streams,
    coreapi.Subscription,
    coreapi.TrustChecker,
]
DUNDERS = ("__aenter__", "__aexit__", "__aiter__", "__anext__", "__enter__", "__exit__")


def members(protocol: type) -> list[str]:
    names = [name for name in vars(protocol) if not name.startswith("_") or name in ("__aiter__", "__anext__")]
    return [*names, *vars(protocol).get("__annotations__", {})]


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda p: p.__name__)
def test_every_member_is_documented(protocol: type) -> None:
    assert inspect.getdoc(protocol)
    for name in members(protocol):
        if name not in vars(protocol).get("__annotations__", {}):
            assert inspect.getdoc(inspect.getattr_static(protocol, name)), f"{protocol.__name__}.{name}"


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda p: p.__name__)
def test_an_incomplete_object_is_told_apart(protocol: type) -> None:
    assert not isinstance(object(), protocol)
    complete = type("Complete", (), dict.fromkeys([*members(protocol), *DUNDERS], 1))
    assert isinstance(complete(), protocol)
    for name in members(protocol):
        lacking = type("Lacking", (), dict.fromkeys({*members(protocol), *DUNDERS} - {name}, 1))
        assert not isinstance(lacking(), protocol), name


def test_the_local_identity_is_an_identity() -> None:
    identity = LocalIdentity.generate()
    assert isinstance(identity, coreapi.Identity)
    assert (identity.node_id, identity.address) == (0, Addr(0, 0))


async def test_the_directory_is_a_resolver() -> None:
    client = RegistryClient("127.0.0.1", 1)
    directory = Directory(client, LocalIdentity.generate(), lambda: pytest.fail("not started"))
    assert isinstance(directory, coreapi.PeerResolver)
    await directory.stop()


@pytest.mark.parametrize(
    ("shell", "protocol"), [(Stream, coreapi.Stream), (Listener, coreapi.Listener)], ids=["Stream", "Listener"]
)
def test_the_shells_have_every_member_with_the_same_parameters(shell: type, protocol: type) -> None:
    for name in members(protocol):
        promised, given = inspect.getattr_static(protocol, name), inspect.getattr_static(shell, name)
        if isinstance(promised, property):
            continue
        assert inspect.iscoroutinefunction(promised) == inspect.iscoroutinefunction(given), name
        wanted = list(inspect.signature(promised).parameters)
        assert list(inspect.signature(given).parameters)[: len(wanted)] == wanted, name


def test_peer_info_is_a_frozen_record_without_a_dict() -> None:
    info = coreapi.PeerInfo(7, Addr(0, 7))
    assert (info.endpoint, info.pub_key, info.public, info.hostname, info.relay_only) == (None, None, False, "", False)
    with pytest.raises(dataclasses.FrozenInstanceError):
        info.public = True  # type: ignore[misc]
    assert not hasattr(info, "__dict__")
    assert info == coreapi.PeerInfo(7, Addr(0, 7))
    assert hash(info) == hash(coreapi.PeerInfo(7, Addr(0, 7)))


def test_re_exports_are_the_same_objects() -> None:
    assert coreapi.Addr is Addr
    assert coreapi.PeerNotFoundError is PeerNotFoundError
    assert coreapi.__all__ == sorted(coreapi.__all__)


def test_every_identifier_of_the_seed_has_its_counterpart() -> None:
    types = {
        *("Addr", "Deps", "Event", "EventBus", "Identity", "Listener", "PeerInfo", "PeerResolver", "PolicyEventType"),
        *("PolicyManager", "PolicyRunner", "Service", "ServiceRegistry", "Stream", "Streams", "TrustChecker"),
    }
    errors = {"RegistryStartedError", "ServiceNotReadyError", "PeerNotFoundError"}
    functions = {
        *("plugin_recovered_panic_count", "recover_plugin", "reset_plugin_recovered_panic_count_for_test"),
        *("plugin_panic_count", "is_plugin_healthy"),
    }
    assert types | errors | functions <= set(coreapi.__all__)
    assert {kind.value for kind in coreapi.PolicyEventType} == {
        *("connect", "dial", "datagram", "join", "leave", "cycle"),
    }
    assert coreapi.PolicyEventType("connect") is coreapi.PolicyEventType.CONNECT
    assert coreapi.PolicyEventType.CONNECT == "connect"
    for name in coreapi.__all__:
        assert inspect.getdoc(getattr(coreapi, name)), name


def test_a_miss_of_the_trust_list_is_false() -> None:
    assert not coreapi.TrustMatch()
    assert coreapi.TrustMatch("Bob", True)
    name, ok = coreapi.TrustMatch("Bob", True)
    assert (name, ok) == ("Bob", True)


def test_deps_is_a_frozen_record_with_the_fields_of_the_seed() -> None:
    assert [field.name for field in dataclasses.fields(coreapi.Deps)] == [
        *("streams", "identity", "resolver", "events", "logger", "trust"),
    ]
    assert not hasattr(coreapi.Deps, "__dict__") or "__slots__" in vars(coreapi.Deps)


def test_a_service_without_a_stop_cannot_be_made() -> None:
    class Half(coreapi.Service):
        name, order = "half", 1

        async def start(self, deps: coreapi.Deps) -> None: ...

    with pytest.raises(TypeError, match="stop"):
        Half()  # type: ignore[abstract]
