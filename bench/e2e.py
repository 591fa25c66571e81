"""End-to-end benchmarks: `python bench/e2e.py NAME [--json]`, two processes and real sockets for each subject (bench).

Every name measures ours and its peers in the same run: each end pinned to a core of its own, rounds in turn (ours,
peer, ours, peer ...), warm-up left out for all, medians. `ratio` is ours / peer, so smaller is better for times. A peer
that cannot run here is null, with the reason beside it. docs/PERFORMANCE.md says what the figures do not show.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.harness import (
    CORES,
    Pair,
    SubjectError,
    Worker,
    busy_seconds,
    machine,
    median,
    percentile,
    progress,
    versions,
)
from bench.places import Place, lone_namespace, loopback, veth
from bench.subjects import BLOCK_BYTES, CREDIT_MESSAGES
from pilot.node.config import NodeConfig

MODULES: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "ours": ("ours", {}),
    "ours-no-busy-poll": ("ours", {"settings": {"busy_poll_us": 0}}),
    "ours-callback": ("ours", {"callbacks": True}),
    "c-limit": ("climit", {}),
    "uvloop-tls": ("tcp", {"tls": True}),
    "uvloop-tcp": ("tcp", {}),
    "uvloop-udp": ("udp", {}),
    "zmq-curve": ("zmq_curve", {}),
    "aioquic": ("aioquic_peer", {}),
    "official": ("official", {}),
}
"""Subject -> its module in `bench/subjects` and parameters for both ends.

`ours` is a node with the settings it has by default, read and written by tasks. The variants beside it have other
settings or another way to read; they have figures of their own and are never what `ours` and `ratio` say."""

LOOPBACK: Final = "127.0.0.1"
MESSAGE_BYTES: Final = 64
SMALL_SEGMENT: Final = 1152
DEFAULT_BUSY_POLL_US: Final = NodeConfig().busy_poll_us
PERCENTILES: Final = (0.5, 0.9, 0.99, 0.999)


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured; `quick` is for tests and says nothing about speed."""

    rounds: int = 7
    stream_bytes: int = 128 << 20
    official_bytes: int = 32 << 20
    round_trips: int = 2000
    dials: int = 100
    datagrams: int = 32_768
    window: int = 256
    held: int = 10_000
    publishes: int = 2000
    subscriptions: int = 1000

    @classmethod
    def quick(cls) -> Sizes:
        """Tiny."""
        return cls(1, 1 << 20, 1 << 20, 20, 4, 256, 64, 32, 100, 100)


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line asked for. `peers` None: all of the name's."""

    sizes: Sizes
    peers: frozenset[str] | None = None
    segment: int = 0

    def wants(self, peer: str) -> bool:
        """Whether `peer` takes part."""
        return self.peers is None or peer in self.peers


class Field:
    """The subjects of a run: those that could be started, and why the others could not."""

    def __init__(self, place: Place, params: dict[str, Any]) -> None:
        self.pairs: dict[str, Pair] = {}
        self.reasons: dict[str, str] = {}
        self.foreign: float | None = None
        """Cores that were busy with something else during the rounds."""
        self._place = place
        self._params = params
        self._stack = AsyncExitStack()

    async def start(self, name: str, **params: Any) -> None:
        """Starts a subject. Without ours there is nothing to compare: its failure is raised, a peer's is kept."""
        module, own = MODULES[name]
        progress(f"starting {name}")
        try:
            pair = await Pair.start(name, module, self._place.sides, {**self._params, **own, **params})
        except SubjectError as error:
            if name == "ours":
                raise
            self.reasons[name] = str(error)
            return
        self._stack.push_async_callback(pair.stop)
        self.pairs[name] = pair

    async def rounds(self, count: int, one: Callable[[Pair], Awaitable[Any]]) -> None:
        """A warm-up of every subject, then `count` rounds in turn; a peer that fails is out, with the reason."""
        await self._round(one)
        for pair in self.pairs.values():
            pair.samples.clear()
            pair.cpu.clear()
        progress("warm-up done")
        started, busy = time.monotonic(), busy_seconds()
        for number in range(1, count + 1):
            await self._round(one)
            progress(f"round {number} of {count}")
        own = sum(sum(ends) for pair in self.pairs.values() for ends in pair.cpu)
        self.foreign = max(0.0, busy_seconds() - busy - own) / (time.monotonic() - started)

    async def _round(self, one: Callable[[Pair], Awaitable[Any]]) -> None:
        for name, pair in list(self.pairs.items()):
            try:
                pair.samples.append(await one(pair))
            except SubjectError as error:
                if name == "ours":
                    raise
                self.reasons[name] = str(error)
                del self.pairs[name]

    async def details(self) -> dict[str, Any]:
        """What the subjects say about themselves."""
        found = {}
        for name, pair in self.pairs.items():
            said = {"client": await pair.client.call("detail"), "server": await pair.server.call("detail")}
            found[name] = {role: detail for role, detail in said.items() if detail}
        return {name: detail for name, detail in found.items() if detail}

    async def close(self) -> None:
        """Ends all processes."""
        await self._stack.aclose()


