"""The contract between a node and its plugins: protocols, records, life cycle, recovery (L10).

Plugins import this package and nothing else of `pilot`; the node implements it. Names follow the Go package `coreapi`
of the official daemon (docs/COREAPI.md maps each); methods and fields are `snake_case`, errors are exceptions, and a
context is the cancellation of the awaiting task. Nothing here does I/O but `files`, for the small files of plugins and
nodes. Everything belongs to the loop and thread of the node that handed it out.
"""

from pilot._fast.addr import Addr
from pilot._fast.errors import (
    BusyError,
    ClosedError,
    InvalidValueError,
    PathError,
    PeerNotFoundError,
    PilotError,
    RefusedError,
    RegistryError,
    RegistryStartedError,
    ResetError,
    ServiceNotReadyError,
)
from pilot._fast.eventbus import Event
from pilot.coreapi.events import EventBus, Subscription
from pilot.coreapi.identity import Identity
from pilot.coreapi.policy import PolicyActivity, PolicyEventType, PolicyManager, PolicyProvider, PolicyRunner
from pilot.coreapi.recovery import (
    is_plugin_healthy,
    plugin_panic_count,
    plugin_recovered_panic_count,
    recover_plugin,
    reset_plugin_health,
    reset_plugin_recovered_panic_count_for_test,
)
from pilot.coreapi.registry import ServiceRegistry
from pilot.coreapi.resolver import PeerInfo, PeerResolver
from pilot.coreapi.service import Deps, Service
from pilot.coreapi.streams import Listener, Stream, Streams
from pilot.coreapi.supervisor import RestartPolicy, Supervisor
from pilot.coreapi.trust import TrustChecker, TrustMatch

__all__ = [
    "Addr",
    "BusyError",
    "ClosedError",
    "Deps",
    "Event",
    "EventBus",
    "Identity",
    "InvalidValueError",
    "Listener",
    "PathError",
    "PeerInfo",
    "PeerNotFoundError",
    "PeerResolver",
    "PilotError",
    "PolicyActivity",
    "PolicyEventType",
    "PolicyManager",
    "PolicyProvider",
    "PolicyRunner",
    "RefusedError",
    "RegistryError",
    "RegistryStartedError",
    "ResetError",
    "RestartPolicy",
    "Service",
    "ServiceNotReadyError",
    "ServiceRegistry",
    "Stream",
    "Streams",
    "Subscription",
    "Supervisor",
    "TrustChecker",
    "TrustMatch",
    "is_plugin_healthy",
    "plugin_panic_count",
    "plugin_recovered_panic_count",
    "recover_plugin",
    "reset_plugin_health",
    "reset_plugin_recovered_panic_count_for_test",
]
