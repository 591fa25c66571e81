"""Data exchange, event stream, name server, secure channel and webhook keep what is asked of every service."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pilot.coreapi import Service
from pilot.plugins.dataexchange import DataExchangeService
from pilot.plugins.eventstream import EventStreamService
from pilot.plugins.nameserver import NameServerService
from pilot.plugins.secure import SecureChannel, SecureService
from pilot.plugins.webhook import WebhookService
from pilot.testing.coreapi import SERVICE_CHECKS
from tests.plugins.fakes import Network
from tests.testing.checks import by_name


async def handle(channel: SecureChannel) -> None:
    """Ends at once."""


SERVICES: dict[str, Callable[[Path], Service]] = {
    "dataexchange": lambda path: DataExchangeService(inbox=path / "inbox", received=path / "received"),
    "dataexchange without stores": lambda path: DataExchangeService(),
    "eventstream": lambda path: EventStreamService(),
    "nameserver": lambda path: NameServerService(state_dir=path),
    "secure": lambda path: SecureService(handle),
    "webhook": lambda path: WebhookService(url="http://127.0.0.1:9/", state_dir=path),
    "idle webhook": lambda path: WebhookService(),
}


@by_name(SERVICE_CHECKS)
@pytest.mark.parametrize("name", SERVICES)
async def test_services(name: str, check: Any, tmp_path: Path) -> None:
    await check(lambda: SERVICES[name](tmp_path), Network().deps(1))
