"""The official daemon and its command line on our rendezvous (L8 server side, judged by the official client)."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.interop.conftest import StartDaemon
from tests.interop.ipc import HANDSHAKE_APPROVE, HANDSHAKE_SEND, IpcError, eventually
from tests.interop.netns import Namespace
from tests.interop.official import (
    AFTER_MAILBOX_APPROVAL,
    AFTER_RENDEZVOUS_RESTART,
    AFTER_TRUST_ENDED,
    AFTER_TUNNEL_LOSS,
    WHEN_STRANGERS_CALL,
    CtlError,
    OfficialDaemon,
)
from tests.interop.rendezvous import ADMIN_TOKEN, our_rendezvous

Pair = tuple[OfficialDaemon, OfficialDaemon]


@pytest.fixture
async def pair(start_daemon: StartDaemon) -> Pair:
    """Two public daemons; `start_daemon` fails the test if their logs hold any warning."""
    return await start_daemon("alice", public=True), await start_daemon("bob", public=True)


async def transfer(sender: OfficialDaemon, receiver: OfficialDaemon, size: int, port: int = 1000) -> None:
    """Send `size` bytes over a stream and check that they arrive as they were."""
    data = bytes(index % 251 for index in range(65536)) * (size // 65536)
    async with await receiver.ipc() as there, await sender.ipc() as here, await there.bind(port) as listener:
        async with await here.dial(receiver.address, port) as stream:
            accepted = await listener.accept()
            assert accepted.remote.node == sender.node_id
            _, arrived = await asyncio.gather(stream.write(data), accepted.readexactly(len(data)))
            assert arrived == data
        assert await accepted.read() == b""
        await accepted.close()


async def relayed_peers(daemon: OfficialDaemon) -> int:
    """Return how many peers a daemon reaches by relay; from Health, because Info may be 200 ms old."""
    async with await daemon.ipc() as client:
        return (await client.health())["relay_peer_count"]


class TestStart:
    async def test_private_daemon_registers(self, start_daemon: StartDaemon) -> None:
        daemon = await start_daemon("", public=False)
        info = await daemon.ctl("info")
        assert (info["node_id"], info["hostname"]) == (daemon.node_id, "")
        found = await daemon.ctl("lookup", str(daemon.node_id))
        assert (found["public"], found["networks"]) == (False, [0])

    async def test_restart_keeps_the_address(self, start_daemon: StartDaemon) -> None:
        daemon = await start_daemon("alice", public=True, email="alice@example.org")
        before = daemon.address
        await daemon.restart(kill=True)
        assert daemon.address == before

    async def test_second_node_gets_another_address(self, pair: Pair) -> None:
        alice, bob = pair
        assert alice.address != bob.address

    async def test_taken_hostname_is_reported_and_survived(self, pair: Pair, start_daemon: StartDaemon) -> None:
        other = await start_daemon("carol", hostname="alice", expect=("hostname",))
        assert (await other.ctl("find", "alice"))["node_id"] == pair[0].node_id


class TestCommandLine:
    async def test_find_and_lookup(self, pair: Pair) -> None:
        alice, bob = pair
        found = await alice.ctl("find", "bob")
        assert found == {"address": str(bob.address), "hostname": "bob", "node_id": bob.node_id, "public": True}
        looked_up = await alice.ctl("lookup", str(bob.node_id))
        own = await bob.ctl("info")
        assert looked_up["public_key"] == own["public_key"]
        assert (looked_up["address"], looked_up["hostname"]) == (str(bob.address), "bob")

    async def test_unknown_name_and_node(self, pair: Pair) -> None:
        with pytest.raises(CtlError, match="not found"):
            await pair[0].ctl("find", "nobody")
        with pytest.raises(CtlError, match="node 4000: node not found"):
            await pair[0].ctl("lookup", "4000")

    async def test_ping_and_peers(self, pair: Pair) -> None:
        alice, bob = pair
        result = await alice.ctl("ping", "bob", "--count", "2")
        assert [reply["bytes"] for reply in result["results"]] == [6, 6]
        assert not result["timeout"]
        (peer,) = (await alice.ctl("peers"))["peers"]  # the ping took a second: Info is not the one of the start
        assert peer == {"authenticated": True, "encrypted": True, "node_id": bob.node_id, "relay": False}

    async def test_ping_oneself(self, pair: Pair) -> None:
        assert not (await pair[0].ctl("ping", "alice", "--count", "1"))["timeout"]

    async def test_bench(self, pair: Pair) -> None:
        result = await pair[0].ctl("bench", "bob", "1")
        assert result["complete"]
        assert result["recv_bytes"] == 1 << 20

    async def test_set_hostname(self, pair: Pair) -> None:
        alice, bob = pair
        assert (await bob.ctl("set-hostname", "robert"))["hostname"] == "robert"
        assert (await alice.ctl("find", "robert"))["node_id"] == bob.node_id
        with pytest.raises(CtlError, match="already in use"):
            await alice.ctl("set-hostname", "robert")
        with pytest.raises(CtlError, match="invalid hostname"):
            await alice.ctl("set-hostname", "Not A Name")
        await bob.ctl("clear-hostname")
        assert (await alice.ctl("set-hostname", "robert"))["node_id"] == alice.node_id

    async def test_set_tags(self, pair: Pair) -> None:
        alice, bob = pair
        assert (await bob.ctl("extras", "set-tags", "search", "eu-west"))["tags"] == ["search", "eu-west"]
        assert (await alice.ctl("lookup", str(bob.node_id)))["tags"] == ["search", "eu-west"]
        await bob.ctl("extras", "clear-tags")
        assert "tags" not in await alice.ctl("lookup", str(bob.node_id))
        with pytest.raises(CtlError, match="tag"):
            await bob.ctl("extras", "set-tags", "Upper Case")

    async def test_visibility(self, pair: Pair) -> None:
        alice, bob = pair
        assert (await bob.ctl("set-private"))["visibility"] == "private"
        assert (await alice.ctl("lookup", str(bob.node_id)))["public"] is False
        with pytest.raises(CtlError) as refused:
            await alice.ctl("ping", str(bob.address), "--count", "1")
        assert refused.value.code == "trust_required"
        assert (await bob.ctl("set-public"))["visibility"] == "public"
        assert not (await alice.ctl("ping", str(bob.address), "--count", "1"))["timeout"]

    async def test_rotate_key(self, pair: Pair) -> None:
        alice, bob = pair
        await alice.ctl("ping", "bob", "--count", "1")
        before = await bob.ctl("info")
        rotated = await bob.ctl("rotate-key")
        assert rotated["node_id"] == bob.node_id
        assert rotated["public_key"] != before["public_key"]
        assert (await alice.ctl("lookup", str(bob.node_id)))["public_key"] == rotated["public_key"]
        assert (await bob.ctl("set-hostname", "signed-by-the-new-key"))["node_id"] == bob.node_id
        assert not (await alice.ctl("ping", str(bob.address), "--count", "1"))["timeout"]

    async def test_deregister(self, pair: Pair) -> None:
        alice, bob = pair
        await bob.ctl("deregister")
        with pytest.raises(CtlError, match=f"node {bob.node_id}: node not found"):
            await alice.ctl("lookup", str(bob.node_id))


class TestStreams:
    async def test_transfer_both_ways(self, pair: Pair) -> None:
        await transfer(*pair, 4 << 20)
        await transfer(*reversed(pair), 4 << 20)

    async def test_refused(self, pair: Pair) -> None:
        async with await pair[0].ipc() as client:
            with pytest.raises(IpcError, match="connection refused"):
                await client.dial(pair[1].address, 9999)

    async def test_peer_restarted(self, start_daemon: StartDaemon) -> None:
        alice = await start_daemon("alice", public=True, expect=AFTER_TUNNEL_LOSS)
        bob = await start_daemon("bob", public=True, expect=AFTER_TUNNEL_LOSS)
        await transfer(alice, bob, 65536)
        await bob.restart(kill=True)
        await transfer(alice, bob, 65536)


class TestTrust:
    async def test_private_nodes_meet_by_handshake(self, start_daemon: StartDaemon) -> None:
        expect = (*AFTER_TRUST_ENDED, *AFTER_MAILBOX_APPROVAL)
        alice, bob = await start_daemon("alice", expect=expect), await start_daemon("bob", expect=expect)
        async with await alice.ipc() as one, await bob.ipc() as other:
            with pytest.raises(IpcError, match="registry"):
                await one.dial(bob.address, 7)
            await one.handshake(HANDSHAKE_SEND, bob.node_id, b"hello")

            async def asked() -> bool:
                pending = (await bob.ctl("pending"))["pending"] or []
                return [request["node_id"] for request in pending] == [alice.node_id]

            await eventually(asked)
            await other.handshake(HANDSHAKE_APPROVE, alice.node_id)
            assert await one.wait_trusted(bob.node_id)
            assert await other.wait_trusted(alice.node_id)
        await transfer(alice, bob, 65536)
        await alice.ctl("untrust", str(bob.node_id))
        with pytest.raises(CtlError) as refused:
            await alice.ctl("ping", str(bob.address), "--count", "1")
        assert refused.value.code == "trust_required"

    async def test_stranger_is_met_with_silence(self, start_daemon: StartDaemon) -> None:
        alice = await start_daemon("alice", public=True)
        bob = await start_daemon("bob", public=True, expect=WHEN_STRANGERS_CALL)
        await alice.ctl("ping", "bob", "--count", "1")
        await bob.ctl("set-private")
        async with await alice.ipc() as client:
            with pytest.raises(TimeoutError):
                await client.dial(bob.address, 1001, timeout=1.0)


class TestNetworks:
    async def test_create_join_leave(self, start_daemon: StartDaemon) -> None:
        alice = await start_daemon("alice", admin_token=ADMIN_TOKEN)
        bob = await start_daemon("bob", admin_token=ADMIN_TOKEN)
        owner = str(alice.node_id)
        created = await alice.ctl("network", "create", "--name", "lab", "--join-rule", "open", "--node-id", owner)
        network = str(created["network_id"])
        joined = await bob.ctl("network", "join", network)
        assert joined["address"] == f"{network}:{int(network):04X}.0000.{bob.node_id:04X}"
        members = await alice.ctl("network", "members", network)
        assert {node["node_id"] for node in members["nodes"]} == {alice.node_id, bob.node_id}
        await transfer(alice, bob, 65536)
        await bob.ctl("network", "leave", network)
        members = await alice.ctl("network", "members", network)
        assert {node["node_id"] for node in members["nodes"]} == {alice.node_id}
        names = {row["name"] for row in (await bob.ctl("network", "list"))["networks"]}
        assert names == {"backbone", "lab"}


class TestBeacon:
    async def test_relay_only(self, start_daemon: StartDaemon) -> None:
        alice = await start_daemon("alice", public=True)
        bob = await start_daemon("bob", public=True, relay_only=True)
        await transfer(alice, bob, 65536)
        assert await relayed_peers(alice) == await relayed_peers(bob) == 1

    @pytest.mark.usefixtures("filtering")
    async def test_no_direct_path(self, pair: Pair, namespace: Namespace) -> None:
        alice, bob = pair
        with namespace.cut(alice.host, bob.host):
            await transfer(alice, bob, 65536)
            assert await relayed_peers(alice) == 1

    @pytest.mark.slow
    @pytest.mark.usefixtures("filtering")
    async def test_path_healed(self, pair: Pair, namespace: Namespace) -> None:
        """The daemons' attempts every 15 s, with a punch through our beacon, bring the pair back together."""
        alice, bob = pair
        with namespace.cut(alice.host, bob.host):
            await transfer(alice, bob, 65536)

        async def direct_again() -> bool:
            await asyncio.sleep(0.5)
            await alice.ctl("ping", "bob", "--count", "1")
            return await relayed_peers(alice) == 0

        await eventually(direct_again, 40.0)


