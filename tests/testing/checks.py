"""How tests run the checks of a conformance suite (testing)."""

from __future__ import annotations

from typing import Any

import pytest

__all__ = ["by_name", "failing"]


def by_name(checks: Any) -> Any:
    """One test per check, under its name."""
    return pytest.mark.parametrize("check", checks, ids=lambda check: check.__name__)


async def failing(checks: Any, subject: Any) -> list[str]:
    """Names of the checks that find fault with it."""
    found = []
    for check in checks:
        try:
            await check(subject)
        except AssertionError:
            found.append(check.__name__)
    return found
