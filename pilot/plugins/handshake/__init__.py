"""Trust between nodes: who asks, who is accepted, who is trusted (plugin handshake, port 444, L11)."""

from pilot.plugins.handshake.host import HandshakeHost, KeyedTrustChecker
from pilot.plugins.handshake.life import RequestOutcome
from pilot.plugins.handshake.records import PendingRequest, TrustRecord
from pilot.plugins.handshake.service import HandshakeService

__all__ = [
    "HandshakeHost",
    "HandshakeService",
    "KeyedTrustChecker",
    "PendingRequest",
    "RequestOutcome",
    "TrustRecord",
]
