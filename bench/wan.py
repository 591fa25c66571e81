"""One stream over a lossy link beside kernel TCP and the official daemon: `bench/wan.py [--json]`, as root (bench).

Two namespaces are joined by an emulated link (bench/emulator.py); for each loss rate every subject sends for some
seconds through a fresh stream, rounds in turn. A figure is what the receiving application had after that time, divided
by it, so a subject that stalls has a low figure and nothing waits for it. docs/PERFORMANCE.md says what the figures do
not show.

    python bench/wan.py --loss 0.01 --peers tcp-bbr --rounds 1 --json    # one row beside one peer, some 20 s
    python bench/wan.py --loss 0.05 --peers '' --rounds 1 --no-stock     # ours alone, some 10 s
    python bench/wan.py --stock --loss 0,0.01                            # only the rows with a stock daemon at one end
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.emulator import Link, emulated
from bench.harness import CORES, SubjectError, Worker, machine, median, progress, versions
from bench.places import Place

LOSSES: Final = (0.0, 0.01, 0.05, 0.1)
PEERS: Final = ("tcp-bbr", "tcp-cubic", "official")
STOCK: Final = ("ours-to-official", "official-to-ours")
MODULES: Final[dict[str, tuple[str, str, dict[str, Any]]]] = {
    "ours": ("ours", "ours", {}),
    "tcp-bbr": ("tcp", "tcp", {"congestion": "bbr"}),
    "tcp-cubic": ("tcp", "tcp", {"congestion": "cubic"}),
    "official": ("official", "official", {"port": 4000}),
    "ours-to-official": ("ours", "official", {"port": 4001}),
    "official-to-ours": ("official", "ours", {"port": 4002}),
}
"""Subject -> the modules of its client and its server in `bench/subjects`, and parameters for both."""
PACED: Final = frozenset({"official", *STOCK})
"""With a stock daemon at one end the receiving application confirms: two of them lose transfers without it."""

OPEN_TRIES: Final = 3
OPEN_SECONDS: Final = 40.0
MARGIN_SECONDS: Final = 25.0
"""A call may take so much longer than the transfer: to dial, and to find that a peer does not answer."""
DRAIN_SECONDS: Final = 0.3
"""Between transfers, for the queue of the link to empty."""
WARM_UP_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line asked for."""

    links: tuple[Link, ...]
    subjects: tuple[str, ...]
    rounds: int
    seconds: float
    window: int
    settings: dict[str, Any]


@dataclass
class Subject:
    """A pair of processes that runs, and its figures in MB/s, one for each round."""

    name: str
    client: Worker
    server: Worker
    samples: list[float] = field(default_factory=list)
    rounds: list[dict[str, Any]] = field(default_factory=list)

    async def stop(self) -> None:
        """Ends both processes, the client first."""
        await self.client.stop()
        await self.server.stop()

    async def transfer(self, seconds: float, window: int) -> tuple[float, dict[str, Any]]:
        """MB/s of one transfer, and what is known about it; raises SubjectError when an end does not answer."""
        paced = window if self.name in PACED else 0
        try:
            async with asyncio.timeout(seconds + MARGIN_SECONDS):
                await self.server.call("expect", kind="timed", size=paced)
                told = await self.client.call("send_for", seconds=seconds, window=paced)
                seen = await self.server.call("received", start=told["start"], seconds=seconds)
        except TimeoutError:
            raise SubjectError(f"{self.name}: no answer in time") from None
        return seen["bytes"] / seconds / 1e6, {**told, **seen}


