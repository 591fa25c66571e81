"""Whole nodes for the tests of this room: the fixtures of tests/node (test support)."""

from tests.node.conftest import pair, pytest_asyncio_loop_factories, rendezvous, start_node

__all__ = ["pair", "pytest_asyncio_loop_factories", "rendezvous", "start_node"]
