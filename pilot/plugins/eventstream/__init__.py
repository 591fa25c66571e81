"""Publish and subscribe between nodes, port 1002: a broker, and a client for any `Streams` (plugin eventstream, L11).

docs/plugins/eventstream.md tells what it does. Source: services.md section 3.
"""

from pilot.plugins.eventstream.client import EVENT_STREAM_PORT, EventStreamClient, EventSubscription
from pilot.plugins.eventstream.frames import EVERYTHING, StreamEvent
from pilot.plugins.eventstream.service import EventStreamService, TopicPolicy

__all__ = [
    "EVENT_STREAM_PORT",
    "EVERYTHING",
    "EventStreamClient",
    "EventStreamService",
    "EventSubscription",
    "StreamEvent",
    "TopicPolicy",
]