async def start(name: str, place: Place, params: dict[str, Any]) -> Subject:
    """Both ends, in contact; raises SubjectError with nothing left running. On a lossy link there are some tries."""
    module = MODULES[name]
    for attempt in range(OPEN_TRIES):
        server = await Worker.start(module[1], "server", CORES[1], place.sides[1].prefix)
        client = await Worker.start(module[0], "client", CORES[0], place.sides[0].prefix)
        subject = Subject(name, client, server)
        given = {**params, **module[2]}
        try:
            async with asyncio.timeout(OPEN_SECONDS):
                found = await server.call("open", **{"host": place.sides[1].host, **given})
                await client.call("open", **{"host": place.sides[0].host, **given, **found})
        except (SubjectError, TimeoutError) as error:
            await subject.stop()
            if attempt == OPEN_TRIES - 1 or "no TCP congestion control" in str(error):
                raise SubjectError(str(error) or f"{name} was not in contact in time") from None
        except BaseException:
            await subject.stop()
            raise
        else:
            return subject
    raise AssertionError("not reached")


async def measure(link: Link, options: Options) -> list[dict[str, Any]]:
    """The rows of one link."""
    counters: list[dict[str, Any]] = []
    reasons: dict[str, str] = {}
    subjects: list[Subject] = []
    async with emulated(link, counters) as place, AsyncExitStack() as stack:
        rendezvous = await Worker.start("rendezvous", "server", -1, place.sides[1].prefix)
        stack.push_async_callback(rendezvous.stop)
        params = {**await rendezvous.call("open", host=place.rendezvous_host), "settings": options.settings}
        for name in options.subjects:
            progress(f"loss {link.loss:g}: starting {name}")
            try:
                subject = await start(name, place, params)
            except SubjectError as error:
                reasons[name] = str(error)
                progress(f"  {error}")
                continue
            stack.push_async_callback(subject.stop)
            subjects.append(subject)
        for number in range(options.rounds + 1):
            for subject in list(subjects):
                seconds = options.seconds if number else min(WARM_UP_SECONDS, options.seconds)
                try:
                    speed, known = await subject.transfer(seconds, options.window)
                except SubjectError as error:
                    # It could not even dial, or an end is gone: nothing arrived in this time, and that is its figure.
                    reasons[subject.name] = str(error)
                    progress(f"  {error}")
                    speed, known = 0.0, {"reason": str(error)}
                    await subject.stop()
                    subjects.remove(subject)
                    if replaced := await _again(subject, place, params):
                        stack.push_async_callback(replaced.stop)
                        subjects.append(replaced)
                        subject = replaced
                if number:
                    subject.samples.append(speed)
                    subject.rounds.append(known)
                progress(f"  {subject.name:17} {speed:8.2f} MB/s {'' if number else '(warm-up)'}")
                await asyncio.sleep(DRAIN_SECONDS)
    return rows(link, {each.name: each for each in subjects}, reasons, options, counters)


async def _again(subject: Subject, place: Place, params: dict[str, Any]) -> Subject | None:
    """The same subject in fresh processes, with its figures so far; None if it does not start any more."""
    try:
        fresh = await start(subject.name, place, params)
    except SubjectError:
        return None
    fresh.samples, fresh.rounds = subject.samples, subject.rounds
    return fresh