@asynccontextmanager
async def rendezvous(place: Place, host: str) -> AsyncIterator[dict[str, str]]:
    """A rendezvous in an idle process of its own, unpinned; gives the settings of its nodes."""
    worker = await Worker.start("rendezvous", "server", -1, place.sides[1].prefix)
    try:
        yield await worker.call("open", host=host)
    finally:
        await worker.stop()


@asynccontextmanager
async def field(place: Place) -> AsyncIterator[Field]:
    """A field with a rendezvous."""
    async with rendezvous(place, place.rendezvous_host) as params:
        subjects = Field(place, params)
        try:
            yield subjects
        finally:
            await subjects.close()


def report(name: str, unit: str, values: dict[str, Any], options: Options, peers: tuple[str, ...]) -> dict[str, Any]:
    """The common part of the output: `values` holds a number for ours and each peer that ran."""
    wanted = [peer for peer in peers if options.wants(peer)]
    return {
        "name": name,
        "unit": unit,
        "ours": values["ours"],
        "peers": {peer: values.get(peer) for peer in wanted},
        "ratio": {peer: values["ours"] / values[peer] if values.get(peer) else None for peer in wanted},
        "rounds": options.sizes.rounds,
    }


def variants(values: dict[str, Any], names: tuple[str, ...], peers: dict[str, Any]) -> dict[str, Any]:
    """What nodes of ours that are not `ours` reached, and the ratio of each to each peer."""
    found = {name: values[name] for name in names if name in values}
    return {
        "variants": found,
        "variant_ratio": {
            name: {peer: value / figure if figure else None for peer, figure in peers.items()}
            for name, value in found.items()
        },
    }


# -------------------------------------------------------------------------------------------------- throughput


