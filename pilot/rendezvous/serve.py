"""Run a rendezvous server until a signal, for the `pilot` command and `python -m` (rendezvous room, L8)."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Callable

from pilot.protocol.endpoints import join_endpoint
from pilot.rendezvous.config import RendezvousConfig
from pilot.rendezvous.server import Rendezvous


async def serve(config: RendezvousConfig, *, ready: Callable[[Rendezvous], None] | None = None) -> None:
    """Serve until SIGINT or SIGTERM, then stop cleanly; `ready` is called once both ports answer.

    Must run in the main thread. Raises what `Rendezvous.start` raises; if cancelled the server is stopped first.
    """
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    signals = (signal.SIGINT, signal.SIGTERM)
    for number in signals:
        loop.add_signal_handler(number, stopped.set)
    try:
        async with Rendezvous(config) as server:
            if ready is not None:
                ready(server)
            await stopped.wait()
    finally:
        for number in signals:
            loop.remove_signal_handler(number)


def ready_line(server: Rendezvous, *, as_json: bool) -> str:
    """One line that says where the server is, for people or (`as_json`) for programs."""
    registry, beacon = join_endpoint(*server.registry_address), join_endpoint(*server.beacon_address)
    if as_json:
        fields = {"registry": registry, "beacon": beacon, "tls_fingerprint": server.tls_fingerprint}
        return json.dumps(fields, sort_keys=True)
    pin = f", TLS fingerprint {server.tls_fingerprint}" if server.tls_fingerprint else ""
    return f"rendezvous ready: registry {registry} (TCP), beacon {beacon} (UDP){pin}"
