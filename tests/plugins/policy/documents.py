"""Documents for tests of policies: rules and actions in few words (test support)."""

from __future__ import annotations

import json
from typing import Any

from pilot.plugins.policy import CompiledPolicy, load_policy_untrusted

Action = str | tuple[str, dict[str, Any]]


def rule(name: str, on: str, match: str, *actions: Action) -> dict[str, Any]:
    """A rule; an action is its type, or its type and parameters."""
    shown = [{"type": each} if isinstance(each, str) else {"type": each[0], "params": each[1]} for each in actions]
    return {"name": name, "on": on, "match": match, "actions": shown}


def document(*rules: dict[str, Any], **more: Any) -> bytes:
    """A document of these rules, as JSON."""
    return json.dumps({"version": 1, **more, "rules": list(rules)}).encode()


def compiled(*rules: dict[str, Any], **more: Any) -> CompiledPolicy:
    """The same, compiled."""
    return load_policy_untrusted(document(*rules, **more), "parse", "compile")
