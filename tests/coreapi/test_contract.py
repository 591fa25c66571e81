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

PROTOCOLS = [coreapi.Identity, coreapi.Stream, coreapi.Listener, coreapi.Streams, coreapi.PeerResolver]


def members(protocol: type) -> list[str]:
    return [name for name in vars(protocol) if not name.startswith("_") or name in ("__aiter__", "__anext__")]


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda p: p.__name__)
def test_every_member_is_documented(protocol: type) -> None:
    assert inspect.getdoc(protocol)
    for name in members(protocol):
        assert inspect.getdoc(inspect.getattr_static(protocol, name)), f"{protocol.__name__}.{name}"


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda p: p.__name__)
def test_an_incomplete_object_is_told_apart(protocol: type) -> None:
    assert not isinstance(object(), protocol)
    complete = type("Complete", (), dict.fromkeys([*members(protocol), "__aenter__", "__aexit__"], 1))
    assert isinstance(complete(), protocol)
    for name in members(protocol):
        lacking = type("Lacking", (), dict.fromkeys((set(members(protocol)) | {"__aenter__", "__aexit__"}) - {name}, 1))
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
