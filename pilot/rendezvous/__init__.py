"""The rendezvous server, embeddable: registry, beacon and store (rendezvous room, L8 server side)."""

from pilot.rendezvous.config import BeaconLimits, Limits, RendezvousConfig, TlsConfig
from pilot.rendezvous.server import Rendezvous
from pilot.rendezvous.sqlite_store import SqliteStore
from pilot.rendezvous.store import Store

__all__ = ["BeaconLimits", "Limits", "Rendezvous", "RendezvousConfig", "SqliteStore", "Store", "TlsConfig"]
