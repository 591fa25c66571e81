"""`expecting`: `pytest.raises` for checks that run without pytest (testing)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator

__all__ = ["eventually", "expecting"]

POLL_SECONDS = 0.01


@contextlib.contextmanager
def expecting(*kinds: type[BaseException], what: str) -> Iterator[None]:
    """Fails unless the body raises one of `kinds`; `what` says what was done."""
    wanted = " or ".join(kind.__name__ for kind in kinds)
    try:
        yield
    except kinds:
        return
    except Exception as error:
        raise AssertionError(f"{what} raised {error!r} instead of {wanted}") from error
    raise AssertionError(f"{what} raised nothing instead of {wanted}")


async def eventually(condition: Callable[[], bool], what: str, seconds: float = 10.0) -> None:
    """Returns when `condition()` holds; fails when it does not within `seconds`."""
    try:
        async with asyncio.timeout(seconds):
            while not condition():  # noqa: ASYNC110 - there is nothing to wait for
                await asyncio.sleep(POLL_SECONDS)
    except TimeoutError:
        raise AssertionError(f"{what}: not within {seconds:g} s") from None
