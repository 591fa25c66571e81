"""The registry client: where nodes are, who they are, and staying registered oneself (L8)."""

from pilot.node.directory.answers import (
    Beacon,
    Endpoint,
    HandshakeRequest,
    HandshakeResponse,
    JoinedNetwork,
    Location,
    Mailbox,
    Member,
    NetworkInfo,
    NetworkLimits,
    NodeRecord,
    Registration,
)
from pilot.node.directory.client import ClientOptions, RegistryClient, RegistryRefusedError
from pilot.node.directory.directory import Advertisement, Directory, DirectoryOptions
from pilot.node.directory.tls import RegistryTls

__all__ = [
    "Advertisement",
    "Beacon",
    "ClientOptions",
    "Directory",
    "DirectoryOptions",
    "Endpoint",
    "HandshakeRequest",
    "HandshakeResponse",
    "JoinedNetwork",
    "Location",
    "Mailbox",
    "Member",
    "NetworkInfo",
    "NetworkLimits",
    "NodeRecord",
    "Registration",
    "RegistryClient",
    "RegistryRefusedError",
    "RegistryTls",
]