async def throughput(name: str, place: Place, segment: int, options: Options, peers: tuple[str, ...]) -> dict[str, Any]:
    """MB/s one way, from before the first write to after the last byte was read at the other end."""
    size = -(-options.sizes.stream_bytes // BLOCK_BYTES) * BLOCK_BYTES
    async with field(place) as subjects:

        async def one(pair: Pair) -> float:
            told, seen = await pair.act("send", "stream", size=size)
            return float(size / (seen["end"] - told["start"]) * 1e3)

        await subjects.start("ours", segment=segment)
        await one(subjects.pairs["ours"])  # the path's segment size is found on the way
        segment_bytes = (await subjects.pairs["ours"].client.call("detail"))["segment_bytes"]
        others = ("ours-callback",)
        for variant in filter(options.wants, others):
            await subjects.start(variant, segment=segment)
        for peer in filter(options.wants, peers):
            await subjects.start(peer, kind="stream", **({"segment": segment_bytes} if peer == "c-limit" else {}))
        await subjects.rounds(options.sizes.rounds, one)
        values = {each.name: median(each.samples) for each in subjects.pairs.values()}
        told = report(name, "MB/s", values, options, peers)
        return {
            **told,
            **variants(values, others, told["peers"]),
            "cpu_s_per_gb": {each.name: each.cpu_seconds() / size * 1e9 for each in subjects.pairs.values()},
            "cpu_ends_s_per_gb": {
                each.name: [median([ends[i] for ends in each.cpu]) / size * 1e9 for i in (0, 1)]
                for each in subjects.pairs.values()
            },
            "samples": {each.name: each.samples for each in subjects.pairs.values()},
            "bytes": size,
            "segment_bytes": segment_bytes,
            "detail": await subjects.details(),
            "reasons": subjects.reasons,
            "foreign_cores": subjects.foreign,
        }


async def stream(options: Options) -> dict[str, Any]:
    """One encrypted stream over loopback, in the segments the path carries."""
    async with loopback() as place:
        peers = ("c-limit", "uvloop-tls", "uvloop-tcp", "zmq-curve", "aioquic")
        return await throughput("stream", place, options.segment, options, peers)


async def stream_1152(options: Options) -> dict[str, Any]:
    """The same with our segments held at 1152 bytes; the kernel's TCP keeps its own."""
    async with loopback() as place:
        return await throughput("stream-1152", place, SMALL_SEGMENT, options, ("c-limit", "uvloop-tls", "uvloop-tcp"))


async def stream_mtu1500(options: Options) -> dict[str, Any]:
    """Across a veth pair at MTU 1500 between two namespaces."""
    async with veth(1500) as place:
        return await throughput("stream-mtu1500", place, 0, options, ("c-limit", "uvloop-tls", "uvloop-tcp"))


# ----------------------------------------------------------------------------------------------------- latency


def _spread(pair: Pair) -> dict[str, float]:
    """Medians over the rounds of the percentiles of each."""
    return {
        f"p{fraction * 100:g}": median([percentile(one, fraction) for one in pair.samples]) for fraction in PERCENTILES
    }


async def echo(options: Options) -> dict[str, Any]:
    """Round trips of 64 bytes, one after the other; `ours`, `peers` and `ratio` are p50."""
    peers = ("uvloop-udp", "uvloop-tcp", "uvloop-tls", "zmq-curve", "aioquic")
    others = ("ours-no-busy-poll", "ours-callback")
    async with loopback() as place, field(place) as subjects:
        for name in ("ours", *filter(options.wants, others + peers)):
            await subjects.start(name, kind="echo")
        await subjects.rounds(options.sizes.rounds, lambda pair: round_trips(pair, options))
        spreads = {each.name: _spread(each) for each in subjects.pairs.values()}
        values = {name: spread["p50"] for name, spread in spreads.items()}
        told = report("echo", "us", values, options, peers)
        return {
            **told,
            **variants(values, others, told["peers"]),
            "busy_poll_us": DEFAULT_BUSY_POLL_US,
            "p99": {name: spread["p99"] for name, spread in spreads.items()},
            "percentiles": spreads,
            "cpu_us_per_round_trip": {
                each.name: each.cpu_seconds() / options.sizes.round_trips * 1e6 for each in subjects.pairs.values()
            },
            "message_bytes": MESSAGE_BYTES,
            "round_trips": options.sizes.round_trips,
            "reasons": subjects.reasons,
            "foreign_cores": subjects.foreign,
        }


async def round_trips(pair: Pair, options: Options) -> list[float]:
    """Microseconds of each round trip of a round."""
    told, _ = await pair.act("echo", "echo", count=options.sizes.round_trips, size=MESSAGE_BYTES)
    times: list[float] = told
    return times


async def dial(options: Options) -> dict[str, Any]:
    """From the call to the first echoed byte, to a peer already in contact; the close is timed apart."""
    peers = ("uvloop-tcp", "uvloop-tls", "aioquic")
    async with loopback() as place, field(place) as subjects:

        async def one(pair: Pair) -> dict[str, list[float]]:
            told, _ = await pair.act("dial", "echo", count=options.sizes.dials, size=MESSAGE_BYTES)
            found: dict[str, list[float]] = told
            if pair.name == "ours":
                found["echo"] = await round_trips(pair, options)
            return found

        for name in ("ours", *filter(options.wants, peers)):
            await subjects.start(name)
        await subjects.rounds(options.sizes.rounds, one)

        def middle(pair: Pair, what: str, fraction: float) -> float:
            return median([percentile(sample[what], fraction) for sample in pair.samples])

        pairs = subjects.pairs.values()
        echo_p50 = middle(subjects.pairs["ours"], "echo", 0.5)
        values = {each.name: middle(each, "open", 0.5) for each in pairs}
        return {
            **report("dial", "us", values, options, peers),
            "p99": {each.name: middle(each, "open", 0.99) for each in pairs},
            "close_p50": {each.name: middle(each, "close", 0.5) for each in pairs},
            "echo_p50": echo_p50,
            "dial_per_echo": values["ours"] / echo_p50,
            "dials": options.sizes.dials,
            "reasons": subjects.reasons,
            "foreign_cores": subjects.foreign,
        }


# -------------------------------------------------------------------------------------------------------- others


async def datagram(options: Options) -> dict[str, Any]:
    """Messages of 64 bytes that arrive in a second, with a window of unconfirmed ones."""
    peers = ("uvloop-udp", "zmq-curve", "aioquic")
    count = -(-options.sizes.datagrams // CREDIT_MESSAGES) * CREDIT_MESSAGES
    async with loopback() as place, field(place) as subjects:

        async def one(pair: Pair) -> dict[str, float]:
            more = {"window": options.sizes.window}
            told, seen = await pair.act("flood", "datagrams", count=count, size=MESSAGE_BYTES, **more)
            rate = seen["received"] / (seen["end"] - told["start"]) * 1e9
            return {"rate": rate, "lost": told["sent"] - seen["received"]}

        for name in ("ours", *filter(options.wants, peers)):
            await subjects.start(name, kind="datagrams")
        await subjects.rounds(options.sizes.rounds, one)
        pairs = subjects.pairs.values()
        values = {each.name: median([sample["rate"] for sample in each.samples]) for each in pairs}
        return {
            **report("datagram", "messages/s", values, options, peers),
            "lost": {each.name: sum(sample["lost"] for sample in each.samples) for each in pairs},
            "messages": count,
            "message_bytes": MESSAGE_BYTES,
            "window": options.sizes.window,
            "reasons": subjects.reasons,
            "foreign_cores": subjects.foreign,
        }


async def many(options: Options) -> dict[str, Any]:
    """Resident bytes of an idle stream at one end (mean of both), and echo latency on one of them.

    Nothing is torn down between rounds that could give memory back to the system, so each subject has one round.
    """
    peers = ("uvloop-tcp", "uvloop-tls")
    values, ends, latency = {}, {}, {}
    async with loopback() as place, field(place) as subjects:
        for name in ("ours", *filter(options.wants, peers)):
            await subjects.start(name)
        for name, pair in list(subjects.pairs.items()):
            try:
                ends[name] = await _held_bytes(pair, options.sizes.held)
                latency[name] = await round_trips(pair, options)
            except SubjectError as error:
                if name == "ours":
                    raise
                subjects.reasons[name] = str(error)
                continue
            values[name] = sum(ends[name].values()) / 2
        return {
            **report("many", "bytes", values, options, peers),
            "rounds": 1,
            "ends": ends,
            "streams": options.sizes.held,
            "echo_p50": {name: percentile(times, 0.5) for name, times in latency.items()},
            "echo_p99": {name: percentile(times, 0.99) for name, times in latency.items()},
            "reasons": subjects.reasons,
            "foreign_cores": subjects.foreign,
        }


async def _held_bytes(pair: Pair, count: int) -> dict[str, float]:
    """What `count` more idle streams add to each end, for one of them. The first few warm the allocator up."""
    await pair.client.call("hold", count=max(1, count // 50))
    ends = {"client": pair.client, "server": pair.server}
    before = {name: await end.call("resident") for name, end in ends.items()}
    await pair.client.call("hold", count=count)
    await asyncio.sleep(0.5)
    return {name: (await end.call("resident") - before[name]) / count for name, end in ends.items()}


async def official(options: Options) -> dict[str, Any]:
    """Ours to ours beside official to official: one stream (MB/s) and echo of 64 bytes (p50, us).

    All in one namespace, on its loopback device: ours at 127.0.0.1 as in `stream`; the official daemon discards that
    as its own address, so it has others.
    """
    size = options.sizes.official_bytes
    async with (
        lone_namespace() as place,
        rendezvous(place, LOOPBACK) as params,
        field(place) as subjects,
    ):

        async def one(pair: Pair) -> dict[str, Any]:
            told, seen = await pair.act("send", "stream", size=size)
            speed = size / (seen["end"] - told["start"]) * 1e3
            return {"stream": speed, "echo": await round_trips(pair, options), "cpu": sum(pair.cpu[-2])}

        others = ("ours-no-busy-poll",)
        for name in ("ours", *filter(options.wants, others)):
            await subjects.start(name, host=LOOPBACK, **params)
        if options.wants("official"):
            await subjects.start("official")
        await subjects.rounds(options.sizes.rounds, one)

        pairs = subjects.pairs.values()
        kinds = {
            "stream": {each.name: median([sample["stream"] for sample in each.samples]) for each in pairs},
            "echo": {each.name: median([percentile(sample["echo"], 0.5) for sample in each.samples]) for each in pairs},
        }
        parts = {kind: report(kind, "", values, options, ("official",)) for kind, values in kinds.items()}
        return {
            "name": "official",
            "unit": {"stream": "MB/s", "echo": "us"},
            **{key: {kind: part[key] for kind, part in parts.items()} for key in ("ours", "peers", "ratio")},
            **{
                key: {kind: variants(kinds[kind], others, part["peers"])[key] for kind, part in parts.items()}
                for key in ("variants", "variant_ratio")
            },
            "busy_poll_us": DEFAULT_BUSY_POLL_US,
            "rounds": options.sizes.rounds,
            "echo_p99": {
                each.name: median([percentile(sample["echo"], 0.99) for sample in each.samples])
                for each in subjects.pairs.values()
            },
            "cpu_s_per_gb": {
                each.name: median([sample["cpu"] for sample in each.samples]) / size * 1e9
                for each in subjects.pairs.values()
            },
            "bytes": size,
            "reasons": subjects.reasons,
            "foreign_cores": subjects.foreign,
        }


async def events(options: Options) -> dict[str, Any]:
    """Publishes/s with 1,000 subscriptions of which 10 match; `fresh` of topics never seen before. One process each."""
    peers = ("fnmatch", "python-cached", "pyee")
    reasons: dict[str, str] = {}
    repeated: dict[str, list[float]] = {}
    fresh: dict[str, list[float]] = {}
    async with AsyncExitStack() as stack:
        workers: dict[str, Worker] = {}
        for name in ("ours", *filter(options.wants, peers)):
            worker = await Worker.start("events", "server", CORES[1])
            stack.push_async_callback(worker.stop)
            try:
                await worker.call("open", bus=name, subscriptions=options.sizes.subscriptions)
            except SubjectError as error:
                if name == "ours":
                    raise
                reasons[name] = str(error)
                continue
            workers[name] = worker
        for number in range(options.sizes.rounds + 1):
            for name, worker in workers.items():
                count = options.sizes.publishes if name == "fnmatch" else options.sizes.publishes * 20
                seconds = await worker.call("publish", count=count, fresh=False)
                repeated.setdefault(name, []).append(count / seconds)
                if name != "pyee":
                    count = options.sizes.publishes
                    seconds = await worker.call("publish", count=count, fresh=True)
                    fresh.setdefault(name, []).append(count / seconds)
            progress(f"round {number} of {options.sizes.rounds}" if number else "warm-up done")

    def medians(samples: dict[str, list[float]]) -> dict[str, float]:
        return {name: median(rates[1:]) for name, rates in samples.items()}

    return {
        **report("events", "publishes/s", medians(repeated), options, peers),
        "fresh": {
            key: value
            for key, value in report("events", "publishes/s", medians(fresh), options, peers[:2]).items()
            if key in ("ours", "peers", "ratio")
        },
        "subscriptions": options.sizes.subscriptions,
        "matching": 10,
        "reasons": reasons,
    }


NAMES: Final[dict[str, Callable[[Options], Coroutine[Any, Any, dict[str, Any]]]]] = {
    "stream": stream,
    "stream-1152": stream_1152,
    "stream-mtu1500": stream_mtu1500,
    "echo": echo,
    "dial": dial,
    "datagram": datagram,
    "many": many,
    "events": events,
    "official": official,
}


# ------------------------------------------------------------------------------------------------------- command


def table(result: dict[str, Any]) -> str:
    """The result for eyes."""
    lines = [
        f"{result['name']} ({result['unit']}), {result['rounds']} rounds",
        f"  {'ours':12} {_show(result['ours'])}",
    ]
    for variant, value in result.get("variants", {}).items():
        lines.append(f"  {variant:12} {_show(value)}   its ratios {_show(result['variant_ratio'][variant])}")
    for peer, value in result["peers"].items():
        ratio = result["ratio"][peer]
        reason = result.get("reasons", {}).get(peer, "")
        lines.append(f"  {peer:12} {_show(value)}   ours/peer {_show(ratio)} {reason}")
    return "\n".join(lines)


def _show(value: Any) -> str:
    return (
        f"{value:,.3g}"
        if isinstance(value, float) and value < 100
        else f"{value:,.0f}"
        if isinstance(value, float)
        else str(value)
    )


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=NAMES, help="what to measure")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs, measures nothing")
    parser.add_argument("--rounds", type=int, help="rounds of every subject after the warm-up")
    parser.add_argument("--peers", help="only these, separated by commas; empty: ours alone")
    parser.add_argument("--segment", type=int, default=0, help="stream: hold our segments at so many bytes")
    return parser.parse_args(words)


def main() -> None:
    """Runs one benchmark and prints it."""
    given = arguments()
    sizes = Sizes.quick() if given.quick else Sizes()
    if given.rounds:
        sizes = replace(sizes, rounds=given.rounds)
    peers = None if given.peers is None else frozenset(filter(None, given.peers.split(",")))
    before = machine()
    try:
        result = asyncio.run(NAMES[given.name](Options(sizes, peers, given.segment)))
    except SubjectError as error:
        sys.exit(f"{given.name}: {error}")
    busy = {"load_after": machine()["load"], "foreign_cores": result.pop("foreign_cores", None)}
    result |= {"machine": before | busy, "versions": versions()}
    result["command"] = " ".join(["bench/e2e.py", *sys.argv[1:]])
    print(json.dumps(result) if given.json else table(result))


if __name__ == "__main__":
    main()
