"""`Facilities`: what a node offers to whoever composes plugins with it, beyond `Deps` (L9).

A plugin never sees this type: it defines Protocols of its own for what it takes, and these objects fit them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from random import Random

    from pilot.coreapi import Service
    from pilot.node.directory import Directory
    from pilot.node.networks import Memberships

__all__ = ["Facilities"]


@dataclass(frozen=True, slots=True)
class Facilities:
    """Handed to every factory of a service before anything starts. Belongs to one run of one node."""

    state_dir: Path | None
    """The node's private directory, for the plugins' files; None: nothing is kept."""
    registry: Directory
    """The registry's calls: mailbox, trust reports, records of nodes."""
    networks: Memberships
    """The networks the node is in: members, tags, policies."""
    service: Callable[[str], Service]
    """Another service of the node by name, once it has started; raises what `ServiceRegistry.service` raises."""
    add_trust_source: Callable[[Callable[[int], bool]], None]
    """Has the trust gate ask one more function, at once and often, whether a node id is trusted."""
    on_mailbox: Callable[[Callable[[], None]], None]
    """Has a function called when the beacon says that the registry's mailbox holds something for this node."""
    drop_tunnel: Callable[[int], None]
    """Ends the encrypted session with a node, its streams, and what the trust gate knows of it: it is a stranger until
    somebody vouches for it anew. The next packet in either direction makes a new session."""
    add_counter: Callable[[str, Callable[[], int]], None]
    """Adds a number to `node.stats().counters`, read when that is called."""
    clock: Callable[[], float]
    """Monotonic seconds."""
    wall: Callable[[], float]
    """Unix seconds."""
    random: Random
