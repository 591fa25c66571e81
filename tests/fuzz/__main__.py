"""`python -m tests.fuzz NAME [--runs N] [--seed N] [--input HEX] [--last FILE]`: one target for as long as wanted."""

from __future__ import annotations

import argparse
import faulthandler
from pathlib import Path

from tests.fuzz.driver import attempt, fuzz
from tests.fuzz.targets import TARGETS


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("name", choices=[*TARGETS, "all"])
    parser.add_argument("--runs", type=int, default=10_000, help="mutated inputs (default 10000)")
    parser.add_argument("--seed", type=int, default=0, help="decides every input (default 0)")
    parser.add_argument("--input", help="run this one input, in hex, instead")
    parser.add_argument("--last", type=Path, help="keep the input being tried in this file, for crashes and hangs")
    arguments = parser.parse_args()
    faulthandler.enable()
    for target in TARGETS.values():
        if arguments.name not in (target.name, "all"):
            continue
        if arguments.input is not None:
            attempt(target, bytes.fromhex(arguments.input))
        else:
            fuzz(target, arguments.runs, arguments.seed, arguments.last)
        print(f"{target.name}: {target.purpose}: ok")


if __name__ == "__main__":
    main()
