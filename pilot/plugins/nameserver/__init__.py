"""Name server (port 53): names of nodes, networks and services on the overlay, and its client (plugin, L11)."""

from pilot.plugins.nameserver.client import NameClient
from pilot.plugins.nameserver.lines import PORT, ServiceRecord
from pilot.plugins.nameserver.service import NameServerHost, NameServerService

__all__ = ["PORT", "NameClient", "NameServerHost", "NameServerService", "ServiceRecord"]
