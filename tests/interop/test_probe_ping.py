"""The plain-Python reference speaks to the official daemon: key exchange, control ping, datagram and echo (L4-L7)."""

from __future__ import annotations

import pytest

from tests.interop.conftest import StartDaemon, StartProbe
from tests.interop.official import OfficialDaemon
from tests.interop.probe import Probe
from tests.reference import packet


@pytest.fixture
async def daemon(start_daemon: StartDaemon) -> OfficialDaemon:
    return await start_daemon("alice", public=True)


@pytest.fixture
async def probe(start_probe: StartProbe, daemon: OfficialDaemon) -> Probe:
    probe = await start_probe()
    await probe.exchange_keys(daemon.endpoint, daemon.node_id)
    return probe


@pytest.mark.parametrize("size", [1, 3, 1152, 1402, 65437])
async def test_control_ping(probe: Probe, size: int) -> None:
    payload = bytes(index % 251 for index in range(size))
    pong = await probe.ping(payload, port=1234, seq=0xFFFFFFFF)
    assert pong == packet.Packet(
        probe.peer_address, probe.address, packet.CONTROL, packet.ACK, 0, 1234, 0xFFFFFFFF, 0, 0, payload
    )


async def test_echo_stream(probe: Probe) -> None:
    ports = {"source_port": 50001, "destination_port": 7}
    probe.send_packet(flags=packet.SYN, seq=100, window=512, **ports)
    opened = await probe.receive_packet()
    assert (opened.flags, opened.seq, opened.ack, opened.window) == (packet.SYN | packet.ACK, 0, 101, 512)
    probe.send_packet(flags=packet.ACK, seq=101, ack=1, window=512, payload=b"hello", **ports)
    answers = [await probe.receive_packet(), await probe.receive_packet()]
    assert [(answer.ack, answer.payload) for answer in answers] == [(106, b""), (106, b"hello")]
    probe.send_packet(flags=packet.ACK, seq=106, ack=6, window=512, **ports)
    probe.send_packet(flags=packet.FIN, seq=106, **ports)
    closed = await probe.receive_packet()
    assert (closed.flags, closed.seq, closed.ack) == (packet.FIN | packet.ACK, 6, 107)


async def test_refused_port(probe: Probe) -> None:
    probe.send_packet(flags=packet.SYN, window=512, source_port=50002, destination_port=9999)
    refused = await probe.receive_packet()
    assert (refused.flags, refused.source_port, refused.destination_port) == (packet.RST, 9999, 50002)


async def test_datagram_reaches_every_client(probe: Probe, daemon: OfficialDaemon) -> None:
    async with await daemon.ipc() as one, await daemon.ipc() as other:
        await one.health()
        await other.health()
        probe.send_packet(protocol=packet.DATAGRAM, source_port=5000, destination_port=4444, payload=b"dgram")
        for client in (one, other):
            datagram = await client.receive_datagram()
            assert (datagram.source, datagram.source_port) == (probe.address, 5000)
            assert (datagram.destination_port, datagram.data) == (4444, b"dgram")
