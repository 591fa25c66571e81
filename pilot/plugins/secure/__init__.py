"""Secure channel (port 443): encryption and mutual authentication of applications over any stream (plugin, L11)."""

from pilot.plugins.secure.authentication import ANY_NODE, Authentication, KeyLookup
from pilot.plugins.secure.channel import SecureChannel
from pilot.plugins.secure.handshake import PORT
from pilot.plugins.secure.replay import ReplayCache
from pilot.plugins.secure.service import SecureService, resolved_keys

__all__ = [
    "ANY_NODE",
    "PORT",
    "Authentication",
    "KeyLookup",
    "ReplayCache",
    "SecureChannel",
    "SecureService",
    "resolved_keys",
]
