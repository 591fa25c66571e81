"""`EventBus` and `Subscription`: what layers and plugins tell each other without waiting, as plugins see it (L10)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, Self, runtime_checkable

if TYPE_CHECKING:
    from types import TracebackType

    from pilot._fast.eventbus import Event

__all__ = ["EventBus", "Subscription"]


@runtime_checkable
class Subscription(Protocol):
    """The events one subscriber waits for: a bounded ring that drops, and counts, what comes while it is full.

    `with bus.subscribe(...) as events` closes it at the end; `async for event in events` ends when it is closed.
    Source: seed `EventBus.Subscribe` (the channel and its unsubscribe function in one object).
    """

    @property
    def pattern(self) -> str:
        """What was subscribed to."""
        ...

    @property
    def dropped(self) -> int:
        """Events this subscriber has lost because its ring was full."""
        ...

    @property
    def closed(self) -> bool:
        """Whether it gets no more events; those that wait can still be taken."""
        ...

    def get_nowait(self) -> Event | None:
        """The oldest waiting event, None when there is none."""
        ...

    def close(self) -> None:
        """Ends the subscription and a waiting `async for`. May be repeated."""
        ...

    def __aiter__(self) -> Self:
        """Events in the order of publication, until the subscription is closed and empty."""
        ...

    async def __anext__(self) -> Event:
        """The next event. Cancelling it loses none.

        Raises:
            BusyError: another task waits for events of this subscription.
        """
        ...

    def __enter__(self) -> Self:
        """The subscription itself."""
        ...

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        """Closes it."""
        ...


@runtime_checkable
class EventBus(Protocol):
    """Publish and subscribe within one node. Nothing here waits. Source: seed `coreapi.EventBus`, services.md 10.3."""

    def publish(self, topic: str, payload: Mapping[str, Any]) -> None:
        """Puts an event into the ring of every subscriber whose pattern matches `topic`.

        Never blocks and never fails for what subscribers do: one whose ring is full loses the event, and its counter
        says so. After the bus is closed it does nothing. `payload` is read-only from then on.
        """
        ...

    def subscribe(self, pattern: str = "", *, capacity: int = 1024) -> Subscription:
        """Collects matching events from now on, `capacity` of them at most.

        `*` in `pattern` is any run of characters, dots included; `""` is every topic.

        Raises:
            InvalidValueError: the pattern or the capacity is out of bounds.
            ClosedError: the node has stopped.
        """
        ...
