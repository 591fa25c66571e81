"""Whole nodes on plain asyncio and on uvloop, and the counters put around them."""

from __future__ import annotations

from tests.node.conftest import pytest_asyncio_loop_factories, rendezvous, start_node

__all__ = ["pytest_asyncio_loop_factories", "rendezvous", "start_node"]
