"""Generated expressions: what the official tool says of each, ours says too, word for word but for what is listed.

`policy test` takes 5 ms a document; a document of many rules would stop at the first that is refused.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from tests.interop.netns import Namespace
from tests.interop.official import Programs
from tests.plugins.policy.expression.common import outcome
from tests.plugins.policy.expression.generator import Generator
from tests.plugins.policy.expression.typed import TypedGenerator

GENERATED = 1500
SEED = 20_260
VALUES = {
    "port": 2,
    "peer_id": 9,
    "members": 3,
    "network_id": 1,
    "peer_age_s": 10,
    "peer_tags": ["x", "y"],
    "local_tags": [],
}
FEW_VALUES = {"peer_id": 9, "peer_tags": ["x", "y"]}
"""Most of what rules may name is absent: what is evaluated at all then shows."""
# A process per document, two at a time.
LOOP = """
    judge() { for file in "$@"; do "$ctl" --json policy test --file "$file" --event "$event" > "$file.out" 2>&1; done; }
    judge *[02468].json & judge *[13579].json & wait
"""


def official(
    texts: list[str], values: dict[str, Any], programs: Programs, namespace: Namespace, directory: Path
) -> list[bool | str]:
    """The outcomes as `common.outcome` gives ours."""
    for number, text in enumerate(texts):
        actions = [{"type": "log", "params": {"message": "m"}}]
        rules = [{"name": "e", "on": "connect", "match": text, "actions": actions}]
        (directory / f"{number}.json").write_text(json.dumps({"version": 1, "rules": rules}))
    environment = (f"HOME={directory}", f"ctl={programs.ctl}", f"event={json.dumps({'type': 'connect', **values})}")
    namespace.run("env", *environment, "sh", "-c", f"cd {directory}\n{LOOP}")
    return [understood(json.loads((directory / f"{number}.json.out").read_bytes())) for number in range(len(texts))]


def understood(answer: dict[str, Any]) -> bool | str:
    answer = answer.get("data", answer)
    if "directives" in answer:
        return any(each["rule"] == "e" for each in answer["directives"])
    message = str(answer["message"])
    for prefix, kind in (('policy: policy: rule "e" match: ', "C"), ('evaluation: policy: rule "e" eval: ', "R")):
        if message.startswith(prefix):
            # A panic of the compiler comes with its stack.
            return f"{kind}: {message.removeprefix(prefix)}".split("\ngoroutine ")[0]
    return message


def agree(ours: bool | str, theirs: bool | str) -> bool:
    """The same, apart from what only the tool does (tags as an untyped list) and from named small print."""
    if ours == theirs:
        return True
    if not isinstance(theirs, str):
        return False
    if "[]interface {}, not []string" in theirs:
        return True
    if not isinstance(ours, str):
        return "uint8" in theirs
    same_kind = ours[:2] == theirs[:2]
    untyped = ours.replace("[]string", "[]interface {}") == theirs.replace("[]string", "[]interface {}")
    return same_kind and (untyped or "%!s(" in theirs or "uint8" in theirs)


@pytest.mark.parametrize(("values", "count"), [(VALUES, GENERATED), (FEW_VALUES, GENERATED // 3)], ids=["all", "few"])
def test_generated_expressions(
    values: dict[str, Any], count: int, programs: Programs, namespace: Namespace, tmp_path: Path
) -> None:
    rng = random.Random(SEED + count)
    generators = (Generator(rng), TypedGenerator(rng))
    made = (generators[number % 2].expression() for number in range(2 * count))
    texts = [text for text in made if text.strip()][:count]
    theirs = official(texts, values, programs, namespace, tmp_path)
    mine = [outcome(text, values) for text in texts]
    differences = {text: (a, b) for text, a, b in zip(texts, mine, theirs, strict=True) if not agree(a, b)}
    refused_alike = [str(a)[:2] == str(b)[:2] for a, b in zip(mine, theirs, strict=True)]
    assert sum(isinstance(each, bool) for each in theirs) > count // 5
    # Whether an expression is accepted, and its value, must always agree; the words of a rare message may not.
    wrong = {text: found for text, found in differences.items() if str(found[0])[:2] != str(found[1])[:2]}
    assert not wrong
    assert len(differences) <= count // 100, differences
    assert sum(refused_alike) >= count * 0.97
