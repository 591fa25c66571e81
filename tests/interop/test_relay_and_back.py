"""When the official daemon leaves a direct path and returns to it: what failover.py and upgrades.py rest on (L5)."""

from __future__ import annotations

import asyncio
import time

from pilot.protocol import beacon
from tests.interop.ipc import eventually
from tests.interop.official import AFTER_TUNNEL_LOSS
from tests.interop.probe import Endpoint, Probe
from tests.reference import frames, packet

PROBE_PORT = 1234
CALL = 16


class RelayedProbe(Probe):
    """A probe that pings by either way and tells by which one the pongs come."""

    def __init__(self, registry: str, host: str, beacon_address: str) -> None:
        super().__init__(registry, host)
        name, _, port = beacon_address.rpartition(":")
        self.beacon: Endpoint = (name, int(port))

    async def meet(self, endpoint: Endpoint, node: int) -> None:
        """Announce itself to the beacon and get a session with the node."""
        self.send_frame(beacon.encode_discover(self.node_id), self.beacon)
        await self.exchange_keys(endpoint, node)
        self.arrived = asyncio.Queue()

    def ask(self, *, relayed: bool) -> None:
        """Send one ping."""
        self.counter += 1
        ping = packet.Packet(
            self.address, self.peer_address, packet.CONTROL, 0, PROBE_PORT, 0, self.counter, payload=b"pathprobe.v1"
        )
        frame = frames.seal(self.key, self.node_id, self.prefix, self.counter, ping.encode())
        if relayed:
            self.send_frame(beacon.wrap_relay(self.node_id, self.peer_address.node, frame), self.beacon)
        else:
            self.send_frame(frame)

    async def answers(self, seconds: float = 0.3) -> list[str]:
        """What has come meanwhile: pongs as "direct" or "relay", frames of an upgrade attempt as "attempt"."""
        await asyncio.sleep(seconds)
        ways = []
        while not self.arrived.empty():
            data, source = self.arrived.get_nowait()
            frame = data[5:] if source == self.beacon else data
            if frame[:4] == frames.PILS:
                inner = packet.decode_untrusted(frames.open_untrusted(self.key, frame).plaintext)
                pong = inner.destination_port == PROBE_PORT
                ways.append("attempt" if not pong else "relay" if source == self.beacon else "direct")
        return ways


async def test_when_the_daemon_leaves_a_path_and_returns(start_daemon, rendezvous, namespace):
    daemon = await start_daemon("bob", public=True, expect=AFTER_TUNNEL_LOSS)
    async with RelayedProbe(rendezvous.registry, namespace.new_host(), rendezvous.beacon) as probe:
        await probe.meet(daemon.endpoint, daemon.node_id)
        probe.ask(relayed=False)
        heard_directly = time.monotonic()
        assert await probe.answers() == ["direct"]
        while time.monotonic() < heard_directly + 9:
            probe.ask(relayed=True)
            assert await probe.answers() == ["direct"], "what it hears by relay keeps it from giving the path up"

        async def called_over() -> bool:
            for _ in range(CALL):
                probe.ask(relayed=True)
            return "relay" in await probe.answers()

        await eventually(called_over, 10)
        probe.ask(relayed=True)
        assert await probe.answers() == ["relay"]

        async def attempted() -> bool:
            return "attempt" in await probe.answers()

        await eventually(attempted, 40)  # until then it stays, whatever it hears
        await probe.answers(1.5)
        for way in ("relay", "relay", "direct"):
            probe.ask(relayed=False)
            assert await probe.answers(1.0) == [way], "the third direct frame makes it direct"
