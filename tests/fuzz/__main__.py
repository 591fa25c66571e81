"""`python -m tests.fuzz NAME [--runs N] [--seed N] [--input HEX] [--last FILE] [--engine atheris]`: a target or all."""

from __future__ import annotations

import argparse
import faulthandler
import importlib
import sys
import tempfile
import time
from pathlib import Path

from tests.fuzz.driver import Target, attempt, fuzz, starting_points


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("name", help="a target, or all")
    parser.add_argument("--runs", type=int, default=10_000, help="mutated inputs (default 10000)")
    parser.add_argument("--seed", type=int, default=0, help="decides every input (default 0)")
    parser.add_argument("--input", help="run this one input, in hex, instead")
    parser.add_argument("--last", type=Path, help="keep the input being tried in this file, for crashes and hangs")
    parser.add_argument("--engine", choices=["ours", "atheris"], default="ours", help="what makes the inputs")
    arguments = parser.parse_args()
    faulthandler.enable()
    targets = load(arguments.engine)
    if arguments.name not in (*targets, "all"):
        parser.error(f"there is no target {arguments.name!r}; there are {', '.join(targets)} and all")
    if arguments.engine == "atheris":
        if arguments.name == "all":
            parser.error("atheris ends the process with its run: give one target")
        with_atheris(targets[arguments.name], arguments.runs, arguments.seed)
    for target in targets.values():
        if arguments.name not in (target.name, "all"):
            continue
        if arguments.input is not None:
            attempt(target, bytes.fromhex(arguments.input))
            print(f"{target.name}: {target.purpose}: ok")
            continue
        start = time.perf_counter()
        tried = fuzz(target, arguments.runs, arguments.seed, arguments.last)
        rate = tried / (time.perf_counter() - start)
        print(f"{target.name}: {target.purpose}: ok, {tried} inputs, {rate:.0f} a second", flush=True)


def load(engine: str) -> dict[str, Target]:
    """The targets; for atheris with the Python parts of pilot instrumented for coverage, the compiled ones are not."""
    if engine == "atheris":
        try:
            import atheris  # type: ignore[import-not-found]
        except ImportError:
            sys.exit("atheris is not installed (pip install atheris); without --engine the own driver is used")
        with atheris.instrument_imports(include=["pilot"]):
            importlib.import_module("tests.fuzz.targets")
    found: dict[str, Target] = importlib.import_module("tests.fuzz.targets").TARGETS
    return found


def with_atheris(target: Target, runs: int, seed: int) -> None:
    """Hand the target to libFuzzer, which starts from the seeds and ends the process after its last input."""
    import atheris

    with tempfile.TemporaryDirectory(prefix="pilot-fuzz.") as scratch:
        for number, data in enumerate(starting_points(target)):
            Path(scratch, f"{number:04}").write_bytes(data)
        options = [f"-atheris_runs={runs}", f"-seed={seed + 1}", "-max_len=70000", "-timeout=60"]
        atheris.Setup([f"fuzz-{target.name}", *options, scratch], lambda data: attempt(target, data))
        atheris.Fuzz()


if __name__ == "__main__":
    main()
