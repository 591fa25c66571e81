"""Numbers of the plugins that come from services.md, word for word: to change one is to deviate from the protocol.

What they do is tested where they are used, mostly by their names; that they are these numbers is tested here.
"""

from __future__ import annotations

import importlib

import pytest

DAY, MIB = 86400, 1 << 20

VALUES = {
    "handshake": {  # section 1
        "checks": {"MAX_AGE_SECONDS": 300, "MAX_AHEAD_SECONDS": 30},
        "life": {"READ_SECONDS": 10},
        "mailbox": {
            "IDLE_SECONDS": 60,
            "FAST_SECONDS": 2,
            "FAST_WINDOW_SECONDS": 120,
            "MAX_AWAITED": 64,
            "NOTICE_BURST": 3,
            "NOTICE_SECONDS": 5,
        },
        "message": {"MAX_MESSAGE_BYTES": 1152, "MAX_RECEIVED_BYTES": 65536, "MAX_TEXT_BYTES": 1024},
        "records": {
            "MAX_PENDING": 256,
            "MAX_PENDING_PER_SOURCE": 16,
            "MAX_OUTGOING": 4096,
            "REQUEST_SECONDS": 30 * DAY,
            "COOLDOWN_SECONDS": 300,
        },
        "replay": {"MAX_ENTRIES": 8192, "MAX_ENTRIES_PER_PEER": 256, "EXPIRE_SECONDS": 600},
    },
    "dataexchange": {  # section 2
        "client": {"STEP_SECONDS": 60},
        "connection": {"IDLE_SECONDS": 120},
        "deliveries": {"DUPLICATE_SECONDS": 600, "MAX_DUPLICATES": 8192},
        "filestream": {"TRANSFER_ID_BYTES": 16},
        "frames": {"MAX_FRAME_BYTES": 64 * MIB, "MAX_FILE_NAME_BYTES": 255, "MAX_TAGS_BYTES": 1024},
        "incoming": {"EARLY_BYTES": 768 << 10},
        "outgoing": {"FIRST_CHUNK_BYTES": 48 << 10, "FIRST_WINDOW_CHUNKS": 16, "OFFER_SECONDS": 5},
        "store": {"EVICTED_TO": 0.9},
    },
    "eventstream": {  # section 3
        "broker": {"RATE": 100, "BURST": 200, "STRIKES": 3},
        "frames": {"MAX_TOPIC_BYTES": 1024, "MAX_PAYLOAD_BYTES": 16 * MIB, "RESERVED_TOPIC": "\0pilot.governed.v1"},
    },
    "secure": {  # section 5
        "authentication": {"CONTEXT": b"pilot-secure-auth:", "FRAME_BYTES": 92, "MAX_CLOCK_DIFFERENCE": 5},
        "channel": {"HANDSHAKE_SECONDS": 10},
        "handshake": {"KEY_INFO": b"pilot-secure-v1", "HELLO_BYTES": 32},
        "records": {"MAX_RECORD_BYTES": 16 * MIB},
        "replay": {"MAX_NONCES": 100_000, "NONCE_SECONDS": 3600},
    },
    "nameserver": {  # section 6.1
        "client": {"ANSWER_SECONDS": 10},
        "lines": {"MAX_MESSAGE_BYTES": 65535, "MAX_NAME_BYTES": 253},
        "records": {"LIFE_SECONDS": 300},
        "service": {"SWEEP_SECONDS": 60},
    },
    "trustedagents": {  # section 7
        "document": {"MAX_DOCUMENT_BYTES": MIB},
        "service": {"FIRST_SECONDS": 30, "REFRESH_SECONDS": 3600, "REFRESH_JITTER": 0.1},
        "sources": {"FETCH_SECONDS": 30, "USER_AGENT": "pilot-daemon/trustedagents"},
    },
    "webhook": {  # section 8.1
        "delivery": {"QUEUE_EVENTS": 1024, "PAUSES": (1, 2), "BREAKER_FAILURES": 5, "BREAKER_SECONDS": 30},
        "poster": {"TRY_SECONDS": 5},
    },
    "policy": {  # section 9
        "actions": {"COOLDOWN_SECONDS": 60, "JUSTIFICATION": "trust-decay policy"},
        "expression.limits": {"SECONDS_PER_EVALUATION": 0.1},
        "managed": {"SHORTEST_CYCLE_SECONDS": 60},
        "watch": {"RECONCILE_SECONDS": 5, "FIRST_BACKOFF_SECONDS": 10, "LONGEST_BACKOFF_SECONDS": 300},
    },
}
PORTS_AND_ORDERS = {  # sections 0.1 and 0.2
    "trustedagents": ("TrustedAgentsService", None, 50),
    "handshake": ("HandshakeService", 444, 60),
    "webhook": ("WebhookService", None, 90),
    "dataexchange": ("DataExchangeService", 1001, 110),
    "eventstream": ("EventStreamService", 1002, 120),
    "policy": ("PolicyService", None, 140),
    "nameserver": ("NameServerService", 53, 150),
    "secure": ("SecureService", 443, None),
}


@pytest.mark.parametrize("plugin", VALUES)
def test_values_of_the_reference(plugin: str) -> None:
    for module, values in VALUES[plugin].items():
        room = importlib.import_module(f"pilot.plugins.{plugin}.{module}")
        assert {name: getattr(room, name) for name in values} == values, module


@pytest.mark.parametrize("plugin", PORTS_AND_ORDERS)
def test_names_ports_and_orders(plugin: str) -> None:
    room = importlib.import_module(f"pilot.plugins.{plugin}")
    service, port, order = PORTS_AND_ORDERS[plugin]
    kind = getattr(room, service)
    assert kind.name == plugin
    assert order in (kind.order, None)
    known = [getattr(room, name) for name in ("PORT", "HANDSHAKE_PORT", "EVENT_STREAM_PORT") if hasattr(room, name)]
    assert known in ([port], [])


def test_every_plugin_has_its_values_here() -> None:
    assert VALUES.keys() == PORTS_AND_ORDERS.keys()
