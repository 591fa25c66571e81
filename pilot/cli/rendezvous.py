"""`pilot rendezvous`: the registry and the beacon of a private network, in the foreground (L12)."""

from __future__ import annotations

import asyncio
import json
import os
from typing import Annotated

import typer

from pilot._fast.errors import InvalidValueError
from pilot.cli.options import JSON_OPTION
from pilot.cli.output import Result, execute, fail, forever, stderr
from pilot.rendezvous import Rendezvous, RendezvousConfig, TlsConfig

__all__ = ["rendezvous"]


def rendezvous(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="TCP port of the registry.")] = 9000,
    beacon_port: Annotated[int, typer.Option(min=0, max=65535, help="UDP port of the beacon.")] = 9001,
    store: Annotated[str, typer.Option(help="SQLite file that survives restarts.")] = ":memory:",
    tls: Annotated[bool, typer.Option(help="Serve TLS with a certificate of its own, kept beside the store.")] = False,
    as_json: JSON_OPTION = False,
) -> None:
    """Run a rendezvous server until it is interrupted. With --json the object is printed when it is ready.

    The admin token is taken from PILOT_ADMIN_TOKEN.
    """
    try:
        config = RendezvousConfig(
            host=host,
            registry_port=port,
            beacon_port=beacon_port,
            store=store,
            admin_token=os.environ.get("PILOT_ADMIN_TOKEN"),
            tls=TlsConfig() if tls else None,
        )
    except InvalidValueError as error:
        fail(error, as_json)
    execute(_serve(config, as_json), as_json=as_json)


async def _serve(config: RendezvousConfig, as_json: bool) -> None:
    async with Rendezvous(config) as server:
        ready: Result = {
            "registry": "{}:{}".format(*server.registry_address),
            "beacon": "{}:{}".format(*server.beacon_address),
            "tls_fingerprint": server.tls_fingerprint,
        }
        if as_json:
            typer.echo(json.dumps(ready))
        else:
            stderr.print(f"registry {ready['registry']} (TCP), beacon {ready['beacon']} (UDP)", highlight=False)
        await forever(asyncio.Event().wait())
