"""The sans-IO control plane of the data path: key exchange, rekey, paths, liveness, beacon, path MTU (tunnel, L4-5)."""

from pilot.tunnel.interfaces import ContactState, Resolved, TunnelHooks, TunnelIdentity
from pilot.tunnel.settings import TunnelSettings
from pilot.tunnel.tunnel import Tunnel

__all__ = ["ContactState", "Resolved", "Tunnel", "TunnelHooks", "TunnelIdentity", "TunnelSettings"]