class TestRestart:
    async def test_with_its_store(self, start_daemon: StartDaemon, namespace: Namespace, tmp_path: Path) -> None:
        host, store = namespace.new_host(), str(tmp_path / "registry.db")
        where = {"registry": f"{host}:9000", "beacon": f"{host}:9001", "expect": AFTER_RENDEZVOUS_RESTART}
        async with our_rendezvous(host, store):
            alice = await start_daemon("alice", public=True, **where)
            bob = await start_daemon("bob", public=True, **where)
            await bob.ctl("extras", "set-tags", "kept")
        async with our_rendezvous(host, store):
            found = await alice.ctl("find", "bob")
            assert (found["node_id"], found["public"]) == (bob.node_id, True)
            assert (await alice.ctl("lookup", str(bob.node_id)))["tags"] == ["kept"]
            await transfer(alice, bob, 65536)
            carol = await start_daemon("carol", **where)
            assert carol.node_id not in (alice.node_id, bob.node_id)


def problems(daemon: OfficialDaemon) -> list[dict[str, Any]]:
    """Return the warnings in a daemon's log."""
    return [record for record in daemon.records() if record["level"] in ("WARN", "ERROR")]


async def test_a_clean_start_logs_no_warning_at_all(pair: Pair) -> None:
    for daemon in pair:
        assert problems(daemon) == []