def rows(
    link: Link, subjects: dict[str, Subject], reasons: dict[str, str], options: Options, counters: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """A row for ours and one for each direction to a stock peer, beside two of those; as far as they were asked for."""
    values = {name: median(subject.samples) if subject.samples else None for name, subject in subjects.items()}
    kinds = dict.fromkeys(STOCK, ("official",)) | {"ours": PEERS}
    found = []
    for kind in ("ours", *STOCK):
        if kind not in options.subjects:
            continue
        ours = values.get(kind)
        peers = {peer: values.get(peer) for peer in kinds[kind] if peer in options.subjects}
        taking_part = (kind, *peers)
        found.append(
            {
                "kind": kind,
                "loss": link.loss,
                "rtt_ms": link.rtt_ms,
                "rate_mbit": link.rate_mbit,
                "ours": ours,
                "unit": "MB/s",
                "peers": peers,
                "ratio": {peer: ours / value if ours is not None and value else None for peer, value in peers.items()},
                "reasons": {name: reason for name, reason in reasons.items() if name in taking_part},
                "samples": {name: subjects[name].samples for name in taking_part if name in subjects},
                "rounds": {name: subjects[name].rounds for name in taking_part if name in subjects},
                "link": counters,
            }
        )
    return found


def table(found: list[dict[str, Any]]) -> str:
    """The rows for eyes."""
    lines = []
    for row in found:
        peers = ", ".join(
            f"{name} {_show(value)} ({_show(row['ratio'][name])}x)" for name, value in row["peers"].items()
        )
        lines.append(f"loss {row['loss']:<5g} {row['kind']:17} {_show(row['ours']):>7} MB/s   {peers}")
    return "\n".join(lines)


def _show(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--quick", action="store_true", help="tiny times: shows that it runs, measures nothing")
    parser.add_argument("--rounds", type=int, default=3, help="transfers of every subject after the warm-up (3)")
    parser.add_argument("--seconds", type=float, default=5.0, help="how long a transfer takes (5)")
    parser.add_argument("--loss", default=",".join(f"{loss:g}" for loss in LOSSES), help="fractions, with commas")
    parser.add_argument("--rtt-ms", type=float, default=20.0, help="round trip of the link (20)")
    parser.add_argument("--rate-mbit", type=float, default=1000.0, help="rate of the link (1000)")
    parser.add_argument("--queue-kb", type=float, default=2500.0, help="queue of the link (2500)")
    parser.add_argument("--peers", default=",".join(PEERS), help="only these, with commas; empty: ours alone")
    parser.add_argument("--stock", action="store_true", help="only ours to and from a stock daemon, beside two")
    parser.add_argument("--no-stock", action="store_true", help="leave the rows with a stock daemon at one end out")
    parser.add_argument("--window", type=int, default=2 << 20, help="bytes unconfirmed with a stock daemon at an end")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of our nodes")
    return parser.parse_args(words)


def options_of(given: argparse.Namespace) -> Options:
    """What the command line means; raises ValueError for what cannot be."""
    peers = tuple(filter(None, given.peers.split(",")))
    if unknown := set(peers) - set(PEERS):
        raise ValueError(f"unknown peers {', '.join(sorted(unknown))}: choose of {', '.join(PEERS)}")
    if given.stock:
        subjects: tuple[str, ...] = ("official", *STOCK)
    else:
        with_stock = not given.no_stock and "official" in peers
        subjects = ("ours", *(peer for peer in PEERS if peer in peers), *(STOCK if with_stock else ()))
    settings = {}
    for word in given.set:
        name, _, value = word.partition("=")
        settings[name] = json.loads(value) if value[:1].isdigit() or value in ("true", "false") else value
    losses = [float(loss) for loss in given.loss.split(",")]
    return Options(
        tuple(Link(loss, given.rtt_ms, given.rate_mbit, given.queue_kb) for loss in losses),
        subjects,
        1 if given.quick else given.rounds,
        0.5 if given.quick else given.seconds,
        given.window,
        settings,
    )


async def run(options: Options) -> list[dict[str, Any]]:
    """The rows of all links."""
    return [row for link in options.links for row in await measure(link, options)]


def main() -> None:
    """Measures and prints."""
    before = machine()
    try:
        options = options_of(arguments())
        found = asyncio.run(run(options))
    except (SubjectError, ValueError) as error:
        sys.exit(f"wan: {error}")
    given = arguments()
    result = {
        "name": "wan",
        "rows": found,
        "rounds": options.rounds,
        "seconds": options.seconds,
        "window": options.window,
        "versions": versions() | ({"official": "1.18.0"} if "official" in options.subjects else {}),
        "machine": before | {"load_after": machine()["load"]},
        "command": " ".join(["bench/wan.py", *sys.argv[1:]]),
    }
    print(json.dumps(result) if given.json else table(found))


if __name__ == "__main__":
    main()
