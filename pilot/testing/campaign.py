"""Thousands of random worlds, each decided by its seed: `python -m pilot.testing.campaign --runs 10000` (testing)."""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any, Final

from pilot.testing.scenario import play
from pilot.testing.world import World, simulate

__all__ = ["Run", "campaign", "main", "run_one"]

SILENCE_SECONDS: Final = 300.0
"""A process that has reported no run for so long (one takes a fraction of a second) hangs in compiled code."""
MAX_TEXT: Final = 4000


@dataclass(slots=True)
class Run:
    """What became of one seed."""

    seed: int
    story: str = ""
    error: str = ""
    digest: str = ""
    virtual_seconds: float = 0.0
    datagrams: int = 0
    stream_bytes: int = 0
    frames: int = 0
    tags: list[str] = field(default_factory=list)


def run_one(seed: int) -> Run:
    """Plays one seed; an invariant that does not hold is in `error`."""
    result = Run(seed)

    async def scenario(world: World) -> None:
        result.digest = world.network.digest()
        try:
            await play(world, result.tags)
        finally:
            result.virtual_seconds = world.loop.time()
            result.datagrams = world.network.sent
            result.frames = world.watch.frames
            result.digest = world.network.digest()
            result.stream_bytes = world.stream_bytes
            result.story = world.story

    try:
        simulate(seed, scenario)
    except Exception as error:
        result.error = f"{type(error).__name__}: {error}"[:MAX_TEXT]
    return result


def _work(seeds: range, reports: Connection) -> None:
    """A process of the campaign: tells each seed before it begins, so that one that dies or hangs has a name."""
    logging.getLogger("pilot").addHandler(logging.NullHandler())
    logging.getLogger("pilot").propagate = False
    for seed in seeds:
        reports.send(seed)
        reports.send(run_one(seed))
    reports.send(None)


@dataclass
class _Worker:
    process: Any
    reports: Connection
    seeds: range
    seed: int
    heard: float


def _start(seeds: range) -> _Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(seeds, theirs), daemon=True)
    process.start()
    theirs.close()
    return _Worker(process, ours, seeds, seeds[0], time.monotonic())


def campaign(first: int, runs: int, processes: int) -> Iterator[Run]:
    """The runs of seeds `first` and following, as they come; a process that dies or hangs is a failure of its seed."""
    if processes <= 1:
        yield from map(run_one, range(first, first + runs))
        return
    ranges = [range(first + i, first + runs, processes) for i in range(min(processes, runs))]
    workers = [_start(seeds) for seeds in ranges]
    try:
        while workers:
            ready = wait([worker.reports for worker in workers], timeout=10.0)
            for worker in list(workers):
                if worker.reports in ready:
                    yield from _hear(worker, workers)
                elif time.monotonic() - worker.heard > SILENCE_SECONDS:
                    yield _lost(worker, workers, "hangs")
    finally:
        for worker in workers:
            worker.process.kill()


def _hear(worker: _Worker, workers: list[_Worker]) -> Iterator[Run]:
    worker.heard = time.monotonic()
    try:
        report = worker.reports.recv()
    except EOFError:
        yield _lost(worker, workers, "died")
        return
    if report is None:
        workers.remove(worker)
        worker.process.join()
    elif isinstance(report, Run):
        yield report
    else:
        worker.seed = report


def _lost(worker: _Worker, workers: list[_Worker], how: str) -> Run:
    worker.process.kill()
    worker.process.join()
    workers.remove(worker)
    left = worker.seeds[worker.seeds.index(worker.seed) + 1 :]
    if left:
        workers.append(_start(left))
    return Run(worker.seed, error=f"the process {how} (exit code {worker.process.exitcode})")


def summary(results: list[Run], seconds: float) -> dict[str, Any]:
    """The figures of a campaign; `digest` is one hash over all runs in the order of their seeds."""
    results = sorted(results, key=lambda run: run.seed)
    total = hashlib.blake2b("".join(run.digest for run in results).encode(), digest_size=16)
    tags: dict[str, int] = {}
    for run in results:
        for tag in run.tags:
            tags[tag] = tags.get(tag, 0) + 1
    return {
        "runs": len(results),
        "failures": [asdict(run) for run in results if run.error],
        "digest": total.hexdigest(),
        "seconds": round(seconds, 1),
        "virtual_hours": round(sum(run.virtual_seconds for run in results) / 3600, 1),
        "datagrams": sum(run.datagrams for run in results),
        "frames": sum(run.frames for run in results),
        "stream_bytes": sum(run.stream_bytes for run in results),
        "conditions": dict(sorted(tags.items())),
    }


def main(arguments: list[str] | None = None, write: Callable[[str], object] = sys.stdout.write) -> int:
    """Runs a campaign; the exit code is 1 when any run failed."""
    parser = argparse.ArgumentParser(prog="python -m pilot.testing.campaign", description=__doc__)
    parser.add_argument("--runs", type=int, default=1000, help="how many worlds (1000)")
    parser.add_argument("--seed", type=int, default=0, help="the first seed (0); the others follow it")
    parser.add_argument("--processes", type=int, default=min(2, os.cpu_count() or 1), help="processes (2)")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args(arguments)
    started = time.monotonic()
    results = []
    for run in campaign(options.seed, options.runs, options.processes):
        results.append(run)
        if run.error:
            again = f"python -m pilot.testing.campaign --seed {run.seed} --runs 1"
            sys.stderr.write(f"seed {run.seed} failed: {run.error}\n  {run.story}\n  again: {again}\n")
    figures = summary(results, time.monotonic() - started)
    if options.json:
        write(json.dumps(figures, indent=2) + "\n")
    else:
        failed = len(figures.pop("failures"))
        write(f"{figures.pop('runs')} runs, {failed} failed\n")
        for name, value in figures.items():
            write(f"  {name}: {value}\n")
        if options.runs == 1:
            write(f"  {results[0].story}\n")
    return 1 if any(run.error for run in results) else 0


if __name__ == "__main__":
    sys.exit(main())
