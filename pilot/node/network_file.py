"""`NetworkFile`: `networks.json`, what is known of the own networks between two runs of a node (L9).

Source: services.md 9.8 (the official daemon's file, keys and all).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from pilot._fast.errors import InvalidValueError
from pilot.protocol.names import tags_untrusted
from pilot.protocol.registry import BACKBONE, MAX_NETWORK_ID

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pilot.node.state import StateDirectory

__all__ = ["Network", "NetworkFile"]

FILE_NAME: Final = "networks.json"

_log = logging.getLogger("pilot.node")


@dataclass(frozen=True, slots=True)
class Network:
    """What is known of a network this node is in."""

    ports: tuple[int, ...] | None = None
    """The ports members may use, empty for all; None while the registry has not told."""
    tags: tuple[str, ...] = ()
    """This node's tags there."""


class NetworkFile:
    """Reads and writes it; with a state directory that keeps nothing, neither."""

    def __init__(self, state: StateDirectory, wall: Callable[[], float]) -> None:
        self._state = state
        self._wall = wall
        self._exists = False

    def load(self) -> dict[int, Network]:
        """What was saved, as far as it can be used; the registry's answer soon takes its place.

        Raises:
            OSError: it exists and cannot be read.
        """
        try:
            saved = self._state.read_json(FILE_NAME)
        except InvalidValueError as error:
            _log.warning("%s (or leave it: it is made anew from the registry's answers)", error)
            saved = ""
        self._exists = saved is not None
        if not isinstance(saved, dict):
            return {}
        ids, ports, tags = (saved.get(name) for name in ("networks", "policies", "member_tags"))
        return {
            network_id: Network(_ports(ports, network_id), _tags(tags, network_id))
            for network_id in (ids if isinstance(ids, list) else ())
            if _is_whole(network_id, BACKBONE + 1, MAX_NETWORK_ID)
        }

    def save(self, networks: Mapping[int, Network]) -> None:
        """Replaces what was saved. A node that is and was in no network gets no file.

        Raises:
            OSError: it cannot be written; what was saved before is still there.
        """
        if not networks and not self._exists:
            return
        self._exists = True
        known = {str(network_id): network for network_id, network in sorted(networks.items())}
        ports: dict[str, Any] = {str(BACKBONE): None}
        ports |= {name: list(network.ports) or None for name, network in known.items() if network.ports is not None}
        self._state.write_json(
            FILE_NAME,
            {
                "networks": [BACKBONE, *sorted(networks)],
                "policies": ports,
                "member_tags": {name: list(network.tags) or None for name, network in known.items()},
                "synced_at": datetime.fromtimestamp(int(self._wall()), UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            },
        )


def _is_whole(value: object, lowest: int, highest: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and lowest <= value <= highest


def _ports(saved: Any, network_id: int) -> tuple[int, ...] | None:
    """Null is no restriction; a list that cannot be used is as good as none, which permits nothing."""
    if not isinstance(saved, dict) or str(network_id) not in saved:
        return None
    ports = saved[str(network_id)]
    if ports is None:
        return ()
    if not isinstance(ports, list) or not all(_is_whole(port, 1, 0xFFFF) for port in ports):
        return None
    return tuple(sorted(set(ports)))


def _tags(saved: Any, network_id: int) -> tuple[str, ...]:
    try:
        return tags_untrusted(saved.get(str(network_id)) if isinstance(saved, dict) else None)
    except InvalidValueError:
        return ()
