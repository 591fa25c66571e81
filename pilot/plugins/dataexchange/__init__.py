"""Messages and files between nodes, port 1001: the service, and a client for any `Streams` (plugin dataexchange, L11).

docs/plugins/dataexchange.md tells what it does. Source: services.md section 2.
"""

from pilot.plugins.dataexchange.client import DataExchangeClient
from pilot.plugins.dataexchange.feed import Feed
from pilot.plugins.dataexchange.frames import Answer, FrameType, Tags
from pilot.plugins.dataexchange.model import (
    PORT,
    FileProgress,
    Limits,
    Message,
    Progress,
    ReceivedFile,
    SentFile,
)
from pilot.plugins.dataexchange.service import DataExchangeService

__all__ = [
    "PORT",
    "Answer",
    "DataExchangeClient",
    "DataExchangeService",
    "Feed",
    "FileProgress",
    "FrameType",
    "Limits",
    "Message",
    "Progress",
    "ReceivedFile",
    "SentFile",
    "Tags",
]
