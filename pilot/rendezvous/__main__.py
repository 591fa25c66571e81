"""`python -m pilot.rendezvous`: a rendezvous server in the foreground (rendezvous room, L8 server side)."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence

from pilot._fast.errors import PilotError
from pilot.rendezvous.config import (
    DEFAULT_BEACON_PORT,
    DEFAULT_REGISTRY_PORT,
    BeaconLimits,
    Limits,
    RendezvousConfig,
    TlsConfig,
)
from pilot.rendezvous.serve import ready_line, serve


def parse_arguments(arguments: Sequence[str] | None = None) -> tuple[RendezvousConfig, bool]:
    """(configuration, whether the ready line is JSON); leaves the process with a message when they make no sense."""
    parser = argparse.ArgumentParser(prog="python -m pilot.rendezvous", description="Run a Pilot Protocol rendezvous.")
    parser.add_argument("--host", default="127.0.0.1", help="IP address of both ports (default: %(default)s)")
    parser.add_argument("--registry-port", type=int, default=DEFAULT_REGISTRY_PORT, help="TCP, 0 for any free one")
    parser.add_argument("--beacon-port", type=int, default=DEFAULT_BEACON_PORT, help="UDP, 0 for any free one")
    parser.add_argument("--store", default=":memory:", help="SQLite file; in memory, lost at the end, by default")
    parser.add_argument("--admin-token", help="for network administration (or environment PILOT_ADMIN_TOKEN)")
    parser.add_argument(
        "--tls", action="store_true", help="TLS 1.3 on the registry port, self-signed unless files are given"
    )
    parser.add_argument("--tls-cert", help="certificate chain, PEM")
    parser.add_argument("--tls-key", help="private key, PEM")
    parser.add_argument("--advertise-beacon", metavar="HOST:PORT", help="the beacon as nodes reach it, for beacon_list")
    parser.add_argument("--stale-after", type=float, default=1_800.0, metavar="SECONDS", help="default: %(default)s")
    parser.add_argument("--relaxed-limits", action="store_true", help="no rate limits: many nodes behind one address")
    parser.add_argument("--json", action="store_true", help="print the ready line as JSON")
    options = parser.parse_args(arguments)
    uses_tls = options.tls or options.tls_cert or options.tls_key
    config = RendezvousConfig(
        host=options.host,
        registry_port=options.registry_port,
        beacon_port=options.beacon_port,
        store=options.store,
        admin_token=options.admin_token or os.environ.get("PILOT_ADMIN_TOKEN") or None,
        tls=TlsConfig(cert_file=options.tls_cert, key_file=options.tls_key) if uses_tls else None,
        advertise_beacon=options.advertise_beacon,
        stale_after=options.stale_after,
        limits=Limits.relaxed() if options.relaxed_limits else Limits(),
        beacon_limits=BeaconLimits.relaxed() if options.relaxed_limits else BeaconLimits(),
    )
    return config, options.json


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGINT or SIGTERM; returns the exit status."""
    config, as_json = parse_arguments(arguments)
    try:
        asyncio.run(serve(config, ready=lambda server: print(ready_line(server, as_json=as_json), flush=True)))
    except (PilotError, OSError, OverflowError) as error:
        print(f"rendezvous: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
