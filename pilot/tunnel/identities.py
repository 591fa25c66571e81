"""Registered Ed25519 keys, looked up beside the receive path, and the PILAs that wait for them (tunnel, L4).

The registry is the root of trust for identities, not first use (wire.md 6.5). A cached key is believed until the
registry says otherwise: a PILA with another key makes us ask once more, and only the answer replaces it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from pilot.tunnel.frames import Pila, signature_holds_untrusted
from pilot.tunnel.limits import Spacing
from pilot.tunnel.state import Arrival, Core

Verified = Callable[[Pila, Arrival, float], None]


class _Waiting(NamedTuple):
    pila: Pila
    arrival: Arrival
    until: float


class Identities:
    """Cache of registered keys and waiting room for PILAs whose key is still being looked up."""

    def __init__(self, core: Core, verified: Verified) -> None:
        self._core = core
        self._verified = verified
        settings = core.settings
        self._keys: dict[int, bytes] = {}
        self._looking: dict[int, float] = {}
        self._waiting: dict[int, list[_Waiting]] = {}
        self._waiting_count = 0
        self._recent = Spacing(settings.lookup_failed_seconds, cap=settings.identity_cap)

    @property
    def waiting(self) -> int:
        """PILAs that wait for the registry."""
        return self._waiting_count

    def submit_untrusted(self, pila: Pila, arrival: Arrival, now: float) -> None:
        """Have `verified` called for the PILA: now, when the registry has answered, or never."""
        expected = self._keys.get(pila.node)
        if expected == pila.ed25519:
            self._touch(pila.node, expected)
            self._verify(pila, arrival, now)
        elif not self._recent.held(pila.node, now) and self._wait(pila, arrival, now):
            # Without a key, or with another one: the registry decides. At most one question per node and a few seconds.
            self._look_up(pila.node, now)
        else:
            self._core.count("pila_unknown_identity")

    def prefetch(self, node: int, now: float) -> None:
        """Look the key of `node` up before its PILA comes."""
        if node not in self._keys and not self._recent.held(node, now):
            self._look_up(node, now)

    def found(self, node: int, key: bytes | None, failed: bool, now: float) -> None:
        """The registry's answer. Without a key the waiting PILAs are dropped; an error leaves a cached key alone."""
        self._looking.pop(node, None)
        waiting = self._release(node)
        self._recent.lift(node)
        self._recent.allow(node, now)
        if key is None or failed:
            if not failed:
                self._keys.pop(node, None)
            return
        self._touch(node, key)
        for pila, arrival, until in waiting:
            if now < until and pila.ed25519 == key:
                self._verify(pila, arrival, now)
            else:
                self._core.count("pila_wrong_identity")

    def forget(self, node: int) -> None:
        """Forget the cached key; PILAs that wait keep waiting."""
        self._keys.pop(node, None)
        self._recent.lift(node)

    def known(self, node: int) -> bool:
        """Whether the registered key of `node` is cached."""
        return node in self._keys

    def _verify(self, pila: Pila, arrival: Arrival, now: float) -> None:
        if signature_holds_untrusted(pila):
            self._verified(pila, arrival, now)
        else:
            self._core.count("pila_bad_signature")

    def _touch(self, node: int, key: bytes) -> None:
        self._keys.pop(node, None)
        self._keys[node] = key
        if len(self._keys) > self._core.settings.identity_cap:
            del self._keys[next(iter(self._keys))]

    def _wait(self, pila: Pila, arrival: Arrival, now: float) -> bool:
        settings = self._core.settings
        if self._waiting_count >= settings.waiting_cap:
            self._expire(now)
        waiting = self._waiting.get(pila.node, [])
        if self._waiting_count >= settings.waiting_cap or len(waiting) >= settings.waiting_per_node:
            return False
        self._waiting.setdefault(pila.node, waiting).append(_Waiting(pila, arrival, now + settings.lookup_seconds))
        self._waiting_count += 1
        return True

    def _release(self, node: int) -> list[_Waiting]:
        waiting = self._waiting.pop(node, [])
        self._waiting_count -= len(waiting)
        return waiting

    def _expire(self, now: float) -> None:
        for node in [n for n, waiting in self._waiting.items() if waiting[-1].until <= now]:
            self._release(node)

    def _look_up(self, node: int, now: float) -> None:
        settings = self._core.settings
        if self._looking.get(node, 0.0) > now:
            return
        if len(self._looking) >= settings.lookup_cap:
            self._looking = {n: until for n, until in self._looking.items() if until > now}
            if len(self._looking) >= settings.lookup_cap:
                return
        self._looking[node] = now + settings.lookup_seconds
        self._core.hooks.lookup_key(node)
